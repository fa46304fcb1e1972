//! HTTP/1.1 to registries, with TLS unless the address says `http://`. One connection per request.

use crate::fail::{Result, internal, invalid};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Request, Response, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zone::{ApiError, ErrorKind};

const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// A registry that stores a pushed blob may answer late.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);
/// Between two pieces of a body.
pub const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// The body of a request.
pub type RequestBody = BoxBody<Bytes, std::io::Error>;

/// A body that is in memory.
pub fn full(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// Opens connections.
#[derive(Debug)]
pub struct Transport {
    tls: Arc<ClientConfig>,
    authorities: usize,
}

impl Transport {
    /// A transport that trusts the authorities in a PEM file, if it is there, and those in `more`.
    ///
    /// # Errors
    /// When TLS cannot be set up, or `more` has no certificate.
    pub fn new(ca_file: &Path, more: Option<&str>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        match CertificateDer::pem_file_iter(ca_file) {
            Ok(certificates) => drop(roots.add_parsable_certificates(certificates.filter_map(std::result::Result::ok))),
            Err(error) => {
                tracing::warn!(file = %ca_file.display(), %error, "no certificate authorities: registries with TLS cannot be used");
            }
        }
        if let Some(pem) = more {
            let certificates: Vec<_> =
                CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(std::result::Result::ok).collect();
            if roots.add_parsable_certificates(certificates).0 == 0 {
                return Err(invalid("a registry's certificate-authorities entry has no certificate in PEM"));
            }
        }
        let authorities = roots.len();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| internal(format!("cannot set up TLS: {e}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(config), authorities })
    }

    /// Sends a request; the answer is whatever the server says.
    ///
    /// # Errors
    /// `Unavailable` when the server cannot be reached.
    pub async fn send(
        &self,
        method: Method,
        uri: &Uri,
        headers: HeaderMap,
        body: RequestBody,
    ) -> Result<Response<Incoming>> {
        let host = uri.host().ok_or_else(|| invalid(format!("the address {uri} has no host")))?;
        let plain = uri.scheme_str() == Some("http");
        let port = uri.port_u16().unwrap_or(if plain { 80 } else { 443 });
        let away = |e: &dyn std::fmt::Display| {
            ApiError::new(ErrorKind::Unavailable, format!("cannot reach {host}:{port}: {e}"))
        };
        let connect = async {
            let tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await.map_err(|e| away(&e))?;
            if plain {
                return Ok::<Box<dyn Stream>, ApiError>(Box::new(tcp));
            }
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|e| away(&e))?;
            let tls =
                TlsConnector::from(self.tls.clone()).connect(name, tcp).await.map_err(|e| match self.authorities {
                    0 => away(&"there are no certificate authorities on this machine"),
                    _ => away(&e),
                })?;
            Ok(Box::new(tls))
        };
        let stream = tokio::time::timeout(CONNECT_LIMIT, connect).await.map_err(|_| away(&"it does not answer"))??;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| away(&e))?;
        tokio::spawn(connection);
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .body(body)
            .map_err(|e| invalid(format!("bad request to {uri}: {e}")))?;
        *request.headers_mut() = headers;
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let value = authority
            .rsplit('@')
            .next()
            .unwrap_or_default()
            .parse()
            .map_err(|_| invalid(format!("bad host in {uri}")))?;
        request.headers_mut().insert(header::HOST, value);
        request.headers_mut().insert(header::USER_AGENT, header::HeaderValue::from_static("kraud-images"));
        let answer = tokio::time::timeout(ANSWER_LIMIT, sender.send_request(request));
        answer.await.map_err(|_| away(&"it does not answer"))?.map_err(|e| away(&e))
    }
}

/// A connection, with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Reads a whole body, at most `limit` bytes.
///
/// # Errors
/// `TooLarge`; `Unavailable` when it breaks off.
pub async fn read(mut body: Incoming, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(piece) = next(&mut body).await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > limit {
            return Err(ApiError::new(
                ErrorKind::TooLarge,
                format!("a registry's answer is larger than {limit} bytes"),
            ));
        }
    }
    Ok(bytes)
}

/// The next piece of a body.
///
/// # Errors
/// `Unavailable` when it breaks off or stalls.
pub async fn next(body: &mut Incoming) -> Result<Option<Bytes>> {
    let broken = |e: &dyn std::fmt::Display| {
        ApiError::new(ErrorKind::Unavailable, format!("the registry's answer broke off: {e}"))
    };
    loop {
        match tokio::time::timeout(IDLE_LIMIT, body.frame()).await {
            Err(_) => return Err(broken(&"nothing came for a minute")),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(broken(&error)),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}
