//! How fast bytes go through the devices of both monitors: a disk, a network interface, vsock.
//!
//! Both boot the same guest, with a second disk in memory and a tap in a network namespace of our own. The peer has what it is
//! fastest with: io_uring for the disk, vhost for network and vsock where the kernel has it.

#![allow(unsafe_code)]

use crate::api;
use crate::guest::{GUEST, Guest, HOST};
use crate::in_guest::{STREAM, WORD, result};
use crate::ours::Ours;
use crate::payload;
use crate::peer::Peer;
use crate::run::{Args, Monitor, alone};
use crate::samples::{self, About};
use crate::sizes::Sizes;
use anyhow::{Context as _, Result, ensure};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::time::Instant;

const FOLDER: &str = "/run/kraud-bench-traffic";
const TAP: &str = "bench0";
/// The second disk, MiB.
const DISK_MIB: u32 = 128;
/// A file in the image that goes through vsock, MiB; it fits into the guest's page cache.
const FILE_MIB: u32 = 32;
const RANDOM: Args = Args(&["bench", WORD, "random", "/dev/vdb"]);
const SEQUENTIAL: Args = Args(&["bench", WORD, "sequential", "/dev/vdb"]);
const SEND: Args = Args(&["bench", WORD, "send", "10.99.0.1:5001"]);
const RECEIVE: Args = Args(&["bench", WORD, "receive", "10.99.0.1:5001"]);
const PORT: u16 = 5001;

struct Traffic<'a> {
    monitors: [&'a dyn Monitor; 2],
    rounds: u32,
    about: About<'a>,
}

/// Everything, in a network namespace of its own.
///
/// # Errors
/// When either monitor cannot do it.
pub fn run(sizes: &Sizes, peer: &Peer<'_>, about: About<'_>) -> Result<()> {
    std::thread::scope(|scope| {
        let own = scope.spawn(|| {
            // SAFETY: only this thread changes its network; it shares no socket with another.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .context("make a network namespace")?;
            measure(sizes.rounds, peer, about)
        });
        own.join().map_err(|_| anyhow::anyhow!("a measurement panicked"))?
    })
}

fn measure(rounds: u32, peer: &Peer<'_>, about: About<'_>) -> Result<()> {
    let mut guest = Guest::with(FOLDER, |root| {
        let own = std::env::current_exe().context("find this program")?;
        std::fs::copy(own, root.join("bin/bench")).context("copy this program")?;
        payload::file(&root.join("payload"), FILE_MIB)
    })?;
    let data = guest.folder.join("data");
    payload::file(&data, DISK_MIB)?;
    make_tap()?;
    (guest.data, guest.tap) = (Some(data), Some(TAP));
    let ours = Ours { guest: &guest, template: None };
    let peer = peer.with(&guest);
    let vhost = if peer.vhost_net { "with vhost-net" } else { "without vhost-net, which this kernel has not" };
    let traffic = Traffic { monitors: [&ours, &peer], rounds, about };
    let disk = format!("disk of {DISK_MIB} MiB in memory, O_DIRECT; the peer with io_uring");
    traffic.print("block_randread_4k_iops", "IO/s", &format!("8 reads of 4 KiB at a time, {disk}"), |m| {
        of_guest(m, RANDOM)
    })?;
    traffic.print("block_seq_read_mb_s", "MB/s", &format!("reads of 1 MiB, {disk}"), |m| of_guest(m, SEQUENTIAL))?;
    let tcp = format!("one connection for {STREAM:?}, a tap; the peer {vhost}");
    traffic.print("tcp_guest_to_host_mbit_s", "Mbit/s", &tcp, from_guest)?;
    traffic.print("tcp_host_to_guest_mbit_s", "Mbit/s", &tcp, to_guest)?;
    let file = format!("a file of {FILE_MIB} MiB from the agent, by HTTP; the peer with vhost-vsock");
    traffic.print("vsock_mb_s", "MB/s", &file, through_vsock)
}

impl Traffic<'_> {
    fn print(&self, metric: &str, unit: &str, payload: &str, take: impl Fn(&dyn Monitor) -> Result<f64>) -> Result<()> {
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..self.rounds {
            for (samples, monitor) in samples.iter_mut().zip(self.monitors) {
                samples.push(take(monitor).with_context(|| format!("{metric} of {}", monitor.program()))?);
            }
        }
        samples::print(About { metric, unit, payload, ..self.about }, &samples[0], &samples[1])
    }
}

fn make_tap() -> Result<()> {
    let (host, guest) = (HOST.0.to_string(), GUEST.0.to_string());
    for words in [
        &["tuntap", "add", "dev", TAP, "mode", "tap"][..],
        &["link", "set", TAP, "address", HOST.1, "up"],
        &["address", "add", &host, "dev", TAP],
        &["route", "add", &guest, "dev", TAP],
    ] {
        let said = Command::new("ip").args(words).output().context("start ip")?;
        ensure!(said.status.success(), "ip {}: {}", words.join(" "), String::from_utf8_lossy(&said.stderr));
    }
    Ok(())
}

fn of_guest(monitor: &dyn Monitor, args: Args) -> Result<f64> {
    result(&alone(monitor, args)?.end()?.0.output)
}

/// A guest that connects, and its connection.
fn connected(monitor: &dyn Monitor, args: Args) -> Result<(crate::run::Run, TcpStream)> {
    let listener = TcpListener::bind((HOST.0, PORT)).context("listen for the guest")?;
    let run = alone(monitor, args)?;
    let (stream, _) = listener.accept().context("wait for the guest")?;
    Ok((run, stream))
}

fn megabits(bytes: u64, since: Instant) -> f64 {
    bytes as f64 * 8.0 / 1e6 / since.elapsed().as_secs_f64()
}

fn from_guest(monitor: &dyn Monitor) -> Result<f64> {
    let (run, mut stream) = connected(monitor, SEND)?;
    let begun = Instant::now();
    let mut buffer = vec![0; 1 << 20];
    let mut all = 0;
    loop {
        match stream.read(&mut buffer).context("receive from the guest")? {
            0 => break,
            got => all += got as u64,
        }
    }
    let rate = megabits(all, begun);
    drop(stream);
    run.end()?;
    Ok(rate)
}

fn to_guest(monitor: &dyn Monitor) -> Result<f64> {
    let (run, mut stream) = connected(monitor, RECEIVE)?;
    let piece = vec![0x5a; 1 << 20];
    let (begun, mut all) = (Instant::now(), 0);
    while begun.elapsed() < STREAM {
        stream.write_all(&piece).context("send to the guest")?;
        all += piece.len() as u64;
    }
    stream.shutdown(Shutdown::Write).context("end what is sent")?;
    // The guest has it all when it closes.
    let _ = stream.read(&mut [0]).context("wait for the guest")?;
    let rate = megabits(all, begun);
    let received = result(&run.end()?.0.output)?;
    ensure!(received as u64 == all, "the guest received {received} bytes of {all}");
    Ok(rate)
}

fn through_vsock(monitor: &dyn Monitor) -> Result<f64> {
    let _run = alone(monitor, Args::STAY)?;
    // The first time it comes from the disk.
    fetch(monitor)?;
    let begun = Instant::now();
    let bytes = fetch(monitor)?;
    Ok(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

fn fetch(monitor: &dyn Monitor) -> Result<u64> {
    let path = format!("/containers/{}/archive?path=/payload", "0".repeat(64));
    let mut answer = api::ask_on(monitor.agent(0)?, "GET", &path, "", &[])?;
    let bytes = std::io::copy(&mut answer.body, &mut std::io::sink()).context("read from the agent")?;
    ensure!(answer.status == 200 && bytes > u64::from(FILE_MIB) << 20, "{} with {bytes} bytes", answer.status);
    Ok(bytes)
}
