//! Finds images by what users call them: reference, id, or the beginning of an id.

use crate::digest::Digest;
use crate::fail::{Result, invalid, not_found};
use crate::reference::Reference;
use zone::Resource;
use zone::image::Image;

/// The image that `name` names.
///
/// # Errors
/// `NotFound`; `Invalid` when several ids begin so.
pub fn find<'a>(images: &'a [Resource<Image>], name: &str) -> Result<&'a Resource<Image>> {
    if let Ok(reference) = Reference::parse(name) {
        let full = reference.to_string();
        let repo_digest = reference.digest.as_ref().map(|d| format!("{}@{d}", reference.repository()));
        let has = |i: &&Resource<Image>| {
            i.spec.tags.contains(&full) || repo_digest.as_ref().is_some_and(|d| i.spec.repo_digests.contains(d))
        };
        if let Some(image) = images.iter().find(has) {
            return Ok(image);
        }
    }
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let is_id = (4..=64).contains(&hex.len()) && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let mut matches =
        images.iter().filter(|i| is_id && i.meta.name.strip_prefix("sha256:").is_some_and(|h| h.starts_with(hex)));
    match (matches.next(), matches.next()) {
        (Some(_), Some(_)) => Err(invalid(format!("several image ids begin with {name}; write more digits"))),
        (Some(image), None) => Ok(image),
        (None, _) => Err(not_found(format!("No such image: {name:.300}"))),
    }
}

/// The id as a digest.
///
/// # Errors
/// `Invalid` when the resource has another name.
pub fn id(image: &Resource<Image>) -> Result<Digest> {
    Digest::parse(&image.meta.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_by_tag_repo_digest_and_the_beginning_of_their_id() {
        let (a, b, d) = (
            format!("sha256:{}", "ab".repeat(32)),
            format!("sha256:{}", "abcd".repeat(16)),
            format!("sha256:{}", "0".repeat(64)),
        );
        let image = |name: &str, tag: &str| -> Resource<Image> {
            serde_json::from_value(serde_json::json!({
                "meta": {"kind": "image", "name": name, "revision": 1, "generation": 1, "created_ns": 0},
                "spec": {"tags": [tag], "repo_digests": [format!("docker.io/library/x@{d}")]}
            }))
            .unwrap()
        };
        let images = [image(&a, "docker.io/library/x:latest"), image(&b, "docker.io/library/y:1")];
        for (name, found) in [
            ("x", &a),
            ("x:latest", &a),
            ("y:1", &b),
            ("ababab", &a),
            (a.as_str(), &a),
            ("abcd", &b),
            (&format!("x@{d}"), &a),
        ] {
            assert_eq!(&find(&images, name).unwrap().meta.name, found, "{name}");
        }
        assert!(find(&images, "y").is_err());
        assert!(find(&images, "abab").is_ok());
        assert!(find(&images, "zz").is_err());
    }
}
