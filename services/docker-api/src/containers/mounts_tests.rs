//! What mounts of a create become, and what is refused in Docker's words.

use super::*;
use serde_json::{Value, json};

/// A plan of a request's host configuration, in a zone of the sample's resources and a file area with `/srv/www`.
pub fn planned(host: &Value) -> Result<Plan> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("files-shop/srv/www")).unwrap();
    let world = crate::containers::sample();
    let request: Create = serde_json::from_value(json!({ "HostConfig": host })).unwrap();
    let place = Place { world: &world, volumes: dir.path(), project: "shop", restricted: false };
    plan(place, &request, &BTreeSet::from(["/data".to_owned()]))
}

fn volume(name: &str, target: &str, read_only: bool, no_copy: bool, subpath: &str) -> Mount {
    let (volume, target) = (VolumeName::new(name), target.into());
    Mount::Volume { volume, target, read_only, no_copy, anonymous: false, subpath: subpath.into() }
}

#[test]
fn a_named_bind_covers_a_declared_volume() {
    let plan = planned(&json!({"Binds": ["db:/data/../data:ro,nocopy"]})).unwrap();
    assert_eq!(plan.create.keys().collect::<Vec<_>>(), ["db"]);
    assert_eq!(plan.mounts, [volume("db", "/data", true, true, "")]);
}

#[test]
fn a_declared_volume_gets_an_anonymous_one() {
    let plan = planned(&json!({"Tmpfs": {"/run": "size=1m,noexec"}})).unwrap();
    assert_eq!(plan.create.len(), 1);
    assert!(plan.create.values().all(|v| v.anonymous));
    let run = Mount::Tmpfs { target: "/run".into(), size: 1 << 20, mode: 0, options: "noexec".into() };
    assert!(plan.mounts.contains(&run));
}

#[test]
fn a_bind_source_is_a_path_in_the_projects_file_area() {
    let plan = planned(&json!({"Binds": ["/srv//www/.:/data:ro"]})).unwrap();
    let (area, source) = (VolumeName::new("files-shop"), "/srv/www".to_owned());
    let wanted = Mount::Bind { area, source, target: "/data".into(), read_only: true, create: true };
    assert_eq!((plan.mounts, plan.warnings.len()), (vec![wanted], 0));
    assert_eq!(plan.create["files-shop"].labels["kr.project"], "shop");
}

#[test]
fn v_makes_what_is_missing_and_says_so_and_mount_refuses_it() {
    let plan = planned(&json!({"Binds": ["/home/me/x:/data"]})).unwrap();
    assert!(plan.warnings[0].contains("/home/me/x was not there"), "{:?}", plan.warnings);
    let bind = |options: Value| json!({"Mounts": [{"Type": "bind", "Source": "/home/me/x", "Target": "/data", "BindOptions": options}]});
    let failure = planned(&bind(json!({}))).unwrap_err();
    assert_eq!(failure.status, 400);
    for part in ["bind source path does not exist: /home/me/x", "docker client's machine", "files-shop"] {
        assert!(failure.message.contains(part), "{failure}");
    }
    assert!(planned(&bind(json!({"CreateMountpoint": true}))).is_ok());
}

#[test]
fn the_docker_socket_is_the_api_and_the_guests_own_places_are_left_out() {
    let host = json!({"Binds": ["/var/run/docker.sock:/var/run/docker.sock:ro", "/sys/fs/cgroup:/sys/fs/cgroup", "/etc/localtime:/etc/localtime:ro", "x:/data"]});
    let plan = planned(&host).unwrap();
    assert!(plan.mounts.contains(&Mount::DockerSocket { target: "/var/run/docker.sock".into() }));
    assert_eq!((plan.mounts.len(), plan.warnings.len()), (2, 2));
}

#[test]
fn a_part_of_a_volume_and_an_images_files_can_be_mounted() {
    let host = json!({"Mounts": [
        {"Type": "volume", "Source": "db", "Target": "/data", "VolumeOptions": {"Subpath": "a//b/.", "NoCopy": true}},
        {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 4096, "Mode": 448, "Options": [["noexec"], ["uid", "7"]]}}]});
    let plan = planned(&host).unwrap();
    let tmpfs = Mount::Tmpfs { target: "/t".into(), size: 4096, mode: 0o700, options: "noexec,uid=7".into() };
    assert_eq!(plan.mounts, [volume("db", "/data", false, true, "a/b"), tmpfs]);
}

#[test]
fn what_cannot_be_mounted_is_refused_in_dockers_words() {
    for (host, part) in [
        (json!({"Binds": ["a:b"]}), "invalid volume specification: 'a:b'"),
        (json!({"Binds": ["a:/"]}), "destination can't be '/'"),
        (json!({"Binds": [":/b"]}), "invalid volume specification"),
        (json!({"Binds": ["a:/b:wrong"]}), "invalid mode: wrong"),
        (json!({"Binds": ["a:/b", "c:/b"]}), "Duplicate mount point: /b"),
        (json!({"Binds": ["./x:/b"]}), "If you intended to pass a host directory, use absolute path"),
        (json!({"Binds": ["a:/b"], "Tmpfs": {"/b": ""}}), "Duplicate mount point: /b"),
        (json!({"Mounts": [{"Type": "volume", "Target": "x"}]}), "must be absolute"),
        (json!({"Mounts": [{"Type": "volume", "Target": ""}]}), "field Target must not be empty"),
        (json!({"Mounts": [{"Type": "volume", "Target": "/x", "ReadOnly": true}]}), "anonymous volumes"),
        (
            json!({"Mounts": [{"Type": "volume", "Source": "a", "Target": "/x", "BindOptions": {}}]}),
            "field BindOptions must not be specified",
        ),
        (
            json!({"Mounts": [{"Type": "volume", "Source": "a", "Target": "/x", "VolumeOptions": {"Subpath": "../y"}}]}),
            "relative path within the volume",
        ),
        (json!({"Mounts": [{"Type": "bind", "Target": "/x"}]}), "field Source must not be empty"),
        (json!({"Mounts": [{"Type": "bind", "Source": "x", "Target": "/x"}]}), "must be absolute"),
        (
            json!({"Mounts": [{"Type": "bind", "Source": "/x", "Target": "/x", "BindOptions": {"Propagation": "up"}}]}),
            "invalid propagation mode: up",
        ),
        (json!({"Mounts": [{"Type": "tmpfs", "Source": "x", "Target": "/x"}]}), "field Source must not be specified"),
        (json!({"Mounts": [{"Type": "magic", "Target": "/x"}]}), "mount type unknown"),
    ] {
        let failure = planned(&host).unwrap_err();
        assert!(failure.status == 400 && failure.message.contains(part), "{host}: {failure}");
    }
}

#[test]
fn a_restricted_client_cannot_take_another_projects_file_area() {
    let world = World::default();
    let request: Create = serde_json::from_value(json!({"HostConfig": {"Binds": ["files-other:/x"]}})).unwrap();
    let place = Place { world: &world, volumes: Path::new("/nonexistent"), project: "shop", restricted: true };
    assert_eq!(plan(place, &request, &BTreeSet::new()).unwrap_err().status, 403);
    let request: Create = serde_json::from_value(json!({"HostConfig": {"Binds": ["db:/x"]}})).unwrap();
    let plan = plan(place, &request, &BTreeSet::new()).unwrap();
    assert_eq!(plan.create["db"].labels["kr.project"], "shop");
}
