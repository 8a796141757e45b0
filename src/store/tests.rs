use std::collections::BTreeMap;
use std::time::Duration;

use super::dialect::{Db, Statement};
use super::*;
use crate::config::domain::Domain as Limits;
use crate::config::units::ByteSize;
use crate::identity::{Address, Case, Domain};

fn config(directory: &tempfile::TempDir) -> crate::config::store::Store {
    let path = directory.path().join("data/gatepost.db");
    crate::config::store::Store { url: format!("sqlite://{}", path.display()), max_connections: 4 }
}

async fn open() -> (Store, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (Store::open(&config(&directory)).await.unwrap(), directory)
}

fn address(text: &str) -> Address {
    Address::parse(text, Case::Fold).unwrap()
}

fn domains(max_mailboxes: u32, quota: u64) -> BTreeMap<String, Limits> {
    let limits = Limits { max_mailboxes, quota: ByteSize(quota), ..Limits::default() };
    BTreeMap::from([("Example.org".to_owned(), limits)])
}

/// Every statement there is.
const STATEMENTS: [&[(&str, Statement)]; 7] = [
    addresses::STATEMENTS,
    domains::STATEMENTS,
    links::STATEMENTS,
    mailboxes::STATEMENTS,
    owners::STATEMENTS,
    resident::STATEMENTS,
    throttle_lists::STATEMENTS,
];

#[tokio::test]
async fn every_statement_can_be_prepared() {
    let (store, _directory) = open().await;
    let Db::Sqlite { writer, .. } = &store.db;
    let all: Vec<(&str, Statement)> = STATEMENTS.concat();

    assert!(all.len() > 25);
    for (name, statement) in all {
        let explained = sqlx::AssertSqlSafe(format!("EXPLAIN {}", statement.sqlite));
        let prepared = sqlx::raw_sql(explained).execute(writer).await;
        assert!(prepared.is_ok(), "{name}: {prepared:?}");
    }
}

/// A statement that a login waits for costs the same in a store of any size, also where an administrator had SQLite count
/// the mailboxes.
#[tokio::test]
async fn no_statement_reads_a_whole_table_but_those_that_list_it() {
    const LISTS: [&str; 3] =
        ["LIST: SCAN domains", "ALL: SCAN throttle_lists", "SWEEP: SCAN throttle_lists"];
    let (store, _directory) = open().await;
    assert_eq!(reading_whole_tables(&store).await, LISTS);

    store.mirror_domains(&domains(0, 0)).await.unwrap();
    for number in 0..200 {
        let mut mailbox = Mailbox::sample(&format!("u{number}@example.org"));
        let alias = address(&format!("alias{number}@example.org"));
        mailbox.aliases.make().insert(alias, Origin::Directory);
        store.settle(&mailbox).await;
    }
    let Db::Sqlite { writer, .. } = &store.db;
    // As if there were a thousand times as many; of each kind of address, too.
    let count = "ANALYZE; UPDATE sqlite_stat1 SET stat = CAST(stat AS INTEGER) || '000' || \
                 SUBSTR(stat, INSTR(stat || ' ', ' ')); \
                 UPDATE sqlite_stat1 SET stat = '400000 200000 1' WHERE idx = 'addresses_by_kind'";
    sqlx::raw_sql(count).execute(writer).await.unwrap();

    assert_eq!(reading_whole_tables(&store).await, LISTS);
}

/// Steps of plans that look at all rows of a table.
async fn reading_whole_tables(store: &Store) -> Vec<String> {
    let Db::Sqlite { writer, .. } = &store.db;
    // What was counted is read when a connection opens.
    let mut connection = sqlx::ConnectOptions::connect(&*writer.connect_options()).await.unwrap();
    let mut reading_all = Vec::new();
    for (name, statement) in STATEMENTS.concat() {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", statement.sqlite));
        let steps = sqlx::raw_sql(explain).fetch_all(&mut connection).await.unwrap();
        let steps = steps.iter().map(|step| sqlx::Row::get::<String, _>(step, "detail"));
        // `s` is the subject: a row for each address that is asked about. A kind alone is most of the table.
        let whole = |step: &String| {
            step.starts_with("SCAN ") && !["SCAN s", "SCAN CONSTANT ROW"].contains(&&**step)
                || ["AUTOMATIC", "BLOOM FILTER"].iter().any(|word| step.contains(word))
                || step.ends_with("(kind=?)")
        };
        reading_all.extend(steps.filter(whole).map(|step| format!("{name}: {step}")));
    }
    reading_all
}

#[tokio::test]
async fn statements_keep_to_what_the_databases_share() {
    for (name, statement) in STATEMENTS.concat() {
        let upper = statement.sqlite.to_ascii_uppercase();
        for own in ["INSERT OR", "REPLACE INTO", "DATETIME(", "UNIXEPOCH", "ROWID", "GLOB", "\""] {
            assert!(!upper.contains(own), "{name}: {own}");
        }
    }
}

#[tokio::test]
async fn the_file_is_private_and_opens_again() {
    use std::os::unix::fs::PermissionsExt as _;
    let (store, directory) = open().await;
    store.mirror_domains(&domains(0, 0)).await.unwrap();

    let again = Store::open(&config(&directory)).await.unwrap();

    let mode = |path: &str| {
        std::fs::metadata(directory.path().join(path)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("data"), mode("data/gatepost.db")), (0o700, 0o600));
    again.check().await.unwrap();
    let room = Room { domain: &Domain::parse("example.org").unwrap(), quota: 0 };
    assert_eq!(again.has_room(room).await.unwrap(), Ok(()));
}

#[tokio::test]
async fn an_unusable_url_is_named() {
    for url in ["postgres://localhost/x", "sqlite::memory:", "sqlite:///proc/none/x.db", ""] {
        let config = crate::config::store::Store { url: url.into(), max_connections: 1 };
        let error = Store::open(&config).await.unwrap_err();
        assert!(matches!(error, StoreError::Misconfigured { .. }), "{url}: {error}");
    }
}

#[tokio::test]
async fn domains_are_mirrored_and_those_left_out_become_inactive() {
    let (store, _directory) = open().await;
    let name = Domain::parse("example.org").unwrap();
    let room = Room { domain: &name, quota: 5 };

    assert_eq!(store.has_room(room).await.unwrap(), Err(NoRoom::Unknown));
    store.mirror_domains(&domains(1, 10)).await.unwrap();
    assert_eq!(store.has_room(room).await.unwrap(), Ok(()));
    assert_eq!(store.has_room(Room { quota: 11, ..room }).await.unwrap(), Err(NoRoom::Quota));
    assert_eq!(store.has_room(Room { quota: 0, ..room }).await.unwrap(), Err(NoRoom::Quota));
    store.mirror_domains(&BTreeMap::new()).await.unwrap();
    assert_eq!(store.has_room(room).await.unwrap(), Err(NoRoom::Inactive));
}

#[tokio::test]
async fn the_same_domains_again_write_nothing() {
    let (store, _directory) = open().await;
    store.mirror_domains(&domains(1, 10)).await.unwrap();
    let before = store.begin_read().await.unwrap().capacity().await.unwrap();

    store.mirror_domains(&domains(1, 10)).await.unwrap();

    assert_eq!(store.begin_read().await.unwrap().capacity().await.unwrap(), before);
}

#[tokio::test]
async fn a_deleted_or_replaced_file_is_noticed() {
    let (store, directory) = open().await;
    let path = directory.path().join("data/gatepost.db");
    let moved = directory.path().join("data/moved.db");

    std::fs::rename(&path, &moved).unwrap();
    assert!(matches!(store.check().await, Err(StoreError::Unavailable { .. })));
    std::fs::write(&path, b"").unwrap();
    assert!(store.check().await.unwrap_err().to_string().contains("was replaced"));
    std::fs::rename(&moved, &path).unwrap();
    store.check().await.unwrap();
}

#[tokio::test]
async fn a_lock_of_another_process_ends_the_wait_in_time() {
    let (store, directory) = open().await;
    let path = directory.path().join("data/gatepost.db");
    let mut holder = lock(&path);

    let started = crate::clock::now();
    let written = store.mirror_domains(&domains(1, 1)).await;

    assert!(matches!(written, Err(StoreError::Unavailable { .. })), "{written:?}");
    assert!(crate::clock::now().duration_since(started) < Duration::from_secs(3));
    store.check().await.unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    store.mirror_domains(&domains(1, 1)).await.unwrap();
}

/// Another process that holds the database's write lock until it is killed.
pub(crate) fn lock(path: &std::path::Path) -> std::process::Child {
    python(&format!(
        "import sqlite3, sys, time\n\
         c = sqlite3.connect({path:?}, isolation_level=None)\n\
         c.execute('BEGIN EXCLUSIVE')\n\
         print('locked', flush=True)\n\
         time.sleep(60)\n",
        path = path.to_str().unwrap(),
    ))
}

/// Runs a script; returns when it has said its first line.
fn python(script: &str) -> std::process::Child {
    use std::io::BufRead as _;
    let mut child = std::process::Command::new("python3")
        .args(["-c", script])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python3 is needed for this test (package python3)");
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n");
    child
}

#[tokio::test]
async fn entries_of_lists_are_kept_replaced_and_swept() {
    let (store, directory) = open().await;
    let row = |whom: &str, ends_at| ListRow {
        list: "deny".into(),
        kind: "ip".into(),
        whom: whom.into(),
        reason: "guesses".into(),
        removed: false,
        ends_at,
        changed_at: 1,
    };
    let [first, second] = [row("192.0.2.1", 1000), row("192.0.2.2", 2000)];
    store.save_list_entries(&[first.clone(), second.clone()]).await.unwrap();
    let changed = ListRow { removed: true, reason: String::new(), changed_at: 2, ..second };
    store.save_list_entries(std::slice::from_ref(&changed)).await.unwrap();

    let again = Store::open(&config(&directory)).await.unwrap();
    assert_eq!(again.list_entries(0).await.unwrap(), [first, changed.clone()]);
    assert_eq!(again.list_entries(1000).await.unwrap(), [changed]);
    assert_eq!(again.sweep_list_entries(1000).await.unwrap(), 1);
    assert_eq!(again.list_entries(0).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_unknown_address_is_nobody() {
    let (store, _directory) = open().await;

    assert_eq!(store.owner(&address("nobody@example.org")).await.unwrap(), None);
    assert_eq!(store.mailbox(&address("nobody@example.org")).await.unwrap(), None);
    assert_eq!(
        store.set_disabled(&address("nobody@example.org"), Standing::Disabled).await.unwrap(),
        None
    );
    assert_eq!(store.addresses(None, 10).await.unwrap(), Vec::<String>::new());
}

impl Store {
    /// Lets a mailbox come into being with its aliases, for tests of other layers; its number.
    pub(crate) async fn settle(&self, mailbox: &Mailbox) -> i64 {
        let mut writing = self.begin_write().await.unwrap();
        let id = writing.insert_mailbox(mailbox).await.unwrap();
        let canonical = (&mailbox.address, Kind::Mailbox);
        let aliases = mailbox.aliases.keys().map(|alias| (alias, Kind::Alias));
        for (address, kind) in [canonical].into_iter().chain(aliases) {
            assert!(writing.claim_address(address, kind, id, Origin::Directory).await.unwrap());
        }
        writing.commit().await.unwrap();
        id
    }

    /// Mailboxes and bytes that each domain counts.
    pub(crate) async fn counters(&self) -> BTreeMap<String, (i64, i64)> {
        let statement = Statement { sqlite: "SELECT name, mailboxes, quota_used FROM domains" };
        let rows = self.begin_read().await.unwrap().rows(statement, &[]).await.unwrap();
        let row = |row: &dialect::Row| {
            (row.text(0).unwrap().to_owned(), (row.int(1).unwrap(), row.int(2).unwrap()))
        };
        rows.iter().map(row).collect()
    }
}

#[tokio::test]
async fn owners_asked_for_at_once_are_each_answered_with_their_own() {
    let (store, _directory) = open().await;
    store.mirror_domains(&domains(0, 0)).await.unwrap();
    let mut made = Vec::new();
    for number in 0..40 {
        let mut writing = store.begin_write().await.unwrap();
        let mailbox = Mailbox::sample(&format!("u{number}@example.org"));
        let id = writing.insert_mailbox(&mailbox).await.unwrap();
        for (address, kind) in [
            (mailbox.address.clone(), Kind::Mailbox),
            (address(&format!("alias{number}@example.org")), Kind::Alias),
        ] {
            assert!(writing.claim_address(&address, kind, id, Origin::Directory).await.unwrap());
        }
        writing.add_tag(id, &format!("tag{number}")).await.unwrap();
        writing.commit().await.unwrap();
        made.push(id);
    }
    let ask = |name: String| {
        let store = store.clone();
        tokio::spawn(async move { store.owner(&address(&name)).await.unwrap() })
    };
    let asked: Vec<_> = (0..40)
        .map(|number| {
            let name = |kind: &str| format!("{kind}{number}@example.org");
            [ask(name("u")), ask(name("alias")), ask(name("nobody"))]
        })
        .collect();
    for (id, [by_address, by_alias, nobody]) in made.into_iter().zip(asked) {
        let expected = store.mailbox_numbered(id).await.unwrap();
        assert_eq!(expected.as_ref().map(|mailbox| mailbox.tags.len()), Some(1));
        assert_eq!(by_address.await.unwrap(), expected);
        assert_eq!(by_alias.await.unwrap(), expected);
        assert_eq!(nobody.await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_mailbox_that_cannot_be_read_is_nobody_elses_trouble() {
    let (store, _directory) = open().await;
    store.mirror_domains(&domains(0, 0)).await.unwrap();
    for name in ["fry", "leela"] {
        let mut writing = store.begin_write().await.unwrap();
        let mailbox = Mailbox::sample(&format!("{name}@example.org"));
        let id = writing.insert_mailbox(&mailbox).await.unwrap();
        let (address, kind) = (&mailbox.address, Kind::Mailbox);
        assert!(writing.claim_address(address, kind, id, Origin::Directory).await.unwrap());
        writing.commit().await.unwrap();
    }
    let Db::Sqlite { writer, .. } = &store.db;
    let broken = "UPDATE mailboxes SET extra = 'x' WHERE id IN \
                  (SELECT owner FROM addresses WHERE address = 'fry@example.org')";
    sqlx::query(broken).execute(writer).await.unwrap();

    let (fry, leela) = (address("fry@example.org"), address("leela@example.org"));
    let (fry, leela) = tokio::join!(store.owner(&fry), store.owner(&leela));

    assert!(matches!(fry, Err(StoreError::Corrupt { .. })), "{fry:?}");
    assert_eq!(leela.unwrap().unwrap().address, address("leela@example.org"));
}

#[tokio::test]
async fn owners_are_read_again_when_the_file_is_back_and_no_other_file_is_touched() {
    let (store, directory) = open().await;
    let path = directory.path().join("data/gatepost.db");
    let moved = directory.path().join("data/moved.db");
    let nobody = address("nobody@example.org");

    assert_eq!(store.owner(&nobody).await.unwrap(), None);
    std::fs::rename(&path, &moved).unwrap();
    std::fs::write(&path, b"somebody else's").unwrap();
    for _ in 0..2 {
        assert!(matches!(store.owner(&nobody).await, Err(StoreError::Unavailable { .. })));
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"somebody else's");
    std::fs::rename(&moved, &path).unwrap();
    assert_eq!(store.owner(&nobody).await.unwrap(), None);
}
