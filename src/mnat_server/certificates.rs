//! Certificates for a server and its clients, from a CA of their own.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// How long the certificates are valid.
const VALIDITY: Duration = Duration::from_secs(3650 * 24 * 3600);
/// The files: CA, key of the CA, certificate and key of the server, certificate and key of a client.
const FILES: [&str; 5] = ["ca.pem", "ca.key", "server.crt", "server.key", "client.pem"];

/// Why certificates cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// Some files exist already.
    #[error("{} exists, and other files of the set do not; remove it, or use another folder", .0.display())]
    Incomplete(PathBuf),
    /// A name is not valid.
    #[error("{0}")]
    Invalid(#[from] rcgen::Error),
    /// A file cannot be written, or the folder cannot be created.
    #[error("{}: {}", .0.display(), .1)]
    File(PathBuf, io::Error),
}

/// Writes the certificates of a server with these `names` into `folder`, which is created with the
/// mode 0700 if it is missing. Returns false if all files are there, which stay.
///
/// # Errors
/// A name is not valid, a file cannot be written, or the folder cannot be created.
pub fn write(folder: &Path, names: &[String]) -> Result<bool, CertificatesError> {
    let paths = FILES.map(|name| folder.join(name));
    let existing: Vec<&PathBuf> = paths.iter().filter(|path| path.exists()).collect();
    match existing.first() {
        None => {}
        Some(_) if existing.len() == paths.len() => return Ok(false),
        Some(some) => return Err(CertificatesError::Incomplete(some.to_path_buf())),
    }
    let ca_key = KeyPair::generate()?;
    let mut ca = parameters(&[], "MNAT CA")?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, &ca_key);
    let issue = |names: &[String], name: &str, usage| {
        let key = KeyPair::generate()?;
        let mut wanted = parameters(names, name)?;
        wanted.extended_key_usages = vec![usage];
        let certificate = wanted.signed_by(&key, &issuer)?;
        Ok::<_, rcgen::Error>((certificate.pem(), key.serialize_pem()))
    };
    let server = names.first().map_or("MNAT server", String::as_str);
    let (server, server_key) = issue(names, server, ExtendedKeyUsagePurpose::ServerAuth)?;
    let (client, client_key) = issue(&[], "MNAT client", ExtendedKeyUsagePurpose::ClientAuth)?;
    let created = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    created.map_err(|e| CertificatesError::File(folder.into(), e))?;
    let texts = [
        (ca_certificate.pem(), 0o644),
        (ca_key.serialize_pem(), 0o600),
        (server, 0o644),
        (server_key, 0o600),
        (client + &client_key, 0o600),
    ];
    for (path, (text, mode)) in paths.into_iter().zip(texts) {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|e| CertificatesError::File(path, e))?;
    }
    Ok(true)
}

fn parameters(names: &[String], name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(names)?;
    parameters.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    // Machines whose clocks are a little late accept the certificate too.
    parameters.not_before = (now - Duration::from_secs(3600)).into();
    parameters.not_after = (now + VALIDITY).into();
    Ok(parameters)
}
