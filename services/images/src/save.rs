//! Gives images out as one archive that is both a docker-archive and an OCI layout. Blobs are the ones that came in, so the
//! digests are the same again.

use crate::digest::Digest;
use crate::fail::{Result, blocking, internal, io};
use crate::ingest::Context;
use crate::lookup;
use crate::manifest::{Descriptor, Index, OCI_INDEX};
use crate::reference::Reference;
use axum::body::Body;
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use zone::image::Image;

/// What an archive will have.
#[derive(Debug, Default)]
struct Contents {
    blobs: BTreeSet<String>,
    entries: Vec<Value>,
    index: Vec<Descriptor>,
}

/// The archive of the images named, as a stream.
///
/// # Errors
/// `NotFound` when one is not there; later trouble ends the stream early.
pub async fn save(context: &Context, names: &[String]) -> Result<Body> {
    let in_use = context.store.use_it().await;
    let images = context.zone.list::<Image>().await?.items;
    let mut contents = Contents::default();
    for name in names {
        let image = lookup::find(&images, name)?;
        // An image that is named by its id is saved without tags, as Docker does.
        let tag = Reference::parse(name).ok().filter(|r| image.spec.tags.contains(&r.to_string()));
        add(context, &mut contents, &lookup::id(image)?, tag.as_ref())?;
    }
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(8);
    let store = context.store.clone();
    tokio::spawn(async move {
        let _in_use = in_use;
        let failed = sender.clone();
        let written = blocking(move || {
            let out = BufWriter::with_capacity(256 << 10, ChannelWriter(sender));
            write(contents, out, |d| File::open(store.blob(d))).map_err(io("cannot write an archive"))
        });
        if let Err(error) = written.await {
            let _ = failed.send(Err(io::Error::other(error))).await;
        }
    });
    Ok(Body::from_stream(ReceiverStream::new(receiver)))
}

fn add(context: &Context, contents: &mut Contents, image: &Digest, tag: Option<&Reference>) -> Result<()> {
    let (mut descriptor, _, manifest) = context.store.manifest(image)?;
    let path = |d: &Descriptor| format!("blobs/{}", d.digest.replace(':', "/"));
    contents
        .blobs
        .extend([&descriptor, &manifest.config].into_iter().chain(&manifest.layers).map(|d| d.digest.clone()));
    let config = path(&manifest.config);
    let familiar = tag.map(Reference::familiar);
    let existing = contents.entries.iter_mut().find(|e| e["Config"] == config.as_str());
    if let Some(entry) = existing {
        if let (Some(tags), Some(tag)) = (entry["RepoTags"].as_array_mut(), &familiar) {
            tags.push(json!(tag));
        }
    } else {
        let layers: Vec<String> = manifest.layers.iter().map(path).collect();
        let tags: Vec<String> = familiar.into_iter().collect();
        contents.entries.push(json!({"Config": config, "RepoTags": tags, "Layers": layers}));
    }
    if let Some(tag) = tag {
        descriptor.annotations.insert("io.containerd.image.name".into(), tag.to_string());
        descriptor.annotations.insert("org.opencontainers.image.ref.name".into(), tag.selector());
    }
    contents.index.push(descriptor);
    Ok(())
}

fn write(contents: Contents, out: impl Write, open: impl Fn(&Digest) -> io::Result<File>) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    for blob in &contents.blobs {
        let digest = Digest::parse(blob).map_err(io::Error::other)?;
        let file = open(&digest)?;
        let size = file.metadata()?.len();
        tar.append_data(&mut header(size), format!("blobs/sha256/{}", digest.hex()), file)?;
    }
    let index = Index { schema_version: 2, media_type: OCI_INDEX.into(), manifests: contents.index };
    for (name, value) in [
        ("index.json", serde_json::to_value(index)?),
        ("manifest.json", Value::Array(contents.entries)),
        ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
    ] {
        let bytes = serde_json::to_vec(&value)?;
        tar.append_data(&mut header(bytes.len() as u64), name, &bytes[..])?;
    }
    tar.into_inner()?.flush()
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    // Fields that are left empty are refused by strict readers.
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// Hands what is written to the response; an error when the client has left.
struct ChannelWriter(mpsc::Sender<io::Result<Bytes>>);

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(bytes)))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, internal("the client left").message))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
