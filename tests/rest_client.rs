//! The REST client that providers share, against servers that do not behave: what it tries again, when it gives up,
//! and that it says why without the address.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use offhook::providers::rest::{Limits, ProviderError, Repeat, Rest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Answers each connection's one request with the next of `answers`, the last one for ever. `None`: says nothing.
async fn server(answers: Vec<Option<String>>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = vec![0; 4_096];
            let _ = socket.read(&mut request).await;
            let index = counted.fetch_add(1, Ordering::SeqCst);
            match &answers[index.min(answers.len() - 1)] {
                Some(answer) => drop(socket.write_all(answer.as_bytes()).await),
                None => open.push(socket),
            }
        }
    });
    (base, count)
}

fn answer(status: &str, headers: &str, body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()))
}

fn rest(base: &str) -> Rest {
    let limits = Limits {
        request: Duration::from_millis(300),
        body: 1_000,
        first_wait: Duration::from_millis(20),
        longest_wait: Duration::from_millis(1_500),
        ..Limits::default()
    };
    Rest::with_limits(base, Duration::ZERO, limits).unwrap()
}

#[tokio::test]
async fn a_read_goes_on_after_failures_and_stops_after_three() {
    let (base, count) =
        server(vec![answer("500 Broken", "", ""), Some(String::new()), answer("200 OK", "", "{}")]).await;
    let client = rest(&base);
    let reply = client.send(client.get("/x"), Repeat::Safe).await.unwrap();
    assert_eq!((reply.status.as_u16(), count.load(Ordering::SeqCst)), (200, 3));

    let (base, count) = server(vec![answer("503 Busy", "", "later")]).await;
    let client = rest(&base);
    let reply = client.send(client.get("/x"), Repeat::Safe).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.detail().as_str(), count.load(Ordering::SeqCst)), (503, "later", 3));
}

#[tokio::test]
async fn what_must_not_be_repeated_is_sent_once() {
    for bad in [answer("500 Broken", "", ""), answer("429 Slow", "retry-after: 0\r\n", ""), Some(String::new()), None] {
        let (base, count) = server(vec![bad.clone()]).await;
        let client = rest(&base);
        let _ = client.send(client.post("/x"), Repeat::Never).await;
        assert_eq!(count.load(Ordering::SeqCst), 1, "{bad:?}");
    }
}

#[tokio::test]
async fn a_refusal_is_not_tried_again() {
    for status in ["400 Bad", "401 Who", "403 No", "404 Gone", "302 Elsewhere"] {
        let (base, count) = server(vec![answer(status, "location: http://127.0.0.1:1/\r\n", "")]).await;
        let client = rest(&base);
        let reply = client.send(client.get("/x"), Repeat::Safe).await.unwrap();
        assert_eq!((reply.status.as_str(), count.load(Ordering::SeqCst)), (&status[..3], 1));
    }
}

#[tokio::test]
async fn a_limit_is_waited_out_if_it_is_short() {
    let limited = |seconds: &str| answer("429 Slow", &format!("retry-after: {seconds}\r\n"), "");
    let (base, count) = server(vec![limited("1"), answer("200 OK", "", "{}")]).await;
    let client = rest(&base);
    let began = Instant::now();
    assert!(client.send(client.get("/x"), Repeat::Safe).await.is_ok());
    assert!(began.elapsed() >= Duration::from_secs(1) && count.load(Ordering::SeqCst) == 2);

    for (seconds, expected) in [("2", Some(2)), ("99999999999999999999", None), ("soon", None)] {
        let (base, _) = server(vec![limited(seconds)]).await;
        let client = rest(&base);
        let error = client.send(client.get("/x"), Repeat::Safe).await.unwrap_err();
        assert_eq!(error, ProviderError::RateLimited { retry_s: expected }, "{seconds}");
    }
}

#[tokio::test]
async fn silence_and_floods_end_in_time() {
    let (base, _) = server(vec![None]).await;
    let client = rest(&base);
    let began = Instant::now();
    let error = client.send(client.post("/secret-path"), Repeat::Never).await.unwrap_err();
    assert!(matches!(&error, ProviderError::Unreachable { maybe_done: true, .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(2));

    let (base, _) = server(vec![answer("200 OK", "", &"x".repeat(1_001))]).await;
    let client = rest(&base);
    let error = client.send(client.get("/x"), Repeat::Safe).await.unwrap_err();
    assert!(matches!(error, ProviderError::Nonsense { .. }));
}

#[tokio::test]
async fn an_error_names_the_host_and_not_the_path() {
    for bad in [Some(String::new()), Some("no http\r\n\r\n".into()), None] {
        let (base, _) = server(vec![bad]).await;
        let client = rest(&base);
        let request = client.get("/calls/+380501234567?token=secret").basic_auth("user", Some("password"));
        let error = client.send(request, Repeat::Safe).await.unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("127.0.0.1"), "{shown}");
        for secret in ["380501234567", "secret", "password", "Basic"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }
}

#[tokio::test]
async fn nobody_there_is_known_not_to_be_done() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = rest(&base);
    let error = client.send(client.post("/x"), Repeat::Never).await.unwrap_err();
    assert!(matches!(error, ProviderError::Unreachable { maybe_done: false, .. }), "{error:?}");
}
