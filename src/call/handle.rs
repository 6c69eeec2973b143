//! What others hold of a running call.

use crate::telephony::CallId;

#[derive(Clone, Debug)]
pub struct CallHandle {
    pub id: CallId,
}
