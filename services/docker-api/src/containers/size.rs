//! How much a container's own files take: `SizeRw`, `SizeRootFs`.
//!
//! What the writable layer's file takes on the pool, without what the empty file system takes. The guest's agent is not
//! asked: so a list of a thousand containers costs a thousand looks at a file, whether they run or not.

use crate::App;
use crate::state::{Container, World};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The layer that all are copies of, beside the pods' folders.
const TEMPLATE: &str = ".layer.ext4";

/// What the container has written, bytes.
pub fn own(app: &App, container: &Container) -> u64 {
    let data = &app.config.pods_data;
    let index = container.pod.spec.containers.iter().position(|c| c.id == *container.id()).unwrap_or_default();
    let layer = allocated(&data.join(&container.pod.meta.name).join(format!("rw-{index}.img")));
    layer.saturating_sub(allocated(&data.join(TEMPLATE)))
}

/// Writes both sizes into a container's description.
pub fn fill(app: &App, world: &World, container: &Container, json: &mut Value) {
    let own = own(app, container);
    let image = world.images.get(container.spec().image.as_str()).map_or(0, |i| i.status.size);
    json["SizeRw"] = json!(own);
    json["SizeRootFs"] = json!(image.saturating_add(own));
}

fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_take_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("f")).unwrap();
        file.set_len(1 << 30).unwrap();
        assert!(allocated(&dir.path().join("f")) < 1 << 20);
        assert_eq!(allocated(&dir.path().join("absent")), 0);
    }
}
