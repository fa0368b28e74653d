//! The certificate authority of this instance and what it signs: the server's certificate, the kubelet's, and client
//! certificates. One CA signs all of them; which is good for what is in the extended key usage.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::{Timestamp, ToSpan, Zoned, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::file::{self, FileError};

const CA_YEARS: i16 = 10;
const LEAF_YEARS: i16 = 1;
/// A certificate that ends within this many days is renewed.
const RENEW_DAYS: i64 = 90;

/// Keys or certificates could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A certificate or key is not usable.
    #[error("{action} {path}: {source}; remove the file to have a new one made")]
    Certificate {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What rcgen said.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate could not be signed.
    #[error("signing the certificate of {subject}: {source}")]
    Sign {
        /// Whose certificate.
        subject: String,
        /// What rcgen said.
        #[source]
        source: rcgen::Error,
    },
    /// rustls refuses what was made.
    #[error("using the certificates in {path}: {reason}; remove the directory to have new ones made")]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// A certificate and its private key, both in PEM.
#[derive(Clone)]
pub struct KeyAndCertificate {
    /// The certificate.
    pub certificate_pem: String,
    /// The PKCS #8 private key.
    pub key_pem: String,
}

impl std::fmt::Debug for KeyAndCertificate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("KeyAndCertificate")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

/// What a certificate is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// `CN` is the user and each `O` a group.
    Client { groups: Vec<String> },
    /// The names and addresses that it is valid for.
    Server { names: Vec<String>, addresses: Vec<IpAddr> },
}

/// The certificate authority.
pub(crate) struct Authority {
    directory: PathBuf,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Authority").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads the CA in `directory`, or makes one.
    pub(crate) fn open(directory: &Path) -> Result<Self, PkiError> {
        file::make_directory(directory)?;
        let (certificate_path, key_path) = (directory.join("ca.crt"), directory.join("ca.key"));
        let present = file::read(&certificate_path)?.zip(file::read(&key_path)?);
        let pair = if let Some((certificate_pem, key_pem)) = present {
            KeyAndCertificate { certificate_pem, key_pem }
        } else {
            let made = make_authority()?;
            file::write(&key_path, &made.key_pem)?;
            file::write(&certificate_path, &made.certificate_pem)?;
            made
        };
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |source| PkiError::Certificate { action: "reading", path, source }
        };
        let key = KeyPair::from_pem(&pair.key_pem).map_err(unusable(&key_path))?;
        let issuer =
            Issuer::from_ca_cert_pem(&pair.certificate_pem, key).map_err(unusable(&certificate_path))?;
        Ok(Self { directory: directory.to_owned(), certificate_pem: pair.certificate_pem, issuer })
    }

    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The authority itself, as it lies on disk.
    pub(crate) fn pair(&self) -> Result<KeyAndCertificate, PkiError> {
        let key_path = self.directory.join("ca.key");
        let gone = || file::FileError {
            action: "reading",
            path: key_path.clone(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        let key_pem = file::read(&key_path)?.ok_or_else(gone)?;
        Ok(KeyAndCertificate { certificate_pem: self.certificate_pem.clone(), key_pem })
    }

    /// Signs a new certificate for a new key.
    pub(crate) fn issue(&self, common_name: &str, purpose: &Purpose) -> Result<KeyAndCertificate, PkiError> {
        let failed = |source| PkiError::Sign { subject: common_name.to_owned(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let params = leaf(common_name, purpose).map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(KeyAndCertificate { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// The certificate kept as `<name>.crt` and `<name>.key`; a new one when it is missing, ends soon, was signed by
    /// another CA or does not serve the purpose.
    pub(crate) fn keep(
        &self,
        name: &str,
        common_name: &str,
        purpose: &Purpose,
    ) -> Result<KeyAndCertificate, PkiError> {
        let certificate_path = self.directory.join(format!("{name}.crt"));
        let key_path = self.directory.join(format!("{name}.key"));
        if let (Some(certificate_pem), Some(key_pem)) =
            (file::read(&certificate_path)?, file::read(&key_path)?)
            && self.is_good(&certificate_pem, common_name, purpose)
            && belongs(&certificate_pem, &key_pem)
        {
            return Ok(KeyAndCertificate { certificate_pem, key_pem });
        }
        let made = self.issue(common_name, purpose)?;
        file::write(&key_path, &made.key_pem)?;
        file::write(&certificate_path, &made.certificate_pem)?;
        Ok(made)
    }

    /// Whether a certificate is ours, serves the purpose and does not end soon.
    pub(crate) fn is_good(&self, certificate_pem: &str, common_name: &str, purpose: &Purpose) -> bool {
        let parse = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).ok();
        let (Some(leaf), Some(ca)) = (parse(certificate_pem), parse(&self.certificate_pem)) else {
            return false;
        };
        let (Ok((_, leaf)), Ok((_, ca))) = (X509Certificate::from_der(&leaf), X509Certificate::from_der(&ca))
        else {
            return false;
        };
        let renew_at = Timestamp::now().as_second() + RENEW_DAYS * 24 * 3600;
        leaf.validity().not_after.timestamp() > renew_at
            && leaf.verify_signature(Some(ca.public_key())).is_ok()
            && subject(&leaf).0.as_deref() == Some(common_name)
            && serves(&leaf, purpose)
    }
}

/// The common name and the organisations of a certificate.
pub(crate) fn subject(certificate: &X509Certificate<'_>) -> (Option<String>, Vec<String>) {
    let name = certificate.subject();
    let common_name = name.iter_common_name().find_map(|part| part.as_str().ok()).map(str::to_owned);
    let organisations =
        name.iter_organization().filter_map(|part| part.as_str().ok()).map(str::to_owned).collect();
    (common_name, organisations)
}

fn serves(certificate: &X509Certificate<'_>, purpose: &Purpose) -> bool {
    let usage = certificate.extended_key_usage().ok().flatten();
    match purpose {
        Purpose::Client { groups } => {
            usage.is_some_and(|usage| usage.value.client_auth) && subject(certificate).1 == *groups
        }
        Purpose::Server { names, addresses } => {
            let alternatives = certificate.subject_alternative_name().ok().flatten();
            let found = alternatives.map(|extension| &extension.value.general_names);
            let has_name = |name: &String| {
                found.is_some_and(|found| {
                    found.iter().any(|one| matches!(one, GeneralName::DNSName(it) if it == name))
                })
            };
            let has_address = |address: &IpAddr| {
                let octets = match address {
                    IpAddr::V4(address) => address.octets().to_vec(),
                    IpAddr::V6(address) => address.octets().to_vec(),
                };
                found.is_some_and(|found| {
                    found.iter().any(|one| matches!(one, GeneralName::IPAddress(it) if *it == octets))
                })
            };
            usage.is_some_and(|usage| usage.value.server_auth)
                && names.iter().all(has_name)
                && addresses.iter().all(has_address)
        }
    }
}

/// Whether the two files were written together.
fn belongs(certificate_pem: &str, key_pem: &str) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(certificate_pem.as_bytes()) else { return false };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return false };
    let Ok(key) = KeyPair::from_pem(key_pem) else { return false };
    certificate.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
}

fn make_authority() -> Result<KeyAndCertificate, PkiError> {
    let failed = |source| PkiError::Sign { subject: "the certificate authority".to_owned(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, "kakoi");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, CA_YEARS);
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(KeyAndCertificate { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
}

fn leaf(common_name: &str, purpose: &Purpose) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    match purpose {
        Purpose::Client { groups } => {
            params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth);
            for group in groups {
                params.distinguished_name.push(DnType::OrganizationName, group.as_str());
            }
        }
        Purpose::Server { names, addresses } => {
            params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
            for name in names {
                params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
            }
            params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        }
    }
    set_validity(&mut params, LEAF_YEARS);
    Ok(params)
}

/// Valid from yesterday (clocks differ) for some years; with a random serial number.
fn set_validity(params: &mut CertificateParams, years: i16) {
    let now = Zoned::new(Timestamp::now(), TimeZone::UTC);
    let date = |zoned: Zoned| {
        let month = u8::try_from(zoned.month()).unwrap_or(1);
        let day = u8::try_from(zoned.day()).unwrap_or(1);
        rcgen::date_time_ymd(i32::from(zoned.year()), month, day)
    };
    params.not_before = date(now.saturating_sub(1.day()));
    params.not_after = date(now.saturating_add(years.years()));
    let mut serial = rand::random::<[u8; 16]>();
    if let Some(first) = serial.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(addresses: &[&str]) -> Purpose {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Purpose::Server { names: vec!["kubernetes".to_owned()], addresses }
    }

    #[test]
    fn a_certificate_is_kept_until_its_addresses_change() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open(directory.path()).unwrap();
        let first = authority.keep("apiserver", "kube-apiserver", &server(&["127.0.0.1", "::1"])).unwrap();
        let again = Authority::open(directory.path()).unwrap();
        assert_eq!(again.certificate_pem(), authority.certificate_pem());
        let same = again.keep("apiserver", "kube-apiserver", &server(&["127.0.0.1"])).unwrap();
        assert_eq!(same.certificate_pem, first.certificate_pem);
        let other = again.keep("apiserver", "kube-apiserver", &server(&["10.0.0.7"])).unwrap();
        assert_ne!(other.certificate_pem, first.certificate_pem);
        assert!(belongs(&other.certificate_pem, &other.key_pem));
        assert!(!belongs(&other.certificate_pem, &first.key_pem));
    }

    #[test]
    fn a_certificate_of_another_authority_is_replaced() {
        let one = Authority::open(tempfile::tempdir().unwrap().path()).unwrap();
        let two = Authority::open(tempfile::tempdir().unwrap().path()).unwrap();
        let purpose = Purpose::Client { groups: vec!["system:masters".to_owned()] };
        let admin = one.issue("kubernetes-admin", &purpose).unwrap();
        assert!(one.is_good(&admin.certificate_pem, "kubernetes-admin", &purpose));
        assert!(!two.is_good(&admin.certificate_pem, "kubernetes-admin", &purpose));
        assert!(!one.is_good(&admin.certificate_pem, "somebody", &purpose));
        assert!(!one.is_good(
            &admin.certificate_pem,
            "kubernetes-admin",
            &Purpose::Client { groups: vec![] }
        ));
    }
}
