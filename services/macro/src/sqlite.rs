//! The state in an SQLite database: one table of resources, one of the last changes.
//!
//! Write-ahead log; a durable commit syncs it (`synchronous=FULL`), another one does not (`NORMAL`: consistent after a
//! power cut, the last commits may be missing; see SQLite's "PRAGMA synchronous").

use crate::engine::{Change, HISTORY, Object, State};
use crate::store::Store;
use anyhow::Context as _;
use rusqlite::{Connection, params};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zone::{ApiError, ErrorKind, Meta};

/// What leads from each layout to the next; `PRAGMA user_version` says how many have been done. Never change one that was
/// released: add another.
const LAYOUTS: [&str; 2] = [
    "CREATE TABLE resource (kind TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL,
       generation INTEGER NOT NULL, created_ns INTEGER NOT NULL, spec TEXT NOT NULL, status TEXT NOT NULL,
       PRIMARY KEY (kind, name)) WITHOUT ROWID;
     CREATE TABLE change (id INTEGER PRIMARY KEY AUTOINCREMENT, revision INTEGER NOT NULL,
       deleted INTEGER NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, own_revision INTEGER NOT NULL,
       generation INTEGER NOT NULL, created_ns INTEGER NOT NULL, spec TEXT NOT NULL, status TEXT NOT NULL);",
    // Which zone this is: made once, so that stores on disk can be told from those of another database.
    "CREATE TABLE identity (zone TEXT NOT NULL);
     INSERT INTO identity VALUES (lower(hex(randomblob(16))));",
];
/// Old changes are removed once this many more than [`HISTORY`] are kept.
const SLACK: u64 = 2_000;

/// The state in a database file.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    path: PathBuf,
    durable: Option<bool>,
    appended: u64,
}

impl SqliteStore {
    /// Opens the database, and makes it when it is not there.
    ///
    /// # Errors
    /// When it cannot be opened, or a newer version of this program wrote it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let connection = Connection::open(path).with_context(|| format!("open the database {}", path.display()))?;
        // Nobody else opens it: the log's index can be in memory, and needs no room on a disk that is full.
        connection
            .pragma_update(None, "locking_mode", "EXCLUSIVE")
            .context("take the database for this process alone")?;
        connection.pragma_update(None, "journal_mode", "WAL").context("switch the database to a write-ahead log")?;
        let layout: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let layout = usize::try_from(layout).unwrap_or(usize::MAX);
        anyhow::ensure!(
            layout <= LAYOUTS.len(),
            "the database {} has layout {layout}, this version knows up to {}: start the newer version again",
            path.display(),
            LAYOUTS.len()
        );
        for (done, step) in LAYOUTS.iter().enumerate().skip(layout) {
            connection
                .execute_batch(&format!("BEGIN; {step} PRAGMA user_version = {}; COMMIT;", done + 1))
                .with_context(|| format!("bring the database to layout {}", done + 1))?;
        }
        Ok(Self { connection, path: path.to_owned(), durable: None, appended: 0 })
    }

    fn set_durable(&mut self, durable: bool) -> rusqlite::Result<()> {
        if self.durable != Some(durable) {
            self.connection.pragma_update(None, "synchronous", if durable { "FULL" } else { "NORMAL" })?;
            self.durable = Some(durable);
        }
        Ok(())
    }

    fn write(&mut self, changes: &[Change]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut put = transaction.prepare_cached(
                "INSERT OR REPLACE INTO resource (revision, kind, name, generation, created_ns, spec, status)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            let mut remove = transaction.prepare_cached("DELETE FROM resource WHERE kind = ?1 AND name = ?2")?;
            let mut log = transaction.prepare_cached(
                "INSERT INTO change (own_revision, kind, name, generation, created_ns, spec, status, revision, deleted)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?;
            for change in changes {
                let Object { meta, spec, status } = change.object.as_ref();
                let Meta { kind, name, revision, generation, created_ns } = meta;
                let (spec, status) = (spec.to_string(), status.to_string());
                log.execute(params![
                    revision.cast_signed(),
                    kind,
                    name,
                    generation.cast_signed(),
                    created_ns.cast_signed(),
                    spec,
                    status,
                    change.revision.cast_signed(),
                    change.deleted
                ])?;
                if change.deleted {
                    remove.execute(params![kind, name])?;
                } else {
                    put.execute(params![
                        revision.cast_signed(),
                        kind,
                        name,
                        generation.cast_signed(),
                        created_ns.cast_signed(),
                        spec,
                        status
                    ])?;
                }
            }
        }
        self.appended += changes.len() as u64;
        if self.appended > SLACK {
            transaction.execute(
                "DELETE FROM change WHERE revision <= (SELECT revision FROM change ORDER BY id DESC LIMIT 1 OFFSET ?1)",
                params![HISTORY as i64],
            )?;
            self.appended = 0;
        }
        transaction.commit()
    }
}

impl Store for SqliteStore {
    fn load(&mut self) -> anyhow::Result<State> {
        let zone =
            self.connection.query_row("SELECT zone FROM identity", [], |row| row.get(0)).context("read the id")?;
        let mut state = State { zone, ..State::default() };
        let mut resources = self
            .connection
            .prepare("SELECT revision, kind, name, generation, created_ns, spec, status FROM resource")?;
        let rows = resources.query_map([], object)?;
        for row in rows {
            let object = row.context("read a resource")?;
            state.revision = state.revision.max(object.meta.revision);
            state.resources.insert((object.meta.kind.clone(), object.meta.name.clone()), Arc::new(object));
        }
        let mut changes = self.connection.prepare(
            "SELECT own_revision, kind, name, generation, created_ns, spec, status, revision, deleted FROM change ORDER BY id",
        )?;
        let rows = changes.query_map([], |row| {
            let revision: i64 = row.get(7)?;
            Ok(Change { revision: revision.cast_unsigned(), object: Arc::new(object(row)?), deleted: row.get(8)? })
        })?;
        for row in rows {
            let change = row.context("read a change")?;
            state.revision = state.revision.max(change.revision);
            state.history.push_back(change);
        }
        // The first change that is kept may be of any revision; what came before it is forgotten.
        state.forgotten = state.history.front().map_or(state.revision, |c| c.revision.saturating_sub(1));
        Ok(state)
    }

    fn append(&mut self, changes: &[Change], durable: bool) -> Result<(), ApiError> {
        self.set_durable(durable).and_then(|()| self.write(changes)).map_err(|error| {
            let path = self.path.display();
            match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DiskFull) => ApiError::new(
                    ErrorKind::NoSpace,
                    format!("the disk of the zone's state is full, nothing was changed: cannot write {path}: {error}"),
                ),
                _ => ApiError::new(ErrorKind::Internal, format!("cannot write the zone's state to {path}: {error}")),
            }
        })
    }
}

fn object(row: &rusqlite::Row<'_>) -> rusqlite::Result<Object> {
    let json = |index: usize| -> rusqlite::Result<serde_json::Value> {
        let text: String = row.get(index)?;
        serde_json::from_str(&text)
            .map_err(|e| rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(e)))
    };
    let number = |index: usize| -> rusqlite::Result<u64> { row.get::<_, i64>(index).map(i64::cast_unsigned) };
    Ok(Object {
        meta: Meta {
            revision: number(0)?,
            kind: row.get(1)?,
            name: row.get(2)?,
            generation: number(3)?,
            created_ns: number(4)?,
        },
        spec: json(5)?,
        status: json(6)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Draft;
    use serde_json::json;
    use zone::client::Operation;

    fn folder(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("macro-sqlite-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        path.join("macro.sqlite")
    }

    fn write(store: &mut SqliteStore, state: &mut State, operation: Operation) {
        let plan = Draft::new(state).plan(&[operation], 7).unwrap();
        store.append(&plan.changes, plan.durable).unwrap();
        state.commit(plan.changes);
    }

    fn create(name: &str) -> Operation {
        Operation::Create { kind: "pod".into(), name: name.into(), spec: json!({"n": name}), status: Some(json!([1])) }
    }

    #[test]
    fn what_was_written_is_there_after_a_restart_with_its_history() {
        let path = folder("restart");
        let mut store = SqliteStore::open(&path).unwrap();
        let mut state = store.load().unwrap();
        write(&mut store, &mut state, create("a"));
        write(&mut store, &mut state, create("b"));
        write(&mut store, &mut state, Operation::Delete { kind: "pod".into(), name: "a".into(), revision: None });
        drop(store);
        let loaded = SqliteStore::open(&path).unwrap().load().unwrap();
        assert_eq!(loaded.revision, 3);
        assert_eq!(loaded.resources, state.resources);
        let (changes, _) = loaded.changes_after(1, &["pod".to_owned()], 10).unwrap();
        assert_eq!(changes.iter().map(|c| (c.revision, c.deleted)).collect::<Vec<_>>(), [(2, false), (3, true)]);
    }

    #[test]
    fn a_database_of_an_older_layout_keeps_its_resources_and_gets_an_id_once() {
        let path = folder("older");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(&format!("{} PRAGMA user_version = 1;", LAYOUTS[0])).unwrap();
        old.execute("INSERT INTO resource VALUES ('pod', 'a', 1, 1, 7, '{}', 'null')", []).unwrap();
        drop(old);
        let state = SqliteStore::open(&path).unwrap().load().unwrap();
        assert_eq!((state.zone.len(), state.resources.len()), (32, 1));
        assert_eq!(SqliteStore::open(&path).unwrap().load().unwrap().zone, state.zone);
        let other = SqliteStore::open(&folder("another")).unwrap().load().unwrap().zone;
        assert_ne!(other, state.zone);
    }

    #[test]
    fn a_database_of_a_newer_version_is_refused() {
        let path = folder("newer");
        drop(SqliteStore::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(SqliteStore::open(&path).unwrap_err().to_string().contains("layout 99"));
    }
}
