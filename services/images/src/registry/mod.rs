//! Registries (OCI distribution specification): pull and push.
//!
//! ```text
//! pull.rs, push.rs ── session.rs (one repository: base address, authorization, 401 dance) ── transport.rs (HTTP, TLS)
//! ```
//! Nothing that a registry says is believed: every manifest and blob is hashed.

mod auth;
mod pull;
mod push;
mod session;
mod transport;

pub use auth::Credentials;
pub use transport::Transport;

use crate::fail::Result;
use crate::reference::{DEFAULT_DOMAIN, Reference};
use session::Session;
use std::path::Path;
use std::sync::Arc;

/// How registries are reached.
#[derive(Clone, Debug)]
pub struct Registries {
    transport: Arc<Transport>,
    /// `http://HOST:PORT` or `https://…`, asked before Docker's own registry.
    mirror: Option<String>,
    insecure: Vec<String>,
}

impl Registries {
    /// Registries with the certificate authorities in `ca_file`; those in `insecure` (`HOST` or `HOST:PORT`) are spoken to in
    /// plain HTTP, as are all on this machine.
    ///
    /// # Errors
    /// When the authorities cannot be used.
    pub fn new(ca_file: &Path, mirror: Option<String>, insecure: Vec<String>) -> Result<Self> {
        Ok(Self { transport: Arc::new(Transport::new(ca_file)?), mirror, insecure })
    }

    /// The addresses that have a reference's repository, in the order to ask them.
    fn bases(&self, reference: &Reference) -> Vec<String> {
        let domain = reference.domain.as_str();
        if domain == DEFAULT_DOMAIN {
            let mirror = self.mirror.iter().map(|m| m.trim_end_matches('/').to_owned());
            return mirror.chain(["https://registry-1.docker.io".to_owned()]).collect();
        }
        let scheme = if self.is_plain(domain) { "http" } else { "https" };
        vec![format!("{scheme}://{domain}")]
    }

    fn is_plain(&self, domain: &str) -> bool {
        let host = domain.split(':').next().unwrap_or(domain);
        let loopback = host == "localhost" || host.parse::<std::net::Ipv4Addr>().is_ok_and(|a| a.is_loopback());
        loopback || self.insecure.iter().any(|i| i == domain || i == host)
    }

    fn session(&self, base: String, reference: &Reference, credentials: Credentials) -> Session {
        Session::new(self.transport.clone(), base, reference.path.clone(), credentials)
    }
}
