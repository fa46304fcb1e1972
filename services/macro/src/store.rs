//! What keeps the state over a restart. One implementation now ([`crate::sqlite`]); etcd can stand behind the same trait.

use crate::engine::{Change, State};
use zone::ApiError;

/// Keeps the state.
pub trait Store: Send {
    /// Everything that was persisted.
    ///
    /// # Errors
    /// When it cannot be read.
    fn load(&mut self) -> anyhow::Result<State>;

    /// Persists changes, all or none. When `durable`, they survive a power cut from the moment this returns; else they
    /// survive the end of this process.
    ///
    /// # Errors
    /// `NoSpace` when the disk is full, `Internal` otherwise; then nothing is persisted.
    fn append(&mut self, changes: &[Change], durable: bool) -> Result<(), ApiError>;
}
