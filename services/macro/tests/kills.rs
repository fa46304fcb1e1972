//! Killed at any moment, again and again, the state engine has everything that it acknowledged: creates, changes and deletes.

#![allow(clippy::panic, clippy::unwrap_used)]

mod engine;

use engine::{Engine, start};
use std::collections::BTreeMap;
use zone::ErrorKind;
use zone::client::Client;
use zone::network::{Network, NetworkSpec};

const WRITERS: usize = 4;

/// What one writer knows of one of its resources.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The last acknowledged value; none = acknowledged to be deleted, or never made.
    value: Option<u64>,
    /// A write that was not answered: it may or may not have been.
    unsure: Option<Option<u64>>,
}

/// Writes until the engine is gone.
async fn write(client: Client, writer: usize, round: u64, known: &mut BTreeMap<String, Known>) {
    for n in 0.. {
        let name = format!("{writer}-{}", n % 7);
        let entry = known.entry(name.clone()).or_default();
        let next = round * 1_000_000 + n;
        let spec = NetworkSpec { name: next.to_string(), ..NetworkSpec::default() };
        let (wanted, result) = match entry.value {
            None => (Some(next), client.create::<Network>(&name, &spec).await.map(|_| ())),
            Some(_) if n % 3 == 0 => (None, client.delete::<Network>(&name).await),
            Some(_) => {
                let set = |old: &mut NetworkSpec| {
                    *old = spec.clone();
                    true
                };
                (Some(next), client.modify_spec::<Network>(&name, set).await.map(|_| ()))
            }
        };
        match result {
            Ok(()) => *entry = Known { value: wanted, unsure: None },
            Err(error) if error.kind == ErrorKind::Unavailable => {
                entry.unsure = Some(wanted);
                return;
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_it_is_killed_every_acknowledged_write_is_there() {
    let rounds = if std::env::var("KRAUD_FULL").is_ok_and(|full| full == "1") { 200 } else { 8 };
    let folder = tempfile::tempdir().unwrap();
    let mut all: Vec<BTreeMap<String, Known>> = vec![BTreeMap::new(); WRITERS];
    let mut id = None;
    for round in 0..rounds {
        let Engine { child: mut engine, client } = start(folder.path()).await;
        let now = client.zone_id().await.unwrap();
        assert_eq!(*id.get_or_insert_with(|| now.clone()), now, "the database is another one");
        let there: BTreeMap<String, u64> = client
            .list::<Network>()
            .await
            .unwrap()
            .items
            .into_iter()
            .map(|n| (n.meta.name, n.spec.name.parse().unwrap()))
            .collect();
        for (name, known) in all.iter_mut().flatten() {
            let found = there.get(name).copied();
            let allowed = found == known.value || known.unsure.is_some_and(|unsure| found == unsure);
            assert!(allowed, "round {round}: {name} is {found:?}, known is {known:?}");
            *known = Known { value: found, unsure: None };
        }
        let writers: Vec<_> = std::mem::take(&mut all)
            .into_iter()
            .enumerate()
            .map(|(writer, mut known)| {
                let client = client.clone();
                tokio::spawn(async move {
                    write(client, writer, round + 1, &mut known).await;
                    known
                })
            })
            .collect();
        // Killed after another number of writes each time.
        let from = client.list::<Network>().await.unwrap().revision;
        let mut watch = client.watch(&["network"], from).await.unwrap();
        while watch.next().await.unwrap().unwrap().revision < from + 5 + round * 17 % 61 {}
        engine.kill().await.unwrap();
        for writer in writers {
            all.push(writer.await.unwrap());
        }
    }
}
