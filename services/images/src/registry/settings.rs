//! What a zone's owner says of registries, in the words of Docker's daemon.json. The file is read at each request, so that
//! a change needs no restart.

use crate::fail::{Result, internal, invalid};
use crate::reference::DEFAULT_DOMAIN;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

/// A file that is larger is none of these.
const MAX_FILE: u64 = 1 << 20;

/// `registries.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Registries that are spoken to in plain HTTP: `HOST`, `HOST:PORT` or a network, `10.0.0.0/8`. Those on this machine always are.
    #[serde(default)]
    pub insecure_registries: Vec<String>,
    /// Asked before Docker's own registry: `http://HOST:PORT` or `https://HOST`.
    #[serde(default)]
    pub registry_mirrors: Vec<String>,
    /// Certificates (PEM) of authorities that are trusted for one registry (`HOST` or `HOST:PORT`) besides the public ones.
    #[serde(default)]
    pub certificate_authorities: BTreeMap<String, String>,
}

impl Settings {
    /// Reads a file; one that is not there says nothing.
    ///
    /// # Errors
    /// When it cannot be read or understood: a typing error must not make a registry insecure or unreachable without a word.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        match path.metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Ok(meta) if meta.len() > MAX_FILE => {
                return Err(invalid(format!("{name} is larger than {MAX_FILE} bytes")));
            }
            _ => {}
        }
        let bytes = std::fs::read(path).map_err(|e| internal(format!("cannot read {name}: {e}")))?;
        serde_json::from_slice(&bytes).map_err(|e| invalid(format!("{name} is not valid: {e}")))
    }

    /// These, and `more` after them.
    #[must_use]
    pub fn with(mut self, more: Self) -> Self {
        self.insecure_registries.extend(more.insecure_registries);
        self.registry_mirrors.extend(more.registry_mirrors);
        self.certificate_authorities.extend(more.certificate_authorities);
        self
    }

    /// The addresses of a registry, in the order to ask them; its own is last.
    pub fn bases(&self, domain: &str) -> Vec<String> {
        if domain == DEFAULT_DOMAIN {
            let mirrors = self.registry_mirrors.iter().map(|m| m.trim_end_matches('/').to_owned());
            return mirrors.chain(["https://registry-1.docker.io".to_owned()]).collect();
        }
        let scheme = if self.is_plain(domain) { "http" } else { "https" };
        vec![format!("{scheme}://{domain}")]
    }

    fn is_plain(&self, domain: &str) -> bool {
        let host = domain.rsplit_once(':').map_or(domain, |(host, _)| host);
        let address: Option<Ipv4Addr> = host.parse().ok();
        let named = |i: &String| i == domain || i == host || address.is_some_and(|a| within(a, i) == Some(true));
        host == "localhost" || address.is_some_and(|a| a.is_loopback()) || self.insecure_registries.iter().any(named)
    }
}

/// Whether an address is in a network, `10.0.0.0/8`; none when that is no network.
fn within(address: Ipv4Addr, network: &str) -> Option<bool> {
    let (base, length) = network.split_once('/')?;
    let (base, length): (Ipv4Addr, u32) = (base.parse().ok()?, length.parse().ok().filter(|l| *l <= 32)?);
    let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
    Some(address.to_bits() & mask == base.to_bits() & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_and_own_registries_are_spoken_to_without_tls() {
        let settings: Settings = serde_json::from_str(
            r#"{"insecure-registries": ["10.0.0.0/8", "plain.example", "one.example:5000"], "registry-mirrors": ["http://m:1/"]}"#,
        )
        .unwrap();
        for (domain, base) in [
            ("localhost:5000", "http://localhost:5000"),
            ("127.1.2.3:5000", "http://127.1.2.3:5000"),
            ("10.0.2.2:5000", "http://10.0.2.2:5000"),
            ("11.0.2.2:5000", "https://11.0.2.2:5000"),
            ("plain.example:80", "http://plain.example:80"),
            ("one.example:5000", "http://one.example:5000"),
            ("one.example:5001", "https://one.example:5001"),
            ("localhost.example", "https://localhost.example"),
        ] {
            assert_eq!(settings.bases(domain), [base], "{domain}");
        }
        assert_eq!(settings.bases(DEFAULT_DOMAIN), ["http://m:1", "https://registry-1.docker.io"]);
        assert_eq!(within(Ipv4Addr::LOCALHOST, "0.0.0.0/0"), Some(true));
        assert_eq!(within(Ipv4Addr::LOCALHOST, "0.0.0.0/40"), None);
    }

    #[test]
    fn a_settings_file_with_a_typing_error_is_refused_and_an_absent_one_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("registries.json");
        assert_eq!(Settings::read(&file).unwrap(), Settings::default());
        std::fs::write(&file, r#"{"insecure-registry": ["x"]}"#).unwrap();
        assert!(Settings::read(&file).unwrap_err().message.contains("insecure-registry"));
    }
}
