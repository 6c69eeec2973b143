//! Who we are to Google: an API key, or a service account whose key signs a token. By default the token is signed here
//! and used directly, which saves a round trip; `exchange_token` trades it at the token endpoint instead.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

use super::{GoogleSttConfig, GoogleSttSetupError};
use crate::clock;

/// What a self-signed token is good for; Google accepts an hour at most.
const AUDIENCE: &str = "https://speech.googleapis.com/";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const LIFE: Duration = Duration::from_secs(3600);
/// An answer of the token endpoint is about 1 KB.
const TOKEN_LIMIT: usize = 64 << 10;

pub(super) enum Credentials {
    /// For servers of one's own.
    None,
    ApiKey(SecretString),
    Account(Box<Account>),
}

pub(super) struct Account {
    email: String,
    key_id: Option<String>,
    key: EncodingKey,
    /// `None` = the token is self-signed.
    exchange: Option<Exchange>,
    token: Mutex<Option<Token>>,
}

struct Exchange {
    uri: String,
    client: reqwest::Client,
}

struct Token {
    value: SecretString,
    refresh_at: Instant,
}

/// The part of a service account's JSON file that is used.
#[derive(Deserialize)]
struct AccountFile {
    client_email: String,
    private_key: SecretString,
    private_key_id: Option<String>,
    token_uri: Option<String>,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    aud: &'a str,
    iat: i64,
    exp: i64,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: SecretString,
    expires_in: u64,
}

impl Credentials {
    pub fn new(config: &GoogleSttConfig) -> Result<Self, GoogleSttSetupError> {
        match (&config.api_key, &config.service_account) {
            (Some(_), Some(_)) => Err(GoogleSttSetupError::TwoCredentials),
            (Some(key), None) => Ok(Self::ApiKey(key.clone())),
            (None, Some(path)) => {
                let unusable = |reason| GoogleSttSetupError::ServiceAccount { path: path.clone(), reason };
                let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
                // serde's messages quote no values of strings, so that the key does not leak through them.
                let file: AccountFile = serde_json::from_str(&text).map_err(|error| unusable(error.to_string()))?;
                let key = EncodingKey::from_rsa_pem(file.private_key.expose_secret().as_bytes())
                    .map_err(|_| unusable("its private_key is not an RSA key in PEM form".into()))?;
                let uri = config.token_uri.clone().or(file.token_uri);
                let exchange = config.exchange_token.then(|| {
                    let uri = uri.unwrap_or_else(|| "https://oauth2.googleapis.com/token".into());
                    let limit = Duration::from_millis(config.connect_ms + config.final_limit_ms);
                    let client = reqwest::Client::builder().timeout(limit).build();
                    client.map(|client| Exchange { uri, client }).map_err(|error| unusable(error.to_string()))
                });
                Ok(Self::Account(Box::new(Account {
                    email: file.client_email,
                    key_id: file.private_key_id,
                    key,
                    exchange: exchange.transpose()?,
                    token: Mutex::new(None),
                })))
            }
            (None, None) if config.endpoint.starts_with("http://") => Ok(Self::None),
            (None, None) => Err(GoogleSttSetupError::NoCredentials),
        }
    }

    /// Writes the credential into a request. The error holds no secret.
    pub async fn sign(&self, metadata: &mut MetadataMap) -> Result<(), String> {
        let (name, value) = match self {
            Self::None => return Ok(()),
            Self::ApiKey(key) => ("x-goog-api-key", key.expose_secret().to_owned()),
            Self::Account(account) => {
                let mut token = account.token.lock().await;
                let fresh = token.take_if(|token| token.refresh_at > Instant::now());
                let held = token.insert(match fresh {
                    Some(token) => token,
                    None => account.make_token().await?,
                });
                ("authorization", format!("Bearer {}", held.value.expose_secret()))
            }
        };
        let value = AsciiMetadataValue::try_from(value);
        let mut value = value.map_err(|_| "the key has characters that no header may have".to_owned())?;
        value.set_sensitive(true);
        metadata.insert(name, value);
        Ok(())
    }

    /// The server refused the token: the next request gets another. An API key stays what it is: false.
    pub async fn refresh(&self) -> bool {
        match self {
            Self::Account(account) => {
                *account.token.lock().await = None;
                true
            }
            Self::None | Self::ApiKey(_) => false,
        }
    }
}

impl Account {
    async fn make_token(&self) -> Result<Token, String> {
        let iat = clock::now().as_second();
        let exp = iat + LIFE.as_secs() as i64;
        let iss = &self.email;
        let claims = match &self.exchange {
            None => Claims { iss, sub: Some(iss), scope: None, aud: AUDIENCE, iat, exp },
            Some(exchange) => Claims { iss, sub: None, scope: Some(SCOPE), aud: &exchange.uri, iat, exp },
        };
        let header = Header { kid: self.key_id.clone(), ..Header::new(Algorithm::RS256) };
        let signed = jsonwebtoken::encode(&header, &claims, &self.key).map_err(|_| "cannot sign a token".to_owned())?;
        let (value, life) = match &self.exchange {
            None => (SecretString::from(signed), LIFE),
            Some(exchange) => exchange.trade(&signed).await?,
        };
        // At 80 % of its life, so that no request meets the last second.
        Ok(Token { value, refresh_at: Instant::now() + life.mul_f32(0.8) })
    }
}

impl Exchange {
    async fn trade(&self, assertion: &str) -> Result<(SecretString, Duration), String> {
        let form = [("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", assertion)];
        let failed = |error: reqwest::Error| format!("the token endpoint failed: {}", error.without_url());
        let mut response = self.client.post(&self.uri).form(&form).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(format!("the token endpoint answered {}", response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > TOKEN_LIMIT {
                return Err("the token endpoint's answer is too long".into());
            }
        }
        let answer: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| "the token endpoint's answer has no token".to_owned())?;
        Ok((answer.access_token, Duration::from_secs(answer.expires_in.min(LIFE.as_secs()))))
    }
}
