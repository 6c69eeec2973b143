//! Certificates: ours for who connects to us, and whom we believe when we connect.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::config::SipConfig;
use crate::protocol::sip::target::Target;

/// Why TLS cannot be spoken: correct the configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path} cannot be read as PEM: {why}")]
    File { path: String, why: String },
    #[error("the certificate and key of sip.tls_cert and sip.tls_key do not work: {0}")]
    Pair(rustls::Error),
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

fn file_error(path: &Path, why: impl std::fmt::Display) -> TlsError {
    TlsError::File { path: path.display().to_string(), why: why.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path).map_err(|error| file_error(path, error))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| file_error(path, error))?;
    if found.is_empty() { Err(file_error(path, "it holds no certificate")) } else { Ok(found) }
}

/// For connections to us; `None` when TLS is not listened on.
pub fn acceptor(config: &SipConfig) -> Result<Option<TlsAcceptor>, TlsError> {
    let (Some(_), Some(cert), Some(key)) = (config.tls_listen, &config.tls_cert, &config.tls_key) else {
        return Ok(None);
    };
    let chain = certificates(cert)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| file_error(key, error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(TlsError::Pair)?;
    Ok(Some(TlsAcceptor::from(Arc::new(server))))
}

/// For connections that we open: the system's authorities and `sip.tls_ca`.
pub fn connector(config: &SipConfig) -> Result<TlsConnector, TlsError> {
    let mut roots = RootCertStore::empty();
    // One unreadable certificate of the system says nothing about the others.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &config.tls_ca {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| file_error(path, error))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(client)))
}

/// The name that the peer's certificate must carry.
pub fn server_name(target: &Target) -> Option<ServerName<'static>> {
    match &target.name {
        Some(name) => ServerName::try_from(name.to_string()).ok(),
        None => Some(ServerName::IpAddress(target.addr.ip().into())),
    }
}
