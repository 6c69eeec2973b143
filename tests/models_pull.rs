//! `offhook models pull` against a local server that behaves as servers do, and as they should not.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use futures::stream::{self, StreamExt};
use indicatif::ProgressBar;
use offhook::cli::models::catalogue::Model;
use offhook::cli::models::pull::{PullError, Pulled, Source, pull};
use offhook::cli::models::{check, list};
use sha1::Digest;

const FILE: &str = "ggml-test.bin";

/// What the server does with one request for the file. The last one of a script is repeated.
#[derive(Clone, Copy, Debug)]
enum Behaviour {
    /// Serves it, with ranges and conditions.
    Good,
    /// Serves it up to this byte and breaks the connection.
    CutAt(usize),
    /// Serves it up to this byte and then nothing.
    StallAt(usize),
    /// Serves all of it, whatever range was asked for.
    IgnoreRange,
    /// Serves other bytes.
    Other,
    Status(u16),
    Redirect,
}

struct Server {
    content: Vec<u8>,
    etag: &'static str,
    script: Mutex<Vec<Behaviour>>,
    /// The `Range` of every request for the file.
    ranges: Mutex<Vec<Option<String>>>,
    sums: Option<String>,
}

struct Place {
    dir: tempfile::TempDir,
    model: Model,
    server: Arc<Server>,
    address: SocketAddr,
}

fn content() -> Vec<u8> {
    let mut bytes = b"lmgg".to_vec();
    bytes.extend((0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8));
    bytes
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Place {
    async fn new(script: &[Behaviour]) -> Self {
        Self::with(script, |_, _| {}).await
    }

    async fn with(script: &[Behaviour], adjust: impl FnOnce(&mut Model, &mut Server)) -> Self {
        let content = content();
        let mut model = Model {
            name: "test".into(),
            file: FILE.into(),
            mib: 1,
            bytes: Some(content.len() as u64),
            sha1: Some(hex(sha1::Sha1::digest(&content))),
            sha256: None,
            shipped: false,
        };
        let mut server = Server {
            content,
            etag: "\"v1\"",
            script: Mutex::new(script.to_vec()),
            ranges: Mutex::default(),
            sums: None,
        };
        adjust(&mut model, &mut server);
        let server = Arc::new(server);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(serve).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { dir: tempfile::tempdir().unwrap(), model, server, address }
    }

    async fn pull(&self, attempts: u32) -> Result<Pulled, PullError> {
        let source = Source {
            dir: self.dir.path(),
            base_url: &format!("http://user:pa55word@{}/models/", self.address),
            stall: Duration::from_millis(500),
            attempts,
            pause: Duration::from_millis(1),
        };
        let pulled = pull(&self.model, &source, &ProgressBar::hidden()).await;
        if let Err(error) = &pulled {
            assert!(!error.to_string().contains("pa55word"), "{error}");
        }
        pulled
    }

    fn path(&self) -> PathBuf {
        self.model.path(self.dir.path())
    }

    fn part(&self) -> PathBuf {
        self.model.part(self.dir.path())
    }

    fn ranges(&self) -> Vec<Option<String>> {
        self.server.ranges.lock().unwrap().clone()
    }

    /// The file is whole, and nothing else is left.
    fn assert_whole(&self) {
        assert!(std::fs::read(self.path()).unwrap() == self.server.content, "the file differs");
        assert_eq!(self.files(), [FILE]);
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|f| f.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

async fn serve(State(server): State<Arc<Server>>, uri: Uri, headers: HeaderMap) -> Response {
    if uri.path().ends_with("SHA256SUMS") {
        return server.sums.clone().ok_or(StatusCode::NOT_FOUND).into_response();
    }
    if uri.path() == "/moved" {
        return good(&server, &headers, server.content.len());
    }
    assert_eq!(uri.path(), format!("/models/{FILE}"));
    let range = headers.get(header::RANGE).map(|value| value.to_str().unwrap().to_owned());
    server.ranges.lock().unwrap().push(range);
    let behaviour = {
        let mut script = server.script.lock().unwrap();
        if script.len() > 1 { script.remove(0) } else { script[0] }
    };
    match behaviour {
        Behaviour::Good => good(&server, &headers, server.content.len()),
        Behaviour::CutAt(end) => good(&server, &headers, end),
        Behaviour::StallAt(end) => {
            let (start, mut response) = head(&server, &headers);
            let sent = stream::iter([Ok::<_, std::io::Error>(Bytes::copy_from_slice(&server.content[start..end]))]);
            *response.body_mut() = Body::from_stream(sent.chain(stream::pending()));
            response
        }
        Behaviour::IgnoreRange => good(&server, &HeaderMap::new(), server.content.len()),
        Behaviour::Other => {
            let other: Vec<u8> = server.content.iter().map(|byte| !byte).collect();
            ([(header::ETAG, server.etag)], other).into_response()
        }
        Behaviour::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Behaviour::Redirect => Redirect::temporary("/moved").into_response(),
    }
}

/// Serves up to `end`; less than the whole breaks the connection there.
fn good(server: &Server, headers: &HeaderMap, end: usize) -> Response {
    let (start, mut response) = head(server, headers);
    let bytes = server.content.get(start..end).unwrap_or_default().to_vec();
    *response.body_mut() = if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        Body::empty()
    } else if end == server.content.len() {
        Body::from(bytes)
    } else {
        let pieces: Vec<_> = bytes.chunks(4096).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Body::from_stream(stream::iter(pieces).chain(stream::iter([Err(std::io::Error::other("cut"))])))
    };
    response
}

/// Where the answer starts, and its head.
fn head(server: &Server, headers: &HeaderMap) -> (usize, Response) {
    let total = server.content.len();
    let current = headers.get(header::IF_RANGE).is_none_or(|tag| tag == server.etag);
    let start = headers.get(header::RANGE).filter(|_| current).map(|range| {
        let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap();
        range.parse::<usize>().unwrap()
    });
    let builder = Response::builder().header(header::ETAG, server.etag);
    let builder = match start {
        Some(start) if start >= total => {
            builder.status(StatusCode::RANGE_NOT_SATISFIABLE).header(header::CONTENT_RANGE, format!("bytes */{total}"))
        }
        Some(start) => builder
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {start}-{}/{total}", total - 1))
            .header(header::CONTENT_LENGTH, total - start),
        None => builder.header(header::CONTENT_LENGTH, total),
    };
    (start.unwrap_or(0), builder.body(Body::empty()).unwrap())
}

#[tokio::test]
async fn a_model_is_pulled_verified_and_not_pulled_again() {
    let place = Place::new(&[Behaviour::Good]).await;
    assert_eq!(place.pull(1).await.unwrap(), Pulled::Verified);
    place.assert_whole();
    assert_eq!(place.pull(1).await.unwrap(), Pulled::Already);
    assert_eq!(place.ranges(), [None]);
}

#[tokio::test]
async fn a_download_that_is_cut_at_half_goes_on_from_there_in_the_same_run() {
    let half = content().len() / 2;
    let place = Place::new(&[Behaviour::CutAt(half), Behaviour::Good]).await;
    assert_eq!(place.pull(2).await.unwrap(), Pulled::Verified);
    place.assert_whole();
    let ranges = place.ranges();
    let resumed: usize = ranges[1].as_deref().unwrap()["bytes=".len()..].trim_end_matches('-').parse().unwrap();
    assert!(ranges[0].is_none() && resumed > half / 2 && resumed <= half, "{ranges:?}");
}

#[tokio::test]
async fn a_later_run_goes_on_with_what_an_earlier_one_left() {
    let place = Place::new(&[Behaviour::CutAt(100_000), Behaviour::Good]).await;
    let error = place.pull(1).await.unwrap_err();
    assert!(matches!(error, PullError::Interrupted { .. }), "{error}");
    assert!(error.to_string().contains("the next run goes on from"), "{error}");
    assert!(!place.path().exists(), "a file under its real name is always whole");
    let kept = place.part().metadata().unwrap().len();
    assert_eq!(place.pull(1).await.unwrap(), Pulled::Verified);
    assert_eq!(place.ranges()[1], Some(format!("bytes={kept}-")));
    place.assert_whole();
}

#[tokio::test]
async fn a_file_that_changed_on_the_server_is_not_joined_to_the_old_part() {
    let place = Place::with(&[Behaviour::Good], |_, server| server.etag = "\"v2\"").await;
    std::fs::write(place.part(), vec![0; 1000]).unwrap();
    std::fs::write(place.model.validator(place.dir.path()), "\"v1\"").unwrap();
    assert_eq!(place.pull(1).await.unwrap(), Pulled::Verified);
    assert_eq!(place.ranges(), [Some("bytes=1000-".into())]);
    place.assert_whole();
}

#[tokio::test]
async fn a_server_without_ranges_starts_again() {
    let place = Place::new(&[Behaviour::CutAt(100_000), Behaviour::IgnoreRange]).await;
    assert_eq!(place.pull(2).await.unwrap(), Pulled::Verified);
    place.assert_whole();
}

#[tokio::test]
async fn a_part_that_is_complete_is_verified_without_a_download() {
    let place = Place::with(&[Behaviour::Good], |model, _| model.bytes = None).await;
    std::fs::write(place.part(), &place.server.content).unwrap();
    assert_eq!(place.pull(1).await.unwrap(), Pulled::Verified);
    place.assert_whole();
}

#[tokio::test]
async fn a_wrong_checksum_removes_what_came() {
    let place = Place::new(&[Behaviour::Other]).await;
    let error = place.pull(3).await.unwrap_err();
    assert!(matches!(error, PullError::Damaged { .. }), "{error}");
    assert_eq!(place.files(), [""; 0]);
    assert_eq!(place.ranges().len(), 1, "the same bytes would come again");
}

#[tokio::test]
async fn another_file_is_refused_by_its_size_before_it_is_loaded() {
    let place = Place::with(&[Behaviour::Good], |model, _| model.bytes = Some(5)).await;
    let error = place.pull(3).await.unwrap_err();
    assert!(matches!(error, PullError::WrongSize { expected: 5, .. }), "{error}");
    assert_eq!(place.files(), [""; 0]);
}

#[tokio::test]
async fn what_is_not_there_is_said_at_once_and_leaves_nothing() {
    for (status, expected) in [(404, "offhook models list"), (403, "refused")] {
        let place = Place::new(&[Behaviour::Status(status)]).await;
        let error = place.pull(3).await.unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("models.base_url"), "{error}");
        assert_eq!(place.ranges().len(), 1);
        assert_eq!(place.files(), [""; 0]);
    }
}

#[tokio::test]
async fn a_server_that_is_busy_is_asked_again_but_not_for_ever() {
    let place = Place::new(&[Behaviour::Status(503), Behaviour::Status(429), Behaviour::Good]).await;
    assert_eq!(place.pull(3).await.unwrap(), Pulled::Verified);
    let place = Place::new(&[Behaviour::Status(503)]).await;
    let error = place.pull(3).await.unwrap_err();
    assert!(matches!(error, PullError::Status { status: 503, .. }), "{error}");
    assert_eq!(place.ranges().len(), 3);
}

#[tokio::test]
async fn a_download_that_stalls_is_broken_off_and_resumed() {
    let place = Place::new(&[Behaviour::StallAt(50_000), Behaviour::Good]).await;
    assert_eq!(place.pull(2).await.unwrap(), Pulled::Verified);
    assert_eq!(place.ranges()[1].as_deref(), Some("bytes=50000-"));
    place.assert_whole();

    let place = Place::new(&[Behaviour::StallAt(50_000)]).await;
    let error = place.pull(1).await.unwrap_err();
    assert!(matches!(error, PullError::Stalled { kept: 50_000, .. }), "{error}");
}

#[tokio::test]
async fn a_redirect_is_followed_when_resuming_too() {
    let place = Place::new(&[Behaviour::CutAt(100_000), Behaviour::Redirect]).await;
    assert_eq!(place.pull(2).await.unwrap(), Pulled::Verified);
    place.assert_whole();
}

#[tokio::test]
async fn an_unknown_checksum_is_looked_up_beside_the_file_or_said_to_be_unknown() {
    let strip = |model: &mut Model| (model.sha1, model.bytes) = (None, None);
    let sum = hex(sha2::Sha256::digest(content()));
    let list = format!("{}  other.bin\n{sum} *{FILE}\n", "0".repeat(64));
    let place = Place::with(&[Behaviour::Good], |model, server| {
        strip(model);
        server.sums = Some(list);
    })
    .await;
    assert_eq!(place.pull(1).await.unwrap(), Pulled::Verified);

    let place = Place::with(&[Behaviour::Good], |model, server| {
        strip(model);
        server.sums = Some(format!("{}  {FILE}\n", "0".repeat(64)));
    })
    .await;
    assert!(matches!(place.pull(1).await.unwrap_err(), PullError::Damaged { .. }));

    let place = Place::with(&[Behaviour::Good], |model, _| strip(model)).await;
    assert_eq!(place.pull(1).await.unwrap(), Pulled::Unverified { sha256: sum });
    assert_eq!(place.files(), [FILE.to_owned(), format!("{FILE}.sha256")]);

    let place = Place::with(&[Behaviour::Other], |model, _| strip(model)).await;
    let error = place.pull(1).await.unwrap_err().to_string();
    assert!(error.contains("not a ggml model"), "{error}");
}

#[tokio::test]
async fn a_full_disk_says_what_to_free() {
    let place = Place::new(&[Behaviour::Good]).await;
    // Every write to this device fails as a write to a full disk does.
    std::os::unix::fs::symlink("/dev/full", place.part()).unwrap();
    let error = place.pull(1).await.unwrap_err();
    assert!(matches!(error, PullError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("free 1 MiB"), "{error}");
}

#[tokio::test]
async fn two_pulls_of_one_model_do_not_mix_their_bytes() {
    let place = Place::new(&[Behaviour::Good]).await;
    let other = std::fs::File::create(place.part()).unwrap();
    other.try_lock().unwrap();
    let error = place.pull(1).await.unwrap_err();
    assert!(matches!(error, PullError::Busy(_)), "{error}");
}

#[tokio::test]
async fn list_and_check_tell_what_is_on_disk() {
    let place = Place::new(&[Behaviour::Good]).await;
    let shown = |dir: &Path| {
        let mut out = Vec::new();
        list(std::slice::from_ref(&place.model), dir, &mut out).unwrap();
        let (lines, good) = check(std::slice::from_ref(&place.model), dir).unwrap();
        (String::from_utf8(out).unwrap() + &lines, good)
    };
    let (text, good) = shown(place.dir.path());
    assert!(good && text.contains("no model in"), "{text}");

    std::fs::write(place.part(), [0; 2048]).unwrap();
    let (text, good) = shown(place.dir.path());
    assert!(good && text.contains("unfinished: 2.00 KiB") && text.contains("models pull test"), "{text}");
    std::fs::remove_file(place.part()).unwrap();

    place.pull(1).await.unwrap();
    let (text, good) = shown(place.dir.path());
    assert!(good && text.contains("ok      test: "), "{text}");

    let mut damaged = place.server.content.clone();
    damaged[1000] ^= 1;
    std::fs::write(place.path(), damaged).unwrap();
    let (text, good) = shown(place.dir.path());
    assert!(!good && text.contains("FAILED  test: ") && text.contains("is damaged"), "{text}");
    assert_eq!(place.pull(1).await.unwrap(), Pulled::Verified, "a damaged file is replaced");
    place.assert_whole();
}
