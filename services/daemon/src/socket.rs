//! The unix socket that a service answers on.

use anyhow::{Context as _, Result};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// Listens on a unix socket that owner and group may use; one that a former process left is replaced.
///
/// # Errors
/// When the folder or the socket cannot be made, or the old one not removed.
pub fn listen(path: &Path) -> Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    Ok(listener)
}

/// Returns when the service is asked to end: by SIGTERM, as systemd does, or by a person's Ctrl-C.
///
/// # Errors
/// When signals cannot be listened for.
pub fn terminated() -> Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_a_former_process_left_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/folder/service.sock");
        drop(listen(&path).unwrap());
        let listener = listen(&path).unwrap();
        let (connected, accepted) = tokio::join!(tokio::net::UnixStream::connect(&path), listener.accept());
        connected.unwrap();
        accepted.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    }

    #[tokio::test]
    async fn a_folder_in_the_sockets_place_is_named_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("service.sock");
        std::fs::create_dir(&path).unwrap();
        let error = listen(&path).unwrap_err();
        assert!(format!("{error:#}").contains("service.sock"), "{error:#}");
        assert!(path.is_dir());
    }
}
