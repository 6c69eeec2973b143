//! Downloads one model: into a `.part` file that a later attempt or a later run goes on with, verified, then renamed
//! into place. A file under its real name is always whole.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use indicatif::ProgressBar;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, RANGE};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::catalogue::{Checksum, Model, Verdict};

/// No model is larger; a server that sends without end is cut off here.
const MAX_BYTES: u64 = 32 << 30;
/// A list of checksums has a line per file.
const MAX_SUMS: usize = 1 << 20;

/// Where from, where to, and how patiently.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    pub dir: &'a Path,
    /// The file's path is appended to it.
    pub base_url: &'a str,
    /// Longest wait for a connection, for an answer, and between two pieces.
    pub stall: Duration,
    /// Connections before giving up, at least 1.
    pub attempts: u32,
    /// Wait before the second connection; it grows by itself with each further one.
    pub pause: Duration,
}

/// What came of it. The file is in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// It was there, whole.
    Already,
    Verified,
    /// Nobody knows its checksum; it was written down for `models check`.
    Unverified {
        sha256: String,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("models.base_url {0:?} is not an http or https URL")]
    BaseUrl(String),
    #[error("another `models pull` is writing {}; wait for it", .0.display())]
    Busy(PathBuf),
    #[error(
        "{url} is not there (status {status}); check models.base_url, or take another model of `offhook models list`"
    )]
    NotFound { url: String, status: u16 },
    #[error("the server refused {url} (status {status}); check models.base_url and whether it asks for a login")]
    Refused { url: String, status: u16 },
    #[error("{url} answered with status {status}; try again later{}", what_is_kept(*.kept))]
    Status { url: String, status: u16, kept: u64 },
    #[error("{url}: {detail}; check the network{}", what_is_kept(*.kept))]
    Interrupted { url: String, detail: String, kept: u64 },
    #[error("{url} brought nothing for {stall:?}; check the network or raise models.stall_s{}", what_is_kept(*.kept))]
    Stalled { url: String, stall: Duration, kept: u64 },
    /// Another file than the catalogue's: nothing was kept.
    #[error("{url} has {found} bytes instead of {expected}: it is another file; check models.base_url")]
    WrongSize { url: String, found: u64, expected: u64 },
    #[error("{url} sends more than {MAX_BYTES} bytes: no model is that large; check models.base_url")]
    TooLarge { url: String },
    /// What came is not the model; the part was removed.
    #[error("what {url} sent is damaged: {why}; it was removed, run the command again")]
    Damaged { url: String, why: String },
    #[error("no space is left in {}; free {mib} MiB and run the command again{}", .dir.display(), what_is_kept(*.kept))]
    DiskFull { dir: PathBuf, mib: u64, kept: u64 },
    #[error("{}: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot set up HTTPS: {0}")]
    Client(String),
}

fn what_is_kept(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(" (the next run goes on from {})", size(bytes)),
    }
}

/// `5 B`, `1.4 MiB`.
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

impl PullError {
    /// Whether another connection may do better.
    fn passes(&self) -> bool {
        matches!(self, Self::Status { .. } | Self::Interrupted { .. } | Self::Stalled { .. })
    }
}

/// Makes `model` lie in `source.dir`, whole.
pub async fn pull(model: &Model, source: &Source<'_>, bar: &ProgressBar) -> Result<Pulled, PullError> {
    let target = model.path(source.dir);
    let url = address(source.base_url, &model.file)?;
    let shown = printable(&url);
    let client = client(source.stall)?;
    let checksum = match model.checksum() {
        Some(checksum) => Some(checksum),
        None => published(&client, source, &model.file).await?,
    };
    if target.exists() && matches!(verify(model, &target, checksum.as_ref()).await?, Verdict::Good) {
        return Ok(Pulled::Already);
    }
    let folder = target.parent().unwrap_or(source.dir);
    fs::create_dir_all(folder).map_err(|error| file_error(folder, error))?;
    let path = model.part(source.dir);
    let part = open_part(&path)?;
    let known = checksum.is_some();
    let mut transfer = Transfer { client, url, shown: shown.clone(), model, source, part, path, known, bar };
    if let Err(error) = transfer.run().await {
        if transfer.length().await.is_ok_and(|bytes| bytes == 0) {
            transfer.discard()?;
        }
        return Err(error);
    }
    let Transfer { part, path, .. } = transfer;
    part.sync_all().await.map_err(|error| file_error(&path, error))?;

    bar.set_message("checking");
    let verdict = verify(model, &path, checksum.as_ref()).await?;
    let validator = model.validator(source.dir);
    if let Verdict::Bad { why } = verdict {
        remove(&path)?;
        remove(&validator)?;
        return Err(PullError::Damaged { url: shown, why });
    }
    let record = model.record(source.dir);
    remove(&record)?;
    fs::rename(&path, &target).map_err(|error| file_error(&target, error))?;
    remove(&validator)?;
    Ok(match verdict {
        Verdict::Unknown { sha256 } => {
            fs::write(&record, format!("{sha256}\n")).map_err(|error| file_error(&record, error))?;
            Pulled::Unverified { sha256 }
        }
        _ => Pulled::Verified,
    })
}

/// The part, for this process alone: the lock goes when it is closed.
fn open_part(path: &Path) -> Result<tokio::fs::File, PullError> {
    let part = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let part = part.map_err(|error| file_error(path, error))?;
    match part.try_lock() {
        Ok(()) => Ok(tokio::fs::File::from_std(part)),
        Err(fs::TryLockError::WouldBlock) => Err(PullError::Busy(path.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(file_error(path, error)),
    }
}

struct Transfer<'a> {
    client: Client,
    url: Url,
    shown: String,
    model: &'a Model,
    source: &'a Source<'a>,
    part: tokio::fs::File,
    path: PathBuf,
    /// A checksum will tell if parts of two files were joined.
    known: bool,
    bar: &'a ProgressBar,
}

impl Transfer<'_> {
    async fn run(&mut self) -> Result<(), PullError> {
        let mut attempt = 1;
        loop {
            match self.connect().await {
                Err(error) if error.passes() && attempt < self.source.attempts => {
                    self.bar.set_message(format!("{error}; attempt {} of {}", attempt + 1, self.source.attempts));
                    sleep(self.source.pause * attempt).await;
                    attempt += 1;
                }
                finished => return finished,
            }
        }
    }

    /// One connection: goes on where the part ends.
    async fn connect(&mut self) -> Result<(), PullError> {
        let mut have = self.length().await?;
        let validator = fs::read_to_string(self.model.validator(self.source.dir)).unwrap_or_default();
        let too_long = self.model.bytes.is_some_and(|bytes| have > bytes);
        if have > 0 && (too_long || (validator.is_empty() && !self.known)) {
            have = self.restart().await?;
        }
        if have > 0 && self.model.bytes == Some(have) {
            return Ok(());
        }
        let mut request = self.client.get(self.url.clone());
        if have > 0 {
            request = request.header(RANGE, format!("bytes={have}-"));
            if !validator.is_empty() {
                request = request.header(IF_RANGE, validator);
            }
        }
        let response = match timeout(self.source.stall, request.send()).await {
            Err(_) => return Err(self.stalled(have)),
            Ok(Err(error)) => return Err(self.interrupted(error, have)),
            Ok(Ok(response)) => response,
        };
        let status = response.status();
        match status {
            StatusCode::PARTIAL_CONTENT => match content_range(response.headers()) {
                Some((Some(start), total)) if start == have => self.receive(response, have, total).await,
                _ => {
                    self.restart().await?;
                    Err(self.interrupted_by("the server resumed at another place", 0))
                }
            },
            StatusCode::OK => {
                if have > 0 {
                    self.bar.set_message("the server does not resume: starting again");
                    self.restart().await?;
                }
                let total = response.content_length();
                self.remember(response.headers())?;
                self.receive(response, 0, total).await
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                if matches!(content_range(response.headers()), Some((None, Some(total))) if total == have) {
                    return Ok(());
                }
                self.restart().await?;
                Err(self.interrupted_by("the server has a shorter file than the part", 0))
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                Err(PullError::NotFound { url: self.shown.clone(), status: status.as_u16() })
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(PullError::Refused { url: self.shown.clone(), status: status.as_u16() })
            }
            status => Err(PullError::Status { url: self.shown.clone(), status: status.as_u16(), kept: have }),
        }
    }

    /// Appends the body to the part, which has `have` bytes; the whole file has `total`.
    async fn receive(&mut self, response: Response, have: u64, total: Option<u64>) -> Result<(), PullError> {
        if let (Some(found), Some(expected)) = (total, self.model.bytes)
            && found != expected
        {
            self.discard()?;
            return Err(PullError::WrongSize { url: self.shown.clone(), found, expected });
        }
        if total.is_some_and(|total| total > MAX_BYTES) {
            self.discard()?;
            return Err(PullError::TooLarge { url: self.shown.clone() });
        }
        if let Some(total) = total {
            self.bar.set_length(total);
        }
        self.bar.set_position(have);
        self.bar.set_message("");
        self.part.seek(io::SeekFrom::Start(have)).await.map_err(|error| self.disk(error, have, total))?;
        let mut written = have;
        let ended = self.copy(response, &mut written, total).await;
        // What came before a fault is kept for the next attempt.
        let flushed = self.part.flush().await.map_err(|error| self.disk(error, have, total));
        ended.and(flushed)?;
        match total {
            Some(total) if written < total => Err(self.interrupted_by("the connection was cut off", written)),
            _ => Ok(()),
        }
    }

    async fn copy(&mut self, response: Response, written: &mut u64, total: Option<u64>) -> Result<(), PullError> {
        let mut body = response.bytes_stream();
        loop {
            let bytes = match timeout(self.source.stall, body.next()).await {
                Err(_) => return Err(self.stalled(*written)),
                Ok(None) => return Ok(()),
                Ok(Some(Err(error))) => return Err(self.interrupted(error, *written)),
                Ok(Some(Ok(bytes))) => bytes,
            };
            if *written + bytes.len() as u64 > total.or(self.model.bytes).unwrap_or(MAX_BYTES) {
                self.discard()?;
                return Err(PullError::TooLarge { url: self.shown.clone() });
            }
            self.part.write_all(&bytes).await.map_err(|error| self.disk(error, *written, total))?;
            *written += bytes.len() as u64;
            self.bar.set_position(*written);
        }
    }

    async fn length(&self) -> Result<u64, PullError> {
        Ok(self.part.metadata().await.map_err(|error| file_error(&self.path, error))?.len())
    }

    /// Empties the part.
    async fn restart(&mut self) -> Result<u64, PullError> {
        self.part.set_len(0).await.map_err(|error| file_error(&self.path, error))?;
        remove(&self.model.validator(self.source.dir))?;
        Ok(0)
    }

    /// Removes the part: what is in it, or would come, is of no use.
    fn discard(&self) -> Result<(), PullError> {
        remove(&self.model.validator(self.source.dir))?;
        remove(&self.path)
    }

    /// Keeps what names this version of the file: a strong entity tag, else the date (RFC 9110 §13.1.5).
    fn remember(&self, headers: &HeaderMap) -> Result<(), PullError> {
        let path = self.model.validator(self.source.dir);
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        match text(ETAG).filter(|tag| tag.starts_with('"')).or(text(LAST_MODIFIED)) {
            Some(validator) => fs::write(&path, validator).map_err(|error| file_error(&path, error)),
            None => remove(&path),
        }
    }

    fn stalled(&self, kept: u64) -> PullError {
        PullError::Stalled { url: self.shown.clone(), stall: self.source.stall, kept }
    }

    fn interrupted(&self, error: reqwest::Error, kept: u64) -> PullError {
        // The library's own text has the URL, with its password if there is one.
        let error = error.without_url();
        let mut detail = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            detail = format!("{detail}: {error}");
            cause = error.source();
        }
        self.interrupted_by(&detail, kept)
    }

    fn interrupted_by(&self, detail: &str, kept: u64) -> PullError {
        PullError::Interrupted { url: self.shown.clone(), detail: detail.to_owned(), kept }
    }

    fn disk(&self, error: io::Error, kept: u64, total: Option<u64>) -> PullError {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            let needed = total.unwrap_or(self.model.mib << 20).saturating_sub(kept);
            return PullError::DiskFull { dir: self.source.dir.to_owned(), mib: needed.div_ceil(1 << 20), kept };
        }
        file_error(&self.path, error)
    }
}

/// `bytes 5-9/10` → start and total; `bytes */10` has no start.
fn content_range(headers: &HeaderMap) -> Option<(Option<u64>, Option<u64>)> {
    let (range, total) = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-').and_then(|(start, _)| start.parse().ok());
    Some((start, total.parse().ok()))
}

/// The checksum in the list beside the file, `SHA256SUMS`, if the server has one.
async fn published(client: &Client, source: &Source<'_>, file: &str) -> Result<Option<Checksum>, PullError> {
    let url = address(source.base_url, "SHA256SUMS")?;
    let list = timeout(source.stall, async {
        let response = client.get(url).send().await.ok().filter(|response| response.status().is_success())?;
        let mut body = response.bytes_stream();
        let mut list = Vec::new();
        while let Some(piece) = body.next().await {
            list.extend_from_slice(&piece.ok()?);
            if list.len() > MAX_SUMS {
                return None;
            }
        }
        String::from_utf8(list).ok()
    });
    let Ok(Some(list)) = list.await else { return Ok(None) };
    Ok(list.lines().find_map(|line| {
        let (sum, name) = line.split_once(char::is_whitespace)?;
        let name = name.trim_start().trim_start_matches('*');
        let is_sum = sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_sum && name == file).then(|| Checksum::Sha256(sum.to_lowercase()))
    }))
}

async fn verify(model: &Model, path: &Path, checksum: Option<&Checksum>) -> Result<Verdict, PullError> {
    let (model, file, checksum) = (model.clone(), path.to_owned(), checksum.cloned());
    tokio::task::spawn_blocking(move || model.verify(&file, checksum.as_ref()))
        .await
        .expect("hashing a file does not panic")
        .map_err(|error| file_error(path, error))
}

fn client(stall: Duration) -> Result<Client, PullError> {
    // Another part of the program may have chosen the provider already; it is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .connect_timeout(stall)
        .user_agent(concat!("offhook/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| PullError::Client(error.without_url().to_string()))
}

fn address(base: &str, file: &str) -> Result<Url, PullError> {
    let base = base.trim_end_matches('/');
    Url::parse(&format!("{base}/{file}"))
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or_else(|| PullError::BaseUrl(base.split('@').next_back().unwrap_or_default().to_owned()))
}

/// The URL without what a person might be logged in with.
fn printable(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only for URLs that have no host.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.into()
}

fn file_error(path: &Path, source: io::Error) -> PullError {
    PullError::File { path: path.to_owned(), source }
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> Result<(), PullError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error(path, error)),
        _ => Ok(()),
    }
}
