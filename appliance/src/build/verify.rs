//! `cargo appliance verify`: is an image what these sources give? The sources are built again, and the two images compared: whole, then
//! partition by partition, then file by file. Where only signatures and public keys differ, it says so: who has other keys gets the same
//! image otherwise.

use super::cache::Cache;
use super::error::{At, Error, Result};
use super::host::{self, Host};
use super::tools::Tools;
use super::{BuildOptions, Built, Quiet, unsigned};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const SECTOR_BYTES: u64 = 512;
const CHUNK_BYTES: usize = 1 << 20;
/// The partition of the root, of its hash tree, and that of the firmware's programs.
const ROOT: &str = "kraud-root-a";
const VERITY: &str = "kraud-verity-a";
const ESP: &str = "kraud-esp";
/// What is known of each file besides its content: kind, mode, owner, group, time, where a link points to.
const LIST: &str =
    r#"cd "$1" && find . -mindepth 1 -printf '%P\t%y %m %U %G %TY-%Tm-%Td %TH:%TM:%TS %l\n' && chmod -R a+rX ."#;

/// How two images, partitions or files compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compared {
    /// Bit for bit.
    Same,
    /// But for signatures and public keys, in so many files.
    Signatures(usize),
    /// What differs first, for people.
    Differs(String),
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Of the image, in hex.
    pub sha256: String,
    /// Each partition by name; empty when the whole images are the same.
    pub partitions: Vec<(String, Compared)>,
}

impl Verdict {
    /// Whether nothing differs but signatures.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.partitions.iter().any(|(_, compared)| matches!(compared, Compared::Differs(_)))
    }
}

/// A partition by the table's word.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Partition {
    name: String,
    start: u64,
    length: u64,
    rest: String,
}

/// Compares `image` with what was built.
///
/// # Errors
/// When one of them cannot be read; a difference is none.
pub fn verify(options: &BuildOptions, built: &Built, image: &Path) -> Result<Verdict> {
    let host = Host::detect()?;
    let cache = super::open(options, host, &mut Quiet)?;
    let sha256 = super::key::hash_file(image)?;
    let compare = Compare { cache: &cache, host, tools: &built.tools };
    let partitions = if sha256 == built.sha256 { Vec::new() } else { compare.images(image, &built.image)? };
    let verdict = Verdict { sha256, partitions };
    // What differs is worth a look.
    if options.cold && verdict.holds() {
        host.remove(&super::cold_cache()?)?;
    }
    Ok(verdict)
}

struct Compare<'a> {
    cache: &'a Cache,
    host: Host,
    tools: &'a Tools,
}

impl Compare<'_> {
    fn images(&self, theirs: &Path, ours: &Path) -> Result<Vec<(String, Compared)>> {
        let (their, our) = (self.table(theirs)?, self.table(ours)?);
        let mut found: Vec<(String, Compared)> = Vec::new();
        if let Some(different) = first_difference(&their, &our) {
            found.push(("partition table".into(), Compared::Differs(different)));
            return Ok(found);
        }
        for (one, other) in their.iter().zip(&our) {
            let compared = match difference((theirs, one.start), (ours, other.start), one.length)? {
                None => Compared::Same,
                Some(_) if one.name == ESP => self.files(one, theirs, ours, extract_fat)?,
                Some(_) if one.name == ROOT => self.files(one, theirs, ours, extract_erofs)?,
                Some(_) if one.name == VERITY && signatures_only(&found, ROOT) => Compared::Signatures(0),
                Some(at) => Compared::Differs(format!("at byte {at} of the partition")),
            };
            found.push((one.name.clone(), compared));
        }
        if found.iter().all(|(_, compared)| *compared == Compared::Same) {
            found.push(("outside of the partitions".into(), Compared::Differs("what no partition has".into())));
        }
        Ok(found)
    }

    fn table(&self, image: &Path) -> Result<Vec<Partition>> {
        let text =
            host::output("verify", &self.cache.log("verify"), self.tools.command("sfdisk").arg("--json").arg(image))?;
        partitions(&text).ok_or_else(|| Error::Recipe { path: image.into(), what: "is no disk image of ours".into() })
    }

    /// Compares the files of a partition, of which it is known that it differs.
    fn files(
        &self,
        partition: &Partition,
        theirs: &Path,
        ours: &Path,
        extract: fn(&Compare<'_>, &Path, &Partition, &Path) -> Result<Listing>,
    ) -> Result<Compared> {
        let work = tempfile::tempdir().at("make", std::env::temp_dir())?;
        let (one, other) = (work.path().join("theirs"), work.path().join("ours"));
        let (their, our) = (extract(self, theirs, partition, &one)?, extract(self, ours, partition, &other)?);
        let compared = files(&their, &one, &our, &other);
        for dir in [&one, &other] {
            self.host.remove(dir)?;
        }
        compared
    }
}

/// Each file's place and what is known of it.
type Listing = BTreeMap<PathBuf, String>;

fn extract_fat(compare: &Compare<'_>, image: &Path, partition: &Partition, to: &Path) -> Result<Listing> {
    let mut command = compare.tools.command("mcopy");
    command.env("TZ", "UTC").env("MTOOLSRC", "/dev/null").args(["-s", "-m", "-n", "-i"]);
    command.arg(format!("{}@@{}", image.display(), partition.start)).arg("::/");
    fs::create_dir(to).at("make", to)?;
    host::run("verify", &compare.cache.log("verify"), command.arg(to))?;
    let mut list = compare.tools.command("sh");
    list_of(compare, list.args(["-c", LIST, "list"]).arg(to))
}

fn extract_erofs(compare: &Compare<'_>, image: &Path, partition: &Partition, to: &Path) -> Result<Listing> {
    let mut command = compare.tools.privileged(compare.host, "fsck.erofs");
    command.arg(format!("--offset={}", partition.start)).arg(format!("--extract={}", to.display())).arg("--xattrs");
    host::run("verify", &compare.cache.log("verify"), command.arg(image))?;
    let mut list = compare.tools.privileged(compare.host, "sh");
    list_of(compare, list.args(["-c", LIST, "list"]).arg(to))
}

fn list_of(compare: &Compare<'_>, command: &mut std::process::Command) -> Result<Listing> {
    let text = host::output("verify", &compare.cache.log("verify"), command)?;
    Ok(text.lines().filter_map(|line| line.split_once('\t')).map(|(path, rest)| (path.into(), rest.into())).collect())
}

/// Compares two extracted trees; `their` and `our` list what is in them.
fn files(their: &Listing, one: &Path, our: &Listing, other: &Path) -> Result<Compared> {
    let mut signatures = 0;
    for path in their.keys().chain(our.keys()) {
        let shown = path.display();
        match (their.get(path), our.get(path)) {
            (Some(_), None) => return Ok(Compared::Differs(format!("/{shown} is only in the image"))),
            (None, _) => return Ok(Compared::Differs(format!("/{shown} is only in what was built"))),
            (Some(a), Some(b)) if a != b => {
                return Ok(Compared::Differs(format!("/{shown} is `{a}` in the image and `{b}` in what was built")));
            }
            _ => {}
        }
    }
    for (path, _) in their.iter().filter(|(_, about)| about.starts_with('f')) {
        let read = |root: &Path| fs::read(root.join(path)).at("read", root.join(path));
        let (a, b) = (read(one)?, read(other)?);
        if a == b {
            continue;
        }
        if unsigned::of(path, &a) != unsigned::of(path, &b) {
            let at = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
            let (shown, a, b) = (path.display(), a.len(), b.len());
            return Ok(Compared::Differs(format!(
                "/{shown} from byte {at} on ({a} bytes in the image, {b} in what was built)"
            )));
        }
        signatures += 1;
    }
    Ok(if signatures > 0 { Compared::Signatures(signatures) } else { Compared::Differs("in no file".into()) })
}

fn signatures_only(found: &[(String, Compared)], name: &str) -> bool {
    found.iter().any(|(partition, compared)| partition == name && matches!(compared, Compared::Signatures(_)))
}

/// The first byte that differs between two parts of files, from their beginnings.
fn difference(one: (&Path, u64), other: (&Path, u64), length: u64) -> Result<Option<u64>> {
    let open = |(path, start): (&Path, u64)| {
        let mut file = File::open(path).at("open", path)?;
        file.seek(SeekFrom::Start(start)).at("read", path)?;
        Ok(file)
    };
    let (mut a, mut b) = (open(one)?, open(other)?);
    let (mut first, mut second) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut done = 0;
    while done < length {
        let n = CHUNK_BYTES.min(usize::try_from(length - done).unwrap_or(CHUNK_BYTES));
        a.read_exact(&mut first[..n]).at("read", one.0)?;
        b.read_exact(&mut second[..n]).at("read", other.0)?;
        if let Some(at) = first[..n].iter().zip(&second[..n]).position(|(a, b)| a != b) {
            return Ok(Some(done + at as u64));
        }
        done += n as u64;
    }
    Ok(None)
}

/// What sfdisk says of a table; nothing when that is no table.
fn partitions(json: &str) -> Option<Vec<Partition>> {
    let table: serde_json::Value = serde_json::from_str(json).ok()?;
    let one = |p: &serde_json::Value| {
        let bytes = |name: &str| p[name].as_u64()?.checked_mul(SECTOR_BYTES);
        Some(Partition {
            name: p["name"].as_str()?.to_owned(),
            start: bytes("start")?,
            length: bytes("size")?,
            rest: format!("{} {} {} of {}", p["type"], p["uuid"], p["attrs"], table["partitiontable"]["id"]),
        })
    };
    table["partitiontable"]["partitions"].as_array()?.iter().map(one).collect()
}

fn first_difference(their: &[Partition], our: &[Partition]) -> Option<String> {
    let names = |table: &[Partition]| table.iter().map(|p| p.name.clone()).collect::<Vec<_>>().join(", ");
    if their.len() != our.len() {
        return Some(format!("the image has {}, what was built has {}", names(their), names(our)));
    }
    let (one, other) = their.iter().zip(our).find(|(one, other)| one != other)?;
    Some(format!("{one:?} in the image, {other:?} in what was built"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Listing) {
        let dir = tempfile::tempdir().unwrap();
        let mut listing = Listing::new();
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
            listing.insert(name.into(), "f 644 0 0".into());
        }
        (dir, listing)
    }

    fn compared(one: &[(&str, &[u8])], other: &[(&str, &[u8])]) -> Compared {
        let ((a, their), (b, our)) = (tree(one), tree(other));
        files(&their, a.path(), &our, b.path()).unwrap()
    }

    #[test]
    fn the_first_difference_is_named() {
        let said = |one: &[(&str, &[u8])], other: &[(&str, &[u8])]| match compared(one, other) {
            Compared::Differs(what) => what,
            other => format!("{other:?}"),
        };
        assert_eq!(said(&[("a", b"x"), ("b", b"x")], &[("a", b"x")]), "/b is only in the image");
        assert_eq!(said(&[("a", b"x")], &[("a", b"x"), ("b", b"x")]), "/b is only in what was built");
        assert!(said(&[("a", b"same"), ("b", b"one")], &[("a", b"same"), ("b", b"ons")]).starts_with("/b from byte 2"));
        assert_eq!(
            compared(&[("usr/lib/kraud/keys/a.pub", b"1")], &[("usr/lib/kraud/keys/a.pub", b"2")]),
            Compared::Signatures(1)
        );
    }

    #[test]
    fn another_mode_or_owner_is_a_difference() {
        let ((a, their), (b, mut our)) = (tree(&[("a", b"x")]), tree(&[("a", b"x")]));
        our.insert("a".into(), "f 755 0 0".into());
        let Compared::Differs(what) = files(&their, a.path(), &our, b.path()).unwrap() else { panic!() };
        assert!(what.contains("644") && what.contains("755"), "{what}");
    }

    #[test]
    fn bytes_are_compared_from_each_parts_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, b"..same1").unwrap();
        fs::write(&b, b"....same2").unwrap();
        assert_eq!(difference((&a, 2), (&b, 4), 4).unwrap(), None);
        assert_eq!(difference((&a, 2), (&b, 4), 5).unwrap(), Some(4));
    }

    #[test]
    fn a_table_is_read_and_its_first_difference_named() {
        let json =
            r#"{"partitiontable":{"partitions":[{"start":1,"size":2,"type":"t","uuid":"u","name":"kraud-esp"}]}}"#;
        let one = partitions(json).unwrap();
        assert_eq!((one[0].start, one[0].length), (512, 1024));
        let other = partitions(&json.replace("\"u\"", "\"v\"")).unwrap();
        assert_eq!(first_difference(&one, &one), None);
        assert!(first_difference(&one, &other).unwrap().contains("kraud-esp"));
        assert!(partitions("{}").is_none());
    }
}
