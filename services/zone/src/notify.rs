//! Tells systemd that a service is ready (sd_notify(3)).

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says `READY=1` to whoever started this process, if it asked to be told. Failing to is no reason to fail.
pub fn ready() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(socket.as_os_str());
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&socket),
    };
    if let (Ok(address), Ok(datagram)) = (address, UnixDatagram::unbound()) {
        let _ = datagram.send_to_addr(b"READY=1", &address);
    }
}
