//! What runs in the guest of a measurement: this very program, as the container's. It prints the line that says that the container
//! runs, does its part, and prints `result NUMBER`.

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::OFlags;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The word that makes the program do this.
pub const WORD: &str = "in-guest";
/// Reads that are under way at once.
const DEPTH: u32 = 8;
/// How long random reads are counted.
const RANDOM: Duration = Duration::from_secs(3);
const BLOCK: usize = 4096;
const LARGE: usize = 1 << 20;
/// How long bytes are sent.
pub const STREAM: Duration = Duration::from_secs(3);
/// How long the network may take to be there.
const NETWORK: Duration = Duration::from_secs(30);

/// Does the part that the words name.
///
/// # Errors
/// When the device or the network does not do what is asked.
pub fn run(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    say(crate::guest::LINE)?;
    let result = match words[..] {
        ["random", device] => random(device)?,
        ["sequential", device] => sequential(device)?,
        ["send", address] => send(address)?,
        ["receive", address] => receive(address)?,
        _ => bail!("there is no part {words:?}"),
    };
    say(&format!("result {result}"))
}

#[allow(clippy::print_stdout, reason = "these lines are what the program is for")]
fn say(line: &str) -> Result<()> {
    println!("{line}");
    std::io::stdout().flush().context("write a line")
}

/// What [`run`] has printed.
///
/// # Errors
/// When it has not.
pub fn result(output: &[u8]) -> Result<f64> {
    let text = String::from_utf8_lossy(output);
    let number = text.lines().find_map(|line| line.strip_prefix("result ")?.trim().parse().ok());
    number.with_context(|| format!("the guest gave no result: {text}"))
}

fn open(device: &str) -> Result<std::fs::File> {
    let flags = OFlags::DIRECT.bits().cast_signed();
    std::fs::OpenOptions::new().read(true).custom_flags(flags).open(device).with_context(|| format!("open {device}"))
}

/// A buffer of a length at a multiple of it, as direct reads want it.
fn aligned(space: &mut Vec<u8>, length: usize) -> &mut [u8] {
    space.resize(length + BLOCK, 0);
    let start = space.as_ptr().align_offset(BLOCK);
    &mut space[start..start + length]
}

/// Reads of 4 KiB anywhere, a second.
fn random(device: &str) -> Result<f64> {
    let file = open(device)?;
    let blocks = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).context("the device's size")? / BLOCK as u64;
    ensure!(blocks > 0, "{device} is empty");
    let (count, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let begun = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let readers: Vec<_> = (0..DEPTH)
            .map(|number| {
                let (file, count, over) = (&file, &count, &over);
                scope.spawn(move || -> Result<()> {
                    let mut space = Vec::new();
                    let buffer = aligned(&mut space, BLOCK);
                    let mut state = u64::from(number) + 1;
                    while !over.load(Ordering::Relaxed) {
                        // The constants are Knuth's (MMIX).
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        file.read_exact_at(buffer, (state >> 20) % blocks * BLOCK as u64).context("read the device")?;
                        count.fetch_add(1, Ordering::Relaxed);
                        if begun.elapsed() > RANDOM {
                            over.store(true, Ordering::Relaxed);
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        readers.into_iter().try_for_each(|reader| reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?)
    })?;
    Ok(count.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

/// The whole device, MB a second.
fn sequential(device: &str) -> Result<f64> {
    let file = open(device)?;
    let mut space = Vec::new();
    let buffer = aligned(&mut space, LARGE);
    let begun = Instant::now();
    let mut at = 0;
    loop {
        match file.read_at(buffer, at).context("read the device")? {
            0 => return Ok(at as f64 / 1e6 / begun.elapsed().as_secs_f64()),
            got => at += got as u64,
        }
    }
}

fn connect(address: &str) -> Result<TcpStream> {
    let begun = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Err(_) if begun.elapsed() < NETWORK => std::thread::yield_now(),
            other => return other.with_context(|| format!("connect to {address}")),
        }
    }
}

fn send(address: &str) -> Result<f64> {
    let mut stream = connect(address)?;
    let piece = vec![0x5a; LARGE];
    let (begun, mut all) = (Instant::now(), 0);
    while begun.elapsed() < STREAM {
        stream.write_all(&piece).context("send")?;
        all += piece.len();
    }
    stream.shutdown(Shutdown::Write).context("end what is sent")?;
    // The other side has it all when it closes.
    let rest = stream.read(&mut [0]).context("wait for the other side")?;
    ensure!(rest == 0, "the other side has said something");
    Ok(all as f64)
}

fn receive(address: &str) -> Result<f64> {
    let mut stream = connect(address)?;
    let mut buffer = vec![0; LARGE];
    let mut all = 0;
    loop {
        match stream.read(&mut buffer).context("receive")? {
            0 => return Ok(all as f64),
            got => all += got,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_found_behind_the_line() {
        assert!((result(b"hello\nresult 12.5\n").unwrap() - 12.5).abs() < 1e-9);
        assert!(result(b"hello\n").is_err());
    }

    #[test]
    fn a_buffer_for_direct_reads_begins_on_a_block() {
        let mut space = Vec::new();
        let buffer = aligned(&mut space, LARGE);
        assert_eq!((buffer.as_ptr() as usize % BLOCK, buffer.len()), (0, LARGE));
    }
}
