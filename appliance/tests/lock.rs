//! The lock against an archive in a folder: a version that the archive has moved on from, and one that only the local cache has.
//!
//! apt and dpkg-deb are the machine's own; the packages are made here and hold nothing. Nothing is installed.

#![allow(clippy::panic, clippy::unwrap_used)]

use appliance::build::cache::Cache;
use appliance::build::debs;
use appliance::build::host::Host;
use appliance::build::key::hash_file;
use appliance::build::lock::{self, Lock, Package, Packages};
use appliance::build::mirror::Sources;
use appliance::build::resolve::Apt;
use appliance::build::trees::Trees;
use appliance::build::{Error, Outcome, Progress};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

struct Quiet;

impl Progress for Quiet {
    fn started(&mut self, _: &str) {}
    fn finished(&mut self, _: &str, _: Outcome, _: Duration) {}
    fn note(&mut self, _: &str) {}
}

/// A folder with a recipe for a tree of one package, `tool`, which needs `part`; both stand on `base`, which is essential.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        for folder in ["packages", "debs", "archive"] {
            fs::create_dir(world.path(folder)).unwrap();
        }
        fs::write(world.path("packages/root.list"), "tool\n").unwrap();
        for (name, version, fields) in
            [("base", "1", "Essential: yes\n"), ("part", "1:1.0-1", ""), ("tool", "1.0", "Depends: part\n")]
        {
            world.publish(name, version, fields);
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a package and puts it into the local package cache; gives the lock's line of it.
    fn publish(&self, name: &str, version: &str, fields: &str) -> (String, Package) {
        let stage = self.path("stage");
        fs::create_dir_all(stage.join("DEBIAN")).unwrap();
        let control = format!(
            "Package: {name}\nVersion: {version}\nArchitecture: all\nPriority: required\n{fields}Maintainer: nobody\nDescription: nothing\n"
        );
        fs::write(stage.join("DEBIAN/control"), control).unwrap();
        let file = self.path("debs").join(format!("{name}_{}_all.deb", version.replace(':', "%3a")));
        let made =
            Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&stage).arg(&file).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        fs::remove_dir_all(&stage).unwrap();
        (name.to_owned(), Package { version: version.to_owned(), sha256: hash_file(&file).unwrap() })
    }

    /// What the local package cache has of these, as an archive of its own.
    fn archive(&self, name: &str, packages: &Packages) -> String {
        let dir = self.path(name);
        debs::offer(packages, &self.path("debs"), &dir, &self.path("log")).unwrap();
        format!("{}\n", debs::source(&dir))
    }

    /// The lock's lines of all that is there.
    fn all(&self) -> Packages {
        let kept = fs::read_dir(self.path("debs")).unwrap().flatten();
        let line = |file: fs::DirEntry| {
            let (name, version) = debs::parse_name(&file.file_name().to_string_lossy()).unwrap();
            (name, Package { version, sha256: hash_file(&file.path()).unwrap() })
        };
        kept.map(line).collect()
    }

    fn resolve(&self, sources: &str, locked: &Packages) -> Packages {
        let apt = Apt::new(sources, &self.path("log")).unwrap();
        apt.resolve(&["tool".into()], true, &[], &lock::preferences(locked)).unwrap()
    }
}

#[test]
fn a_lock_holds_what_is_installed_with_the_hashes_of_the_index() {
    let world = World::new();
    let all = world.all();
    assert_eq!(world.resolve(&world.archive("archive/1", &all), &Packages::new()), all);
}

#[test]
fn a_version_that_the_archive_moved_on_from_is_taken_newer_and_named() {
    let world = World::new();
    let locked = world.all();
    fs::remove_file(world.path("debs/part_1%3a1.0-1_all.deb")).unwrap();
    world.publish("part", "1:1.0-2", "");
    let now = world.resolve(&world.archive("archive/2", &world.all()), &locked);
    assert_eq!(lock::moved("root", &locked, &now), ["root: part 1:1.0-1 -> 1:1.0-2"]);
}

#[test]
fn a_version_that_only_the_local_cache_has_is_the_locked_one() {
    let world = World::new();
    let locked = world.all();
    let ours = world.archive("archive/ours", &locked);
    let (name, newer) = world.publish("part", "1:1.0-2", "");
    let mut moved_on = locked.clone();
    moved_on.insert(name, newer);
    let mirror = world.archive("archive/mirror", &moved_on);
    assert_eq!(world.resolve(&format!("{ours}{mirror}"), &locked), locked);
    assert_eq!(world.resolve(&format!("{ours}{mirror}"), &Packages::new())["part"].version, "1:1.0-2");
}

#[test]
fn a_strict_build_names_what_moved_before_anything_is_fetched() {
    let world = World::new();
    let mut lock = Lock::default();
    lock.set("root", world.all());
    fs::remove_file(world.path("debs/part_1%3a1.0-1_all.deb")).unwrap();
    world.publish("part", "1:1.0-2", "");
    let sources =
        Sources { lines: vec![world.archive("archive/5", &world.all()).trim().into()], url: "the archive".into() };
    let error = make(&world, &sources, &lock).unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, Error::Unlocked { .. }), "{said}");
    for word in ["root: part 1:1.0-1 -> 1:1.0-2", "--snapshot URL", "without --locked", "cargo appliance lock"] {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    let left = |step: &str| fs::read_dir(world.path("cache").join(step)).into_iter().flatten().count();
    assert_eq!(left("tree-root"), 0);
}

fn make(world: &World, sources: &Sources, lock: &Lock) -> Result<(), Error> {
    let host = Host::detect()?;
    let cache = Cache::open(world.path("cache"), host, &mut Quiet)?;
    let recipes: &Path = world.dir.path();
    let trees = Trees { cache: &cache, host, recipes, sources, lock, strict: true };
    trees.make("root", &mut Quiet).map(drop)
}
