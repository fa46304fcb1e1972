//! The real program, started in a folder of the test's own.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use zone::client::Client;

/// A state engine; it ends with this.
pub struct Engine {
    pub child: Child,
    pub client: Client,
}

/// Starts an engine on the state in `folder` and waits until it answers.
pub async fn start(folder: &Path) -> Engine {
    let socket = folder.join("macro.sock");
    let child = Command::new(env!("CARGO_BIN_EXE_kraud-macro"))
        .args(["--socket".as_ref(), socket.as_os_str(), "--state".as_ref(), folder.join("state").as_os_str()])
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let client = Client::new(&socket);
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = client.zone_id().await {
        assert!(Instant::now() < deadline, "the state engine does not answer: {error}");
        tokio::task::yield_now().await;
    }
    Engine { child, client }
}
