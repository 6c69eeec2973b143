//! The services behind a call are killed in the middle of a turn (SIGKILL to a process of their own, or the caller's
//! socket torn off): each time something is said or noted, the call goes on or ends, and no task, socket or file stays.

mod common;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{Cast, Ear, PATIENCE, Phone, Server, voice};
use offhook::call::record::CallRecord;
use offhook::conversation::transcript::Line;
use offhook::speech::llm::openai::{OpenAiLlm, OpenAiLlmConfig};
use offhook::speech::stt::openai::{OpenAiStt, OpenAiSttConfig};
use offhook::speech::tts::openai::{OpenAiTts, OpenAiTtsConfig};
use offhook::telephony::{CallEnd, EndReason, Party};
use tokio::time::{Instant, sleep};

/// `offhook mock` as a process that can be killed, on a port of its own.
struct Service {
    port: u16,
    delays: &'static [&'static str],
    process: Option<Child>,
}

impl Service {
    fn new(delays: &'static [&'static str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
        Self { port, delays, process: None }
    }

    fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    async fn up(&mut self) {
        if self.process.is_some() {
            return;
        }
        let process = Command::new(env!("CARGO_BIN_EXE_offhook"))
            .args(["mock", "--listen", &format!("127.0.0.1:{}", self.port)])
            .args(self.delays)
            .stdout(Stdio::null())
            .spawn()
            .expect("the mock starts");
        self.process = Some(process);
        let deadline = Instant::now() + PATIENCE;
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            assert!(Instant::now() < deadline, "the mock does not listen");
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it runs");
            process.wait().expect("it ends");
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Open files and sockets of this process, and its living tasks.
fn held() -> (usize, usize) {
    let files = std::fs::read_dir("/proc/self/fd").expect("Linux").count();
    (files, tokio::runtime::Handle::current().metrics().num_alive_tasks())
}

struct Scene {
    stt: Service,
    llm: Service,
    tts: Service,
    server: Server,
    calls: usize,
}

impl Scene {
    async fn start() -> Self {
        let stt = Service::new(&["--stt-ms", "300"]);
        let llm = Service::new(&["--llm-ttft-ms", "700"]);
        // Sound comes twice as fast as it is played: a long answer is under way for seconds.
        let tts = Service::new(&["--tts-speed", "2"]);
        let (stt_config, llm_config, tts_config) = (
            OpenAiSttConfig { base_url: stt.base_url(), ..Default::default() },
            OpenAiLlmConfig { base_url: llm.base_url(), ..Default::default() },
            OpenAiTtsConfig { base_url: tts.base_url(), ..Default::default() },
        );
        let cast = Cast {
            stt: Arc::new(OpenAiStt::new(&stt_config).expect("an address")),
            tts: Arc::new(OpenAiTts::new(tts_config).expect("an address")),
            llm: Arc::new(OpenAiLlm::new(llm_config).expect("an address")),
        };
        let server = Server::start(cast, |config, agent| {
            config.recording.enabled = true;
            agent.tools.clear();
        })
        .await;
        Self { stt, llm, tts, server, calls: 0 }
    }

    /// A call that has been greeted; all services run.
    async fn greeted(&mut self) -> Phone {
        self.stt.up().await;
        self.llm.up().await;
        self.tts.up().await;
        self.calls += 1;
        let mut phone = self.server.call().await;
        phone.hears(Ear::AgentSpeaks).await;
        phone.hears(Ear::AgentSilent).await;
        phone
    }

    /// The record of the newest call, closed; then everything that a call held must have been given back.
    async fn over(&mut self, before: Option<(usize, usize)>) -> CallRecord {
        let deadline = Instant::now() + PATIENCE;
        let record = loop {
            let mut records = self.server.records();
            records.sort_by_key(|record| record.started);
            if records.len() == self.calls && records.iter().all(|record| record.end.is_some()) {
                break records.pop().expect("a call");
            }
            assert!(Instant::now() < deadline, "an open record: {records:?}");
            sleep(Duration::from_millis(20)).await;
        };
        // Pooled connections end with the services that they led to.
        self.stt.kill();
        self.llm.kill();
        self.tts.kill();
        if let Some((files, tasks)) = before {
            loop {
                let (now_files, now_tasks) = held();
                if now_files <= files && now_tasks <= tasks {
                    break;
                }
                assert!(Instant::now() < deadline, "{now_files} files and {now_tasks} tasks, before {files}, {tasks}");
                sleep(Duration::from_millis(50)).await;
            }
        }
        record
    }
}

fn said(record: &CallRecord, what: &str) -> bool {
    record.transcript.lines.iter().any(|line: &Line| line.who == Party::Agent && line.text.contains(what))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_service_is_spoken_of_or_noted_and_leaves_nothing_open() {
    let mut scene = Scene::start().await;

    // An ordinary call, so that what is made once for the process is there.
    let mut phone = scene.greeted().await;
    phone.say(&voice()).await;
    phone.hears(Ear::AgentSpeaks).await;
    phone.hang_up().await;
    scene.over(None).await;
    sleep(Duration::from_millis(500)).await;
    let before = held();

    // Recognition: killed while the caller speaks.
    let mut phone = scene.greeted().await;
    scene.stt.kill();
    phone.say(&voice()).await;
    phone.hears(Ear::AgentSpeaks).await;
    phone.hears(Ear::AgentSilent).await;
    phone.hang_up().await;
    let record = scene.over(Some(before)).await;
    assert!(said(&record, "again") || said(&record, "repeat"), "{:?}", record.transcript.lines);
    assert_eq!(record.end, Some(CallEnd::new(Party::Caller, EndReason::HungUp)));

    // The model: killed between the question and its first word.
    let mut phone = scene.greeted().await;
    phone.say(&voice()).await;
    sleep(Duration::from_millis(600)).await;
    scene.llm.kill();
    phone.hears(Ear::AgentSpeaks).await;
    phone.hears(Ear::AgentSilent).await;
    phone.hang_up().await;
    let record = scene.over(Some(before)).await;
    assert!(said(&record, "orry"), "{:?}", record.transcript.lines);
    assert!(record.faults.iter().any(|fault| fault.starts_with("model:")), "{:?}", record.faults);

    // Speech: killed in the middle of an answer.
    let mut phone = scene.greeted().await;
    phone.say(&voice()).await;
    phone.hears(Ear::AgentSpeaks).await;
    scene.tts.kill();
    phone.hears(Ear::AgentSilent).await;
    phone.hang_up().await;
    let record = scene.over(Some(before)).await;
    assert!(record.faults.iter().any(|fault| fault.starts_with("speech:")), "{:?}", record.faults);

    // The caller's socket: torn off while the model thinks.
    let phone = scene.greeted().await;
    phone.say(&voice()).await;
    sleep(Duration::from_millis(500)).await;
    phone.cut();
    let record = scene.over(Some(before)).await;
    assert_eq!(record.end, Some(CallEnd::new(Party::Carrier, EndReason::ConnectionLost)));
    scene.server.app.stop().await;
}
