//! What a company has that its agents name: tools and knowledge bases. They must be there when an agent is saved, whoever
//! saves it.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::agent::profile::AgentProfile;
use crate::agent::tools::is_builtin;
use crate::store::db::args;
use crate::store::{Store, StoreError};

/// Names of one kind that a fault lists.
const LISTED: usize = 20;

/// What one company has, by name.
#[derive(Debug, Default)]
pub struct Belongings {
    /// With what kind of tool each is; `None`: nobody knows, and any use of it may be right.
    tools: BTreeMap<String, Option<String>>,
    knowledge: BTreeSet<String>,
}

/// A name in an agent's profile that stands for nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing {
    /// `tools` or `knowledge`.
    pub field: &'static str,
    /// In the field's list.
    pub index: usize,
    pub problem: String,
}

impl Belongings {
    pub(super) fn add_tool(&mut self, name: &str, kind: Option<&str>) {
        self.tools.insert(name.to_owned(), kind.map(str::to_owned));
    }

    pub(super) fn add_knowledge(&mut self, name: &str) {
        self.knowledge.insert(name.to_owned());
    }

    /// What a profile names and the company lacks.
    pub fn missing(&self, profile: &AgentProfile) -> Vec<Missing> {
        let tools = profile.tools.iter().enumerate().filter(|(_, tool)| !self.has_tool(tool)).map(|(index, tool)| {
            let made = self.tools.iter().map(|(name, kind)| match kind.as_deref() {
                Some("mcp") => format!("{name}.*"),
                _ => name.clone(),
            });
            let problem = format!("no tool {tool:?} of the program or the company, which has {}", listed(made));
            Missing { field: "tools", index, problem }
        });
        let knowledge = profile.knowledge.iter().enumerate().filter(|(_, name)| !self.knowledge.contains(*name));
        let knowledge = knowledge.map(|(index, name)| {
            let problem = format!("no knowledge base {name:?} of the company, which has {}", listed(&self.knowledge));
            Missing { field: "knowledge", index, problem }
        });
        tools.chain(knowledge).collect()
    }

    /// A server's tools are known when it answers; here, the server is.
    fn has_tool(&self, name: &str) -> bool {
        let (made, kind) = match name.split_once('.') {
            Some((server, _)) => (server, "mcp"),
            None => (name, "http"),
        };
        is_builtin(name) || self.tools.get(made).is_some_and(|is| is.as_deref().is_none_or(|is| is == kind))
    }
}

fn listed(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("{:?}", name.as_ref())).collect();
    match names.len() {
        0 => "none".into(),
        all @ 0..=LISTED => names[..all].join(", "),
        all => format!("{} and {} more", names[..LISTED].join(", "), all - LISTED),
    }
}

impl Store {
    /// What agents of this company may name.
    pub async fn belongings(&self, company: Uuid) -> Result<Belongings, StoreError> {
        let mut there = Belongings::default();
        let tools: Vec<(String, String)> = self
            .db
            .all("SELECT name, kind FROM tool WHERE company_id = $1 ORDER BY name LIMIT 1000", args![company])
            .await?;
        for (name, kind) in &tools {
            there.add_tool(name, Some(kind));
        }
        let bases: Vec<(String,)> = self
            .db
            .all("SELECT name FROM knowledge_base WHERE company_id = $1 ORDER BY name LIMIT 1000", args![company])
            .await?;
        for (name,) in &bases {
            there.add_knowledge(name);
        }
        Ok(there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let mut there = Belongings::default();
        let profile = AgentProfile {
            tools: ["send_dtmf", "free_rooms", "crm.find", "fly", "free_rooms.x", "crm", "odd.x"]
                .map(Into::into)
                .into(),
            knowledge: vec!["Hotel".into(), "Menu".into()],
            ..AgentProfile::default()
        };
        let missing = there.missing(&profile);
        assert_eq!(missing.len(), 8);
        assert_eq!(missing[7].problem, r#"no knowledge base "Menu" of the company, which has none"#);
        there.add_tool("free_rooms", Some("http"));
        there.add_tool("crm", Some("mcp"));
        there.add_tool("odd", None);
        there.add_knowledge("Hotel");
        let missing = there.missing(&profile);
        let places: Vec<_> = missing.iter().map(|it| (it.field, it.index)).collect();
        assert_eq!(places, [("tools", 3), ("tools", 4), ("tools", 5), ("knowledge", 1)]);
        let problem = r#"no tool "fly" of the program or the company, which has "crm.*", "free_rooms", "odd""#;
        assert_eq!(missing[0].problem, problem);
        for number in 0..30 {
            there.add_knowledge(&format!("Base {number:02}"));
        }
        assert!(there.missing(&profile)[3].problem.ends_with(r#""Base 19" and 11 more"#));
    }
}
