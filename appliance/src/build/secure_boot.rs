//! Keys for Secure Boot, and what they sign.
//!
//! They lie in the cache's key store, `keys/secure-boot/`: PK (may change the others), KEK (may change db) and db (signs what is started),
//! each a private key and a certificate. They are made when none are there; whoever has some puts all six files there before.
//! A machine in setup mode takes the certificates from the image at its first boot (`loader/keys/auto/*.auth`, systemd-boot(7)).

use super::Progress;
use super::cache::Cache;
use super::efi_variable;
use super::error::{At, Error, Result};
use super::host;
use super::key::{Key, hash_file};
use super::tools::Tools;
use super::trees::Tree;
use std::fs;
use std::path::{Path, PathBuf};

/// Each variable and the key that signs what is put there.
const VARIABLES: [(&str, &str); 3] = [("PK", "PK"), ("KEK", "PK"), ("db", "KEK")];
const DAYS: &str = "7300";

/// The keys of this cache.
#[derive(Clone, Debug)]
pub struct Keys {
    dir: PathBuf,
    /// Of the certificate that what is started is signed for.
    pub id: String,
}

impl Keys {
    /// Finds the keys or makes them.
    ///
    /// # Errors
    /// When only some of them are there, or openssl fails.
    pub fn get(cache: &Cache, tools: &Tools, progress: &mut dyn Progress) -> Result<Self> {
        let _alone = cache.alone("keys", progress)?;
        let dir = cache.kept("keys")?.join("secure-boot");
        if !dir.exists() {
            let new = tempfile::tempdir_in(cache.kept("keys")?).at("make a folder beside", &dir)?;
            for (name, _) in VARIABLES {
                generate(cache, tools, name, new.path())?;
            }
            fs::rename(new.path(), &dir).at("make", &dir)?;
        }
        for (name, _) in VARIABLES {
            for file in [format!("{name}.key"), format!("{name}.crt")] {
                if !dir.join(&file).is_file() {
                    let what = format!("lacks {file}: put it back, or remove the folder and new keys are made");
                    return Err(Error::Recipe { path: dir, what });
                }
            }
        }
        for (name, by) in VARIABLES {
            if !dir.join(format!("{name}.auth")).exists() {
                variable(cache, tools, &dir, name, by)?;
            }
        }
        let id = hash_file(&dir.join("db.crt"))?;
        Ok(Self { dir, id })
    }

    /// Place in the ESP and file of what a machine in setup mode takes.
    pub fn enrolled(&self) -> [(String, PathBuf); 3] {
        VARIABLES.map(|(name, _)| (format!("loader/keys/auto/{name}.auth"), self.dir.join(format!("{name}.auth"))))
    }

    /// Signs a program of the firmware's kind.
    ///
    /// # Errors
    /// sbsign's failure.
    pub fn sign(&self, cache: &Cache, tools: &Tools, from: &Path, to: &Path) -> Result<()> {
        let mut command = tools.command("sbsign");
        command.arg("--key").arg(self.dir.join("db.key")).arg("--cert").arg(self.dir.join("db.crt"));
        host::run("sign", &cache.log("sign"), command.arg("--output").arg(to).arg(from))
    }

    /// The folder with the ZFS modules, signed: a kernel that was started with Secure Boot loads no others, and takes the firmware's
    /// certificates for them.
    ///
    /// # Errors
    /// The failure of the kernel's sign-file.
    pub fn modules(&self, cache: &Cache, build: &Tree, zfs: &Path, progress: &mut dyn Progress) -> Result<PathBuf> {
        let name = zfs.file_name().unwrap_or_default().to_string_lossy();
        let key = Key::new("zfs-signed", 1).text("modules", &name).text("certificate", &self.id);
        cache.step(progress, "zfs-signed", key, |dir, _| {
            let program = sign_file(&build.path)?;
            for module in ["spl.ko", "zfs.ko"] {
                let mut command = Tools::new(build.path.clone()).command(&program);
                command.arg("sha256").arg(self.dir.join("db.key")).arg(self.dir.join("db.crt"));
                command.arg(zfs.join(module)).arg(dir.join(module));
                host::run("zfs-signed", &cache.log("zfs-signed"), &mut command)?;
            }
            Ok(())
        })
    }
}

/// A private key and the certificate that it gives itself.
fn generate(cache: &Cache, tools: &Tools, name: &str, dir: &Path) -> Result<()> {
    let mut command = tools.command("openssl");
    command.args(["req", "-new", "-x509", "-newkey", "rsa:2048", "-sha256", "-nodes", "-days", DAYS]);
    command.args(["-subj", &format!("/CN=kraudbox {name}/")]);
    command.arg("-keyout").arg(dir.join(format!("{name}.key"))).arg("-out").arg(dir.join(format!("{name}.crt")));
    host::run("keys", &cache.log("keys"), &mut command)
}

/// What the variable `name` is set to, signed by `by`.
fn variable(cache: &Cache, tools: &Tools, dir: &Path, name: &str, by: &str) -> Result<()> {
    let work = tempfile::tempdir_in(dir).at("make a folder in", dir)?;
    let (der, content, message) = (work.path().join("der"), work.path().join("content"), work.path().join("message"));
    let file = |name: &str, kind: &str| dir.join(format!("{name}.{kind}"));
    let (certificate, log) = (file(name, "crt"), cache.log("keys"));
    let mut convert = tools.command("openssl");
    convert.args(["x509", "-outform", "DER", "-in"]).arg(&certificate).arg("-out").arg(&der);
    host::run("keys", &log, &mut convert)?;
    let value = efi_variable::list(&fs::read(&der).at("read", &der)?);
    fs::write(&content, efi_variable::signed(name, &value)).at("write", &content)?;
    let mut sign = tools.command("openssl");
    sign.args(["smime", "-sign", "-binary", "-noattr", "-md", "sha256", "-outform", "DER"]);
    sign.arg("-signer").arg(file(by, "crt")).arg("-inkey").arg(file(by, "key"));
    host::run("keys", &log, sign.arg("-in").arg(&content).arg("-out").arg(&message))?;
    let what = "openssl wrote a signature of a kind that firmware does not read".into();
    let signed = efi_variable::authenticated(&value, &fs::read(&message).at("read", &message)?)
        .ok_or(Error::Recipe { path: certificate, what })?;
    let (new, auth) = (work.path().join("auth"), file(name, "auth"));
    fs::write(&new, signed).at("write", &new)?;
    fs::rename(&new, &auth).at("make", &auth)
}

/// The kernel's own program, which lies in a folder named for its version; its path when the tree's `/usr` is the computer's.
fn sign_file(tree: &Path) -> Result<PathBuf> {
    let lib = tree.join("usr/lib");
    for entry in fs::read_dir(&lib).at("read", &lib)?.flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("linux-kbuild-") && entry.path().join("scripts/sign-file").is_file() {
            return Ok(Path::new("/usr/lib").join(name).join("scripts/sign-file"));
        }
    }
    Err(Error::Recipe { path: lib, what: "has no linux-kbuild with scripts/sign-file".into() })
}
