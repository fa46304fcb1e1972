//! The pairing code: made once, shown on the console, asked for once by every client.
//!
//! Invariants: comparing takes the same time wherever the codes differ; after each wrong code the next answer takes
//! longer, for everybody, and few may try at a time.

use crate::files;
use anyhow::{Result, bail};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Without what looks or sounds like something else: 0 O, 1 I L, U V.
const ALPHABET: &[u8; 30] = b"23456789ABCDEFGHJKMNPQRSTVWXYZ";
const SIGNS: u8 = 30;
const GROUPS: usize = 3;
const GROUP: usize = 4;
/// How many may wait for the answer to a wrong code at the same time.
const AT_A_TIME: usize = 4;
const FIRST_DELAY_MS: u64 = 250;
const MAX_DELAY_MS: u64 = 30_000;

/// The code, and how often somebody got it wrong.
#[derive(Debug)]
pub struct Pairing {
    code: String,
    wrong: AtomicU32,
    places: Semaphore,
}

/// Why a code was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is wrong.
    Wrong,
    /// Too many try at the same time.
    Busy,
}

impl Pairing {
    /// Reads the code from `path`, or makes one there.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is not a code.
    pub fn load(path: &Path) -> Result<Self> {
        let code = match files::read(path)? {
            Some(text) if plain(&text).len() == GROUPS * GROUP => text.trim().to_owned(),
            Some(_) => bail!("{} is not a pairing code: remove it to get a new one", path.display()),
            None => {
                let code = make()?;
                files::write(path, 0o600, format!("{code}\n").as_bytes())?;
                code
            }
        };
        Ok(Self { code, wrong: AtomicU32::new(0), places: Semaphore::new(AT_A_TIME) })
    }

    /// The code, as people see it.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Compares a code that somebody typed; answers a wrong one late.
    ///
    /// # Errors
    /// When it is wrong, or too many try.
    pub async fn check(&self, typed: &str) -> Result<(), Refused> {
        let _place = self.places.try_acquire().map_err(|_| Refused::Busy)?;
        if equal(&plain(typed), &plain(&self.code)) {
            self.wrong.store(0, Ordering::Relaxed);
            return Ok(());
        }
        let wrong =
            self.wrong.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_add(1))).unwrap_or(0);
        tracing::warn!(wrong = wrong + 1, "a wrong pairing code");
        tokio::time::sleep(delay(wrong)).await;
        Err(Refused::Wrong)
    }
}

/// How long the answer to a wrong code takes, after `before` wrong ones.
fn delay(before: u32) -> Duration {
    Duration::from_millis(FIRST_DELAY_MS.saturating_mul(1 << before.min(20)).min(MAX_DELAY_MS))
}

/// Upper case, without what people put between groups; short, whatever was typed.
fn plain(text: &str) -> Vec<u8> {
    text.bytes().filter(u8::is_ascii_alphanumeric).take(64).map(|b| b.to_ascii_uppercase()).collect()
}

fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y))) == 0
}

fn make() -> Result<String> {
    let mut signs = Vec::new();
    while signs.len() < GROUPS * GROUP {
        let mut bytes = [0u8; 32];
        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
        // Beyond the last multiple some signs would be more likely than others.
        let fair = bytes.iter().filter(|b| **b < 255 / SIGNS * SIGNS);
        signs.extend(fair.map(|b| char::from(ALPHABET[usize::from(b % SIGNS)])));
    }
    let groups: Vec<String> = signs[..GROUPS * GROUP].chunks(GROUP).map(|g| g.iter().collect()).collect();
    Ok(groups.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairing(code: &str) -> Pairing {
        Pairing { code: code.into(), wrong: AtomicU32::new(0), places: Semaphore::new(AT_A_TIME) }
    }

    #[test]
    fn a_code_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pairing-code");
        let first = Pairing::load(&path).unwrap().code;
        assert_eq!(first.len(), 14);
        assert!(first.bytes().all(|b| b == b'-' || ALPHABET.contains(&b)), "{first}");
        assert_eq!(Pairing::load(&path).unwrap().code, first);
        std::fs::write(&path, "short").unwrap();
        assert!(Pairing::load(&path).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_code_is_taken_however_it_was_typed_and_a_wrong_one_is_answered_late() {
        let pairing = pairing("ABCD-2345-WXYZ");
        assert_eq!(pairing.check(" abcd 2345wxyz ").await, Ok(()));
        for wait_ms in [250, 500, 1000] {
            let before = tokio::time::Instant::now();
            assert_eq!(pairing.check("ABCD-2345-WXYY").await, Err(Refused::Wrong));
            assert_eq!(before.elapsed().as_millis(), wait_ms);
        }
        assert_eq!(pairing.check("").await, Err(Refused::Wrong));
        assert_eq!(pairing.check("ABCD-2345-WXYZ").await, Ok(()));
        assert_eq!(delay(40), Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn guessing_in_parallel_is_refused() {
        let pairing = pairing("ABCD-2345-WXYZ");
        let guesses = (0..6).map(|_| pairing.check("no"));
        let answers = futures_util::future::join_all(guesses).await;
        assert_eq!(answers.iter().filter(|a| **a == Err(Refused::Busy)).count(), 2);
    }
}
