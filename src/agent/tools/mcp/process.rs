//! MCP servers as processes of this machine, spoken to over their standard input and output. What may be started is named
//! by the operator; a company chooses among the names, and can write neither a program nor an argument.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rmcp::RoleClient;
use rmcp::model::{ClientJsonRpcMessage, JsonRpcMessage, ServerJsonRpcMessage, ServerNotification};
use rmcp::transport::Transport;
use rmcp::transport::async_rw::AsyncRwTransport;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::McpError;
use crate::agent::tools::clip;
use crate::agent::tools::fetch::MAX_BODY;
use crate::agent::tools::http::SecretHeaders;

/// Processes at once, of all companies.
const MAX_PROCESSES: usize = 64;
/// For ending by itself, once nothing more comes in; then it is killed.
const GRACE: Duration = Duration::from_millis(500);
/// Nothing that was killed needs longer, but for a disk that does not answer.
const KILLED: Duration = Duration::from_secs(5);
/// A process that ran for so long has not failed to start.
const SOUND: Duration = Duration::from_secs(60);
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Of what a process says besides its answers: lines that are logged, the longest one that is read, and what of it is
/// kept, bytes. The rest is read and forgotten, so that the process never waits for a reader.
const LOGGED_LINES: usize = 200;
const MAX_LINE: usize = 8192;
const LOGGED_BYTES: usize = 500;
/// Questions of a process that wait for their answers to be written; it is not asked to ask more.
const MAX_QUESTIONS: usize = 16;
/// Names and words of a command.
const MAX_COMMANDS: usize = 64;
const MAX_WORDS: usize = 64;

/// `tools.mcp_commands`, with what of this program's environment their processes are given. Cheap to clone.
#[derive(Clone)]
pub struct Commands {
    inner: Arc<Inner>,
}

struct Inner {
    named: BTreeMap<String, Vec<String>>,
    environment: Vec<(&'static str, OsString)>,
    places: Arc<Semaphore>,
}

impl Default for Commands {
    fn default() -> Self {
        Self::new(&BTreeMap::new())
    }
}

impl Commands {
    pub fn new(named: &BTreeMap<String, Vec<String>>) -> Self {
        let environment = ["PATH", "HOME"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let (named, environment) = (named.clone(), environment.collect());
        Self { inner: Arc::new(Inner { named, environment, places: Arc::new(Semaphore::new(MAX_PROCESSES)) }) }
    }

    fn command(&self, name: &str, secrets: &SecretHeaders) -> Result<Command, McpError> {
        let words = self.inner.named.get(name).and_then(|words| words.split_first());
        let Some((program, arguments)) = words else {
            let known = "the operator names those that there are in tools.mcp_commands";
            return Err(McpError::NotStarted(format!("there is no command {name:?}: {known}")));
        };
        let secrets = secrets.expose();
        if let Some(name) = secrets.keys().find(|name| !is_secret_variable(name)) {
            return Err(McpError::NotStarted(format!("the secret {name} {VARIABLE_CURE}")));
        }
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(self.inner.environment.clone()).envs(secrets);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: a signal for this program does not reach it, and it is ended with all that it started.
        command.process_group(0).kill_on_drop(true);
        Ok(command)
    }
}

/// What is wrong with the commands that an operator named.
pub fn command_faults(named: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut faults = Vec::new();
    if named.len() > MAX_COMMANDS {
        faults.push(format!("names more than {MAX_COMMANDS} commands"));
    }
    for (name, words) in named {
        if !is_command_name(name) {
            faults.push(format!("{name:?} is no name: write 1 to 64 letters, digits, _ or -"));
        }
        let whole = words.first().is_some_and(|program| program.starts_with('/'));
        if !whole || words.len() > MAX_WORDS || words.iter().any(|word| word.contains('\0')) {
            let cure =
                "write the program with its whole path, then its arguments: [\"/usr/bin/python3\", \"/srv/crm.py\"]";
            faults.push(format!("{name}: {cure}"));
        }
    }
    faults
}

pub(super) fn is_command_name(name: &str) -> bool {
    super::name_fault(name).is_none()
}

pub(super) const VARIABLE_CURE: &str =
    "cannot be given to a command: write capitals, digits and _, ending in _TOKEN, _KEY, _SECRET or _PASSWORD";

/// Whether a company may set this variable of a process. Many others make a program run code: `LD_PRELOAD`,
/// `NODE_OPTIONS`, `PERL5OPT`, `PYTHONPATH`, …; none of those has such an end.
pub(super) fn is_secret_variable(name: &str) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_uppercase());
    plain && first && ["_TOKEN", "_KEY", "_SECRET", "_PASSWORD"].iter().any(|end| name.ends_with(end))
}

/// When a process may be started again: at once after a long life, and later and later while none lives long.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    last: Option<Instant>,
    wait: Duration,
}

impl Restarts {
    /// Begins a start, or says how long it is too early.
    fn begin(&mut self, now: Instant) -> Result<(), Duration> {
        if let Some(last) = self.last {
            let lived = now.saturating_duration_since(last);
            if lived >= SOUND {
                self.wait = Duration::ZERO;
            } else if lived < self.wait {
                return Err(self.wait - lived);
            }
        }
        self.last = Some(now);
        self.wait = if self.wait.is_zero() { FIRST_WAIT } else { (2 * self.wait).min(LONGEST_WAIT) };
        Ok(())
    }
}

/// What a process writes, a message a line, and what it is written. A process that asks and does not read the answers, or
/// that tells what nobody listens to, costs nothing.
pub(super) struct Pipes {
    inner: AsyncRwTransport<RoleClient, ChildStdout, ChildStdin>,
    unanswered: Arc<AtomicUsize>,
}

impl Transport<RoleClient> for Pipes {
    type Error = io::Error;

    fn send(&mut self, message: ClientJsonRpcMessage) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let is_answer = matches!(message, JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_));
        let (unanswered, send) = (self.unanswered.clone(), self.inner.send(message));
        async move {
            let sent = send.await;
            if is_answer {
                unanswered.fetch_sub(1, Ordering::Relaxed);
            }
            sent
        }
    }

    async fn receive(&mut self) -> Option<ServerJsonRpcMessage> {
        loop {
            let message = self.inner.receive().await?;
            let wanted = match &message {
                JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => true,
                JsonRpcMessage::Notification(told) => {
                    matches!(told.notification, ServerNotification::ToolListChangedNotification(_))
                }
                JsonRpcMessage::Request(_) => {
                    let room = self.unanswered.load(Ordering::Relaxed) < MAX_QUESTIONS;
                    self.unanswered.fetch_add(usize::from(room), Ordering::Relaxed);
                    room
                }
            };
            if wanted {
                return Some(message);
            }
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        self.inner.close().await
    }
}

/// Starts a process; it is ended and waited for by a task of `tasks` once the guard is dropped. `ended` is called when
/// there is no process any more.
pub(super) fn start(
    commands: &Commands,
    name: &str,
    server: &str,
    secrets: &SecretHeaders,
    restarts: &mut Restarts,
    tasks: &TaskTracker,
    ended: impl FnOnce() + Send + 'static,
) -> Result<(Pipes, DropGuard), McpError> {
    let mut command = commands.command(name, secrets)?;
    let place = commands.inner.places.clone().try_acquire_owned();
    let place = place.map_err(|_| McpError::NotStarted(format!("{MAX_PROCESSES} processes run: there is no place")))?;
    restarts.begin(Instant::now()).map_err(McpError::TooSoon)?;
    let mut child = command.spawn().map_err(|error| McpError::NotStarted(format!("it does not start: {error}")))?;
    let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(McpError::NotStarted("it has no pipes".to_owned()));
    };
    info!(server, command = name, "the process of an MCP server runs");
    let stop = CancellationToken::new();
    let process = Process { child, stderr, server: server.to_owned(), secrets: secrets.clone(), _place: place };
    let guard = stop.clone().drop_guard();
    tasks.spawn(async move {
        process.watch(stop).await;
        ended();
    });
    let inner = AsyncRwTransport::new_client(stdout, stdin).with_max_line_length(MAX_BODY);
    Ok((Pipes { inner, unanswered: Arc::default() }, guard))
}

struct Process {
    child: Child,
    stderr: ChildStderr,
    server: String,
    secrets: SecretHeaders,
    _place: OwnedSemaphorePermit,
}

impl Process {
    /// Until it has ended, by itself or by `stop`, and was waited for.
    async fn watch(self, stop: CancellationToken) {
        let Self { mut child, stderr, server, secrets, _place } = self;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        // It, or what it started and left behind. An error says that nobody is left in the group.
        let kill = || group.map(|group| kill_process_group(group, Signal::KILL));
        let end = async {
            tokio::select! {
                status = child.wait() => {
                    let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                    info!(%server, status, "the process of an MCP server has ended");
                    kill();
                }
                () = stop.cancelled() => {
                    // Its input is closed with the session.
                    let gone = timeout(GRACE, child.wait()).await.is_ok();
                    kill();
                    if !gone && timeout(KILLED, child.wait()).await.is_err() {
                        warn!(%server, "the process of an MCP server was killed and has not ended");
                    }
                    debug!(%server, "the process of an MCP server was ended");
                }
            }
        };
        let listen = async {
            listen(stderr, &server, &secrets).await;
            std::future::pending().await
        };
        tokio::select! {
            () = end => {}
            () = listen => {}
        }
    }
}

/// Reads what a process says on its standard error, to its end.
async fn listen(mut stderr: ChildStderr, server: &str, secrets: &SecretHeaders) {
    let (mut line, mut buffer, mut logged, mut skips) = (Vec::new(), [0; 4096], 0, false);
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        for &byte in &buffer[..read] {
            if byte != b'\n' && !skips {
                line.push(byte);
            }
            // Cut lines end there: a secret's half would be no secret to look for.
            if (byte == b'\n' && !skips) || line.len() == MAX_LINE {
                if logged < LOGGED_LINES && !line.is_empty() {
                    logged += 1;
                    let said = secrets.masked(String::from_utf8_lossy(&line).into_owned());
                    let said: String = clip(&said, LOGGED_BYTES).chars().filter(|c| !c.is_control()).collect();
                    debug!(server, said, "an MCP server's process says");
                }
                skips = byte != b'\n';
                line.clear();
            } else if byte == b'\n' {
                skips = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_variables_that_hold_secrets_are_set() {
        for good in ["CRM_TOKEN", "API_KEY", "X1_SECRET", "DB_PASSWORD"] {
            assert!(is_secret_variable(good), "{good}");
        }
        for bad in ["PATH", "LD_PRELOAD", "NODE_OPTIONS", "PYTHONPATH", "BASH_ENV", "_KEY", "crm_token", "A=_KEY", ""] {
            assert!(!is_secret_variable(bad), "{bad}");
        }
    }

    #[test]
    fn commands_are_whole_paths_under_plain_names() {
        let faults = |name: &str, words: &[&str]| {
            let words = words.iter().map(|&word| word.to_owned()).collect();
            command_faults(&BTreeMap::from([(name.to_owned(), words)]))
        };
        assert_eq!(faults("crm", &["/usr/bin/python3", "/srv/crm.py"]), [""; 0]);
        for (name, words) in [
            ("crm", &[][..]),
            ("crm", &["python3"]),
            ("crm", &["./crm"]),
            ("crm", &["/bin/a\0b"]),
            ("my crm", &["/bin/crm"]),
            ("", &["/bin/crm"]),
        ] {
            assert_eq!(faults(name, words).len(), 1, "{name} {words:?}");
        }
    }

    #[test]
    fn a_process_that_keeps_dying_is_started_less_and_less_often() {
        let (mut restarts, began) = (Restarts::default(), Instant::now());
        let at = |ms: u64| began + Duration::from_millis(ms);
        assert_eq!(restarts.begin(at(0)), Ok(()));
        assert_eq!(restarts.begin(at(500)), Err(Duration::from_millis(1500)));
        assert_eq!(restarts.begin(at(2000)), Ok(()));
        assert_eq!(restarts.begin(at(5999)), Err(Duration::from_millis(1)));
        assert_eq!(restarts.begin(at(6000)), Ok(()));
        // Sixty seconds after its start it has lived well.
        assert_eq!(restarts.begin(at(66_000)), Ok(()));
        assert_eq!(restarts.begin(at(68_000)), Ok(()));
    }
}
