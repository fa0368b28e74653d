//! Service account tokens: JSON Web Tokens signed with ES256, and the key documents that let others check them.
//! Whether the account and the object that a token is bound to still exist is for [`crate::authn`] to say.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::file;
use crate::pki::PkiError;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) aud: Vec<String>,
    pub(crate) exp: i64,
    pub(crate) iat: i64,
    pub(crate) iss: String,
    pub(crate) jti: String,
    #[serde(rename = "kubernetes.io")]
    pub(crate) kubernetes: Kubernetes,
    pub(crate) nbf: i64,
    pub(crate) sub: String,
}

/// The private claim `kubernetes.io`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kubernetes {
    pub(crate) namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Reference>,
    pub(crate) serviceaccount: Reference,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) warnafter: Option<i64>,
}

/// An object by name and UID.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// Why a token is not accepted. It is logged, never sent: the caller learns only `Unauthorized`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the token is not a JWT of this issuer")]
    Foreign,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    Early,
    #[error("token audiences are not among the server's")]
    Audience,
    #[error("the service account or the object that the token is bound to is gone")]
    Unbound,
    #[error("the bootstrap token is unknown, has expired or is not for authentication")]
    Bootstrap,
}

/// The signing key, its public half, and the issuer's name.
pub(crate) struct Signer {
    issuer: String,
    key: EcdsaKeyPair,
    public: Vec<u8>,
    key_id: String,
    random: SystemRandom,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Signer")
            .field("issuer", &self.issuer)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads the key `sa.key` in `directory`, or makes one.
    pub(crate) fn open(directory: &Path, issuer: &str) -> Result<Self, PkiError> {
        let path = directory.join("sa.key");
        let bad = |source| PkiError::Certificate { action: "reading", path: path.clone(), source };
        let pem = if let Some(pem) = file::read(&path)? {
            pem
        } else {
            let made = rcgen::KeyPair::generate().map_err(bad)?.serialize_pem();
            file::write(&path, &made)?;
            made
        };
        let pair = rcgen::KeyPair::from_pem(&pem).map_err(bad)?;
        let unusable = |reason: String| PkiError::Unusable { path: path.clone(), reason };
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| unusable(error.to_string()))?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random)
            .map_err(|error| unusable(error.to_string()))?;
        let spki = rcgen::PublicKeyData::subject_public_key_info(&pair);
        let key_id = URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, &spki));
        Ok(Self { issuer: issuer.to_owned(), key, public: pair.public_key_raw().to_owned(), key_id, random })
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Signs.
    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, ring::error::Unspecified> {
        self.sign_payload(&serde_json::to_vec(claims).map_err(|_| ring::error::Unspecified)?)
    }

    pub(crate) fn sign_payload(&self, payload: &[u8]) -> Result<String, ring::error::Unspecified> {
        let header = json!({"alg": "ES256", "kid": self.key_id}).to_string();
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let signature = self.key.sign(&self.random, text.as_bytes())?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Checks signature, issuer, time and audience; `audiences` are those that the checker goes by.
    pub(crate) fn verify(&self, token: &str, audiences: &[String], now: i64) -> Result<Claims, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Foreign)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Foreign)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Foreign);
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Foreign)?;
        let claims: Claims = serde_json::from_slice(&decode(payload)?).map_err(|_| TokenError::Foreign)?;
        if header.get("alg").and_then(Value::as_str) != Some("ES256") || claims.iss != self.issuer {
            return Err(TokenError::Foreign);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.public)
            .verify(signed.as_bytes(), &decode(signature)?)
            .map_err(|_| TokenError::Signature)?;
        if now >= claims.exp {
            return Err(TokenError::Expired);
        }
        if now < claims.nbf {
            return Err(TokenError::Early);
        }
        if !claims.aud.iter().any(|audience| audiences.contains(audience)) {
            return Err(TokenError::Audience);
        }
        Ok(claims)
    }

    /// The document `/openid/v1/jwks`.
    pub(crate) fn jwks(&self) -> Value {
        // An uncompressed point: 4, then the two coordinates of 32 bytes.
        let coordinate =
            |from: usize| URL_SAFE_NO_PAD.encode(self.public.get(from..from + 32).unwrap_or_default());
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": coordinate(1), "y": coordinate(33),
        }]})
    }

    /// The document `/.well-known/openid-configuration`.
    pub(crate) fn configuration(&self, keys_url: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": keys_url,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            aud: vec!["https://kubernetes.default.svc".to_owned()],
            exp: 2000,
            iat: 1000,
            iss: "https://kubernetes.default.svc".to_owned(),
            jti: "one".to_owned(),
            kubernetes: Kubernetes { namespace: "default".to_owned(), ..Kubernetes::default() },
            nbf: 1000,
            sub: "system:serviceaccount:default:default".to_owned(),
        }
    }

    #[test]
    fn a_token_is_good_for_its_time_audience_and_issuer_alone() {
        let directory = tempfile::tempdir().unwrap();
        let issuer = "https://kubernetes.default.svc";
        let signer = Signer::open(directory.path(), issuer).unwrap();
        let audiences = vec![issuer.to_owned()];
        let token = signer.sign(&claims()).unwrap();
        assert_eq!(signer.verify(&token, &audiences, 1500), Ok(claims()));
        assert_eq!(signer.verify(&token, &audiences, 2000), Err(TokenError::Expired));
        assert_eq!(signer.verify(&token, &audiences, 999), Err(TokenError::Early));
        assert_eq!(signer.verify(&token, &["vault".to_owned()], 1500), Err(TokenError::Audience));
        assert_eq!(signer.verify("a.b.c", &audiences, 1500), Err(TokenError::Foreign));
        assert_eq!(signer.verify("", &audiences, 1500), Err(TokenError::Foreign));

        let again = Signer::open(directory.path(), issuer).unwrap();
        assert_eq!(again.verify(&token, &audiences, 1500), Ok(claims()));
        let other = Signer::open(tempfile::tempdir().unwrap().path(), issuer).unwrap();
        assert_eq!(other.verify(&token, &audiences, 1500), Err(TokenError::Signature));
        let renamed = Signer::open(directory.path(), "https://elsewhere").unwrap();
        assert_eq!(renamed.verify(&token, &audiences, 1500), Err(TokenError::Foreign));
    }

    #[test]
    fn a_token_without_a_signature_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let signer = Signer::open(directory.path(), "https://kubernetes.default.svc").unwrap();
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let forged = format!(
            "{}.{}.",
            encode(json!({"alg": "none"})),
            encode(serde_json::to_value(claims()).unwrap())
        );
        assert_eq!(signer.verify(&forged, &claims().aud, 1500), Err(TokenError::Foreign));
    }
}
