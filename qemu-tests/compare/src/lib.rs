//! `compare`: the same calls against Docker Engine and the zone, answers compared key by key.
//!
//! ```text
//! tables/*.json ──> table (steps) ──> run ──http──> Docker Engine ──> normal ──┐
//!                                       └────http──> the zone ──────> normal ──┴──> differ ──> allowed ──> report
//! ```
//! Runs inside the development image, where both engines are. The tables are data, and so is the list of differences that
//! are meant to be ([`allowed`]): each has its reason, and one that nothing shows any more is reported as well.
#![forbid(unsafe_code)]

pub mod allowed;
pub mod coverage;
pub mod differ;
pub mod http;
pub mod normal;
pub mod page;
pub mod peer;
pub mod run;
pub mod table;
