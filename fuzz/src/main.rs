//! libFuzzer's entry: runs the target that the environment names.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::choose(), |data: &[u8]| fuzz::run(data));
