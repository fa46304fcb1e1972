//! The zone's API beside Docker Engine's, call by call, in the same boot.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{full, inside};

const PROGRAM: &str = "/usr/lib/kraud/compare";

/// The tables are in qemu-tests/compare/tables, what may differ and why in qemu-tests/compare/allowed.json.
#[test]
fn c01_the_zone_answers_as_docker_engine_does() {
    if !full("every call is made of two engines, which takes minutes") {
        return;
    }
    let said = inside(&[PROGRAM]);
    assert!(said.code == 0 && said.out.contains("\"differences\":0"), "{}{}", said.out, said.err);
}
