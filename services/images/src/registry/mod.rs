//! Registries (OCI distribution specification): pull and push; and the zone as one (serve.rs, uploads.rs).
//!
//! ```text
//! pull.rs, push.rs, ask.rs, login.rs ── session.rs (one repository: base address, authorization, 401 dance) ── transport.rs (HTTP, TLS)
//! ```
//! Nothing that a registry says is believed: every manifest and blob is hashed.

mod ask;
pub mod auth;
mod login;
mod pull;
mod push;
mod serve;
mod session;
mod settings;
mod transport;
mod uploads;

pub use auth::Credentials;
pub use serve::router as serve;
pub use settings::Settings;
pub use transport::Transport;

use crate::fail::Result;
use crate::reference::Reference;
use session::Session;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How registries are reached.
#[derive(Clone, Debug)]
pub struct Registries {
    transport: Arc<Transport>,
    ca_file: PathBuf,
    settings_file: PathBuf,
    /// What the command line says; the file's come on top.
    fixed: Settings,
}

impl Registries {
    /// Registries with the certificate authorities in `ca_file`; what users set stands in `settings_file`, which is read at each
    /// request and need not be there.
    ///
    /// # Errors
    /// When the authorities cannot be used.
    pub fn new(ca_file: &Path, settings_file: PathBuf, fixed: Settings) -> Result<Self> {
        Ok(Self { transport: Arc::new(Transport::new(ca_file, None)?), ca_file: ca_file.into(), settings_file, fixed })
    }

    /// The repository of a reference in each place that has it, in the order to ask them.
    fn sessions(&self, reference: &Reference, credentials: &Credentials) -> Result<Vec<Session>> {
        let settings = self.settings()?;
        let transport = self.transport_to(&settings, reference)?;
        let session = |base: String| Session::new(transport.clone(), base, reference.path.clone(), credentials.clone());
        Ok(settings.bases(&reference.domain).into_iter().map(session).collect())
    }

    /// The repository of a reference where it is pushed to: never a mirror.
    fn own_session(&self, reference: &Reference, credentials: Credentials) -> Result<Session> {
        let settings = self.settings()?;
        let transport = self.transport_to(&settings, reference)?;
        let base = settings.bases(&reference.domain).pop().unwrap_or_default();
        Ok(Session::new(transport, base, reference.path.clone(), credentials))
    }

    /// A file of the web, for ADD.
    ///
    /// # Errors
    /// `NotFound`, `TooLarge`, `Unavailable`.
    pub async fn fetch(&self, url: &str, limit: u64) -> Result<Vec<u8>> {
        let uri: hyper::Uri =
            url.parse().map_err(|e| crate::fail::invalid(format!("{url:.300} is no address: {e}")))?;
        let session = Session::new(self.transport.clone(), String::new(), String::new(), Credentials::default());
        let response = session.call(hyper::Method::GET, uri, hyper::HeaderMap::new(), bytes::Bytes::new()).await?;
        match response.status().is_success() {
            true => transport::read(response.into_body(), limit).await,
            false => Err(session::failure(&format!("cannot fetch {url:.300}"), response).await),
        }
    }

    fn settings(&self) -> Result<Settings> {
        Ok(self.fixed.clone().with(Settings::read(&self.settings_file)?))
    }

    fn transport_to(&self, settings: &Settings, reference: &Reference) -> Result<Arc<Transport>> {
        match settings.certificate_authorities.get(&reference.domain) {
            Some(pem) => Ok(Arc::new(Transport::new(&self.ca_file, Some(pem))?)),
            None => Ok(self.transport.clone()),
        }
    }
}
