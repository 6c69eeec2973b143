//! The models that `offhook models` knows by name (`models/catalogue.toml`), and how a file on disk is held against it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha1::Sha1;
use sha2::{Digest, Sha256};

const CATALOGUE: &str = include_str!("../../../models/catalogue.toml");

/// First bytes of a ggml file, little-endian `0x67676d6c` (whisper.cpp, `GGML_FILE_MAGIC`).
const GGML_MAGIC: &[u8; 4] = b"lmgg";

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub name: String,
    /// Path below the models' folder; the URL ends in it.
    pub file: String,
    /// About how much it takes on disk.
    pub mib: u64,
    /// Its size exactly, where that is known.
    pub bytes: Option<u64>,
    pub sha1: Option<String>,
    pub sha256: Option<String>,
    /// It comes with the program: there is nothing to download.
    #[serde(default)]
    pub shipped: bool,
}

/// What a file must hash to, in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    Sha1(String),
    Sha256(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Size and checksum are right.
    Good,
    /// Nothing to compare with is known; this is its SHA-256.
    Unknown { sha256: String },
    /// Not the file that it should be.
    Bad { why: String },
}

/// The built-in catalogue.
pub fn catalogue() -> Vec<Model> {
    #[derive(Deserialize)]
    struct Catalogue {
        model: Vec<Model>,
    }
    toml::from_str::<Catalogue>(CATALOGUE).expect("the catalogue is tested").model
}

impl Model {
    pub fn checksum(&self) -> Option<Checksum> {
        let sha256 = self.sha256.clone().map(Checksum::Sha256);
        sha256.or_else(|| self.sha1.clone().map(Checksum::Sha1))
    }

    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(&self.file)
    }

    /// Where a download lies until it is complete.
    pub fn part(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.part", self.file))
    }

    /// What identifies the server's version of the file that a part was begun with.
    pub fn validator(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.part.etag", self.file))
    }

    /// The SHA-256 that a file had when it came, where no other checksum is known.
    pub fn record(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.sha256", self.file))
    }

    /// Reads the whole file; blocks.
    pub fn verify(&self, path: &Path, checksum: Option<&Checksum>) -> io::Result<Verdict> {
        let bytes = path.metadata()?.len();
        if let Some(expected) = self.bytes
            && expected != bytes
        {
            return Ok(Verdict::Bad { why: format!("it has {bytes} bytes instead of {expected}") });
        }
        match checksum {
            Some(Checksum::Sha1(expected)) => compare("SHA-1", expected, &hash::<Sha1>(path)?),
            Some(Checksum::Sha256(expected)) => compare("SHA-256", expected, &hash::<Sha256>(path)?),
            // An error page served with status 200 would otherwise pass for a model.
            None if !begins_with(path, GGML_MAGIC)? => {
                Ok(Verdict::Bad { why: "it is not a ggml model: its first four bytes are wrong".into() })
            }
            None => Ok(Verdict::Unknown { sha256: hash::<Sha256>(path)? }),
        }
    }
}

fn compare(kind: &str, expected: &str, found: &str) -> io::Result<Verdict> {
    if expected.eq_ignore_ascii_case(found) {
        Ok(Verdict::Good)
    } else {
        Ok(Verdict::Bad { why: format!("its {kind} is {found} instead of {expected}") })
    }
}

fn hash<D: Digest>(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = D::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => digest.update(&buffer[..read]),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn begins_with(path: &Path, magic: &[u8; 4]) -> io::Result<bool> {
    let mut head = Vec::new();
    File::open(path)?.take(4).read_to_end(&mut head)?;
    Ok(head == magic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_has_every_name_once_and_a_checksum_for_each() {
        let models = catalogue();
        let mut names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), models.len());
        assert!(names.contains(&"base.en") && names.contains(&"large-v3-turbo-q5_0"));
        for model in &models {
            let (digits, sum) = match model.checksum().expect("a checksum") {
                Checksum::Sha1(sum) => (40, sum),
                Checksum::Sha256(sum) => (64, sum),
            };
            assert!(sum.len() == digits && sum.bytes().all(|b| b.is_ascii_hexdigit()), "{}", model.name);
            assert!(!model.file.contains(".."), "{}", model.name);
            if let Some(bytes) = model.bytes {
                assert!(bytes.div_ceil(1 << 20).abs_diff(model.mib) <= 1, "{}: {bytes} bytes", model.name);
            }
        }
    }

    #[test]
    fn the_shipped_models_are_those_of_the_catalogue() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        for model in catalogue().iter().filter(|model| model.shipped) {
            let verdict = model.verify(&model.path(&dir), model.checksum().as_ref()).unwrap();
            assert_eq!(verdict, Verdict::Good, "{}", model.name);
        }
    }
}
