//! The tables of the firmware as far as they are used (UEFI Specification 2.10; layout as in C). What is not used keeps its place.

use core::ffi::c_void;

/// `EFI_HANDLE`.
pub type Handle = *mut c_void;
/// `EFI_STATUS`: 0 is success.
pub type Status = usize;

/// `EFI_GUID`.
#[repr(C)]
pub struct Guid(pub u32, pub u16, pub u16, pub [u8; 8]);

/// `EFI_SYSTEM_TABLE` (4.3).
#[repr(C)]
pub struct SystemTable {
    header: [u64; 3],
    vendor: *const u16,
    revision: u32,
    input_handle: Handle,
    /// Keys.
    pub input: *const TextInput,
    output_handle: Handle,
    /// The screen, the serial port.
    pub output: *const TextOutput,
    error_handle: Handle,
    error: *const TextOutput,
    /// What an operating system may use too.
    pub runtime: *const RuntimeServices,
    /// What only a boot loader may use.
    pub boot: *const BootServices,
}

/// `EFI_INPUT_KEY` (12.3).
#[repr(C)]
pub struct InputKey {
    pub scan_code: u16,
    pub unicode: u16,
}

/// `EFI_SIMPLE_TEXT_INPUT_PROTOCOL` (12.3).
#[repr(C)]
pub struct TextInput {
    reset: usize,
    /// Does not wait.
    pub read_key: extern "efiapi" fn(*const TextInput, *mut InputKey) -> Status,
}

/// `EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL` (12.4).
#[repr(C)]
pub struct TextOutput {
    reset: usize,
    /// UTF-16, ended by a zero.
    pub write: extern "efiapi" fn(*const TextOutput, *const u16) -> Status,
}

/// `EFI_RUNTIME_SERVICES` (4.5).
#[repr(C)]
pub struct RuntimeServices {
    header: [u64; 3],
    unused: [usize; 10],
    /// Does not come back.
    pub reset: extern "efiapi" fn(u32, Status, usize, *const c_void),
}

/// `EFI_BOOT_SERVICES` (4.4).
#[repr(C)]
pub struct BootServices {
    header: [u64; 3],
    unused_0: [usize; 5],
    /// The memory's kind, its size, where to put its address.
    pub allocate: extern "efiapi" fn(u32, usize, *mut *mut u8) -> Status,
    unused_6: [usize; 10],
    pub handle_protocol: extern "efiapi" fn(Handle, *const Guid, *mut *const c_void) -> Status,
    unused_17: [usize; 5],
    /// Whether it is the firmware's own choice, the parent, the path, content and its size, where to put the handle.
    pub load_image: extern "efiapi" fn(u8, Handle, *const u8, *const c_void, usize, *mut Handle) -> Status,
    pub start_image: extern "efiapi" fn(Handle, *mut usize, *mut *mut u16) -> Status,
    unused_24: [usize; 4],
    /// Waits, microseconds.
    pub stall: extern "efiapi" fn(usize) -> Status,
}

/// `EFI_LOADED_IMAGE_PROTOCOL` (9.1).
#[repr(C)]
pub struct LoadedImage {
    revision: u32,
    parent: Handle,
    system: *const SystemTable,
    /// What the image was loaded from.
    pub device: Handle,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn functions_lie_where_the_specification_has_them() {
        let header = 24;
        assert_eq!(offset_of!(BootServices, allocate), header + 5 * 8);
        assert_eq!(offset_of!(BootServices, handle_protocol), header + 16 * 8);
        assert_eq!(offset_of!(BootServices, load_image), header + 22 * 8);
        assert_eq!(offset_of!(BootServices, stall), header + 28 * 8);
        assert_eq!(offset_of!(RuntimeServices, reset), header + 10 * 8);
        assert_eq!((offset_of!(SystemTable, input), offset_of!(SystemTable, boot)), (48, 96));
        assert_eq!(offset_of!(LoadedImage, device), 24);
    }
}
