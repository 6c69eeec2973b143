//! What must last: companies, integrations, lines and agents in SQLite; credentials sealed. SQL stays on this floor.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous, SqliteTransaction,
};
use tracing::debug;

use crate::store::secrets::{Sealer, SecretsError};

mod apply;
pub mod directory;
pub mod leaves;
mod read;
pub mod secrets;
pub mod setup;
mod watch;

pub use apply::{Action, ApplyError, ApplyOptions, Change, Diff, Thing, Webhook};
pub use watch::DirectoryWatch;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// How long a connection waits for another one's write lock, of this process or another.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// How long a query waits for a free connection of its pool.
const ACQUIRE_LIMIT: Duration = Duration::from_secs(10);
/// Readers never block each other or the writer (WAL); a few serve the console and the API.
const READERS: u32 = 4;
/// Two processes that start at once may both find the migrations missing; the one that loses looks again.
const MIGRATION_ATTEMPTS: u32 = 5;

/// `[store]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// `sqlite://` and a path, relative to the working directory unless it begins with `/`. The folder is created.
    pub url: String,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { url: "sqlite://data/offhook.db".into() }
    }
}

impl StoreConfig {
    /// The database file that `url` names.
    pub fn path(&self) -> Result<PathBuf, StoreError> {
        if self.url.starts_with("postgres://") || self.url.starts_with("postgresql://") {
            return Err(StoreError::PostgresUnsupported);
        }
        let path = self.url.strip_prefix("sqlite://").ok_or(StoreError::Url("it must begin with sqlite://"))?;
        if path.is_empty() || path.ends_with('/') {
            return Err(StoreError::Url("it names no file; the default is sqlite://data/offhook.db"));
        }
        if path.starts_with(':') {
            return Err(StoreError::Url("a store in memory would forget everything; name a file"));
        }
        if path.contains(['?', '#']) {
            return Err(StoreError::Url("it takes a path only, without parameters"));
        }
        Ok(PathBuf::from(path))
    }

    /// Where the secrets key lies unless it is configured: `offhook.db.key`.
    fn key_path(&self) -> Result<PathBuf, StoreError> {
        let mut path = self.path()?.into_os_string();
        path.push(".key");
        Ok(path.into())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("store.url: {0}")]
    Url(&'static str),
    #[error("store.url: PostgreSQL is not supported yet by this build; use sqlite://PATH")]
    PostgresUnsupported,
    #[error("cannot create the folder {}: {source}", .path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    /// Not there, not readable, not a database, or locked for longer than `BUSY_LIMIT`.
    #[error("cannot open the store {}: {source}", .path.display())]
    Open { path: PathBuf, source: sqlx::Error },
    /// The schema is another version's: start that version, or restore a backup.
    #[error("cannot bring the store's tables up to date: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// A query failed: the disk, or a lock that was not given up in time. It may be tried again.
    #[error("the store failed: {0}")]
    Query(#[from] sqlx::Error),
    /// A row that this version cannot read.
    #[error("the store holds a {what} that cannot be read: {detail}")]
    Corrupt { what: String, detail: String },
}

/// The open store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    options: SqliteConnectOptions,
    /// One connection: writes queue here instead of failing on each other's locks.
    writer: SqlitePool,
    readers: SqlitePool,
    sealer: Sealer,
}

impl Store {
    /// Opens the store, creating it on first start. `key` is `security.secrets_key`; without it, the key lies in a
    /// file beside the database, made on first start too.
    pub async fn open(config: &StoreConfig, key: Option<&SecretString>) -> Result<Self, StoreError> {
        let path = config.path()?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            // Phone numbers and recordings will lie here: nobody else needs to look in.
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|source| StoreError::Folder { path: folder.to_owned(), source })?;
        }
        let configured = key.map(Sealer::from_base64).transpose()?;
        let (options, writer) = open_file(&path).await?;
        let readers = SqlitePoolOptions::new()
            .min_connections(0)
            .max_connections(READERS)
            .acquire_timeout(ACQUIRE_LIMIT)
            .connect_lazy_with(options.clone());
        let sealed: Option<Vec<u8>> = probe(&writer).await?;
        let sealer = match configured {
            Some(sealer) => sealer,
            None => Sealer::from_file(&config.key_path()?, sealed.is_none())?,
        };
        let store = Self { options, writer, readers, sealer };
        store.check_key(sealed).await?;
        Ok(store)
    }

    /// A store to try a change on: the one on disk if there is one, else an empty one in memory. Creates no file.
    pub async fn open_for_preview(config: &StoreConfig, key: Option<&SecretString>) -> Result<Self, StoreError> {
        if config.path()?.exists() {
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
            .connect_with(options.clone())
            .await?;
        MIGRATIONS.run(&only).await?;
        Ok(Self { options, writer: only.clone(), readers: only, sealer: Sealer::random() })
    }

    /// Closes all connections; the write-ahead log is folded into the database.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// Begins a write. The lock is taken at once, so that what is read in it stays true until the end.
    async fn write(&self) -> Result<SqliteTransaction<'static>, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Proves that the key is the one that this database was sealed with; on first start, seals the proof.
    async fn check_key(&self, mut sealed: Option<Vec<u8>>) -> Result<(), StoreError> {
        if sealed.is_none() {
            sqlx::query("INSERT INTO secrets_probe (id, sealed) VALUES (1, ?) ON CONFLICT (id) DO NOTHING")
                .bind(self.sealer.seal(PROBE_CONTEXT, PROBE))
                .execute(&self.writer)
                .await?;
            // Another process may have been first.
            sealed = probe(&self.writer).await?;
        }
        self.sealer.open(PROBE_CONTEXT, &sealed.unwrap_or_default(), "the store")?;
        Ok(())
    }
}

const PROBE: &[u8] = b"offhook";
const PROBE_CONTEXT: &[u8] = b"offhook secrets probe";

async fn probe(pool: &SqlitePool) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar("SELECT sealed FROM secrets_probe WHERE id = 1").fetch_optional(pool).await?)
}

/// Opens the file and brings its tables up to date.
async fn open_file(path: &Path) -> Result<(SqliteConnectOptions, SqlitePool), StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // A record that was written survives a power cut; at a few writes per call the extra fsync is not felt.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_LIMIT);
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
    while let Err(error) = MIGRATIONS.run(&writer).await {
        if attempt >= MIGRATION_ATTEMPTS
            || !matches!(
                error,
                sqlx::migrate::MigrateError::Execute(_) | sqlx::migrate::MigrateError::ExecuteMigration(..)
            )
        {
            return Err(error.into());
        }
        debug!(attempt, error = %error, "another process may be creating the tables; looking again");
        again(&mut attempt).await;
    }
    Ok((options, writer))
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
        let path = |url: &str| StoreConfig { url: url.into() }.path().map_err(|error| error.to_string());
        assert_eq!(path("sqlite://data/offhook.db").unwrap(), Path::new("data/offhook.db"));
        assert_eq!(path("sqlite:///var/lib/offhook.db").unwrap(), Path::new("/var/lib/offhook.db"));
        assert!(path("postgres://u:p@h/d").unwrap_err().contains("not supported yet by this build"));
        for url in ["", "offhook.db", "sqlite://", "sqlite://data/", "sqlite://:memory:", "sqlite://a.db?mode=ro"] {
            let error = path(url).unwrap_err();
            assert!(error.starts_with("store.url"), "{url}: {error}");
        }
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
        let sealed = one.sealer.seal(b"c", b"s");
        assert_eq!(two.sealer.open(b"c", &sealed, "x").unwrap(), b"s");
    }
}
