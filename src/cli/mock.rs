//! `offhook mock`: the stand-ins for OpenAI-shaped speech and language services and for telephone providers, for tests,
//! `load` and newcomers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::load::fixture::Fixture;
use crate::mock::binotel::{BinotelConfig, MockBinotel};
use crate::mock::openai::{MockConfig, MockOpenAi};
use crate::mock::ringostat::{MockRingostat, RingostatConfig};
use crate::mock::script::{Delays, Fault, Script};
use crate::mock::switch::SwitchConfig;
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
    /// Be Ringostat at this address too (key mock-auth-key, project 12345)
    #[arg(long, value_name = "ADDR")]
    pub ringostat: Option<SocketAddr>,
    /// Be Binotel at this address too (key mock-key, secret mock-secret, company 1000)
    #[arg(long, value_name = "ADDR")]
    pub binotel: Option<SocketAddr>,
    /// Let Ringostat's accounts register at this UDP address (passwords mock-sip-password-EXTENSION), and talk by RTP
    #[arg(long, value_name = "ADDR", requires_all = ["ringostat", "pbx_caller"])]
    pub ringostat_sip: Option<SocketAddr>,
    /// Let Binotel's accounts register at this UDP address (passwords mock-sip-password-NUMBER), and talk by RTP
    #[arg(long, value_name = "ADDR", requires_all = ["binotel", "pbx_caller"])]
    pub binotel_sip: Option<SocketAddr>,
    /// What customers of the simulated PBXs say: a folder of audio-fixtures
    #[arg(long, value_name = "DIR")]
    pub pbx_caller: Option<PathBuf>,
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
    let listener = listen(args.listen).await?;
    let config = MockConfig {
        delays: args.delays,
        fault: args.fault,
        retry_after_ms: args.retry_after_ms,
        api_key: args.api_key,
        script,
    };
    let mut mock = MockOpenAi::start(config, listener).context("cannot start the mock")?;
    println!("listening: base_url = \"{}\", log at http://{}/mock/requests", mock.base_url(), mock.addr);
    let customer = args.pbx_caller.as_deref().map(Fixture::load).transpose().context("cannot read the customer")?;
    let customer = customer.map(Arc::new);
    let switch = |sip: Option<SocketAddr>| Some(SwitchConfig::new(sip?, Arc::clone(customer.as_ref()?)));
    let ringostat = match args.ringostat {
        Some(addr) => {
            let config = RingostatConfig { sip: switch(args.ringostat_sip), ..RingostatConfig::default() };
            let mock = MockRingostat::start(config, listen(addr).await?)?;
            println!("ringostat: api_base = \"{}\"; {SIMULATE}", mock.base_url());
            show_registrar("ringostat", mock.registrar());
            Some(mock)
        }
        None => None,
    };
    let binotel = match args.binotel {
        Some(addr) => {
            let config = BinotelConfig { sip: switch(args.binotel_sip), ..BinotelConfig::default() };
            let mock = MockBinotel::start(config, listen(addr).await?)?;
            println!("binotel: api_base = \"{}\"; {SIMULATE}", mock.base_url());
            show_registrar("binotel", mock.registrar());
            Some(mock)
        }
        None => None,
    };
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
    if let Some(mock) = ringostat {
        mock.stop().await;
    }
    if let Some(mock) = binotel {
        mock.stop().await;
    }
    if let Some(twilio) = twilio {
        twilio.stop().await;
    }
    Ok(ExitCode::SUCCESS)
}

fn show_registrar(provider: &str, registrar: Option<SocketAddr>) {
    if let Some(addr) = registrar {
        println!("{provider}: sip.registrar = \"{addr}\"");
    }
}

/// How a call is made to happen.
const SIMULATE: &str = r#"POST /simulate/webhook {"url":…}, then POST /simulate/call {"from":"380501234567"}"#;

async fn listen(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))
}

async fn simulated_twilio(flags: &twilio::Flags) -> anyhow::Result<Option<MockTwilio>> {
    let Some((addr, config)) = flags.config().context("cannot read the simulated caller")? else { return Ok(None) };
    let listener = listen(addr).await?;
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
