//! `HostConfig.Mounts`: one entry each, checked with Docker Engine's own sentences.

use super::mounts::{Place, Plan, absolute};
use super::request::MountRequest;
use crate::errors::{Failure, Result};
use zone::pod::Mount;
use zone::volume::VolumeSpec;

const PROPAGATIONS: [&str; 7] = ["", "private", "rprivate", "shared", "rshared", "slave", "rslave"];

/// Takes an entry into the plan.
///
/// # Errors
/// 400 when it is wrong, 404 when it names an image that is not there.
pub fn add(plan: &mut Plan, place: Place<'_>, mount: &MountRequest) -> Result<()> {
    let kind = if mount.kind.is_empty() { "volume" } else { mount.kind.as_str() };
    let wrong = |what: &str| Failure::invalid(format!("invalid mount config for type \"{kind}\": {what}"));
    if !["bind", "volume", "tmpfs", "image"].contains(&kind) {
        return Err(wrong(match kind {
            "cluster" | "npipe" => "there is no such mount on this engine",
            _ => "mount type unknown",
        }));
    }
    if mount.target.is_empty() {
        return Err(wrong("field Target must not be empty"));
    }
    let target = absolute(&mount.target).map_err(|f| wrong(&f.message))?;
    if let Some(field) = foreign_field(kind, mount) {
        return Err(wrong(&format!("field {field} must not be specified")));
    }
    let source = mount.source.as_deref().unwrap_or_default();
    let read_only = mount.read_only.unwrap_or_default();
    match kind {
        "bind" => {
            if source.is_empty() {
                return Err(wrong("field Source must not be empty"));
            }
            let options = mount.bind_options.clone().unwrap_or_default();
            let propagation = options.propagation.unwrap_or_default();
            if !PROPAGATIONS.contains(&propagation.as_str()) {
                return Err(wrong(&format!("invalid propagation mode: {propagation}")));
            }
            if !source.starts_with('/') {
                return Err(wrong(&format!("invalid mount path: '{source}' mount path must be absolute")));
            }
            plan.host_path(place, source, target, read_only, options.create_mountpoint.unwrap_or_default())
        }
        "tmpfs" => {
            if !source.is_empty() {
                return Err(wrong("field Source must not be specified"));
            }
            let made = tmpfs(mount, target).map_err(|what| wrong(&what))?;
            plan.add(made)
        }
        "image" => {
            if source.is_empty() {
                return Err(wrong("field Source must not be empty"));
            }
            let subpath =
                subpath(mount.image_options.as_ref().and_then(|o| o.subpath.as_deref())).map_err(|w| wrong(&w))?;
            let image = crate::images::find(place.world, source)?;
            plan.add(Mount::Image { image: zone::ImageId::new(&image.meta.name), target, subpath })
        }
        _ => volume(plan, place, mount, target).and_then(|made| plan.add(made)),
    }
}

/// A field that belongs to another type.
fn foreign_field(kind: &str, mount: &MountRequest) -> Option<&'static str> {
    let fields = [
        ("bind", "BindOptions", mount.bind_options.is_some()),
        ("volume", "VolumeOptions", mount.volume_options.is_some()),
        ("tmpfs", "TmpfsOptions", mount.tmpfs_options.is_some()),
        ("image", "ImageOptions", mount.image_options.is_some()),
    ];
    fields.into_iter().find(|(owner, _, there)| *there && *owner != kind).map(|(_, field, _)| field)
}

fn volume(plan: &mut Plan, place: Place<'_>, mount: &MountRequest, target: String) -> Result<Mount> {
    let wrong = |what: &str| Failure::invalid(format!("invalid mount config for type \"volume\": {what}"));
    let options = mount.volume_options.clone().unwrap_or_default();
    let wanted = subpath(options.subpath.as_deref()).map_err(|w| wrong(&w))?;
    let config = options.driver_config.unwrap_or_default();
    let driver = config.name.filter(|n| !n.is_empty()).unwrap_or_else(|| "local".into());
    let (read_only, no_copy) = (mount.read_only.unwrap_or_default(), options.no_copy.unwrap_or_default());
    let mut made = match mount.source.as_deref().unwrap_or_default() {
        "" if read_only => return Err(wrong("must not set ReadOnly mode when using anonymous volumes")),
        "" if !wanted.is_empty() => return Err(wrong("must not set Subpath when using anonymous volumes")),
        "" => plan.anonymous(place, target, read_only, no_copy, &driver)?,
        name => {
            let spec = VolumeSpec {
                driver,
                options: config.options.unwrap_or_default(),
                labels: options.labels.unwrap_or_default(),
                anonymous: false,
                rollback: None,
            };
            plan.named(place, name, spec, target, read_only, no_copy)?
        }
    };
    if let Mount::Volume { subpath, .. } = &mut made {
        *subpath = wanted;
    }
    Ok(made)
}

/// A path within a volume or image, relative, that leads nowhere else.
fn subpath(wanted: Option<&str>) -> Result<String, String> {
    let wanted = wanted.unwrap_or_default();
    let inside = !wanted.starts_with('/') && wanted.split('/').all(|part| part != "..") && !wanted.contains('\0');
    if inside && wanted.len() <= 4096 {
        return Ok(wanted.split('/').filter(|p| !p.is_empty() && *p != ".").collect::<Vec<_>>().join("/"));
    }
    Err(format!("invalid subpath \"{wanted}\": subpath must be a relative path within the volume"))
}

fn tmpfs(mount: &MountRequest, target: String) -> Result<Mount, String> {
    let options = mount.tmpfs_options.clone().unwrap_or_default();
    let mut words: Vec<String> = options.options.iter().flatten().map(|pair| pair.join("=")).collect();
    if mount.read_only.unwrap_or_default() {
        words.push("ro".into());
    }
    let size = options.size_bytes.unwrap_or_default();
    let size = u64::try_from(size).map_err(|_| format!("invalid tmpfs size {size}"))?;
    let mode = options.mode.filter(|m| *m <= 0o7777).or(options.mode.map(|m| m & 0o7777)).unwrap_or_default();
    match super::tmpfs::mount(&target, &words.join(",")).map_err(|f| f.message)? {
        Mount::Tmpfs { options, .. } => Ok(Mount::Tmpfs { target, size, mode, options }),
        other => Ok(other),
    }
}
