//! The one writer: checks transactions, persists them in groups, then shows them to readers and watches.
//!
//! Order of a transaction: checked → persisted → visible → answered. Nobody sees what a power cut could take back,
//! but for statuses.

use crate::engine::{Change, Draft, Plan, State};
use crate::store::Store;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::{mpsc, oneshot, watch};
use zone::client::{Operation, TransactionResult};
use zone::{ApiError, ErrorKind};

/// How many transactions are persisted together at most.
const GROUP: usize = 128;
/// How many transactions may wait; more callers wait in their sockets.
const QUEUE: usize = 1024;

type Answer = Result<TransactionResult, ApiError>;

struct Request {
    operations: Vec<Operation>,
    answer: oneshot::Sender<Answer>,
}

/// What readers see: only what is persisted.
#[derive(Debug)]
pub struct Shared {
    state: RwLock<State>,
    revision: watch::Sender<u64>,
}

impl Shared {
    /// The state, for a short look.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last revision that is visible.
    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Tells each new revision.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn commit(&self, changes: Vec<Change>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.commit(changes);
        let revision = state.revision;
        drop(state);
        self.revision.send_replace(revision);
    }
}

/// The way to the writer's thread. Cheap to clone; the thread ends with the last clone.
#[derive(Clone, Debug)]
pub struct Writer {
    queue: mpsc::Sender<Request>,
    shared: Arc<Shared>,
}

impl Writer {
    /// What readers see.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Carries out a transaction.
    ///
    /// # Errors
    /// The first operation's that cannot be; `NoSpace` or `Internal` when it cannot be persisted.
    pub async fn transact(&self, operations: Vec<Operation>) -> Answer {
        let (answer, answered) = oneshot::channel();
        let stopped = || ApiError::new(ErrorKind::Unavailable, "the state engine stops");
        self.queue.send(Request { operations, answer }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

/// Loads the state and starts the writer's thread.
///
/// # Errors
/// When the state cannot be loaded or the thread not be started.
pub fn start(mut store: Box<dyn Store>) -> anyhow::Result<Writer> {
    let state = store.load()?;
    let (revision, _) = watch::channel(state.revision);
    let shared = Arc::new(Shared { state: RwLock::new(state), revision });
    let (queue, mut requests) = mpsc::channel::<Request>(QUEUE);
    let writer = Writer { queue, shared: shared.clone() };
    std::thread::Builder::new().name("writer".into()).spawn(move || {
        let mut group = Vec::with_capacity(GROUP);
        while let Some(first) = requests.blocking_recv() {
            group.push(first);
            while group.len() < GROUP
                && let Ok(next) = requests.try_recv()
            {
                group.push(next);
            }
            write_group(store.as_mut(), &shared, std::mem::take(&mut group));
        }
    })?;
    Ok(writer)
}

fn write_group(store: &mut dyn Store, shared: &Shared, group: Vec<Request>) {
    let now_ns = zone::time::now_ns();
    let (plans, changes, durable) = {
        let state = shared.state();
        let mut draft = Draft::new(&state);
        let mut plans = Vec::with_capacity(group.len());
        let mut changes = Vec::new();
        let mut durable = false;
        for request in group {
            let plan = draft.plan(&request.operations, now_ns);
            if let Ok(plan) = &plan {
                changes.extend(plan.changes.iter().cloned());
                durable |= plan.durable && !plan.changes.is_empty();
            }
            plans.push((request.answer, plan, draft.revision()));
        }
        (plans, changes, durable)
    };
    let persisted = if changes.is_empty() { Ok(()) } else { store.append(&changes, durable) };
    if let Err(error) = &persisted {
        tracing::error!(error = %error, changes = changes.len(), "cannot persist");
    } else if !changes.is_empty() {
        shared.commit(changes);
    }
    for (answer, plan, revision) in plans {
        let result = plan.and_then(|plan| persisted.clone().map(|()| result_of(&plan, revision)));
        // A caller that has gone away needs no answer.
        let _ = answer.send(result);
    }
}

fn result_of(plan: &Plan, revision: u64) -> TransactionResult {
    TransactionResult { revision, items: plan.items.iter().map(|i| i.as_ref().map(|o| o.to_json())).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Default)]
    struct FullDisk;

    impl Store for FullDisk {
        fn load(&mut self) -> anyhow::Result<State> {
            Ok(State::default())
        }

        fn append(&mut self, _: &[Change], _: bool) -> Result<(), ApiError> {
            Err(ApiError::new(ErrorKind::NoSpace, "the disk is full"))
        }
    }

    #[tokio::test]
    async fn what_cannot_be_persisted_is_neither_acknowledged_nor_visible() {
        let writer = start(Box::new(FullDisk)).unwrap();
        let create = Operation::Create { kind: "pod".into(), name: "x".into(), spec: json!({}), status: None };
        assert_eq!(writer.transact(vec![create]).await.unwrap_err().kind, ErrorKind::NoSpace);
        assert!(writer.shared().state().resources.is_empty());
        assert_eq!(writer.shared().revision(), 0);
    }
}
