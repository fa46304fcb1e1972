//! The authority on a real directory, judged by openssl where it is there.

use super::*;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

const NOW: u64 = 1_793_491_200 + 20 * DAY;

fn identity(addresses: &[&str]) -> Identity {
    let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
    Identity::of("kraudbox", &addresses)
}

fn openssl(args: &[&str]) -> Option<String> {
    let output = Command::new("openssl").args(args).output().ok()?;
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn certificates_chain_to_the_authority_and_carry_names_and_uses() {
    let dir = tempfile::tempdir().unwrap();
    let (pki, tls) = (dir.path().join("pki"), dir.path().join("tls"));
    std::fs::create_dir(&tls).unwrap();
    let authority = Authority::load(&pki, NOW).unwrap();
    assert!(authority.provide_server(&tls, &identity(&["192.168.7.5"]), NOW).unwrap());
    authority.provide_client(NOW).unwrap();
    let path = |p: PathBuf| p.display().to_string();
    let (ca, server, client) =
        (path(tls.join("ca.pem")), path(tls.join("server.pem")), path(pki.join("client/cert.pem")));
    let at = NOW.to_string();
    if openssl(&[
        "verify",
        "-attime",
        &at,
        "-CAfile",
        &ca,
        "-purpose",
        "sslserver",
        "-verify_ip",
        "192.168.7.5",
        &server,
    ])
    .is_none()
    {
        eprintln!("skipped: needs openssl");
        return;
    }
    openssl(&[
        "verify",
        "-attime",
        &at,
        "-CAfile",
        &ca,
        "-purpose",
        "sslserver",
        "-verify_hostname",
        "kraudbox.local",
        &server,
    ]);
    openssl(&["verify", "-attime", &at, "-CAfile", &ca, "-purpose", "sslclient", &client]);
    // A machine whose clock is half a year behind still trusts it.
    let behind = (NOW - 180 * DAY).to_string();
    openssl(&["verify", "-attime", &behind, "-CAfile", &ca, "-purpose", "sslserver", &server]);
    let mode = |p: PathBuf| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(tls.join("server-key.pem")), 0o640);
    assert_eq!((mode(pki.join("ca-key.pem")), mode(pki.join("client/key.pem"))), (0o600, 0o600));
}

#[test]
fn a_server_keeps_its_certificate_until_an_address_changes_or_the_end_is_near() {
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path().join("tls");
    std::fs::create_dir(&tls).unwrap();
    let load = || Authority::load(&dir.path().join("pki"), NOW).unwrap();
    let cert = || std::fs::read_to_string(tls.join("server.pem")).unwrap();
    load().provide_server(&tls, &identity(&["10.0.0.1"]), NOW).unwrap();
    let first = cert();
    assert!(!load().provide_server(&tls, &identity(&["10.0.0.1"]), NOW + 100 * DAY).unwrap());
    // After a boot /run is empty, and the same one comes back.
    std::fs::remove_file(tls.join("server.pem")).unwrap();
    assert!(load().provide_server(&tls, &identity(&["10.0.0.1"]), NOW).unwrap());
    assert_eq!(cert(), first);
    assert!(load().provide_server(&tls, &identity(&["10.0.0.1", "10.0.0.2"]), NOW).unwrap());
    let second = cert();
    assert_ne!(second, first);
    assert!(load().provide_server(&tls, &identity(&["10.0.0.1", "10.0.0.2"]), NOW + 310 * DAY).unwrap());
    assert_ne!(cert(), second);
}

#[test]
fn an_authority_whose_making_was_interrupted_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca-key.pem"), "half").unwrap();
    let first = Authority::load(dir.path(), NOW).unwrap().ca_pem().to_owned();
    assert_eq!(Authority::load(dir.path(), NOW + DAY).unwrap().ca_pem(), first);
}
