//! What is mounted into a container, from the places where a request can say it: `Binds`, `Mounts`, `Tmpfs`, `Volumes`
//! (with the image's) and `VolumesFrom`.
//!
//! ```text
//! -v NAME:/x            a volume, made when missing        -v /x            an anonymous volume
//! -v /path:/x           a path in the project's file area, made when missing
//! -v …/docker.sock:/x   the Docker API, restricted to the project
//! --mount type=…        `mount_entry`
//! ```

use super::mount_entry;
use super::request::{Create, HostConfig};
use super::tmpfs;
use crate::area::{self, Found};
use crate::errors::{Failure, Result};
use crate::state::World;
use crate::{names, project};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use zone::VolumeName;
use zone::pod::Mount;
use zone::volume::VolumeSpec;

/// Where mounts are planned.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The zone.
    pub world: &'a World,
    /// Where volumes are mounted on the host.
    pub volumes: &'a Path,
    /// The container's project.
    pub project: &'a str,
    /// The client may use this project only, so that what is made has to carry its label.
    pub restricted: bool,
}

/// Mounts, and the volumes that have to be made for them.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order in which they are mounted.
    pub mounts: Vec<Mount>,
    /// Volumes that are not there yet.
    pub create: BTreeMap<String, VolumeSpec>,
    /// What the client should know.
    pub warnings: Vec<String>,
    /// Targets that came from other containers: anything else at the same place goes before them.
    inherited: BTreeSet<String>,
}

/// Reads all mounts of a request; `declared` are the volumes that image and request declare without a name.
///
/// # Errors
/// 400 for what cannot be mounted.
pub fn plan(place: Place<'_>, request: &Create, declared: &BTreeSet<String>) -> Result<Plan> {
    let empty = HostConfig::default();
    let host = request.host_config.as_ref().unwrap_or(&empty);
    let driver = host.volume_driver.clone().filter(|d| !d.is_empty()).unwrap_or_else(|| "local".into());
    let mut plan = Plan::default();
    for from in host.volumes_from.iter().flatten() {
        plan.volumes_from(place.world, from)?;
    }
    for bind in host.binds.iter().flatten() {
        plan.bind(place, bind, &driver)?;
    }
    for mount in host.mounts.iter().flatten() {
        mount_entry::add(&mut plan, place, mount)?;
    }
    for (target, options) in host.tmpfs.iter().flatten() {
        plan.add(tmpfs::mount(target, options)?)?;
    }
    for target in declared {
        let target = absolute(target)?;
        if plan.mounts.iter().all(|m| m.target() != target) {
            let mount = plan.anonymous(place, target, false, false, &driver)?;
            plan.add(mount)?;
        }
    }
    // A mount below another has to come after it.
    plan.mounts.sort_by_key(|m| m.target().matches('/').count());
    Ok(plan)
}

impl Plan {
    /// Takes a mount in.
    ///
    /// # Errors
    /// 400 when something else is mounted there.
    pub fn add(&mut self, mount: Mount) -> Result<()> {
        let target = mount.target().to_owned();
        if self.inherited.remove(&target) {
            self.mounts.retain(|m| m.target() != target);
        }
        if self.mounts.iter().any(|m| m.target() == target) {
            return Err(Failure::invalid(format!("Duplicate mount point: {target}")));
        }
        self.mounts.push(mount);
        Ok(())
    }

    fn volumes_from(&mut self, world: &World, from: &str) -> Result<()> {
        let (key, mode) = from.split_once(':').unwrap_or((from, "rw"));
        let mut only_read = false;
        for mode in mode.split(',') {
            match mode {
                "ro" => only_read = true,
                "rw" | "z" | "Z" => {}
                other => return Err(Failure::invalid(format!("invalid mode for volumes-from: {other}"))),
            }
        }
        let other = world.container(key)?;
        for mount in &other.spec().mounts {
            let mut mount = mount.clone();
            match &mut mount {
                Mount::Volume { read_only, no_copy, anonymous, .. } => {
                    *read_only |= only_read;
                    *no_copy = true;
                    *anonymous = false;
                }
                Mount::Bind { read_only, .. } => *read_only |= only_read,
                Mount::Image { .. } | Mount::DockerSocket { .. } => {}
                Mount::Tmpfs { .. } => continue,
            }
            let target = mount.target().to_owned();
            // The last container that is named counts.
            self.mounts.retain(|m| m.target() != target);
            self.inherited.insert(target);
            self.mounts.push(mount);
        }
        Ok(())
    }

    /// `SOURCE:/TARGET[:OPTIONS]` or, for an anonymous volume, `/TARGET`.
    fn bind(&mut self, place: Place<'_>, bind: &str, driver: &str) -> Result<()> {
        let wrong = || Failure::invalid(format!("invalid volume specification: '{bind}'"));
        let parts: Vec<&str> = bind.split(':').collect();
        let (source, target, options) = match parts[..] {
            [target] => ("", target, ""),
            [source, target] if !source.is_empty() => (source, target, ""),
            [source, target, options] if !source.is_empty() => (source, target, options),
            _ => return Err(wrong()),
        };
        let (read_only, no_copy) =
            mode(options).map_err(|option| Failure::invalid(format!("invalid mode: {option}")))?;
        let kind = if source.starts_with('/') { "bind" } else { "volume" };
        let target = absolute(target).map_err(|failure| {
            let why = format!("invalid mount config for type \"{kind}\": {}", failure.message);
            Failure::invalid(format!("invalid volume specification: '{bind}': {why}"))
        })?;
        if source.starts_with('/') {
            return self.host_path(place, source, target, read_only, true);
        }
        let mount = if source.is_empty() {
            self.anonymous(place, target, read_only, no_copy, driver)?
        } else {
            let spec = VolumeSpec { driver: driver.into(), ..VolumeSpec::default() };
            self.named(place, source, spec, target, read_only, no_copy)?
        };
        self.add(mount)
    }

    /// A path that on Docker Engine would be one of the host's.
    ///
    /// # Errors
    /// 400 when it is missing and is not to be made.
    pub fn host_path(
        &mut self,
        place: Place<'_>,
        source: &str,
        target: String,
        read_only: bool,
        create: bool,
    ) -> Result<()> {
        let source = clean(source);
        if area::is_docker_socket(&source) {
            return self.add(Mount::DockerSocket { target });
        }
        if area::is_the_guests_own(&source, &target) {
            self.warnings.push(format!("{source} is the microVM's own, not the host's: the mount is left out"));
            return Ok(());
        }
        project::check(place.project)?;
        let volume = project::area(place.project);
        if area::look(place.volumes, &volume, &source) == Found::Nothing {
            let hint = format!(
                "bind sources are paths in the project's file area, the volume \"{volume}\"; what is on the docker client's \
                 machine cannot be mounted, copy it there: docker cp SOURCE CONTAINER:/files{source} into a container with -v {volume}:/files"
            );
            if area::is_a_hosts_setting(&source, &target) {
                self.warnings.push(format!("{source} is not in the project's file area: the mount is left out"));
                return Ok(());
            }
            if !create {
                return Err(Failure::invalid(format!(
                    "invalid mount config for type \"bind\": bind source path does not exist: {source} ({hint})"
                )));
            }
            self.warnings.push(format!("{source} was not there and is made as an empty folder: {hint}"));
        }
        if !place.world.volumes.contains_key(&volume) {
            let labels = BTreeMap::from([(project::LABEL.to_owned(), place.project.to_owned())]);
            self.create.insert(volume.clone(), VolumeSpec { driver: "local".into(), labels, ..VolumeSpec::default() });
        }
        self.add(Mount::Bind { area: VolumeName::new(volume), source, target, read_only, create })
    }

    /// A named volume, made when it is missing.
    ///
    /// # Errors
    /// 400 when the name is none, 403 when it is another project's file area, 404 when there is no such driver.
    pub fn named(
        &mut self,
        place: Place<'_>,
        name: &str,
        mut spec: VolumeSpec,
        target: String,
        read_only: bool,
        no_copy: bool,
    ) -> Result<Mount> {
        let name = names::volume_name(name)?;
        let foreign = project::of_area(name).is_some_and(|owner| owner != place.project);
        if place.restricted && foreign {
            return Err(Failure::forbidden(format!("volume {name} is the file area of another project")));
        }
        if !place.world.volumes.contains_key(name) && !self.create.contains_key(name) {
            crate::volumes::check_driver(&spec.driver)?;
            if place.restricted {
                spec.labels.insert(project::LABEL.into(), place.project.into());
            }
            self.create.insert(name.to_owned(), spec);
        }
        let volume = VolumeName::new(name);
        Ok(Mount::Volume { volume, target, read_only, no_copy, anonymous: false, subpath: String::new() })
    }

    /// A volume for this container alone.
    ///
    /// # Errors
    /// 404 when there is no such driver.
    pub fn anonymous(
        &mut self,
        place: Place<'_>,
        target: String,
        read_only: bool,
        no_copy: bool,
        driver: &str,
    ) -> Result<Mount> {
        crate::volumes::check_driver(driver)?;
        let name = names::new_id()?;
        let mut labels = BTreeMap::from([("com.docker.volume.anonymous".to_owned(), String::new())]);
        if place.restricted {
            labels.insert(project::LABEL.into(), place.project.into());
        }
        let spec = VolumeSpec { driver: driver.into(), labels, anonymous: true, ..VolumeSpec::default() };
        self.create.insert(name.clone(), spec);
        let volume = VolumeName::new(name);
        Ok(Mount::Volume { volume, target, read_only, no_copy, anonymous: true, subpath: String::new() })
    }
}

/// Whether it is read-only, and whether the image's files are not copied; the word that is no option.
fn mode(options: &str) -> Result<(bool, bool), &str> {
    let (mut read_only, mut no_copy) = (false, false);
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => read_only = true,
            "nocopy" => no_copy = true,
            // Mean nothing for what a microVM mounts.
            "rw" | "z" | "Z" | "copy" | "cached" | "delegated" | "consistent" | "default" | "private" | "rprivate"
            | "shared" | "rshared" | "slave" | "rslave" | "U" => {}
            _ => return Err(option),
        }
    }
    Ok((read_only, no_copy))
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

/// An absolute path without `.`, `..` and doubled slashes.
#[must_use]
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// A path in the container: absolute, cleaned, and not the root.
///
/// # Errors
/// 400 when it is not.
pub fn absolute(path: &str) -> Result<String> {
    if !path.starts_with('/') || path.len() > 4096 || path.contains('\0') {
        return Err(Failure::invalid(format!("invalid mount path: '{path}' mount path must be absolute")));
    }
    match clean(path).as_str() {
        "/" => Err(Failure::invalid("invalid specification: destination can't be '/'")),
        path => Ok(path.to_owned()),
    }
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
pub mod tests;
