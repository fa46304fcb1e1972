//! Secure Boot: a firmware without keys takes the image's at the first boot, starts nothing else from then on, and a kernel image that was
//! changed is undone like any that does not start. A second zone beside the tests' own, so only with `cargo appliance test --full`.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::full;
use qemu_tests::second::Zone;
use std::time::{Duration, Instant};

/// Three starts that the firmware refuses, and one of the image before.
const PATIENCE: Duration = Duration::from_secs(600);
/// The running kernel image once more as a newer version with three tries, and one byte of it another one.
const CHANGED: &str = r#"
set -e
mkdir -p /run/esp
for part in /sys/class/block/*; do grep -q PARTNAME=kraud-esp "$part/uevent" && esp=/dev/${part##*/}; done
mount -t vfat -o umask=0077,iocharset=ascii "$esp" /run/esp
menu=/run/esp/EFI/Linux
for word in $(cat /proc/cmdline); do case $word in kraud.version=*) running=${word#*=} ;; esac; done
cp "$menu/kraudbox-$running.efi" "$menu/kraudbox-9.9.9+3.efi"
size=$(stat -c %s "$menu/kraudbox-9.9.9+3.efi")
half=$((size / 2))
old=$(dd if="$menu/kraudbox-9.9.9+3.efi" bs=1 skip=$half count=1 2>/dev/null | busybox od -An -tu1)
printf "\\$(printf %o $(((old + 1) % 256)))" | dd of="$menu/kraudbox-9.9.9+3.efi" bs=1 seek=$half count=1 conv=notrunc
umount /run/esp
"#;

#[test]
fn a_new_zone_takes_the_keys_and_a_changed_kernel_image_is_refused_and_undone() {
    if !full("six boots of its own") {
        return;
    }
    let zone = Zone::new("secure-boot");
    let _ = zone.appliance(&["run", "--no-build", "--fresh", "--detach", "--memory", "2G", "--secure-boot"]).ok();
    let status = zone.inside("kraud-update status").ok();
    assert!(status.contains("secure boot: on"), "{status}");
    // Modules of Debian and ours are loaded, and nothing that is not signed would be.
    let lockdown = zone.inside("cat /sys/kernel/security/lockdown; zpool list -H -o health zone").ok();
    assert!(lockdown.contains("[integrity]") && lockdown.contains("ONLINE"), "{lockdown}");
    let info = zone.inside("docker -H unix:///run/kraud/docker/docker.sock info").ok();
    assert!(info.contains("secure-boot") && info.contains("Profile: on"), "{info}");

    let _ = zone.inside(CHANGED).ok();
    let _ = zone.inside("systemctl reboot");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = zone.inside("kraud-update status");
        if said.out.contains("9.9.9 failed") {
            assert!(said.out.contains("running 0.") && said.out.contains("secure boot: on"), "{}", said.out);
            break;
        }
        assert!(Instant::now() < deadline, "last seen: {} {}", said.out, said.err);
        std::thread::park_timeout(Duration::from_secs(1));
    }
    let console = String::from_utf8_lossy(&std::fs::read(zone.state().join("serial.log")).unwrap()).into_owned();
    assert!(console.contains("Custom Secure Boot keys successfully enrolled"), "{console}");
    assert_eq!(console.matches("kraudbox: nothing was started").count(), 3, "{console}");
}
