//! Where a file is read: plain text and Markdown in this process, by code that neither recurses nor unpacks anything;
//! HTML, PDF and DOCX by another process, so that what a file does to the library that reads it is done to nothing else.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::{error, warn};

use super::{Blocks, ExtractError, Format, LIMIT, MAX_BLOCKS, MAX_TEXT, Patience, looked_at, read};
use crate::agent::knowledge::split::Block;

/// How long a file waits until others are read.
const QUEUE_LIMIT: Duration = Duration::from_secs(20);
/// Files that are read at once.
const AT_ONCE: usize = 2;
/// Most bytes of a reader's answer: the text, and what JSON puts around each block.
const MAX_ANSWER: usize = MAX_TEXT + 64 * MAX_BLOCKS;
/// A process that was killed is gone after so long, unless the system holds it.
const KILL_LIMIT: Duration = Duration::from_secs(2);
/// Most characters of a library's word on a file.
const MAX_REASON: usize = 200;
/// The command of the program that reads one file.
pub const COMMAND: &str = "read-document";

/// Reads uploaded files. Cheap to clone. Without a program to start, it reads plain text and Markdown alone.
#[derive(Clone, Debug)]
pub struct Reader {
    program: Option<Arc<Program>>,
    limit: Duration,
}

#[derive(Debug)]
struct Program {
    path: PathBuf,
    /// The format follows them.
    arguments: Vec<OsString>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { program: None, limit: LIMIT }
    }
}

impl Reader {
    /// Starts this program, offhook itself, for each file that is not text.
    pub fn starting(program: PathBuf) -> Self {
        Self::with(program, vec![COMMAND.into()])
    }

    fn with(path: PathBuf, arguments: Vec<OsString>) -> Self {
        Self { program: Some(Arc::new(Program { path, arguments })), ..Self::default() }
    }

    /// With another time limit for one file than [`LIMIT`].
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The text of an uploaded file. At most two are read at once, in the whole process.
    pub async fn read(&self, name: &str, file: Bytes) -> Result<Vec<Block>, ExtractError> {
        static FREE: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(AT_ONCE)));
        let format = looked_at(name, &file)?;
        let free = timeout(QUEUE_LIMIT, FREE.clone().acquire_owned()).await;
        let permit = free.map_err(|_| ExtractError::Busy)?.expect("the semaphore is never closed");
        match format {
            Format::Text | Format::Markdown => self.read_here(format, file, permit).await,
            Format::Html | Format::Pdf | Format::Docx => self.read_apart(format, file, permit).await,
        }
    }

    async fn read_here(
        &self,
        format: Format,
        file: Bytes,
        permit: OwnedSemaphorePermit,
    ) -> Result<Vec<Block>, ExtractError> {
        let patience = Patience::of(self.limit);
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            read(format, &file, patience)
        });
        match timeout(self.limit, work).await {
            Ok(Ok(told)) => told,
            Ok(Err(_)) => Err(ExtractError::Unreadable),
            Err(_) => Err(ExtractError::Late),
        }
    }

    async fn read_apart(
        &self,
        format: Format,
        file: Bytes,
        _permit: OwnedSemaphorePermit,
    ) -> Result<Vec<Block>, ExtractError> {
        let Some(program) = self.program.as_deref() else {
            error!(format = format.label(), "no program is known that reads documents");
            return Err(ExtractError::NoReader);
        };
        let bytes = file.len();
        let mut child = program.start(format).map_err(|fault| {
            error!(program = %program.path.display(), error = %fault, "the program that reads documents does not start");
            ExtractError::NoReader
        })?;
        let told = timeout(self.limit, converse(&mut child, file)).await;
        // Whatever it said, nothing of it is left when the next file is read.
        if timeout(KILL_LIMIT, child.kill()).await.is_err() {
            error!(format = format.label(), "a reader of documents cannot be killed");
        }
        let unreadable = |cause: &dyn std::fmt::Display| {
            warn!(format = format.label(), bytes, %cause, "a document's reader ended without an answer");
            ExtractError::Unreadable
        };
        let (answer, status) = match told {
            Ok(Ok(told)) => told,
            Ok(Err(fault)) => return Err(unreadable(&fault)),
            Err(_) => return Err(ExtractError::Late),
        };
        match status {
            None => Err(unreadable(&"it writes without end")),
            Some(status) if !status.success() => Err(unreadable(&status)),
            Some(_) => understood(&answer).unwrap_or_else(|| Err(unreadable(&"its answer makes no sense"))),
        }
    }
}

impl Program {
    /// With nothing of this process but three pipes. It has a group of its own: an interrupt at the terminal is for the
    /// server, which drains.
    fn start(&self, format: Format) -> std::io::Result<Child> {
        Command::new(&self.path)
            .args(&self.arguments)
            .arg(format.label())
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What a library says of a file is the file's own words: they are not for the log.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
    }
}

/// Hands the file over and takes the answer; no status: it was too long.
async fn converse(child: &mut Child, file: Bytes) -> std::io::Result<(Vec<u8>, Option<ExitStatus>)> {
    let mut input = child.stdin.take().expect("it was made a pipe");
    let mut output = child.stdout.take().expect("it was made a pipe").take(MAX_ANSWER as u64 + 1);
    let hand_over = async move {
        // One that answers before it has read all may close the pipe: what it says counts.
        let _ = input.write_all(&file).await;
        drop((input, file));
        std::future::pending::<Infallible>().await
    };
    let mut answer = Vec::new();
    tokio::select! {
        read = output.read_to_end(&mut answer) => drop(read?),
        never = hand_over => match never {},
    }
    if answer.len() > MAX_ANSWER {
        return Ok((answer, None));
    }
    let status = child.wait().await?;
    Ok((answer, Some(status)))
}

/// `None`: it is no answer. A reader that a file took over may say anything: the limits hold for its words too.
fn understood(answer: &[u8]) -> Option<Result<Vec<Block>, ExtractError>> {
    let told: Result<Vec<Block>, ExtractError> = serde_json::from_slice(answer).ok()?;
    Some(match told {
        Ok(told) => {
            let mut blocks = Blocks::new(Patience::of(LIMIT));
            told.into_iter().try_for_each(|block| blocks.add(block)).map(|()| blocks.blocks)
        }
        Err(ExtractError::Broken(reason)) => Err(ExtractError::Broken(reason.chars().take(MAX_REASON).collect())),
        Err(fault) => Err(fault),
    })
}

#[cfg(test)]
mod tests;
