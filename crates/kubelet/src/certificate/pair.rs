//! A certificate with its key: read from PEM, checked against each other, and when it should be renewed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The part of its life after which a certificate is renewed, and how much later it may be: 70 to 90 %, as upstream.
const FIRST_RENEWAL: f64 = 0.7;
const RENEWAL_SPREAD: f64 = 0.2;

/// A certificate chain and its private key.
pub struct Pair {
    pem: Vec<u8>,
    certified: Arc<CertifiedKey>,
    not_before: Timestamp,
    not_after: Timestamp,
    common_name: String,
    hosts: BTreeSet<String>,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("common_name", &self.common_name).finish_non_exhaustive()
    }
}

/// Why PEM text is no pair.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// There is no certificate, or no key.
    #[error("it holds no {what} in PEM: {source}")]
    Pem {
        /// Which of the two.
        what: &'static str,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate cannot be read.
    #[error("its certificate cannot be read: {0}")]
    Certificate(String),
    /// The key is of a kind that cannot be used, or is not the certificate's.
    #[error("its key cannot be used with its certificate: {0}")]
    Key(#[from] rustls::Error),
}

impl Pair {
    /// Reads a chain, the own certificate first, and a key, in any order.
    ///
    /// # Errors
    /// See [`PairError`]; also when the key is not the certificate's.
    pub fn from_pem(pem: &[u8]) -> Result<Self, PairError> {
        let failed = |what| move |source| PairError::Pem { what, source };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let chain = chain.map_err(failed("certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(failed("private key"))?;
        let none = || failed("certificate")(rustls::pki_types::pem::Error::NoItemsFound);
        let first = chain.first().ok_or_else(none)?.clone();
        let (_, parsed) =
            X509Certificate::from_der(&first).map_err(|error| PairError::Certificate(error.to_string()))?;
        let certified = CertifiedKey::new(chain, any_supported_type(&key)?);
        certified.keys_match()?;
        let at = |time: x509_parser::time::ASN1Time| {
            Timestamp::from_second(time.timestamp())
                .map_err(|error| PairError::Certificate(error.to_string()))
        };
        let names = parsed.subject();
        let common_name = names.iter_common_name().find_map(|name| name.as_str().ok()).unwrap_or_default();
        Ok(Self {
            pem: pem.to_owned(),
            certified: Arc::new(certified),
            not_before: at(parsed.validity().not_before)?,
            not_after: at(parsed.validity().not_after)?,
            common_name: common_name.to_owned(),
            hosts: hosts(&parsed),
        })
    }

    /// All of it, as it is kept.
    pub fn pem(&self) -> &[u8] {
        &self.pem
    }

    /// The chain and the key for a TLS handshake.
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    /// Whether the certificate is good at this time.
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        (self.not_before..self.not_after).contains(&now)
    }

    /// Whether the certificate is this user's, for these hosts and no others.
    pub(super) fn is_for(&self, common_name: &str, hosts: &[String]) -> bool {
        self.common_name == common_name && self.hosts == hosts.iter().cloned().collect()
    }

    /// When to ask for the next one: after 70 to 90 % of its life, as `share` (0 to 1) says. Life begins when it was
    /// `written`: signers date certificates back, and those that live for minutes would be due before they came.
    pub(super) fn plan_renewal(&self, written: Timestamp, share: f64) -> Timestamp {
        let begin = written.clamp(self.not_before, self.not_after);
        let life = self.not_after.duration_since(begin).as_secs_f64();
        let part = SignedDuration::try_from_secs_f64(life * (FIRST_RENEWAL + RENEWAL_SPREAD * share));
        part.ok().and_then(|part| begin.checked_add(part).ok()).unwrap_or(self.not_after)
    }
}

/// Whether the first certificate in PEM text is good at this time; what is no certificate is not.
pub fn is_valid_at(pem: &[u8], now: Timestamp) -> bool {
    let Ok(first) = CertificateDer::from_pem_slice(pem) else { return false };
    let Ok((_, parsed)) = X509Certificate::from_der(&first) else { return false };
    let validity = parsed.validity();
    (validity.not_before.timestamp()..validity.not_after.timestamp()).contains(&now.as_second())
}

/// The DNS names and addresses of a certificate.
fn hosts(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    /// A pair that signs itself.
    pub(in super::super) fn made(name: &str, hosts: &[&str], days: (i32, u8, u8)) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(days.0, days.1, days.2);
        let certificate = params.self_signed(&key).unwrap();
        format!("{}{}", certificate.pem(), key.serialize_pem()).into_bytes()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_pair_tells_whose_it_is_and_until_when() {
        let pair = Pair::from_pem(&made("system:node:a", &["a", "192.0.2.1"], (2026, 1, 11))).unwrap();
        assert!(pair.is_for("system:node:a", &["192.0.2.1".into(), "a".into()]));
        assert!(!pair.is_for("system:node:a", &["a".into()]) && !pair.is_for("system:node:b", &[]));
        assert!(
            pair.is_valid_at(at("2026-01-01T00:00:00Z")) && !pair.is_valid_at(at("2026-01-11T00:00:00Z"))
        );
    }

    #[test]
    fn half_a_pair_and_another_ones_key_are_refused() {
        let (one, other) = (made("a", &[], (2027, 1, 1)), made("b", &[], (2027, 1, 1)));
        let text = |pem: &[u8]| String::from_utf8(pem.to_owned()).unwrap();
        let key_of = |pem: &[u8]| text(pem).split_once("-----BEGIN PRIVATE").unwrap().1.to_owned();
        let certificate = text(&one).split_once("-----BEGIN PRIVATE").unwrap().0.to_owned();
        let mixed = format!("{certificate}-----BEGIN PRIVATE{}", key_of(&other));
        assert!(matches!(Pair::from_pem(mixed.as_bytes()), Err(PairError::Key(_))));
        assert!(matches!(
            Pair::from_pem(certificate.as_bytes()),
            Err(PairError::Pem { what: "private key", .. })
        ));
        assert!(matches!(Pair::from_pem(b""), Err(PairError::Pem { .. })));
    }

    #[test]
    fn renewal_is_due_in_the_last_third_of_the_life_that_is_left_when_it_came() {
        let pair = Pair::from_pem(&made("a", &[], (2026, 1, 11))).unwrap();
        let first = at("2026-01-01T00:00:00Z");
        assert_eq!(pair.plan_renewal(first, 0.0), at("2026-01-08T00:00:00Z"));
        assert_eq!(pair.plan_renewal(first, 1.0), at("2026-01-10T00:00:00Z"));
        // A signer that dated it back by nine days leaves one.
        assert_eq!(pair.plan_renewal(at("2026-01-10T00:00:00Z"), 0.0), at("2026-01-10T16:48:00Z"));
        assert_eq!(pair.plan_renewal(at("2030-01-01T00:00:00Z"), 0.5), at("2026-01-11T00:00:00Z"));
    }
}
