//! The state engine as its clients see it: the real program, over its socket, killed at any moment.

#![allow(clippy::panic, clippy::unwrap_used)]

mod engine;

use engine::start;
use zone::ErrorKind;
use zone::client::{Event, Operation};
use zone::network::{Network, NetworkName, NetworkSpec};

fn spec(name: &str) -> NetworkSpec {
    NetworkSpec { name: name.into(), ..NetworkSpec::default() }
}

#[tokio::test]
async fn everything_that_was_acknowledged_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = start(folder.path()).await;
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let client = engine.client.clone();
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for n in 0..500 {
                    let name = format!("{w}-{n}");
                    match client.create::<Network>(&name, &spec(&name)).await {
                        Ok(_) => acknowledged.push(name),
                        Err(error) if error.kind == ErrorKind::Unavailable => break,
                        Err(error) => panic!("creating {name}: {error}"),
                    }
                }
                acknowledged
            })
        })
        .collect();
    // Killed in the midst of it: once a part has been written.
    let mut watch = engine.client.watch(&["network"], 0).await.unwrap();
    while watch.next().await.unwrap().unwrap().revision < 60 {}
    engine.child.kill().await.unwrap();
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    assert!(acknowledged.len() >= 50);
    let engine = start(folder.path()).await;
    let kept = engine.client.list::<Network>().await.unwrap();
    for name in &acknowledged {
        assert!(kept.items.iter().any(|n| n.meta.name == *name), "{name} was acknowledged and is lost");
    }
}

#[tokio::test]
async fn a_watch_goes_on_after_a_restart_without_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = start(folder.path()).await;
    for n in 0..5 {
        engine.client.create::<Network>(&format!("n{n}"), &spec("x")).await.unwrap();
    }
    engine.child.kill().await.unwrap();
    let engine = start(folder.path()).await;
    engine.client.delete::<Network>("n0").await.unwrap();
    let mut watch = engine.client.watch(&["network"], 2).await.unwrap();
    let mut told = Vec::new();
    loop {
        let changes = watch.next().await.unwrap().unwrap();
        if changes.events.is_empty() {
            assert_eq!(changes.revision, 6);
            break;
        }
        told.extend(changes.events.iter().map(|e| (e.revision(), matches!(e, Event::Put { .. }))));
    }
    assert_eq!(told, [(3, true), (4, true), (5, true), (6, false)]);
}

#[tokio::test]
async fn a_watch_tells_a_transaction_whole_and_that_others_were_carried_out() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(folder.path()).await;
    let mut watch = engine.client.watch(&["network"], 0).await.unwrap();
    assert!(watch.next().await.unwrap().unwrap().events.is_empty(), "there is no past");
    let create = |name: &str| Operation::create::<Network>(name, &spec(name), None).unwrap();
    let name = |n: &str| Operation::create::<NetworkName>(n, &n.to_owned(), None).unwrap();
    engine.client.transact(vec![create("a"), name("a"), create("b")]).await.unwrap();
    let both = watch.next().await.unwrap().unwrap();
    assert_eq!((both.revision, both.events.iter().map(Event::name).collect()), (1, vec!["a", "b"]));
    engine.client.transact(vec![name("c")]).await.unwrap();
    let other = watch.next().await.unwrap().unwrap();
    assert_eq!((other.revision, other.events.len()), (2, 0));
}

#[tokio::test]
async fn of_two_writers_that_read_the_same_one_wins_and_the_other_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(folder.path()).await;
    let read = engine.client.create::<Network>("n", &spec("a")).await.unwrap();
    engine.client.update_spec(&read, &spec("b")).await.unwrap();
    assert_eq!(engine.client.update_spec(&read, &spec("c")).await.unwrap_err().kind, ErrorKind::Conflict);
    let now = engine.client.get::<Network>("n").await.unwrap();
    assert_eq!((now.spec.name.as_str(), now.meta.generation), ("b", 2));
}

#[tokio::test]
async fn names_with_slashes_and_blanks_are_names_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(folder.path()).await;
    engine.client.create::<Network>("a/b c%20", &spec("a")).await.unwrap();
    assert_eq!(engine.client.get::<Network>("a/b c%20").await.unwrap().meta.name, "a/b c%20");
}
