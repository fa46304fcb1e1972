//! `cargo appliance swap`: gives the running development zone the services as they are in the sources now, without a new image.
//!
//! Each file that differs is laid over the one of the verity root by a bind mount that ends with the boot; units go to
//! `/run/systemd/system`. The files are packed and signed as for an image, so the zone checks them as it always does. What the
//! root itself is made of (packages, kernel, initrd) needs a new image.

use super::door::Door;
use super::report::Report;
use crate::build::Progress;
use crate::build::services::Services;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};
use zone::ids::hex;

/// Where the zone keeps what was laid over its root.
const STAGE: &str = "/run/kraud-swap";
const UNITS: &str = "usr/lib/systemd/system/";
const SERVICES: &str = "usr/lib/kraud/services/";
const TIMEOUT: Duration = Duration::from_secs(120);

/// Lays what differs over the zone's files and restarts the services that this touches; `only` names services, none is all.
///
/// # Errors
/// When a named service does not exist, the zone does not take a file, or a service does not start again.
pub fn swap(door: &Door, services: &Services, only: &[String], report: &mut Report) -> Result<()> {
    let wanted = choose(&services.files, only)?;
    let present = hashes(door, wanted.keys().map(String::as_str))?;
    let mut restart = BTreeSet::new();
    let mut units = false;
    for (path, source) in &wanted {
        let content = std::fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        if present.get(path) == Some(&hex(&Sha256::digest(&content))) {
            continue;
        }
        let started = Instant::now();
        report.started(path);
        units |= path.starts_with(UNITS);
        put(door, path, &content, source)?;
        restart.extend(unit(path));
        report.end(path, "swapped", started.elapsed());
    }
    if units {
        door.read(&["systemctl", "daemon-reload"], TIMEOUT)?;
    }
    for unit in &restart {
        let started = Instant::now();
        report.started(unit);
        door.read(&["systemctl", "restart", unit], TIMEOUT)?;
        report.end(unit, "restarted", started.elapsed());
    }
    if restart.is_empty() {
        report.line("the zone has these services already");
    }
    Ok(())
}

/// The files of the services that are asked for.
fn choose(
    files: &BTreeMap<String, std::path::PathBuf>,
    only: &[String],
) -> Result<BTreeMap<String, std::path::PathBuf>> {
    let belongs = |path: &str, name: &str| {
        path == format!("{SERVICES}{name}.tar.gz")
            || path.strip_prefix(UNITS).is_some_and(|unit| unit.starts_with(&format!("kraud-{name}.")))
            || (name == "bali" && path == "usr/bin/bali")
    };
    for name in only {
        if !files.keys().any(|path| belongs(path, name)) {
            let known: Vec<_> =
                files.keys().filter_map(|path| path.strip_prefix(SERVICES)?.strip_suffix(".tar.gz")).collect();
            bail!("there is no service `{name}`: there are bali, {}", known.join(", "));
        }
    }
    let keep = |path: &str| only.is_empty() || only.iter().any(|name| belongs(path, name));
    // The key is what the zone trusts; a zone that trusts another one must be built again.
    Ok(files
        .iter()
        .filter(|(path, _)| !path.ends_with(".pub") && keep(path))
        .map(|(p, s)| (p.clone(), s.clone()))
        .collect())
}

/// What the zone has: hash of each of these files that exists.
fn hashes<'a>(door: &Door, paths: impl Iterator<Item = &'a str>) -> Result<BTreeMap<String, String>> {
    // A unit that was swapped before lies in /run.
    let script = r#"for p; do f="/$p"; r="/run/systemd/system/${p##*/}"; [ -e "$r" ] && f="$r"; [ -e "$f" ] && echo "$p" "$(sha256sum < "$f")"; done; true"#;
    let mut argv = vec!["sh", "-c", script, "sh"];
    argv.extend(paths);
    let text = String::from_utf8(door.read(&argv, TIMEOUT)?).context("the zone's answer is not text")?;
    Ok(text.lines().filter_map(|line| line.split_once(' ')).map(|(p, h)| (p.into(), hash_of(h).into())).collect())
}

/// The first word of what `sha256sum` prints.
fn hash_of(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

fn put(door: &Door, path: &str, content: &[u8], source: &Path) -> Result<()> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let script = if path.starts_with(UNITS) {
        r#"mkdir -p /run/systemd/system && cat > "/run/systemd/system/$2""#
    } else {
        // Under a name of its own each time: what still runs from the one before keeps it.
        r#"mkdir -p "$3" && f=$(mktemp "$3/$2.XXXXXX") && cat > "$f" && chmod --reference="/$1" "$f" &&
           while mountpoint -q "/$1"; do umount -l "/$1"; done && mount --bind "$f" "/$1""#
    };
    let output = door.feed(&["sh", "-c", script, "sh", path, name, STAGE], content, TIMEOUT)?;
    if output.code != 0 {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("the zone did not take {} as /{path}: {}", source.display(), complaint.trim());
    }
    Ok(())
}

/// The unit that a file's change concerns. Each new `bali` is used from the next start on; pods start from `cradle`.
fn unit(path: &str) -> Option<String> {
    if let Some(unit) = path.strip_prefix(UNITS) {
        return Some(unit.into());
    }
    match path.strip_prefix(SERVICES)?.strip_suffix(".tar.gz")? {
        "cradle" => Some("kraud-pods.service".into()),
        name => Some(format!("kraud-{name}.service")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> BTreeMap<String, std::path::PathBuf> {
        [
            "usr/bin/bali",
            "usr/lib/kraud/keys/zone.pub",
            "usr/lib/kraud/services/pods.tar.gz",
            "usr/lib/kraud/services/cradle.tar.gz",
            "usr/lib/systemd/system/kraud-pods.service",
        ]
        .map(|path| (path.to_owned(), path.into()))
        .into()
    }

    #[test]
    fn a_named_service_is_its_image_and_its_unit() {
        let chosen = choose(&files(), &["pods".into()]).unwrap();
        let paths: Vec<_> = chosen.keys().map(String::as_str).collect();
        assert_eq!(paths, ["usr/lib/kraud/services/pods.tar.gz", "usr/lib/systemd/system/kraud-pods.service"]);
    }

    #[test]
    fn without_a_name_all_is_swapped_but_the_key() {
        assert_eq!(choose(&files(), &[]).unwrap().len(), files().len() - 1);
    }

    #[test]
    fn an_unknown_service_is_told_with_those_that_are() {
        let error = choose(&files(), &["pod".into()]).unwrap_err().to_string();
        assert!(error.contains("no service `pod`") && error.contains("cradle, pods"), "{error}");
    }

    #[test]
    fn what_pods_start_from_restarts_the_service_that_holds_it() {
        assert_eq!(unit("usr/lib/kraud/services/cradle.tar.gz").unwrap(), "kraud-pods.service");
        assert_eq!(unit("usr/lib/systemd/system/kraud-vpc.service").unwrap(), "kraud-vpc.service");
        assert_eq!(unit("usr/bin/bali"), None);
    }
}
