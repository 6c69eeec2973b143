//! `kill -9` at random moments under load: whoever was told to connect a call has its record, once, and after the next
//! start every record is closed. The real program, real sockets; `OFFHOOK_TEST_KILLS` says how often (default 6).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use offhook::protocol::twilio::message::{FromTwilio, Media, MediaFormat, Start};
use offhook::providers::twilio::signature;
use offhook::store::calls::{CallFilter, CallRecord};
use offhook::store::nodes::CRASHED;
use offhook::store::{Part, Store};
use offhook::telephony::CallId;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use secrecy::{ExposeSecret, SecretString};
use stores::Base;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Message;
use uuid::Uuid;

#[path = "common/stores.rs"]
mod stores;

on_every_store! {
    no_record_is_lost_or_doubled_and_every_one_is_closed
    a_call_is_answered_and_talks_while_the_store_stands_still
}

const ACCOUNT: &str = "AC00000000000000000000000000000001";
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const NUMBER: &str = "+15550001111";
const PATIENCE: Duration = Duration::from_secs(30);
/// Phones that call again and again.
const PHONES: usize = 6;

const SETUP: &str = r#"
    [[company]]
    name = "Acme"

    [[integration]]
    company = "Acme"
    name = "Main"
    provider = "twilio"
    account_sid = "AC00000000000000000000000000000001"
    auth_token = "0123456789abcdef0123456789abcdef"

    [[line]]
    integration = "Main"
    number = "+15550001111"
    agent = "Front desk"

    [[agent]]
    company = "Acme"
    name = "Front desk"
    greeting = "Hello."
    stt = { engine = "scripted" }
    tts = { engine = "scripted" }
    llm = { engine = "scripted" }
"#;

/// The program with its configuration, and its files in a folder of the test.
struct Program {
    base: Base,
    config: PathBuf,
}

impl Program {
    fn new(base: Base) -> Self {
        let config = base.dir.path().join("offhook.toml");
        let text = format!(
            r#"
            [server]
            listen = "127.0.0.1:0"
            [store]
            url = "{}"
            [speech.stt]
            engine = "scripted"
            [speech.tts]
            engine = "scripted"
            [speech.scripted]
            stt_ms = 20
            first_token_ms = 20
            tts_ms = 5
            char_ms = 10
            [llm]
            engine = "scripted"
            [security]
            webhooks_per_minute = 0
            [recording]
            dir = "{}"
            [telemetry]
            log = "offhook=info"
            log_format = "json"
            "#,
            base.config.url,
            base.dir.path().join("recordings").display(),
        );
        std::fs::write(&config, text).expect("written");
        std::fs::write(base.dir.path().join("setup.toml"), SETUP).expect("written");
        Self { base, config }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offhook"));
        command.arg("--config").arg(&self.config).env_remove("OFFHOOK_LOG");
        if let Some(key) = &self.base.key {
            command.env("OFFHOOK_SECURITY__SECRETS_KEY", key.expose_secret());
        }
        command
    }

    fn apply(&self) {
        let done = self
            .command()
            .args(["apply", "--no-verify"])
            .arg(self.base.dir.path().join("setup.toml"))
            .output()
            .expect("runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Starts the server and waits until it is ready; gives its address.
    async fn serve(&self) -> (Server, String) {
        let mut child = self.command().arg("serve").stderr(Stdio::piped()).spawn().expect("starts");
        let log = BufReader::new(child.stderr.take().expect("piped"));
        let (tell, told) = tokio::sync::oneshot::channel();
        let reader = std::thread::spawn(move || {
            let (mut tell, mut lines) = (Some(tell), Vec::new());
            for line in log.lines().map_while(Result::ok) {
                let address = serde_json::from_str::<serde_json::Value>(&line)
                    .ok()
                    .and_then(|event| Some(event["address"].as_str()?.to_owned()));
                if let (Some(address), Some(tell)) = (address, tell.take_if(|_| line.contains("\"ready\""))) {
                    let _ = tell.send(address);
                }
                lines.push(line);
            }
            lines
        });
        let server = Server { child, reader: Some(reader) };
        match timeout(PATIENCE, told).await {
            Ok(Ok(address)) => (server, format!("http://{address}")),
            _ => panic!("the server is not ready:\n{}", server.kill().join("\n")),
        }
    }
}

struct Server {
    child: Child,
    reader: Option<std::thread::JoinHandle<Vec<String>>>,
}

impl Server {
    /// SIGKILL; the process is gone when this returns. Gives what it logged.
    fn kill(mut self) -> Vec<String> {
        self.end()
    }

    fn end(&mut self) -> Vec<String> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.reader.take().and_then(|reader| reader.join().ok()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// What callers were told.
#[derive(Default)]
struct Told {
    /// The provider's ids of calls that we were told to connect.
    promised: HashSet<String>,
    /// Those whose agent was heard.
    heard: HashSet<String>,
    /// When the server had answered.
    answered: HashMap<String, Instant>,
}

/// Calls until the server is gone.
async fn phone(server: String, integration: Uuid, told: Arc<Mutex<Told>>, seed: u64) {
    let mut chance = StdRng::seed_from_u64(seed);
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
    loop {
        let sid = format!("CA{}", Uuid::now_v7().simple());
        let stay = Stay::For(Duration::from_millis(chance.random_range(50..1200)));
        if call(&http, &server, integration, &sid, stay, &told).await.is_none() {
            return;
        }
    }
}

/// How long a caller stays.
#[derive(Clone, Copy, PartialEq)]
enum Stay {
    For(Duration),
    UntilHeard,
}

/// One call; `None`: the server is gone.
async fn call(
    http: &reqwest::Client,
    server: &str,
    integration: Uuid,
    sid: &str,
    stay: Stay,
    told: &Mutex<Told>,
) -> Option<()> {
    let url = format!("{server}/webhooks/twilio/{integration}/voice");
    let fields = [
        ("AccountSid", ACCOUNT),
        ("CallSid", sid),
        ("From", "+15550002222"),
        ("To", NUMBER),
        ("CallStatus", "ringing"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let signature = signature::sign(&SecretString::from(TOKEN), &url, &fields);
    let answer = http.post(&url).header("X-Twilio-Signature", signature).form(&fields).send().await.ok()?;
    assert_eq!(answer.status(), 200);
    let twiml = answer.text().await.ok()?;
    let (_, rest) = twiml.split_once("url=\"").expect("a stream in the TwiML");
    let (stream, _) = rest.split_once('"').expect("a whole address");
    {
        let mut told = told.lock().expect("no panic");
        told.promised.insert(sid.to_owned());
        told.answered.insert(sid.to_owned(), Instant::now());
    }

    let mut request = stream.into_client_request().expect("a websocket URL");
    let signature = signature::sign(&SecretString::from(TOKEN), stream, &[]);
    request.headers_mut().insert("X-Twilio-Signature", signature.parse().expect("a header"));
    let (mut socket, _) = timeout(PATIENCE, tokio_tungstenite::connect_async(request)).await.ok()?.ok()?;
    let text = |message: FromTwilio<'_>| {
        let mut text = String::new();
        message.write(&mut text);
        Message::text(text)
    };
    let start = Start {
        stream_sid: "MZ1".into(),
        account_sid: ACCOUNT.into(),
        call_sid: sid.into(),
        tracks: vec!["inbound".into()],
        parameters: Default::default(),
        format: Some(MediaFormat::MULAW),
    };
    socket.send(text(FromTwilio::Connected { protocol: "Call".into(), version: "1.0.0".into() })).await.ok()?;
    socket.send(text(FromTwilio::Start { sequence: Some(1), start })).await.ok()?;
    let over = Instant::now()
        + match stay {
            Stay::For(span) => span,
            Stay::UntilHeard => PATIENCE,
        };
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let mut sent = 0;
    while Instant::now() < over {
        tokio::select! {
            _ = tick.tick() => {
                // 20 ms of µ-law silence: 160 bytes of 0xff, in base64.
                let payload = format!("{}/w==", "/".repeat(212));
                let media = Media {
                    track: "inbound".into(),
                    chunk: Some(sent + 1),
                    timestamp_ms: Some(sent * 20),
                    payload: payload.into(),
                };
                sent += 1;
                socket.send(text(FromTwilio::Media { sequence: Some(sent + 1), stream_sid: "MZ1".into(), media })).await.ok()?;
            }
            message = socket.next() => match message {
                Some(Ok(Message::Text(message))) if message.contains("\"media\"") => {
                    told.lock().expect("no panic").heard.insert(sid.to_owned());
                    if stay == Stay::UntilHeard {
                        break;
                    }
                }
                Some(Ok(_)) => {}
                _ => return None,
            },
        }
    }
    let stop = FromTwilio::Stop {
        sequence: None,
        stream_sid: "MZ1".into(),
        account_sid: ACCOUNT.into(),
        call_sid: sid.into(),
    };
    socket.send(text(stop)).await.ok()?;
    let _ = timeout(Duration::from_secs(3), socket.close(None)).await;
    Some(())
}

async fn a_call_is_answered_and_talks_while_the_store_stands_still(base: Base) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let program = Program::new(base);
    program.apply();
    let store = program.base.open().await;
    let integration = store.directory().await.expect("readable").integrations().next().expect("applied").clone();
    let (server, address) = program.serve().await;
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
    let told = Mutex::new(Told::default());
    let ring = async |sid: &str| {
        let began = Instant::now();
        call(&http, &address, integration.id, sid, Stay::UntilHeard, &told).await.expect("the server is there");
        let answered = told.lock().expect("no panic").answered.remove(sid).expect("it was answered");
        answered - began
    };
    ring("CA1").await;
    let stall = program.base.stall().await;
    // The quickest of three: the machine has others to serve, too.
    let mut answers = Vec::new();
    for sid in ["CA2", "CA3", "CA4"] {
        answers.push(ring(sid).await);
    }
    let quickest = *answers.iter().min().expect("three");
    assert!(quickest < Duration::from_millis(200), "{answers:?}");
    assert_eq!(told.lock().expect("no panic").heard.len(), 4, "every caller heard the agent");
    stall.end().await;
    let began = Instant::now();
    let records = loop {
        let records = all_calls(&store, integration.company_id).await;
        if records.len() == 4 && records.iter().all(|record| record.ended.is_some()) {
            break records;
        }
        assert!(began.elapsed() < PATIENCE, "{records:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(records.iter().all(|record| record.end != Some(CRASHED)));
    server.kill();
}

async fn all_calls(store: &Store, company: Uuid) -> Vec<CallRecord> {
    let (mut records, mut part) = (Vec::new(), Part { after: None, limit: 200 });
    loop {
        let page = store.calls(company, &CallFilter::default(), part).await.expect("readable");
        for call in page.items {
            let record = store.call(company, CallId::from(call.id)).await.expect("readable");
            records.push(record.expect("it is in the list"));
        }
        part.after = page.next;
        if page.next.is_none() {
            return records;
        }
    }
}

async fn no_record_is_lost_or_doubled_and_every_one_is_closed(base: Base) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kills: u64 = std::env::var("OFFHOOK_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(6);
    let program = Program::new(base);
    program.apply();
    let store = program.base.open().await;
    let directory = store.directory().await.expect("readable");
    let integration = directory.integrations().next().expect("it was applied").clone();
    let told = Arc::new(Mutex::new(Told::default()));
    let mut chance = StdRng::seed_from_u64(4);
    let mut logs = Vec::new();
    for round in 0..kills {
        let (server, address) = program.serve().await;
        let phones: Vec<_> = (0..PHONES as u64)
            .map(|n| tokio::spawn(phone(address.clone(), integration.id, told.clone(), round * 100 + n)))
            .collect();
        tokio::time::sleep(Duration::from_millis(chance.random_range(100..2000))).await;
        logs.extend(server.kill());
        for phone in phones {
            timeout(PATIENCE, phone).await.expect("it notices").expect("it does not panic");
        }
    }
    // The next start closes what is open; nothing else is needed of it.
    let (server, _) = program.serve().await;
    let records = all_calls(&store, integration.company_id).await;
    logs.extend(server.kill());

    let told = told.lock().expect("no panic");
    let mut by_sid: BTreeMap<&str, u32> = BTreeMap::new();
    for record in &records {
        *by_sid.entry(&record.provider_call).or_default() += 1;
        assert!(record.ended.is_some() && record.end.is_some(), "left open: {record:?}");
        assert!(record.ended >= Some(record.started), "{record:?}");
        assert!(record.legs.iter().all(|leg| leg.ended.is_some()), "{record:?}");
        let folder = program.base.dir.path().join("recordings").join(record.id.to_string());
        if let (true, Ok(json)) = (record.end == Some(CRASHED), std::fs::read(folder.join("record.json"))) {
            let beside: CallRecord = serde_json::from_slice(&json).expect("JSON");
            assert_eq!(beside.end, record.end, "in the call's folder");
            assert!(record.transcript.lines.starts_with(&beside.transcript.lines), "{record:?}\n{beside:?}");
        }
    }
    let doubled: Vec<_> = by_sid.iter().filter(|(_, count)| **count > 1).collect();
    assert!(doubled.is_empty(), "doubled: {doubled:?}");
    // Also where the store was slower than a call may wait: then the record was in a file.
    let in_files = logs.iter().filter(|line| line.contains("with its record in a file")).count();
    let lost: Vec<_> = told.promised.iter().filter(|sid| !by_sid.contains_key(sid.as_str())).collect();
    assert!(lost.is_empty(), "{} of {} lost", lost.len(), told.promised.len());
    let crashed = records.iter().filter(|record| record.end == Some(CRASHED)).count();
    println!(
        "{kills} kills, {} calls promised, {} heard, {} records, {crashed} crashed, {in_files} answered with their record in a file",
        told.promised.len(),
        told.heard.len(),
        records.len(),
    );
    assert!(crashed > 0 && crashed < records.len(), "some calls were cut, others were over");
}
