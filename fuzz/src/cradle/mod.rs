//! The monitor against its guest.

pub mod bus;
pub mod chain;
pub mod devices;
pub mod files;
mod guest;
pub mod vsock;
