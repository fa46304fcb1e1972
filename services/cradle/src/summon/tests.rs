//! Whole bundles. What needs `mkfs.erofs` 1.8 is skipped, and says so, where there is none; `KRAUD_MKFS_EROFS` names it.

#![allow(clippy::print_stderr)]

use super::testing::tar;
use super::*;

struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    /// An archive of an image with these layers, as `docker save` writes it.
    fn new(layers: &[Vec<u8>], gzip: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hash = |bytes: &[u8]| hex(&Sha256::digest(bytes));
        let ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", hash(layer))).collect();
        let config = serde_json::json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": ids},
            "config": {"Entrypoint": ["/bin/a"], "Cmd": ["b"], "Env": ["X=1"], "WorkingDir": "/w", "User": "5"}});
        let config = config.to_string();
        let name = format!("{}.json", hash(config.as_bytes()));
        let names: Vec<_> = (0..layers.len()).map(|index| format!("{index}/layer.tar")).collect();
        let manifest = serde_json::json!([{"Config": name, "RepoTags": ["a:1"], "Layers": names}]).to_string();
        let mut files: Vec<(&str, &[u8])> = vec![("manifest.json", manifest.as_bytes()), (&name, config.as_bytes())];
        files.extend(names.iter().zip(layers).map(|(name, layer)| (&**name, &**layer)));
        let mut bytes = tar(&files);
        if gzip {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut writer, &bytes).unwrap();
            bytes = writer.finish().unwrap();
        }
        fs::write(dir.path().join("i.tar"), bytes).unwrap();
        fs::write(dir.path().join("kernel"), "").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn options(&self, mkfs: &Path, command: &[&str]) -> Options {
        let args: [OsString; 11] = [
            "--kernel".into(),
            self.path("kernel").into(),
            "--initramfs".into(),
            self.path("kernel").into(),
            "--mkfs-erofs".into(),
            mkfs.into(),
            "--vcpus".into(),
            "2".into(),
            self.path("b").into(),
            self.path("i.tar").into(),
            "--".into(),
        ];
        args::parse(args.into_iter().chain(command.iter().map(OsString::from))).unwrap()
    }

    /// What lies beside the archive and the kernel.
    fn left(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "i.tar" && name != "kernel").collect()
    }
}

fn mkfs() -> Option<PathBuf> {
    let program = std::env::var_os("KRAUD_MKFS_EROFS").unwrap_or("/usr/bin/mkfs.erofs".into());
    let version = std::process::Command::new(&program).arg("--version").output();
    if version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(" 1.8")) {
        return Some(program.into());
    }
    eprintln!("skipped: there is no mkfs.erofs 1.8");
    None
}

#[test]
fn a_bundle_is_whole_and_names_its_own_files() {
    let Some(mkfs) = mkfs() else { return };
    for gzip in [false, true] {
        let layers = [tar(&[("bin/a", b"one")]), tar(&[("bin/c", b"two")]), tar(&[("bin/a", b"one")])];
        let image = Image::new(&layers, gzip);
        fs::create_dir(image.path("b")).unwrap();
        summon(&image.options(&mkfs, &[])).unwrap();
        assert_eq!(image.left(), ["b"]);
        let (bundle, names) = crate::bundle::load(&image.path("b")).unwrap();
        assert_eq!((bundle.vcpus, bundle.memory_mib, bundle.console), (2, 512, None));
        assert_eq!(bundle.kernel, image.path("kernel").canonicalize().unwrap());
        assert!(bundle.disks[0].read_only);
        let extents: Vec<_> = bundle.disks[0].extents.iter().map(|e| e.path.to_str().unwrap()).collect();
        assert_eq!(extents, ["image.erofs", "layer-0.erofs", "layer-1.erofs", "layer-0.erofs"]);
        for extent in &bundle.disks[0].extents {
            assert_eq!(names.open(&extent.path, false).unwrap().metadata().unwrap().len(), extent.len);
        }
        for log in bundle.log.unwrap().files {
            names.open(&log, true).unwrap();
        }
        let mut files: Vec<_> =
            fs::read_dir(image.path("b")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        let expected = ["cradle.json", "image.erofs", "layer-0.erofs", "layer-1.erofs", "log.0", "log.1", "spec.json"];
        assert_eq!(files, expected);
        let spec: GuestSpec = serde_json::from_reader(names.open(&bundle.guest_spec, false).unwrap()).unwrap();
        let container = &spec.containers[0];
        assert_eq!((&*container.args, &*container.env), (&["/bin/a".into(), "b".into()][..], &["X=1".into()][..]));
        assert_eq!((&*container.cwd, &*container.user, &container.upper), ("/w", "5", &Upper::Tmpfs));
        assert!(spec.nics.is_empty() && spec.now_ns == 0);
    }
}

#[test]
fn an_image_without_layers_is_an_empty_disk() {
    let Some(mkfs) = mkfs() else { return };
    let image = Image::new(&[], false);
    summon(&image.options(&mkfs, &["x"])).unwrap();
    let (bundle, _) = crate::bundle::load(&image.path("b")).unwrap();
    assert_eq!(bundle.disks[0].extents.len(), 1);
    assert_eq!(fs::read(image.path("b/image.erofs")).unwrap()[1024..1028], 0xe0f5_e1e2_u32.to_le_bytes());
}

#[test]
fn nothing_is_left_when_a_layer_or_the_program_is_bad() {
    let image = Image::new(&[tar(&[("../a", b"x")])], false);
    let error = summon(&image.options(Path::new("/bin/true"), &[])).unwrap_err();
    assert!(format!("{error:#}").contains("must not climb"), "{error:#}");
    let image = Image::new(&[tar(&[("a", b"x")])], false);
    let error = summon(&image.options(Path::new("/bin/false"), &[])).unwrap_err();
    assert!(format!("{error:#}").contains("exit status: 1"), "{error:#}");
    assert_eq!(image.left(), [""; 0]);
}

#[test]
fn a_layer_with_another_hash_than_the_configuration_says_is_refused() {
    let image = Image::new(&[tar(&[("a", b"right")])], false);
    let mut bytes = fs::read(image.path("i.tar")).unwrap();
    let at = bytes.windows(5).position(|w| w == b"right").unwrap();
    bytes[at..at + 5].copy_from_slice(b"wrong");
    fs::write(image.path("i.tar"), bytes).unwrap();
    let error = summon(&image.options(Path::new("/bin/true"), &[])).unwrap_err();
    assert!(format!("{error:#}").contains("has the hash"), "{error:#}");
}

#[test]
fn a_directory_that_is_not_empty_is_not_touched() {
    let image = Image::new(&[], false);
    fs::create_dir(image.path("b")).unwrap();
    fs::write(image.path("b/precious"), "x").unwrap();
    let error = summon(&image.options(Path::new("/bin/true"), &[])).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error:#}");
    assert_eq!(image.left(), ["b"]);
    assert_eq!(fs::read(image.path("b/precious")).unwrap(), b"x");
}

#[test]
fn a_kernel_that_is_missing_is_said_before_anything_is_made() {
    let image = Image::new(&[], false);
    fs::remove_file(image.path("kernel")).unwrap();
    let error = summon(&image.options(Path::new("/bin/true"), &[])).unwrap_err();
    assert!(format!("{error:#}").contains("kernel"), "{error:#}");
    assert_eq!(image.left(), [""; 0]);
}
