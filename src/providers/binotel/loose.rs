//! What PHP writes: forms with bracket keys and JSON in which numbers are texts, and nothing is `""`, `null`, `false`,
//! `[]` or `{}`. All of it becomes one tree in which a list is a map with the keys 0, 1, 2…

use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::Value;

/// Levels of brackets that are told apart; Binotel's webhooks have four.
const MAX_DEPTH: usize = 12;
/// A call with a hundred steps of history has a thousand.
const MAX_PAIRS: usize = 4_096;

/// Prints no value: an answer may hold passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Loose {
    #[default]
    Nothing,
    Text(String),
    Map(BTreeMap<String, Loose>),
}

static NOTHING: Loose = Loose::Nothing;

impl Loose {
    pub fn from_json(value: Value) -> Self {
        match value {
            Value::Null | Value::Bool(false) => Self::Nothing,
            Value::Bool(true) => Self::text_or_nothing("1".to_owned()),
            Value::Number(number) => Self::text_or_nothing(number.to_string()),
            Value::String(text) => Self::text_or_nothing(text),
            Value::Array(items) => {
                Self::map(items.into_iter().enumerate().map(|(index, item)| (index.to_string(), item)))
            }
            Value::Object(entries) => Self::map(entries),
        }
    }

    fn map(entries: impl IntoIterator<Item = (String, Value)>) -> Self {
        let entries: BTreeMap<_, _> = entries.into_iter().map(|(name, value)| (name, Self::from_json(value))).collect();
        if entries.is_empty() { Self::Nothing } else { Self::Map(entries) }
    }

    fn text_or_nothing(text: String) -> Self {
        if text.is_empty() { Self::Nothing } else { Self::Text(text) }
    }

    /// `a[b][0][c]=text`, percent-encoded or not. `None`: more than a webhook holds. The last of equal keys counts.
    pub fn from_form(form: &[u8]) -> Option<Self> {
        let mut root = Self::Nothing;
        for (pairs, (key, value)) in form_urlencoded::parse(form).enumerate() {
            if pairs >= MAX_PAIRS {
                return None;
            }
            let path = path(&key)?;
            root.put(&path, value.into_owned());
        }
        Some(root)
    }

    fn put(&mut self, path: &[&str], value: String) {
        let Some((name, rest)) = path.split_first() else {
            *self = Self::text_or_nothing(value);
            return;
        };
        if !matches!(self, Self::Map(_)) {
            *self = Self::Map(BTreeMap::new());
        }
        let Self::Map(entries) = self else { return };
        // `a[]` is the next index.
        let name = if name.is_empty() { entries.len().to_string() } else { (*name).to_owned() };
        entries.entry(name).or_default().put(rest, value);
    }

    /// Nothing where there is no such entry.
    pub fn get(&self, name: &str) -> &Loose {
        match self {
            Self::Map(entries) => entries.get(name).unwrap_or(&NOTHING),
            _ => &NOTHING,
        }
    }

    /// Empty where it is no text.
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text.trim(),
            _ => "",
        }
    }

    /// A text that can be read so.
    pub fn number<T: FromStr>(&self) -> Option<T> {
        self.text().parse().ok()
    }

    /// Seconds as PHP may write them: whole, with a fraction, negative by mistake.
    pub fn seconds(&self) -> Option<u32> {
        let seconds: f64 = self.number()?;
        seconds.is_finite().then(|| seconds.max(0.0) as u32)
    }

    pub fn is_nothing(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Text(text) => text.trim().is_empty(),
            Self::Map(entries) => entries.values().all(Self::is_nothing),
        }
    }

    /// The entries in the order of a list: 2 before 10.
    pub fn entries(&self) -> Vec<(&str, &Loose)> {
        let Self::Map(entries) = self else { return Vec::new() };
        let mut entries: Vec<(&str, &Loose)> = entries.iter().map(|(name, value)| (name.as_str(), value)).collect();
        entries.sort_by_key(|(name, _)| name.parse::<u64>().unwrap_or(u64::MAX));
        entries
    }

    /// The first text among the names, for fields that have had several.
    pub fn first(&self, names: &[&str]) -> &str {
        names.iter().map(|name| self.get(name).text()).find(|text| !text.is_empty()).unwrap_or_default()
    }
}

impl std::fmt::Debug for Loose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Text(_) => f.write_str("…"),
            Self::Map(entries) => f.debug_map().entries(entries).finish(),
        }
    }
}

/// `a[b][]` is `a`, `b`, nothing. What follows the last closed bracket is left out, as PHP does; an open bracket that
/// never closes belongs to the name. `None`: too deep.
fn path(key: &str) -> Option<Vec<&str>> {
    let Some((name, mut rest)) = key.split_once('[').filter(|(name, rest)| !name.is_empty() && rest.contains(']'))
    else {
        return Some(vec![key]);
    };
    let mut path = vec![name];
    while let Some((part, after)) = rest.split_once(']') {
        path.push(part);
        if path.len() > MAX_DEPTH {
            return None;
        }
        match after.strip_prefix('[') {
            Some(next) => rest = next,
            None => break,
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map<const N: usize>(entries: [(&str, Loose); N]) -> Loose {
        Loose::Map(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn text(text: &str) -> Loose {
        Loose::Text(text.to_owned())
    }

    #[test]
    fn nothing_has_many_forms() {
        for value in [json!(null), json!(""), json!([]), json!({}), json!(false)] {
            assert_eq!(Loose::from_json(value.clone()), Loose::Nothing, "{value}");
        }
        assert!(Loose::from_json(json!({ "id": "", "name": null, "labels": [] })).is_nothing());
        assert!(
            Loose::from_form(b"callDetails[customerData]=")
                .unwrap()
                .get("callDetails")
                .get("customerData")
                .is_nothing()
        );
        assert!(Loose::from_form(b"").unwrap().is_nothing());
    }

    #[test]
    fn numbers_are_numbers_or_texts() {
        let tree = Loose::from_json(json!({ "a": 64, "b": "64", "c": "64.7", "d": -3, "e": "", "f": true, "g": "x" }));
        assert_eq!(tree.get("a"), tree.get("b"));
        assert_eq!(tree.get("a").seconds(), Some(64));
        assert_eq!(tree.get("c").seconds(), Some(64));
        assert_eq!(tree.get("d").seconds(), Some(0));
        assert_eq!(tree.get("e").seconds(), None);
        assert_eq!(tree.get("f").text(), "1");
        assert_eq!(tree.get("g").number::<u64>(), None);
    }

    #[test]
    fn a_list_and_a_map_with_numbers_are_alike() {
        let list = Loose::from_json(json!([{ "a": 1 }, { "a": 2 }]));
        let map_of_lists = Loose::from_json(json!({ "0": { "a": "1" }, "1": { "a": "2" } }));
        assert_eq!(list, map_of_lists);
        assert_eq!(Loose::from_form(b"x[0][a]=1&x[1][a]=2").unwrap().get("x"), &list);
    }

    #[test]
    fn brackets_are_read_plain_and_percent_encoded() {
        let expected = map([("callDetails", map([("historyData", map([("0", map([("waitsec", text("8"))]))]))]))]);
        for form in [
            "callDetails[historyData][0][waitsec]=8",
            "callDetails%5BhistoryData%5D%5B0%5D%5Bwaitsec%5D=8",
            "callDetails%5bhistoryData%5d[0]%5Bwaitsec]=8",
            "callDetails[historyData][][waitsec]=8",
        ] {
            assert_eq!(Loose::from_form(form.as_bytes()).as_ref(), Some(&expected), "{form}");
        }
    }

    #[test]
    fn history_keeps_its_order_beyond_nine_steps() {
        let form: String = (0..12).map(|n| format!("h[{n}][internalNumber]={n}&")).collect();
        let tree = Loose::from_form(form.as_bytes()).unwrap();
        let order: Vec<u64> =
            tree.get("h").entries().iter().map(|(_, step)| step.get("internalNumber").number().unwrap()).collect();
        assert_eq!(order, (0..12).collect::<Vec<_>>());
    }

    #[test]
    fn values_are_decoded_once() {
        let tree = Loose::from_form(
            "a[name]=AI+Agent&a[link]=https%3A%2F%2Fmy%2F%3Fa%253D1&b=%D0%86%D0%B2%D0%B0%D0%BD".as_bytes(),
        )
        .unwrap();
        assert_eq!(tree.get("a").get("name").text(), "AI Agent");
        assert_eq!(tree.get("a").get("link").text(), "https://my/?a%3D1");
        assert_eq!(tree.get("b").text(), "Іван");
    }

    #[test]
    fn the_last_of_contradicting_keys_counts() {
        assert_eq!(Loose::from_form(b"a=1&a[b]=2"), Some(map([("a", map([("b", text("2"))]))])));
        assert_eq!(Loose::from_form(b"a[b]=2&a=1"), Some(map([("a", text("1"))])));
    }

    #[test]
    fn odd_brackets_are_names() {
        for (form, key) in [("a[b=1", "a[b"), ("[a]=1", "[a]"), ("a]=1", "a]"), ("a[=1", "a[")] {
            assert_eq!(Loose::from_form(form.as_bytes()).unwrap().get(key).text(), "1", "{form}");
        }
        assert_eq!(Loose::from_form(b"a[b]c=1").unwrap().get("a").get("b").text(), "1");
    }

    #[test]
    fn more_than_a_webhook_holds_is_refused() {
        let deep = format!("a{}=1", "[b]".repeat(100_000));
        assert_eq!(Loose::from_form(deep.as_bytes()), None);
        assert_eq!(Loose::from_form("a[]=1&".repeat(5_000).as_bytes()), None);
    }

    #[test]
    fn a_tree_prints_no_value() {
        let tree = Loose::from_json(json!({ "endpointData": { "password": "hunter2" } }));
        let printed = format!("{tree:?}");
        assert!(printed.contains("password") && !printed.contains("hunter2"), "{printed}");
    }

    proptest::proptest! {
        #[test]
        fn no_form_makes_it_panic(form in proptest::collection::vec(0u8.., 0..400)) {
            let _ = Loose::from_form(&form);
        }

        #[test]
        fn no_brackets_make_it_panic(form in r"([a-c]|\[|\]|%5B|%5D|=|&|[0-9]){0,120}") {
            if let Some(tree) = Loose::from_form(form.as_bytes()) {
                let _ = (tree.entries().len(), tree.is_nothing(), tree.seconds());
            }
        }

        #[test]
        fn what_a_form_says_is_found_again(names in proptest::collection::vec("[a-z0-9]{1,8}", 1..6), value in "[^\u{0}]{1,20}") {
            let key = names[1..].iter().fold(names[0].clone(), |key, name| format!("{key}[{name}]"));
            let form = form_urlencoded::Serializer::new(String::new()).append_pair(&key, &value).finish();
            let tree = Loose::from_form(form.as_bytes()).unwrap();
            let found = names.iter().fold(&tree, |node, name| node.get(name));
            proptest::prop_assert_eq!(found.text(), value.trim());
        }
    }
}
