//! The plan as a whole: what it chooses, keeps and refuses.

use super::*;
use zone::endpoint::{Endpoint, EndpointSpec, Protocol, PublishedPort};
use zone::network::{Network, NetworkSpec};
use zone::pod::{PodSpec, PodStatus};
use zone::{Meta, NetworkId, PodId, Resource};

#[derive(Default)]
struct Zone {
    resources: Resources,
    world: World,
    clock: u64,
}

impl Zone {
    fn meta(&mut self, name: &str) -> Meta {
        self.clock += 1;
        Meta { name: name.into(), created_ns: self.clock, ..Meta::default() }
    }

    fn network(&mut self, id: &str, subnet: Option<&str>) -> &mut Resource<Network> {
        let spec = NetworkSpec { name: id.into(), subnet: subnet.map(Into::into), ..NetworkSpec::default() };
        let resource = Resource { meta: self.meta(id), spec, status: NetworkStatus::default() };
        self.resources.networks.entry(id.into()).or_insert(resource)
    }

    fn pod(&mut self, id: &str, desired: Desired) -> &mut Resource<Pod> {
        let spec = PodSpec {
            containers: Vec::new(),
            desired,
            starts: u64::from(desired == Desired::Running),
            files_asks: 0,
            restart_policy: zone::pod::RestartPolicy::No,
            auto_remove: false,
            stop_grace_s: 10,
            memory_mib: 64,
            vcpus: 1,
            disk_read: zone::bundle::Rate::default(),
            disk_write: zone::bundle::Rate::default(),
            cpu: zone::pod::CpuLimits::default(),
            endpoints: Vec::new(),
            hostname: String::new(),
            domainname: String::new(),
            link_hosts: Vec::new(),
            extra_hosts: Vec::new(),
            dns: Vec::new(),
            dns_search: Vec::new(),
            dns_options: Vec::new(),
        };
        let status = PodStatus { uid: Some(200_000), ..PodStatus::default() };
        let meta = self.meta(id);
        self.resources.pods.entry(id.into()).or_insert(Resource { meta, spec, status })
    }

    fn endpoint(&mut self, pod: &str, network: &str) -> &mut Resource<Endpoint> {
        let name = format!("{pod}.{network}");
        let spec = EndpointSpec {
            pod: PodId::new(pod),
            network: NetworkId::new(network),
            names: vec![pod.to_uppercase()],
            requested_ipv4: None,
            requested_mac: None,
            ports: Vec::new(),
        };
        let meta = self.meta(&name);
        self.resources.endpoints.entry(name).or_insert(Resource { meta, spec, status: EndpointStatus::default() })
    }

    /// Plans, and writes the statuses as the reconciler does.
    fn settle(&mut self) -> Plan {
        let plan = plan(&self.resources, &self.world);
        for (id, status) in &plan.network_status {
            self.resources.networks.get_mut(id).unwrap().status = status.clone();
        }
        for (id, status) in &plan.endpoint_status {
            self.resources.endpoints.get_mut(id).unwrap().status = status.clone();
        }
        plan
    }
}

fn publish(container_port: u16, host_port: Option<u16>) -> PublishedPort {
    PublishedPort { protocol: Protocol::Tcp, container_port, host_ip: None, host_port }
}

#[test]
fn subnets_come_from_the_pool_and_avoid_the_hosts_routes() {
    let mut zone = Zone::default();
    zone.world.host_subnets = vec!["172.20.0.0/20".parse().unwrap(), "172.22.0.0/24".parse().unwrap()];
    zone.network("bridge", None);
    zone.network("a", None);
    zone.network("b", None);
    let plan = zone.settle();
    assert_eq!(plan.network_status["bridge"].subnet, "172.21.0.0/16");
    assert_eq!(plan.network_status["a"].subnet, "172.22.1.0/24");
    assert_eq!(plan.network_status["a"].gateway, Some(Ipv4Addr::new(172, 22, 1, 1)));
    assert_eq!(plan.network_status["b"].subnet, "172.22.2.0/24");
}

#[test]
fn a_subnet_that_overlaps_is_refused_in_dockers_words() {
    let mut zone = Zone::default();
    zone.world.host_subnets = vec!["192.168.1.0/24".parse().unwrap()];
    zone.network("a", Some("10.1.0.0/16"));
    zone.network("b", Some("10.1.2.0/24"));
    zone.network("c", Some("192.168.0.0/16"));
    zone.network("d", Some("fd00::/64"));
    let plan = zone.settle();
    assert!(plan.network_status["a"].ready);
    for id in ["b", "c"] {
        assert_eq!(
            plan.network_status[id].error.as_deref(),
            Some("Pool overlaps with other one on this address space")
        );
    }
    assert!(plan.network_status["d"].error.as_deref().unwrap().contains("fd00::/64"));
}

#[test]
fn planning_again_changes_nothing_even_when_the_world_did() {
    let mut zone = Zone::default();
    zone.network("n", None);
    zone.pod("p", Desired::Running);
    zone.endpoint("p", "n").spec.ports = vec![publish(80, None)];
    let first = zone.settle();
    zone.world.host_subnets = vec!["172.16.0.0/12".parse().unwrap()];
    let again = zone.settle();
    assert_eq!(first.endpoint_status, again.endpoint_status);
    assert_eq!(first.network_status, again.network_status);
    assert_eq!(first.taps, again.taps);
}

#[test]
fn addresses_are_the_next_free_one_or_the_one_asked_for() {
    let mut zone = Zone::default();
    zone.network("n", Some("10.0.0.0/29"));
    zone.pod("p", Desired::Stopped);
    zone.endpoint("fixed", "n").spec.requested_ipv4 = Some(Ipv4Addr::new(10, 0, 0, 3));
    zone.endpoint("p", "n");
    zone.endpoint("q", "n");
    zone.endpoint("twice", "n").spec.requested_ipv4 = Some(Ipv4Addr::new(10, 0, 0, 3));
    zone.endpoint("gateway", "n").spec.requested_ipv4 = Some(Ipv4Addr::new(10, 0, 0, 1));
    zone.endpoint("outside", "n").spec.requested_ipv4 = Some(Ipv4Addr::new(10, 0, 1, 1));
    let plan = zone.settle();
    let address = |id: &str| plan.endpoint_status[&format!("{id}.n")].ipv4.map(|a| a.octets()[3]);
    assert_eq!((address("fixed"), address("p"), address("q")), (Some(3), Some(2), Some(4)));
    for id in ["twice", "gateway", "outside"] {
        assert!(plan.endpoint_status[&format!("{id}.n")].error.is_some(), "{id}");
    }
    assert_eq!(plan.endpoint_status["p.n"].mac, "02:42:0a:00:00:02");
}

#[test]
fn addresses_are_picked_from_the_range_and_never_an_auxiliary_one() {
    let mut zone = Zone::default();
    let spec = &mut zone.network("n", Some("10.0.0.0/24")).spec;
    spec.ip_range = Some("10.0.0.252/30".into());
    spec.aux_addresses.insert("router".into(), Ipv4Addr::new(10, 0, 0, 253));
    for pod in ["p", "q", "r"] {
        zone.endpoint(pod, "n");
    }
    zone.endpoint("s", "n").spec.requested_ipv4 = Some(Ipv4Addr::new(10, 0, 0, 9));
    let plan = zone.settle();
    let address = |id: &str| plan.endpoint_status[&format!("{id}.n")].ipv4.map(|a| a.octets()[3]);
    assert_eq!((address("p"), address("q"), address("r"), address("s")), (Some(252), Some(254), None, Some(9)));
}

#[test]
fn a_full_network_says_so() {
    let mut zone = Zone::default();
    zone.network("n", Some("10.0.0.0/30"));
    zone.endpoint("a", "n");
    zone.endpoint("b", "n");
    let plan = zone.settle();
    assert!(plan.endpoint_status["a.n"].error.is_none());
    assert!(plan.endpoint_status["b.n"].error.as_deref().unwrap().contains("no available IPv4 addresses"));
}

#[test]
fn a_tap_waits_for_the_pods_uid_and_names_for_its_start() {
    let mut zone = Zone::default();
    zone.network("n", None);
    zone.pod("p", Desired::Stopped).status.uid = None;
    zone.endpoint("p", "n");
    let plan = zone.settle();
    assert!(plan.taps.is_empty() && !plan.endpoint_status["p.n"].ready);
    zone.resources.pods.get_mut("p").unwrap().status.uid = Some(200_007);
    let plan = zone.settle();
    assert!(plan.endpoint_status["p.n"].ready);
    assert_eq!(plan.taps[&plan.endpoint_status["p.n"].tap].uid, 200_007);
    let gateway = plan.endpoint_status["p.n"].gateway.unwrap();
    assert!(plan.names[&gateway].addresses.is_empty());
    zone.resources.pods.get_mut("p").unwrap().spec.desired = Desired::Running;
    zone.resources.pods.get_mut("p").unwrap().spec.starts = 1;
    let plan = zone.settle();
    assert!(plan.names[&gateway].addresses.contains_key("p"), "lower case");
}

#[test]
fn ports_are_bound_while_the_pod_is_to_run_and_released_after() {
    let mut zone = Zone::default();
    zone.network("n", None);
    for pod in ["p", "q"] {
        zone.pod(pod, Desired::Running);
        zone.endpoint(pod, "n").spec.ports = vec![publish(80, Some(8080)), publish(81, None)];
    }
    let plan = zone.settle();
    assert_eq!(plan.endpoint_status["p.n"].ports[0].host_port, 8080);
    assert_eq!(plan.endpoint_status["p.n"].ports[1].host_port, 32_768);
    let refused = &plan.endpoint_status["q.n"];
    assert_eq!(refused.error.as_deref(), Some("Bind for 0.0.0.0:8080 failed: port is already allocated"));
    assert!(!refused.ready && refused.ports.is_empty());
    let pod = zone.resources.pods.get_mut("p").unwrap();
    (pod.status.phase, pod.status.starts) = (Phase::Exited, 1);
    let plan = zone.settle();
    assert!(plan.endpoint_status["p.n"].ready && plan.endpoint_status["p.n"].ports.is_empty());
    assert_eq!(plan.endpoint_status["q.n"].ports.len(), 2);
}

#[test]
fn a_port_of_the_machine_itself_is_taken_but_not_the_name_servers() {
    let mut zone = Zone::default();
    zone.network("n", None);
    zone.settle();
    let listen = |ip: &str| BTreeSet::from([ip.parse().unwrap()]);
    zone.world.host_ports.insert((Protocol::Tcp, 2376), listen("::"));
    zone.world.host_ports.insert((Protocol::Tcp, 53), listen("172.21.0.1"));
    zone.world.host_ports.insert((Protocol::Tcp, 32_768), listen("127.0.0.1"));
    for (pod, port) in [("a", Some(2376)), ("b", Some(53)), ("c", None)] {
        zone.pod(pod, Desired::Running);
        zone.endpoint(pod, "n").spec.ports = vec![publish(80, port)];
    }
    let plan = zone.settle();
    assert!(plan.endpoint_status["a.n"].error.as_deref().unwrap().contains("0.0.0.0:2376"));
    assert_eq!(plan.endpoint_status["b.n"].ports[0].host_port, 53);
    assert_eq!(plan.endpoint_status["c.n"].ports[0].host_port, 32_769);
}

#[test]
fn a_missing_network_is_named() {
    let mut zone = Zone::default();
    zone.endpoint("p", "gone");
    assert_eq!(zone.settle().endpoint_status["p.gone"].error.as_deref(), Some("network gone not found"));
}

#[test]
fn mac_addresses_of_stations_only() {
    assert_eq!(parse_mac("02:42:ac:11:00:02"), Some([2, 0x42, 0xac, 0x11, 0, 2]));
    for text in ["", "02:42", "01:00:5e:00:00:01", "02:42:ac:11:00:02:03", "zz:42:ac:11:00:02"] {
        assert_eq!(parse_mac(text), None, "{text}");
    }
}
