//! The graph as a whole: every node can be reached, and no way turns in a circle without the caller.

use std::collections::BTreeSet;

use super::read::Reader;
use super::{Action, Kind, Node, NodeId, Workflow};

impl Reader {
    pub(super) fn check_graph(&self, workflow: &Workflow) {
        let place = |node: NodeId| format!("node \"{}\"", workflow.nodes[node].id);
        let mut reached = BTreeSet::new();
        let mut open = vec![workflow.start, workflow.fallback.give_up];
        open.extend(workflow.rules.iter().flat_map(|rule| targets(&rule.action)));
        while let Some(node) = open.pop() {
            if reached.insert(node) {
                open.extend(next_nodes(&workflow.nodes[node]));
            }
        }
        for node in 0..workflow.nodes.len() {
            if !reached.contains(&node) {
                self.fault(&place(node), "id", "cannot be reached; name it in a goto, or remove the node");
            }
        }
        self.check_loops(workflow);
    }

    /// A way from a node back to itself that never waits for the caller would say the same for ever. A `collect` node
    /// waits unless all its slots are filled, so a way that clears one of them is no loop.
    fn check_loops(&self, workflow: &Workflow) {
        for start in 0..workflow.nodes.len() {
            let mut path = vec![start];
            let mut visited = BTreeSet::new();
            if let Some(path) = find_loop(workflow, start, &mut path, &mut visited) {
                // Each loop is reported once, at its first node in the file.
                if path.iter().min() == Some(&start) {
                    let ids: Vec<&str> =
                        path.iter().chain([&start]).map(|&node| workflow.nodes[node].id.as_str()).collect();
                    let problem =
                        format!("{} never waits for the caller; put a listen node in between", ids.join(" → "));
                    self.fault(&format!("node \"{}\"", workflow.nodes[start].id), "goto", problem);
                }
            }
        }
    }
}

fn targets(action: &Action) -> impl Iterator<Item = NodeId> {
    action.goto.into_iter().chain(action.failed.as_ref().and_then(|failed| failed.goto))
}

/// Where a node may lead, with or without the caller.
fn next_nodes(node: &Node) -> Vec<NodeId> {
    let mut next: Vec<NodeId> = node.when.iter().flat_map(|rule| targets(&rule.action)).collect();
    next.extend(node.retry.iter().map(|retry| retry.give_up));
    if let Kind::Llm(talk) = &node.kind {
        next.extend(talk.exits.iter().map(|exit| exit.goto));
        next.extend([talk.give_up].into_iter().chain(talk.goto).chain(talk.failed.goto));
    }
    next.extend(instant_nodes(node));
    next
}

/// Where a node may lead at once. A model is asked for a way on; without a model its node leads to `failed`.
fn instant_nodes(node: &Node) -> Vec<NodeId> {
    match &node.kind {
        Kind::Listen { .. } => Vec::new(),
        Kind::Collect { goto, .. } => vec![*goto],
        Kind::Do(action) => targets(action).collect(),
        Kind::Branch { ways, otherwise } => ways.iter().map(|(_, goto)| *goto).chain([*otherwise]).collect(),
        Kind::Knowledge(search) => [search.goto].into_iter().chain(search.failed.goto).collect(),
        Kind::Llm(talk) => vec![talk.failed.goto.unwrap_or(talk.give_up)],
    }
}

fn find_loop(
    workflow: &Workflow,
    start: NodeId,
    path: &mut Vec<NodeId>,
    visited: &mut BTreeSet<NodeId>,
) -> Option<Vec<NodeId>> {
    let here = *path.last().expect("the path begins with its start");
    for next in instant_nodes(&workflow.nodes[here]) {
        if next == start {
            let cleared: Vec<&String> = path
                .iter()
                .filter_map(|&node| match &workflow.nodes[node].kind {
                    Kind::Do(action) => Some(&action.clear),
                    _ => None,
                })
                .flatten()
                .collect();
            let waits = path.iter().any(|&node| match &workflow.nodes[node].kind {
                Kind::Collect { slots, .. } => slots.iter().any(|slot| cleared.contains(&slot)),
                _ => false,
            });
            if !waits {
                return Some(path.clone());
            }
        } else if visited.insert(next) {
            path.push(next);
            let found = find_loop(workflow, start, path, visited);
            path.pop();
            if found.is_some() {
                return found;
            }
        }
    }
    None
}
