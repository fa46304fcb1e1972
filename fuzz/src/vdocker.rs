//! The agent in the guest: what a client sends it, and what a container's own files make of it.

use crate::input::Input;
use crate::{scratch, tar};
use ::vdocker::archive::{pack, unpack};
use ::vdocker::detach::DetachKeys;
use ::vdocker::exec::{ExecConfig, StartConfig};
use ::vdocker::http::request::{Request, RequestError};
use ::vdocker::inroot::InRoot;
use ::vdocker::platform::Stream;
use ::vdocker::user::Users;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

/// A request as it was read: method, path, a parameter, its body, whether another may follow.
type Seen = (String, String, String, Option<Vec<u8>>, bool);

#[allow(clippy::expect_used)]
fn read_all(sent: &[u8], ahead: usize, body: u8) -> Vec<Seen> {
    let (mut client, server) = UnixStream::pair().expect("the machine that fuzzes has descriptors");
    let (ahead, rest) = sent.split_at(ahead.min(sent.len()));
    let _ = client.set_nonblocking(true);
    let _ = client.write_all(rest);
    let _ = client.shutdown(Shutdown::Write);
    let stream = Arc::new(Stream(server.into()));
    let (mut seen, mut before) = (Vec::new(), ahead.to_vec());
    while seen.len() < 64 {
        let mut request = match Request::read(&stream, before) {
            Ok(request) => request,
            Err(error) => {
                assert!(matches!(error, RequestError::Closed) || error.status() >= 400);
                break;
            }
        };
        let body = match body % 3 {
            0 => request.json::<ExecConfig>().is_ok().then(Vec::new),
            1 => request.json::<StartConfig>().is_ok().then(Vec::new),
            _ => {
                let mut bytes = Vec::new();
                request.body().read_to_end(&mut bytes).is_ok().then_some(bytes)
            }
        };
        let goes_on = body.is_some() && request.body_is_read() && request.keep_alive;
        let parameter = format!("{} {}", request.query("path"), request.flag("stdin"));
        seen.push((request.method.clone(), request.path.clone(), parameter, body, goes_on));
        if !goes_on {
            break;
        }
        before = request.into_rest();
    }
    seen
}

/// Requests one after the other: what is read is the same however the bytes arrive.
pub fn http(data: &[u8]) {
    let mut input = Input::new(data);
    let (body, cut) = (input.byte(), usize::from(input.word()));
    let sent = input.rest();
    assert_eq!(read_all(sent, 0, body), read_all(sent, cut, body), "cut at {cut}");
}

/// Texts of a client: keys to leave with, signals, users.
pub fn texts(data: &[u8]) {
    let mut input = Input::new(data);
    let (keys, typed) = (String::from_utf8_lossy(input.piece()), input.piece());
    let cut = usize::from(input.byte()).min(typed.len());
    let mut whole = DetachKeys::parse(&keys);
    let mut pieces = DetachKeys::parse(&keys);
    let first = pieces.pass(&typed[..cut]);
    let both = first.and_then(|first| Some([first, pieces.pass(&typed[cut..])?].concat()));
    assert_eq!(whole.pass(typed), both, "keys that are typed slowly are others");
    let user = String::from_utf8_lossy(input.piece());
    let signal = ::vdocker::signals::parse(&user);
    assert!(signal.is_none_or(|signal| (0..=64).contains(&signal)));
    let (passwd, group) = (input.piece(), input.piece());
    let folder = scratch::folder();
    let _ = std::fs::create_dir(folder.path().join("etc"));
    let _ = std::fs::write(folder.path().join("etc/passwd"), passwd);
    let _ = std::fs::write(folder.path().join("etc/group"), group);
    if let Ok(root) = InRoot::open(folder.path()) {
        let users = Users::read(&root);
        let more = [String::from_utf8_lossy(input.rest()).into_owned()];
        if let Ok(identity) = users.resolve(&user, &more) {
            let _ = users.name_of(identity.uid);
        }
    }
}

/// An archive into a container's folder, whose files are a stranger's too: nothing outside of the root changes, and what is there
/// then can be packed.
pub fn unpacking(data: &[u8]) {
    let mut input = Input::new(data);
    let (options, links) = (input.byte(), input.byte());
    let place = scratch::folder();
    let root = place.path().join("root");
    let _ = std::fs::create_dir_all(root.join("in/a"));
    let _ = std::fs::create_dir(place.path().join("outside"));
    let _ = std::fs::write(place.path().join("outside/file"), "as it was");
    let targets =
        ["../..", "/", "../../outside", "a", "/in/up", "/proc/self/root", place.path().to_str().unwrap_or("/")];
    let _ = symlink(targets[usize::from(links & 7) % targets.len()], root.join("in/up"));
    let _ = symlink(targets[usize::from(links >> 4) % targets.len()], root.join("in/a/b"));
    let before = scratch::listing(&place.path().join("outside"));
    let options = unpack::Options { keep_kinds: options & 1 != 0, owner: (options & 2 != 0).then_some((5, 6)) };
    let archive = tar::archive(&mut input);
    if let Ok(opened) = InRoot::open(&root) {
        let _ = unpack::unpack(&opened, Path::new("/in"), &options, archive.as_slice());
        if let Ok(handle) = opened.handle(Path::new("/in")) {
            let mut packed = Vec::new();
            if pack::pack(&handle, "in", &mut packed).is_ok() {
                let mut again = ::tar::Archive::new(packed.as_slice());
                let whole = again.entries().is_ok_and(|mut entries| entries.all(|entry| entry.is_ok()));
                assert!(whole, "what was packed is no archive");
            }
        }
    }
    assert!(scratch::listing(&place.path().join("outside")) == before, "an archive leaves its root");
    assert_eq!(std::fs::read_dir(place.path()).map_or(0, Iterator::count), 2, "an archive leaves its root");
}
