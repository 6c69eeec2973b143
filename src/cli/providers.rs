//! What `apply` and `check` do at the providers: try the credentials, and write the webhooks of lines where the provider
//! lets us.

use std::io::{self, Write};

use crate::call::clients::{Clients, in_time};
use crate::call::wiring;
use crate::providers;
use crate::providers::provider::{LineState, Provider};
use crate::store::Store;
use crate::store::directory::{Directory, Integration, Line};

/// Tries one integration's credentials: the account's name and what it warns of, or why not.
pub async fn verify(clients: &Clients, integration: &Integration) -> Result<String, String> {
    let client = clients.of(integration).map_err(|fault| fault.to_string())?;
    let account = in_time(client.verify()).await.map_err(|error| error.to_string())?;
    let warnings: String = account.warnings.iter().map(|warning| format!("; warning: {warning}")).collect();
    Ok(format!("{}{warnings}", account.name))
}

/// Verifies the integrations that `wanted` picks and writes the webhooks of their lines. `false`: something failed.
pub async fn settle(
    store: &Store,
    directory: &Directory,
    public_url: Option<&str>,
    wanted: impl Fn(&Integration) -> bool,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let clients = Clients::default();
    let mut integrations: Vec<_> = directory.integrations().filter(|integration| wanted(integration)).collect();
    integrations.sort_by_key(|integration| integration.id);
    let mut well = true;
    for integration in integrations {
        let name = format!("{} / {}", integration.company, integration.name);
        let verified = verify(&clients, integration).await;
        store
            .note_verified(integration.company_id, integration.id, verified.as_deref().map_err(String::as_str))
            .await?;
        match verified {
            Ok(account) => writeln!(out, "{name}: {} answers: {account}", integration.provider)?,
            Err(problem) => {
                writeln!(out, "FAILED {name}: {problem}")?;
                well = false;
                continue;
            }
        }
        let writes = providers::kind(integration.provider).is_some_and(|kind| kind.capabilities.writes_webhooks);
        let Some(client) = writes.then(|| clients.of(integration).ok()).flatten() else { continue };
        let mut lines: Vec<_> = directory.lines().filter(|line| line.integration == integration.id).collect();
        lines.sort_by(|a, b| a.number.cmp(&b.number));
        for line in lines {
            well &= prepare(store, &*client, integration, line, public_url, out).await?;
        }
    }
    Ok(well)
}

async fn prepare(
    store: &Store,
    client: &dyn Provider,
    integration: &Integration,
    line: &Line,
    public_url: Option<&str>,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    // Without a public URL the addresses are empty, which the provider's client refuses with the cure.
    let base = public_url.unwrap_or_default().trim_end_matches('/');
    let url = |path: &str| if base.is_empty() { String::new() } else { format!("{base}{path}") };
    let hooks = wiring::addresses(integration.provider, integration.id, url);
    match wiring::write(store, client, integration.company_id, line.id, &line.number, &hooks).await {
        Ok(wired) => {
            tell(&line.number, &wired.before, out)?;
            Ok(true)
        }
        Err(problem) => {
            writeln!(out, "FAILED {}: its webhooks were not written: {problem}", line.number)?;
            Ok(false)
        }
    }
}

fn tell(number: &str, state: &LineState, out: &mut impl Write) -> io::Result<()> {
    if state.wanted.is_empty() {
        writeln!(out, "  {number}: its webhooks lead here already")?;
    } else {
        let names: Vec<&str> = state.wanted.iter().map(|setting| setting.name.as_str()).collect();
        writeln!(out, "  {number}: webhooks written: {}", names.join(", "))?;
    }
    state.warnings.iter().try_for_each(|warning| writeln!(out, "  {number}: warning: {warning}"))
}
