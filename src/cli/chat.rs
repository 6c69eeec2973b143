//! `offhook chat AGENT`: talks with an agent in the terminal, in writing. What is typed is what the caller says; lines
//! that begin with `/` are for the program. Reads a pipe as well.

use std::io::{self, BufRead, IsTerminal as _, Read as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::sync::mpsc;

use crate::agent::variables::Vars;
use crate::call::thread::Telling;
use crate::cli::rehearsal::{Stage, Talk, bare_agent, heard_of};
use crate::config::Config;
use crate::eval::props::{Pace, Props};
use crate::eval::scenario::{After, Facts};
use crate::telephony::PhoneNumber;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The agent's name, or a workflow file (.toml)
    agent: String,
    /// The set-up file that has the agent; without it, the store
    #[arg(long, value_name = "FILE")]
    setup: Option<PathBuf>,
    /// Whose agent, where several companies have one of this name; of a workflow file, the name it speaks for
    #[arg(long, value_name = "NAME")]
    company: Option<String>,
    /// Show the tools that the agent uses: name, arguments, result
    #[arg(long)]
    tools: bool,
    /// Let tools ring, write and ask for real: calls are placed, messages cost money
    #[arg(long)]
    real_tools: bool,
    /// Another language model than the agent's own, as `openai`
    #[arg(long, value_name = "ENGINE")]
    llm: Option<String>,
    /// The caller's number
    #[arg(long, default_value = "+15550002222", value_name = "NUMBER")]
    caller: String,
    /// What is given with the call, as order_id=A-17: {vars.order_id} in a workflow, a fact to a model
    #[arg(long = "var", value_name = "NAME=VALUE")]
    vars: Vec<String>,
    /// What the call's webhook tells, as FromCity=Kyiv: {webhook.FromCity} in a workflow
    #[arg(long = "webhook", value_name = "NAME=VALUE")]
    fields: Vec<String>,
}

/// Longest line that is read, in bytes.
const MAX_LINE: u64 = 16 * 1024;
/// Lines that wait while the agent answers.
const LINES: usize = 64;

const HELP: &str = "\
  /state       where the conversation is: node, slots, what is expected, what was noted
  /tools       show the tools that the agent uses, or hide them
  /keys 123#   press keys on the telephone
  /heard N     the next line interrupts: of the last answer, only N words were heard
  /quit        hang up";

pub async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    let file = PathBuf::from(&args.agent);
    let is_file = args.agent.ends_with(".toml") && args.setup.is_none() && file.is_file();
    let bare = if is_file { Some(bare_agent(&file, args.company.as_deref())?) } else { None };
    let stage = Stage::open(&config, args.setup.as_deref(), args.real_tools).await?;
    let cast = match bare {
        Some(cast) => cast,
        None => stage.agent(&args.agent, args.company.as_deref())?,
    };
    let cast = cast.with(args.llm.as_deref(), &[]);
    let limit = Duration::from_millis(config.turn.with(&cast.profile.turn).tool_limit_ms);
    let props = Props { stubs: Vec::new(), pace: Pace::Real, limit, real: args.real_tools };
    let vars = Vars::of_pairs(&args.vars).map_err(|fault| anyhow!("--var: {fault}"))?;
    let pairs = args
        .fields
        .iter()
        .map(|pair| pair.split_once('=').with_context(|| format!("--webhook {pair}: write NAME=VALUE")));
    let fields = pairs.collect::<anyhow::Result<Vec<_>>>()?.into_iter().collect();
    let facts = Facts { caller: PhoneNumber::new(&*args.caller), vars, fields, ..Facts::default() };
    let talk = Talk::begin(&stage, &cast, &props, &facts)?;
    let mut screen = Screen::new(io::stdout(), args.tools, io::stdin().is_terminal());
    let specs = talk.tools();
    let of = if cast.company == cast.profile.name { String::new() } else { format!(" of {}", cast.company) };
    screen.note(&format!("{}{of}, answered by {}; /help lists what can be done here", cast.profile.name, talk.model()));
    let simulated = props.simulated(&specs);
    if !simulated.is_empty() {
        let names = simulated.join(", ");
        screen.note(&format!("simulated, so nobody is rung or written to: {names}; --real-tools uses them for real"));
    }
    if args.real_tools && config.server.public_url.is_none() {
        screen.note("server.public_url is not set: a provider cannot reach this server, so no call can be placed");
    }
    chat(talk, &mut screen, lines()).await;
    stage.close().await;
    Ok(ExitCode::SUCCESS)
}

/// What is typed, line by line. The thread ends with the input, or with the program.
fn lines() -> mpsc::Receiver<String> {
    let (tx, rx) = mpsc::channel(LINES);
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let mut line = Vec::new();
            match (&mut input).take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if tx.blocking_send(String::from_utf8_lossy(&line).trim().to_owned()).is_err() {
                return;
            }
        }
    });
    rx
}

/// Until the agent or the caller hangs up, or the input ends.
async fn chat<W: Write + Send>(mut talk: Talk, screen: &mut Screen<W>, mut lines: mpsc::Receiver<String>) {
    let mut last = talk.greeting().to_owned();
    if !last.is_empty() {
        screen.words(&last);
        screen.line_ends();
    }
    let mut cut: Option<usize> = None;
    while !talk.ended {
        screen.prompt();
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else { break };
        screen.echo(&line);
        let (command, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let keys = match command {
            "" => continue,
            "/quit" | "/exit" => break,
            "/help" => {
                screen.plain(HELP);
                continue;
            }
            "/state" => {
                screen.plain(&state(&talk));
                continue;
            }
            "/tools" => {
                screen.tools = !screen.tools;
                screen.note(if screen.tools { "tools are shown" } else { "tools are hidden" });
                continue;
            }
            "/heard" => {
                cut = rest.trim().parse().ok();
                screen.note(match cut {
                    Some(_) => "the next line interrupts",
                    None => "write how many words were heard, as in /heard 5",
                });
                continue;
            }
            "/keys" if rest.trim().chars().all(|key| key.is_ascii_digit() || "*#".contains(key)) => true,
            "/keys" => {
                screen.note("keys are 0 to 9, * and #, as in /keys 123#");
                continue;
            }
            command if command.starts_with('/') => {
                screen.note(&format!("no such command {command}; /help lists them"));
                continue;
            }
            _ => false,
        };
        if let Some(words) = cut.take() {
            match heard_of(&last, After::Words(words)) {
                Some(heard) => talk.interrupted(heard),
                None => screen.note("the last answer was over by then: nothing was interrupted"),
            }
        }
        let mut watch = |telling: Telling<'_>| match telling {
            Telling::Words(words) => screen.words(words),
            Telling::Tool(call, result) => screen.tool(&call.name, &call.arguments, &result.content),
        };
        let answered = match keys {
            true => talk.keys(rest.trim(), &mut watch).await,
            false => talk.hears(&line, &mut watch).await,
        };
        screen.line_ends();
        match answered {
            Ok(written) => last = written.text,
            Err(error) => {
                screen.note(&format!("no answer: {error}"));
                last.clear();
            }
        }
    }
    if let Some(reason) = &talk.handover {
        screen.note(&format!("handed over to a person: {reason}"));
    }
    screen.note(if talk.ended { "the agent hung up" } else { "you hung up" });
}

fn state(talk: &Talk) -> String {
    let mut lines = Vec::new();
    match talk.progress() {
        Some(progress) => {
            lines.push(format!("  node      {}", progress.node));
            lines.push(format!("  expects   {}", progress.expectation.label()));
            for (slot, value) in &progress.slots {
                lines.push(format!("  slot      {slot} = {} ({})", value.value, value.spoken));
            }
        }
        None => lines.push(format!("  answered by {}, which follows no graph", talk.model())),
    }
    for (key, value) in &talk.remembered {
        lines.push(format!("  noted     {key} = {value}"));
    }
    if let Some(reason) = &talk.handover {
        lines.push(format!("  handover  {reason}"));
    }
    lines.join("\n")
}

/// Where the conversation is written. A broken pipe ends the printing, not the conversation.
struct Screen<W> {
    out: W,
    tools: bool,
    /// A person types: the terminal shows what, and waits for it with a prompt.
    typed: bool,
    /// A line of the agent's has begun.
    open: bool,
}

impl<W: Write> Screen<W> {
    fn new(out: W, tools: bool, typed: bool) -> Self {
        Self { out, tools, typed, open: false }
    }

    /// A piece of the answer, as it comes.
    fn words(&mut self, words: &str) {
        let begin = if std::mem::replace(&mut self.open, true) { "" } else { "agent   " };
        let words = if begin.is_empty() { words } else { words.trim_start() };
        let _ = write!(self.out, "{begin}{}", clean(words));
        let _ = self.out.flush();
    }

    fn line_ends(&mut self) {
        if std::mem::take(&mut self.open) {
            let _ = writeln!(self.out);
        }
    }

    fn tool(&mut self, name: &str, arguments: &str, result: &str) {
        if self.tools {
            self.plain(&format!("        {} {} → {}", clean(name), clean(arguments), clean(result)));
        }
    }

    /// Something that nobody said.
    fn note(&mut self, text: &str) {
        self.plain(&format!("({})", clean(text)));
    }

    fn plain(&mut self, text: &str) {
        self.line_ends();
        let _ = writeln!(self.out, "{text}");
        let _ = self.out.flush();
    }

    fn prompt(&mut self) {
        if self.typed {
            let _ = write!(self.out, "you     ");
            let _ = self.out.flush();
        }
    }

    /// What came by a pipe, so that the conversation can be read.
    fn echo(&mut self, line: &str) {
        if !self.typed && !line.is_empty() {
            self.plain(&format!("you     {}", clean(line)));
        }
    }
}

/// What was typed or generated may hold control characters.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_line_and_a_tool_stands_between_its_parts() {
        let mut screen = Screen::new(Vec::new(), true, false);
        screen.echo("book\u{1b}[2J it");
        screen.words(" One");
        screen.words(" moment.");
        screen.tool("remember", "{}", "{\"ok\":true}");
        screen.words("It is booked.");
        screen.line_ends();
        screen.note("the agent hung up");
        assert_eq!(
            String::from_utf8(screen.out).unwrap(),
            "you     book [2J it\nagent   One moment.\n        remember {} → {\"ok\":true}\nagent   It is booked.\n\
             (the agent hung up)\n"
        );
    }
}
