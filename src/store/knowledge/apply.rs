//! The documents of a set-up file: read from beside it, known by base and file name, indexed where their content differs.
//! The bases themselves are made with the rest of the file.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use uuid::Uuid;

use super::extract::MAX_FILE;
use super::index::Added;
use super::search::KnowledgeBases;
use super::{DocumentInfo, DocumentState};
use crate::store::db::{At, Tx, args};
use crate::store::setup::Setup;
use crate::store::{MAX_PAGE, Part, StoreError};

/// What became of one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentChange {
    /// `Acme / Hotel / rules.md`.
    pub name: String,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With so many passages, and what it lacks.
    Indexed(i64, Option<String>),
    Unchanged,
    Removed,
    /// In words; what was there before stays.
    Failed(String),
}

/// Makes a base or gives it its language; whether that changed anything.
pub(in crate::store) async fn put_base(
    tx: &mut Tx,
    company: Uuid,
    id: Uuid,
    name: &str,
    language: &str,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO knowledge_base (id, company_id, name, language, revision, created_at, updated_at)
         VALUES ($1, $2, $3, $4, 1, $5, $5)
         ON CONFLICT (id) DO UPDATE SET language = excluded.language, updated_at = excluded.updated_at",
        args![id, company, name, language, At::now()],
    )
    .await?;
    Ok(())
}

impl KnowledgeBases {
    /// Puts the files of a set-up into its bases, which are there. With `prune`, other documents of these bases go.
    pub async fn apply(&self, setup: &Setup, prune: bool) -> Result<Vec<DocumentChange>, StoreError> {
        let mut changes = Vec::new();
        for knowledge in &setup.knowledge {
            let row: Option<(Uuid, Uuid)> = self
                .store
                .db
                .first(
                    "SELECT c.id, b.id FROM knowledge_base b JOIN company c ON c.id = b.company_id
                     WHERE c.name = $1 AND b.name = $2",
                    args![&knowledge.company, &knowledge.name],
                )
                .await?;
            let Some((company, base)) = row else { continue };
            let mut named = BTreeSet::new();
            let full = |name: &str| format!("{} / {} / {name}", knowledge.company, knowledge.name);
            for path in &knowledge.files {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let outcome = match read(path) {
                    Ok(file) => self.put(company, base, &name, file).await?,
                    Err(fault) => Outcome::Failed(format!("cannot read {}: {fault}", path.display())),
                };
                changes.push(DocumentChange { name: full(&name), outcome });
                named.insert(name);
            }
            if prune {
                for document in self.all(company, base).await? {
                    if !named.contains(&document.name) {
                        self.store.remove_document(company, base, document.id).await?;
                        changes.push(DocumentChange { name: full(&document.name), outcome: Outcome::Removed });
                    }
                }
            }
        }
        Ok(changes)
    }

    async fn put(&self, company: Uuid, base: Uuid, name: &str, file: Bytes) -> Result<Outcome, StoreError> {
        let document = match self.add(company, base, name, file).await? {
            Added::Taken(document) => document,
            // Its process may have died before it was indexed.
            Added::Unchanged(document) if document.state == DocumentState::Indexing => document,
            Added::Unchanged(_) => return Ok(Outcome::Unchanged),
            Added::NoBase => return Ok(Outcome::Failed("its knowledge base was removed".into())),
            Added::TooMany => return Ok(Outcome::Failed("its knowledge base has too many documents".into())),
            Added::Refused(reason) => return Ok(Outcome::Failed(reason)),
        };
        if let Err(fault) = self.index(document.id).await {
            return Ok(Outcome::Failed(fault.to_string()));
        }
        let indexed = self.store.document(company, base, document.id).await?;
        Ok(indexed.map_or(Outcome::Removed, |indexed| Outcome::Indexed(indexed.passages, indexed.error)))
    }

    async fn all(&self, company: Uuid, base: Uuid) -> Result<Vec<DocumentInfo>, StoreError> {
        let mut all = Vec::new();
        let mut part = Part { after: None, limit: MAX_PAGE };
        while let Some(page) = self.store.documents(company, base, part).await? {
            all.extend(page.items);
            match page.next {
                Some(next) => part.after = Some(next),
                None => break,
            }
        }
        Ok(all)
    }
}

/// A byte more than is taken, so that what is too large is told to be.
fn read(path: &Path) -> std::io::Result<Bytes> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}
