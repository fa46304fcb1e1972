//! `docker import`: one archive of a root file system becomes an image with one layer; Dockerfile instructions set its
//! configuration.

use crate::compress;
use crate::digest::{Digest, copy_hashed};
use crate::fail::{MAX_LAYER, Result, blocking, invalid, io};
use crate::ingest::{Context, Staged, made_manifest};
use crate::manifest::{Descriptor, OCI_MANIFEST};
use crate::reference::Reference;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::path::Path;

/// Makes an image of the archive at `spool`.
///
/// # Errors
/// `Invalid` when the archive or a change cannot be read.
pub async fn import(
    context: &Context,
    spool: &Path,
    tags: Vec<Reference>,
    changes: &[String],
    message: &str,
) -> Result<Digest> {
    let config =
        changes.iter().try_fold(Map::new(), |mut config, change| apply(&mut config, change).map(|()| config))?;
    let (store, spool) = (context.store.clone(), spool.to_owned());
    let (descriptor, diff_id) = blocking(move || {
        let open = |what| File::open(&spool).map_err(io(what));
        let (digest, size) = store.put_blob_from(open("cannot open an archive")?, MAX_LAYER, None)?;
        let (compression, reader) =
            compress::reader(open("cannot open an archive")?).map_err(io("cannot read the archive"))?;
        let (diff_id, _) = copy_hashed(reader, std::io::sink(), MAX_LAYER).map_err(io("cannot unpack the archive"))?;
        Ok((Descriptor::new(compression.layer_media_type(), &digest, size), diff_id))
    })
    .await?;
    let created = timestamp(zone::time::now_ns());
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": created, "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id.to_string()]},
        "history": [{"created": created, "comment": message}],
    });
    let config = config.to_string().into_bytes();
    let manifest = made_manifest(&config, vec![descriptor])?;
    context.finish(Staged { config, manifest: (OCI_MANIFEST.into(), manifest), tags, repo_digest: None }, None).await
}

/// Applies one Dockerfile instruction to a configuration.
fn apply(config: &mut Map<String, Value>, change: &str) -> Result<()> {
    let (word, rest) = change.trim().split_once(char::is_whitespace).unwrap_or((change.trim(), ""));
    let rest = rest.trim();
    let exec = || -> Value {
        let list = serde_json::from_str::<Vec<String>>(rest).ok();
        list.map_or_else(|| json!(["/bin/sh", "-c", rest]), |l| json!(l))
    };
    let list = || {
        serde_json::from_str::<Vec<String>>(rest)
            .unwrap_or_else(|_| rest.split_whitespace().map(str::to_owned).collect())
    };
    match word.to_ascii_uppercase().as_str() {
        "CMD" => drop(config.insert("Cmd".into(), exec())),
        "ENTRYPOINT" => drop(config.insert("Entrypoint".into(), exec())),
        "USER" => drop(config.insert("User".into(), json!(rest))),
        "WORKDIR" => drop(config.insert("WorkingDir".into(), json!(rest))),
        "STOPSIGNAL" => drop(config.insert("StopSignal".into(), json!(rest))),
        "ENV" => {
            let env = config.entry("Env").or_insert_with(|| json!([]));
            let added = pairs(rest).into_iter().map(|(k, v)| json!(format!("{k}={v}")));
            env.as_array_mut().map(|e| e.extend(added)).unwrap_or_default();
        }
        "LABEL" => extend(config, "Labels", pairs(rest).into_iter().map(|(k, v)| (k, json!(v)))),
        "VOLUME" => extend(config, "Volumes", list().into_iter().map(|v| (v, json!({})))),
        "EXPOSE" => {
            let port = |p: String| if p.contains('/') { p } else { format!("{p}/tcp") };
            extend(config, "ExposedPorts", list().into_iter().map(|p| (port(p), json!({}))));
        }
        other => {
            return Err(invalid(format!(
                "{other:.50?} is not a valid change: use CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR"
            )));
        }
    }
    Ok(())
}

fn extend(config: &mut Map<String, Value>, field: &str, added: impl Iterator<Item = (String, Value)>) {
    if let Some(object) = config.entry(field).or_insert_with(|| json!({})).as_object_mut() {
        object.extend(added);
    }
}

/// `A=1 B="two words"`, or the old form `A the rest`.
fn pairs(text: &str) -> Vec<(String, String)> {
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        return vec![(name.to_owned(), value.trim().to_owned())];
    }
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in text.chars() {
        match (c, quote) {
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(q)) if c == q => quote = None,
            (c, None) if c.is_whitespace() => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            (c, _) => word.push(c),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    let split = |w: String| w.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap_or((w, String::new()));
    words.into_iter().map(split).collect()
}

/// RFC 3339 in UTC, to the second.
fn timestamp(ns: u64) -> String {
    let second = i64::try_from(ns / 1_000_000_000).unwrap_or(0);
    jiff::Timestamp::from_second(second).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockerfile_instructions_set_the_configuration() {
        let mut c = Map::new();
        for change in [
            "CMD [\"a\",\"b\"]",
            "entrypoint echo hi",
            "ENV A=1 B=\"x y\"",
            "ENV OLD the rest",
            "EXPOSE 80 53/udp",
            "LABEL k=v",
            "USER 1000",
            "WORKDIR /w",
            "VOLUME [\"/data\"]",
        ] {
            apply(&mut c, change).unwrap();
        }
        assert_eq!(
            Value::Object(c),
            json!({"Cmd": ["a", "b"], "Entrypoint": ["/bin/sh", "-c", "echo hi"], "Env": ["A=1", "B=x y", "OLD=the rest"],
                "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Labels": {"k": "v"}, "User": "1000", "WorkingDir": "/w",
                "Volumes": {"/data": {}}})
        );
        assert!(apply(&mut Map::new(), "RUN x").is_err());
        assert_eq!(timestamp(1_700_000_000_000_000_000), "2023-11-14T22:13:20Z");
    }
}
