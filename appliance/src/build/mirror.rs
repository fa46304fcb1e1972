//! Which Debian mirror the trees come from: that of the machine's own apt sources with the suite replaced, or the caller's.
//!
//! Reads both formats of apt sources (one line, deb822). No host name is written in this repository.

use super::error::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The Debian release that the image is made of.
pub const SUITE: &str = "trixie";
/// Suites that mark an apt source as Debian's own.
const RELEASES: [&str; 11] =
    ["buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid", "unstable", "testing", "stable", "oldstable"];

/// One apt source that carries Debian.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    url: String,
    security: bool,
    /// Options of the source that must come along, as `trusted=yes`.
    options: Vec<String>,
}

/// The apt sources for a tree, in one-line format.
#[derive(Clone, Debug)]
pub struct Sources {
    pub lines: Vec<String>,
    /// The main archive, for messages.
    pub url: String,
}

impl Sources {
    /// From the machine's apt sources, or from `mirror` alone; the archives `snapshots`, which are as they were some day, beside it.
    ///
    /// # Errors
    /// [`Error::NoMirror`], [`Error::NotAMirror`].
    pub fn detect(mirror: Option<&str>, snapshots: &[String]) -> Result<Self> {
        let mut sources = Self::present(mirror)?;
        for url in snapshots {
            let url = archive(url)?;
            let suites: &[&str] = if url.contains("-security") { &["-security"] } else { &["", "-updates"] };
            // Old indexes say that they are no longer valid; their signatures still are.
            let line = |suite: &&str| format!("deb [check-valid-until=no] {url} {SUITE}{suite} main contrib");
            sources.lines.extend(suites.iter().map(line));
        }
        Ok(sources)
    }

    fn present(mirror: Option<&str>) -> Result<Self> {
        if let Some(url) = mirror {
            return Ok(Self::compose(archive(url)?, None, &[]));
        }
        let found = parse_all(Path::new("/etc/apt"));
        let main = found.iter().find(|s| !s.security).ok_or(Error::NoMirror { suite: SUITE })?;
        let security = found.iter().find(|s| s.security).map(|s| s.url.as_str());
        Ok(Self::compose(&main.url, security, &main.options))
    }

    /// The text of a sources file.
    #[must_use]
    pub fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn compose(url: &str, security: Option<&str>, options: &[String]) -> Self {
        let options = if options.is_empty() { String::new() } else { format!("[{}] ", options.join(" ")) };
        let mut lines = vec![
            format!("deb {options}{url} {SUITE} main contrib"),
            format!("deb {options}{url} {SUITE}-updates main contrib"),
        ];
        if let Some(security) = security {
            lines.push(format!("deb {options}{security} {SUITE}-security main contrib"));
        }
        Self { lines, url: url.to_owned() }
    }
}

/// The URL of an archive as apt takes it.
fn archive(url: &str) -> Result<&str> {
    let known = ["http://", "https://", "file:/", "copy:/"].iter().any(|scheme| url.starts_with(scheme));
    if known && !url.contains(char::is_whitespace) {
        return Ok(url.trim_end_matches('/'));
    }
    Err(Error::NotAMirror { url: url.to_owned() })
}

fn parse_all(apt: &Path) -> Vec<Source> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(apt.join("sources.list.d")).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.push(apt.join("sources.list"));
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => found.extend(parse_lines(&text)),
            Some("sources") => found.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    found
}

/// `deb [options] URL SUITE COMPONENT…`
fn parse_lines(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb").filter(|r| r.starts_with([' ', '\t'])) else { continue };
        let rest = rest.trim();
        let (options, rest) = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let words: Vec<_> = rest.split_whitespace().collect();
        let [url, suite, components @ ..] = words.as_slice() else { continue };
        let options =
            options.split_whitespace().filter(|o| o.eq_ignore_ascii_case("trusted=yes")).map(str::to_owned).collect();
        found.extend(source(url, suite, components, options));
    }
    found
}

/// Stanzas of `Types`, `URIs`, `Suites`, `Components`, divided by blank lines.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| -> Vec<&str> {
            let mut values = Vec::new();
            let mut inside = false;
            for line in stanza.lines().filter(|l| !l.starts_with('#')) {
                if line.starts_with([' ', '\t']) {
                    if inside {
                        values.extend(line.split_whitespace());
                    }
                    continue;
                }
                let (key, value) = line.split_once(':').unwrap_or((line, ""));
                inside = key.eq_ignore_ascii_case(name);
                if inside {
                    values.extend(value.split_whitespace());
                }
            }
            values
        };
        if !field("Types").contains(&"deb") || field("Enabled").first() == Some(&"no") {
            continue;
        }
        let options: Vec<_> =
            field("Trusted").first().filter(|v| **v == "yes").map(|_| "trusted=yes".to_owned()).into_iter().collect();
        for url in field("URIs") {
            for suite in field("Suites") {
                found.extend(source(url, suite, &field("Components"), options.clone()));
            }
        }
    }
    found
}

fn source(url: &str, suite: &str, components: &[&str], options: Vec<String>) -> Option<Source> {
    let (release, pocket) = suite.split_once(['-', '/']).unwrap_or((suite, ""));
    let debian = RELEASES.contains(&release) && components.contains(&"main");
    let wanted = matches!(pocket, "" | "security" | "updates");
    (debian && wanted).then(|| Source {
        url: url.trim_end_matches('/').to_owned(),
        security: pocket == "security" || url.contains("-security"),
        options,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: &[Source], expected: &[(&str, bool)]) {
        let found: Vec<_> = found.iter().map(|s| (s.url.as_str(), s.security)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn one_line_sources_are_read_and_strangers_are_left_out() {
        let text = "# deb http://no bookworm main\n\
            deb [arch=amd64 trusted=yes] http://m/debian/ bookworm main contrib\n\
            deb-src http://m/debian bookworm main\n\
            deb http://m/debian-security bookworm-security main\n\
            deb https://other/repo cloud-sdk-bookworm main\n\
            deb http://m/debian bookworm-backports main\n";
        check(&parse_lines(text), &[("http://m/debian", false), ("http://m/debian-security", true)]);
        assert_eq!(parse_lines(text)[0].options, ["trusted=yes"]);
    }

    #[test]
    fn deb822_sources_are_read_with_comments_and_folded_fields() {
        let text = "Types: deb\n# a comment\nURIs: http://m/debian\nSuites: bookworm\n bookworm-updates\nComponents: main\nSigned-By: /k\n\n\
            Types: deb\nURIs: http://m/sec\nSuites: bookworm-security\nComponents: main\n\n\
            Types: deb\nURIs: https://node\nSuites: nodistro\nComponents: main\n\n\
            Types: deb\nEnabled: no\nURIs: http://off/debian\nSuites: trixie\nComponents: main\n";
        check(&parse_deb822(text), &[("http://m/debian", false), ("http://m/debian", false), ("http://m/sec", true)]);
    }

    #[test]
    fn a_snapshot_is_an_archive_whose_day_is_past() {
        let snapshots = ["http://s/debian/1/".to_owned(), "http://s/debian-security/1".to_owned()];
        let sources = Sources::detect(Some("http://m/debian"), &snapshots).unwrap();
        assert_eq!(sources.url, "http://m/debian");
        assert_eq!(
            sources.lines[2..],
            ["", "-updates", "-security"].map(|suite| format!(
                "deb [check-valid-until=no] http://s/debian{}/1 trixie{suite} main contrib",
                if suite == "-security" { suite } else { "" }
            ))
        );
        assert!(Sources::detect(Some("http://m/debian"), &["yesterday".into()]).is_err());
    }

    #[test]
    fn a_tree_gets_the_image_s_suite_whatever_the_machine_runs() {
        let sources = Sources::compose("http://m/debian", Some("http://m/sec"), &[]);
        assert_eq!(
            sources.text(),
            "deb http://m/debian trixie main contrib\ndeb http://m/debian trixie-updates main contrib\ndeb http://m/sec trixie-security main contrib\n"
        );
    }
}
