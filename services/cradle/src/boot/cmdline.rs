//! The kernel's command line.
//!
//! `reboot=k` and `panic=-1`: the end of the guest is one write to a port. Devices are announced here, there is no bus to probe.

use crate::bus::{MMIO_BASE, MMIO_WINDOW};

/// The command line for devices with these interrupt lines.
#[must_use]
pub fn build(lines: &[u32], console: bool, more: &str) -> String {
    let mut text =
        String::from("reboot=k panic=-1 no_timer_check tsc=reliable random.trust_cpu=on rcupdate.rcu_expedited=1");
    text.push_str(if console { " console=ttyS0" } else { " quiet 8250.nr_uarts=0" });
    for (index, line) in lines.iter().enumerate() {
        let address = MMIO_BASE + index as u64 * MMIO_WINDOW;
        text.push_str(&format!(" virtio_mmio.device=4K@{address:#x}:{line}"));
    }
    if !more.is_empty() {
        text.push(' ');
        text.push_str(more);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_announced_in_order_and_the_bundles_words_come_last() {
        let text = build(&[5, 6], false, "init=/x -- y");
        assert!(text.ends_with(" virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 init=/x -- y"));
        assert!(!text.contains("ttyS0"));
        assert!(build(&[], true, "").contains("console=ttyS0"));
    }
}
