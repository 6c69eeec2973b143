//! `make_call`, `send_sms`, `get_call_history`: what an agent can do through its company's integrations. Which of them
//! there are is decided by what these can do; how it is done is behind [`Telephone`].

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::{Tool, ToolContext, ToolError, ToolOutcome, ToolRegistry};
use crate::speech::llm::ToolSpec;
use crate::telephony::PhoneNumber;

/// What a company's integrations can do for its agents. Every use is checked, counted and recorded behind this.
pub trait Telephone: Send + Sync {
    fn abilities(&self) -> Abilities;

    fn make_call(&self, cx: ToolContext, order: CallOrder) -> BoxFuture<'static, Result<Value, ToolError>>;

    fn send_sms(&self, cx: ToolContext, order: SmsOrder) -> BoxFuture<'static, Result<Value, ToolError>>;

    fn call_history(&self, cx: ToolContext, order: HistoryOrder) -> BoxFuture<'static, Result<Value, ToolError>>;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Some integration dials: Twilio, Ringostat, Binotel.
    pub call: bool,
    /// Some integration sends messages: Twilio.
    pub message: bool,
    /// Some integration remembers its calls.
    pub history: bool,
}

/// A call to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallOrder {
    pub to: PhoneNumber,
    /// Said first, in place of the agent's own greeting.
    pub greeting: Option<String>,
    /// What the call is for, in the prompt of the agent that makes it.
    pub purpose: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmsOrder {
    pub to: PhoneNumber,
    pub text: String,
}

/// Which calls of the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryOrder {
    pub phone: Option<PhoneNumber>,
    /// One of [`STATUSES`].
    pub status: Option<String>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    pub limit: usize,
}

/// The tools of this file.
pub const NAMES: [&str; 3] = ["make_call", "send_sms", "get_call_history"];

/// What became of a call, in words that all providers share.
pub const STATUSES: [&str; 7] = ["running", "answered", "no_answer", "busy", "failed", "canceled", "voicemail"];

/// Calls that a model is told of unless it asks for fewer or more.
const HISTORY_LIMIT: u64 = 10;

/// Adds the tools that these integrations make possible, and no others.
pub fn provision(telephone: &Arc<dyn Telephone>, registry: &mut ToolRegistry) {
    let abilities = telephone.abilities();
    if abilities.call {
        registry.add(Arc::new(MakeCall(telephone.clone())));
    }
    if abilities.message {
        registry.add(Arc::new(SendSms(telephone.clone())));
    }
    if abilities.history {
        registry.add(Arc::new(GetCallHistory(telephone.clone())));
    }
}

struct MakeCall(Arc<dyn Telephone>);

impl Tool for MakeCall {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: "make_call".into(),
            description:
                "Calls a phone number; the same agent talks on that call. Answers as soon as the call is placed, \
                          not when it is picked up."
                    .into(),
            parameters: json!({
                "type": "object",
                "properties": {
                    "to": { "type": "string", "minLength": 3, "maxLength": 32,
                            "description": "Number with + and country code, e.g. +380441234567" },
                    "greeting": { "type": "string", "minLength": 1, "maxLength": 500,
                                  "description": "What to say first on that call." },
                    "purpose": { "type": "string", "minLength": 1, "maxLength": 1000,
                                 "description": "What that call is for and what to find out or arrange." },
                },
                "required": ["to"],
                "additionalProperties": false,
            }),
        }
    }

    fn side_effect(&self) -> bool {
        true
    }

    fn call(&self, args: Value, cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let order = CallOrder {
            to: PhoneNumber::new(text(&args, "to").unwrap_or_default()),
            greeting: text(&args, "greeting"),
            purpose: text(&args, "purpose"),
        };
        outcome(self.0.make_call(cx, order))
    }
}

struct SendSms(Arc<dyn Telephone>);

impl Tool for SendSms {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: "send_sms".into(),
            description: "Sends a text message. The sender's number is chosen by itself.".into(),
            parameters: json!({
                "type": "object",
                "properties": {
                    "to": { "type": "string", "minLength": 3, "maxLength": 32,
                            "description": "Number with + and country code, e.g. +380501234567" },
                    "text": { "type": "string", "minLength": 1, "maxLength": 1600 },
                },
                "required": ["to", "text"],
                "additionalProperties": false,
            }),
        }
    }

    fn side_effect(&self) -> bool {
        true
    }

    fn call(&self, args: Value, cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let Some(body) = text(&args, "text") else { return wrong("text: there is nothing to send") };
        let to = PhoneNumber::new(text(&args, "to").unwrap_or_default());
        outcome(self.0.send_sms(cx, SmsOrder { to, text: body }))
    }
}

struct GetCallHistory(Arc<dyn Telephone>);

impl Tool for GetCallHistory {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: "get_call_history".into(),
            description: "The company's past calls, newest first.".into(),
            parameters: json!({
                "type": "object",
                "properties": {
                    "phone": { "type": "string", "minLength": 3, "maxLength": 32,
                               "description": "Only calls with this number." },
                    "status": { "type": "string", "enum": STATUSES },
                    "from": { "type": "string", "maxLength": 40, "description": "First day, 2026-03-01, or a moment with its zone." },
                    "to": { "type": "string", "maxLength": 40, "description": "Last day, 2026-03-07, or a moment with its zone." },
                    "limit": { "type": "integer", "minimum": 1, "maximum": 50 },
                },
                "additionalProperties": false,
            }),
        }
    }

    fn side_effect(&self) -> bool {
        false
    }

    fn call(&self, args: Value, cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let moment = |key: &str, end: bool| text(&args, key).map(|text| moment(&text, end).ok_or(text)).transpose();
        let (from, to) = match (moment("from", false), moment("to", true)) {
            (Ok(from), Ok(to)) => (from, to),
            (Err(bad), _) => return wrong(&format!("from: {bad:?} is no date; write 2026-03-01")),
            (_, Err(bad)) => return wrong(&format!("to: {bad:?} is no date; write 2026-03-01")),
        };
        if from.is_some() && to.is_some() && from > to {
            return wrong("from is after to");
        }
        let order = HistoryOrder {
            phone: text(&args, "phone").map(PhoneNumber::new),
            status: text(&args, "status"),
            from,
            to,
            limit: args["limit"].as_u64().unwrap_or(HISTORY_LIMIT) as usize,
        };
        outcome(self.0.call_history(cx, order))
    }
}

/// A field with something in it.
fn text(args: &Value, key: &str) -> Option<String> {
    args[key].as_str().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// A day stands for its beginning or its end, in the server's zone.
fn moment(text: &str, end: bool) -> Option<Timestamp> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(moment);
    }
    let day: Date = text.parse().ok()?;
    let day = if end { day.tomorrow().ok()? } else { day };
    Some(day.to_zoned(TimeZone::system()).ok()?.timestamp())
}

fn wrong(problem: &str) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
    let error = ToolError::Arguments(problem.to_owned());
    async move { Err(error) }.boxed()
}

fn outcome(work: BoxFuture<'static, Result<Value, ToolError>>) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
    work.map(|done| done.map(|value| ToolOutcome { content: value.to_string(), effect: None })).boxed()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::agent::tools::{ToolBox, ToolResult};
    use crate::speech::llm::ToolCall;
    use crate::telephony::CallId;

    #[derive(Default)]
    struct Fake {
        abilities: Abilities,
        orders: Mutex<Vec<String>>,
    }

    impl Fake {
        fn note(&self, order: String) -> BoxFuture<'static, Result<Value, ToolError>> {
            self.orders.lock().unwrap().push(order);
            async { Ok(json!({ "ok": true })) }.boxed()
        }
    }

    impl Telephone for Fake {
        fn abilities(&self) -> Abilities {
            self.abilities
        }

        fn make_call(&self, _: ToolContext, order: CallOrder) -> BoxFuture<'static, Result<Value, ToolError>> {
            self.note(format!("call {} {:?} {:?}", order.to.as_str(), order.greeting, order.purpose))
        }

        fn send_sms(&self, _: ToolContext, order: SmsOrder) -> BoxFuture<'static, Result<Value, ToolError>> {
            self.note(format!("sms {} {}", order.to.as_str(), order.text))
        }

        fn call_history(&self, _: ToolContext, order: HistoryOrder) -> BoxFuture<'static, Result<Value, ToolError>> {
            let span = order.from.zip(order.to).map(|(from, to)| (to - from).total(jiff::Unit::Hour).unwrap());
            self.note(format!("history {:?} {span:?} {}", order.status, order.limit))
        }
    }

    const ALL: Abilities = Abilities { call: true, message: true, history: true };

    fn names(abilities: Abilities) -> Vec<String> {
        let telephone: Arc<dyn Telephone> = Arc::new(Fake { abilities, ..Fake::default() });
        let mut registry = ToolRegistry::default();
        provision(&telephone, &mut registry);
        registry.names().map(str::to_owned).collect()
    }

    async fn run(name: &str, arguments: Value) -> (ToolResult, Vec<String>) {
        let fake = Arc::new(Fake { abilities: ALL, ..Fake::default() });
        let telephone: Arc<dyn Telephone> = fake.clone();
        let mut registry = ToolRegistry::default();
        provision(&telephone, &mut registry);
        let tools = ToolBox::new([name], &registry).unwrap();
        let cx = ToolContext::new(CallId::new(), PhoneNumber::default(), PhoneNumber::default());
        let call = ToolCall { id: "c".into(), name: name.into(), arguments: arguments.to_string() };
        let result = tools.run(&call, cx, Duration::from_secs(5)).await;
        let orders = fake.orders.lock().unwrap().clone();
        (result, orders)
    }

    #[test]
    fn an_agent_is_offered_what_the_integrations_can_do_and_nothing_else() {
        assert_eq!(names(ALL), ["get_call_history", "make_call", "send_sms"]);
        assert_eq!(
            names(Abilities { call: true, message: false, history: true }),
            ["get_call_history", "make_call"],
            "Ringostat and Binotel"
        );
        assert!(names(Abilities::default()).is_empty());
    }

    #[tokio::test]
    async fn orders_reach_the_telephone_as_they_were_written() {
        let (result, orders) =
            run("make_call", json!({ "to": "+380441234567", "greeting": " Hi! ", "purpose": "Confirm seven." })).await;
        assert!(result.ok);
        assert_eq!(orders, [r#"call +380441234567 Some("Hi!") Some("Confirm seven.")"#]);
        let (_, orders) = run("make_call", json!({ "to": "+380441234567" })).await;
        assert_eq!(orders, ["call +380441234567 None None"]);
        let (_, orders) = run("send_sms", json!({ "to": "+380441234567", "text": "See you" })).await;
        assert_eq!(orders, ["sms +380441234567 See you"]);
        let (_, orders) = run("get_call_history", json!({})).await;
        assert_eq!(orders, ["history None None 10"]);
        let (_, orders) =
            run("get_call_history", json!({ "status": "busy", "from": "2026-03-02", "to": "2026-03-03", "limit": 3 }))
                .await;
        assert_eq!(orders, [r#"history Some("busy") Some(48.0) 3"#], "both days, whole");
    }

    #[tokio::test]
    async fn arguments_that_make_no_sense_reach_nobody() {
        for (name, arguments, problem) in [
            ("send_sms", json!({ "to": "+380441234567", "text": "  " }), "nothing to send"),
            ("send_sms", json!({ "to": "+380441234567" }), "text"),
            ("make_call", json!({}), "to"),
            ("get_call_history", json!({ "status": "lost" }), "status"),
            ("get_call_history", json!({ "from": "yesterday" }), "no date"),
            ("get_call_history", json!({ "from": "2026-03-03", "to": "2026-03-01" }), "from is after to"),
            ("get_call_history", json!({ "limit": 51 }), "limit"),
        ] {
            let (result, orders) = run(name, arguments.clone()).await;
            assert!(!result.ok && result.content.contains(problem), "{name} {arguments}: {}", result.content);
            assert!(orders.is_empty());
        }
    }
}
