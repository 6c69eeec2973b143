//! `offhook load`: replays recorded callers against a media endpoint, ours or anyone's, and holds what they measured
//! against a budget.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};

use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use secrecy::SecretString;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::load::caller::{self, CallerConfig, CallerReport, Recording, Way};
use crate::load::fixture::{Fixture, RATE_HZ};
use crate::load::report::{Budget, LoadReport, Run};

/// A run that measured its own lateness, not the server.
const EXIT_VOID: u8 = 3;
/// Calls failed, or the budget is broken.
const EXIT_FAILED: u8 = 1;
/// More callers than this from one process would measure the process.
const MAX_CALLS: usize = 10_000;
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
    /// Longest call, seconds
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
    let (way, target) = way(args)?;

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

/// The way in, and how it is shown: without path and query, which may hold a token.
fn way(args: &Args) -> anyhow::Result<(Way, String)> {
    let shown = |url: &str| url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
    match (&args.ws, &args.webhook, &args.auth_token) {
        (Some(url), _, auth_token) => {
            let way = Way::Ws { url: url.clone(), parameters: args.parameters.clone(), auth_token: auth_token.clone() };
            Ok((way, shown(url)))
        }
        (None, Some(url), Some(auth_token)) => {
            let client = caller::http_client().context("cannot make an HTTP client")?;
            Ok((Way::Webhook { url: url.clone(), auth_token: auth_token.clone(), client }, shown(url)))
        }
        _ => bail!("name --ws URL, or --webhook URL with --auth-token"),
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
    use super::*;

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
        let args = Args {
            ws: Some("wss://host:8443/media/twilio/secret?x=1".into()),
            webhook: None,
            auth_token: None,
            account_sid: String::new(),
            from: String::new(),
            to: String::new(),
            parameters: vec![],
            calls: 1,
            ramp: None,
            ramp_ms: None,
            seed: 1,
            duration: None,
            fixture_names: vec![],
            fixtures: PathBuf::new(),
            budget: Budget::default(),
            call_limit: 1,
            reply_limit: 1,
            json: None,
            html: None,
            record: None,
        };
        assert_eq!(way(&args).unwrap().1, "wss://host:8443");
    }
}
