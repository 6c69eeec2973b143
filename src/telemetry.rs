//! Logs and metrics of the process. Both are installed once; asking again is harmless, so that every test may.

use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::util::TryInitError;

use crate::config::{LogFormat, TelemetryConfig};

/// Overrides `telemetry.log`.
pub const LOG_VARIABLE: &str = "OFFHOOK_LOG";

/// Measured values wait in a list until they are put into their buckets; without reads, this keeps the list short.
const UPKEEP: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Correct the setting: a level, or module=level pairs.
    #[error("{name}: {source}; write a level (error, warn, info, debug, trace) or module=level pairs")]
    Filter { name: &'static str, source: tracing_subscriber::filter::ParseError },
    /// Another recorder is installed: metrics go there.
    #[error("metrics are recorded by somebody else in this process")]
    RecorderTaken,
}

/// Installs the subscriber that prints logs to standard error. `filter` is the value of [`LOG_VARIABLE`]. The first
/// call decides; later ones only check their filter.
pub fn install_logs(config: &TelemetryConfig, filter: Option<&str>) -> Result<(), TelemetryError> {
    let (name, filter) = match filter.filter(|filter| !filter.is_empty()) {
        Some(filter) => (LOG_VARIABLE, filter),
        None => ("telemetry.log", config.log.as_str()),
    };
    // That crate logs whole messages of MCP servers, which may hold what a caller said: only for who asks for them.
    let quiet = if filter.trim().is_empty() || filter.contains("rmcp") { "" } else { ",rmcp=off" };
    let filter = EnvFilter::builder()
        .parse(format!("{filter}{quiet}"))
        .map_err(|source| TelemetryError::Filter { name, source })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _installed: Result<(), TryInitError> = match config.log_format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    Ok(())
}

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// One thread at a time installs, so that of two the second finds the first one's recorder.
static INSTALLING: Mutex<()> = Mutex::new(());

/// Installs the recorder behind the `metrics` macros and describes every metric.
pub fn install_metrics() -> Result<(), TelemetryError> {
    let _turn = INSTALLING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if RECORDER.get().is_some() {
        return Ok(());
    }
    let mut builder = PrometheusBuilder::new();
    for histogram in HISTOGRAMS {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(histogram.name.into()), histogram.buckets)
            .expect("no bucket list is empty");
    }
    let handle = builder.install_recorder().map_err(|_| TelemetryError::RecorderTaken)?;
    describe();
    RECORDER.get_or_init(|| handle);
    Ok(())
}

/// All metrics in Prometheus' text format; empty where no recorder is installed.
pub fn render() -> String {
    RECORDER.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// Keeps the recorder's memory bounded until cancelled. The caller owns the task that runs it.
pub async fn upkeep(cancel: CancellationToken) {
    let mut tick = interval(UPKEEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            _ = tick.tick() => {
                if let Some(recorder) = RECORDER.get() {
                    recorder.run_upkeep();
                }
            }
        }
    }
}

struct Histogram {
    name: &'static str,
    /// Upper bounds, seconds.
    buckets: &'static [f64],
    meaning: &'static str,
}

/// Finest around the goals: a reply in 0.5 to 0.6 s, a stop in 0.1 to 0.2 s.
const CONVERSATION: &[f64] = &[0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0];

/// Finest around the budgets of DESIGN §7: 10, 20 and 30 ms added, 5 ms late.
const OWN_WORK: &[f64] =
    &[0.0001, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0];

/// From a cached phrase to an engine at its time limit.
const ENGINE: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0];

/// From inaudible by concealment to unbearable.
const LOSS: &[f64] = &[0.0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5];

const HISTOGRAMS: &[Histogram] = &[
    Histogram {
        name: "offhook_turn_latency_seconds",
        buckets: CONVERSATION,
        meaning: "Last caller speech frame in to first audible agent frame out",
    },
    Histogram {
        name: "offhook_turn_added_seconds",
        buckets: OWN_WORK,
        meaning: "The later of turn confirmed and first audio of the synthesis received, to first audible agent frame out",
    },
    Histogram {
        name: "offhook_barge_in_seconds",
        buckets: CONVERSATION,
        meaning: "Caller's first voiced frame to the agent falling silent",
    },
    Histogram { name: "offhook_tick_lateness_seconds", buckets: OWN_WORK, meaning: "How late a call's 20 ms tick ran" },
    Histogram {
        name: "offhook_stt_final_seconds",
        buckets: ENGINE,
        meaning: "Final transcript asked for to final transcript received",
    },
    Histogram {
        name: "offhook_llm_first_token_seconds",
        buckets: ENGINE,
        meaning: "Reply asked for to its first token",
    },
    Histogram {
        name: "offhook_tts_first_audio_seconds",
        buckets: ENGINE,
        meaning: "Synthesis asked for to its first audio",
    },
    Histogram {
        name: "offhook_sip_answer_seconds",
        buckets: OWN_WORK,
        meaning: "SIP INVITE read to its 200 on its way",
    },
    Histogram {
        name: "offhook_rtp_jitter_seconds",
        buckets: OWN_WORK,
        meaning: "Highest interarrival jitter of a call's media (RFC 3550), one value a call",
    },
    Histogram {
        name: "offhook_rtp_loss_ratio",
        buckets: LOSS,
        meaning: "Share of a call's incoming packets that never came, 0 to 1, one value a call",
    },
    Histogram {
        name: "offhook_webhook_out_seconds",
        buckets: ENGINE,
        meaning: "An attempt to tell a company what happened, to its answer",
    },
];

fn describe() {
    for histogram in HISTOGRAMS {
        let unit = if histogram.name.ends_with("_seconds") { Unit::Seconds } else { Unit::Count };
        describe_histogram!(histogram.name, unit, histogram.meaning);
    }
    describe_gauge!("offhook_calls_active", Unit::Count, "Calls in progress");
    describe_counter!("offhook_call_end_total", Unit::Count, "Calls ended, by who ended them and why");
    describe_counter!("offhook_frames_dropped_total", Unit::Count, "20 ms frames dropped, by where");
    describe_counter!("offhook_webhook_total", Unit::Count, "Webhooks received, by provider and result");
    describe_gauge!("offhook_sip_registrations", Unit::Count, "SIP accounts, by how their registration stands");
    describe_counter!("offhook_sip_requests_total", Unit::Count, "SIP requests, by direction and method");
    describe_counter!("offhook_sip_responses_total", Unit::Count, "SIP responses, by direction and class");
    describe_counter!(
        "offhook_sip_retransmissions_total",
        Unit::Count,
        "SIP messages sent again for want of an answer"
    );
    describe_counter!(
        "offhook_sip_refused_total",
        Unit::Count,
        "SIP requests that got an error without memory (refused, malformed, overload) or silence (flood, silenced)"
    );
    describe_counter!("offhook_sip_unsent_total", Unit::Count, "SIP messages that a full queue or socket did not take");
    describe_counter!("offhook_sip_calls_total", Unit::Count, "Inbound SIP calls, by what became of them");
    describe_counter!("offhook_rtp_packets_total", Unit::Count, "RTP packets of ended calls, by direction");
    describe_counter!("offhook_rtp_lost_packets_total", Unit::Count, "RTP packets of ended calls that never came");
    describe_counter!(
        "offhook_rtp_stranger_packets_total",
        Unit::Count,
        "RTP packets of sources that were not believed"
    );
    describe_counter!("offhook_rtp_timeouts_total", Unit::Count, "Calls given up because their media stopped coming");
    describe_counter!(
        "offhook_knowledge_ahead_total",
        Unit::Count,
        "Lookups of calls, by what running ahead had for them: hit, joined, meaning or miss"
    );
    describe_counter!(
        "offhook_knowledge_ahead_started_total",
        Unit::Count,
        "Lookups begun before a call's turn asked for them"
    );
    describe_counter!("offhook_webhook_out_total", Unit::Count, "Attempts to tell companies what happened, by result");
    describe_counter!("offhook_budget_spent_total", Unit::Count, "Budgets used up: of calls, and of companies' days");
    describe_counter!("offhook_call_analysis_total", Unit::Count, "Calls summed up, by whom and by outcome");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_rendered_in_buckets_with_their_meaning() {
        install_metrics().unwrap();
        install_metrics().unwrap();
        metrics::histogram!("offhook_turn_latency_seconds").record(0.55);
        metrics::counter!("offhook_call_end_total", "by" => "caller", "reason" => "hung_up").increment(1);
        metrics::gauge!("offhook_calls_active").set(1.0);
        let text = render();
        for expected in [
            "# HELP offhook_turn_latency_seconds Last caller speech",
            "# TYPE offhook_turn_latency_seconds histogram",
            "offhook_turn_latency_seconds_bucket{le=\"0.5\"} 0",
            "offhook_turn_latency_seconds_bucket{le=\"0.6\"} 1",
            "offhook_call_end_total{by=\"caller\",reason=\"hung_up\"} 1",
            "offhook_calls_active 1",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }

    #[test]
    fn buckets_grow_and_names_end_in_their_unit() {
        for histogram in HISTOGRAMS {
            assert!(["_seconds", "_ratio"].iter().any(|unit| histogram.name.ends_with(unit)), "{}", histogram.name);
            assert!(histogram.buckets.windows(2).all(|pair| pair[0] < pair[1]), "{}", histogram.name);
        }
    }

    #[test]
    fn logs_install_once_and_a_bad_filter_is_named() {
        let config = TelemetryConfig::default();
        install_logs(&config, None).unwrap();
        install_logs(&config, Some("debug,offhook=trace")).unwrap();
        let error = install_logs(&config, Some("offhook=loud")).unwrap_err().to_string();
        assert!(error.contains("OFFHOOK_LOG"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn upkeep_ends_with_its_token() {
        let cancel = CancellationToken::new();
        let task = tokio::spawn(upkeep(cancel.clone()));
        tokio::time::advance(UPKEEP * 3).await;
        cancel.cancel();
        task.await.unwrap();
    }
}
