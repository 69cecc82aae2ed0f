//! TLS of the server: certificate, key, and the CA of clients.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, ServerConfig};
use webpki::EndEntityCert;

use crate::mnat::client_tls::{PemFileError, certificates, roots};

/// The files of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM file with the certificate and its chain.
    pub cert: PathBuf,
    /// PEM file with the key.
    pub key: PathBuf,
    /// PEM file with the CA of client certificates. Without it, none is requested.
    pub client_ca: Option<PathBuf>,
    /// Whether a client must have a certificate.
    pub require_client_cert: bool,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFilesError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] PemFileError),
    /// Certificate and key do not belong together, or their type is not supported.
    #[error("{} and {} cannot be used: {why}", .cert.display(), .key.display())]
    Certificate {
        /// The file of the certificate.
        cert: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// The reason.
        why: String,
    },
}

/// Inode, size and modification time of each file.
type Stamps = Vec<Option<(u64, u64, i64, i64)>>;

/// The configuration, which follows the files.
#[derive(Debug)]
pub struct TlsReloader {
    files: TlsFiles,
    stamps: Stamps,
    config: Arc<ServerConfig>,
}

impl TlsReloader {
    /// Reads the files.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn new(files: TlsFiles) -> Result<Self, TlsFilesError> {
        let stamps = stamps(&files);
        let config = Arc::new(load(&files)?);
        Ok(Self {
            files,
            stamps,
            config,
        })
    }

    /// Returns the configuration for the next connection.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// Reads the files again if they changed. Returns whether they were read. The former
    /// configuration stays while they cannot be used.
    ///
    /// # Errors
    /// They cannot be used, which is reported once for each change.
    pub fn reload(&mut self) -> Result<bool, TlsFilesError> {
        let stamps = stamps(&self.files);
        if stamps == self.stamps {
            return Ok(false);
        }
        self.stamps = stamps;
        self.config = Arc::new(load(&self.files)?);
        Ok(true)
    }
}

fn stamps(files: &TlsFiles) -> Stamps {
    let all = [
        Some(&files.cert),
        Some(&files.key),
        files.client_ca.as_ref(),
    ];
    let stamp = |path: &PathBuf| {
        let m = fs::metadata(path).ok()?;
        Some((m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
    };
    all.into_iter().flatten().map(stamp).collect()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

fn load(files: &TlsFiles) -> Result<ServerConfig, TlsFilesError> {
    let unusable = |why: String| TlsFilesError::Certificate {
        cert: files.cert.clone(),
        key: files.key.clone(),
        why,
    };
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable(e.to_string()))?;
    let config = match &files.client_ca {
        Some(ca) => {
            let roots = Arc::new(roots(ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let verifier = match files.require_client_cert {
                true => verifier,
                false => verifier.allow_unauthenticated(),
            };
            let verifier = verifier.build().map_err(|e| PemFileError::new(ca, e))?;
            config.with_client_cert_verifier(verifier)
        }
        None => config.with_no_client_auth(),
    };
    let key = PrivateKeyDer::from_pem_file(&files.key);
    let key = key.map_err(|e| PemFileError::new(&files.key, e))?;
    let mut config = config
        .with_single_cert(certificates(&files.cert)?, key)
        .map_err(|e| unusable(e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Clients keep their connections, so sessions are seldom resumed.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Returns the subject of a client certificate, which stays the same when the certificate is renewed.
pub fn subject(certificates: Option<&[CertificateDer<'_>]>) -> Option<Arc<[u8]>> {
    let certificate = certificates?.first()?;
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    Some(certificate.subject().into())
}

/// Returns a source of random numbers that cannot be predicted.
///
/// # Errors
/// The operating system has none.
pub fn secure_random() -> io::Result<Box<dyn FnMut() -> u128>> {
    let random = default_provider().secure_random;
    let fill = move || {
        let mut bytes = [0; 16];
        let filled: Result<(), rustls::crypto::GetRandomFailed> = random.fill(&mut bytes);
        filled.map(|()| u128::from_le_bytes(bytes))
    };
    let mut last = fill().map_err(|_| io::Error::other("the system has no random numbers"))?;
    Ok(Box::new(move || {
        // Fails only if the first call failed too.
        last = fill().unwrap_or_else(|_| last.wrapping_add(1));
        last
    }))
}
