//! The builder's library: what `cargo appliance` does, without its command line.
//!
//! `build` makes the image and knows nothing of virtual machines; `machine` runs it and knows nothing of how it was made.

pub mod build;
pub mod machine;
