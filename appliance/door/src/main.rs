//! `door [ADDRESS:PORT]`: serves the exec door; the token comes as a systemd credential.

use std::net::TcpListener;
use std::path::PathBuf;

/// A message for people; `main` prints it by its `Debug`.
struct Failure(String);

impl std::fmt::Debug for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn token() -> Result<Vec<u8>, Failure> {
    let dir = std::env::var_os("CREDENTIALS_DIRECTORY")
        .ok_or_else(|| Failure("CREDENTIALS_DIRECTORY is not set: start the door from its unit".into()))?;
    let path = PathBuf::from(dir).join(door::CREDENTIAL);
    let token = std::fs::read(&path).map_err(|e| Failure(format!("cannot read the token {}: {e}", path.display())))?;
    let token = token.trim_ascii().to_vec();
    if token.len() < 64 {
        return Err(Failure(format!("the token {} is shorter than 64 digits", path.display())));
    }
    Ok(token)
}

fn main() -> Result<(), Failure> {
    let token = token()?;
    let address = std::env::args().nth(1).unwrap_or_else(|| format!("0.0.0.0:{}", door::PORT));
    let listener = TcpListener::bind(&address).map_err(|e| Failure(format!("cannot listen on {address}: {e}")))?;
    door::server::serve(&listener, &token).map_err(|e| Failure(format!("cannot accept connections: {e}")))
}
