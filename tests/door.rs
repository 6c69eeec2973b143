//! The webhook door of the whole program, from outside: who is believed, who is refused and how loudly, what a flood costs,
//! and what is promised while the store stands still.

#[path = "common/stores.rs"]
mod stores;

mod common;

#[path = "common/whole.rs"]
mod whole;

#[path = "door/addresses.rs"]
mod addresses;
#[path = "door/flood.rs"]
mod flood;
#[path = "door/forgeries.rs"]
mod forgeries;
#[path = "door/limits.rs"]
mod limits;
#[path = "door/still.rs"]
mod still;

use std::net::IpAddr;

use offhook::providers::twilio::signature;
use reqwest::Response;
use uuid::Uuid;

use crate::whole::{ACCOUNT, CALLER, LINE, TOKEN};

type Fields = Vec<(String, String)>;

fn fields(pairs: &[(&str, &str)]) -> Fields {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The voice webhook of a call.
fn voice(call: &str) -> Fields {
    fields(&[("AccountSid", ACCOUNT), ("CallSid", call), ("CallStatus", "ringing"), ("From", CALLER), ("To", LINE)])
}

/// A status that is genuine and of no use: it counts, and leaves nothing behind.
fn queued(call: &str) -> Fields {
    fields(&[("AccountSid", ACCOUNT), ("CallSid", call), ("CallStatus", "queued"), ("From", CALLER), ("To", LINE)])
}

fn call_sid() -> String {
    format!("CA{}", Uuid::now_v7().simple())
}

fn signed(url: &str, fields: &Fields) -> String {
    signature::sign(&TOKEN.into(), url, fields)
}

fn encoded(fields: &Fields) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
}

/// A client at this address of the loopback network.
fn client(address: impl Into<IpAddr>) -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().local_address(address.into()).timeout(common::PATIENCE).no_proxy();
    client.build().expect("a client")
}

/// As Twilio itself posts.
async fn genuine(client: &reqwest::Client, url: &str, fields: &Fields) -> Response {
    let request = client.post(url).header("X-Twilio-Signature", signed(url, fields)).form(fields);
    request.send().await.expect("the door answers")
}
