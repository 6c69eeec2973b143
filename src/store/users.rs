//! People: who may log in, with which role at which company, and their sessions. Passwords are kept as argon2id, sessions
//! as the hash of their cookie.

use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::store::db::{At, args, labelled};
use crate::store::keys::{NewSecret, hash_of};
use crate::store::{Store, StoreError};

/// What somebody may do at a company; each may do what the next one may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks and listens.
    Viewer,
    /// Also dials, writes, hangs up, changes lines and agents.
    Operator,
    /// Also integrations, keys and people.
    Owner,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Viewer, Role::Operator, Role::Owner];

    pub const fn label(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Owner => "owner",
        }
    }
}

labelled!(Role, Role::ALL);

impl std::str::FromStr for Role {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|role| role.label() == text).ok_or("a role is owner, operator or viewer")
    }
}

/// A person as one company sees them.
#[derive(Clone, Debug, PartialEq, FromRow, Serialize, ToSchema)]
pub struct User {
    pub id: Uuid,
    pub email: String,
    pub name: String,
    pub role: Role,
    pub created_at: At,
    pub disabled_at: Option<At>,
}

/// A company that a person belongs to.
#[derive(Clone, Debug, PartialEq, FromRow, Serialize, ToSchema)]
pub struct Membership {
    pub company_id: Uuid,
    pub company: String,
    pub role: Role,
}

/// Who a session's cookie stands for.
#[derive(Clone, Debug, PartialEq, FromRow, Serialize)]
pub struct Session {
    pub person_id: Uuid,
    pub email: String,
    pub company_id: Uuid,
    pub role: Role,
    pub expires_at: At,
}

/// Why a password is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordFault {
    #[error("a password has at least {MIN_PASSWORD} characters")]
    TooShort,
    #[error("a password has at most {MAX_PASSWORD} characters")]
    TooLong,
}

/// NIST SP 800-63B §5.1.1.2 asks for 8 at least; 10 costs nobody who keeps it in a password manager.
pub const MIN_PASSWORD: usize = 10;
/// Hashing takes time by length.
pub const MAX_PASSWORD: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error(transparent)]
    Password(#[from] PasswordFault),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Argon2id with the library's parameters (19 MiB, 2 passes, 1 lane: OWASP's first choice), off the runtime's workers:
/// one hash takes tens of milliseconds.
async fn hash(password: &SecretString) -> Result<String, UserError> {
    let length = password.expose_secret().chars().count();
    if length < MIN_PASSWORD {
        return Err(PasswordFault::TooShort.into());
    }
    if length > MAX_PASSWORD {
        return Err(PasswordFault::TooLong.into());
    }
    let password = password.clone();
    let hashed = tokio::task::spawn_blocking(move || {
        let hashed: PasswordHash =
            Argon2::default().hash_password(password.expose_secret().as_bytes()).expect("the parameters are valid");
        hashed.to_string()
    });
    Ok(hashed.await.expect("hashing does not panic"))
}

async fn verify(password: &SecretString, stored: String) -> bool {
    let password = password.clone();
    let verified = tokio::task::spawn_blocking(move || {
        PasswordHash::new(&stored)
            .is_ok_and(|stored| Argon2::default().verify_password(password.expose_secret().as_bytes(), &stored).is_ok())
    });
    verified.await.unwrap_or(false)
}

/// The hash of no password, with the parameters of a real one: an unknown name takes as long as a wrong password.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$b2ZmaG9va29mZmhvb2s$2vjzAW9jVlVBnOaQ1i0yzwGNbYJYcDRYEHVr2RVXcJw";

fn typed(email: &str) -> String {
    email.trim().to_lowercase()
}

impl Store {
    /// Whether anybody can log in yet; if not, the first start's set-up link is still good.
    pub async fn has_users(&self) -> Result<bool, StoreError> {
        let row: Option<(i64,)> = self.db.first("SELECT COUNT(*) FROM person", args![]).await?;
        Ok(row.is_some_and(|(count,)| count > 0))
    }

    /// Adds a person to a company; one who is known by this address at another company keeps name and password.
    pub async fn add_user(
        &self,
        company: Uuid,
        email: &str,
        name: &str,
        password: &SecretString,
        role: Role,
    ) -> Result<Uuid, UserError> {
        let (email, password) = (typed(email), hash(password).await?);
        let mut tx = self.db.write().await?;
        tx.execute(
            "INSERT INTO person (id, email, name, password, created_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (email) DO NOTHING",
            args![Uuid::now_v7(), &email, name, password, At::now()],
        )
        .await?;
        let (id,): (Uuid,) = tx
            .first("SELECT id FROM person WHERE email = $1", args![&email])
            .await?
            .ok_or(StoreError::Query(sqlx::Error::RowNotFound))?;
        tx.execute(
            "INSERT INTO membership (person_id, company_id, role, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (person_id, company_id) DO UPDATE SET role = excluded.role",
            args![id, company, role, At::now()],
        )
        .await?;
        tx.commit().await?;
        Ok(id)
    }

    pub async fn users(&self, company: Uuid) -> Result<Vec<User>, StoreError> {
        self.db
            .all(
                "SELECT p.id, p.email, p.name, m.role, p.created_at, p.disabled_at
                 FROM membership m JOIN person p ON p.id = m.person_id WHERE m.company_id = $1 ORDER BY p.id DESC",
                args![company],
            )
            .await
    }

    pub async fn user(&self, company: Uuid, id: Uuid) -> Result<Option<User>, StoreError> {
        self.db
            .first(
                "SELECT p.id, p.email, p.name, m.role, p.created_at, p.disabled_at
                 FROM membership m JOIN person p ON p.id = m.person_id WHERE m.company_id = $1 AND p.id = $2",
                args![company, id],
            )
            .await
    }

    /// `false`: no such person at this company.
    pub async fn set_role(&self, company: Uuid, id: Uuid, role: Role) -> Result<bool, StoreError> {
        let changed = self
            .db
            .execute(
                "UPDATE membership SET role = $3 WHERE company_id = $1 AND person_id = $2",
                args![company, id, role],
            )
            .await?;
        Ok(changed > 0)
    }

    /// Takes a person out of a company and ends their sessions there; who belongs to no company any more is forgotten.
    pub async fn remove_user(&self, company: Uuid, id: Uuid) -> Result<bool, StoreError> {
        let mut tx = self.db.write().await?;
        let gone =
            tx.execute("DELETE FROM membership WHERE company_id = $1 AND person_id = $2", args![company, id]).await?;
        tx.execute("DELETE FROM session WHERE company_id = $1 AND person_id = $2", args![company, id]).await?;
        tx.execute(
            "DELETE FROM person WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM membership WHERE person_id = $1)",
            args![id],
        )
        .await?;
        tx.commit().await?;
        Ok(gone > 0)
    }

    /// By address, whatever the company: for the command line and for a person's own account. Ends all sessions.
    pub async fn set_password(&self, email: &str, password: &SecretString) -> Result<bool, UserError> {
        let (email, password) = (typed(email), hash(password).await?);
        let mut tx = self.db.write().await?;
        tx.execute("DELETE FROM session WHERE person_id IN (SELECT id FROM person WHERE email = $1)", args![&email])
            .await?;
        let changed = tx.execute("UPDATE person SET password = $2 WHERE email = $1", args![&email, password]).await?;
        tx.commit().await?;
        Ok(changed > 0)
    }

    /// Who logs in with this address and password; an unknown one takes as long as a wrong password.
    pub async fn log_in(&self, email: &str, password: &SecretString) -> Result<Option<Uuid>, StoreError> {
        let row: Option<(Uuid, String)> = self
            .db
            .first("SELECT id, password FROM person WHERE email = $1 AND disabled_at IS NULL", args![typed(email)])
            .await?;
        let known = row.is_some();
        let (id, stored) = row.unwrap_or((Uuid::nil(), NOBODY.into()));
        Ok((verify(password, stored).await && known).then_some(id))
    }

    /// Where a person belongs.
    pub async fn memberships(&self, person: Uuid) -> Result<Vec<Membership>, StoreError> {
        self.db
            .all(
                "SELECT m.company_id, c.name AS company, m.role FROM membership m JOIN company c ON c.id = m.company_id
                 WHERE m.person_id = $1 ORDER BY c.name",
                args![person],
            )
            .await
    }

    /// Opens a session at a company that the person belongs to; the secret is the cookie, and is not kept.
    pub async fn open_session(
        &self,
        person: Uuid,
        company: Uuid,
        life: Duration,
    ) -> Result<Option<SecretString>, StoreError> {
        let secret = NewSecret::random("");
        let now = At::now();
        let expires = now.0.as_millisecond().saturating_add(i64::try_from(life.as_millis()).unwrap_or(i64::MAX));
        let mut tx = self.db.write().await?;
        tx.execute("DELETE FROM session WHERE expires_at < $1", args![now]).await?;
        let opened = tx
            .execute(
                "INSERT INTO session (hash, person_id, company_id, created_at, expires_at)
                 SELECT $1, m.person_id, m.company_id, $4, $5 FROM membership m
                 WHERE m.person_id = $2 AND m.company_id = $3",
                args![secret.hash.clone(), person, company, now, expires],
            )
            .await?;
        tx.commit().await?;
        Ok((opened > 0).then_some(secret.text))
    }

    /// Who a cookie stands for, as long as it lives and they belong to its company.
    pub async fn session(&self, cookie: &str) -> Result<Option<Session>, StoreError> {
        self.db
            .first(
                "SELECT s.person_id, p.email, s.company_id, m.role, s.expires_at FROM session s
                 JOIN person p ON p.id = s.person_id
                 JOIN membership m ON m.person_id = s.person_id AND m.company_id = s.company_id
                 WHERE s.hash = $1 AND s.expires_at > $2 AND p.disabled_at IS NULL",
                args![hash_of(cookie), At::now()],
            )
            .await
    }

    pub async fn close_session(&self, cookie: &str) -> Result<bool, StoreError> {
        Ok(self.db.execute("DELETE FROM session WHERE hash = $1", args![hash_of(cookie)]).await? > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_hash_of_nobody_costs_what_a_real_one_costs() {
        let real = hash(&"correct horse".to_owned().into()).await.unwrap();
        let real = PasswordHash::new(&real).unwrap();
        let nobody = PasswordHash::new(NOBODY).unwrap();
        assert_eq!((nobody.algorithm, nobody.version), (real.algorithm, real.version));
        assert_eq!(nobody.params.to_string(), real.params.to_string());
    }
}
