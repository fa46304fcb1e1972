//! Smaller doors of the zone's services: the state engine's transactions, and questions for names.

use crate::input::Input;
use ::vpc::dns::{Judged, judge};
use ::vpc::plan::Names;
use hickory_proto::op::{Message, MessageType};
use kraud_macro::engine::{Draft, State};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use zone::client::Transaction;

/// Transactions one after the other: each is carried out whole or not at all, and revisions only grow.
pub fn transactions(data: &[u8]) {
    let mut state = State::default();
    for text in data.split(|byte| *byte == b'\n').take(16) {
        let Ok(transaction) = serde_json::from_slice::<Transaction>(text) else { continue };
        let (revision, count) = (state.revision, state.resources.len());
        let planned = Draft::new(&state).plan(&transaction.operations, 1);
        assert_eq!((state.revision, state.resources.len()), (revision, count));
        let Ok(plan) = planned else { continue };
        assert_eq!(plan.items.len(), transaction.operations.len());
        let changes = plan.changes.len();
        state.commit(plan.changes);
        assert_eq!(state.revision, revision + u64::from(changes > 0));
        let told = state.changes_after(revision, &["pod".to_owned()], 100);
        assert!(told.is_ok_and(|(told, seen)| told.len() <= changes && seen == state.revision));
    }
}

/// A question of any bytes: an answer is to it, and is whole.
pub fn names(data: &[u8]) {
    let address = Ipv4Addr::new(10, 0, 0, 2);
    let names = Names {
        addresses: BTreeMap::from([("web".to_owned(), [address].into()), ("db.x".to_owned(), [address].into())]),
        reverse: BTreeMap::from([(address, "web".to_owned())]),
    };
    let mut input = Input::new(data);
    let raw = input.byte();
    let question = if raw & 1 == 0 {
        // A head that is a question's, so that the rest is looked at.
        [&[raw, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], input.rest()].concat()
    } else {
        input.rest().to_vec()
    };
    match judge(&[&names], &question) {
        Some(Judged::Answered(answer)) => {
            let answer = Message::from_vec(&answer);
            assert!(answer.is_ok_and(|answer| {
                answer.metadata.message_type == MessageType::Response
                    && question.starts_with(&answer.metadata.id.to_be_bytes())
            }));
        }
        Some(Judged::ForOthers(_)) | None => {}
    }
}
