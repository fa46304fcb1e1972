//! The bus: any address, any port, any width, with devices, slots that fill and empty, and a serial port behind it.

use super::devices::file;
use super::guest::{event, memory};
use crate::input::Input;
use cradle::bus::{Bus, MMIO_BASE};
use cradle::serial::Serial;
use cradle::slots::SpareSlot;
use cradle::virtio::mmio::MmioDevice;
use cradle::virtio::{Slot, balloon, rng, vsock};
use std::sync::Mutex;

/// Devices and spare slots.
const WINDOWS: u64 = 3 + 2;

#[allow(clippy::expect_used)]
fn device(kind: u8) -> MmioDevice {
    let identity = match kind % 3 {
        0 => rng::identity(),
        1 => balloon::identity(),
        _ => vsock::identity(),
    };
    let slot = Slot::new(identity.queues.len(), event()).expect("the machine that fuzzes has descriptors");
    MmioDevice::new(identity, slot, memory())
}

fn address(input: &mut Input<'_>) -> u64 {
    match input.byte() {
        0xff => input.quad(),
        window => MMIO_BASE + u64::from(window) % (WINDOWS + 1) * 0x1000 + u64::from(input.word() & 0x1fff),
    }
}

/// Reads and writes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let serial = Some(Mutex::new(Serial::new(file(b""), event())));
    let spare = vec![SpareSlot::default(), SpareSlot::default()];
    let bus = Bus { devices: (0..3).map(device).collect(), spare, serial };
    while !input.is_empty() {
        match input.byte() % 6 {
            0 => {
                let address = address(&mut input);
                bus.write(address, input.piece());
            }
            1 => bus.write(address(&mut input), &input.double().to_le_bytes()),
            2 => {
                let mut data = vec![0; usize::from(input.byte() % 20)];
                bus.read(address(&mut input), &mut data);
            }
            3 => {
                let port = input.word();
                let _ = bus.port_out(port, input.piece());
            }
            4 => {
                let mut data = vec![0; usize::from(input.byte() % 20)];
                bus.port_in(0x3f0 + (input.word() & 0x1f), &mut data);
            }
            _ => {
                let kind = input.byte();
                if let Some(slot) = bus.spare.get(usize::from(kind >> 7)) {
                    slot.set((kind & 1 != 0).then(|| device(kind >> 1)));
                    assert_eq!(slot.is_empty(), kind & 1 == 0);
                }
            }
        }
    }
}
