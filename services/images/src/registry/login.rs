//! Whether a registry takes a name and a password (`POST /auth`), before they are used for anything.

use super::session::failure;
use super::{Credentials, Registries};
use crate::fail::{Result, invalid};
use crate::reference::{DEFAULT_DOMAIN, Reference};
use bytes::Bytes;
use hyper::{HeaderMap, Method, StatusCode};
use zone::{ApiError, ErrorKind};

impl Registries {
    /// Asks the registry at `address`, as clients give it: empty for Docker's own, with or without a scheme.
    ///
    /// # Errors
    /// `Forbidden` when the registry does not take them, `Unavailable` when it cannot be reached.
    pub async fn login(&self, address: &str, credentials: Credentials) -> Result<()> {
        let domain = domain(address);
        // Only the domain counts: nothing is asked of the repository.
        let reference = Reference::parse(&format!("{domain}/login"))
            .map_err(|_| invalid(format!("invalid registry endpoint: {address:.300}")))?;
        let session = self.own_session(&reference, credentials)?.without_repository();
        let uri = session.root()?;
        let response = session.call(Method::GET, uri.clone(), HeaderMap::new(), Bytes::new()).await?;
        match response.status() {
            status if status.is_success() => Ok(()),
            status @ StatusCode::UNAUTHORIZED => {
                Err(ApiError::new(ErrorKind::Forbidden, format!("login attempt to {uri} failed with status: {status}")))
            }
            _ => Err(failure(&format!("login attempt to {uri} failed"), response).await),
        }
    }
}

/// `https://index.docker.io/v1/` is how old clients call Docker's own registry.
fn domain(address: &str) -> &str {
    let bare = address.trim_start_matches("https://").trim_start_matches("http://");
    match bare.split('/').next().unwrap_or_default() {
        "" | "index.docker.io" | "registry-1.docker.io" => DEFAULT_DOMAIN,
        domain => domain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_named_in_several_ways() {
        for (address, expected) in [
            ("", DEFAULT_DOMAIN),
            ("https://index.docker.io/v1/", DEFAULT_DOMAIN),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("http://r.example:5000/v2/", "r.example:5000"),
        ] {
            assert_eq!(domain(address), expected);
        }
    }
}
