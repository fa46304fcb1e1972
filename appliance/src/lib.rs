//! The builder's library: what `cargo appliance` does, without its command line.
//!
//! `build` makes the image and knows nothing of virtual machines; `machine` runs it and knows nothing of how it was made.
//! `fuzz` runs the fuzz targets and needs neither.

pub mod build;
pub mod fuzz;
pub mod machine;
