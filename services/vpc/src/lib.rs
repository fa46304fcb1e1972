//! Networks of a zone: subnets, addresses, taps, names, published ports, and the walls between networks.
//!
//! ```text
//!  macro ── network, endpoint, pod ──> reconcile ──> plan (pure) ──> links     taps, addresses, routes   (rtnetlink, ioctl)
//!    ▲                                    │                     ├──> firewall  one nftables table        (nft -j)
//!    └──────────── status ────────────────┘                     └──> dns       names on each gateway
//! ```
//! A pod's endpoint is a tap with a routed /32: no bridge, no broadcast between pods. All rules are made once; a pod is
//! a few elements of sets and maps, so the number of rules never grows.
//!
//! Invariants: [`plan`] is a pure function of resources and world, and giving it its own result changes nothing. What is in
//! the kernel and has no resource is removed. The service may be killed at any moment: taps, routes and rules stay, and the
//! next start goes on from them.
//!
//! Must not: know images, volumes or monitors; hold state that is neither in macro nor in the kernel.

#![deny(unsafe_code)]

pub mod dns;
pub mod firewall;
pub mod links;
pub mod listeners;
pub mod plan;
pub mod reconcile;
pub mod resources;
pub mod subnet;
pub mod tap;
