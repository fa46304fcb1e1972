//! The booted zone: a virtual machine on this computer, and everything that talks to it.
//!
//! One supervisor process per zone owns QEMU, its port forwards and the files of the state directory ([`state`]); every other
//! command is a short-lived client that reads those files, signals the supervisor, or speaks to the zone itself. Nothing here
//! knows how an image is made: it gets a [`crate::build::Built`].
//!
//! ```text
//! cargo appliance run ── pipe ── supervisor ── QMP ── QEMU
//!                  exec, logs ── door, Docker API, web (loopback forwards) ──┘
//! ```

pub mod bench;
pub mod control;
pub mod disks;
pub mod door;
pub mod env;
pub mod flash;
pub mod forwards;
pub mod host;
pub mod http;
pub mod lan;
pub mod pairing;
pub mod qemu;
pub mod qmp;
pub mod ready;
pub mod report;
pub mod run;
pub mod signals;
pub mod state;
pub mod suite;
pub mod supervisor;
pub mod swap;
