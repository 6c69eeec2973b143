//! One database under the store, SQLite or PostgreSQL, spoken to by the same statements: placeholders are `$1`, ids
//! are UUIDs, times are milliseconds since 1970, JSON is text. Statements keep to what both understand.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgPool, PgRow};
use sqlx::sqlite::{SqliteArguments, SqlitePool, SqliteRow};
use sqlx::{Arguments, Database, Decode, FromRow, Postgres, Sqlite, Transaction, Type};
use tokio::sync::oneshot;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::store::StoreError;

/// The connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Db {
    Sqlite {
        /// One connection: writes queue here instead of failing on each other's locks.
        writer: SqlitePool,
        readers: SqlitePool,
        gathered: Gathered,
    },
    Postgres(PgPool),
}

/// Writes that share a transaction at most: its length is what others wait.
const MAX_GATHERED: usize = 256;

/// A value for a placeholder. `None` is NULL of that type.
#[derive(Clone, Debug)]
pub(super) enum Arg {
    Id(Option<Uuid>),
    Text(Option<String>),
    Int(Option<i64>),
    Bytes(Option<Vec<u8>>),
}

/// What fills `$1`, `$2`, …
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::store::db::Arg::from($value)),*] };
}
pub(super) use args;

macro_rules! arg_from {
    ($($from:ty => $variant:ident($value:ident) $into:expr;)*) => {$(
        impl From<$from> for Arg {
            fn from($value: $from) -> Self {
                Arg::$variant(Some($into))
            }
        }
        impl From<Option<$from>> for Arg {
            fn from(value: Option<$from>) -> Self {
                Arg::$variant(value.map(|$value: $from| $into))
            }
        }
    )*};
}

arg_from! {
    Uuid => Id(id) id;
    String => Text(text) storable(text);
    &str => Text(text) storable(text.to_owned());
    &String => Text(text) storable(text.clone());
    i64 => Int(number) number;
    i32 => Int(number) i64::from(number);
    u32 => Int(number) i64::from(number);
    u64 => Int(number) i64::try_from(number).unwrap_or(i64::MAX);
    usize => Int(number) i64::try_from(number).unwrap_or(i64::MAX);
    Timestamp => Int(at) at.as_millisecond();
    At => Int(at) at.0.as_millisecond();
    Vec<u8> => Bytes(bytes) bytes;
    &[u8] => Bytes(bytes) bytes.to_vec();
}

/// PostgreSQL's text holds no NUL, and no caller's words may keep a record from being written.
fn storable(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

/// A struct (derived) or tuple that a row of either database can be read into.
pub(super) trait FromDb:
    for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin + 'static
{
}

impl<T> FromDb for T where T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin + 'static {}

fn bind<A: Arguments>(args: Vec<Arg>) -> Result<A, sqlx::Error>
where
    Option<Uuid>: for<'q> sqlx::Encode<'q, A::Database> + Type<A::Database>,
    Option<String>: for<'q> sqlx::Encode<'q, A::Database> + Type<A::Database>,
    Option<i64>: for<'q> sqlx::Encode<'q, A::Database> + Type<A::Database>,
    Option<Vec<u8>>: for<'q> sqlx::Encode<'q, A::Database> + Type<A::Database>,
{
    let mut bound = A::default();
    for arg in args {
        let added = match arg {
            Arg::Id(id) => bound.add(id),
            Arg::Text(text) => bound.add(text),
            Arg::Int(number) => bound.add(number),
            Arg::Bytes(bytes) => bound.add(bytes),
        };
        added.map_err(sqlx::Error::Encode)?;
    }
    Ok(bound)
}

/// The three ways to run a statement, on whatever an sqlx executor is.
macro_rules! statement {
    (execute, $db:ty, $args:ty, $sql:expr, $values:expr, $on:expr) => {
        sqlx::query_with::<$db, _>($sql, bind::<$args>($values)?).execute($on).await?.rows_affected()
    };
    (all, $db:ty, $args:ty, $sql:expr, $values:expr, $on:expr) => {
        sqlx::query_as_with::<$db, _, _>($sql, bind::<$args>($values)?).fetch_all($on).await?
    };
    (first, $db:ty, $args:ty, $sql:expr, $values:expr, $on:expr) => {
        sqlx::query_as_with::<$db, _, _>($sql, bind::<$args>($values)?).fetch_optional($on).await?
    };
}

impl Db {
    /// Rows of one statement, outside any transaction.
    pub async fn all<T: FromDb>(&self, sql: &'static str, values: Vec<Arg>) -> Result<Vec<T>, StoreError> {
        Ok(match self {
            Db::Sqlite { readers, .. } => statement!(all, Sqlite, SqliteArguments, sql, values, readers),
            Db::Postgres(pool) => statement!(all, Postgres, PgArguments, sql, values, pool),
        })
    }

    pub async fn first<T: FromDb>(&self, sql: &'static str, values: Vec<Arg>) -> Result<Option<T>, StoreError> {
        Ok(match self {
            Db::Sqlite { readers, .. } => statement!(first, Sqlite, SqliteArguments, sql, values, readers),
            Db::Postgres(pool) => statement!(first, Postgres, PgArguments, sql, values, pool),
        })
    }

    /// A write of one statement; gives the number of rows it touched. It is done even where nobody waits for it any more.
    pub async fn execute(&self, sql: &'static str, values: Vec<Arg>) -> Result<u64, StoreError> {
        match self {
            Db::Sqlite { writer, gathered, .. } => gathered.write(writer, sql, values).await,
            Db::Postgres(pool) => Ok(statement!(execute, Postgres, PgArguments, sql, values, pool)),
        }
    }

    /// Begins a write. SQLite's lock is taken at once, so that what is read in it stays true until the end.
    pub async fn write(&self) -> Result<Tx, StoreError> {
        Ok(match self {
            Db::Sqlite { writer, .. } => Tx::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?),
            Db::Postgres(pool) => Tx::Postgres(pool.begin().await?),
        })
    }

    /// Begins a read whose statements all see the same state.
    pub async fn read(&self) -> Result<Tx, StoreError> {
        Ok(match self {
            Db::Sqlite { readers, .. } => Tx::Sqlite(readers.begin().await?),
            Db::Postgres(pool) => {
                Tx::Postgres(pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
            }
        })
    }

    pub async fn close(&self) {
        match self {
            Db::Sqlite { writer, readers, .. } => {
                readers.close().await;
                writer.close().await;
            }
            Db::Postgres(pool) => pool.close().await,
        }
    }
}

/// Writes of one statement that wait for SQLite's one writing connection. Those that wait at the same time share a
/// transaction, because every commit waits for the disk. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Gathered(Arc<Mutex<Vec<Write>>>);

struct Write {
    sql: &'static str,
    values: Vec<Arg>,
    done: oneshot::Sender<Result<u64, StoreError>>,
}

impl fmt::Debug for Gathered {
    /// Without what is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gathered")
    }
}

impl Gathered {
    async fn write(&self, writer: &SqlitePool, sql: &'static str, values: Vec<Arg>) -> Result<u64, StoreError> {
        let (done, outcome) = oneshot::channel();
        let is_first = {
            let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push(Write { sql, values, done });
            waiting.len() == 1
        };
        if is_first {
            tokio::spawn(self.clone().write_all(writer.clone()));
        }
        outcome.await.unwrap_or_else(|_| Err(sqlx::Error::PoolClosed.into()))
    }

    async fn write_all(self, writer: SqlitePool) {
        loop {
            let tx = writer.begin_with("BEGIN IMMEDIATE").await;
            let (writes, more) = {
                let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let some = waiting.len().min(MAX_GATHERED);
                (waiting.drain(..some).collect::<Vec<_>>(), !waiting.is_empty())
            };
            match tx {
                Ok(tx) => write_together(&writer, Tx::Sqlite(tx), writes).await,
                Err(error) => refuse(&error, writes),
            }
            // Whoever comes to an empty queue begins anew.
            if !more {
                return;
            }
        }
    }
}

async fn write_together(writer: &SqlitePool, mut tx: Tx, writes: Vec<Write>) {
    let mut outcomes = Vec::with_capacity(writes.len());
    for Write { sql, values, .. } in &writes {
        // A statement that is refused undoes itself alone.
        outcomes.push(tx.execute(sql, values.clone()).await);
    }
    if tx.commit().await.is_ok() {
        for (write, outcome) in writes.into_iter().zip(outcomes) {
            let _ = write.done.send(outcome);
        }
        return;
    }
    // Nothing is written: each alone, so that one does not undo the others, and each has its own error.
    for Write { sql, values, done } in writes {
        let _ = done.send(write_one(writer, sql, values).await);
    }
}

fn refuse(error: &sqlx::Error, writes: Vec<Write>) {
    for write in writes {
        let same = match error {
            sqlx::Error::PoolTimedOut => sqlx::Error::PoolTimedOut,
            sqlx::Error::PoolClosed => sqlx::Error::PoolClosed,
            other => sqlx::Error::Protocol(other.to_string()),
        };
        let _ = write.done.send(Err(same.into()));
    }
}

async fn write_one(writer: &SqlitePool, sql: &'static str, values: Vec<Arg>) -> Result<u64, StoreError> {
    Ok(statement!(execute, Sqlite, SqliteArguments, sql, values, writer))
}

/// A transaction; dropping it undoes it.
pub(super) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

impl Tx {
    pub async fn all<T: FromDb>(&mut self, sql: &'static str, values: Vec<Arg>) -> Result<Vec<T>, StoreError> {
        Ok(match self {
            Tx::Sqlite(tx) => statement!(all, Sqlite, SqliteArguments, sql, values, &mut **tx),
            Tx::Postgres(tx) => statement!(all, Postgres, PgArguments, sql, values, &mut **tx),
        })
    }

    pub async fn first<T: FromDb>(&mut self, sql: &'static str, values: Vec<Arg>) -> Result<Option<T>, StoreError> {
        Ok(match self {
            Tx::Sqlite(tx) => statement!(first, Sqlite, SqliteArguments, sql, values, &mut **tx),
            Tx::Postgres(tx) => statement!(first, Postgres, PgArguments, sql, values, &mut **tx),
        })
    }

    pub async fn execute(&mut self, sql: &'static str, values: Vec<Arg>) -> Result<u64, StoreError> {
        Ok(match self {
            Tx::Sqlite(tx) => statement!(execute, Sqlite, SqliteArguments, sql, values, &mut **tx),
            Tx::Postgres(tx) => statement!(execute, Postgres, PgArguments, sql, values, &mut **tx),
        })
    }

    /// Whether rows are locked one by one (`FOR UPDATE`); in SQLite the whole database is.
    pub fn locks_rows(&self) -> bool {
        matches!(self, Tx::Postgres(_))
    }

    /// One at a time: whoever takes the same lock waits until this transaction is over. In SQLite every write does.
    pub async fn lock(&mut self, lock: Lock) -> Result<(), StoreError> {
        if let Tx::Postgres(tx) = self {
            sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(lock as i64).execute(&mut **tx).await?;
        }
        Ok(())
    }

    pub async fn commit(self) -> Result<(), StoreError> {
        match self {
            Tx::Sqlite(tx) => tx.commit().await?,
            Tx::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }

    pub async fn rollback(self) -> Result<(), StoreError> {
        match self {
            Tx::Sqlite(tx) => tx.rollback().await?,
            Tx::Postgres(tx) => tx.rollback().await?,
        }
        Ok(())
    }
}

/// Keys of PostgreSQL's advisory locks: any numbers that nobody else on the database uses.
#[derive(Clone, Copy, Debug)]
#[repr(i64)]
pub(super) enum Lock {
    /// Changes of companies, integrations, lines and agents.
    Setup = 0x006f_6666_686f_6f01,
    /// Closing the calls of processes that are gone.
    Nodes = 0x006f_6666_686f_6f02,
}

/// A moment as the store keeps it, in whole milliseconds. Printed and serialised as RFC 3339.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[schema(value_type = String, format = DateTime)]
#[serde(transparent)]
pub struct At(pub Timestamp);

impl At {
    pub fn now() -> Self {
        Self::of(crate::clock::now())
    }

    /// Cut to milliseconds, as it will be read back.
    pub fn of(at: Timestamp) -> Self {
        Self(Timestamp::from_millisecond(at.as_millisecond()).unwrap_or(at))
    }
}

impl Deref for At {
    type Target = Timestamp;

    fn deref(&self) -> &Timestamp {
        &self.0
    }
}

impl fmt::Debug for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<DB: Database> Type<DB> for At
where
    i64: Type<DB>,
{
    fn type_info() -> DB::TypeInfo {
        <i64 as Type<DB>>::type_info()
    }

    fn compatible(ty: &DB::TypeInfo) -> bool {
        <i64 as Type<DB>>::compatible(ty)
    }
}

impl<'r, DB: Database> Decode<'r, DB> for At
where
    i64: Decode<'r, DB>,
{
    fn decode(value: DB::ValueRef<'r>) -> Result<Self, BoxDynError> {
        Ok(Self(Timestamp::from_millisecond(i64::decode(value)?)?))
    }
}

/// A value kept as JSON text. The parser's message is not passed on: it could quote what the text holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json<T>(pub T);

impl<T> Deref for Json<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T, DB: Database> Type<DB> for Json<T>
where
    String: Type<DB>,
{
    fn type_info() -> DB::TypeInfo {
        <String as Type<DB>>::type_info()
    }

    fn compatible(ty: &DB::TypeInfo) -> bool {
        <String as Type<DB>>::compatible(ty)
    }
}

impl<'r, T: DeserializeOwned, DB: Database> Decode<'r, DB> for Json<T>
where
    String: Decode<'r, DB>,
{
    fn decode(value: DB::ValueRef<'r>) -> Result<Self, BoxDynError> {
        serde_json::from_str(&String::decode(value)?).map(Json).map_err(|_| "not the JSON of this column".into())
    }
}

/// JSON for a column.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("what the store keeps has text for its keys")
}

/// A word that is kept as its stable label.
macro_rules! labelled {
    ($type:ty, $all:expr) => {
        impl<DB: sqlx::Database> sqlx::Type<DB> for $type
        where
            String: sqlx::Type<DB>,
        {
            fn type_info() -> DB::TypeInfo {
                <String as sqlx::Type<DB>>::type_info()
            }

            fn compatible(ty: &DB::TypeInfo) -> bool {
                <String as sqlx::Type<DB>>::compatible(ty)
            }
        }

        impl<'r, DB: sqlx::Database> sqlx::Decode<'r, DB> for $type
        where
            String: sqlx::Decode<'r, DB>,
        {
            fn decode(value: DB::ValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
                let label = String::decode(value)?;
                $all.into_iter()
                    .find(|word| word.label() == label)
                    .ok_or_else(|| format!("no such word: {label}").into())
            }
        }

        impl From<$type> for $crate::store::db::Arg {
            fn from(word: $type) -> Self {
                Self::from(word.label())
            }
        }
    };
}
pub(super) use labelled;

/// Some of a list, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Asks for those that follow; `None`: that was all.
    pub next: Option<Uuid>,
}

/// Which part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From [`Page::next`].
    pub after: Option<Uuid>,
    /// At most [`MAX_PAGE`]; more is cut to it.
    pub limit: usize,
}

pub const MAX_PAGE: usize = 200;

impl Default for Part {
    fn default() -> Self {
        Self { after: None, limit: 50 }
    }
}

impl Part {
    /// A whole list, page by page.
    pub async fn all<T, F>(mut page: impl FnMut(Part) -> F) -> Result<Vec<T>, StoreError>
    where
        F: Future<Output = Result<Page<T>, StoreError>>,
    {
        let mut all = Vec::new();
        let mut part = Part { after: None, limit: MAX_PAGE };
        loop {
            let found = page(part).await?;
            all.extend(found.items);
            match found.next {
                Some(next) => part.after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// For `id < $n`: every id, or those older than the last that was given. Ids sort by time (UUIDv7).
    pub(super) fn below(self) -> Uuid {
        self.after.unwrap_or(Uuid::max())
    }

    /// For `LIMIT $n`: one more, to see whether there is more.
    pub(super) fn fetch(self) -> i64 {
        self.size() as i64 + 1
    }

    fn size(self) -> usize {
        self.limit.clamp(1, MAX_PAGE)
    }

    pub(super) fn page<T>(self, mut rows: Vec<T>, id: impl Fn(&T) -> Uuid) -> Page<T> {
        let more = rows.len() > self.size();
        rows.truncate(self.size());
        let next = if more { rows.last().map(id) } else { None };
        Page { items: rows, next }
    }
}
