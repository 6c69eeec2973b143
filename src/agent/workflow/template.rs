//! Texts and conditions of a workflow, evaluated by MiniJinja in a sandbox: no files, no other templates, a bounded
//! amount of work. A variable stands in single braces, `{day}`, a statement in `{% … %}`.
//!
//! What they see is a [`Scope`]: the slots, what is known of the call (`caller`, `line`, `call`, `company`, `now`), what
//! was given with it (`vars.order_id`), what its webhook or INVITE told under the sender's own names (`webhook.FromCity`,
//! `webhook.X_Order_Id`), the last result of every tool (`tool`), and the caller's last words (`heard`). What is not there is
//! empty.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Object, ObjectRepr};
use minijinja::{Environment, UndefinedBehavior, Value};

use crate::agent::extract::SlotValue;

/// Steps of work for one text; a sentence takes about ten.
const FUEL: u64 = 20_000;
/// Longest text that is made, in characters.
const MAX_CHARS: usize = 20_000;

/// Names beside the slots that a text may use.
pub(super) const NAMES: [&str; 9] = ["caller", "line", "call", "company", "now", "vars", WEBHOOK, "tool", "heard"];
const WEBHOOK: &str = "webhook";
/// What a slot can be asked for: `{day}` as it is said, `{day.value}` for programs, `{day.on}` with its preposition.
const FORMS: [&str; 3] = ["value", "spoken", "on"];

static SANDBOX: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut sandbox = Environment::new();
    let syntax = SyntaxConfig::builder()
        .variable_delimiters("{", "}")
        .block_delimiters("{%", "%}")
        .comment_delimiters("{#", "#}")
        .build();
    sandbox.set_syntax(syntax.expect("the delimiters differ"));
    sandbox.set_undefined_behavior(UndefinedBehavior::Chainable);
    sandbox.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    sandbox.set_fuel(Some(FUEL));
    sandbox
});

/// A text with variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    source: String,
}

/// An expression that holds or does not, e.g. `people.value > 6 and now.hour < 22`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    source: String,
}

/// What is wrong with a text, and the names that it uses.
pub(super) type Read<T> = Result<(T, Vec<String>), String>;

impl Template {
    pub(super) fn parse(text: &str) -> Read<Self> {
        let template = SANDBOX.template_from_str(text).map_err(|error| {
            format!("{}; a variable stands in braces, a brace itself is written {{\"{{\"}}", fault(&error))
        })?;
        let names = template.undeclared_variables(true).into_iter().collect();
        Ok((Self { source: text.to_owned() }, names))
    }

    /// A text without variables.
    pub(super) fn plain(text: &str) -> Self {
        Self { source: text.to_owned() }
    }

    /// The text; what is not known leaves nothing.
    pub fn render(&self, scope: &Scope) -> String {
        if !self.source.contains('{') {
            return self.source.clone();
        }
        match SANDBOX.render_str(&self.source, scope.values()) {
            Ok(text) => match text.char_indices().nth(MAX_CHARS) {
                Some((end, _)) => text[..end].to_owned(),
                None => text,
            },
            Err(error) => {
                tracing::warn!(error = fault(&error), "a text of a workflow could not be made");
                String::new()
            }
        }
    }
}

impl Condition {
    pub(super) fn parse(text: &str) -> Read<Self> {
        let expression = SANDBOX.compile_expression(text).map_err(|error| {
            format!("{}; write a condition such as people.value > 6 or caller.number == \"\"", fault(&error))
        })?;
        let names = expression.undeclared_variables(true).into_iter().collect();
        Ok((Self { source: text.to_owned() }, names))
    }

    /// What cannot be worked out does not hold.
    pub fn holds(&self, scope: &Scope) -> bool {
        let value = SANDBOX.compile_expression(&self.source).and_then(|expression| expression.eval(scope.values()));
        match value {
            Ok(value) => value.is_true(),
            Err(error) => {
                tracing::warn!(error = fault(&error), "a condition of a workflow could not be worked out");
                false
            }
        }
    }
}

/// What is wrong with a name that a text uses; `None`: it is known.
pub(super) fn wrong_name(name: &str, is_slot: impl Fn(&str) -> bool) -> Option<String> {
    let mut path = name.split('.');
    let root = path.next().unwrap_or_default();
    if is_slot(root) {
        return match path.next() {
            Some(form) if !FORMS.contains(&form) => {
                Some(format!("`{{{root}.{form}}}` is unknown; a slot has .value, .spoken and .on"))
            }
            _ => None,
        };
    }
    let known = NAMES.contains(&root) || SANDBOX.globals().any(|(global, _)| global == root);
    (!known).then(|| format!("there is no slot `{root}`"))
}

fn fault(error: &minijinja::Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
}

/// What texts and conditions see.
pub(crate) struct Scope {
    values: BTreeMap<String, Value>,
}

impl Scope {
    /// `facts`: an object whose members are names of their own. A slot hides a fact of the same name.
    pub fn new<'s>(
        facts: &serde_json::Value,
        tools: &BTreeMap<String, serde_json::Value>,
        heard: &str,
        slots: impl Iterator<Item = (&'s String, &'s SlotValue, bool)>,
    ) -> Self {
        let mut values: BTreeMap<String, Value> = BTreeMap::new();
        for (name, fact) in facts.as_object().into_iter().flatten() {
            let value = match fact.as_object().filter(|_| name == WEBHOOK) {
                Some(told) => Value::from_object(Told::new(told)),
                None => Value::from_serialize(fact),
            };
            values.insert(name.clone(), value);
        }
        values.insert("tool".into(), Value::from_serialize(tools));
        values.insert("heard".into(), Value::from(heard));
        for (name, slot, counts) in slots {
            values.insert(name.clone(), Value::from_object(Shown { slot: slot.clone(), counts }));
        }
        Self { values }
    }

    fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }
}

/// A slot in a text.
#[derive(Debug)]
struct Shown {
    slot: SlotValue,
    /// Its value is a number that conditions compare as one.
    counts: bool,
}

impl Object for Shown {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "value" => match self.slot.value.parse::<i64>() {
                Ok(number) if self.counts => Some(Value::from(number)),
                _ => Some(Value::from(self.slot.value.clone())),
            },
            "spoken" => Some(Value::from(self.slot.spoken.clone())),
            "on" => Some(Value::from(self.slot.on.clone())),
            _ => None,
        }
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.slot.spoken)
    }
}

/// What a webhook or an INVITE told: names of header fields have no case (RFC 3261 §7.3.1) and hold hyphens, which a text
/// would read as a minus. So a name is found in any case, and with `_` for what is no letter and no digit in it.
#[derive(Debug)]
struct Told(BTreeMap<String, String>);

impl Told {
    fn new(fields: &serde_json::Map<String, serde_json::Value>) -> Self {
        Self(fields.iter().filter_map(|(name, value)| Some((plain(name), value.as_str()?.to_owned()))).collect())
    }
}

fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
}

impl Object for Told {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(&plain(key.as_str()?)).map(|value| Value::from(value.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scope() -> Scope {
        let day = SlotValue { value: "friday".into(), spoken: "Friday".into(), on: "on Friday".into() };
        let people = SlotValue { value: "7".into(), spoken: "seven".into(), on: "seven".into() };
        let slots = [("day".to_owned(), day, false), ("people".to_owned(), people, true)];
        let facts = json!({
            "caller": { "number": "+380501234567" }, "now": { "hour": 9 },
            "vars": { "order_id": "A-17", "total": 120.5, "paid": false, "note": "{caller.number} {% raw %}" },
            "webhook": { "FromCity": "Kyiv", "SipHeader_X-Order-Id": "B-9" },
        });
        let tools = BTreeMap::from([("price".to_owned(), json!({ "total": 120, "rooms": ["red", "blue"] }))]);
        Scope::new(&facts, &tools, "well, Friday", slots.iter().map(|(name, slot, counts)| (name, slot, *counts)))
    }

    fn text(source: &str) -> String {
        Template::parse(source).unwrap().0.render(&scope())
    }

    fn holds(source: &str) -> bool {
        Condition::parse(source).unwrap().0.holds(&scope())
    }

    #[test]
    fn a_text_shows_the_forms_of_a_slot_and_what_is_known_of_the_call() {
        assert_eq!(text("{day.on} ({day.value}, {day}){gone}{gone.value}."), "on Friday (friday, Friday).");
        assert_eq!(text("{caller.number}: {tool.price.total} for {people}"), "+380501234567: 120 for seven");
        assert_eq!(text("{% if people.value > 6 %}many{% else %}few{% endif %} {\"{\"}"), "many {");
        assert_eq!(text("{tool.price.rooms | join(\", \")}; {heard}"), "red, blue; well, Friday");
        assert_eq!(text("no <b>escapes</b> & none"), "no <b>escapes</b> & none");
    }

    #[test]
    fn a_text_shows_what_was_given_with_the_call_and_what_its_webhook_told() {
        assert_eq!(text("{vars.order_id}, {vars.total}, {vars.gone}."), "A-17, 120.5, .");
        assert_eq!(text("{webhook.FromCity}/{webhook.fromcity}{webhook.ToCity}{webhook.a.b}"), "Kyiv/Kyiv");
        assert_eq!(text("{webhook.SipHeader_X_Order_Id}, {webhook[\"SipHeader_x-order-id\"]}"), "B-9, B-9");
        assert_eq!(text("{vars.note}"), "{caller.number} {% raw %}", "a value is never a text to be made");
        for (source, expected) in [
            ("vars.total > 100", true),
            ("vars.paid", false),
            ("not vars.paid and vars.order_id == \"A-17\"", true),
            ("vars.gone is defined", false),
            ("webhook.FromCity == \"Kyiv\"", true),
            ("webhook.CallerName", false),
        ] {
            assert_eq!(holds(source), expected, "{source}");
        }
        let empty = Scope::new(&json!({}), &BTreeMap::new(), "", std::iter::empty());
        assert_eq!(Template::parse("{vars.a}{webhook.b}.").unwrap().0.render(&empty), ".");
        assert_eq!(wrong_name("vars.order_id", |_| false), None);
        assert_eq!(wrong_name("webhook.FromCity", |_| false), None);
    }

    #[test]
    fn a_condition_compares_numbers_as_numbers() {
        for (source, expected) in [
            ("people.value > 6", true),
            ("people.value > 60", false),
            ("day.value == \"friday\" and now.hour < 10", true),
            ("day.value in [\"saturday\", \"sunday\"]", false),
            ("gone.value > 3", false),
            ("gone is defined", false),
            ("not gone", true),
            ("tool.price.total >= 100", true),
            ("caller.number is startingwith \"+380\"", true),
        ] {
            assert_eq!(holds(source), expected, "{source}");
        }
    }

    #[test]
    fn wrong_texts_and_names_are_named() {
        assert!(Template::parse("{day").unwrap_err().contains("a brace itself is written {\"{\"}"));
        assert!(Template::parse("{% if day %}").is_err());
        assert!(Condition::parse("day ==").unwrap_err().contains("write a condition"));
        let is_slot = |name: &str| name == "day";
        assert_eq!(wrong_name("day.on", is_slot), None);
        assert_eq!(wrong_name("caller.number", is_slot), None);
        assert_eq!(wrong_name("range", is_slot), None);
        assert_eq!(wrong_name("date", is_slot).unwrap(), "there is no slot `date`");
        assert!(wrong_name("day.off", is_slot).unwrap().contains("`{day.off}` is unknown"));
    }

    #[test]
    fn endless_work_is_cut_short() {
        let long = "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}";
        assert_eq!(text(long), "");
        assert!(!holds("range(99999) | map(\"upper\") | list | length == 3"));
        assert!(
            Template::parse("{% include \"/etc/passwd\" %}")
                .map(|(t, _)| t.render(&scope()))
                .unwrap_or_default()
                .is_empty()
        );
        assert!(text("{\"abc\" * 100000}").chars().count() <= MAX_CHARS);
    }
}
