//! What must last, in SQLite or PostgreSQL: what companies set up (credentials sealed), who may look, and what happened.
//! SQL stays on this floor; every query is scoped to a company, except where it says why not.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tracing::debug;

use crate::store::db::{Db, Gathered, Lock, Tx, args};
use crate::store::secrets::{Sealer, SecretsError};

pub mod agents;
mod apply;
pub mod audit;
pub mod belongings;
pub mod calls;
pub mod companies;
mod contacts;
mod db;
pub mod directory;
pub mod endpoints;
pub mod inbox;
pub mod integrations;
pub mod keys;
pub mod knowledge;
pub mod leaves;
pub mod ledger;
pub mod lines;
pub mod messages;
pub mod nodes;
pub mod outbox;
pub mod outcomes;
pub mod owners;
mod read;
pub mod recordings;
pub mod secrets;
pub mod setup;
pub mod spend;
pub mod tools;
pub mod users;
mod watch;

pub use apply::{Action, ApplyError, ApplyOptions, Change, Diff, Thing, Webhook};
pub use db::{At, Json, MAX_PAGE, Page, Part};
pub use watch::DirectoryWatch;

static SQLITE: Migrator = sqlx::migrate!("./migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("./migrations/postgres");

/// How long a statement waits for another one's lock, of this process or another.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// How long a query waits for a free connection of its pool.
const ACQUIRE_LIMIT: Duration = Duration::from_secs(10);
/// PostgreSQL gives a statement up after this, and a transaction that its client has forgotten after three times this.
const STATEMENT_LIMIT: Duration = Duration::from_secs(10);
/// SQLite's readers never block each other or the writer (WAL); a few serve the console and the API.
const READERS: u32 = 4;
/// PostgreSQL's connections of one process. A server allows 100 by default, to be shared by its nodes.
const CONNECTIONS: u32 = 16;
/// Two processes that start at once may both find the migrations missing; the one that loses looks again.
const MIGRATION_ATTEMPTS: u32 = 5;
/// Where the secrets key lies unless it is configured, if the database is on a server.
const SERVER_KEY_FILE: &str = "data/offhook.key";

/// `[store]`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// `sqlite://` and a path, relative to the working directory unless it begins with `/`: the folder and the file are
    /// created. Or `postgres://user:password@host/database`, for several servers on one database.
    pub url: String,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { url: "sqlite://data/offhook.db".into() }
    }
}

impl std::fmt::Debug for StoreConfig {
    /// Without what stands before the `@`: there may be a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (scheme, rest) = self.url.split_once("://").unwrap_or(("", &self.url));
        let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        write!(f, "StoreConfig({scheme}://{rest})")
    }
}

/// What a URL leads to.
enum Place {
    File(PathBuf),
    Server(Box<PgConnectOptions>),
}

impl StoreConfig {
    /// Whether the URL is one.
    pub fn check(&self) -> Result<(), StoreError> {
        self.place().map(drop)
    }

    fn place(&self) -> Result<Place, StoreError> {
        if self.url.starts_with("postgres://") || self.url.starts_with("postgresql://") {
            // The parser's message is not passed on: it quotes parts of the URL.
            let options = PgConnectOptions::from_str(&self.url).map_err(|_| {
                StoreError::Url("it is no PostgreSQL URL; write postgres://user:password@host:5432/database")
            })?;
            return Ok(Place::Server(Box::new(options)));
        }
        let path =
            self.url.strip_prefix("sqlite://").ok_or(StoreError::Url("it must begin with sqlite:// or postgres://"))?;
        if path.is_empty() || path.ends_with('/') {
            return Err(StoreError::Url("it names no file; the default is sqlite://data/offhook.db"));
        }
        if path.starts_with(':') {
            return Err(StoreError::Url("a store in memory would forget everything; name a file"));
        }
        if path.contains(['?', '#']) {
            return Err(StoreError::Url("it takes a path only, without parameters"));
        }
        Ok(Place::File(PathBuf::from(path)))
    }
}

impl Place {
    /// `offhook.db.key` beside the database.
    fn key_path(&self) -> PathBuf {
        match self {
            Place::File(path) => {
                let mut path = path.clone().into_os_string();
                path.push(".key");
                path.into()
            }
            Place::Server(_) => SERVER_KEY_FILE.into(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("store.url: {0}")]
    Url(&'static str),
    #[error("cannot create the folder {}: {source}", .path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    /// Not there, not readable, not a database, or locked for longer than `LOCK_LIMIT`.
    #[error("cannot open the store {}: {source}", .path.display())]
    Open { path: PathBuf, source: sqlx::Error },
    /// Not reachable, or it does not let this user in.
    #[error("cannot open the store on PostgreSQL at {host}, database {database:?}: {source}")]
    Connect { host: String, database: String, source: sqlx::Error },
    /// The schema is another version's: start that version, or restore a backup.
    #[error("cannot bring the store's tables up to date: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// A query failed: the disk, the server, or a lock that was not given up in time. It may be tried again.
    #[error("the store failed: {0}")]
    Query(#[from] sqlx::Error),
    /// A row that this version cannot read.
    #[error("the store holds a {what} that cannot be read: {detail}")]
    Corrupt { what: String, detail: String },
}

impl StoreError {
    /// Whether it is a row that was refused because there is one of its name already.
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Query(sqlx::Error::Database(error)) if error.is_unique_violation())
    }
}

/// The open store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    db: Db,
    /// Replaced when the key is rotated.
    sealer: Arc<ArcSwap<Sealer>>,
    /// Where the key lies, if it lies in a file.
    key_file: Option<Arc<Path>>,
}

impl Store {
    /// Opens the store, creating it on first start. `key` is `security.secrets_key`; without it, the key lies in a
    /// file beside the database (`data/offhook.key` for PostgreSQL), made on first start too.
    pub async fn open(config: &StoreConfig, key: Option<&SecretString>) -> Result<Self, StoreError> {
        let place = config.place()?;
        let key_path = place.key_path();
        let configured = key.map(Sealer::from_base64).transpose()?;
        let db = match place {
            Place::File(path) => open_file(&path).await?,
            Place::Server(options) => open_server(*options).await?,
        };
        let sealed = probe(&db).await?;
        let key_file = configured.is_none().then(|| Arc::from(key_path.as_path()));
        let sealer = match configured {
            Some(sealer) => sealer,
            None => {
                make_folder(&key_path)?;
                Sealer::from_file(&key_path, sealed.is_none())?
            }
        };
        let store = Self { db, sealer: Arc::new(ArcSwap::from_pointee(sealer)), key_file };
        store.check_key(sealed).await?;
        Ok(store)
    }

    /// A store to try a change on: the one that is there, or an empty one in memory. Creates no file and no table.
    pub async fn open_for_preview(config: &StoreConfig, key: Option<&SecretString>) -> Result<Self, StoreError> {
        let there = match config.place()? {
            Place::File(path) => path.exists(),
            Place::Server(options) => has_tables(*options).await?,
        };
        if there {
            return Self::open(config, key).await;
        }
        let options = SqliteConnectOptions::from_str("sqlite::memory:")?.foreign_keys(true);
        // One connection for everything, kept open: the database lives as long as it does.
        let only = SqlitePoolOptions::new()
            .min_connections(1)
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(ACQUIRE_LIMIT)
            .connect_with(options)
            .await?;
        SQLITE.run(&only).await?;
        Ok(Self {
            db: Db::Sqlite { writer: only.clone(), readers: only, gathered: Gathered::default() },
            sealer: Arc::new(ArcSwap::from_pointee(Sealer::random())),
            key_file: None,
        })
    }

    /// Closes all connections; SQLite's write-ahead log is folded into the database.
    pub async fn close(&self) {
        self.db.close().await;
    }

    /// Begins a change of what companies set up: one at a time, and noticed by every server (`watch`).
    async fn change(&self) -> Result<Tx, StoreError> {
        let mut tx = self.db.write().await?;
        tx.lock(Lock::Setup).await?;
        tx.execute("UPDATE setup_version SET version = version + 1 WHERE id = 1", args![]).await?;
        Ok(tx)
    }

    fn sealer(&self) -> Arc<Sealer> {
        self.sealer.load_full()
    }

    /// Proves that the key is the one that this database was sealed with; on first start, seals the proof.
    async fn check_key(&self, mut sealed: Option<Vec<u8>>) -> Result<(), StoreError> {
        if sealed.is_none() {
            self.db
                .execute(
                    "INSERT INTO secrets_probe (id, sealed) VALUES (1, $1) ON CONFLICT (id) DO NOTHING",
                    args![self.sealer().seal(PROBE_CONTEXT, PROBE)],
                )
                .await?;
            // Another process may have been first.
            sealed = probe(&self.db).await?;
        }
        let sealed = sealed.unwrap_or_default();
        match self.sealer().open(PROBE_CONTEXT, &sealed, "the store") {
            Ok(_) => Ok(()),
            Err(wrong) => match self.finish_rotation(&sealed)? {
                true => Ok(()),
                false => Err(wrong.into()),
            },
        }
    }
}

const PROBE: &[u8] = b"offhook";
const PROBE_CONTEXT: &[u8] = b"offhook secrets probe";

async fn probe(db: &Db) -> Result<Option<Vec<u8>>, StoreError> {
    let row: Option<(Vec<u8>,)> = db.first("SELECT sealed FROM secrets_probe WHERE id = 1", args![]).await?;
    Ok(row.map(|(sealed,)| sealed))
}

/// Phone numbers and recordings will lie in this file's folder: nobody else needs to look in.
fn make_folder(file: &Path) -> Result<(), StoreError> {
    let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(()) };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| StoreError::Folder { path: folder.to_owned(), source })
}

/// Opens the file and brings its tables up to date.
async fn open_file(path: &Path) -> Result<Db, StoreError> {
    make_folder(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // A record that was written survives a power cut; at a few writes per call the extra fsync is not felt.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(LOCK_LIMIT);
    let open = |source| StoreError::Open { path: path.to_owned(), source };
    let mut attempt = 1;
    let writer = loop {
        let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_LIMIT);
        match pool.connect_with(options.clone()).await {
            Ok(pool) => break pool,
            // Switching a fresh file to WAL does not wait for another process that does the same.
            Err(error) if attempt < MIGRATION_ATTEMPTS && is_busy(&error) => again(&mut attempt).await,
            Err(error) => return Err(open(error)),
        }
    };
    while let Err(error) = SQLITE.run(&writer).await {
        refused(error, &mut attempt).await?;
    }
    let readers = SqlitePoolOptions::new()
        .min_connections(0)
        .max_connections(READERS)
        .acquire_timeout(ACQUIRE_LIMIT)
        .connect_lazy_with(options);
    Ok(Db::Sqlite { writer, readers, gathered: Gathered::default() })
}

/// Connects to the server and brings the tables up to date. sqlx takes an advisory lock for that.
async fn open_server(options: PgConnectOptions) -> Result<Db, StoreError> {
    let pool = connect(options).await?;
    let mut attempt = 1;
    while let Err(error) = POSTGRES.run(&pool).await {
        refused(error, &mut attempt).await?;
    }
    Ok(Db::Postgres(pool))
}

async fn connect(options: PgConnectOptions) -> Result<PgPool, StoreError> {
    let ms = |limit: Duration| limit.as_millis().to_string();
    let failed = {
        let host = format!("{}:{}", options.get_host(), options.get_port());
        let database = options.get_database().unwrap_or_default().to_owned();
        move |source| StoreError::Connect { host, database, source }
    };
    let options = options.application_name("offhook").options([
        ("statement_timeout", ms(STATEMENT_LIMIT)),
        ("lock_timeout", ms(LOCK_LIMIT)),
        ("idle_in_transaction_session_timeout", ms(3 * STATEMENT_LIMIT)),
    ]);
    PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE_LIMIT)
        .connect_with(options)
        .await
        .map_err(failed)
}

async fn has_tables(options: PgConnectOptions) -> Result<bool, StoreError> {
    let pool = connect(options).await?;
    let there = sqlx::query_scalar("SELECT to_regclass('company') IS NOT NULL").fetch_one(&pool).await?;
    pool.close().await;
    Ok(there)
}

/// Whether to look again at tables that could not be made: another process may be making them.
async fn refused(error: sqlx::migrate::MigrateError, attempt: &mut u32) -> Result<(), StoreError> {
    use sqlx::migrate::MigrateError::{Execute, ExecuteMigration};
    if *attempt >= MIGRATION_ATTEMPTS || !matches!(error, Execute(_) | ExecuteMigration(..)) {
        return Err(error.into());
    }
    debug!(attempt, error = %error, "another process may be creating the tables; looking again");
    again(attempt).await;
    Ok(())
}

fn is_busy(error: &sqlx::Error) -> bool {
    // SQLITE_BUSY is 5; extended codes keep it in the low byte (sqlite.org/rescode.html).
    let code = error.as_database_error().and_then(|error| error.code()).and_then(|code| code.parse::<u32>().ok());
    code.is_some_and(|code| code & 0xff == 5)
}

async fn again(attempt: &mut u32) {
    tokio::time::sleep(Duration::from_millis(100) * *attempt).await;
    *attempt += 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::prelude::{BASE64_STANDARD, Engine};

    fn config(dir: &tempfile::TempDir) -> StoreConfig {
        StoreConfig { url: format!("sqlite://{}/deep/offhook.db", dir.path().display()) }
    }

    fn key(byte: u8) -> SecretString {
        BASE64_STANDARD.encode([byte; 32]).into()
    }

    #[test]
    fn a_url_is_a_path_or_a_clear_error() {
        let place = |url: &str| StoreConfig { url: url.into() }.place();
        let path = |url: &str| match place(url).unwrap() {
            Place::File(path) => path,
            Place::Server(_) => panic!("{url} is a file"),
        };
        assert_eq!(path("sqlite://data/offhook.db"), Path::new("data/offhook.db"));
        assert_eq!(path("sqlite:///var/lib/offhook.db"), Path::new("/var/lib/offhook.db"));
        assert!(matches!(place("postgres://u:p@h/d"), Ok(Place::Server(options)) if options.get_host() == "h"));
        let bad = ["", "a.db", "sqlite://", "sqlite://data/", "sqlite://:memory:", "sqlite://a.db?mode=ro"];
        for url in bad.into_iter().chain(["postgres://u:p@h:port/d"]) {
            let error = StoreConfig { url: url.into() }.check().unwrap_err().to_string();
            assert!(error.starts_with("store.url"), "{url}: {error}");
        }
    }

    #[test]
    fn a_password_in_the_url_is_not_printed() {
        let printed = format!("{:?}", StoreConfig { url: "postgres://anna:s3cr@t@db:5432/offhook".into() });
        assert_eq!(printed, "StoreConfig(postgres://db:5432/offhook)");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_without_its_password() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let url = format!("postgres://anna:very-secret@127.0.0.1:{port}/offhook");
        let error = Store::open(&StoreConfig { url }, Some(&key(1))).await.unwrap_err().to_string();
        assert!(error.contains(&format!("127.0.0.1:{port}")) && !error.contains("very-secret"), "{error}");
    }

    #[tokio::test]
    async fn the_first_start_makes_folder_database_and_key_and_the_second_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            Store::open(&config(&dir), None).await.unwrap().close().await;
        }
        assert!(dir.path().join("deep/offhook.db").exists());
        assert!(dir.path().join("deep/offhook.db.key").exists());
    }

    #[tokio::test]
    async fn a_preview_of_a_store_that_is_not_there_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        Store::open_for_preview(&config(&dir), None).await.unwrap().close().await;
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn writes_that_wait_together_are_all_done_and_each_has_its_own_outcome() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&config(&dir), None).await.unwrap();
        store.db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY) STRICT", args![]).await.unwrap();
        let busy = store.db.write().await.unwrap();
        // The first 300 find nothing; the others stand in their way.
        let writes = (0..600i64).map(|n| {
            let db = store.db.clone();
            tokio::spawn(async move { db.execute("INSERT INTO t (n) VALUES ($1)", args![n % 300]).await })
        });
        let writes: Vec<_> = writes.collect();
        let forgotten = store.db.execute("INSERT INTO t (n) VALUES ($1)", args![1000]);
        assert!(tokio::time::timeout(Duration::from_millis(20), forgotten).await.is_err(), "it waits for the first");
        busy.rollback().await.unwrap();
        let (mut done, mut refused) = (0, 0);
        for write in writes {
            match write.await.unwrap() {
                Ok(rows) => done += rows,
                Err(error) if error.is_duplicate() => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!((done, refused), (300, 300));
        let rows: Vec<(i64,)> = store.db.all("SELECT n FROM t WHERE n >= 299 ORDER BY n", args![]).await.unwrap();
        assert_eq!(rows, [(299,), (1000,)], "what nobody waits for any more is done, too");
    }

    #[tokio::test]
    async fn a_wrong_or_lost_key_is_told_at_start() {
        let dir = tempfile::tempdir().unwrap();
        Store::open(&config(&dir), Some(&key(1))).await.unwrap().close().await;
        assert!(!dir.path().join("deep/offhook.db.key").exists(), "no file is made for a configured key");
        let error = Store::open(&config(&dir), Some(&key(2))).await.unwrap_err();
        assert!(error.to_string().contains("the secrets key does not fit"), "{error}");
        let error = Store::open(&config(&dir), None).await.unwrap_err();
        assert!(matches!(error, StoreError::Secrets(SecretsError::Missing(_))), "{error}");
        Store::open(&config(&dir), Some(&key(1))).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_a_clear_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        std::fs::write(&path, "this is a letter, not a database; it is long enough to be looked at as one".repeat(20))
            .unwrap();
        let error = Store::open(&StoreConfig { url: format!("sqlite://{}", path.display()) }, None).await.unwrap_err();
        assert!(error.to_string().contains("x.db"), "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_first_starts_at_once_agree_on_tables_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir);
        let (one, two) = tokio::join!(Store::open(&config, None), Store::open(&config, None));
        let (one, two) = (one.unwrap(), two.unwrap());
        let sealed = one.sealer().seal(b"c", b"s");
        assert_eq!(two.sealer().open(b"c", &sealed, "x").unwrap(), b"s");
    }
}
