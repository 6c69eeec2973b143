//! `offhook load`: replays recorded callers against a media endpoint, ours or anyone's, and holds what they measured
//! against a budget.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};

use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::load::caller::{self, CallerConfig, CallerReport, Recording, Way};
use crate::load::fixture::{Fixture, RATE_HZ};
use crate::load::phones::Phones;
use crate::load::report::{Budget, LoadReport, Run};
use crate::load::rtp::Codec;
use crate::load::sip::SipWay;
use crate::protocol::sip::digest::Credentials;
use crate::protocol::sip::value::SipUri;

/// A run that measured its own lateness, not the server.
const EXIT_VOID: u8 = 3;
/// Calls failed, or the budget is broken.
const EXIT_FAILED: u8 = 1;
/// More callers than this from one process would measure the process.
const MAX_CALLS: usize = 10_000;
/// How long the telephones may take to say goodbye.
const GOODBYE_LIMIT: Duration = Duration::from_secs(3);
/// Reports kept for the result: with `--duration`, an endless run ends here.
const MAX_REPORTS: usize = 100_000;

#[derive(clap::Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("way").required(true))]
pub struct Args {
    /// The media endpoint itself (ws:// or wss://)
    #[arg(long, group = "way", value_name = "URL")]
    pub ws: Option<String>,
    /// The voice webhook; it is posted signed, and the stream of its TwiML is connected to
    #[arg(long, group = "way", value_name = "URL", requires = "auth_token")]
    pub webhook: Option<String>,
    /// A SIP address that telephones call over UDP, speaking RTP: sip:+15550001111@127.0.0.1:5060
    #[arg(long, group = "way", value_name = "URI")]
    pub sip: Option<String>,
    /// With --sip: the user by whose password calls are let in, where the server asks for one
    #[arg(long, requires = "password", value_name = "USER")]
    pub user: Option<String>,
    /// With --sip: its password
    #[arg(long, env = "OFFHOOK_LOAD_SIP_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    pub password: Option<SecretString>,
    /// With --sip: the codec that is offered
    #[arg(long, value_enum, default_value_t)]
    pub codec: Codec,
    /// Twilio auth token that signs the webhook and the handshake
    #[arg(long, env = "OFFHOOK_LOAD_AUTH_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub auth_token: Option<SecretString>,
    /// Account that the calls claim to come through
    #[arg(long, default_value = "AC00000000000000000000000000000000")]
    pub account_sid: String,
    /// The callers' number
    #[arg(long, default_value = "+15550002222")]
    pub from: String,
    /// The number that is called
    #[arg(long, default_value = "+15550001111")]
    pub to: String,
    /// With --ws: a custom parameter of the stream; may be repeated
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parameter)]
    pub parameters: Vec<(String, String)>,
    /// Callers; each calls once, or over and over with --duration
    #[arg(long, default_value_t = 1)]
    pub calls: usize,
    /// Calls a second at which the callers start, at random times (a Poisson process); without it all start at once
    #[arg(long, value_name = "CALLS_PER_S", conflicts_with = "ramp_ms")]
    pub ramp: Option<f64>,
    /// Mean time between two callers' starts, milliseconds; another way to say --ramp
    #[arg(long, value_name = "MS")]
    pub ramp_ms: Option<u64>,
    /// Seed of the random start times: the same seed, the same times
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Callers call again until so many seconds have passed; running calls are seen through
    #[arg(long, value_name = "SECONDS")]
    pub duration: Option<u64>,
    /// The recorded caller: a name under --fixtures, or a folder with a call.toml; may be repeated, callers take turns
    #[arg(long = "fixture", value_name = "NAME", default_value = "booking")]
    pub fixture_names: Vec<String>,
    /// The folder of recorded callers
    #[arg(long, default_value = "audio-fixtures", value_name = "DIR")]
    pub fixtures: PathBuf,
    /// Limits as `reply_p50=600ms,barge_in_p95=200ms,failures=0`; a broken one makes the exit code 1
    #[arg(long, default_value = "", value_name = "LIMITS")]
    pub budget: Budget,
    /// Longest call, seconds; with --sip, 0 hangs up as soon as the call is answered: INVITE to 200 alone is measured
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub call_limit: u64,
    /// Silence after which a turn counts as unanswered and the call is given up, seconds
    #[arg(long, default_value_t = 15, value_name = "SECONDS")]
    pub reply_limit: u64,
    /// Write everything measured, row by row
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a page to read
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write a stereo recording of every call: left the caller, right what it heard
    #[arg(long, value_name = "DIR")]
    pub record: Option<PathBuf>,
}

fn parameter(text: &str) -> Result<(String, String), String> {
    text.split_once('=').map(|(name, value)| (name.into(), value.into())).ok_or("write NAME=VALUE".into())
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let report = measure(&args).await?;
    if let Some(path) = &args.json {
        let json = serde_json::to_vec_pretty(&report).context("the report as JSON")?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.html {
        let html = report.html().context("the report as HTML")?;
        std::fs::write(path, html).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("{}", report.text());
    Ok(match (&report.void, report.passed()) {
        (Some(_), _) => ExitCode::from(EXIT_VOID),
        (None, true) => ExitCode::SUCCESS,
        (None, false) => ExitCode::from(EXIT_FAILED),
    })
}

/// Runs the calls and collects what they measured. Ctrl-C hangs up and reports what there is.
pub async fn measure(args: &Args) -> anyhow::Result<LoadReport> {
    if args.calls == 0 || args.calls > MAX_CALLS {
        bail!("--calls is between 1 and {MAX_CALLS}");
    }
    let calls_per_s = match (args.ramp, args.ramp_ms) {
        (Some(rate), _) if !(rate.is_finite() && rate > 0.0) => bail!("--ramp is a number above 0"),
        (Some(rate), _) => Some(rate),
        (None, Some(ms)) if ms > 0 => Some(1_000.0 / ms as f64),
        (None, _) => None,
    };
    let fixtures = args
        .fixture_names
        .iter()
        .map(|name| Fixture::find(&args.fixtures, name).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(dir) = &args.record {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let Joined { way, target, phones } = join(args).await?;

    let hang_up = CancellationToken::new();
    let progress = progress(args);
    let began = Instant::now();
    let until = args.duration.map(|seconds| began + Duration::from_secs(seconds));
    let open = Arc::new(Open::default());
    let mut callers = JoinSet::new();
    for (index, start) in starts(args.calls, calls_per_s, args.seed).into_iter().enumerate() {
        let mut config = CallerConfig::new(way.clone(), Arc::clone(&fixtures[index % fixtures.len()]));
        config.account_sid.clone_from(&args.account_sid);
        config.from.clone_from(&args.from);
        config.to.clone_from(&args.to);
        config.record = args.record.is_some();
        config.call_limit = Duration::from_secs(args.call_limit);
        config.reply_limit = Duration::from_secs(args.reply_limit);
        config.hang_up = hang_up.clone();
        let (open, progress) = (Arc::clone(&open), progress.clone());
        let each = MAX_REPORTS / args.calls;
        callers.spawn(async move { line(config, began + start, until, each, &open, &progress).await });
    }
    drop(way);

    let mut calls = Vec::new();
    loop {
        tokio::select! {
            finished = callers.join_next() => match finished {
                Some(reports) => calls.extend(reports.context("a caller's task failed")?),
                None => break,
            },
            Ok(()) = tokio::signal::ctrl_c(), if !hang_up.is_cancelled() => hang_up.cancel(),
        }
    }
    progress.finish_and_clear();
    if let Some(phones) = phones {
        // Every handle is dropped: the last goodbyes are on their way.
        let _ = timeout(GOODBYE_LIMIT, phones).await;
    }
    if let Some(dir) = &args.record {
        for (index, call) in calls.iter_mut().enumerate() {
            if let Some(recording) = call.recording.take() {
                let path = dir.join(format!("call-{:04}.wav", index + 1));
                write_wav(&path, &recording).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
    }
    let run = Run {
        target,
        fixtures: fixtures.iter().map(|fixture| fixture.name.clone()).collect(),
        calls: calls.len(),
        calls_per_s,
        seed: args.seed,
        duration_s: began.elapsed().as_secs_f64(),
        peak_calls: open.peak.load(Ordering::Relaxed),
    };
    Ok(LoadReport::new(run, &args.budget, calls))
}

/// One caller: one call, or calls until the time is over.
async fn line(
    config: CallerConfig,
    start: Instant,
    until: Option<Instant>,
    at_most: usize,
    open: &Open,
    progress: &ProgressBar,
) -> Vec<CallerReport> {
    let mut reports = Vec::new();
    tokio::select! {
        () = config.hang_up.cancelled() => return reports,
        () = sleep_until(start) => {}
    }
    loop {
        let now_open = open.now.fetch_add(1, Ordering::Relaxed) + 1;
        open.peak.fetch_max(now_open, Ordering::Relaxed);
        progress.set_message(format!("{now_open} open"));
        let report = caller::call(config.clone()).await;
        open.now.fetch_sub(1, Ordering::Relaxed);
        let refused = report.connect_ms.is_none();
        reports.push(report);
        progress.inc(1);
        // A server that refuses calls would be asked again at once, for ever.
        let again = until.is_some_and(|until| Instant::now() < until) && !refused && reports.len() < at_most;
        if !again || config.hang_up.is_cancelled() {
            return reports;
        }
    }
}

/// How many calls are open, and were at most.
#[derive(Default)]
struct Open {
    now: AtomicUsize,
    peak: AtomicUsize,
}

/// When each caller starts. At a rate, the times between two are exponential: callers do not come in step.
fn starts(calls: usize, calls_per_s: Option<f64>, seed: u64) -> Vec<Duration> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut at = 0.0;
    (0..calls)
        .map(|_| {
            let start = Duration::from_secs_f64(at);
            if let Some(rate) = calls_per_s {
                // `random` is below 1, so the logarithm is of a number above 0; a rate near 0 must not overflow.
                at += (-(1.0 - rng.random::<f64>()).ln() / rate).min(86_400.0);
            }
            start
        })
        .collect()
}

/// The way in, how it is shown, and whose task ends when the calls have.
struct Joined {
    way: Way,
    target: String,
    phones: Option<JoinHandle<()>>,
}

async fn join(args: &Args) -> anyhow::Result<Joined> {
    let (way, phones) = match (&args.ws, &args.webhook, &args.auth_token, &args.sip) {
        (Some(url), _, auth_token, _) => {
            let parameters = args.parameters.clone();
            (Way::Ws { url: url.clone(), parameters, auth_token: auth_token.clone() }, None)
        }
        (None, Some(url), Some(auth_token), _) => {
            let client = caller::http_client().context("cannot make an HTTP client")?;
            (Way::Webhook { url: url.clone(), auth_token: auth_token.clone(), client }, None)
        }
        (None, None, _, Some(uri)) => {
            let (way, phones) = telephones(args, uri).await?;
            (Way::Sip(Box::new(way)), Some(phones))
        }
        _ => bail!("name --ws URL, --webhook URL with --auth-token, or --sip URI"),
    };
    Ok(Joined { way, target: target(args), phones })
}

/// Telephones on one socket, for the address that `uri` has at this moment.
async fn telephones(args: &Args, uri: &str) -> anyhow::Result<(SipWay, JoinHandle<()>)> {
    let mut uri = SipUri::parse(uri).with_context(|| format!("{uri} is no SIP address"))?;
    let port = uri.port.unwrap_or(5060);
    let host = uri.host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let found = tokio::net::lookup_host((host.as_str(), port)).await;
    let far = found.ok().and_then(|mut found| found.next()).with_context(|| format!("{host} has no address"))?;
    // Looked up once, not by every call.
    (uri.host, uri.port) = (crate::protocol::sip::value::host_of(far.ip()), Some(port));
    let any = if far.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let opened = Phones::open(SocketAddr::new(any, 0), Some(far), None);
    let (phones, task) = opened.context("cannot open a socket for SIP")?;
    let credentials = args
        .user
        .as_ref()
        .zip(args.password.as_ref())
        .map(|(user, password)| Credentials { user: user.clone(), password: password.expose_secret().to_owned() });
    Ok((SipWay { credentials, codec: args.codec, ..SipWay::new(phones, uri) }, task))
}

/// Without path and query, which may hold a token, and without the user of a SIP address, which is a number.
fn target(args: &Args) -> String {
    match (args.ws.as_ref().or(args.webhook.as_ref()), &args.sip) {
        (Some(url), _) => url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/"),
        (None, Some(uri)) => {
            let rest = uri.split_once(':').map_or(uri.as_str(), |(_, rest)| rest);
            format!("sip:{}", rest.rsplit_once('@').map_or(rest, |(_, host)| host))
        }
        (None, None) => String::new(),
    }
}

fn progress(args: &Args) -> ProgressBar {
    let bar = match args.duration {
        Some(_) => ProgressBar::new_spinner(),
        None => ProgressBar::new(args.calls as u64),
    };
    let template = match args.duration {
        Some(_) => "{elapsed_precise} {pos} calls done, {msg}",
        None => "{elapsed_precise} {bar:40} {pos}/{len} calls done, {msg}",
    };
    bar.with_style(ProgressStyle::with_template(template).expect("both templates are valid"))
}

/// Left the caller, right the agent.
pub fn write_wav(path: &std::path::Path, recording: &Recording) -> Result<(), hound::Error> {
    let spec = hound::WavSpec {
        channels: 2,
        sample_rate: RATE_HZ,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(path, spec)?;
    let length = recording.caller.len().max(recording.agent.len());
    for n in 0..length {
        writer.write_sample(recording.caller.get(n).copied().unwrap_or(0))?;
        writer.write_sample(recording.agent.get(n).copied().unwrap_or(0))?;
    }
    writer.finalize()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn callers_start_at_the_wanted_rate_and_at_the_same_times_for_the_same_seed() {
        let first = starts(2_000, Some(10.0), 7);
        assert_eq!(first, starts(2_000, Some(10.0), 7));
        assert_ne!(first, starts(2_000, Some(10.0), 8));
        // 2000 exponential gaps of 100 ms: the sum is 200 s ± 4.5 s (one sigma is 100 ms × √2000).
        let last = first[1_999].as_secs_f64();
        assert!((185.0..215.0).contains(&last), "{last}");
        assert!(starts(5, None, 1).iter().all(Duration::is_zero));
    }

    #[test]
    fn what_is_shown_of_a_url_holds_no_token() {
        let shown = |way: &[&str]| {
            let cli = Command::parse_from([&["load"], way].concat());
            target(&cli.args)
        };
        assert_eq!(shown(&["--ws", "wss://host:8443/media/twilio/secret?x=1"]), "wss://host:8443");
        assert_eq!(shown(&["--sip", "sip:+15550001111@192.0.2.1:5060"]), "sip:192.0.2.1:5060");
        assert_eq!(shown(&["--sip", "sip:trunk.example"]), "sip:trunk.example");
    }

    #[test]
    fn one_way_in_is_named_and_a_user_has_a_password() {
        let parsed = |args: &[&str]| Command::try_parse_from([&["load"], args].concat()).is_ok();
        assert!(parsed(&["--sip", "sip:1@host", "--user", "a", "--password", "b", "--codec", "pcma"]));
        assert!(!parsed(&["--sip", "sip:1@host", "--ws", "ws://host"]));
        assert!(!parsed(&["--sip", "sip:1@host", "--user", "a"]));
        assert!(!parsed(&[]));
    }
}
