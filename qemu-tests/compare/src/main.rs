//! `compare`: runs the tables and tells what differs, one JSON object a line; its status says whether anything does that
//! is not meant to.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use compare::allowed::{Allowed, LIST};
use compare::http::{Request, ask};
use compare::peer::Peer;
use compare::run::{Engine, step};
use compare::table::{TABLES, read};
use serde_json::json;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Compares the zone's Docker API with Docker Engine's.
#[derive(Debug, Parser)]
struct Arguments {
    /// These tables only.
    tables: Vec<String>,
    /// The short tables only.
    #[arg(long)]
    short: bool,
    /// The zone's socket.
    #[arg(long, default_value = "/run/kraud/docker/docker.sock")]
    ours: PathBuf,
    /// The socket of a Docker Engine that runs already; default: one is started.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// List every endpoint of the API with the call that shows it, and do nothing else.
    #[arg(long)]
    list_endpoints: bool,
    /// Print what differs and why, as a page of documentation, and do nothing else.
    #[arg(long)]
    page: bool,
    /// Read the tables here instead of those built in.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Read the list of what may differ here instead of the one built in.
    #[arg(long)]
    allowed: Option<PathBuf>,
    /// Tell what may differ, too.
    #[arg(long)]
    all: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list_endpoints {
        return list_endpoints();
    }
    if arguments.page {
        let page = compare::page::page()?;
        std::io::stdout().write_all(page.as_bytes()).context("write the page")?;
        return Ok(ExitCode::SUCCESS);
    }
    let own_peer = if arguments.peer.is_none() { Some(Peer::start()?) } else { None };
    let peer = arguments.peer.clone().unwrap_or_else(Peer::socket);
    let failed = compare_all(&arguments, &peer)?;
    drop(own_peer);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn compare_all(arguments: &Arguments, peer: &Path) -> Result<bool> {
    for socket in [peer, &arguments.ours] {
        load_image(socket)?;
    }
    let own_list = arguments.allowed.as_ref().map(std::fs::read_to_string).transpose().context("read the list")?;
    let mut allowed = Allowed::parse(own_list.as_deref().unwrap_or(LIST))?;
    let (mut calls, mut wrong, mut meant) = (0, 0u32, 0u32);
    for (name, short, text) in TABLES {
        let named = arguments.tables.is_empty() || arguments.tables.iter().any(|t| t == name);
        if !named || (arguments.short && !short) {
            continue;
        }
        let own_text = arguments.folder.as_ref().map(|f| std::fs::read_to_string(f.join(format!("{name}.json"))));
        let own_text = own_text.transpose().context("read a table")?;
        let (mut theirs, mut ours) = (Engine::new(peer.to_owned()), Engine::new(arguments.ours.clone()));
        for socket in [peer, &arguments.ours] {
            clean(socket)?;
        }
        for one in read(name, own_text.as_deref().unwrap_or(text))? {
            let outcomes = match step(&mut theirs, &mut ours, &one) {
                Ok(outcomes) => outcomes,
                Err(error) => {
                    wrong += 1;
                    say(&json!({"table": name, "step": one.name, "call": one.call, "error": format!("{error:#}")}))?;
                    continue;
                }
            };
            for outcome in outcomes {
                calls += 1;
                for difference in &outcome.differences {
                    let fine = allowed.is_allowed(&format!("{name}: {}", one.name), &one.call, difference);
                    *(if fine { &mut meant } else { &mut wrong }) += 1;
                    if !fine || arguments.all {
                        say(&json!({
                            "table": name, "step": one.name, "call": outcome.call, "path": difference.path, "engine": difference.engine,
                            "ours": difference.ours, "allowed": fine,
                        }))?;
                    }
                }
            }
        }
    }
    if arguments.tables.is_empty() && !arguments.short {
        for (place, pending) in allowed.unseen() {
            // What was to be built may have been: that is no failure, only news.
            wrong += u32::from(!pending);
            say(
                &json!({"allowed": place, "pending": pending, "error": "nothing differs there any more: take it off the list"}),
            )?;
        }
    }
    say(&json!({"calls": calls, "differences": wrong, "allowed": meant}))?;
    Ok(wrong > 0)
}

fn list_endpoints() -> Result<ExitCode> {
    let endpoints = compare::coverage::endpoints()?;
    let mut out = std::io::stdout().lock();
    for endpoint in &endpoints {
        writeln!(out, "{endpoint}").context("write the list")?;
    }
    let served = endpoints.iter().filter(|e| e.state == "served").count();
    writeln!(out, "{} endpoints: {served} served, {} refused", endpoints.len(), endpoints.len() - served)
        .context("write the list")?;
    Ok(ExitCode::SUCCESS)
}

fn say(value: &serde_json::Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}").and_then(|()| out.flush()).context("write the report")
}

/// Removes what an earlier table or run has left.
fn clean(socket: &Path) -> Result<()> {
    let call = |method: &str, path: String| ask(socket, &Request { method: method.into(), path, ..Request::default() });
    let list = |path: &str| -> Result<Vec<serde_json::Value>> {
        let answer: serde_json::Value =
            serde_json::from_slice(&call("GET", path.to_owned())?.body).context("a list")?;
        Ok(answer.as_array().or(answer["Volumes"].as_array()).cloned().unwrap_or_default())
    };
    let text = |value: &serde_json::Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    for container in list("/v1.45/containers/json?all=1")? {
        if container["Image"] == "compare" {
            call("DELETE", format!("/v1.45/containers/{}?force=1&v=1", text(&container, "Id")))?;
        }
    }
    for network in list("/v1.45/networks")?.iter().filter(|n| text(n, "Name").starts_with("cmp")) {
        call("DELETE", format!("/v1.45/networks/{}", text(network, "Id")))?;
    }
    // What other builds have left would be pruned by one engine only.
    call("POST", "/v1.45/build/prune?all=1".to_owned())?;
    for volume in list("/v1.45/volumes")?.iter().filter(|v| text(v, "Name").starts_with("cmp")) {
        call("DELETE", format!("/v1.45/volumes/{}", text(volume, "Name")))?;
    }
    Ok(())
}

/// The image that both engines make containers of, by the same archive. Nothing in it is shared with another image of the
/// zone: what is shared shows in sizes, tags and in what a removal does.
fn load_image(socket: &Path) -> Result<()> {
    let body = qemu_tests::image::busybox_of_its_own(
        "compare:latest",
        &[("etc/compare", "compare\n")],
        &json!({"of": "compare"}),
    );
    let headers = vec![("Content-Type".to_owned(), "application/x-tar".to_owned())];
    let request =
        Request { method: "POST".into(), path: "/v1.45/images/load".into(), headers, body, ..Request::default() };
    let answer = ask(socket, &request)?;
    let said = String::from_utf8_lossy(&answer.body);
    if answer.status != 200 || !said.contains("compare:latest") {
        bail!("cannot load the image at {}: {} {said}", socket.display(), answer.status);
    }
    Ok(())
}
