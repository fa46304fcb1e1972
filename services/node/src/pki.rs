//! The zone's own certificate authority: the server's certificate and the clients'.
//!
//! ```text
//! PKI/ca.pem, ca-key.pem                 made once, ten years
//! PKI/server.pem, server-key.pem, server.json   made anew when names or addresses change, or the end is near
//! PKI/client/{ca,cert,key}.pem           one client, for the development door
//! TLS/{ca,server,server-key}.pem         what the services that speak TLS read, after every boot
//! ```
//! The clock may be wrong at the first boot: no time that must be wrong is believed, and everything is valid from well
//! before. Must not: speak with anybody.

use crate::files;
use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zone::access::Holder;

const DAY: u64 = 86_400;
const CA_DAYS: u64 = 3650;
/// Clients refuse longer ones: 398 days in public, 825 from an authority of one's own.
const SERVER_DAYS: u64 = 365;
const CLIENT_DAYS: u64 = 1825;
/// How long before its end a server's certificate is made anew.
const RENEW_DAYS: u64 = 60;
/// How far back validity begins: clients' clocks may be behind, and a year of ours may have been guessed.
const BACK_DAYS: u64 = 366;

/// The authority.
pub struct Authority {
    dir: PathBuf,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// Its key (PKCS #8).
    pub key: String,
}

/// What a server's certificate was made for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    names: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
    from_s: u64,
    until_s: u64,
}

/// Names and addresses that the server answers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Names.
    pub names: BTreeSet<String>,
    /// Addresses.
    pub addresses: BTreeSet<IpAddr>,
}

impl Identity {
    /// The machine's own names, and the addresses of its uplink.
    #[must_use]
    pub fn of(hostname: &str, addresses: &[IpAddr]) -> Self {
        let own = [hostname.to_owned(), format!("{hostname}.local"), "localhost".into(), "kraudbox.local".into()];
        let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)];
        let names = own.into_iter().filter(|n| n.is_ascii() && !n.is_empty()).collect();
        Self { names, addresses: addresses.iter().copied().chain(loopback).collect() }
    }
}

fn validity(params: &mut CertificateParams, from_s: u64, until_s: u64) {
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from_s);
    params.not_after = epoch + Duration::from_secs(until_s);
}

impl Authority {
    /// Reads the authority from `dir`, or makes it there. The key is written first: an authority without its certificate
    /// is made again.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is broken.
    pub fn load(dir: &Path, now_s: u64) -> Result<Self> {
        files::make_dir(dir, 0o700)?;
        let (cert, key) = (dir.join("ca.pem"), dir.join("ca-key.pem"));
        if !cert.exists() {
            let pair = make_ca(now_s)?;
            files::write(&key, 0o600, pair.key.as_bytes())?;
            files::write(&cert, 0o600, pair.cert.as_bytes())?;
            tracing::info!("a certificate authority has been made");
        }
        let ca_pem = files::read(&cert)?.with_context(|| format!("{} is gone", cert.display()))?;
        let key_pem = files::read(&key)?.with_context(|| format!("{} is gone", key.display()))?;
        let key_pair = KeyPair::from_pem(&key_pem).with_context(|| format!("{} is broken", key.display()))?;
        let issuer =
            Issuer::from_ca_cert_pem(&ca_pem, key_pair).with_context(|| format!("{} is broken", cert.display()))?;
        Ok(Self { dir: dir.to_owned(), ca_pem, issuer })
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A new certificate for `holder`; its subject says who that is ([`zone::access`]).
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn issue_client(&self, holder: &Holder, now_s: u64) -> Result<Pair> {
        let mut params = CertificateParams::default();
        let subject = &mut params.distinguished_name;
        subject.push(DnType::CommonName, holder.name.as_str());
        subject.push(DnType::OrganizationalUnitName, holder.role.as_str());
        if let Some(project) = &holder.project {
            subject.push(DnType::OrganizationName, project.as_str());
        }
        // serialNumber, RFC 5280 A.1.
        subject.push(DnType::CustomDnType(vec![2, 5, 4, 5]), now_s.to_string());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, now_s.saturating_sub(BACK_DAYS * DAY), now_s + CLIENT_DAYS * DAY)
    }

    /// Makes the client's files for the development door, once.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn provide_client(&self, now_s: u64) -> Result<()> {
        let dir = self.dir.join("client");
        files::make_dir(&dir, 0o700)?;
        if dir.join("cert.pem").exists() {
            return Ok(());
        }
        let holder = Holder { name: "development".into(), ..Holder::default() };
        let pair = self.issue_client(&holder, now_s)?;
        files::write(&dir.join("ca.pem"), 0o600, self.ca_pem.as_bytes())?;
        files::write(&dir.join("key.pem"), 0o600, pair.key.as_bytes())?;
        files::write(&dir.join("cert.pem"), 0o600, pair.cert.as_bytes())
    }

    /// Sees to it that `tls` has a server's certificate for `identity` that is valid for a while; whether it changed.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn provide_server(&self, tls: &Path, identity: &Identity, now_s: u64) -> Result<bool> {
        let (cert, key, made) =
            (self.dir.join("server.pem"), self.dir.join("server-key.pem"), self.dir.join("server.json"));
        let held: Option<Made> = files::read(&made)?.and_then(|text| serde_json::from_str(&text).ok());
        let good = held.is_some_and(|m| {
            m.names == identity.names
                && m.addresses == identity.addresses
                && m.from_s <= now_s
                && now_s + RENEW_DAYS * DAY < m.until_s
        });
        if !good || !cert.exists() || !key.exists() {
            let (from_s, until_s) = (now_s.saturating_sub(BACK_DAYS * DAY), now_s + SERVER_DAYS * DAY);
            let pair = self.issue_server(identity, from_s, until_s)?;
            // While the note is away, an interrupted change is made again.
            let _ = std::fs::remove_file(&made);
            files::write(&key, 0o600, pair.key.as_bytes())?;
            files::write(&cert, 0o600, pair.cert.as_bytes())?;
            let note = Made { names: identity.names.clone(), addresses: identity.addresses.clone(), from_s, until_s };
            files::write(&made, 0o600, &serde_json::to_vec(&note)?)?;
        }
        let mut changed = false;
        // The certificate comes last: who waits for it finds the key there.
        for (name, text) in [
            ("ca.pem", Some(self.ca_pem.clone())),
            ("server-key.pem", files::read(&key)?),
            ("server.pem", files::read(&cert)?),
        ] {
            let text = text.with_context(|| format!("{name} is gone"))?;
            if files::read(&tls.join(name)).ok().flatten().as_deref() != Some(text.as_str()) {
                files::write(&tls.join(name), 0o640, text.as_bytes())?;
                changed = true;
            }
        }
        Ok(changed)
    }

    fn issue_server(&self, identity: &Identity, from_s: u64, until_s: u64) -> Result<Pair> {
        let mut params =
            CertificateParams::new(identity.names.iter().cloned().collect::<Vec<_>>()).context("a name is no name")?;
        params.subject_alt_names.extend(identity.addresses.iter().map(|a| SanType::IpAddress(*a)));
        params.distinguished_name.push(DnType::CommonName, "kraudbox");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, from_s, until_s)
    }

    fn issue(&self, mut params: CertificateParams, from_s: u64, until_s: u64) -> Result<Pair> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, from_s, until_s);
        let key = KeyPair::generate().context("cannot make a key")?;
        let cert = params.signed_by(&key, &self.issuer).context("cannot sign a certificate")?;
        Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
    }
}

fn make_ca(now_s: u64) -> Result<Pair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "kraudbox certificate authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, now_s.saturating_sub(2 * BACK_DAYS * DAY), now_s + CA_DAYS * DAY);
    let key = KeyPair::generate().context("cannot make a key")?;
    let cert = params.self_signed(&key).context("cannot sign the authority's certificate")?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}

#[cfg(test)]
#[path = "pki_tests.rs"]
mod tests;
