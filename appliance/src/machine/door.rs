//! The client of the exec door.

use super::signals;
use super::state::{StateDir, Zone};
use ::door::wire::{self, CHUNK, Kind, Request};
use anyhow::{Context, Result, bail};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

/// How long the door may take to start a command; a busy emulated machine is slow.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Where the door is and what opens it.
#[derive(Clone, Debug)]
pub struct Door {
    address: SocketAddr,
    token: String,
}

/// What a command left.
#[derive(Debug, Default)]
pub struct Output {
    /// The exit status as a shell tells it.
    pub code: u32,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it complained about.
    pub stderr: Vec<u8>,
}

impl Door {
    /// The door with this token.
    #[must_use]
    pub fn new(address: SocketAddr, token: String) -> Self {
        Self { address, token }
    }

    /// The door of a running zone.
    ///
    /// # Errors
    /// When the zone's token cannot be read.
    pub fn of(dir: &StateDir, zone: &Zone) -> Result<Self> {
        let path = dir.file("door-token");
        let token = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self::new((zone.plan.address(), zone.plan.ports.door).into(), token))
    }

    fn start(&self, request: &Request, timeout: Duration) -> Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.address, timeout).context("cannot connect to the door")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        wire::write_frame(&mut stream, Kind::Auth, self.token.as_bytes()).context("the door does not listen")?;
        wire::write_frame(&mut stream, Kind::Request, &request.encode()).context("the door does not listen")?;
        let answer = match wire::read_frame(&mut stream) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                bail!("the door does not answer within {} s", timeout.as_secs())
            }
            answer => answer.context("the door does not answer")?,
        };
        match answer {
            Some(frame) if frame.kind == Kind::Started => {}
            Some(frame) if frame.kind == Kind::Error => bail!("{}", String::from_utf8_lossy(&frame.payload)),
            Some(_) => bail!("the door speaks another protocol: build the image and this tool from the same sources"),
            None => bail!("the door has closed the connection"),
        }
        Ok(stream)
    }

    /// Runs a command without input and collects what it writes; `timeout` is how long it may be silent.
    ///
    /// # Errors
    /// When the door does not answer, or cannot start the command.
    pub fn output(&self, argv: &[&str], timeout: Duration) -> Result<Output> {
        self.feed(argv, &[], timeout)
    }

    /// As [`Door::output`], with input. For commands that read all of it before they write much.
    ///
    /// # Errors
    /// As [`Door::output`].
    pub fn feed(&self, argv: &[&str], input: &[u8], timeout: Duration) -> Result<Output> {
        let argv = argv.iter().map(|word| word.as_bytes().to_vec()).collect();
        let mut stream = self.start(&Request { argv, ..Request::default() }, timeout)?;
        for chunk in input.chunks(CHUNK) {
            wire::write_frame(&mut stream, Kind::Stdin, chunk).context("the connection to the zone broke")?;
        }
        wire::write_frame(&mut stream, Kind::StdinEof, &[])?;
        let mut output = Output::default();
        output.code = receive(&mut stream, |error, bytes| {
            let to = if error { &mut output.stderr } else { &mut output.stdout };
            to.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(output)
    }

    /// As [`Door::output`], for commands that must succeed: what they wrote.
    ///
    /// # Errors
    /// Also when the status is not 0, with what the command complained about.
    pub fn read(&self, argv: &[&str], timeout: Duration) -> Result<Vec<u8>> {
        let output = self.output(argv, timeout)?;
        if output.code != 0 {
            bail!(
                "`{}` ended with {}: {}",
                argv.join(" "),
                output.code,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(output.stdout)
    }

    /// Runs a command without input and gives each line of its output to `line`; its complaints go to ours.
    ///
    /// # Errors
    /// As [`Door::output`], and what `line` returns.
    pub fn lines(&self, argv: &[&str], mut line: impl FnMut(&str) -> Result<()>) -> Result<u32> {
        let argv = argv.iter().map(|word| word.as_bytes().to_vec()).collect();
        let mut stream = self.start(&Request { argv, ..Request::default() }, START_DEADLINE)?;
        stream.set_read_timeout(None)?;
        wire::write_frame(&mut stream, Kind::StdinEof, &[])?;
        let mut rest = Vec::new();
        let code = receive(&mut stream, |error, bytes| {
            if error {
                return io::stderr().write_all(bytes).context("cannot write");
            }
            rest.extend_from_slice(bytes);
            while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
                let whole: Vec<u8> = rest.drain(..=at).collect();
                line(String::from_utf8_lossy(&whole).trim_end())?;
            }
            Ok(())
        })?;
        if !rest.is_empty() {
            line(&String::from_utf8_lossy(&rest))?;
        }
        Ok(code)
    }

    /// Runs a command with this process's own streams, passing signals on, and gives its exit status.
    ///
    /// # Errors
    /// When the door does not answer or cannot start the command.
    pub fn attach(&self, argv: Vec<Vec<u8>>, env: Vec<Vec<u8>>, terminal: bool) -> Result<u32> {
        let (signal_sender, signals_in) = mpsc::channel();
        let wanted = [signals::SIGINT, signals::SIGTERM, signals::SIGHUP, signals::SIGWINCH];
        signals::forward(&wanted, signal_sender, |signal| signal)?;
        let size = if terminal { Some(window_size()) } else { None };
        let mut stream = self.start(&Request { argv, env, terminal: size }, START_DEADLINE)?;
        stream.set_read_timeout(None)?;
        let raw = if terminal { RawTerminal::enter() } else { None };
        let writer = Arc::new(Mutex::new(stream.try_clone()?));
        let input = Arc::clone(&writer);
        // Both threads end with the process: nothing else wakes a read from our own input.
        std::thread::spawn(move || forward_input(&input));
        std::thread::spawn(move || forward_signals(&signals_in, &writer));
        let code = receive(&mut stream, |error, bytes| {
            if error {
                io::stderr().write_all(bytes).context("cannot write to stderr")
            } else {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush()).context("cannot write to stdout")
            }
        });
        drop(raw);
        match code {
            // A reader that has seen enough: what a shell says of a program that SIGPIPE ends.
            Err(error) if broken_pipe(&error) => Ok(128 + 13),
            code => code,
        }
    }
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    // Not when the connection to the zone broke: that is told.
    error.to_string().starts_with("cannot write to std")
        && error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Takes frames until the exit status; `take` gets output (`true`: error output).
fn receive(stream: &mut TcpStream, mut take: impl FnMut(bool, &[u8]) -> Result<()>) -> Result<u32> {
    loop {
        let Some(frame) = wire::read_frame(stream).context("the connection to the zone broke")? else {
            bail!("the zone has closed the connection before the command ended");
        };
        match frame.kind {
            Kind::Stdout => take(false, &frame.payload)?,
            Kind::Stderr => take(true, &frame.payload)?,
            Kind::Exit => {
                let code = frame.payload.try_into().map(u32::from_be_bytes);
                return code.map_err(|_| anyhow::anyhow!("the door's answer is damaged"));
            }
            Kind::Error => bail!("{}", String::from_utf8_lossy(&frame.payload)),
            _ => bail!("the door's answer is out of order"),
        }
    }
}

fn send(writer: &Mutex<TcpStream>, kind: Kind, payload: &[u8]) -> io::Result<()> {
    wire::write_frame(&mut *writer.lock().unwrap_or_else(PoisonError::into_inner), kind, payload)
}

fn forward_input(writer: &Mutex<TcpStream>) {
    let mut buffer = vec![0; CHUNK];
    let mut input = io::stdin().lock();
    loop {
        match input.read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(length) if length > 0 => {
                if send(writer, Kind::Stdin, &buffer[..length]).is_err() {
                    return;
                }
            }
            _ => {
                let _ = send(writer, Kind::StdinEof, &[]);
                return;
            }
        }
    }
}

fn forward_signals(signals_in: &mpsc::Receiver<i32>, writer: &Mutex<TcpStream>) {
    for signal in signals_in {
        let sent = if signal == signals::SIGWINCH {
            let (rows, columns) = window_size();
            send(writer, Kind::Resize, &wire::encode_size(rows, columns))
        } else {
            send(writer, Kind::Signal, &[u8::try_from(signal).unwrap_or_default()])
        };
        if sent.is_err() {
            return;
        }
    }
}

fn window_size() -> (u16, u16) {
    tcgetwinsize(io::stdout()).map_or((24, 80), |size| (size.ws_row, size.ws_col))
}

/// Our own terminal passes every key on; given back when dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Option<Self> {
        if !io::stdin().is_terminal() {
            return None;
        }
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn serve() -> Door {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || ::door::server::serve(&listener, TOKEN.as_bytes()));
        Door::new(address, TOKEN.into())
    }

    const TIMEOUT: Duration = Duration::from_secs(30);

    #[test]
    fn a_command_is_run_and_collected() {
        let output = serve().output(&["sh", "-c", "echo out; echo err >&2; exit 3"], TIMEOUT).unwrap();
        assert_eq!((output.code, &output.stdout[..], &output.stderr[..]), (3, &b"out\n"[..], &b"err\n"[..]));
    }

    #[test]
    fn a_failure_names_the_command_and_its_complaint() {
        let door = serve();
        let error = door.read(&["sh", "-c", "echo no space >&2; exit 5"], TIMEOUT).unwrap_err().to_string();
        assert!(error.contains("ended with 5: no space"), "{error}");
        let error = door.read(&["/no/such"], TIMEOUT).unwrap_err().to_string();
        assert!(error.contains("cannot run /no/such"), "{error}");
    }

    #[test]
    fn lines_come_whole_and_the_last_needs_no_end() {
        let mut seen = Vec::new();
        let code = serve().lines(&["printf", "one\\ntwo\\nthree"], |line| {
            seen.push(line.to_owned());
            Ok(())
        });
        assert_eq!((code.unwrap(), seen), (0, vec!["one".to_owned(), "two".into(), "three".into()]));
    }

    #[test]
    fn a_wrong_token_is_told() {
        let door = Door { token: "no".into(), ..serve() };
        assert!(door.output(&["true"], TIMEOUT).unwrap_err().to_string().contains("token is wrong"));
    }
}
