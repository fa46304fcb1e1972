//! An allocator that ends the process when one input makes us ask for too much.
//!
//! libFuzzer sees only what is touched; a buffer that is as large as a stranger says, and never filled, is seen here.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

/// What an input may cost: more than any limit on a size that the services have, so that a missing one shows.
pub const LIMIT: isize = 64 << 20;

static RUNS: AtomicBool = AtomicBool::new(false);
static USED: AtomicIsize = AtomicIsize::new(0);

/// An input begins.
pub fn begin() {
    USED.store(0, Ordering::Relaxed);
    RUNS.store(true, Ordering::Relaxed);
}

/// An input is over.
pub fn end() {
    RUNS.store(false, Ordering::Relaxed);
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: isize) {
    let used = USED.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
    if used > LIMIT && RUNS.load(Ordering::Relaxed) {
        let text = b"an input asked for more memory than fuzz::memory::LIMIT\n";
        // SAFETY: writes a constant's bytes to the standard error; nothing is allocated on the way to the end.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
        std::process::abort();
    }
}

// SAFETY: everything is the system allocator's; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promises about the layout are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promises about the layout are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the pointer came from the system allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.cast_signed() - layout.size().cast_signed());
        // SAFETY: the pointer came from the system allocator, with this layout.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
