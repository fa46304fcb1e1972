//! Which request does what.

use super::request::{Request, RequestError};
use super::response::{Answer, Response};
use crate::agent::Agent;
use crate::attach;
use crate::container::Container;
use crate::exec::{Exec, set_size};
use crate::{archive, changes, devices, signals, stats, top};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Why a request is refused.
#[derive(Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Docker's words, where it has any.
    pub message: String,
}

/// Shorthand.
pub fn refuse<T>(status: u16, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { status, message: message.into() })
}

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Self {
        Self { status: error.status(), message: error.to_string() }
    }
}

/// Does what is asked for.
pub fn answer(agent: &Arc<Agent>, request: &mut Request) -> Answer {
    let path = request.path.clone();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let method = request.method.clone();
    let result = match (method.as_str(), parts.as_slice()) {
        ("GET", ["v1", "state"]) => Ok(state(agent).into()),
        ("POST", ["shutdown"]) => Ok(shutdown(agent).into()),
        ("POST", ["v1", "devices"]) => request.json().map_err(Refusal::from).and_then(|body| devices::appeared(&body)),
        ("DELETE", ["v1", "devices", device]) => devices::leaves(device),
        ("POST", ["v1", "docker", id]) => docker_socket(agent, id),
        (_, ["containers", id, action]) => container_action(agent, request, &method, id, action),
        (_, ["exec", id, action]) => exec_action(agent, request, &method, id, action),
        _ => refuse(404, "page not found"),
    };
    result.unwrap_or_else(|refusal| Response::error(refusal.status, &refusal.message).into())
}

fn state(agent: &Agent) -> Response {
    let mut all = Map::new();
    for (id, container) in &agent.containers {
        let state = container.state();
        let one = json!({"pid": state.pid, "running": state.running, "paused": state.paused, "exit_code": state.exit_code, "execs": agent.execs.running(id)});
        all.insert(id.clone(), one);
    }
    Response::json(200, &json!({"containers": all, "agent": {"rss_kib": stats::own_rss_kib()}}))
}

/// The host asks for the next connection to the Docker socket in a container.
fn docker_socket(agent: &Agent, id: &str) -> Result<Answer, Refusal> {
    let Some(container) = agent.containers.get(id) else { return refuse(404, format!("No such container: {id}")) };
    if container.rootfs.docker_sockets.is_empty() {
        return refuse(404, format!("container {id} has no socket of the Docker API"));
    }
    Ok(Answer::Upgrade(crate::relay::next(container)))
}

fn shutdown(agent: &Agent) -> Response {
    for container in agent.containers.values() {
        // One that does not run needs no signal.
        let _ = container.signal(libc::SIGKILL);
    }
    agent.request_shutdown();
    Response::empty(204)
}

fn container_action(
    agent: &Arc<Agent>,
    request: &mut Request,
    method: &str,
    id: &str,
    action: &str,
) -> Result<Answer, Refusal> {
    let Some(container) = agent.containers.get(id) else {
        return match agent.failures.get(id) {
            Some(why) => refuse(500, format!("the files of container {id} cannot be reached: {why}")),
            None => refuse(404, format!("No such container: {id}")),
        };
    };
    match (method, action) {
        ("POST", "attach") => running(container).map(|()| Answer::Upgrade(attach::attach(agent, container, request))),
        ("POST", "kill") => kill(container, request.query("signal")),
        ("POST", "resize") => resize(container.terminal.get(), request),
        ("POST", "limits") => limits(container, request),
        ("POST", "pause") => pause(container, true),
        ("POST", "unpause") => pause(container, false),
        ("GET", "top") => {
            running(container).map(|()| Response::json(200, &top::top(container, request.query("ps_args"))).into())
        }
        ("GET", "stats") => running(container).map(|()| Response::json(200, &stats::sample(container)).into()),
        ("GET", "health") => Ok(Response::json(200, &container.health.inspect()).into()),
        ("GET", "changes") => {
            Ok(Response::json(200, &changes::changes(&container.rootfs.lower, &container.rootfs.upper)).into())
        }
        ("GET", "layer") => archive::layer::get(agent, container),
        ("HEAD", "archive") => archive::head(container, request),
        ("GET", "archive") => archive::get(agent, container, request),
        ("PUT", "archive") => {
            let _busy = agent.stream();
            archive::put(container, request)
        }
        ("GET", "export") => archive::export(agent, container),
        ("POST", "exec") => create_exec(agent, container, request),
        _ => refuse(404, "page not found"),
    }
}

/// That its process runs.
pub fn running(container: &Container) -> Result<(), Refusal> {
    if container.state().running { Ok(()) } else { refuse(409, format!("container {} is not running", container.id())) }
}

fn not_paused(container: &Container) -> Result<(), Refusal> {
    if container.state().paused {
        return refuse(409, format!("container {} is paused, unpause the container before exec", container.id()));
    }
    Ok(())
}

fn kill(container: &Container, signal: &str) -> Result<Answer, Refusal> {
    let Some(number) = signals::parse(signal) else { return refuse(400, format!("invalid signal: {signal}")) };
    let not_running = || Refusal {
        status: 409,
        message: format!("cannot kill container: {0}: container {0} is not running", container.id()),
    };
    running(container).map_err(|_| not_running())?;
    match container.signal(number) {
        Ok(()) => Ok(Response::empty(204).into()),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(not_running()),
        Err(error) => refuse(500, format!("cannot kill container: {}: {error}", container.id())),
    }
}

fn resize(terminal: Option<&std::os::fd::OwnedFd>, request: &Request) -> Result<Answer, Refusal> {
    let number = |name: &str| {
        request
            .query(name)
            .parse::<u16>()
            .or_else(|_| refuse(400, format!("invalid resize {name} value: {:?}", request.query(name))))
    };
    let (rows, columns) = (number("h")?, number("w")?);
    let Some(terminal) = terminal else { return refuse(400, "the process has no terminal") };
    set_size(terminal, rows, columns).or_else(|e| refuse(500, format!("cannot resize the terminal: {e}")))?;
    Ok(Response::empty(200).into())
}

fn pause(container: &Container, paused: bool) -> Result<Answer, Refusal> {
    running(container)?;
    if container.state().paused == paused {
        let word = if paused { "already" } else { "not" };
        return refuse(409, format!("Container {} is {word} paused", container.id()));
    }
    let Some(cgroup) = &container.cgroup else { return refuse(501, "the guest's kernel has no control groups") };
    cgroup.freeze(paused).or_else(|e| refuse(500, format!("cannot freeze container {}: {e}", container.id())))?;
    container.set_paused(paused);
    Ok(Response::empty(204).into())
}

/// Limits of a control group; 0 means none.
#[derive(Debug, Deserialize)]
struct Limits {
    memory: u64,
    pids: u64,
}

fn limits(container: &Container, request: &mut Request) -> Result<Answer, Refusal> {
    let wanted: Limits = request.json()?;
    running(container)?;
    let Some(cgroup) = &container.cgroup else { return refuse(501, "the guest's kernel has no control groups") };
    cgroup.limit(wanted.memory, wanted.pids).or_else(|e| refuse(500, format!("cannot set the limits: {e}")))?;
    Ok(Response::empty(204).into())
}

fn create_exec(agent: &Agent, container: &Arc<Container>, request: &mut Request) -> Result<Answer, Refusal> {
    running(container)?;
    not_paused(container)?;
    let id = agent.execs.create(container, request.json()?).or_else(|message| refuse(400, message))?;
    Ok(Response::json(201, &json!({ "Id": id })).into())
}

fn exec_action(
    agent: &Arc<Agent>,
    request: &mut Request,
    method: &str,
    id: &str,
    action: &str,
) -> Result<Answer, Refusal> {
    let Some(exec) = agent.execs.get(id) else { return refuse(404, format!("No such exec instance: {id}")) };
    match (method, action) {
        ("GET", "json") => Ok(Response::json(200, &exec.inspect()).into()),
        ("POST", "start") => start_exec(agent, &exec, request),
        ("POST", "resize") => resize(exec.terminal.get(), request),
        _ => refuse(404, "page not found"),
    }
}

fn start_exec(agent: &Arc<Agent>, exec: &Arc<Exec>, request: &mut Request) -> Result<Answer, Refusal> {
    let start = request.json::<crate::exec::StartConfig>()?;
    running(&exec.container)?;
    not_paused(&exec.container)?;
    if !exec.claim() {
        return refuse(409, format!("Error: Exec command {} has already run", exec_id(exec)));
    }
    if !start.detach {
        return Ok(Answer::Upgrade(exec.attached(agent, &start)));
    }
    exec.detached(agent, &start).or_else(|message| refuse(400, message))?;
    Ok(Response::empty(200).into())
}

fn exec_id(exec: &Exec) -> String {
    exec.inspect().get("ID").and_then(Value::as_str).unwrap_or_default().to_owned()
}
