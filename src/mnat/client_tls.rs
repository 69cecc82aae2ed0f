//! TLS of a client: the CA that verifies the server, a client certificate with its key, and the words
//! for what a server's certificate lacks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, InconsistentKeys, RootCertStore};

/// The documentation of certificates, for messages.
pub const CERTIFICATES: &str = "docs/mnat.md#certificates";

/// A PEM file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {why}", .path.display())]
pub struct PemFileError {
    /// The file.
    pub path: PathBuf,
    /// The reason.
    pub why: String,
}

impl PemFileError {
    /// Returns the error of a file.
    pub fn new(path: &Path, why: impl ToString) -> Self {
        Self {
            path: path.into(),
            why: why.to_string(),
        }
    }
}

/// Why a client cannot use TLS.
#[derive(Debug, thiserror::Error)]
pub enum ClientTlsError {
    /// A certificate or key cannot be read.
    #[error(transparent)]
    File(#[from] PemFileError),
    /// The client certificate and its key do not belong together, or their type is not supported.
    #[error("the client certificate {} cannot be used: {why}", .path.display())]
    ClientCertificate {
        /// The file of the certificate.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// There is no CA certificate to verify the server with.
    #[error(
        "no CA certificate to verify the server with; set {0}, or install the CA certificates of \
         the system"
    )]
    NoCa(&'static str),
    /// The TLS library refuses its own parameters.
    #[error("TLS cannot be used: {0}")]
    Library(rustls::Error),
}

/// The files of a client.
#[derive(Debug, Clone, Copy)]
pub struct ClientTlsFiles<'f> {
    /// PEM file with the CA of the server's certificate. `None` trusts the CAs of the system.
    pub ca: Option<&'f Path>,
    /// The option that names `ca`, for messages.
    pub ca_option: &'static str,
    /// PEM file with the client certificate and its chain.
    pub cert: Option<&'f Path>,
    /// PEM file with the key of the client certificate. `None` reads it from `cert`.
    pub key: Option<&'f Path>,
}

impl ClientTlsFiles<'_> {
    /// Reads the files.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn config(&self) -> Result<ClientConfig, ClientTlsError> {
        let roots = match self.ca {
            Some(ca) => roots(ca)?,
            None => {
                let mut roots = RootCertStore::empty();
                // Certificates that cannot be parsed are skipped, as in other TLS clients.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                roots
            }
        };
        if roots.is_empty() {
            return Err(ClientTlsError::NoCa(self.ca_option));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(ClientTlsError::Library)?
            .with_root_certificates(roots);
        let Some(cert) = self.cert else {
            return Ok(config.with_no_client_auth());
        };
        let key = self.key.unwrap_or(cert);
        let private_key = PrivateKeyDer::from_pem_file(key);
        let private_key = private_key.map_err(|e| PemFileError::new(key, e))?;
        let unusable = |e: rustls::Error| ClientTlsError::ClientCertificate {
            path: cert.into(),
            why: e.to_string(),
        };
        let provider = config.crypto_provider().key_provider;
        let private_key = provider.load_private_key(private_key).map_err(unusable)?;
        let client = CertifiedKey::new(certificates(cert)?, private_key);
        check_key(&client).map_err(unusable)?;
        Ok(config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(client))))
    }

    /// Describes why the certificate of the server `host` is rejected.
    pub fn rejection(&self, host: &str, why: &CertificateError) -> String {
        let ca = match self.ca {
            Some(ca) => format!("a CA in {}", ca.display()),
            None => {
                let option = self.ca_option;
                format!("a CA of this system; set {option} to trust another CA")
            }
        };
        match why {
            CertificateError::UnknownIssuer => format!("it is not signed by {ca}"),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("it is not valid for {host}")
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "it has expired".into()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "it is not valid yet; check the clock of this machine".into()
            }
            other if other.to_string().contains("UnsupportedCertVersion") => {
                format!("it has X.509 version 1, but TLS requires version 3; see {CERTIFICATES}")
            }
            other => other.to_string(),
        }
    }
}

/// Reads the certificates of a PEM file, of which there is at least one.
///
/// # Errors
/// The file cannot be read, or has none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemFileError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates: Vec<_> = read.map_err(|e| PemFileError::new(path, e))?;
    match certificates.is_empty() {
        true => Err(PemFileError::new(path, "the file contains no certificate")),
        false => Ok(certificates),
    }
}

/// Reads the CA certificates of a PEM file.
///
/// # Errors
/// The file cannot be read, or one of them cannot be used.
pub fn roots(path: &Path) -> Result<RootCertStore, PemFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|e| PemFileError::new(path, e))?;
    }
    Ok(roots)
}

/// Checks that certificate and key belong together.
///
/// rustls reads only certificates of version 3. It is the server that decides whether it accepts
/// another one, so only the presence of the public key is checked there.
fn check_key(client: &CertifiedKey) -> Result<(), rustls::Error> {
    let certificate = client.end_entity_cert()?;
    match client.keys_match() {
        Err(rustls::Error::InvalidCertificate(_)) if is_version_1(certificate) => {
            let public_key = client.key.public_key();
            let has_key = public_key.is_none_or(|key| contains(certificate, &key));
            match has_key {
                true => Ok(()),
                false => Err(InconsistentKeys::KeyMismatch.into()),
            }
        }
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(()),
        other => other,
    }
}

/// Returns whether a certificate has X.509 version 1: the first field of its TBSCertificate is the
/// serial number and not `[0] version` (RFC 5280 section 4.1).
pub fn is_version_1(certificate: &CertificateDer<'_>) -> bool {
    const SEQUENCE: u8 = 0x30;
    const INTEGER: u8 = 0x02;
    /// Returns the content of a DER sequence, and what follows it.
    fn sequence(der: &[u8]) -> Option<&[u8]> {
        let (&[tag, length], rest) = der.split_first_chunk()?;
        let length_bytes = match length {
            0..0x80 => 0,
            _ => usize::from(length & 0x7f),
        };
        rest.get(length_bytes..).filter(|_| tag == SEQUENCE)
    }
    let first = sequence(certificate).and_then(sequence);
    first.and_then(|tbs| tbs.first()) == Some(&INTEGER)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes
        .windows(part.len().max(1))
        .any(|window| window == part)
}
