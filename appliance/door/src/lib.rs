//! The exec door of the development variant: runs commands as root in a booted zone for whoever knows its token.
//!
//! This library is the protocol ([`wire`]), the server ([`server`]) and the running of one command ([`session`]); the client
//! lives in the appliance tool and shares [`wire`]. It is never part of a release image.
//!
//! ```text
//! client                         server
//!   AUTH token            ->
//!   REQUEST argv, env     ->
//!                         <-  STARTED pid, or ERROR text and the end
//!   STDIN.. STDIN_EOF     ->
//!   SIGNAL n, RESIZE h w  ->
//!                         <-  STDOUT.. STDERR..
//!                         <-  EXIT code, then the end
//! ```
//! One connection is one command. When the client goes away, the command's process group is killed.

pub mod server;
pub mod session;
pub mod wire;

/// The port in the guest.
pub const PORT: u16 = 7722;
/// The name of the systemd credential that holds the token, 64 hexadecimal digits.
pub const CREDENTIAL: &str = "kraud.door-token";
