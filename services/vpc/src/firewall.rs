//! The rules between networks: one nftables table whose rules never change; what changes are elements of its sets and maps.
//!
//! ```text
//! raw          from a tap: only its own MAC and address, no IPv6, nothing to 127/8 but 127.0.0.11's name server;
//!              mark = the network's gateway
//! prenat       127.0.0.11: the network's gateway; to an address of the machine: published ports go to their pod (outnat: the same, from the machine itself)
//! forward      inside a network: yes; out of a network that is not internal: yes; to a published port: yes; else no
//! input        from a tap to the machine: its own gateway's name server, ping; else no
//! postnat      out: the machine's address; between pods through a published port, and from 127/8: the machine's
//! ```
//! Everything is JSON (libnftables-json(5)); `nft` runs once per change, and a change is one transaction.

#![expect(clippy::needless_pass_by_value, reason = "pieces of JSON are made to be put into larger ones")]

use crate::links::TAP_GROUP;
use crate::plan::{Plan, format_mac};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use zone::endpoint::RESOLVER;

const TABLE: &str = "kraud";

/// The elements of all sets and maps: the set's name and the element in JSON.
pub type Elements = BTreeSet<(&'static str, String)>;

/// What the kernel should know of a plan.
#[must_use]
pub fn elements(plan: &Plan) -> Elements {
    let mut all = Elements::new();
    let mut add = |set, element: Value| {
        all.insert((set, element.to_string()));
    };
    for (gateway, network) in &plan.networks {
        let mark = u32::from(*gateway);
        add("gateways", json!({"concat": [mark, gateway]}));
        add("resolvers", json!([mark, gateway]));
        add("gateway_addresses", json!(gateway));
        if !network.internal {
            add("uplinked", json!(mark));
        }
    }
    for (name, tap) in &plan.taps {
        let mark = u32::from(tap.gateway);
        add("sources", json!({"concat": [name, format_mac(tap.mac), tap.address]}));
        add("marks", json!([name, mark]));
        add("inside", json!({"concat": [mark, name]}));
        for port in &tap.ports {
            let protocol = port.protocol.as_str();
            if port.host_ip.is_unspecified() {
                let key = json!({"concat": [protocol, port.host_port]});
                add("published_address", json!([key, tap.address]));
                add("published_port", json!([key, port.container_port]));
            } else {
                let key = json!({"concat": [port.host_ip, protocol, port.host_port]});
                add("published_at_address", json!([key, tap.address]));
                add("published_at_port", json!([key, port.container_port]));
            }
        }
    }
    all
}

/// The whole table anew, in place of the old one, with no moment between the two.
#[must_use]
pub fn replace(elements: &Elements) -> Value {
    let table = json!({"table": {"family": "inet", "name": TABLE}});
    let mut commands = vec![json!({"add": table}), json!({"delete": table}), json!({"add": table})];
    commands.extend(sets().into_iter().chain(chains()).map(|object| json!({"add": object})));
    commands.extend(rules().into_iter().map(|rule| json!({"add": rule})));
    commands.extend(elements.iter().map(|element| change("add", element)));
    json!({"nftables": commands})
}

/// What leads from one set of elements to another; none when they are the same.
#[must_use]
pub fn difference(from: &Elements, to: &Elements) -> Option<Value> {
    // Deletions first: a map's key may come back with another value.
    let gone = from.difference(to).map(|element| change("delete", element));
    let commands: Vec<Value> = gone.chain(to.difference(from).map(|element| change("add", element))).collect();
    if commands.is_empty() { None } else { Some(json!({"nftables": commands})) }
}

/// Carries out a transaction.
///
/// # Errors
/// What `nft` said.
pub async fn apply(commands: &Value) -> std::io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-j", "-f", "-"])
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| std::io::Error::new(e.kind(), format!("cannot run nft: {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(commands.to_string().as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).chars().take(1000).collect();
    Err(std::io::Error::other(format!("nft ended with {}: {}", output.status, said.trim_end())))
}

fn change(verb: &str, (set, element): &(&'static str, String)) -> Value {
    // What was made by `to_string` reads back; a set and a map are named alike here.
    let element: Value = serde_json::from_str(element).unwrap_or_default();
    json!({verb: {"element": {"family": "inet", "table": TABLE, "name": set, "elem": [element]}}})
}

fn sets() -> Vec<Value> {
    let set = |name: &str, kind: Value| json!({"set": {"family": "inet", "table": TABLE, "name": name, "type": kind}});
    let map = |name: &str, kind: Value, to: &str| json!({"map": {"family": "inet", "table": TABLE, "name": name, "type": kind, "map": to}});
    vec![
        set("sources", json!(["ifname", "ether_addr", "ipv4_addr"])),
        map("marks", json!("ifname"), "mark"),
        set("inside", json!(["mark", "ifname"])),
        set("uplinked", json!("mark")),
        set("gateways", json!(["mark", "ipv4_addr"])),
        map("resolvers", json!("mark"), "ipv4_addr"),
        set("gateway_addresses", json!("ipv4_addr")),
        // Two maps for one fact: nft's JSON knows no map to a pair.
        map("published_address", json!(["inet_proto", "inet_service"]), "ipv4_addr"),
        map("published_port", json!(["inet_proto", "inet_service"]), "inet_service"),
        map("published_at_address", json!(["ipv4_addr", "inet_proto", "inet_service"]), "ipv4_addr"),
        map("published_at_port", json!(["ipv4_addr", "inet_proto", "inet_service"]), "inet_service"),
    ]
}

fn chains() -> Vec<Value> {
    let chain = |name: &str, kind: &str, hook: &str, priority: i32, policy: &str| {
        json!({"chain": {
            "family": "inet", "table": TABLE, "name": name, "type": kind, "hook": hook, "prio": priority, "policy": policy
        }})
    };
    vec![
        chain("raw", "filter", "prerouting", -300, "accept"),
        chain("prenat", "nat", "prerouting", -100, "accept"),
        chain("outnat", "nat", "output", -100, "accept"),
        chain("postnat", "nat", "postrouting", 100, "accept"),
        chain("forward", "filter", "forward", 0, "drop"),
        chain("input", "filter", "input", 0, "accept"),
    ]
}

fn rules() -> Vec<Value> {
    let from_tap = || is(meta("iifgroup"), json!(TAP_GROUP));
    let to_tap = || is(meta("oifgroup"), json!(TAP_GROUP));
    let not_to_tap = || not(meta("oifgroup"), json!(TAP_GROUP));
    let loopback = || json!({"prefix": {"addr": "127.0.0.0", "len": 8}});
    let states = || {
        json!({"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [
            ["established", {"accept": null}], ["related", {"accept": null}], ["invalid", {"drop": null}]
        ]}}})
    };
    let translated = || json!({"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}});
    let dns = || json!({"set": [{"concat": ["udp", 53]}, {"concat": ["tcp", 53]}]});
    let (accept, drop, masquerade) = (json!({"accept": null}), json!({"drop": null}), json!({"masquerade": null}));
    let mark_by_tap =
        json!({"mangle": {"key": meta("mark"), "value": {"map": {"key": meta("iifname"), "data": "@marks"}}}});
    let resolver = json!({"map": {"key": meta("mark"), "data": "@resolvers"}});
    let to_resolver = json!({"dnat": {"family": "ip", "addr": resolver}});
    let mut rules = vec![
        rule("raw", vec![from_tap(), is(meta("nfproto"), json!("ipv6")), drop.clone()]),
        // Of the loopback only the name server's address, and of that only the name server.
        rule(
            "raw",
            vec![
                from_tap(),
                is(payload("ip", "daddr"), loopback()),
                not(payload("ip", "daddr"), json!(RESOLVER)),
                drop.clone(),
            ],
        ),
        rule(
            "raw",
            vec![
                from_tap(),
                is(payload("ip", "daddr"), json!(RESOLVER)),
                not(concat(vec![meta("l4proto"), payload("th", "dport")]), dns()),
                drop.clone(),
            ],
        ),
        rule(
            "raw",
            vec![
                from_tap(),
                not(
                    concat(vec![meta("iifname"), payload("ether", "saddr"), payload("ip", "saddr")]),
                    json!("@sources"),
                ),
                drop.clone(),
            ],
        ),
        rule("raw", vec![mark_by_tap]),
        rule("prenat", vec![from_tap(), is(payload("ip", "daddr"), json!(RESOLVER)), to_resolver]),
        rule("forward", vec![states()]),
        rule("forward", vec![is(concat(vec![meta("mark"), meta("oifname")]), json!("@inside")), accept.clone()]),
        rule("forward", vec![from_tap(), not(meta("mark"), json!("@uplinked")), drop.clone()]),
        rule("forward", vec![from_tap(), not_to_tap(), accept.clone()]),
        rule("forward", vec![to_tap(), translated(), accept.clone()]),
        rule("input", vec![not(meta("iifgroup"), json!(TAP_GROUP)), accept.clone()]),
        rule("input", vec![states()]),
        rule(
            "input",
            vec![
                is(concat(vec![meta("mark"), payload("ip", "daddr")]), json!("@gateways")),
                is(concat(vec![meta("l4proto"), payload("th", "dport")]), dns()),
                accept.clone(),
            ],
        ),
        rule("input", vec![is(payload("icmp", "type"), json!("echo-request")), accept]),
        rule("input", vec![drop]),
        rule("postnat", vec![to_tap(), is(payload("ip", "saddr"), loopback()), masquerade.clone()]),
        rule("postnat", vec![to_tap(), from_tap(), translated(), masquerade.clone()]),
        rule("postnat", vec![is(meta("mark"), json!("@uplinked")), not_to_tap(), masquerade]),
    ];
    for chain in ["prenat", "outnat"] {
        let port = || vec![meta("l4proto"), payload("th", "dport")];
        let at = [vec![payload("ip", "daddr")], port()].concat();
        for (key, map) in [(at, "@published_at"), (port(), "@published")] {
            let value = |part: &str| json!({"map": {"key": concat(key.clone()), "data": format!("{map}_{part}")}});
            let translate = json!({"dnat": {"family": "ip", "addr": value("address"), "port": value("port")}});
            rules.push(rule(chain, vec![to_machine(), not_to_gateway(), translate]));
        }
    }
    rules
}

fn to_machine() -> Value {
    is(json!({"fib": {"result": "type", "flags": ["daddr"]}}), json!("local"))
}

fn not_to_gateway() -> Value {
    not(payload("ip", "daddr"), json!("@gateway_addresses"))
}

fn rule(chain: &str, expressions: Vec<Value>) -> Value {
    json!({"rule": {"family": "inet", "table": TABLE, "chain": chain, "expr": expressions}})
}

fn is(left: Value, right: Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

fn not(left: Value, right: Value) -> Value {
    json!({"match": {"op": "!=", "left": left, "right": right}})
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn concat(parts: Vec<Value>) -> Value {
    json!({"concat": parts})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::TapPlan;
    use std::net::Ipv4Addr;

    fn tap(n: u8) -> TapPlan {
        let gateway = Ipv4Addr::new(10, 0, 0, 1);
        TapPlan { uid: 1, address: Ipv4Addr::new(10, 0, 0, n), mac: [2, 0, 0, 0, 0, n], gateway, ports: Vec::new() }
    }

    #[test]
    fn the_number_of_rules_does_not_grow_with_pods() {
        let mut plan = Plan::default();
        let count = |plan: &Plan| replace(&elements(plan)).to_string().matches("\"rule\"").count();
        let without = count(&plan);
        for n in 2..200 {
            plan.taps.insert(format!("t{n:012x}"), tap(n));
        }
        assert_eq!(count(&plan), without);
    }

    #[test]
    fn a_change_is_only_what_differs_and_deletes_first() {
        let mut plan = Plan::default();
        plan.taps.insert("ta".into(), tap(2));
        let before = elements(&plan);
        assert!(difference(&before, &before).is_none());
        plan.taps.insert("ta".into(), tap(3));
        let change = difference(&before, &elements(&plan)).unwrap();
        let verbs: Vec<&String> =
            change["nftables"].as_array().unwrap().iter().flat_map(|c| c.as_object().unwrap().keys()).collect();
        assert_eq!(verbs, ["delete", "add"], "only the address in `sources` changed");
    }
}
