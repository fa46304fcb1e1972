//! Plans from resources as the state engine sends them.

use super::*;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use zone::{ImageId, Kind, Resource};

fn resource<K: Kind>(name: &str, spec: &Value, status: &Value) -> Arc<Resource<K>> {
    let meta = json!({"kind": K::NAME, "name": name, "revision": 1, "generation": 1, "created_ns": 1});
    Arc::new(serde_json::from_value(json!({"meta": meta, "spec": spec, "status": status})).unwrap())
}

fn container(id: &str, mounts: &Value) -> Value {
    json!({"id": id, "name": id, "image": "sha256:1", "image_ref": "busybox", "args": ["sh"], "env": [], "cwd": "", "user": "",
        "tty": false, "open_stdin": false, "stdin_once": false, "mounts": mounts})
}

fn view(containers: &Value, ports: &Value) -> View {
    let spec = json!({"containers": containers, "desired": "running", "memory_mib": 256, "vcpus": 2, "hostname": "web",
        "domainname": "lan", "endpoints": ["p.n"], "extra_hosts": ["host.docker.internal:host-gateway", "six:fd00::1"]});
    let disk = json!([{"path": "/zone/images/meta"}, {"path": "/zone/images/layer"}]);
    let endpoint = json!({"ready": true, "tap": "kp0", "mac": "02:42:0a:00:00:02", "ipv4": "10.0.0.2", "prefix": 24,
        "gateway": "10.0.0.1", "gateway_mac": "02:42:0a:00:00:01"});
    let directory = json!({"ready": true, "access": {"type": "directory", "path": "/zone/volumes/data"}});
    let block = json!({"ready": true, "access": {"type": "block", "device": "/dev/zvol/zone/db"}});
    View {
        pod: resource("p", &spec, &json!({"phase": "starting"})),
        endpoints: [(
            EndpointId::new("p.n"),
            resource("p.n", &json!({"pod": "p", "network": "n", "ports": ports}), &endpoint),
        )]
        .into(),
        volumes: [
            (VolumeName::new("data"), resource("data", &json!({"driver": "local"}), &directory)),
            (VolumeName::new("db"), resource("db", &json!({"driver": "lv2"}), &block)),
        ]
        .into(),
        images: [(
            ImageId::new("sha256:1"),
            resource("sha256:1", &json!({"tags": []}), &json!({"ready": true, "disk": disk})),
        )]
        .into(),
    }
}

fn places() -> Places {
    Places { cradle: "/c".into(), run: "/r".into(), data: "/d".into(), console: false }
}

fn passed(plan: &Plan, name: &str) -> (PathBuf, Access) {
    let mut found = plan.files.iter().filter(|file| file.name == name);
    let file = found.next().unwrap();
    assert!(found.next().is_none(), "two files are named {name}");
    (file.path.clone(), file.access)
}

fn mount(volume: &str, target: &str) -> Value {
    json!({"type": "volume", "volume": volume, "target": target, "read_only": false})
}

#[test]
fn disks_stand_where_the_guest_is_told_they_stand() {
    let containers =
        json!([container("p", &json!([mount("db", "/db")])), container("q", &json!([mount("data", "/a")]))]);
    let plan = plan(&view(&containers, &json!([])), &places(), 4, 9).unwrap();
    assert_eq!(plan.bundle.disks.len(), 5);
    assert_eq!(plan.bundle.disks[2].extents.len(), 2);
    assert_eq!((plan.guest.containers[1].image_disk, &plan.guest.containers[1].upper), (2, &Upper::Disk { disk: 3 }));
    assert_eq!(plan.bundle.disks[3].extents[0].path, Path::new("fd:layer1"));
    assert_eq!(passed(&plan, "layer1"), (PathBuf::from("/d/rw-1.img"), Access::Write));
    assert_eq!(passed(&plan, "image1-1"), (PathBuf::from("/zone/images/layer"), Access::Read));
    assert!(matches!(&plan.guest.containers[0].mounts[0], GuestMount::Block { disk: 4, copy_up: true, .. }));
    assert_eq!(plan.bundle.disks[4].extents[0].path, Path::new("fd:block0"));
    assert_eq!(passed(&plan, "block0"), (PathBuf::from("/dev/zvol/zone/db"), Access::Write));
    assert_eq!(plan.blocks, [VolumeName::new("db")]);
    assert_eq!((plan.guest.run, plan.guest.now_ns), (4, 9));
}

#[test]
fn a_directory_mounted_twice_has_one_file_server() {
    let containers = json!([container("p", &json!([mount("data", "/a"), mount("data", "/b")]))]);
    let plan = plan(&view(&containers, &json!([])), &places(), 1, 0).unwrap();
    assert_eq!(
        plan.dirs,
        [SharedDir { dir: "/zone/volumes/data".into(), socket: "/r/fs-0.sock".into(), part: None, read_only: false }]
    );
    assert_eq!(plan.bundle.shares, [Share { tag: "vol0".into(), socket: "fd:share0".into() }]);
    assert_eq!(passed(&plan, "share0").0, Path::new("/r/fs-0.sock"));
    assert_eq!(plan.guest.containers[0].mounts.len(), 2);
}

#[test]
fn the_guest_knows_its_gateway_and_where_to_ask() {
    let plan = plan(&view(&json!([container("p", &json!([]))]), &json!([])), &places(), 1, 0).unwrap();
    let hosts: Vec<(&str, String)> = plan.guest.hosts.iter().map(|h| (h.address.as_str(), h.names.join(" "))).collect();
    assert_eq!(hosts, [("10.0.0.1", "host.docker.internal".to_owned()), ("fd00::1", "six".to_owned())]);
    assert_eq!(plan.guest.dns.servers, ["10.0.0.1"]);
    assert!(plan.guest.nics[0].default_route);
    assert_eq!(
        plan.bundle.nets,
        [Net { tap: "kp0".into(), mac: "02:42:0a:00:00:02".into(), tun: Some("fd:tun0".into()), ..Net::default() }]
    );
}

#[test]
fn what_is_missing_is_named_and_what_waiting_cannot_mend_fails() {
    let containers = json!([container("p", &json!([mount("nope", "/a")]))]);
    // It may have been made together with the pod and be told later.
    let missing = plan(&view(&containers, &json!([])), &places(), 1, 0).unwrap_err();
    assert_eq!(missing, Needs::Waiting("get nope: no such volume".into()));
    let ports = json!([{"protocol": "tcp", "container_port": 80}]);
    let waiting = plan(&view(&json!([container("p", &json!([]))]), &ports), &places(), 1, 0).unwrap_err();
    assert!(matches!(&waiting, Needs::Waiting(why) if why.contains("ports")), "{waiting:?}");
    let mut gone = view(&json!([container("p", &json!([]))]), &json!([]));
    gone.images.clear();
    assert_eq!(plan(&gone, &places(), 1, 0).unwrap_err(), Needs::Failed("No such image: busybox".into()));
}

#[test]
fn the_monitor_is_given_everything_and_opens_nothing() {
    let containers = json!([container("p", &json!([mount("db", "/db"), mount("data", "/a")]))]);
    let plan = plan(&view(&containers, &json!([])), &Places { console: true, ..places() }, 1, 0).unwrap();
    let text = serde_json::to_string(&plan.bundle).unwrap();
    assert!(!text.contains("\"/"), "a path is left in {text}");
    for file in &plan.files {
        assert!(file.name == BUNDLE || text.contains(&format!("\"fd:{}\"", file.name)), "{} is not used", file.name);
    }
}
