//! Who is logged in: random tokens, of which only the hash is kept.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A session that nobody uses ends after this.
const IDLE: Duration = Duration::from_hours(12);
/// Every session ends after this.
const LIFETIME: Duration = Duration::from_hours(30 * 24);
/// How many sessions there can be; the one unused for longest makes room.
const MOST: usize = 256;

#[derive(Debug)]
struct Session {
    began: Instant,
    used: Instant,
}

/// All sessions.
#[derive(Debug, Default)]
pub struct Sessions {
    by_hash: Mutex<HashMap<[u8; 32], Session>>,
}

impl Sessions {
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
        let now = Instant::now();
        let mut sessions = self.by_hash.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, s| lives(s, now));
        if sessions.len() >= MOST
            && let Some(oldest) = sessions.iter().min_by_key(|(_, s)| s.used).map(|(hash, _)| *hash)
        {
            sessions.remove(&oldest);
        }
        sessions.insert(hash(&token), Session { began: now, used: now });
        Ok(token)
    }

    /// Whether the token is a session's; using it keeps it alive.
    pub fn is_valid(&self, token: &str) -> bool {
        let now = Instant::now();
        let mut sessions = self.by_hash.lock().unwrap_or_else(PoisonError::into_inner);
        match sessions.get_mut(&hash(token)) {
            Some(session) if lives(session, now) => {
                session.used = now;
                true
            }
            _ => false,
        }
    }

    /// Ends the session.
    pub fn end(&self, token: &str) {
        self.by_hash.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash(token));
    }
}

fn lives(session: &Session, now: Instant) -> bool {
    now.duration_since(session.used) < IDLE && now.duration_since(session.began) < LIFETIME
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
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
    fn too_many_logins_cannot_take_all_memory() {
        let sessions = Sessions::default();
        for _ in 0..MOST + 20 {
            sessions.begin().unwrap();
        }
        assert_eq!(sessions.by_hash.lock().unwrap().len(), MOST);
    }
}
