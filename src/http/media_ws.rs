//! `GET /media/twilio/{token}`: lets a media websocket in and brings it together with the call its token was made for.
//! Whoever has no good token and signature gets 403 before the upgrade, whatever the reason.

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use metrics::counter;
use tokio::time::Instant;
use tracing::{Instrument as _, debug, info_span, warn};

use crate::http::problem::Problem;
use crate::http::router::AppState;
use crate::http::tokens::PendingCall;
use crate::media::packet::Codec;
use crate::providers::twilio::signature;
use crate::transport::leg::Leg;
use crate::transport::twilio_ws::TwilioSocket;

/// A message of Twilio's is some 400 bytes. tungstenite's own default of 128 KiB would be most of a call's memory.
const READ_BUFFER_BYTES: usize = 8 * 1024;
/// Written at once, since every message is 20 ms of sound; what may pile up when a peer sends pings and reads nothing.
const WRITE_BUFFER_BYTES: usize = 64 * 1024;

pub(super) async fn twilio(
    State(state): State<AppState>,
    Path(token): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let now = Instant::now().into_std();
    let pending = match let_in(&state, &token, &uri, &headers, now) {
        Ok(pending) => pending,
        Err(fault) => return forbid(fault),
    };
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        // The token is not spent: this was no handshake.
        Err(rejection) => return Problem::new(rejection.into_response().status()).into_response(),
    };
    if state.tokens.take(&token, now).is_none() {
        return forbid("token");
    }
    count("stream_accepted");
    // Taken here, so that a shutdown waits for a socket that is still being upgraded.
    let tracked = state.sockets.token();
    upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_BUFFER_BYTES)
        .max_message_size(state.media.stream.max_message_bytes)
        .max_frame_size(state.media.stream.max_message_bytes)
        .on_upgrade(move |socket| async move {
            let span = info_span!("call", call_id = %pending.setup.id, leg = "caller");
            connect(state, pending, socket).instrument(span).await;
            drop(tracked);
        })
}

/// Looks the token up without spending it, and checks the signature with the Auth Token of its integration.
fn let_in(
    state: &AppState,
    token: &str,
    uri: &Uri,
    headers: &HeaderMap,
    now: std::time::Instant,
) -> Result<PendingCall, &'static str> {
    let pending = state.tokens.look_up(token, now).ok_or("token")?;
    let directory = state.directory.load();
    let integration = directory.integration(pending.integration).ok_or("integration")?;
    let auth_token = integration.credentials.secret("auth_token").ok_or("integration")?;
    let signature = headers.get(signature::HEADER).and_then(|value| value.to_str().ok()).ok_or("unsigned")?;
    let url = state.urls.websocket(uri.path_and_query().map_or("/", |path| path.as_str()));
    signature::verify_websocket(std::slice::from_ref(auth_token), &url, signature).map_err(|_| "forged")?;
    Ok(pending)
}

/// The client is told nothing of why.
fn forbid(fault: &'static str) -> Response {
    debug!(fault, "media websocket refused");
    count("stream_forbidden");
    Problem::new(StatusCode::FORBIDDEN).into_response()
}

fn count(result: &'static str) {
    counter!("offhook_webhook_total", "provider" => "twilio", "result" => result).increment(1);
}

/// Returns when the socket is closed and the leg is over.
async fn connect(state: AppState, pending: PendingCall, socket: WebSocket) {
    let (info, socket) = match TwilioSocket::open(socket, state.media.clone()).await {
        Ok(opened) => opened,
        Err(error) => {
            warn!(fault = error.label(), "media websocket without a stream");
            return;
        }
    };
    if info.call_sid != pending.setup.provider_call {
        warn!("media stream names another call than its token");
        socket.refuse(close_code::POLICY).await;
        return;
    }
    let (leg, side) = Leg::pair(Codec::Pcmu);
    if let Err(refused) = state.calls.start(pending.setup, leg) {
        warn!(reason = %refused, "call refused after its stream had started");
        socket.refuse(close_code::AGAIN).await;
        return;
    }
    socket.carry(side).await;
}
