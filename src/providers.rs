//! Providers of lines: what is said to each over HTTP, and how it is trusted. One folder a provider; [`KINDS`] is the
//! only list of them.

pub mod binotel;
pub mod credentials;
pub mod network;
pub mod provider;
pub mod reach;
pub mod reconcile;
pub mod recording;
pub mod rest;
pub mod ringostat;
pub mod sip;
pub mod twilio;

/// Every provider that there is.
pub static KINDS: &[&provider::Kind] = &[&twilio::KIND, &ringostat::KIND, &binotel::KIND, &sip::KIND];

/// By its name in the set-up file.
pub fn kind(name: &str) -> Option<&'static provider::Kind> {
    KINDS.iter().copied().find(|kind| kind.name == name)
}
