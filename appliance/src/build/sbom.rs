//! What the image consists of: an SPDX 2.3 document (https://spdx.github.io/spdx-spec/v2.3/) with every Debian package of the
//! root, every crate in our programs, and the two kernels' sources.
//!
//! The document depends on nothing but what it lists, so that two builds of the same sources give the same bytes.

use super::cache::Cache;
use super::error::Result;
use super::host;
use super::lock::{Package, Packages};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Where it lies in the root.
pub(crate) const PLACE: &str = "usr/share/kraud/sbom.spdx.json";
/// The time of all builds, [`super::trees::EPOCH`], as SPDX writes it.
const CREATED: &str = "2026-01-01T00:00:00Z";

/// What is listed.
pub(crate) struct Inputs<'a> {
    /// The workspace's root.
    pub workspace: &'a Path,
    pub version: &'a str,
    /// The root's packages.
    pub root: &'a Packages,
    /// The build tree's packages: the guest kernel's source is one.
    pub build: &'a Packages,
    /// Our packages whose programs are in the root.
    pub packages: &'a [String],
}

/// One package of the document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    kind: &'static str,
    name: String,
    version: String,
    license: String,
    /// Of the package's file, in hex; empty when it has none.
    sha256: String,
}

/// The document's text.
///
/// # Errors
/// When cargo cannot tell what our programs depend on.
pub(crate) fn text(cache: &Cache, inputs: &Inputs<'_>) -> Result<String> {
    let mut parts: BTreeSet<Part> = inputs.root.iter().map(|(name, package)| debian(name, package)).collect();
    // What is compiled from Debian's sources: the guest kernel, and the ZFS modules.
    let compiled = ["linux-source-6.12", "zfs-dkms"];
    parts.extend(compiled.iter().filter_map(|name| Some(debian(name, inputs.build.get(*name)?))));
    let mut tree = host::cargo();
    tree.current_dir(inputs.workspace)
        .args(["tree", "--locked", "--edges", "normal", "--target", super::programs::TARGET, "--prefix", "none"])
        .args(["--format", "{p}|{l}"]);
    for package in inputs.packages {
        tree.args(["-p", package]);
    }
    parts.extend(crates(&host::output("sbom", &cache.log("sbom"), &mut tree)?));
    Ok(document(inputs.version, &parts))
}

fn debian(name: &str, package: &Package) -> Part {
    Part {
        kind: "deb",
        name: name.into(),
        version: package.version.clone(),
        license: "NOASSERTION".into(),
        sha256: package.sha256.clone(),
    }
}

/// The crates in what `cargo tree` prints, one a line: `serde v1.0.2 (proc-macro)|MIT`, `zone v0.1.0 (/a/folder)|MIT`, repeated
/// ones with `(*)` at the end.
fn crates(text: &str) -> Vec<Part> {
    let line = |line: &str| {
        let (package, license) = line.split_once('|')?;
        let mut words = package.split(' ');
        let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
        // Some crates still write a slash where SPDX has a word.
        let license = license.trim_end_matches("(*)").trim().replace('/', " OR ");
        let license = if license.is_empty() { "NOASSERTION".into() } else { license };
        Some(Part { kind: "cargo", name: name.into(), version: version.into(), license, sha256: String::new() })
    };
    text.lines().filter_map(line).collect()
}

fn document(version: &str, parts: &BTreeSet<Part>) -> String {
    let mut packages = vec![json!({
        "SPDXID": "SPDXRef-kraudbox",
        "name": "kraudbox",
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseDeclared": "NOASSERTION",
    })];
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-kraudbox")];
    for (number, part) in parts.iter().enumerate() {
        let id = format!("SPDXRef-{}-{number}", part.kind);
        packages.push(package(&id, part));
        relations.push(relation("SPDXRef-kraudbox", "CONTAINS", &id));
    }
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("kraudbox-{version}"),
        "documentNamespace": format!("urn:kraudbox:sbom:{version}:{}", super::key::Key::new("sbom", 1).text("packages", &json!(packages).to_string()).hex()),
        "creationInfo": {"created": CREATED, "creators": [format!("Tool: kraudbox-{version}")]},
        "packages": packages,
        "relationships": relations,
    });
    format!("{document:#}\n")
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
}

fn package(id: &str, part: &Part) -> Value {
    let (kind, name, version) = (part.kind, escape(&part.name), escape(&part.version));
    let locator = match kind {
        "deb" => format!("pkg:deb/debian/{name}@{version}?arch=amd64&distro={}", super::mirror::SUITE),
        _ => format!("pkg:{kind}/{name}@{version}"),
    };
    let mut package = json!({
        "SPDXID": id,
        "name": part.name,
        "versionInfo": part.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseDeclared": part.license,
        "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": locator}],
    });
    if !part.sha256.is_empty() {
        package["checksums"] = json!([{"algorithm": "SHA256", "checksumValue": part.sha256}]);
    }
    package
}

/// What is escaped in a part of a package URL (<https://github.com/package-url/purl-spec>, "Character encoding").
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_').remove(b'~');

fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_are_read_from_cargos_tree_once_each() {
        let text = "zone v0.1.0 (/home/a b/zone)|MIT OR Apache-2.0\nserde_derive v1.0.2 (proc-macro)|MIT/Apache-2.0\nserde_derive v1.0.2 (proc-macro)|MIT/Apache-2.0 (*)\n\n";
        let parts: BTreeSet<_> = crates(text).into_iter().collect();
        let shown: Vec<_> = parts.iter().map(|p| format!("{} {} {}", p.name, p.version, p.license)).collect();
        assert_eq!(shown, ["serde_derive 1.0.2 MIT OR Apache-2.0", "zone 0.1.0 MIT OR Apache-2.0"]);
    }

    #[test]
    fn every_package_is_contained_and_has_a_package_url() {
        let parts = [debian("libstdc++6", &Package { version: "1:14.2-1+b1".into(), sha256: "00ff".into() })]
            .into_iter()
            .collect();
        let document: Value = serde_json::from_str(&document("1.0", &parts)).unwrap();
        assert_eq!(
            document["packages"][1]["externalRefs"][0]["referenceLocator"],
            "pkg:deb/debian/libstdc%2B%2B6@1%3A14.2-1%2Bb1?arch=amd64&distro=trixie"
        );
        assert_eq!(document["packages"][1]["checksums"][0]["checksumValue"], "00ff");
        assert_eq!(document["relationships"][1]["relatedSpdxElement"], document["packages"][1]["SPDXID"]);
    }

    #[test]
    fn the_documents_time_is_that_of_all_builds() {
        // 56 years since 1970, 14 of them leap years.
        assert!(CREATED.starts_with("2026-01-01T00:00:00"));
        assert_eq!(((56 * 365 + 14) * 86400).to_string(), super::super::trees::EPOCH);
    }
}
