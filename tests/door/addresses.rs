//! Binotel's webhooks are believed by their sender's address, which a forger can write but not have.

use reqwest::Method;
use serde_json::{Value, json};

use crate::client;
use crate::common::{Cast, quick};
use crate::stores::Base;
use crate::whole::{Whole, front_desk, text, until};

crate::on_every_store! {
    binotel_is_believed_from_its_own_addresses_alone_and_through_our_own_proxies_alone
    ringostat_is_believed_by_its_form_and_its_project
    what_is_not_there_is_answered_alike_and_tells_nothing
}

/// One of Binotel's published addresses.
const BINOTEL: &str = "194.88.218.116";
const STRANGER: &str = "203.0.113.7";
const PROXY: [u8; 4] = [127, 0, 0, 9];
const BODY: &str = "requestType=somethingNew&companyID=1000";

async fn post(from: [u8; 4], url: &str, forwarded: &[&str], body: &'static str) -> (u16, String) {
    let mut request = client(from).post(url).header("content-type", "application/x-www-form-urlencoded").body(body);
    for value in forwarded {
        request = request.header("X-Forwarded-For", *value);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

async fn binotel_is_believed_from_its_own_addresses_alone_and_through_our_own_proxies_alone(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |config| {
        config.server.trusted_proxies = vec!["127.0.0.9".into(), "10.0.0.0/8".into()];
    })
    .await;
    let acme = whole.company("Acme", json!({})).await;
    let credentials = json!({ "key": "k", "secret": "s", "company_id": "1000", "api_base": "http://127.0.0.1:9" });
    let integration = acme.integration("Binotel", "binotel", credentials).await;
    let agent = acme.agent(front_desk()).await;
    acme.line(integration, "901", agent).await;
    let shown = acme.get(&format!("/integrations/{integration}/webhook")).await;
    let url = text(&shown["url"]);

    let refused: [(&str, [u8; 4], &[&str]); 8] = [
        ("an address that is not on the list", [127, 0, 0, 1], &[]),
        ("a forged header from somebody who is no proxy", [127, 0, 0, 5], &[BINOTEL]),
        ("the proxy itself", PROXY, &[]),
        ("a stranger through the proxy", PROXY, &[STRANGER]),
        ("a spoofed left-most entry through the proxy", PROXY, &["194.88.218.116, 203.0.113.7"]),
        ("a spoofed header before the proxy's own", PROXY, &[BINOTEL, STRANGER]),
        ("a spoofed entry behind two proxies", PROXY, &["194.88.218.116, 203.0.113.7, 10.1.2.3"]),
        ("rubbish", PROXY, &["194.88.218.116, nobody"]),
    ];
    for (what, from, forwarded) in refused {
        assert_eq!(post(from, url, forwarded, BODY).await.0, 403, "{what}");
    }
    until("each is in the audit log", async || (acme.audited("refused").await.len() == refused.len()).then_some(()))
        .await;
    let noted = acme.audited("refused").await;
    assert!(noted.iter().all(|entry| entry["detail"]["reason"] == "wrong_address"), "{noted:#?}");
    let clients: Vec<&str> = noted.iter().map(|entry| text(&entry["detail"]["client"])).collect();
    assert_eq!(clients.iter().filter(|client| **client == STRANGER).count(), 4, "the true one is noted: {clients:?}");
    let labels = ["provider=\"binotel\"", "result=\"wrong_address\""];
    assert!(whole.metric("offhook_webhook_total", &labels).await >= refused.len() as u64);

    let success = (200, r#"{"status":"success"}"#.to_owned());
    for (what, forwarded) in [
        ("through the proxy", "194.88.218.116"),
        ("through two proxies", "194.88.218.116, 10.1.2.3"),
        ("with something spoofed before it", "203.0.113.7, 194.88.218.116"),
    ] {
        assert_eq!(post(PROXY, url, &[forwarded], BODY).await, success, "{what}");
    }
    let of_another_company = "requestType=somethingNew&companyID=2000";
    assert_eq!(post(PROXY, url, &[BINOTEL], of_another_company).await.0, 403);

    // The list is the company's to change.
    let change = json!({ "credentials": { "allowed_addresses": "default, 127.0.0.5" } });
    assert_eq!(acme.ask(Method::PATCH, &format!("/integrations/{integration}"), change).await.0, 200);
    until("the new list counts", async || (post([127, 0, 0, 5], url, &[], BODY).await == success).then_some(())).await;
    assert_eq!(post(PROXY, url, &[BINOTEL], BODY).await, success, "the default list still counts");
    assert_eq!(post([127, 0, 0, 6], url, &[], BODY).await.0, 403);
    whole.stop().await;
}

async fn ringostat_is_believed_by_its_form_and_its_project(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |_| {}).await;
    let acme = whole.company("Acme", json!({})).await;
    let credentials = json!({ "auth_key": "k", "project_id": "12345", "api_base": "http://127.0.0.1:9" });
    let integration = acme.integration("Ringostat", "ringostat", credentials).await;
    let agent = acme.agent(front_desk()).await;
    acme.line(integration, "acme_concierge", agent).await;
    let shown = acme.get(&format!("/integrations/{integration}/webhook")).await;
    let url = text(&shown["url"]);
    let webhook = json!({
        "event": "in_after", "project_id": "12345", "call_id": "us1_-1800000000.1", "call_type": "in",
        "caller": "380501234567", "destination": "380441234567", "status": "ANSWERED", "billsec": "66",
        "connected_with": "acme_concierge",
    });
    let spoilt: [(&str, &str, Value, u16); 9] = [
        ("no event", "event", Value::Null, 400),
        ("an event that there is not", "event", json!("in_never"), 400),
        ("no project", "project_id", Value::Null, 400),
        ("another project", "project_id", json!("54321"), 403),
        ("no call", "call_id", Value::Null, 400),
        ("a call that is none", "call_id", json!("'; DROP TABLE call"), 400),
        ("no caller", "caller", Value::Null, 400),
        ("a status that says nothing", "status", Value::Null, 400),
        ("a length that cannot be", "billsec", json!("a lot"), 400),
    ];
    for (n, (what, field, value, status)) in spoilt.iter().enumerate() {
        let mut forged = webhook.clone();
        forged[*field] = value.clone();
        if value.is_null() {
            forged.as_object_mut().unwrap().remove(*field);
        }
        let response = client([127, 0, 4, n as u8 + 1]).post(url).json(&forged).send().await.unwrap();
        assert_eq!(response.status().as_u16(), *status, "{what}");
    }
    until("each is in the audit log", async || (acme.audited("refused").await.len() == spoilt.len()).then_some(()))
        .await;
    assert_eq!(acme.calls().await.len(), 0);
    let genuine = client([127, 0, 0, 1]).post(url).json(&webhook).send().await.unwrap();
    assert_eq!(genuine.status(), 200);
    let call = acme.only_call(|call| call["ended_at"].is_string()).await;
    assert_eq!((&call["outcome"], &call["line"]), (&json!("answered"), &json!("acme_concierge")));
    whole.stop().await;
}

async fn what_is_not_there_is_answered_alike_and_tells_nothing(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |config| config.security.binotel_allow_any = true).await;
    let acme = whole.company("Acme", json!({})).await;
    let binotel = json!({ "key": "k", "secret": "s", "company_id": "1000", "api_base": "http://127.0.0.1:9" });
    let integration = acme.integration("Binotel", "binotel", binotel).await;
    let agent = acme.agent(front_desk()).await;
    acme.line(integration, "901", agent).await;
    let shown = acme.get(&format!("/integrations/{integration}/webhook")).await;
    let (url, unknown) = (text(&shown["url"]).to_owned(), uuid::Uuid::now_v7());
    assert_eq!(post([127, 0, 0, 1], &url, &[], BODY).await.0, 200, "from anywhere, where the operator said so");
    let secret = url.rsplit('/').next().unwrap();
    let (_, nowhere) = post([127, 0, 0, 1], &whole.url("/nowhere"), &[], BODY).await;
    for path in [
        format!("/webhooks/binotel/{integration}/{secret}x"),
        format!("/webhooks/binotel/{integration}/{}", &secret[1..]),
        format!("/webhooks/binotel/{unknown}/{secret}"),
        format!("/webhooks/binotel/1/{secret}"),
        format!("/webhooks/ringostat/{integration}/{secret}"),
        format!("/webhooks/twilio/{integration}/voice"),
        format!("/webhooks/twilio/{unknown}/voice"),
        format!("/webhooks/twilio/{unknown}/nothing"),
    ] {
        assert_eq!(post([127, 0, 0, 1], &whole.url(&path), &[], BODY).await, (404, nowhere.clone()), "{path}");
    }
    assert_eq!(acme.audited("refused").await.len(), 0, "it concerns no company");
    assert!(whole.metric("offhook_webhook_total", &["provider=\"twilio\"", "unknown_integration"]).await >= 3);
    whole.stop().await;
}
