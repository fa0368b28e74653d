//! Signs certificates with the cluster's authority. What a request asks for beside its subject, its names and its key is
//! not taken over: usages are those that were approved, and nothing becomes an authority.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::request::Request;

/// How long a certificate is good that does not say, and at most, unless the authority has another duration: a year.
const LONGEST: i64 = 365 * 24 * 3600;
/// How long it is good at least where it says, as the API demands of requests.
const SHORTEST: i64 = 600;
/// How long before its making it begins: clocks differ.
const BEFORE: i64 = 300;
/// Certificates of less than this are good for all of it, in spite of [`BEFORE`].
const SHORT: i64 = 8 * 3600;

/// The cluster's certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// When its own certificate ends, in seconds since 1970.
    end: i64,
    /// How long what it signs is good at most, in seconds.
    longest: i64,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Authority").field("end", &self.end).finish_non_exhaustive()
    }
}

/// A certificate and key that nothing can be signed with.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The key.
    #[error("the authority's key is not usable: {0}; give it as PKCS #8 in PEM")]
    Key(#[source] rcgen::Error),
    /// The certificate.
    #[error("the authority's certificate is not usable: {0}; give it in PEM")]
    Certificate(String),
}

impl Authority {
    /// The authority of a certificate and its key, both in PEM.
    ///
    /// # Errors
    /// When one of them can't be used.
    pub fn new(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(key_pem).map_err(AuthorityError::Key)?;
        let wrong = |error: String| AuthorityError::Certificate(error);
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| wrong(error.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| wrong(error.to_string()))?;
        let end = parsed.validity().not_after.timestamp();
        let issuer =
            Issuer::from_ca_cert_pem(certificate_pem, key).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { issuer, end, longest: LONGEST })
    }

    /// The same with another duration of what it signs (`--cluster-signing-duration`), in whole seconds.
    #[must_use]
    pub fn with_duration(self, longest: Duration) -> Self {
        Self { longest: i64::try_from(longest.as_secs()).unwrap_or(LONGEST), ..self }
    }

    /// Signs a request that was checked; gives the certificate in PEM.
    pub(super) fn sign(&self, request: &Request, now: Timestamp) -> Result<String, String> {
        let failed = |error: rcgen::Error| format!("the request can't be signed: {error}");
        let mut asked = CertificateSigningRequestParams::from_der(&request.der()?).map_err(failed)?;
        let (begin, end) = lifetime(request.lifetime(), now.as_second(), self)?;
        let params = &mut asked.params;
        params.is_ca = IsCa::NoCa;
        let at = |seconds: i64| {
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
        };
        params.not_before = at(begin);
        params.not_after = at(end);
        params.serial_number = Some(serial());
        params.use_authority_key_identifier_extension = true;
        let usages = request.usages();
        let key = [
            ("digital signature", KeyUsagePurpose::DigitalSignature),
            ("key encipherment", KeyUsagePurpose::KeyEncipherment),
        ];
        params.key_usages =
            key.into_iter().filter(|(name, _)| usages.contains(name)).map(|(_, usage)| usage).collect();
        let extended = [
            ("client auth", ExtendedKeyUsagePurpose::ClientAuth),
            ("server auth", ExtendedKeyUsagePurpose::ServerAuth),
        ];
        params.extended_key_usages =
            extended.into_iter().filter(|(name, _)| usages.contains(name)).map(|(_, usage)| usage).collect();
        Ok(asked.signed_by(&self.issuer).map_err(failed)?.pem())
    }
}

/// From when to when a certificate is good, in seconds since 1970; never longer than its authority.
fn lifetime(asked: Option<i64>, now: i64, authority: &Authority) -> Result<(i64, i64), String> {
    let length = asked.map_or(authority.longest, |asked| asked.max(SHORTEST).min(authority.longest));
    let end = now + if length < SHORT { length } else { length - BEFORE };
    if authority.end <= now {
        return Err("the authority's own certificate has ended".to_owned());
    }
    Ok((now - BEFORE, end.min(authority.end)))
}

fn serial() -> SerialNumber {
    let mut serial = rand::random::<[u8; 16]>();
    if let Some(first) = serial.first_mut() {
        // Positive, and of full length.
        *first = *first & 0x7f | 0x40;
    }
    SerialNumber::from_slice(&serial)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use rcgen::{CertificateParams, DnType, SanType};
    use serde_json::json;

    use super::super::request::{check, check_kubelet_client};
    use super::*;

    fn authority() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Authority::new(&certificate.pem(), &key.serialize_pem()).unwrap()
    }

    fn request(signer: &str, name: &str, group: &str, host: Option<&str>, usages: &[&str]) -> Request {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.subject_alt_names =
            host.map(|host| SanType::DnsName(host.try_into().unwrap())).into_iter().collect();
        // Asked for in vain.
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        json!({"metadata": {"name": "r"}, "spec": {"signerName": format!("kubernetes.io/{signer}"),
            "request": STANDARD.encode(pem), "usages": usages}})
        .into()
    }

    const CLIENT: &[&str] = &["digital signature", "client auth"];
    const SERVER: &[&str] = &["digital signature", "key encipherment", "server auth"];

    #[test]
    fn each_signer_signs_what_is_documented_of_it() {
        const KUBELET: &str = "kube-apiserver-client-kubelet";
        for (signer, name, group, host, usages, expected) in [
            (KUBELET, "system:node:a", "system:nodes", None, CLIENT, ""),
            (
                KUBELET,
                "a",
                "system:nodes",
                None,
                CLIENT,
                "subject common name does not begin with system:node:",
            ),
            (KUBELET, "system:node:a", "team", None, CLIENT, "subject organization is not system:nodes"),
            (
                KUBELET,
                "system:node:a",
                "system:nodes",
                Some("a"),
                CLIENT,
                "DNS and IP subjectAltNames are not allowed",
            ),
            (KUBELET, "system:node:a", "system:nodes", None, SERVER, "usages did not match"),
            ("kubelet-serving", "system:node:a", "system:nodes", Some("a"), SERVER, ""),
            (
                "kubelet-serving",
                "system:node:a",
                "system:nodes",
                None,
                SERVER,
                "DNS or IP subjectAltName is required",
            ),
            ("kubelet-serving", "system:node:a", "system:nodes", Some("a"), CLIENT, "usages did not match"),
            ("kube-apiserver-client", "jane", "team", None, CLIENT, ""),
            ("kube-apiserver-client", "jane", "team", None, SERVER, "usages did not match"),
        ] {
            let request = request(signer, name, group, host, usages);
            let found = check(&request, &request.subject().unwrap());
            let said = found.err().unwrap_or_default();
            assert!(
                said.starts_with(expected) && said.is_empty() == expected.is_empty(),
                "{signer} {name}: {said}"
            );
        }
    }

    #[test]
    fn a_certificate_has_the_subject_and_the_usages_and_is_no_authority() {
        let request = request("kube-apiserver-client-kubelet", "system:node:a", "system:nodes", None, CLIENT);
        check_kubelet_client(&request, &request.subject().unwrap()).unwrap();
        let now = Timestamp::now();
        let pem = authority().sign(&request, now).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert!(!certificate.is_ca());
        assert_eq!(certificate.subject().iter_common_name().next().unwrap().as_str(), Ok("system:node:a"));
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
        let validity = certificate.validity();
        assert_eq!(validity.not_before.timestamp(), now.as_second() - BEFORE);
        assert_eq!(validity.not_after.timestamp(), now.as_second() + LONGEST - BEFORE);
    }

    #[test]
    fn a_certificate_is_good_as_long_as_asked_within_bounds() {
        let ends_at = |end| Authority { end, ..authority() };
        for (asked, end, expected) in [
            (None, i64::MAX, 1_000_000 + LONGEST - BEFORE),
            (Some(3600), i64::MAX, 1_003_600),
            (Some(1), i64::MAX, 1_000_600),
            (Some(i64::MAX), i64::MAX, 1_000_000 + LONGEST - BEFORE),
            (None, 1_000_010, 1_000_010),
        ] {
            assert_eq!(lifetime(asked, 1_000_000, &ends_at(end)), Ok((999_700, expected)), "{asked:?}");
        }
        lifetime(None, 1_000_000, &ends_at(999_999)).unwrap_err();
        let short = ends_at(i64::MAX).with_duration(Duration::from_secs(20));
        for asked in [None, Some(3600), Some(600)] {
            assert_eq!(lifetime(asked, 1_000_000, &short), Ok((999_700, 1_000_020)), "{asked:?}");
        }
    }
}
