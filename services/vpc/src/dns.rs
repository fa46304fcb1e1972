//! The name server on every gateway's address: names of the pods on the client's networks, everything else forwarded as it is.
//!
//! A client is known by its address, which the firewall lets no other have; one that is not known sees the network whose
//! gateway it asks. Names without a dot belong to the networks alone and are never forwarded.

use crate::plan::{Asker, Names};
use anyhow::{Context, Result};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Seconds that an answer stays with a client: pods come and go.
const TTL_S: u32 = 5;
/// How long one upstream server has.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a TCP client may take for one question.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
const UPSTREAMS_MAX: usize = 3;
const QUESTIONS_AT_ONCE: usize = 512;
const CONNECTIONS_AT_ONCE: usize = 128;
const MESSAGE_MAX_BYTES: usize = 65_535;

/// The name servers of all networks.
#[derive(Debug)]
pub struct Dns {
    shared: Arc<Shared>,
    servers: BTreeMap<Ipv4Addr, Server>,
}

#[derive(Debug)]
struct Shared {
    tables: RwLock<Tables>,
    resolv_conf: PathBuf,
    questions: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Tables {
    names: BTreeMap<Ipv4Addr, Names>,
    askers: BTreeMap<Ipv4Addr, Asker>,
}

#[derive(Debug)]
struct Server(Vec<JoinHandle<()>>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl Dns {
    /// No server yet; other names are asked of the servers in `resolv_conf` (resolv.conf(5)).
    #[must_use]
    pub fn new(resolv_conf: &Path) -> Self {
        let shared = Shared {
            tables: RwLock::default(),
            resolv_conf: resolv_conf.to_owned(),
            questions: Arc::new(Semaphore::new(QUESTIONS_AT_ONCE)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_AT_ONCE)),
        };
        Self { shared: Arc::new(shared), servers: BTreeMap::new() }
    }

    /// Serves these names at their gateways to these clients; servers of other addresses end.
    ///
    /// # Errors
    /// When an address cannot be listened on; the others are served.
    pub async fn serve(
        &mut self,
        names: &BTreeMap<Ipv4Addr, Names>,
        askers: &BTreeMap<Ipv4Addr, Asker>,
        port: u16,
    ) -> Result<()> {
        if let Ok(mut current) = self.shared.tables.write() {
            *current = Tables { names: names.clone(), askers: askers.clone() };
        }
        self.servers.retain(|gateway, _| names.contains_key(gateway));
        let mut result = Ok(());
        for gateway in names.keys() {
            if self.servers.contains_key(gateway) {
                continue;
            }
            match start(&self.shared, *gateway, port).await {
                Ok(server) => drop(self.servers.insert(*gateway, server)),
                Err(error) => result = Err(error),
            }
        }
        result
    }
}

async fn start(shared: &Arc<Shared>, gateway: Ipv4Addr, port: u16) -> Result<Server> {
    let failed = || format!("cannot answer names at {gateway}:{port}");
    let udp = UdpSocket::bind((gateway, port)).await.with_context(failed)?;
    let tcp = TcpListener::bind((gateway, port)).await.with_context(failed)?;
    let by_udp = tokio::spawn(serve_udp(shared.clone(), gateway, Arc::new(udp)));
    let by_tcp = tokio::spawn(serve_tcp(shared.clone(), gateway, tcp));
    Ok(Server(vec![by_udp, by_tcp]))
}

async fn serve_udp(shared: Arc<Shared>, gateway: Ipv4Addr, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((len, client)) = socket.recv_from(&mut buffer).await else { continue };
        // Over the limit questions are dropped; clients ask again.
        let Ok(permit) = shared.questions.clone().try_acquire_owned() else { continue };
        let (shared, socket, question) = (shared.clone(), socket.clone(), buffer[..len].to_vec());
        tokio::spawn(async move {
            let _permit = permit;
            if let Some(answer) = answer(&shared, gateway, client.ip(), &question, false).await {
                // The client may be gone; nobody else would want to know.
                let _ = socket.send_to(&answer, client).await;
            }
        });
    }
}

async fn serve_tcp(shared: Arc<Shared>, gateway: Ipv4Addr, listener: TcpListener) {
    loop {
        let Ok(permit) = shared.connections.clone().acquire_owned().await else { return };
        let Ok((mut stream, client)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await; // out of descriptors
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let _permit = permit;
            while let Ok(Ok(question)) = timeout(CLIENT_TIMEOUT, read_framed(&mut stream)).await {
                let Some(answer) = answer(&shared, gateway, client.ip(), &question, true).await else { return };
                if !matches!(timeout(CLIENT_TIMEOUT, write_framed(&mut stream, &answer)).await, Ok(Ok(()))) {
                    return;
                }
            }
        });
    }
}

/// A message and its length in front (RFC 1035, 4.2.2).
async fn read_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let len = u16::try_from(message.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), message].concat()).await
}

/// What is to be done with a question.
#[derive(Debug)]
pub enum Judged {
    /// This is the answer.
    Answered(Vec<u8>),
    /// Other servers are to be asked.
    ForOthers(Box<Message>),
}

/// Reads a question of a client of these networks; none for what is no question at all.
#[must_use]
pub fn judge(networks: &[&Names], question: &[u8]) -> Option<Judged> {
    let message = Message::from_vec(question).ok()?;
    if message.metadata.message_type != MessageType::Query {
        return None;
    }
    let found = match message.queries.as_slice() {
        [query] if message.metadata.op_code == OpCode::Query => look_up(networks, query),
        _ => Some((ResponseCode::NotImp, Vec::new())),
    };
    match found {
        Some((code, records)) => reply(&message, code, records).map(Judged::Answered),
        None => Some(Judged::ForOthers(Box::new(message))),
    }
}

/// None for what is no question at all.
async fn answer(shared: &Shared, gateway: Ipv4Addr, client: IpAddr, question: &[u8], by_tcp: bool) -> Option<Vec<u8>> {
    let (judged, servers) = {
        let tables = shared.tables.read().ok()?;
        let asker = if let IpAddr::V4(ip) = client { tables.askers.get(&ip) } else { None };
        let gateways = asker.map_or(std::slice::from_ref(&gateway), |a| &a.gateways);
        let names: Vec<&Names> = gateways.iter().filter_map(|g| tables.names.get(g)).collect();
        (judge(&names, question)?, asker.map(|a| a.upstreams.clone()).unwrap_or_default())
    };
    let message = match judged {
        Judged::Answered(answer) => return Some(answer),
        Judged::ForOthers(message) => message,
    };
    let servers = match servers.as_slice() {
        [] => upstreams(&shared.resolv_conf),
        named => named.iter().take(UPSTREAMS_MAX).map(|ip| SocketAddr::new(*ip, 53)).collect(),
    };
    match forward(&servers, question, by_tcp).await {
        Some(answer) => Some(answer),
        None => reply(&message, ResponseCode::ServFail, Vec::new()),
    }
}

/// What the client's networks know; none when others are to be asked.
fn look_up(networks: &[&Names], query: &Query) -> Option<(ResponseCode, Vec<Record>)> {
    let text = query.name().to_ascii();
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    if query.query_class() != DNSClass::IN {
        return None;
    }
    if let Some(addresses) = networks.iter().find_map(|names| names.addresses.get(&name)) {
        let record = |ip: &Ipv4Addr| Record::from_rdata(query.name().clone(), TTL_S, RData::A(A(*ip)));
        let is_address = matches!(query.query_type(), RecordType::A | RecordType::ANY);
        // At most 20 fit a UDP answer of 512 bytes with any name.
        let records = addresses.iter().take(if is_address { 20 } else { 0 }).map(record).collect();
        return Some((ResponseCode::NoError, records));
    }
    if let Some(ip) = reversed(&name)
        && let Some(found) = networks.iter().find_map(|names| names.reverse.get(&ip))
        && let Ok(target) = Name::from_ascii(format!("{found}."))
    {
        let records = match query.query_type() {
            RecordType::PTR | RecordType::ANY => {
                vec![Record::from_rdata(query.name().clone(), TTL_S, RData::PTR(PTR(target)))]
            }
            _ => Vec::new(),
        };
        return Some((ResponseCode::NoError, records));
    }
    let is_root = name.is_empty();
    if name.contains('.') || is_root { None } else { Some((ResponseCode::NXDomain, Vec::new())) }
}

fn reversed(name: &str) -> Option<Ipv4Addr> {
    let digits = name.strip_suffix(".in-addr.arpa")?;
    let ip: Ipv4Addr = digits.parse().ok()?;
    let [a, b, c, d] = ip.octets();
    Some(Ipv4Addr::new(d, c, b, a))
}

fn reply(question: &Message, code: ResponseCode, records: Vec<Record>) -> Option<Vec<u8>> {
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata.response_code = code;
    message.metadata.recursion_desired = question.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.add_queries(question.queries.iter().cloned());
    message.insert_answers(records);
    message.to_vec().ok()
}

/// The machine's own name servers, read anew each time: they change with the network that it is plugged into.
fn upstreams(resolv_conf: &Path) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(resolv_conf).unwrap_or_default();
    let server = |line: &str| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok();
    text.lines().filter_map(server).take(UPSTREAMS_MAX).map(|ip| SocketAddr::new(ip, 53)).collect()
}

async fn forward(servers: &[SocketAddr], question: &[u8], by_tcp: bool) -> Option<Vec<u8>> {
    for server in servers {
        let asked = async {
            if by_tcp {
                let mut stream = TcpStream::connect(server).await?;
                write_framed(&mut stream, question).await?;
                return read_framed(&mut stream).await;
            }
            let local: IpAddr =
                if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((local, 0)).await?;
            socket.connect(server).await?;
            socket.send(question).await?;
            let mut buffer = vec![0; MESSAGE_MAX_BYTES];
            loop {
                let len = socket.recv(&mut buffer).await?;
                // Another id is no answer to this question.
                if buffer.get(..2) == question.get(..2) {
                    buffer.truncate(len);
                    return Ok(buffer);
                }
            }
        };
        match timeout(UPSTREAM_TIMEOUT, asked).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%server, %error, "name server cannot be asked"),
            Err(_) => tracing::debug!(%server, "name server does not answer"),
        }
    }
    None
}

#[cfg(test)]
mod tests;
