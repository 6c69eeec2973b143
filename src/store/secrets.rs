//! The key that seals credentials, and the sealing: XChaCha20-Poly1305 with a random 24-byte nonce, bound to the row
//! that it belongs to, so that a sealed value copied to another company or integration does not open. The key lives
//! outside the database: in the configuration, or in a file beside the database that only its owner can read.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine};
use chacha20poly1305::aead::{Aead, Generate, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use rand::RngExt;
use secrecy::{ExposeSecret, SecretString};
use tracing::{info, warn};
use uuid::Uuid;

/// Bytes of a key.
pub const KEY_LEN: usize = 32;

/// XChaCha20's nonce: long enough to be drawn at random for every sealing (draft-irtf-cfrg-xchacha-03 §3.1).
const NONCE_LEN: usize = 24;

/// First byte of every sealed value, so that a later cipher can be told from this one.
const VERSION: u8 = 1;

#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The configured key is not 32 bytes in base64: correct or remove it.
    #[error(
        "security.secrets_key must be {KEY_LEN} random bytes in base64, as `openssl rand -base64 {KEY_LEN}` prints them"
    )]
    Malformed,
    /// The key file was damaged: restore it from a backup.
    #[error("the key file {} does not hold {KEY_LEN} bytes in base64; restore it from a backup", .0.display())]
    MalformedFile(PathBuf),
    #[error("the key file {}: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
    /// The database was sealed with a key that is not here any more.
    #[error(
        "the store was sealed with a key, but its file {} is gone and security.secrets_key is not set; restore one of them",
        .0.display()
    )]
    Missing(PathBuf),
    /// The value was sealed with another key, belongs to another row, or was changed.
    #[error("the secrets key does not fit: {what} was sealed with another key, or was changed; {KEY_SOURCES}")]
    WrongKey { what: String },
}

const KEY_SOURCES: &str = "check security.secrets_key and the key file beside the database";

/// A cipher with its key. Prints as dots.
#[derive(Clone)]
pub struct Sealer {
    cipher: XChaCha20Poly1305,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(…)")
    }
}

impl Sealer {
    /// The configured key.
    pub fn from_base64(key: &SecretString) -> Result<Self, SecretsError> {
        Self::decode(key.expose_secret()).ok_or(SecretsError::Malformed)
    }

    /// The key in the file at `path`. With `create`, a missing file is made with a random key and mode 0600; without,
    /// it is an error, because the store holds values that another key would not open.
    pub fn from_file(path: &Path, create: bool) -> Result<Self, SecretsError> {
        let file = |source| SecretsError::File { path: path.to_owned(), source };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
                make_key_file(path).map_err(file)?;
                fs::read_to_string(path).map_err(file)?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SecretsError::Missing(path.to_owned()));
            }
            Err(error) => return Err(file(error)),
        };
        let mode = fs::metadata(path).map_err(file)?.permissions().mode();
        if mode & 0o077 != 0 {
            let mode = format!("{:o}", mode & 0o777);
            warn!(path = %path.display(), mode, "others can read the key file; chmod 600 it");
        }
        Self::decode(&text).ok_or_else(|| SecretsError::MalformedFile(path.to_owned()))
    }

    /// A key that lives as long as this value.
    pub fn random() -> Self {
        Self { cipher: XChaCha20Poly1305::new(&rand::rng().random::<[u8; KEY_LEN]>().into()) }
    }

    fn decode(text: &str) -> Option<Self> {
        let key: [u8; KEY_LEN] = BASE64_STANDARD.decode(text.trim()).ok()?.try_into().ok()?;
        Some(Self { cipher: XChaCha20Poly1305::new(&key.into()) })
    }

    /// Version, nonce, ciphertext with its tag. `context` is not in it, but is needed to open it.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Vec<u8> {
        let nonce = XNonce::generate();
        let sealed = self
            .cipher
            .encrypt(&nonce, Payload { msg: plain, aad: context })
            .expect("the cipher takes messages up to 256 GB");
        [&[VERSION], nonce.as_slice(), &sealed].concat()
    }

    /// What was sealed for this `context`; `what` names it in the error.
    pub fn open(&self, context: &[u8], sealed: &[u8], what: &str) -> Result<Vec<u8>, SecretsError> {
        let wrong = || SecretsError::WrongKey { what: what.to_owned() };
        let body = sealed.strip_prefix(&[VERSION]).ok_or_else(wrong)?;
        let (nonce, ciphertext) = body.split_first_chunk::<NONCE_LEN>().ok_or_else(wrong)?;
        self.cipher.decrypt(&XNonce::from(*nonce), Payload { msg: ciphertext, aad: context }).map_err(|_| wrong())
    }
}

/// What binds an integration's credentials to their row.
pub fn integration_context(company: Uuid, integration: Uuid) -> Vec<u8> {
    [b"offhook integration ".as_slice(), company.as_bytes(), integration.as_bytes()].concat()
}

/// What binds the last part of an integration's webhook path to its row.
pub fn webhook_context(company: Uuid, integration: Uuid) -> Vec<u8> {
    [b"offhook webhook ".as_slice(), company.as_bytes(), integration.as_bytes()].concat()
}

/// What binds a tool's secret headers to their row.
pub fn tool_context(company: Uuid, tool: Uuid) -> Vec<u8> {
    [b"offhook tool ".as_slice(), company.as_bytes(), tool.as_bytes()].concat()
}

/// What binds the secrets that sign for a company's endpoint to their row.
pub fn endpoint_context(company: Uuid, endpoint: Uuid) -> Vec<u8> {
    [b"offhook endpoint ".as_slice(), company.as_bytes(), endpoint.as_bytes()].concat()
}

/// Where the next key lies while values are sealed with it.
pub(super) fn next_path(path: &Path) -> PathBuf {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    next.into()
}

/// A new key in a new file at `path`, on disk when this returns.
pub(super) fn write_new_key(path: &Path) -> Result<Sealer, SecretsError> {
    let file = |source| SecretsError::File { path: path.to_owned(), source };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file(error)),
        _ => make_key_file(path).map_err(file)?,
    }
    Sealer::from_file(path, false)
}

/// Puts the next key in the place of the present one.
pub(super) fn promote(next: &Path, path: &Path) -> Result<(), SecretsError> {
    let renamed = fs::rename(next, path).and_then(|()| match path.parent() {
        // The folder, too, must be on disk, or a power cut could bring the old name back.
        Some(folder) if !folder.as_os_str().is_empty() => fs::File::open(folder)?.sync_all(),
        _ => Ok(()),
    });
    renamed.map_err(|source| SecretsError::File { path: path.to_owned(), source })
}

/// Writes a random key under a name of its own and links it into place, so that of two processes that start at once
/// one wins, and the other reads a whole key.
fn make_key_file(path: &Path) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", Uuid::now_v7()));
    let draft = PathBuf::from(draft);
    let key = BASE64_STANDARD.encode(rand::rng().random::<[u8; KEY_LEN]>());
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(format!("{key}\n").as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&draft, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => {
                linked.inspect(|()| info!(path = %path.display(), "made a secrets key; back it up with the database"))
            }
        }
    })();
    let removed = fs::remove_file(&draft);
    written.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_with_the_same_key_and_context_only() {
        let sealer = Sealer::random();
        let (company, integration) = (Uuid::now_v7(), Uuid::now_v7());
        let context = integration_context(company, integration);
        let sealed = sealer.seal(&context, b"auth token");
        assert_eq!(sealer.open(&context, &sealed, "x").unwrap(), b"auth token");
        assert!(sealer.open(&integration_context(integration, company), &sealed, "x").is_err());
        assert!(Sealer::random().open(&context, &sealed, "x").is_err());
        assert!(!sealed.windows(10).any(|window| window == b"auth token"));
    }

    #[test]
    fn any_changed_byte_and_any_cut_is_refused() {
        let sealer = Sealer::random();
        let sealed = sealer.seal(b"c", b"s");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(sealer.open(b"c", &changed, "x").is_err(), "byte {at}");
            assert!(sealer.open(b"c", &sealed[..at], "x").is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_same_text_never_seals_to_the_same_bytes() {
        let sealer = Sealer::random();
        assert_ne!(sealer.seal(b"c", b"s"), sealer.seal(b"c", b"s"));
    }

    #[test]
    fn a_key_file_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("offhook.db.key");
        assert!(matches!(Sealer::from_file(&path, false), Err(SecretsError::Missing(_))));
        let sealed = Sealer::from_file(&path, true).unwrap().seal(b"c", b"s");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Sealer::from_file(&path, false).unwrap().open(b"c", &sealed, "x").unwrap(), b"s");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left behind");
    }

    #[test]
    fn a_configured_key_must_be_32_bytes_of_base64() {
        let good = BASE64_STANDARD.encode([7; KEY_LEN]);
        assert!(Sealer::from_base64(&format!(" {good}\n").into()).is_ok());
        for bad in ["", "hunter2", &BASE64_STANDARD.encode([7; 16])] {
            let error = Sealer::from_base64(&bad.to_owned().into()).unwrap_err().to_string();
            assert!(error.contains("security.secrets_key"), "{error}");
            assert!(bad.is_empty() || !error.contains(bad), "the key is not printed");
        }
    }
}
