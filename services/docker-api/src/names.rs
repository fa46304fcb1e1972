//! Names: container names and ids, image references, times, as Docker spells them.
//!
//! Pure functions; must not read any state.

use crate::errors::{Failure, Result};

/// Docker's zero time.
pub const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

const ADJECTIVES: [&str; 24] = [
    "brave", "calm", "clever", "bright", "eager", "fair", "gentle", "happy", "jolly", "keen", "kind", "lively",
    "mellow", "merry", "neat", "patient", "proud", "quick", "quiet", "sharp", "steady", "swift", "warm", "wise",
];
const SURNAMES: [&str; 24] = [
    "abel", "banach", "cantor", "curie", "dijkstra", "erdos", "euler", "fermat", "floyd", "galois", "gauss", "germain",
    "goedel", "hilbert", "hopper", "huygens", "kepler", "knuth", "lovelace", "meitner", "noether", "ohm", "planck",
    "zuse",
];

/// A new id: 64 hexadecimal digits.
///
/// # Errors
/// 500 when the system gives no random numbers.
pub fn new_id() -> Result<String> {
    zone::ids::random().map_err(|e| no_random(&e))
}

fn no_random(error: &std::io::Error) -> Failure {
    Failure::internal(format!("the system gives no random numbers: {error}"))
}

/// A random container name like `brave_curie`; with a number from the `attempt` that failed before.
///
/// # Errors
/// 500 when the system gives no random numbers.
pub fn random_container_name(attempt: u32) -> Result<String> {
    let bytes = zone::ids::random_bytes::<4>().map_err(|e| no_random(&e))?;
    let adjective = ADJECTIVES[usize::from(bytes[0]) % ADJECTIVES.len()];
    let surname = SURNAMES[usize::from(bytes[1]) % SURNAMES.len()];
    let number = if attempt == 0 { String::new() } else { u16::from_le_bytes([bytes[2], bytes[3]]).to_string() };
    Ok(format!("{adjective}_{surname}{number}"))
}

/// Whether `name` matches `[a-zA-Z0-9][a-zA-Z0-9_.-]+` (or `*` instead of `+`, for volumes) and is not too long.
fn is_name(name: &str, shortest: usize) -> bool {
    name.len() >= shortest
        && name.len() <= 255
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// Checks a container's name and strips its slash.
///
/// # Errors
/// 400 when it is not a name.
pub fn container_name(name: &str) -> Result<&str> {
    let name = name.strip_prefix('/').unwrap_or(name);
    if is_name(name, 2) {
        return Ok(name);
    }
    Err(Failure::invalid(format!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")))
}

/// Checks a volume's name.
///
/// # Errors
/// 400 when it is not a name.
pub fn volume_name(name: &str) -> Result<&str> {
    if is_name(name, 1) {
        return Ok(name);
    }
    Err(Failure::invalid(format!(
        "create {name}: \"{name}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. \
         If you intended to pass a host directory, use absolute path"
    )))
}

/// Checks a network's name.
///
/// # Errors
/// 400 when it is not a name.
pub fn network_name(name: &str) -> Result<&str> {
    // Docker Engine takes any text; nothing is named by it but in lists, and in the path of a request.
    if name.len() <= 255 && !name.trim().is_empty() && !name.contains(|c: char| c.is_control() || c == '/') {
        return Ok(name);
    }
    Err(Failure::invalid(format!(
        "invalid network name {name:?}: 1 to 255 bytes with something to see among them, and no '/'"
    )))
}

/// An image reference in full: `docker.io/library/busybox` with a tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Registry and path.
    pub repository: String,
    /// The tag.
    pub tag: Option<String>,
    /// The digest, `sha256:…`.
    pub digest: Option<String>,
}

impl Reference {
    /// Reads what a user wrote. No tag is added.
    ///
    /// # Errors
    /// 400 when it is not a reference.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || Failure::invalid(format!("invalid reference format: \"{text}\""));
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.to_owned())),
            None => (text, None),
        };
        if digest.as_ref().is_some_and(|d| !is_digest(d)) {
            return Err(wrong());
        }
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
            _ => (rest, None),
        };
        if tag.as_ref().is_some_and(|t| !is_tag(t)) || path.is_empty() || path.len() > 255 {
            return Err(wrong());
        }
        let (host, remainder) = match path.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
            _ => ("docker.io", path),
        };
        let host = if host == "index.docker.io" { "docker.io" } else { host };
        if remainder.split('/').any(|part| !is_path_part(part)) {
            if remainder.chars().any(|c| c.is_ascii_uppercase()) {
                let library = if host == "docker.io" && !remainder.contains('/') { "library/" } else { "" };
                return Err(Failure::invalid(format!(
                    "invalid reference format: repository name ({library}{remainder}) must be lowercase"
                )));
            }
            return Err(wrong());
        }
        let library = if host == "docker.io" && !remainder.contains('/') { "library/" } else { "" };
        Ok(Self { repository: format!("{host}/{library}{remainder}"), tag, digest })
    }

    /// With the tag `latest` when it has neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".into());
        }
        self
    }

    /// The tagged form, as it stands in an image's tags.
    #[must_use]
    pub fn tagged(&self) -> String {
        format!("{}:{}", self.repository, self.tag.as_deref().unwrap_or("latest"))
    }

    /// The whole reference.
    #[must_use]
    pub fn full(&self) -> String {
        match (&self.tag, &self.digest) {
            (_, Some(digest)) => format!("{}@{digest}", self.repository),
            (_, None) => self.tagged(),
        }
    }
}

fn is_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_tag(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= 128
        && !tag.starts_with(['.', '-'])
        && tag.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn is_path_part(part: &str) -> bool {
    !part.is_empty()
        && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c))
        && part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// A full reference as people see it: without `docker.io/library/`.
#[must_use]
pub fn familiar(full: &str) -> &str {
    full.strip_prefix("docker.io/library/").or_else(|| full.strip_prefix("docker.io/")).unwrap_or(full)
}

/// A time as Docker writes it, RFC 3339 with nanoseconds; 0 is Docker's zero time.
#[must_use]
pub fn time(ns: u64) -> String {
    if ns == 0 {
        return ZERO_TIME.into();
    }
    jiff::Timestamp::from_nanosecond(i128::from(ns)).map_or_else(|_| ZERO_TIME.into(), |t| t.to_string())
}

/// A time as Docker writes it in logs: always nine digits of nanoseconds.
#[must_use]
pub fn log_time(ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(ns)).map_or_else(|_| ZERO_TIME.into(), |t| format!("{t:.9}"))
}

/// Seconds, as Docker's lists have times.
#[must_use]
pub fn seconds(ns: u64) -> u64 {
    ns / 1_000_000_000
}

/// A duration as people say it, like `3 minutes` or `About an hour`.
#[must_use]
pub fn human_duration(ns: u64) -> String {
    let seconds = seconds(ns);
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours <= 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_become_full() {
        for (short, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("a/b:1", "docker.io/a/b:1"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("quay.io/x/y:z", "quay.io/x/y:z"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ] {
            assert_eq!(Reference::parse(short).unwrap().or_latest().full(), full, "{short}");
        }
        for wrong in ["", "UPPER", "a//b", "a:", "x@sha256:12", "-a", "a b"] {
            assert!(Reference::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn container_names_are_checked() {
        assert_eq!(container_name("/web.1").unwrap(), "web.1");
        for wrong in ["", "a", "_x", "a b", "a/b"] {
            assert!(container_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_spelled_like_dockers() {
        assert_eq!(time(0), ZERO_TIME);
        assert_eq!(time(1_795_249_472_190_115_200), "2026-11-21T08:24:32.1901152Z");
        assert_eq!(log_time(1_795_249_472_190_115_200), "2026-11-21T08:24:32.190115200Z");
    }
}
