//! A recording: a file of ours or what its provider sends, whole or a range of it.

use std::io::SeekFrom;
use std::path::{Component, Path, PathBuf};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tracing::warn;

use super::problem::{ApiError, Kind};
use crate::providers::recording::Sound;

/// Bytes that are read at once.
const CHUNK: u64 = 64 * 1024;

/// Bytes from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u64,
    last: u64,
}

/// Sound that its provider sends, passed on.
pub(super) fn passed_on(sound: Sound) -> Response {
    let mut response = Body::from_stream(sound.body).into_response();
    if sound.partial {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let headers = response.headers_mut();
    // What the provider wrote there is passed on only where it can stand in a header.
    let mut put = |name, value: Option<String>| {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
            headers.insert(name, value);
        }
    };
    put(header::CONTENT_TYPE, Some(sound.content_type));
    put(header::CONTENT_RANGE, sound.range);
    put(header::CONTENT_LENGTH, sound.length.map(|length| length.to_string()));
    response
}

/// A file of ours.
pub(super) async fn answer(dir: &Path, location: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
    let missing = || ApiError::because(Kind::NotFound, "the recording's file is not there any more");
    let path = inside(dir, location).ok_or_else(missing)?;
    let mut file = File::open(&path).await.map_err(|_| missing())?;
    let length = file.metadata().await.map_err(|_| missing())?.len();
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let range = match asked.map_or(Asked::All, |text| parse(text, length)) {
        Asked::All => None,
        Asked::Part(range) => Some(range),
        Asked::Outside => {
            let mut response = ApiError::new(Kind::Range).into_response();
            let whole = HeaderValue::from_str(&format!("bytes */{length}")).expect("digits");
            response.headers_mut().insert(header::CONTENT_RANGE, whole);
            return Ok(response);
        }
    };
    let (first, bytes) = range.map_or((0, length), |range| (range.first, range.last - range.first + 1));
    file.seek(SeekFrom::Start(first)).await.map_err(|_| missing())?;
    let mut response = Body::from_stream(read(file, bytes)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("audio/wav"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_LENGTH, bytes.into());
    if let Some(Range { first, last }) = range {
        let part = HeaderValue::from_str(&format!("bytes {first}-{last}/{length}")).expect("digits");
        headers.insert(header::CONTENT_RANGE, part);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// The file below `dir`; `None`: the location would lead out of it.
fn inside(dir: &Path, location: &str) -> Option<PathBuf> {
    let path = Path::new(location);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !location.is_empty()).then(|| dir.join(path))
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    All,
    Part(Range),
    Outside,
}

/// RFC 9110 §14: what is no single range of bytes may be ignored.
fn parse(text: &str, length: u64) -> Asked {
    let Some(range) = text.trim().strip_prefix("bytes=") else { return Asked::All };
    let Some((first, last)) = range.split_once('-') else { return Asked::All };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    match (first.trim(), last.trim()) {
        ("", suffix) => match number(suffix) {
            Some(0) => Asked::Outside,
            Some(_) if length == 0 => Asked::Outside,
            Some(bytes) => Asked::Part(Range { first: length.saturating_sub(bytes), last: length - 1 }),
            None => Asked::All,
        },
        (first, last) => match (number(first), last, number(last)) {
            (Some(first), _, _) if first >= length => Asked::Outside,
            (Some(first), "", _) => Asked::Part(Range { first, last: length - 1 }),
            (Some(first), _, Some(last)) if last >= first => Asked::Part(Range { first, last: last.min(length - 1) }),
            _ => Asked::All,
        },
    }
}

/// A chunk at a time, as fast as the client takes them.
fn read(file: File, bytes: u64) -> impl stream::Stream<Item = std::io::Result<Bytes>> {
    stream::try_unfold((file, bytes), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut chunk = vec![0; usize::try_from(left.min(CHUNK)).unwrap_or(0)];
        let got = file.read(&mut chunk).await?;
        if got == 0 {
            warn!("a recording became shorter while it was read");
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        chunk.truncate(got);
        Ok(Some((Bytes::from(chunk), (file, left - got as u64))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_of_bytes_is_understood_and_anything_else_is_the_whole() {
        let part = |first, last| Asked::Part(Range { first, last });
        for (text, expected) in [
            ("bytes=0-99", part(0, 99)),
            ("bytes=900-", part(900, 999)),
            ("bytes=900-5000", part(900, 999)),
            ("bytes=-100", part(900, 999)),
            ("bytes=-5000", part(0, 999)),
            ("bytes=1000-", Asked::Outside),
            ("bytes=-0", Asked::Outside),
            ("bytes=5-4", Asked::All),
            ("bytes=0-1,5-6", Asked::All),
            ("bytes=x-y", Asked::All),
            ("seconds=0-1", Asked::All),
        ] {
            assert_eq!(parse(text, 1000), expected, "{text}");
        }
        assert_eq!(parse("bytes=0-", 0), Asked::Outside);
    }

    #[test]
    fn no_location_leads_out_of_the_folder() {
        let dir = Path::new("/recordings");
        assert_eq!(inside(dir, "a/call.wav"), Some("/recordings/a/call.wav".into()));
        for location in ["", "/etc/passwd", "../x", "a/../../x", "./x"] {
            assert_eq!(inside(dir, location), None, "{location}");
        }
    }
}
