//! `offhook mock`: the stand-ins for OpenAI-shaped speech and language services and for providers, for tests, `load` and
//! newcomers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::mock::openai::{MockConfig, MockOpenAi};
use crate::mock::script::{Delays, Fault, Script};
use crate::mock::twilio::{self, MockTwilio};

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:9100")]
    pub listen: SocketAddr,
    #[command(flatten)]
    pub delays: Delays,
    /// Spoil every request; a request can ask for it by its model name (`mock-fault=cut,times=1`)
    #[arg(long, value_enum)]
    pub fault: Option<Fault>,
    /// What `retry-after-ms` says with a 429
    #[arg(long, default_value_t = 100, value_name = "MS")]
    pub retry_after_ms: u64,
    /// Answer 401 to requests without this key
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Sentences that recognition answers in turn, one a line
    #[arg(long, value_name = "FILE")]
    pub transcripts: Option<PathBuf>,
    /// What is heard and said: a TOML file with `transcripts`, `[[reply]]`, `after_tools`
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    #[command(flatten)]
    pub twilio: twilio::Flags,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let read =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let mut script = match &args.script {
        Some(path) => Script::from_toml(&read(path)?).with_context(|| format!("{} is no script", path.display()))?,
        None => Script::default(),
    };
    if let Some(path) = &args.transcripts {
        script.transcripts =
            read(path)?.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
    }
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let config = MockConfig {
        delays: args.delays,
        fault: args.fault,
        retry_after_ms: args.retry_after_ms,
        api_key: args.api_key,
        script,
    };
    let mut mock = MockOpenAi::start(config, listener).context("cannot start the mock")?;
    println!("listening: base_url = \"{}\", log at http://{}/mock/requests", mock.base_url(), mock.addr);
    let mut twilio = simulated_twilio(&args.twilio).await?;
    tokio::select! {
        ended = mock.wait() => ended.context("the mock has failed")?,
        ended = async {
            match &mut twilio {
                Some(twilio) => twilio.wait().await,
                None => std::future::pending().await,
            }
        } => ended.context("the simulated Twilio has failed")?,
        result = tokio::signal::ctrl_c() => result.context("cannot wait for Ctrl-C")?,
    }
    mock.stop().await;
    if let Some(twilio) = twilio {
        twilio.stop().await;
    }
    Ok(ExitCode::SUCCESS)
}

async fn simulated_twilio(flags: &twilio::Flags) -> anyhow::Result<Option<MockTwilio>> {
    let Some((addr, config)) = flags.config().context("cannot read the simulated caller")? else { return Ok(None) };
    let listener = TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))?;
    let sid = config.account_sid.clone();
    let numbers: Vec<String> = config.numbers.iter().map(|number| number.number.clone()).collect();
    let mock = MockTwilio::start(config, listener).context("cannot start the simulated Twilio")?;
    let base = mock.api_base();
    println!("twilio: api_base = \"{base}\", account_sid = \"{sid}\", numbers {}", numbers.join(", "));
    println!("twilio: log at {base}/mock/requests; a call comes in by");
    let number = numbers.first().map_or("", String::as_str);
    println!(
        "  curl {base}/simulate/call -H 'content-type: application/json' -d '{{\"from\":\"+15550002222\",\"to\":\"{number}\"}}'"
    );
    Ok(Some(mock))
}
