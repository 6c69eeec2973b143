//! What others hold of a running call: its id, its state, and a way to ask something of it.

use serde::Serialize;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::telephony::{CallEnd, CallId, Party};

/// What a call can be asked to do. A hang-up goes by token instead, so that no queue can lose it.
#[derive(Clone, Debug)]
pub enum CallCommand {
    /// Say goodbye when the present turn is over, and hang up.
    WindDown,
}

/// Commands are rare; an operator who sends more than this at once gets an error.
pub const COMMAND_QUEUE: usize = 8;

/// Where a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CallStatus {
    Talking,
    Ended(CallEnd),
}

/// For onlookers (the console, the demo): what happens on calls as it happens. One who lags loses events, and is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum CallEvent {
    Started {
        call: CallId,
    },
    /// A turn of the caller, confirmed; or a clause of the agent as it begins to play.
    Said {
        call: CallId,
        who: Party,
        text: String,
    },
    /// The caller cut the agent short.
    Interrupted {
        call: CallId,
    },
    /// The agent paused for the caller's sound and went on.
    Resumed {
        call: CallId,
    },
    ToolUsed {
        call: CallId,
        name: String,
    },
    Ended {
        call: CallId,
        end: CallEnd,
    },
}

/// Events of all calls for about ten seconds of a busy server.
pub const EVENT_QUEUE: usize = 4096;

pub type CallEvents = broadcast::Sender<CallEvent>;

#[derive(Clone, Debug)]
pub struct CallHandle {
    pub id: CallId,
    pub(crate) commands: mpsc::Sender<CallCommand>,
    pub(crate) status: watch::Receiver<CallStatus>,
    pub(crate) hangup: CancellationToken,
}

impl CallHandle {
    pub fn status(&self) -> CallStatus {
        *self.status.borrow()
    }

    /// Ends the call at once, as an operator.
    pub fn hang_up(&self) {
        self.hangup.cancel();
    }

    /// `false` when the call is gone or has too many commands to do.
    pub fn command(&self, command: CallCommand) -> bool {
        self.commands.try_send(command).is_ok()
    }

    /// Waits for the end of the call.
    pub async fn ended(&mut self) -> Option<CallEnd> {
        let status = self.status.wait_for(|status| matches!(status, CallStatus::Ended(_))).await.ok()?;
        match *status {
            CallStatus::Ended(end) => Some(end),
            CallStatus::Talking => None,
        }
    }
}
