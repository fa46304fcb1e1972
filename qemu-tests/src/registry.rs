//! Debian's docker-registry, of the development extension, in the zone on loopback: one takes everybody, the other only those who have
//! logged in.

use crate::{inside, shell, wait_for};

/// Where the registry for everybody answers, in the zone.
pub const OPEN: &str = "127.0.0.1:5000";
/// Where the other one does.
pub const LOCKED: &str = "127.0.0.1:5001";
/// me:secret
const USERS: &str = "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";
const SETTINGS: &str = "/zone/images/registries.json";

/// Both registries, empty, and no settings; gone when this is dropped.
#[derive(Debug)]
pub struct Registries;

impl Registries {
    /// Starts them.
    ///
    /// # Panics
    /// When they do not answer.
    #[must_use]
    pub fn start() -> Self {
        let there = shell("command -v docker-registry");
        assert_eq!(there.code, 0, "the development extension has no docker-registry: packages/dev.list");
        let registries = Self;
        stop();
        let unit = |name: &str, address: &str, more: &str| {
            let config = format!(
                "version: 0.1\nstorage: {{filesystem: {{rootdirectory: /run/test-registry/{name}}}}}\nhttp: {{addr: \"{address}\"}}\n{more}"
            );
            let file = format!("/run/test-registry/{name}.yml");
            let _ =
                inside(&["sh", "-c", "mkdir -p /run/test-registry && printf %s \"$1\" > \"$2\"", "sh", &config, &file])
                    .ok();
            let unit = format!("test-registry-{name}");
            let _ = inside(&["systemd-run", "--collect", "-u", &unit, "docker-registry", "serve", &file]).ok();
        };
        unit("open", OPEN, "");
        unit("locked", LOCKED, "auth: {htpasswd: {realm: here, path: /run/test-registry/users}}\n");
        let _ = inside(&["sh", "-c", "echo \"$1\" > /run/test-registry/users", "sh", USERS]).ok();
        for address in [OPEN, LOCKED] {
            wait_for("the registry's start", || {
                let said = shell(&format!("busybox nc -w 2 {} < /dev/null", address.replace(':', " ")));
                if said.code == 0 { Ok(()) } else { Err(said.err) }
            });
        }
        registries
    }
}

impl Drop for Registries {
    fn drop(&mut self) {
        stop();
    }
}

fn stop() {
    let _ = inside(&["systemctl", "stop", "test-registry-open", "test-registry-locked"]);
    let _ = inside(&["rm", "-rf", "/run/test-registry", SETTINGS]);
}

/// Writes the settings for registries that the zone reads at each request.
pub fn settings(json: &str) {
    let _ = inside(&["sh", "-c", "echo \"$1\" > \"$2\"", "sh", json, SETTINGS]).ok();
}
