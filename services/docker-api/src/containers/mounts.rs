//! What is mounted into a container, from the four places where a request can say it: `Binds`, `Mounts`, `Tmpfs` and
//! `Volumes` (with the image's), and `VolumesFrom`.

use super::request::{Create, HostConfig, MountRequest};
use crate::errors::{Failure, Result};
use crate::names;
use crate::state::World;
use std::collections::{BTreeMap, BTreeSet};
use zone::VolumeName;
use zone::pod::Mount;
use zone::volume::VolumeSpec;

/// Mounts, and the volumes that have to be made for them.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order in which they are mounted.
    pub mounts: Vec<Mount>,
    /// Volumes that are not there yet.
    pub create: BTreeMap<String, VolumeSpec>,
}

/// Reads all mounts of a request; `declared` are the volumes that image and request declare without a name.
///
/// # Errors
/// 400 for what cannot be mounted.
pub fn plan(world: &World, request: &Create, declared: &BTreeSet<String>) -> Result<Plan> {
    let empty = HostConfig::default();
    let host = request.host_config.as_ref().unwrap_or(&empty);
    let driver = host.volume_driver.clone().filter(|d| !d.is_empty()).unwrap_or_else(|| "local".into());
    let mut plan = Plan::default();
    for from in host.volumes_from.iter().flatten() {
        plan.volumes_from(world, from)?;
    }
    for bind in host.binds.iter().flatten() {
        plan.bind(world, bind, &driver)?;
    }
    for mount in host.mounts.iter().flatten() {
        plan.mount(world, mount)?;
    }
    for (target, options) in host.tmpfs.iter().flatten() {
        plan.add(tmpfs(target, options)?)?;
    }
    for target in declared {
        let target = absolute(target)?;
        if plan.mounts.iter().all(|m| m.target() != target) {
            let mount = plan.anonymous(target, false, false, &driver)?;
            plan.add(mount)?;
        }
    }
    // A mount below another has to come after it.
    plan.mounts.sort_by_key(|m| m.target().matches('/').count());
    Ok(plan)
}

impl Plan {
    fn add(&mut self, mount: Mount) -> Result<()> {
        if self.mounts.iter().any(|m| m.target() == mount.target()) {
            return Err(Failure::invalid(format!("Duplicate mount point: {}", mount.target())));
        }
        self.mounts.push(mount);
        Ok(())
    }

    fn volumes_from(&mut self, world: &World, from: &str) -> Result<()> {
        let (key, mode) = from.split_once(':').unwrap_or((from, "rw"));
        let other = world.container(key)?;
        for mount in &other.spec().mounts {
            let Mount::Volume { volume, target, read_only, .. } = mount else { continue };
            self.add(Mount::Volume {
                volume: volume.clone(),
                target: target.clone(),
                read_only: *read_only || mode == "ro",
                no_copy: true,
                anonymous: false,
            })?;
        }
        Ok(())
    }

    /// `NAME:/TARGET[:OPTIONS]` or, without a name, `/TARGET`.
    fn bind(&mut self, world: &World, bind: &str, driver: &str) -> Result<()> {
        let wrong = || Failure::invalid(format!("invalid volume specification: '{bind}'"));
        let parts: Vec<&str> = bind.split(':').collect();
        let (source, target, options) = match parts[..] {
            [target] => ("", target, ""),
            [source, target] => (source, target, ""),
            [source, target, options] => (source, target, options),
            _ => return Err(wrong()),
        };
        let (mut read_only, mut no_copy) = (false, false);
        for option in options.split(',').filter(|o| !o.is_empty()) {
            match option {
                "ro" => read_only = true,
                "nocopy" => no_copy = true,
                // Means nothing for a volume of a microVM.
                "rw" | "z" | "Z" | "copy" | "cached" | "delegated" | "consistent" | "private" | "rprivate"
                | "shared" | "rshared" | "slave" | "rslave" => {}
                _ => return Err(Failure::invalid(format!("invalid mode: {option} in volume specification '{bind}'"))),
            }
        }
        let target = absolute(target).map_err(|_| wrong())?;
        if source.starts_with(['/', '.', '~']) {
            return Err(no_host_path(source));
        }
        let mount = if source.is_empty() {
            self.anonymous(target, read_only, no_copy, driver)?
        } else {
            self.named(
                world,
                source,
                VolumeSpec { driver: driver.into(), ..VolumeSpec::default() },
                target,
                read_only,
                no_copy,
            )?
        };
        self.add(mount)
    }

    fn mount(&mut self, world: &World, mount: &MountRequest) -> Result<()> {
        let wrong = |what: &str| Failure::invalid(format!("invalid mount config for type \"{}\": {what}", mount.kind));
        let target = absolute(&mount.target).map_err(|f| wrong(&f.message))?;
        let read_only = mount.read_only.unwrap_or_default();
        let made = match mount.kind.as_str() {
            "volume" | "" => {
                let options = mount.volume_options.clone().unwrap_or_default();
                if options.subpath.is_some_and(|s| !s.is_empty()) {
                    return Err(wrong("a part of a volume (volume-subpath) cannot be mounted yet"));
                }
                let config = options.driver_config.unwrap_or_default();
                let driver = config.name.filter(|n| !n.is_empty()).unwrap_or_else(|| "local".into());
                let no_copy = options.no_copy.unwrap_or_default();
                match mount.source.as_deref().unwrap_or_default() {
                    "" => self.anonymous(target, read_only, no_copy, &driver)?,
                    name => {
                        let spec = VolumeSpec {
                            driver,
                            options: config.options.unwrap_or_default(),
                            labels: options.labels.unwrap_or_default(),
                            anonymous: false,
                        };
                        self.named(world, name, spec, target, read_only, no_copy)?
                    }
                }
            }
            "tmpfs" => {
                let options = mount.tmpfs_options.clone().unwrap_or_default();
                Mount::Tmpfs {
                    target,
                    size: options.size_bytes.and_then(|s| u64::try_from(s).ok()).unwrap_or_default(),
                    mode: options.mode.unwrap_or_default(),
                    options: if read_only { "ro".into() } else { String::new() },
                }
            }
            "bind" => return Err(no_host_path(mount.source.as_deref().unwrap_or_default())),
            other => {
                return Err(Failure::invalid(format!(
                    "mounts of type \"{other}\" are not supported yet; use \"volume\" or \"tmpfs\""
                )));
            }
        };
        self.add(made)
    }

    fn named(
        &mut self,
        world: &World,
        name: &str,
        spec: VolumeSpec,
        target: String,
        read_only: bool,
        no_copy: bool,
    ) -> Result<Mount> {
        let name = names::volume_name(name)?;
        if !world.volumes.contains_key(name) && !self.create.contains_key(name) {
            crate::volumes::check_driver(&spec.driver)?;
            self.create.insert(name.to_owned(), spec);
        }
        Ok(Mount::Volume { volume: VolumeName::new(name), target, read_only, no_copy, anonymous: false })
    }

    fn anonymous(&mut self, target: String, read_only: bool, no_copy: bool, driver: &str) -> Result<Mount> {
        crate::volumes::check_driver(driver)?;
        let name = names::new_id()?;
        let labels = BTreeMap::from([("com.docker.volume.anonymous".to_owned(), String::new())]);
        self.create.insert(
            name.clone(),
            VolumeSpec { driver: driver.into(), labels, anonymous: true, ..VolumeSpec::default() },
        );
        Ok(Mount::Volume { volume: VolumeName::new(name), target, read_only, no_copy, anonymous: true })
    }
}

fn no_host_path(source: &str) -> Failure {
    Failure::invalid(format!(
        "cannot mount the host path \"{source}\": containers are microVMs and bind mounts of host paths are not supported yet; use a named volume"
    ))
}

/// `--tmpfs /target:size=64m,mode=1777,noexec`
fn tmpfs(target: &str, text: &str) -> Result<Mount> {
    let (mut size, mut mode, mut rest) = (0, 0, Vec::new());
    for option in text.split(',').filter(|o| !o.is_empty()) {
        let wrong = || Failure::invalid(format!("invalid tmpfs option \"{option}\" for {target}"));
        match option.split_once('=') {
            Some(("size", value)) => size = bytes(value).ok_or_else(wrong)?,
            Some(("mode", value)) => mode = u32::from_str_radix(value, 8).map_err(|_| wrong())?,
            _ => rest.push(option),
        }
    }
    Ok(Mount::Tmpfs { target: absolute(target)?, size, mode, options: rest.join(",") })
}

/// A number of bytes like `64m` or `10G`.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
    let (digits, shift) = match lower.as_bytes().last()? {
        b'k' => (&lower[..lower.len() - 1], 10),
        b'm' => (&lower[..lower.len() - 1], 20),
        b'g' => (&lower[..lower.len() - 1], 30),
        b't' => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A path in the container: absolute, without `.` and `..`, and not the root.
fn absolute(path: &str) -> Result<String> {
    if !path.starts_with('/') || path.len() > 4096 || path.contains('\0') {
        return Err(Failure::invalid(format!("mount path must be absolute: '{path}'")));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Err(Failure::invalid("invalid specification: destination can't be '/'"));
    }
    Ok(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn planned(host: &serde_json::Value) -> Result<Plan> {
        let request: Create = serde_json::from_value(json!({ "HostConfig": host })).unwrap();
        plan(&World::default(), &request, &BTreeSet::from(["/data".to_owned()]))
    }

    #[test]
    fn a_named_bind_covers_a_declared_volume() {
        let plan = planned(&json!({"Binds": ["db:/data/../data:ro,nocopy"]})).unwrap();
        assert_eq!(plan.create.keys().collect::<Vec<_>>(), ["db"]);
        let wanted = Mount::Volume {
            volume: VolumeName::new("db"),
            target: "/data".into(),
            read_only: true,
            no_copy: true,
            anonymous: false,
        };
        assert_eq!(plan.mounts, [wanted]);
    }

    #[test]
    fn a_declared_volume_gets_an_anonymous_one() {
        let plan = planned(&json!({"Tmpfs": {"/run": "size=1m,noexec"}})).unwrap();
        assert_eq!(plan.create.len(), 1);
        assert!(plan.create.values().all(|v| v.anonymous));
        assert!(plan.mounts.contains(&Mount::Tmpfs {
            target: "/run".into(),
            size: 1 << 20,
            mode: 0,
            options: "noexec".into()
        }));
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        for (host, part) in [
            (json!({"Binds": ["/etc:/x"]}), "host path"),
            (json!({"Mounts": [{"Type": "bind", "Source": "/a", "Target": "/b"}]}), "host path"),
            (json!({"Binds": ["a:b"]}), "invalid volume specification"),
            (json!({"Binds": ["a:/b:wrong"]}), "invalid mode"),
            (json!({"Binds": ["a:/b", "c:/b"]}), "Duplicate mount point: /b"),
            (json!({"Mounts": [{"Type": "volume", "Target": "x"}]}), "must be absolute"),
            (json!({"Mounts": [{"Type": "image", "Target": "/x"}]}), "not supported"),
        ] {
            let failure = planned(&host).unwrap_err();
            assert!(failure.status == 400 && failure.message.contains(part), "{host}: {failure}");
        }
    }
}
