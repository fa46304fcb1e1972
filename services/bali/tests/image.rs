//! Images as a stranger may change them: whatever byte differs, the image is refused before its content is looked at.

// The helpers below are test code too; clippy knows only functions marked `#[test]`.
#![allow(clippy::unwrap_used)]

use bali::build::Content;
use bali::format::{HEADER_BYTES, Header};
use bali::image::Image;
use bali::source::Source;
use bali::{Error, Keyring, SigningKey};
use flate2::Compression;
use flate2::write::DeflateEncoder;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use tar::EntryType;

struct Bench {
    dir: tempfile::TempDir,
    key: SigningKey,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("keys")).unwrap();
        let key = SigningKey::generate().unwrap();
        key.save(&dir.path().join("keys/k")).unwrap();
        Self { dir, key }
    }

    fn keys(&self) -> Keyring {
        Keyring::load(&self.dir.path().join("keys")).unwrap()
    }

    fn build(&self) -> PathBuf {
        let context = self.dir.path().join("context");
        std::fs::create_dir_all(context.join("page")).unwrap();
        std::fs::write(context.join("app"), vec![b'a'; 100_000]).unwrap();
        std::fs::write(context.join("page/index.html"), "<p>hello").unwrap();
        std::fs::write(
            context.join("Dockerfile"),
            "FROM scratch\nCOPY --chmod=0755 app /bin/app\nCOPY page /page\nENTRYPOINT [\"/bin/app\"]\nENV A=1\n",
        )
        .unwrap();
        let out = self.dir.path().join("image.tar.gz");
        Content::from_dockerfile(&context).unwrap().write(&out, &self.key).unwrap();
        out
    }

    fn check(&self, path: &Path) -> Result<usize, Error> {
        let mut image = Image::open(&Source::Path(path.into()), &self.keys())?;
        let mut entries = 0;
        image.for_each(|_, _, data| {
            entries += 1;
            std::io::copy(data, &mut std::io::sink()).unwrap();
            Ok(())
        })?;
        Ok(entries)
    }

    fn check_bytes(&self, bytes: &[u8]) -> Result<usize, Error> {
        let path = self.dir.path().join("changed.tar.gz");
        std::fs::write(&path, bytes).unwrap();
        self.check(&path)
    }

    /// A tar that our own builder would never write, signed with a trusted key.
    fn sign(&self, tar: &[u8]) -> Vec<u8> {
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::fast());
        deflate.write_all(tar).unwrap();
        let mut body = deflate.finish().unwrap();
        let mut crc = flate2::Crc::new();
        crc.update(tar);
        body.extend(crc.sum().to_le_bytes());
        body.extend(crc.amount().to_le_bytes());
        let hash: [u8; 32] = Sha256::digest(&body).into();
        let mut file = Header { key_id: self.key.id(), signature: self.key.sign(&hash) }.encode().to_vec();
        file.extend(body);
        file
    }
}

fn entry(tar: &mut tar::Builder<Vec<u8>>, kind: EntryType, path: &str, link: Option<&str>, mode: u32) {
    let mut header = tar::Header::new_gnu();
    // Straight into the header: the library refuses to write such paths.
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    if let Some(link) = link {
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    }
    header.set_entry_type(kind);
    header.set_mode(mode);
    let data: &[u8] = if path.ends_with("config.json") { b"{}" } else { b"" };
    header.set_size(data.len() as u64);
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

#[test]
fn the_same_content_gives_the_same_bytes_and_any_tar_opens_them() {
    let bench = Bench::new();
    let path = bench.build();
    let first = std::fs::read(&path).unwrap();
    std::fs::write(bench.dir.path().join("context/page/index.html"), "<p>hello").unwrap();
    bench.build();
    assert_eq!(first, std::fs::read(&path).unwrap());
    assert_eq!(bench.check(&path).unwrap(), 4);
    let listed = std::process::Command::new("tar").arg("tzf").arg(&path).output().unwrap();
    assert!(listed.status.success());
    assert_eq!(String::from_utf8(listed.stdout).unwrap(), ".bali/config.json\nbin/\nbin/app\npage/\npage/index.html\n");
}

#[test]
fn two_keys_sign_the_same_content_id() {
    let bench = Bench::new();
    let path = bench.build();
    let id = bali::image::id(&Source::Path(path.clone())).unwrap();
    let other = SigningKey::generate().unwrap();
    Content::from_dockerfile(&bench.dir.path().join("context")).unwrap().write(&path, &other).unwrap();
    assert_eq!(bali::image::id(&Source::Path(path.clone())).unwrap(), id);
    assert!(matches!(bench.check(&path), Err(Error::UnknownKey { .. })));
}

#[test]
fn no_changed_byte_passes() {
    let bench = Bench::new();
    let bytes = std::fs::read(bench.build()).unwrap();
    let last = bytes.len() - 1;
    for at in (0..HEADER_BYTES + 20).chain([bytes.len() / 2, last - 8, last - 4, last]) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x01;
        assert!(bench.check_bytes(&changed).is_err(), "byte {at} of {}", bytes.len());
    }
}

#[test]
fn nothing_cut_or_appended_passes() {
    let bench = Bench::new();
    let bytes = std::fs::read(bench.build()).unwrap();
    for len in [0, 1, 10, HEADER_BYTES - 1, HEADER_BYTES, bytes.len() / 2, bytes.len() - 1] {
        assert!(bench.check_bytes(&bytes[..len]).is_err(), "{len} bytes");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(bench.check_bytes(&longer), Err(Error::BadSignature { .. })));
    let twice = [bytes.clone(), bytes].concat();
    assert!(matches!(bench.check_bytes(&twice), Err(Error::BadSignature { .. })));
}

#[test]
fn the_same_content_compressed_differently_does_not_pass() {
    let bench = Bench::new();
    let bytes = std::fs::read(bench.build()).unwrap();
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut tar).unwrap();
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::none());
    deflate.write_all(&tar).unwrap();
    let recompressed = [&bytes[..HEADER_BYTES], &deflate.finish().unwrap(), &bytes[bytes.len() - 8..]].concat();
    let mut same = Vec::new();
    flate2::read::GzDecoder::new(&recompressed[..]).read_to_end(&mut same).unwrap();
    assert!(same == tar, "the recompressed file is a good gzip file of the same content");
    assert!(matches!(bench.check_bytes(&recompressed), Err(Error::BadSignature { .. })));
    let mut plain = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
    plain.write_all(&tar).unwrap();
    assert!(matches!(bench.check_bytes(&plain.finish().unwrap()), Err(Error::NotAnImage { .. })));
}

#[test]
fn even_a_signed_image_holds_nothing_that_could_leave_its_root() {
    let bench = Bench::new();
    let cases: [(EntryType, &str, Option<&str>, u32); 14] = [
        (EntryType::Regular, "../up", None, 0o644),
        (EntryType::Regular, "a/../../up", None, 0o644),
        (EntryType::Regular, "/etc/passwd", None, 0o644),
        (EntryType::Regular, "a//b", None, 0o644),
        (EntryType::Regular, ".bali/signature", None, 0o644),
        (EntryType::Regular, "su", None, 0o4755),
        (EntryType::Regular, "wall", None, 0o2755),
        (EntryType::Symlink, "link", Some("/etc/passwd"), 0o777),
        (EntryType::Symlink, "d/link", Some("../../up"), 0o777),
        (EntryType::Link, "hard", Some("/etc/passwd"), 0o644),
        (EntryType::Link, "hard", Some("../up"), 0o644),
        (EntryType::Char, "dev/null", None, 0o666),
        (EntryType::Block, "dev/sda", None, 0o666),
        (EntryType::Fifo, "pipe", None, 0o666),
    ];
    for (kind, path, link, mode) in cases {
        let mut tar = tar::Builder::new(Vec::new());
        entry(&mut tar, EntryType::Regular, ".bali/config.json", None, 0o644);
        entry(&mut tar, kind, path, link, mode);
        let refused = bench.check_bytes(&bench.sign(&tar.into_inner().unwrap()));
        assert!(matches!(refused, Err(Error::BadEntry { .. })), "{path}: {refused:?}");
    }
}

#[test]
fn an_image_without_its_configuration_in_front_is_refused() {
    let bench = Bench::new();
    let mut tar = tar::Builder::new(Vec::new());
    entry(&mut tar, EntryType::Regular, "app", None, 0o755);
    assert!(matches!(bench.check_bytes(&bench.sign(&tar.into_inner().unwrap())), Err(Error::BadEntry { .. })));
}

#[test]
fn a_compressed_giant_is_refused_before_it_is_unpacked() {
    let bench = Bench::new();
    let mut tar = tar::Builder::new(Vec::new());
    entry(&mut tar, EntryType::Regular, ".bali/config.json", None, 0o644);
    let mut bytes = tar.into_inner().unwrap();
    bytes.truncate(1024);
    let mut header = tar::Header::new_gnu();
    header.set_path("giant").unwrap();
    header.set_mode(0o644);
    header.set_size(1 << 40);
    header.set_cksum();
    bytes.extend(header.as_bytes());
    assert!(matches!(bench.check_bytes(&bench.sign(&bytes)), Err(Error::TooLarge { .. })));
}

#[test]
fn unpacking_follows_no_link_that_an_earlier_entry_made() {
    let bench = Bench::new();
    let mut tar = tar::Builder::new(Vec::new());
    entry(&mut tar, EntryType::Regular, ".bali/config.json", None, 0o644);
    entry(&mut tar, EntryType::Directory, "real", None, 0o755);
    entry(&mut tar, EntryType::Symlink, "link", Some("real"), 0o777);
    entry(&mut tar, EntryType::Regular, "link/file", None, 0o644);
    let path = bench.dir.path().join("link.tar.gz");
    std::fs::write(&path, bench.sign(&tar.into_inner().unwrap())).unwrap();
    let mut image = Image::open(&Source::Path(path), &bench.keys()).unwrap();
    let root = bench.dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    assert!(matches!(bali::unpack::unpack(&mut image, &root), Err(Error::BadEntry { .. })));
    assert_eq!(std::fs::read_dir(root.join("real")).unwrap().count(), 0);
}

#[test]
fn an_unpacked_root_file_system_comes_back_as_it_was() {
    let bench = Bench::new();
    let source = bench.dir.path().join("source");
    std::fs::create_dir_all(source.join("usr/bin")).unwrap();
    std::fs::write(source.join("usr/bin/tool"), "tool").unwrap();
    std::os::unix::fs::symlink("/usr/bin", source.join("bin")).unwrap();
    let out = bench.dir.path().join("root.tar.gz");
    Content::from_root(&source).unwrap().write(&out, &bench.key).unwrap();
    let root = bench.dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let mut image = Image::open(&Source::Path(out), &bench.keys()).unwrap();
    bali::unpack::unpack(&mut image, &root).unwrap();
    assert_eq!(std::fs::read_to_string(root.join("bin/tool")).unwrap(), "tool");
}
