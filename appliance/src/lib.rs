//! The builder's library: what `cargo appliance` does, without its command line.
//!
//! `build` makes the image and knows nothing of virtual machines.

pub mod build;
