//! Every database that a store can lie in, each test with one of its own: SQLite in a temporary folder always, and a
//! database on the PostgreSQL that `OFFHOOK_TEST_POSTGRES` names (`scripts/postgres.sh` starts one).
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::collections::BTreeMap;

use offhook::conversation::transcript::Transcript;
use offhook::store::calls::{CallRecord, Interruptions};
use offhook::store::{At, Store, StoreConfig};
use offhook::telephony::{CallId, Direction, PhoneNumber};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use uuid::Uuid;

/// An empty place for a store.
pub struct Base {
    pub config: StoreConfig,
    /// A key file beside an SQLite database; for PostgreSQL the key is configured.
    pub key: Option<SecretString>,
    pub dir: tempfile::TempDir,
}

impl Base {
    pub fn sqlite() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let url = format!("sqlite://{}", dir.path().join("data/offhook.db").display());
        Self { config: StoreConfig { url }, key: None, dir }
    }

    /// `None`: there is no PostgreSQL.
    pub async fn postgres() -> Option<Self> {
        let Ok(server) = std::env::var("OFFHOOK_TEST_POSTGRES") else {
            println!("skipped: no PostgreSQL");
            return None;
        };
        let database = format!("offhook_{}", Uuid::now_v7().simple());
        let mut connection = PgConnection::connect(&server).await.expect("OFFHOOK_TEST_POSTGRES leads to a server");
        // template0 is nobody's: template1 could not be copied while somebody looks at it.
        let create = AssertSqlSafe(format!("CREATE DATABASE {database} TEMPLATE template0"));
        sqlx::query(create).execute(&mut connection).await.expect("a database can be created");
        connection.close().await.expect("closes");
        let mut url = reqwest::Url::parse(&server).expect("a URL");
        url.set_path(&database);
        let dir = tempfile::tempdir().expect("a temporary folder");
        let key = SecretString::from("A".repeat(43) + "=");
        Some(Self { config: StoreConfig { url: url.into() }, key: Some(key), dir })
    }

    /// A statement behind the store's back.
    pub async fn sql(&self, statement: &'static str) {
        if self.config.url.starts_with("sqlite") {
            let mut connection = SqliteConnection::connect(&self.config.url).await.expect("connects");
            sqlx::query(statement).execute(&mut connection).await.expect("runs");
        } else {
            let mut connection = PgConnection::connect(&self.config.url).await.expect("connects");
            sqlx::query(statement).execute(&mut connection).await.expect("runs");
        }
    }

    /// Holds a lock that every write of a record or an event needs, until it is dropped: a store that stands still.
    pub async fn stall(&self) -> Stall {
        if self.config.url.starts_with("sqlite") {
            let mut connection = SqliteConnection::connect(&self.config.url).await.expect("connects");
            sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.expect("runs");
            Stall::Sqlite(connection)
        } else {
            let mut connection = PgConnection::connect(&self.config.url).await.expect("connects");
            sqlx::query("BEGIN").execute(&mut connection).await.expect("runs");
            let lock = "LOCK TABLE call, inbox IN ACCESS EXCLUSIVE MODE";
            sqlx::query(lock).execute(&mut connection).await.expect("runs");
            Stall::Postgres(connection)
        }
    }

    pub async fn open(&self) -> Store {
        Store::open(&self.config, self.key.as_ref()).await.expect("the store opens")
    }
}

/// A connection with a lock.
pub enum Stall {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Stall {
    pub async fn end(self) {
        match self {
            Stall::Sqlite(connection) => connection.close().await.expect("closes"),
            Stall::Postgres(connection) => connection.close().await.expect("closes"),
        }
    }
}

/// A call from +15550002222 to the company's line at Twilio, answered a moment ago: it runs, and nothing was said yet.
pub fn record(company: Uuid, integration: Uuid, agent: Uuid) -> CallRecord {
    CallRecord {
        id: CallId::new(),
        direction: Direction::Inbound,
        company: "Acme".into(),
        company_id: company,
        integration_id: integration,
        provider: "twilio".into(),
        provider_call: String::new(),
        line: "+15550001111".into(),
        from: PhoneNumber::new("+15550002222"),
        to: PhoneNumber::new("+15550001111"),
        agent: "Front desk".into(),
        agent_id: Some(agent),
        agent_version: Some(1),
        purpose: None,
        vars: Default::default(),
        started: At::now().0,
        answered: Some(At::now().0),
        ended: None,
        end: None,
        legs: Vec::new(),
        transcript: Transcript::default(),
        remembered: BTreeMap::new(),
        handover: None,
        interruptions: Interruptions::default(),
        faults: Vec::new(),
        recorded: false,
    }
}

/// Makes each test of the list run on every database: `on_every_store! { a_name another_name }` where these are
/// `async fn a_name(base: Base)`.
#[macro_export]
macro_rules! on_every_store {
    ($($test:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test($crate::stores::Base::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                if let Some(base) = $crate::stores::Base::postgres().await {
                    super::$test(base).await;
                }
            })*
        }
    };
}
