//! The door on loopback: what a client sees.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use door::wire::{self, Frame, Kind, Request};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const TOKEN: &[u8] = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn serve() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || door::server::serve(&listener, TOKEN));
    address
}

fn start(address: std::net::SocketAddr, token: &[u8], argv: &[&str], terminal: Option<(u16, u16)>) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    wire::write_frame(&mut stream, Kind::Auth, token).unwrap();
    let argv = argv.iter().map(|word| word.as_bytes().to_vec()).collect();
    let request = Request { argv, env: vec![b"GREETING=hello there".to_vec()], terminal };
    wire::write_frame(&mut stream, Kind::Request, &request.encode()).unwrap();
    stream
}

#[derive(Default, Debug)]
struct Seen {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: Option<u32>,
    error: Option<String>,
}

fn collect(stream: &mut TcpStream) -> Seen {
    let mut seen = Seen::default();
    while let Some(Frame { kind, payload }) = wire::read_frame(stream).unwrap() {
        match kind {
            Kind::Stdout => seen.stdout.extend(payload),
            Kind::Stderr => seen.stderr.extend(payload),
            Kind::Exit => seen.exit = Some(u32::from_be_bytes(payload.try_into().unwrap())),
            Kind::Error => seen.error = Some(String::from_utf8(payload).unwrap()),
            _ => {}
        }
    }
    seen
}

#[test]
fn output_error_output_and_status_come_apart() {
    let mut stream = start(serve(), TOKEN, &["sh", "-c", "echo $GREETING; echo no >&2; exit 7"], None);
    let seen = collect(&mut stream);
    assert_eq!((seen.stdout, seen.stderr, seen.exit), (b"hello there\n".to_vec(), b"no\n".to_vec(), Some(7)));
}

#[test]
fn a_wrong_token_runs_nothing() {
    let address = serve();
    for token in [&b"wrong"[..], b"", &[&TOKEN[..63], b"0"].concat()] {
        let seen = collect(&mut start(address, token, &["true"], None));
        assert_eq!((seen.exit, seen.error.as_deref()), (None, Some("the token is wrong")));
    }
}

#[test]
fn a_missing_program_is_named() {
    let seen = collect(&mut start(serve(), TOKEN, &["/no/such/program"], None));
    assert_eq!(seen.exit, None);
    assert!(seen.error.unwrap().starts_with("cannot run /no/such/program: "));
}

#[test]
fn input_reaches_the_command_and_ends() {
    let mut stream = start(serve(), TOKEN, &["sha256sum"], None);
    let chunk = vec![b'x'; wire::CHUNK];
    for _ in 0..64 {
        wire::write_frame(&mut stream, Kind::Stdin, &chunk).unwrap();
    }
    wire::write_frame(&mut stream, Kind::StdinEof, &[]).unwrap();
    let seen = collect(&mut stream);
    assert_eq!(seen.exit, Some(0));
    let expected = std::process::Command::new("sh")
        .args(["-c", "head -c 2097152 /dev/zero | tr '\\0' x | sha256sum"])
        .output()
        .unwrap();
    assert_eq!(seen.stdout, expected.stdout);
}

#[test]
fn much_output_arrives_whole() {
    let seen = collect(&mut start(serve(), TOKEN, &["head", "-c", "8000000", "/dev/zero"], None));
    assert_eq!((seen.stdout.len(), seen.exit), (8_000_000, Some(0)));
}

#[test]
fn a_command_that_ignores_its_input_still_ends() {
    let mut stream = start(serve(), TOKEN, &["true"], None);
    let mut writer = stream.try_clone().unwrap();
    std::thread::spawn(move || while wire::write_frame(&mut writer, Kind::Stdin, &[b'y'; 4096]).is_ok() {});
    while let Some(frame) = wire::read_frame(&mut stream).unwrap() {
        if frame.kind == Kind::Exit {
            assert_eq!(frame.payload, 0u32.to_be_bytes());
            return;
        }
    }
    panic!("the connection ended without an exit status");
}

#[test]
fn a_process_left_behind_does_not_keep_the_connection_open() {
    let started = std::time::Instant::now();
    let seen = collect(&mut start(serve(), TOKEN, &["sh", "-c", "sleep 25 & echo done"], None));
    assert_eq!((seen.stdout, seen.exit), (b"done\n".to_vec(), Some(0)));
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_signal_ends_the_command_with_the_shells_status() {
    let mut stream = start(serve(), TOKEN, &["sh", "-c", "echo ready; exec sleep 60"], None);
    while wire::read_frame(&mut stream).unwrap().unwrap().kind != Kind::Stdout {}
    wire::write_frame(&mut stream, Kind::Signal, &[15]).unwrap();
    assert_eq!(collect(&mut stream).exit, Some(128 + 15));
}

#[test]
fn a_client_that_leaves_takes_its_command_with_it() {
    let mut stream = start(serve(), TOKEN, &["sh", "-c", "echo $$; exec sleep 60"], None);
    let pid = loop {
        let frame = wire::read_frame(&mut stream).unwrap().unwrap();
        if frame.kind == Kind::Stdout {
            break String::from_utf8(frame.payload).unwrap().trim().to_owned();
        }
    };
    drop(stream);
    let path = format!("/proc/{pid}");
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while std::path::Path::new(&path).exists() {
        assert!(std::time::Instant::now() < until, "process {pid} still runs");
        std::thread::yield_now();
    }
}

#[test]
fn a_terminal_is_one_and_has_the_size_asked_for() {
    let seen =
        collect(&mut start(serve(), TOKEN, &["sh", "-c", "tty >/dev/null && stty size; exit 4"], Some((33, 101))));
    assert_eq!((String::from_utf8(seen.stdout).unwrap().as_str(), seen.exit), ("33 101\r\n", Some(4)));
}

#[test]
fn many_connections_run_at_once() {
    let address = serve();
    let mut streams: Vec<_> = (0..20).map(|_| start(address, TOKEN, &["cat"], None)).collect();
    for (index, stream) in streams.iter_mut().enumerate() {
        wire::write_frame(stream, Kind::Stdin, index.to_string().as_bytes()).unwrap();
        wire::write_frame(stream, Kind::StdinEof, &[]).unwrap();
    }
    for (index, stream) in streams.iter_mut().enumerate() {
        assert_eq!(collect(stream).stdout, index.to_string().into_bytes());
    }
}

/// The door's program as systemd starts it: the leader of a session that has no terminal.
struct Service(std::process::Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_service_that_gives_commands_terminals_keeps_running() {
    let credentials = std::env::temp_dir().join(format!("kraud-door-{}", std::process::id()));
    std::fs::create_dir_all(&credentials).unwrap();
    std::fs::write(credentials.join(door::CREDENTIAL), TOKEN).unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = std::process::Command::new("setsid");
    command.args([env!("CARGO_BIN_EXE_door"), &address.to_string()]).env("CREDENTIALS_DIRECTORY", &credentials);
    let mut service = Service(command.spawn().unwrap());
    let until = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < until, "the door does not listen");
        std::thread::park_timeout(Duration::from_millis(10));
    }
    for _ in 0..3 {
        let script = "test -t 0 && : < /dev/tty && exit 5";
        let seen = collect(&mut start(address, TOKEN, &["sh", "-c", script], Some((24, 80))));
        assert_eq!((seen.exit, seen.error.as_deref()), (Some(5), None), "{}", String::from_utf8_lossy(&seen.stdout));
    }
    assert!(service.0.try_wait().unwrap().is_none());
    std::fs::remove_dir_all(&credentials).unwrap();
}
