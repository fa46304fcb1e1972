//! Who is logged in: random tokens, of which only the hash is kept, in memory and in a file that a boot forgets.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A session that nobody uses ends after this.
const IDLE: Duration = Duration::from_hours(12);
/// Every session ends after this.
const LIFETIME: Duration = Duration::from_hours(30 * 24);
/// How many sessions there can be; the one unused for longest makes room.
const MOST: usize = 256;

/// Seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Session {
    began: u64,
    used: u64,
}

/// All sessions.
#[derive(Debug, Default)]
pub struct Sessions {
    by_hash: Mutex<HashMap<String, Session>>,
    file: Option<PathBuf>,
}

impl Sessions {
    /// Those that the file keeps, as far as it can be read; changes are written to it.
    pub fn kept_in(file: PathBuf) -> Self {
        let kept: HashMap<String, Session> =
            std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let by_hash = Mutex::new(kept.into_iter().take(MOST).collect());
        Self { by_hash, file: Some(file) }
    }

    /// When it cannot be written, a restart asks for the code again: no reason to refuse anything.
    fn keep(&self, sessions: &HashMap<String, Session>) {
        let Some(file) = &self.file else { return };
        if let Err(error) = write(file, sessions) {
            tracing::warn!(file = %file.display(), %error, "cannot keep the sessions");
        }
    }

    /// Begins a session; the token is the only key to it.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn begin(&self) -> std::io::Result<String> {
        let mut bytes = [0u8; 32];
        let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        if got != bytes.len() {
            return Err(std::io::Error::other("too few random bytes"));
        }
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let now = now_s();
        let mut sessions = self.by_hash.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, s| lives(*s, now));
        if sessions.len() >= MOST
            && let Some(oldest) = sessions.iter().min_by_key(|(_, s)| s.used).map(|(hash, _)| hash.clone())
        {
            sessions.remove(&oldest);
        }
        sessions.insert(hash(&token), Session { began: now, used: now });
        self.keep(&sessions);
        Ok(token)
    }

    /// Whether the token is a session's; using it keeps it alive.
    pub fn is_valid(&self, token: &str) -> bool {
        let now = now_s();
        let mut sessions = self.by_hash.lock().unwrap_or_else(PoisonError::into_inner);
        match sessions.get_mut(&hash(token)) {
            Some(session) if lives(*session, now) => {
                session.used = now;
                true
            }
            _ => false,
        }
    }

    /// Ends the session.
    pub fn end(&self, token: &str) {
        let mut sessions = self.by_hash.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(&hash(token));
        self.keep(&sessions);
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A clock that was set back ends no session; one that was set forward may.
fn lives(session: Session, now: u64) -> bool {
    now.saturating_sub(session.used) < IDLE.as_secs() && now.saturating_sub(session.began) < LIFETIME.as_secs()
}

fn hash(token: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(token.as_bytes()))
}

fn write(file: &Path, sessions: &HashMap<String, Session>) -> std::io::Result<()> {
    let new = file.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let out = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&new)?;
    serde_json::to_writer(out, sessions)?;
    std::fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::{MOST, Sessions};

    #[test]
    fn a_token_is_valid_until_its_session_ends() {
        let sessions = Sessions::default();
        let token = sessions.begin().unwrap();
        assert!(sessions.is_valid(&token));
        assert!(!sessions.is_valid("another"));
        sessions.end(&token);
        assert!(!sessions.is_valid(&token));
    }

    #[test]
    fn a_session_outlives_the_service_and_its_end_does_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sessions.json");
        let token = Sessions::kept_in(file.clone()).begin().unwrap();
        assert!(!std::fs::read_to_string(&file).unwrap().contains(&token), "the token itself is written");
        let again = Sessions::kept_in(file.clone());
        assert!(again.is_valid(&token));
        again.end(&token);
        assert!(!Sessions::kept_in(file.clone()).is_valid(&token));
        std::fs::write(&file, "nonsense").unwrap();
        assert!(!Sessions::kept_in(file).is_valid(&token));
    }

    #[test]
    fn too_many_logins_cannot_take_all_memory() {
        let sessions = Sessions::default();
        for _ in 0..MOST + 20 {
            sessions.begin().unwrap();
        }
        assert_eq!(sessions.by_hash.lock().unwrap().len(), MOST);
    }
}
