//! The zone's API beside Docker Engine's, call by call, in the same boot.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::inside;

const PROGRAM: &str = "/usr/lib/kraud/compare";

/// The tables are in qemu-tests/compare/tables, what may differ and why in qemu-tests/compare/allowed.json.
#[test]
fn c01_the_zone_answers_as_docker_engine_does() {
    let full = std::env::var("KRAUD_FULL").is_ok_and(|v| v == "1");
    let said = if full { inside(&[PROGRAM]) } else { inside(&[PROGRAM, "--short"]) };
    assert!(said.code == 0 && said.out.contains("\"differences\":0"), "{}{}", said.out, said.err);
}
