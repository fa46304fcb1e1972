//! The vocabulary that every part of a zone shares.
//!
//! Owns: the typed ids, the resources that the state engine keeps ([`resource`] and one file per kind), what a
//! microVM is started from ([`bundle`], [`guest`]), the container's log file ([`log`]), the names of capabilities ([`capability`]), the places
//! where things lie ([`paths`]) and, behind the feature `client`, the state engine's client.
//!
//! Must not: do any work of a service, or depend on one. Types here are wire formats: a field that is removed or
//! changes its meaning breaks a machine that is updated while its pods run, so fields are added with a default.

pub mod access;
pub mod bundle;
#[cfg(feature = "client")]
pub mod cache;
pub mod capability;
#[cfg(feature = "client")]
pub mod client;
pub mod control;
pub mod endpoint;
pub mod error;
pub mod guest;
pub mod health;
pub mod ids;
pub mod image;
pub mod log;
#[cfg(feature = "client")]
pub mod marker;
pub mod network;
pub mod notify;
pub mod paths;
pub mod pod;
pub mod resource;
pub mod service;
pub mod template;
pub mod time;
pub mod volume;

pub use error::{ApiError, ErrorKind};
pub use ids::{ContainerId, EndpointId, ImageId, LayerId, NetworkId, PodId, SnapshotId, VolumeName};
pub use resource::{Kind, Meta, Resource};
