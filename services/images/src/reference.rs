//! Image references: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]` (distribution's reference grammar), with Docker's defaults.

use crate::digest::Digest;
use crate::fail::{Result, invalid};
use std::fmt;

/// The registry of names without a host.
pub const DEFAULT_DOMAIN: &str = "docker.io";

/// A full reference. `Display` gives the full form: `docker.io/library/busybox:latest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host and port of the registry, `docker.io` for Docker's.
    pub domain: String,
    /// The repository in it, `library/busybox`.
    pub path: String,
    /// The tag; none when a digest was given instead.
    pub tag: Option<String>,
    /// The digest of the manifest.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Reads a reference as users write it; without tag and digest the tag is `latest`.
    ///
    /// # Errors
    /// `Invalid` when it follows no rule of the grammar.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| invalid(format!("invalid reference format: {text:.300?}: {why}"));
        if text.len() > 512 {
            return Err(bad("it is longer than 512 bytes"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err(bad("the tag must be 1 to 128 letters, digits, '_', '.', '-'"));
        }
        let (domain, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
            _ => (DEFAULT_DOMAIN, name.to_owned()),
        };
        let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("library/{path}") } else { path };
        if !is_domain(domain) {
            return Err(bad("the registry must be a host name with an optional port"));
        }
        if !path.split('/').all(is_component) {
            return Err(bad("repository name must be lowercase, with '.', '_', '-' only between letters and digits"));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { domain: domain.to_owned(), path, tag, digest })
    }

    /// Registry and repository, without tag and digest.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The repository as people write it: Docker's defaults are left out.
    #[must_use]
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        let short = self.path.strip_prefix("library/").filter(|p| !p.contains('/')).unwrap_or(&self.path);
        // What would be read as another registry keeps its own.
        match short.split_once('/') {
            Some((host, _)) if host.contains('.') || host == "localhost" => self.repository(),
            _ => short.to_owned(),
        }
    }

    /// The whole reference as people write it.
    #[must_use]
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_repository())
    }

    /// What a registry's manifest path ends with: the digest, else the tag.
    #[must_use]
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_else(|| "latest".to_owned()),
        }
    }

    fn with_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.repository()))
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().enumerate().all(|(i, b)| word(b) || (i > 0 && (b == b'.' || b == b'-')))
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = domain.split_once(':').map_or((domain, None), |(h, p)| (h, Some(p)));
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    host.split('.').all(label) && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

fn is_component(part: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = bytes.first().is_some_and(|b| alnum(*b)) && bytes.last().is_some_and(|b| alnum(*b));
    let separators = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends && separators.filter(|s| !s.is_empty()).all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_get_dockers_defaults_and_are_shown_without_them() {
        let d = format!("sha256:{}", "ab".repeat(32));
        for (given, full, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("a/b:1.0", "docker.io/a/b:1.0", "a/b:1.0"),
            ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
            ("localhost/x/y_z", "localhost/x/y_z:latest", "localhost/x/y_z:latest"),
            ("docker.io/busybox:musl", "docker.io/library/busybox:musl", "busybox:musl"),
            (&format!("q.io/x@{d}"), &format!("q.io/x@{d}"), &format!("q.io/x@{d}")),
        ] {
            let r = Reference::parse(given).unwrap();
            assert_eq!((r.to_string().as_str(), r.familiar().as_str()), (full, familiar), "{given}");
        }
    }

    #[test]
    fn a_short_name_is_never_that_of_another_registry() {
        for full in ["docker.io/host.io/a:1", "docker.io/localhost/a:1", "docker.io/library/a:1", "docker.io/b/a:1"] {
            let reference = Reference::parse(full).unwrap();
            assert_eq!(Reference::parse(&reference.familiar()).unwrap(), reference, "{full}");
        }
    }

    #[test]
    fn bad_references_are_refused() {
        for bad in
            ["", "A", "a//b", "a/../b", "/a", "a:", "a:-x", "a@sha256:12", "-a", "a..b", "x.io:99999/a", "a b", "a\nb"]
        {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}
