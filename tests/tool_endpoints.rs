//! Companies' tools against servers that mean harm: whatever these answer, a call gets a reason in words within the
//! tool's time, memory stays bounded, nothing that is not public is connected to, and a good tool works alongside.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use offhook::agent::tools::fetch::{Authorities, Fetcher};
use offhook::agent::tools::http::{HttpTool, HttpToolDefinition, SecretHeaders};
use offhook::agent::tools::reach::{Names, Reach};
use offhook::agent::tools::{ToolBox, ToolContext, ToolRegistry, ToolResult};
use offhook::speech::llm::ToolCall;
use offhook::telephony::{CallId, PhoneNumber};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Of every tool here.
const LIMIT: Duration = Duration::from_millis(1500);
const SECRET: &str = "Bearer sesame-open-0123456789";

/// Gives its names addresses; the second look at `rebind.example` finds another one than the first.
struct TestNames {
    looks: AtomicUsize,
}

impl Names for TestNames {
    fn look_up(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let local = IpAddr::from(Ipv4Addr::LOCALHOST);
        // Nothing answers there, and it is public.
        let public: IpAddr = "1.2.3.4".parse().unwrap();
        let found = match host.as_str() {
            "hostile.example" | "other.example" | "good.example" => Ok(vec![local]),
            "loopback.example" => Ok(vec![local]),
            "mixed.example" => Ok(vec![local, public]),
            "rebind.example" if self.looks.fetch_add(1, Ordering::SeqCst) == 0 => Ok(vec![public]),
            "rebind.example" => Ok(vec![local]),
            "empty.example" => Ok(Vec::new()),
            _ => Err(io::Error::other("no such name")),
        };
        futures::future::ready(found).boxed()
    }
}

struct Place {
    port: u16,
    /// A server that nobody may reach, and how often it was connected to.
    canary: u16,
    touched: Arc<AtomicUsize>,
    /// Heads of requests that came.
    heads: Arc<Mutex<Vec<String>>>,
    fetcher: Fetcher,
}

impl Place {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let forbidden = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let canary = forbidden.local_addr().unwrap().port();
        let (touched, heads) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        tokio::spawn({
            let touched = touched.clone();
            async move {
                while forbidden.accept().await.is_ok() {
                    touched.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        tokio::spawn({
            let heads = heads.clone();
            async move {
                while let Ok((socket, _)) = listener.accept().await {
                    tokio::spawn(serve(socket, port, canary, heads.clone()));
                }
            }
        });
        let allowed = ["hostile.example", "other.example", "good.example"].map(str::to_owned);
        let reach = Reach::with_names(&allowed, TestNames { looks: AtomicUsize::new(0) });
        Self { port, canary, touched, heads, fetcher: Fetcher::new(reach).unwrap() }
    }

    fn at(&self, path: &str) -> String {
        format!("http://hostile.example:{}{path}", self.port)
    }

    fn tool(&self, url: &str, more: Value) -> ToolBox {
        let mut definition = json!({
            "name": "ask", "description": "Asks.", "method": "GET", "url": url,
            "allowed_hosts": [
                format!("127.0.0.1:{}", self.canary), "169.254.169.254", format!("other.example:{}", self.port),
            ],
            "limit_ms": LIMIT.as_millis() as u64,
        });
        definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let definition: HttpToolDefinition = serde_json::from_value(definition).unwrap();
        let secrets = SecretHeaders::new([("Authorization".to_owned(), SECRET.to_owned())]);
        let tool = HttpTool::new(definition, secrets, self.fetcher.clone()).unwrap();
        let mut registry = ToolRegistry::default();
        registry.add(Arc::new(tool));
        ToolBox::new(["ask"], &registry).unwrap()
    }

    async fn ask(&self, url: &str) -> ToolResult {
        run(&self.tool(url, json!({})), "{}", 0).await
    }

    fn heads(&self, path: &str) -> Vec<String> {
        let heads = self.heads.lock().unwrap();
        heads.iter().filter(|head| head.split(' ').nth(1).is_some_and(|to| to.starts_with(path))).cloned().collect()
    }
}

async fn run(tools: &ToolBox, arguments: &str, turn: u64) -> ToolResult {
    let call = ToolCall { id: "c1".into(), name: "ask".into(), arguments: arguments.into() };
    let cx =
        ToolContext::new(CallId::from(uuid::Uuid::nil()), PhoneNumber::new("+15550001111"), PhoneNumber::default());
    tools.run(&call, cx.in_turn(turn), LIMIT).await
}

/// One connection of the hostile server: what it does is in the path.
async fn serve(mut socket: TcpStream, port: u16, canary: u16, heads: Arc<Mutex<Vec<String>>>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < 64 * 1024 {
        if socket.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    heads.lock().unwrap().push(head.clone());
    let path = path.split('?').next().unwrap_or_default();
    let to = |location: &str| format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
    let json = |body: &str| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let of = |kind: &str, body: &str| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let status = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let answer = match path {
        "/good" => json(r#"{"rooms":[{"price":120}]}"#),
        "/to-loopback" => to(&format!("http://127.0.0.1:{canary}/")),
        "/to-metadata" => to("http://169.254.169.254/latest/meta-data/"),
        "/to-v6" => to(&format!("http://[::1]:{canary}/")),
        "/to-mapped" => to(&format!("http://[::ffff:127.0.0.1]:{canary}/")),
        "/to-name" => to(&format!("http://loopback.example:{canary}/")),
        "/to-stranger" => to("http://stranger.example/"),
        "/to-file" => to("file:///etc/passwd"),
        "/to-user" => to(&format!("http://user:pass@other.example:{port}/good")),
        "/to-nowhere" => "HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n".into(),
        "/to-other" => to(&format!("http://other.example:{port}/echo")),
        "/loop" => to("/loop"),
        "/cookie" => {
            let body = "{}";
            format!(
                "HTTP/1.1 200 OK\r\nSet-Cookie: id=1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{body}"
            )
        }
        "/echo" => of("text/plain", &head),
        "/echo-refused" => status("403 Forbidden", &head),
        "/html" => of("text/html; charset=utf-8", "<p>log in</p>"),
        "/png" => of("image/png", "PNG"),
        "/typeless" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".into(),
        "/no-json" => json("{rooms: 1"),
        "/deep" => json(&"[".repeat(200_000)),
        "/nul" => json("{\"a\":\"x\\u0000y\"}"),
        "/nul-text" => of("text/plain", "x\0\u{7}y"),
        "/cyrillic" => {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=windows-1251\r\nContent-Length: 3\r\n\r\n";
            socket.write_all(head.as_bytes()).await?;
            return socket.write_all(&[0xf2, 0xe0, 0xea]).await;
        }
        "/no-content" => "HTTP/1.1 204 No Content\r\n\r\n".into(),
        "/failed" => status("500 Internal Server Error", "it\u{7} broke"),
        "/refused" => status("401 Unauthorized", ""),
        "/teapot" => status("418 I'm a teapot", "short and stout"),
        "/short" => "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{}".into(),
        "/bad-chunks" => {
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n".into()
        }
        "/ssh" => "SSH-2.0-OpenSSH_9.2\r\n".into(),
        "/close" => return Ok(()),
        "/silent" => return hold(socket).await,
        "/gzip" => {
            // A bomb: 10 GB of zeros in 10 MB.
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 10000000\r\n\r\n\u{1f}".into()
        }
        "/brotli" => {
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: br\r\nContent-Length: 9\r\n\r\n"
                .into()
        }
        "/huge-header" => format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n", "a".repeat(2 << 20)),
        "/many-headers" => {
            let many: String = (0..5000).map(|n| format!("X-{n}: a\r\n")).collect();
            format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 0\r\n\r\n")
        }
        "/slow-head" => return drip(socket, "HTTP/1.1 200 OK\r\n", "X: a\r\n").await,
        "/slow-body" => {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\n";
            return drip(socket, head, "a").await;
        }
        "/continues" => return flood(socket, "", "HTTP/1.1 100 Continue\r\n\r\n").await,
        "/ten-gigabytes" => {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10000000000\r\n\r\n[";
            return flood(socket, head, "1,").await;
        }
        "/endless" => {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";
            let chunk = format!("400\r\n{}\r\n", "word".repeat(256));
            return flood(socket, head, &chunk).await;
        }
        "/endless-refusal" => {
            let head = "HTTP/1.1 400 Bad\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";
            return flood(socket, head, "4\r\nword\r\n").await;
        }
        _ => status("404 Not Found", "no"),
    };
    socket.write_all(answer.as_bytes()).await?;
    socket.shutdown().await
}

async fn hold(mut socket: TcpStream) -> io::Result<()> {
    let mut rest = [0; 64];
    while socket.read(&mut rest).await? > 0 {}
    Ok(())
}

/// A piece every 50 ms until the other side has had enough.
async fn drip(mut socket: TcpStream, head: &str, piece: &str) -> io::Result<()> {
    socket.write_all(head.as_bytes()).await?;
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    loop {
        tick.tick().await;
        socket.write_all(piece.as_bytes()).await?;
    }
}

/// As much as the other side takes.
async fn flood(mut socket: TcpStream, head: &str, piece: &str) -> io::Result<()> {
    socket.write_all(head.as_bytes()).await?;
    let pieces = piece.repeat(1 + 16 * 1024 / piece.len());
    loop {
        socket.write_all(pieces.as_bytes()).await?;
    }
}

/// Resident memory, MB.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096 / (1 << 20)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_hostile_endpoint_is_refused_or_cut_with_a_reason_while_a_good_tool_works() {
    let place = Place::open().await;
    let canary = place.canary;
    let before = resident();
    let path = |path: &str| place.at(path);
    let cases: Vec<(String, &str)> = vec![
        (path("/to-loopback"), "127.0.0.1, this machine"),
        (path("/to-metadata"), "link-local address, where clouds keep their metadata"),
        (path("/to-v6"), "not among the tool's allowed hosts"),
        (path("/to-mapped"), "not among the tool's allowed hosts"),
        (path("/to-name"), "not among the tool's allowed hosts"),
        (path("/to-stranger"), "stranger.example, which is not among the tool's allowed hosts"),
        (path("/to-file"), "neither http nor https"),
        (path("/to-user"), "a user or a password"),
        (path("/to-nowhere"), "redirects to nowhere"),
        (path("/loop"), "redirects more than 3 times"),
        (format!("http://127.0.0.1:{canary}/"), "this machine"),
        (format!("http://2130706433:{canary}/"), "this machine"),
        (format!("http://0x7f000001:{canary}/"), "this machine"),
        (format!("http://0177.0.0.1:{canary}/"), "this machine"),
        (format!("http://127.1:{canary}/"), "this machine"),
        (format!("http://0:{canary}/"), "an address of no host"),
        (format!("http://[::1]:{canary}/"), "this machine"),
        (format!("http://[::ffff:127.0.0.1]:{canary}/"), "this machine"),
        (format!("http://[::ffff:7f00:1]:{canary}/"), "this machine"),
        (format!("http://[64:ff9b::7f00:1]:{canary}/"), "this machine"),
        (format!("http://[2002:7f00:1::]:{canary}/"), "6to4"),
        (format!("http://loopback.example:{canary}/"), "loopback.example is at 127.0.0.1, this machine"),
        (format!("http://mixed.example:{canary}/"), ""),
        ("http://empty.example/".into(), "has no address"),
        ("http://unknown.example/".into(), "no such name"),
        ("http://169.254.169.254/latest/meta-data/".into(), "metadata"),
        ("http://10.1.2.3/".into(), "a private network"),
        ("http://100.64.0.1/".into(), "a carrier's private network"),
        ("http://224.0.0.1/".into(), "multicast"),
        (path("/ten-gigabytes"), "longer than 524288 bytes"),
        (path("/endless-refusal"), "the server refuses it (status 400): wordword"),
        (path("/gzip"), "packed (gzip)"),
        (path("/brotli"), "packed (br)"),
        (path("/slow-head"), "within 1500 ms"),
        (path("/slow-body"), "within 1500 ms"),
        (path("/silent"), "within 1500 ms"),
        (path("/continues"), ""),
        (path("/huge-header"), ""),
        (path("/many-headers"), ""),
        (path("/html"), "answers with text/html, which cannot be read"),
        (path("/png"), "answers with image/png"),
        (path("/typeless"), "an unknown type"),
        (path("/bad-chunks"), "it may or may not have worked"),
        (path("/short"), "it may or may not have worked"),
        (path("/ssh"), ""),
        (path("/close"), ""),
        (path("/no-json"), "says that it answers with JSON, and does not"),
        (path("/deep"), "says that it answers with JSON, and does not"),
        (path("/failed"), "the server failed; it may or may not have worked (status 500): it broke"),
        (path("/refused"), "refuses the tool's credentials (status 401)"),
        (path("/echo-refused"), "(status 403)"),
        (path("/teapot"), "the server refuses it (status 418): short and stout"),
        (path("/nothing"), "knows no such thing"),
    ];
    let hostile = join_all(cases.iter().map(async |(url, reason)| {
        let began = Instant::now();
        let result = place.ask(url).await;
        let took = began.elapsed();
        assert!(!result.ok, "{url}: {}", result.content);
        let told: Value = serde_json::from_str(&result.content).unwrap();
        let told = told["error"].as_str().unwrap();
        assert!(told.contains(reason) && told.len() > 10, "{url}: {told}");
        assert!(!told.contains("sesame"), "{url}: {told}");
        assert!(took < LIMIT + Duration::from_millis(1000), "{url} took {took:?}");
    }));
    let good = async {
        let tool = place.tool(&format!("http://good.example:{}/good", place.port), json!({ "result": "/rooms/0" }));
        let mut slowest = Duration::ZERO;
        for _ in 0..50 {
            let began = Instant::now();
            assert_eq!(run(&tool, "{}", 0).await.content, r#"{"price":120}"#);
            slowest = slowest.max(began.elapsed());
        }
        slowest
    };
    let (_, slowest) = tokio::join!(hostile, good);
    let grown = resident().saturating_sub(before);
    println!(
        "{} hostile endpoints; the good tool's slowest of 50: {slowest:?}; memory grew by {grown} MB",
        cases.len()
    );
    assert!(cases.len() >= 30);
    assert!(slowest < LIMIT, "the good tool waited {slowest:?}");
    assert!(grown < 100, "{grown} MB");
    assert_eq!(place.touched.load(Ordering::SeqCst), 0, "something that is not public was connected to");
}

#[tokio::test]
async fn a_name_that_changes_its_address_is_judged_by_the_one_that_is_connected_to() {
    let place = Place::open().await;
    let url = format!("http://rebind.example:{}/", place.canary);
    let first = run(&place.tool(&url, json!({ "limit_ms": 200 })), "{}", 0).await.content;
    assert!(first.contains("no connection") || first.contains("within 200 ms"), "public, and nobody there: {first}");
    let second = place.ask(&url).await.content;
    assert!(second.contains("rebind.example is at 127.0.0.1, this machine"), "{second}");
    assert_eq!(place.touched.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn strange_answers_that_can_be_read_are_read() {
    let place = Place::open().await;
    let content = async |path: &str| {
        let result = place.ask(&place.at(path)).await;
        assert!(result.ok, "{path}: {}", result.content);
        result.content
    };
    assert_eq!(content("/no-content").await, r#"{"ok":true,"status":204}"#);
    assert_eq!(content("/nul").await, r#"{"a":"x\u0000y"}"#);
    assert_eq!(content("/nul-text").await, r#"{"text":"xy"}"#);
    assert_eq!(content("/cyrillic").await, r#"{"text":"так"}"#);
    let endless = content("/endless").await;
    assert!(endless.starts_with(r#"{"cut":true,"text":"wordword"#) && endless.len() <= 16 * 1024, "{}", endless.len());
    assert!(endless.ends_with("bytes are shown]"));
}

#[tokio::test]
async fn secrets_stay_with_the_first_host_and_are_never_told() {
    let place = Place::open().await;
    let echoed = place.ask(&place.at("/echo")).await.content;
    assert!(echoed.contains("••••") && !echoed.contains("sesame"), "{echoed}");
    assert!(place.heads("/echo")[0].contains("sesame"), "it is sent all the same");
    let told = place.ask(&place.at("/to-other")).await.content;
    assert!(!told.contains("sesame"));
    let heads = place.heads("/echo");
    assert!(heads[1].contains("other.example") && !heads[1].contains("sesame"), "{}", heads[1]);
    let tool = HttpTool::new(
        serde_json::from_value(
            json!({ "name": "a", "description": "b", "method": "GET", "url": "https://a.example/" }),
        )
        .unwrap(),
        SecretHeaders::new([("X-Key".to_owned(), "sesame".to_owned())]),
        place.fetcher.clone(),
    );
    assert!(tool.is_ok());
    assert_eq!(format!("{:?}", SecretHeaders::new([("X-Key".to_owned(), "sesame".to_owned())])), r#"{"X-Key"}"#);
}

#[tokio::test]
async fn no_cookie_is_kept() {
    let place = Place::open().await;
    for _ in 0..2 {
        assert!(place.ask(&place.at("/cookie")).await.ok);
    }
    let heads = place.heads("/cookie");
    assert_eq!(heads.len(), 2);
    assert!(heads.iter().all(|head| !head.to_lowercase().contains("cookie:")), "{heads:?}");
}

#[tokio::test]
async fn arguments_stay_in_their_place_of_the_address_and_the_rest_becomes_query_or_body() {
    let place = Place::open().await;
    let parameters = json!({
        "type": "object",
        "properties": { "number": { "type": "string" }, "day": { "type": "string" }, "people": { "type": "integer" } },
        "required": ["number"],
    });
    let url = place.at("/echo/{number}/rooms?day={day}&from={call.caller}");
    let get = place.tool(&url, json!({ "parameters": parameters }));
    run(&get, r#"{"number": "a/../b?c#d", "people": 2}"#, 0).await;
    let line = |head: &str| head.lines().next().unwrap_or_default().to_owned();
    assert_eq!(
        line(&place.heads("/echo/")[0]),
        "GET /echo/a%2F..%2Fb%3Fc%23d/rooms?from=%2B15550001111&people=2 HTTP/1.1"
    );
    let dots = run(&get, r#"{"number": ".."}"#, 0).await.content;
    assert!(dots.contains("dots alone"), "{dots}");
    assert!(run(&get, r#"{"number": ""}"#, 0).await.content.contains("number is missing or empty"));
    assert!(run(&get, r#"{"people": 2}"#, 0).await.content.contains("required"));
    assert_eq!(place.heads("/echo/").len(), 1, "refused arguments reach nobody");

    let more = json!({
        "method": "POST", "parameters": parameters,
        "body": { "booking": { "for": "{people}", "note": "room {number} on {day}" } },
    });
    let post = place.tool(&place.at("/echo"), more);
    let echoed = run(&post, r#"{"number": "7", "people": 2}"#, 0).await.content;
    assert!(echoed.contains("idempotency-key"), "{echoed}");
}

#[tokio::test]
async fn a_side_effect_happens_once_for_one_wish() {
    let place = Place::open().await;
    let tools = place.tool(&place.at("/good"), json!({ "method": "POST", "parameters": { "type": "object" } }));
    let call = |arguments: &str| ToolCall { id: "c".into(), name: "ask".into(), arguments: arguments.into() };
    run(&tools, r#"{"a": 1, "b": 2}"#, 1).await;
    run(&tools, r#"{"b": 2, "a": 1}"#, 1).await;
    assert_eq!(place.heads("/good").len(), 1, "twice in one turn");
    run(&tools, r#"{"a": 1, "b": 2}"#, 2).await;
    assert_eq!(place.heads("/good").len(), 1, "its model has not heard of the result");
    tools.told(&[call(r#"{"a": 1, "b": 2}"#)]);
    run(&tools, r#"{"a": 1, "b": 2}"#, 2).await;
    assert_eq!(place.heads("/good").len(), 2, "another wish");
    // A reply that is broken off does not break off what it does.
    let work = run(&tools, r#"{"a": 3}"#, 3);
    drop(tokio::time::timeout(Duration::ZERO, work).await);
    tools.finish(LIMIT).await;
    let heads = place.heads("/good");
    assert_eq!(heads.len(), 3, "it goes on");
    let key = |head: &String| head.lines().find(|line| line.starts_with("idempotency-key")).unwrap().to_owned();
    let keys: std::collections::BTreeSet<String> = heads.iter().map(key).collect();
    assert_eq!(keys.len(), 3);
}

/// A server with TLS and a certificate of `tests/data/tls`; its port.
async fn secure(certificate: &str) -> u16 {
    let file = |name: &str| format!("{}/tests/data/tls/{name}.pem", env!("CARGO_MANIFEST_DIR"));
    let chain = CertificateDer::pem_file_iter(file(certificate)).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(file("key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not believe the certificate goes away.
                let Ok(mut socket) = acceptor.accept(socket).await else { return };
                let mut head = Vec::new();
                while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < 64 * 1024 {
                    if socket.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let body = r#"{"secure": true}"#;
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json";
                let answer = format!("{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
                let _ = socket.write_all(answer.as_bytes()).await;
                let _ = socket.shutdown().await;
            });
        }
    });
    port
}

#[tokio::test]
async fn a_certificate_is_believed_if_the_operator_trusts_its_authority_and_host_and_time_are_right() {
    let ca = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tls/ca.pem"));
    let ours = Authorities::read(Some(ca)).unwrap();
    for (certificate, host, authorities, reason) in [
        ("good", "good.example", &ours, None),
        ("good", "good.example", &Authorities::default(), Some("nobody who is trusted here signed it")),
        ("stranger", "good.example", &ours, Some("tools.ca_file")),
        ("good", "other.example", &ours, Some("it is for another host")),
        ("expired", "good.example", &ours, Some("it has expired")),
    ] {
        let port = secure(certificate).await;
        let allowed = ["good.example", "other.example"].map(str::to_owned);
        let reach = Reach::with_names(&allowed, TestNames { looks: AtomicUsize::new(0) });
        let mut place = Place::open().await;
        place.fetcher = Fetcher::trusting(reach, authorities).unwrap();
        let result = place.ask(&format!("https://{host}:{port}/")).await;
        match reason {
            None => assert!(result.ok && result.content.contains("secure"), "{}", result.content),
            Some(reason) => assert!(
                !result.ok && result.content.contains("certificate is not believed") && result.content.contains(reason),
                "{certificate} for {host}: {}",
                result.content
            ),
        }
        assert!(!result.content.contains("sesame"), "{}", result.content);
    }
}

#[test]
fn a_file_that_holds_no_authorities_is_told() {
    let read = |text: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, text).unwrap();
        Authorities::read(Some(&path)).map(|_| ()).unwrap_err().to_string()
    };
    assert!(read("").contains("there is no certificate in it"), "{}", read(""));
    assert!(read("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").contains("no authorities in PEM"));
    let missing = Authorities::read(Some(std::path::Path::new("/not/there.pem"))).map(|_| ()).unwrap_err().to_string();
    assert!(missing.contains("/not/there.pem"), "{missing}");
    assert!(Authorities::read(None).is_ok());
}

#[test]
fn a_definition_that_cannot_work_is_told_by_field_with_the_cure() {
    let faults = |more: Value| {
        let mut definition =
            json!({ "name": "ask", "description": "Asks.", "method": "GET", "url": "https://a.example/" });
        definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value::<HttpToolDefinition>(definition).unwrap().faults()
    };
    assert_eq!(faults(json!({})), []);
    for (more, field, problem) in [
        (json!({ "name": "find booking" }), "name", "letters, digits"),
        (json!({ "description": " " }), "description", "say what it does"),
        (json!({ "url": "ftp://a.example/" }), "url", "neither http nor https"),
        (json!({ "url": "https://user:pass@a.example/" }), "url", "a user or a password"),
        (json!({ "url": "https://{host}.example/" }), "url", "the host must be written out"),
        (json!({ "url": "https://a.example/{id}" }), "url", "{id} is no argument"),
        (json!({ "url": "a.example" }), "url", "must begin with http"),
        (
            json!({ "url": "https://a.example/{id}", "parameters": { "type": "object", "properties": { "id": {} } } }),
            "url",
            "name it in parameters.required",
        ),
        (json!({ "parameters": { "type": "string" } }), "parameters", "\"type\": \"object\""),
        (json!({ "parameters": { "type": "object", "properties": 5 } }), "parameters", "no JSON Schema"),
        (json!({ "body": {} }), "body", "leave it out"),
        (json!({ "method": "POST", "body": "{x}" }), "body", "{x} is no argument"),
        (json!({ "headers": { "Host": "b" } }), "headers.Host", "set by the program itself"),
        (json!({ "headers": { "a b": "b" } }), "headers.a b", "no name of a header"),
        (json!({ "headers": { "X": "a\r\nY: b" } }), "headers.X", "no value"),
        (json!({ "allowed_hosts": ["https://b.example"] }), "allowed_hosts[0]", "write a host"),
        (json!({ "limit_ms": 50 }), "limit_ms", "from 100"),
        (json!({ "max_result_bytes": 1_000_000 }), "max_result_bytes", "from 100"),
        (json!({ "result": "data" }), "result", "JSON pointer"),
        (json!({ "filler": { "en": "" } }), "filler.en", "a few words"),
    ] {
        let found = faults(more.clone());
        assert!(found.iter().any(|(named, told)| named == field && told.contains(problem)), "{more}: {found:?}");
    }
    let secrets = SecretHeaders::new([("X-Key".to_owned(), "sesame\n".to_owned())]).faults();
    assert!(secrets[0].0 == "secret_headers.X-Key" && !format!("{secrets:?}").contains("sesame"), "{secrets:?}");
    let _: BTreeMap<&str, &str> = SecretHeaders::default().expose();
}
