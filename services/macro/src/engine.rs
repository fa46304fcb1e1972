//! The state in memory: every resource, and the last changes for watches.
//!
//! Pure: checks a transaction against the state and says what it would change; it neither persists nor answers.
//!
//! Invariants: revisions grow by one with each transaction that changes something; all changes of a transaction have
//! one revision; the history has every change after `forgotten`, in order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use zone::client::{Event, Operation};
use zone::{ApiError, ErrorKind, Meta};

/// How many changes the history keeps: a watcher that stays away for longer has to list again.
pub const HISTORY: usize = 20_000;
/// The largest resource, bytes of JSON.
pub const MAX_RESOURCE: usize = 4 << 20;
/// The longest name, bytes.
const MAX_NAME: usize = 512;
/// The most operations in a transaction.
const MAX_OPERATIONS: usize = 512;

/// A resource as the store keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Kind, name, revision.
    pub meta: Meta,
    /// What is wanted.
    pub spec: serde_json::Value,
    /// What is.
    pub status: serde_json::Value,
}

impl Object {
    /// The resource as it goes over the wire.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({"meta": self.meta, "spec": self.spec, "status": self.status})
    }
}

/// A resource's place: kind and name.
pub type Key = (String, String);

/// One change of one resource.
#[derive(Clone, Debug)]
pub struct Change {
    /// The revision that it made.
    pub revision: u64,
    /// The resource after it; as it was last, when it is deleted.
    pub object: Arc<Object>,
    /// The resource is gone.
    pub deleted: bool,
}

impl Change {
    /// The change as a watch tells it.
    pub fn to_event(&self) -> Event {
        let (revision, object) = (self.revision, self.object.to_json());
        if self.deleted { Event::Delete { revision, object } } else { Event::Put { revision, object } }
    }
}

/// Everything, as far as it is persisted.
#[derive(Debug, Default)]
pub struct State {
    /// The id made once with the store.
    pub zone: String,
    /// The last transaction's revision.
    pub revision: u64,
    /// Watches can start at this revision or later.
    pub forgotten: u64,
    /// The resources.
    pub resources: BTreeMap<Key, Arc<Object>>,
    /// The changes after `forgotten`.
    pub history: VecDeque<Change>,
}

/// What a transaction would do.
#[derive(Debug, Default)]
pub struct Plan {
    /// The changes, in order; empty when it changes nothing.
    pub changes: Vec<Change>,
    /// Each operation's resource afterwards; none for a delete.
    pub items: Vec<Option<Arc<Object>>>,
    /// It must be on disk before it is answered.
    pub durable: bool,
}

impl State {
    /// Takes changes over that have been persisted.
    pub fn commit(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.revision = self.revision.max(change.revision);
            let key = (change.object.meta.kind.clone(), change.object.meta.name.clone());
            if change.deleted {
                self.resources.remove(&key);
            } else {
                self.resources.insert(key, change.object.clone());
            }
            self.history.push_back(change);
        }
        while self.history.len() > HISTORY {
            // A transaction's changes are forgotten together: a watch must never see half of one.
            if let Some(oldest) = self.history.front().map(|c| c.revision) {
                self.forgotten = oldest;
                while self.history.front().is_some_and(|c| c.revision == oldest) {
                    self.history.pop_front();
                }
            }
        }
    }

    /// The changes of `kinds` after `from`, at most about `limit`.
    ///
    /// # Errors
    /// `Gone` when some of them are forgotten.
    pub fn changes_after(&self, from: u64, kinds: &[String], limit: usize) -> Result<(Vec<Change>, u64), ApiError> {
        if from < self.forgotten {
            let text = format!(
                "changes after revision {from} are forgotten (the oldest kept is after {}); list again",
                self.forgotten
            );
            return Err(ApiError::new(ErrorKind::Gone, text));
        }
        let start = self.history.partition_point(|c| c.revision <= from);
        let mut found = Vec::new();
        for change in self.history.iter().skip(start) {
            if found.len() >= limit && found.last().is_some_and(|c: &Change| c.revision != change.revision) {
                let seen = found.last().map_or(from, |c| c.revision);
                return Ok((found, seen));
            }
            if kinds.contains(&change.object.meta.kind) {
                found.push(change.clone());
            }
        }
        Ok((found, self.revision.max(from)))
    }
}

/// The state with the transactions of a batch laid over it that are checked but not yet persisted.
#[derive(Debug)]
pub struct Draft<'a> {
    base: &'a State,
    revision: u64,
    overlay: BTreeMap<Key, Option<Arc<Object>>>,
}

impl<'a> Draft<'a> {
    /// Nothing laid over `base` yet.
    pub fn new(base: &'a State) -> Self {
        Self { base, revision: base.revision, overlay: BTreeMap::new() }
    }

    /// Checks a transaction and lays it over the state.
    ///
    /// # Errors
    /// The first operation's that cannot be; then nothing is laid over.
    pub fn plan(&mut self, operations: &[Operation], now_ns: u64) -> Result<Plan, ApiError> {
        if operations.len() > MAX_OPERATIONS {
            return Err(invalid(format!(
                "a transaction has at most {MAX_OPERATIONS} operations, not {}",
                operations.len()
            )));
        }
        let revision = self.revision + 1;
        let mut mine: BTreeMap<Key, Option<Arc<Object>>> = BTreeMap::new();
        let mut plan = Plan::default();
        for operation in operations {
            let key = key_of(operation)?;
            let current = match mine.get(&key) {
                Some(changed) => changed.clone(),
                None => self.get(&key),
            };
            plan.durable |= !matches!(operation, Operation::UpdateStatus { .. });
            match step(operation, &key, current, revision, now_ns)? {
                Step::Nothing(object) => plan.items.push(Some(object)),
                Step::Put(object) => {
                    mine.insert(key, Some(object.clone()));
                    plan.changes.push(Change { revision, object: object.clone(), deleted: false });
                    plan.items.push(Some(object));
                }
                Step::Delete(object) => {
                    mine.insert(key, None);
                    plan.changes.push(Change { revision, object, deleted: true });
                    plan.items.push(None);
                }
            }
        }
        if !plan.changes.is_empty() {
            self.revision = revision;
            self.overlay.append(&mut mine);
        }
        Ok(plan)
    }

    /// The revision after everything that is laid over.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    fn get(&self, key: &Key) -> Option<Arc<Object>> {
        match self.overlay.get(key) {
            Some(changed) => changed.clone(),
            None => self.base.resources.get(key).cloned(),
        }
    }
}

enum Step {
    Nothing(Arc<Object>),
    Put(Arc<Object>),
    Delete(Arc<Object>),
}

fn step(
    operation: &Operation,
    key: &Key,
    current: Option<Arc<Object>>,
    revision: u64,
    now_ns: u64,
) -> Result<Step, ApiError> {
    if let Operation::Create { spec, status, .. } = operation {
        if current.is_some() {
            return Err(ApiError::new(ErrorKind::Conflict, format!("{} {} exists already", key.0, key.1)));
        }
        let meta = Meta { kind: key.0.clone(), name: key.1.clone(), revision, generation: 1, created_ns: now_ns };
        let status = status.clone().unwrap_or_default();
        return sized(Object { meta, spec: spec.clone(), status }).map(Step::Put);
    }
    let Some(current) = current else {
        return Err(ApiError::new(ErrorKind::NotFound, format!("there is no {} {}", key.0, key.1)));
    };
    match operation {
        Operation::UpdateSpec { revision: seen, spec, .. } => {
            compare(&current, *seen)?;
            if current.spec == *spec {
                return Ok(Step::Nothing(current));
            }
            let meta = Meta { revision, generation: current.meta.generation + 1, ..current.meta.clone() };
            sized(Object { meta, spec: spec.clone(), status: current.status.clone() }).map(Step::Put)
        }
        Operation::UpdateStatus { revision: seen, status, .. } => {
            compare(&current, *seen)?;
            if current.status == *status {
                return Ok(Step::Nothing(current));
            }
            let meta = Meta { revision, ..current.meta.clone() };
            sized(Object { meta, spec: current.spec.clone(), status: status.clone() }).map(Step::Put)
        }
        Operation::Delete { revision: seen, .. } => {
            if let Some(seen) = seen {
                compare(&current, *seen)?;
            }
            Ok(Step::Delete(current))
        }
        Operation::Create { .. } => Ok(Step::Nothing(current)),
    }
}

fn compare(current: &Object, seen: u64) -> Result<(), ApiError> {
    let Meta { kind, name, revision, .. } = &current.meta;
    if *revision == seen {
        return Ok(());
    }
    let text = format!("{kind} {name} is at revision {revision}, not {seen}: it has changed since it was read");
    Err(ApiError::new(ErrorKind::Conflict, text))
}

fn sized(object: Object) -> Result<Arc<Object>, ApiError> {
    let size = object.to_json().to_string().len();
    if size > MAX_RESOURCE {
        let Meta { kind, name, .. } = &object.meta;
        let text = format!("{kind} {name} would have {size} bytes; at most {MAX_RESOURCE} are allowed");
        return Err(ApiError::new(ErrorKind::TooLarge, text));
    }
    Ok(Arc::new(object))
}

fn key_of(operation: &Operation) -> Result<Key, ApiError> {
    let (Operation::Create { kind, name, .. }
    | Operation::UpdateSpec { kind, name, .. }
    | Operation::UpdateStatus { kind, name, .. }
    | Operation::Delete { kind, name, .. }) = operation;
    if kind.is_empty() || kind.len() > 64 || !kind.bytes().all(|b| b.is_ascii_lowercase()) {
        return Err(invalid(format!("a kind has 1 to 64 lower-case letters, not '{kind}'")));
    }
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(invalid(format!("a name of kind {kind} has 1 to {MAX_NAME} bytes and no control characters")));
    }
    Ok((kind.clone(), name.clone()))
}

fn invalid(message: String) -> ApiError {
    ApiError::new(ErrorKind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn create(name: &str) -> Operation {
        Operation::Create { kind: "pod".into(), name: name.into(), spec: json!({"a": 1}), status: None }
    }

    fn delete(name: &str) -> Operation {
        Operation::Delete { kind: "pod".into(), name: name.into(), revision: None }
    }

    fn run(state: &mut State, operations: &[Operation]) -> Result<Vec<Option<Arc<Object>>>, ErrorKind> {
        let plan = Draft::new(state).plan(operations, 1).map_err(|e| e.kind)?;
        state.commit(plan.changes);
        Ok(plan.items)
    }

    #[test]
    fn a_name_can_be_taken_once() {
        let mut state = State::default();
        run(&mut state, &[create("x")]).unwrap();
        assert_eq!(run(&mut state, &[create("x")]).unwrap_err(), ErrorKind::Conflict);
        assert_eq!(state.revision, 1);
    }

    #[test]
    fn a_transaction_that_fails_at_its_end_changes_nothing() {
        let mut state = State::default();
        assert_eq!(run(&mut state, &[create("x"), delete("absent")]).unwrap_err(), ErrorKind::NotFound);
        assert!(state.resources.is_empty());
        assert_eq!(state.revision, 0);
    }

    #[test]
    fn a_write_on_an_old_revision_is_refused() {
        let mut state = State::default();
        run(&mut state, &[create("x")]).unwrap();
        let update = |revision| Operation::UpdateStatus {
            kind: "pod".into(),
            name: "x".into(),
            revision,
            status: json!({"s": revision}),
        };
        run(&mut state, &[update(1)]).unwrap();
        assert_eq!(run(&mut state, &[update(1)]).unwrap_err(), ErrorKind::Conflict);
    }

    #[test]
    fn writing_what_is_there_already_makes_no_revision() {
        let mut state = State::default();
        run(&mut state, &[create("x")]).unwrap();
        let same = Operation::UpdateSpec { kind: "pod".into(), name: "x".into(), revision: 1, spec: json!({"a": 1}) };
        run(&mut state, &[same]).unwrap();
        assert_eq!(state.revision, 1);
    }

    #[test]
    fn a_spec_write_counts_the_generation_and_a_status_write_does_not() {
        let mut state = State::default();
        run(&mut state, &[create("x")]).unwrap();
        let spec = Operation::UpdateSpec { kind: "pod".into(), name: "x".into(), revision: 1, spec: json!({"a": 2}) };
        assert_eq!(run(&mut state, &[spec]).unwrap()[0].as_ref().unwrap().meta.generation, 2);
        let status = Operation::UpdateStatus { kind: "pod".into(), name: "x".into(), revision: 2, status: json!(5) };
        assert_eq!(run(&mut state, &[status]).unwrap()[0].as_ref().unwrap().meta.generation, 2);
    }

    #[test]
    fn transactions_of_one_batch_see_each_other() {
        let state = State::default();
        let mut draft = Draft::new(&state);
        draft.plan(&[create("x")], 1).unwrap();
        assert_eq!(draft.plan(&[create("x")], 1).unwrap_err().kind, ErrorKind::Conflict);
        assert_eq!(draft.plan(&[delete("x"), create("x")], 1).unwrap().changes.len(), 2);
    }

    #[test]
    fn a_watch_from_a_forgotten_revision_is_told_so_and_never_given_a_gap() {
        let mut state = State::default();
        for n in 0..HISTORY + 10 {
            run(&mut state, &[create(&format!("x{n}"))]).unwrap();
        }
        let kinds = ["pod".to_owned()];
        assert_eq!(state.changes_after(9, &kinds, 5).unwrap_err().kind, ErrorKind::Gone);
        let (changes, seen) = state.changes_after(10, &kinds, 5).unwrap();
        assert_eq!(changes.iter().map(|c| c.revision).collect::<Vec<_>>(), [11, 12, 13, 14, 15]);
        assert_eq!(seen, 15);
    }

    #[test]
    fn a_watch_of_another_kind_moves_on_past_what_it_does_not_tell() {
        let mut state = State::default();
        run(&mut state, &[create("x")]).unwrap();
        let (changes, seen) = state.changes_after(0, &["volume".to_owned()], 5).unwrap();
        assert!(changes.is_empty());
        assert_eq!(seen, 1);
    }
}
