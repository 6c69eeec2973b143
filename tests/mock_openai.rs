//! The mock's wire format, its delays and its faults, seen by an ordinary HTTP client.

use std::time::{Duration, Instant};

use offhook::load::caller::http_client;
use offhook::mock::openai::{MockConfig, MockOpenAi};
use offhook::mock::tone::{RATE_HZ, tone_of};
use reqwest::multipart::{Form, Part};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What the scheduler of a machine that compiles beside the test may add; an idle one adds 2 ms.
const SLOW_MACHINE: Duration = Duration::from_secs(1);

async fn mock(config: MockConfig) -> (MockOpenAi, Client) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (MockOpenAi::start(config, listener).unwrap(), http_client().unwrap())
}

async fn chat(mock: &MockOpenAi, client: &Client, model: &str, text: &str) -> Response {
    let body = json!({ "model": model, "stream": true, "stream_options": { "include_usage": true },
        "messages": [{ "role": "user", "content": text }] });
    client.post(format!("{}/chat/completions", mock.base_url())).json(&body).send().await.unwrap()
}

/// The events of a stream, and whether `[DONE]` ended it.
fn events(body: &str) -> (Vec<Value>, bool) {
    let mut events = Vec::new();
    let mut done = false;
    for line in body.lines().filter_map(|line| line.strip_prefix("data: ")) {
        assert!(!done, "something follows [DONE]");
        match line {
            "[DONE]" => done = true,
            line => events.push(serde_json::from_str(line).unwrap()),
        }
    }
    (events, done)
}

fn spoken(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn an_answer_streams_at_the_set_pace_and_the_log_says_when() {
    let (mock, client) = mock(MockConfig::default()).await;
    let began = Instant::now();
    let response = chat(&mock, &client, "mock-ttft=120,token=20", "When do you open?").await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let body = response.text().await.unwrap();
    let took = began.elapsed();

    let (events, done) = events(&body);
    assert!(done);
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(
        spoken(&events),
        "We are open from nine, and the kitchen closes at ten at night. Would you like to book?"
    );
    let words = spoken(&events).split(' ').count() as u32;
    let least = Duration::from_millis(120) + Duration::from_millis(20) * (words - 1);
    assert!(took >= least && took < least + SLOW_MACHINE, "{took:?} for {least:?}");
    let last = events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], words);
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "stop");

    let seen = &mock.requests()[0];
    assert_eq!((seen.path, seen.text.as_str(), seen.injected_ms), ("/v1/chat/completions", "When do you open?", 120));
    let added_us = seen.first_byte_us.unwrap() - seen.arrived_us - 120_000;
    assert!(u128::from(added_us) < SLOW_MACHINE.as_micros(), "the mock itself added {added_us} us");
    assert!(!seen.cancelled && seen.done_us.is_some());
    mock.stop().await;
}

#[tokio::test]
async fn a_tool_call_streams_in_fragments_and_its_result_gets_an_answer() {
    let (mock, client) = mock(MockConfig::default()).await;
    let tools = json!([{ "type": "function", "function": { "name": "send_sms", "parameters": {} } }]);
    let ask = |messages: Value| {
        let body = json!({ "model": "mock-ttft=0,token=0", "stream": true, "messages": messages, "tools": tools });
        client.post(format!("{}/chat/completions", mock.base_url())).json(&body).send()
    };
    let user = json!({ "role": "user", "content": "please send sms to me" });
    let (events, done) = events(&ask(json!([user])).await.unwrap().text().await.unwrap());
    assert!(done && spoken(&events).is_empty());
    let calls: Vec<&Value> =
        events.iter().map(|e| &e["choices"][0]["delta"]["tool_calls"][0]).filter(|c| !c.is_null()).collect();
    assert_eq!(calls[0]["function"]["name"], "send_sms");
    let arguments: String = calls.iter().filter_map(|call| call["function"]["arguments"].as_str()).collect();
    assert_eq!(arguments, "{}");
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");

    let id = &calls[0]["id"];
    let call = json!({ "role": "assistant", "content": null, "tool_calls": [
        { "id": id, "type": "function", "function": { "name": "send_sms", "arguments": "{}" } }] });
    let unanswered = ask(json!([user, call, { "role": "user", "content": "well?" }])).await.unwrap();
    assert_eq!(unanswered.status(), StatusCode::BAD_REQUEST);
    let result = json!({ "role": "tool", "tool_call_id": id, "content": "sent" });
    let answer = ask(json!([user, call, result])).await.unwrap().text().await.unwrap();
    assert!(answer.contains("That") && answer.contains(" done"), "{answer}");
}

#[tokio::test]
async fn a_request_without_stream_is_answered_in_one_piece() {
    let (mock, client) = mock(MockConfig::default()).await;
    let body = json!({ "model": "mock-ttft=0,token=0", "messages": [{ "role": "user", "content": "hello" }] });
    let response = client.post(format!("{}/chat/completions", mock.base_url())).json(&body).send().await.unwrap();
    let answer: Value = response.json().await.unwrap();
    assert!(answer["choices"][0]["message"]["content"].as_str().unwrap().starts_with("I understand"));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let models: Value = client.get(format!("{}/models", mock.base_url())).send().await.unwrap().json().await.unwrap();
    assert_eq!(models["data"][0]["id"], "mock");
}

#[tokio::test]
async fn faults_have_the_shapes_of_the_real_ones() {
    let (mock, client) = mock(MockConfig::default()).await;
    let well = "We are open from nine, and the kitchen closes at ten at night. Would you like to book?";
    let ask = async |settings: &str| chat(&mock, &client, &format!("mock-ttft=0,token=0,{settings}"), "open").await;

    let limited = ask("fault=429,retry=120,times=1").await;
    assert_eq!(limited.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(limited.headers()["retry-after-ms"], "120");
    assert_eq!(limited.json::<Value>().await.unwrap()["error"]["code"], "rate_limit_exceeded");
    assert_eq!(ask("fault=429,retry=120,times=1").await.status(), StatusCode::OK);
    assert_eq!(ask("fault=500").await.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(ask("fault=fire").await.status(), StatusCode::BAD_REQUEST);

    let body = ask("fault=crlf").await.text().await.unwrap();
    assert!(body.contains("\r\n\r\n") && !body.replace("\r\n", "").contains('\n'));
    assert_eq!(spoken(&events(&body).0), well);
    let body = ask("fault=comments").await.text().await.unwrap();
    assert!(body.starts_with(": keep-alive\n\n"));
    assert_eq!(spoken(&events(&body).0), well);
    let body = ask("fault=nodone").await.text().await.unwrap();
    assert!(!events(&body).1);
    assert_eq!(spoken(&events(&body).0), well);
    let body = ask("fault=odd").await.text().await.unwrap();
    assert_eq!(spoken(&events(&body).0), well);
    let (broken, done) = events(&ask("fault=error").await.text().await.unwrap());
    assert!(broken.last().unwrap()["error"]["message"].is_string() && !done);
    let response = ask("fault=json").await;
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.json::<Value>().await.unwrap()["choices"][0]["message"]["content"], well);

    let mut cut = ask("fault=cut").await;
    assert_eq!(cut.status(), StatusCode::OK);
    let mut received = Vec::new();
    let error = loop {
        match cut.chunk().await {
            Ok(Some(chunk)) => received.extend_from_slice(&chunk),
            Ok(None) => panic!("the stream ended in good order"),
            Err(error) => break error,
        }
    };
    assert!(!error.is_timeout());
    let text = String::from_utf8(received).unwrap();
    assert!(text.contains("data: ") && !text.contains("[DONE]"), "{text}");
}

#[tokio::test]
async fn a_request_that_hangs_or_is_left_is_seen_as_cancelled() {
    let (mock, client) = mock(MockConfig::default()).await;
    let body = json!({ "model": "mock-fault=hang", "stream": true, "messages": [{ "role": "user", "content": "x" }] });
    let hang = client
        .post(format!("{}/chat/completions", mock.base_url()))
        .timeout(Duration::from_millis(200))
        .json(&body)
        .send()
        .await;
    assert!(hang.unwrap_err().is_timeout());
    let mut left = chat(&mock, &client, "mock-ttft=0,token=5000", "open").await;
    left.chunk().await.unwrap().unwrap();
    drop(left);
    let log = format!("http://{}/mock/requests", mock.addr);
    tokio::time::timeout(Duration::from_secs(5), async {
        loop {
            let seen: Value = client.get(&log).send().await.unwrap().json().await.unwrap();
            let cancelled = |n: usize| seen[n]["cancelled"] == true;
            if cancelled(0) && cancelled(1) {
                assert_eq!(seen[0]["fault"], "hang");
                break;
            }
        }
    })
    .await
    .expect("both requests are seen as cancelled");
    assert_eq!(client.delete(&log).send().await.unwrap().status(), StatusCode::NO_CONTENT);
    assert!(mock.requests().is_empty());
}

/// Frequency of 16-bit little-endian samples by their upward zero crossings.
fn frequency(pcm: &[u8]) -> f64 {
    let samples: Vec<i16> = pcm.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect();
    let rises = samples.windows(2).filter(|pair| pair[0] < 0 && pair[1] >= 0).count();
    rises as f64 * f64::from(RATE_HZ) / samples.len() as f64
}

async fn speak(mock: &MockOpenAi, client: &Client, settings: Value) -> Response {
    let mut body = json!({ "model": "mock-tts=80", "voice": "coral", "input": "We open at nine.",
        "response_format": "pcm" });
    body.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    client.post(format!("{}/audio/speech", mock.base_url())).json(&body).send().await.unwrap()
}

#[tokio::test]
async fn speech_is_a_tone_that_names_its_sentence() {
    let (mock, client) = mock(MockConfig::default()).await;
    let began = Instant::now();
    let mut response = speak(&mock, &client, json!({})).await;
    assert_eq!(response.headers()["content-type"], "audio/pcm");
    let mut pcm = response.chunk().await.unwrap().unwrap().to_vec();
    assert!(began.elapsed() >= Duration::from_millis(80));
    while let Some(chunk) = response.chunk().await.unwrap() {
        pcm.extend_from_slice(&chunk);
    }
    // 16 characters of 60 ms, 48 bytes a millisecond.
    assert_eq!(pcm.len(), 16 * 60 * 48);
    assert!((frequency(&pcm) - f64::from(tone_of("We open at nine."))).abs() < 5.0);

    let fast = speak(&mock, &client, json!({ "speed": 2.0 })).await.bytes().await.unwrap();
    assert_eq!(fast.len(), pcm.len() / 2);
    let wav = speak(&mock, &client, json!({ "response_format": "wav" })).await.bytes().await.unwrap();
    assert_eq!((&wav[..4], &wav[40..44], &wav[44..]), (&b"RIFF"[..], &[0xFF; 4][..], &pcm[..]));
    let late = speak(&mock, &client, json!({ "model": "mock-tts=0,lead=100" })).await.bytes().await.unwrap();
    assert!(late[..100 * 48].iter().all(|byte| *byte == 0));
    assert_eq!(&late[100 * 48..], &pcm[..]);
    let sse = speak(&mock, &client, json!({ "stream_format": "sse" })).await.text().await.unwrap();
    let (sse, done) = events(&sse);
    assert!(!done && sse.last().unwrap()["type"] == "speech.audio.done");
    assert_eq!(sse[0]["type"], "speech.audio.delta");

    assert_eq!(speak(&mock, &client, json!({ "speed": 9.0 })).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(speak(&mock, &client, json!({ "input": "" })).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(mock.requests()[0].audio_ms, Some(960));
}

#[tokio::test]
async fn speech_can_come_in_odd_pieces_and_at_its_own_speed() {
    let (mock, client) = mock(MockConfig::default()).await;
    let whole = speak(&mock, &client, json!({})).await.bytes().await.unwrap();
    let odd = speak(&mock, &client, json!({ "model": "mock-tts=0,fault=odd" })).await.bytes().await.unwrap();
    assert_eq!(odd, whole);
    let began = Instant::now();
    // 960 ms at four times real time; the last of ten chunks is there after nine tenths of 240 ms.
    let slow = speak(&mock, &client, json!({ "model": "mock-tts=0,speed=4" })).await.bytes().await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert_eq!(slow, whole);
}

fn wav(ms: u32) -> Vec<u8> {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 8_000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut bytes = std::io::Cursor::new(Vec::new());
    let mut writer = hound::WavWriter::new(&mut bytes, spec).unwrap();
    (0..ms * 8).for_each(|_| writer.write_sample(0i16).unwrap());
    writer.finalize().unwrap();
    bytes.into_inner()
}

async fn transcribe(mock: &MockOpenAi, client: &Client, fields: &[(&str, &str)], file: Option<Vec<u8>>) -> Response {
    let mut form = Form::new().text("model", "mock-stt=60");
    for (name, value) in fields {
        form = form.text(name.to_string(), value.to_string());
    }
    if let Some(file) = file {
        form = form.part("file", Part::bytes(file).file_name("turn.wav").mime_str("audio/wav").unwrap());
    }
    client.post(format!("{}/audio/transcriptions", mock.base_url())).multipart(form).send().await.unwrap()
}

#[tokio::test]
async fn recognition_answers_whole_sentences_in_turn_in_every_format() {
    let (mock, client) = mock(MockConfig::default()).await;
    let began = Instant::now();
    let json: Value = transcribe(&mock, &client, &[], Some(wav(1_500))).await.json().await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(60));
    assert_eq!(json["text"], "What time do you open on Friday?");
    let verbose = transcribe(&mock, &client, &[("response_format", "verbose_json")], Some(wav(1_500))).await;
    let verbose: Value = verbose.json().await.unwrap();
    assert_eq!(
        (&verbose["text"], &verbose["duration"]),
        (&json!("I would like to book a table for four people."), &json!(1.5))
    );
    let stream = transcribe(&mock, &client, &[("stream", "true")], Some(wav(500))).await.text().await.unwrap();
    let (stream, done) = events(&stream);
    assert!(!done);
    assert_eq!(stream.last().unwrap()["text"], "Could you call me back tomorrow morning?");
    let deltas: String = stream.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(deltas, "Could you call me back tomorrow morning?");
    assert_eq!(mock.requests()[0].audio_ms, Some(1_500));

    assert_eq!(transcribe(&mock, &client, &[], None).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(transcribe(&mock, &client, &[], Some(b"no wav".to_vec())).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_key_is_asked_for_where_one_is_set() {
    let (mock, client) = mock(MockConfig { api_key: Some("sk-test".into()), ..MockConfig::default() }).await;
    assert_eq!(chat(&mock, &client, "mock-ttft=0,token=0", "open").await.status(), StatusCode::UNAUTHORIZED);
    let body = json!({ "model": "mock-ttft=0,token=0", "messages": [{ "role": "user", "content": "open" }] });
    let right = client.post(format!("{}/chat/completions", mock.base_url())).bearer_auth("sk-test").json(&body);
    assert_eq!(right.send().await.unwrap().status(), StatusCode::OK);
}
