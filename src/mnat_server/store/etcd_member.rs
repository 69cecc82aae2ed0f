//! The members of an etcd cluster, and connections to them: plain ones, or TLS with a client
//! certificate.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::ServerName;
use tracing::debug;

use crate::mnat::client_tls::ClientTlsFiles;

/// How to reach an etcd cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EtcdOptions {
    /// The members, `http://HOST:PORT` or `https://HOST:PORT` each.
    pub urls: Vec<String>,
    /// PEM file with the CA of their certificates. `None` trusts the CAs of the system.
    pub ca: Option<PathBuf>,
    /// PEM file with the client certificate and its chain.
    pub cert: Option<PathBuf>,
    /// PEM file with the key of the client certificate. `None` reads it from `cert`.
    pub key: Option<PathBuf>,
    /// The user of etcd, and the file with the password.
    pub user: Option<(String, PathBuf)>,
}

impl EtcdOptions {
    /// Returns the files of TLS.
    pub(super) fn tls_files(&self) -> ClientTlsFiles<'_> {
        ClientTlsFiles {
            ca: self.ca.as_deref(),
            ca_option: "--etcd-ca",
            cert: self.cert.as_deref(),
            key: self.key.as_deref(),
        }
    }
}

/// Sends requests on a connection.
pub(super) type EtcdSender = SendRequest<Full<Bytes>>;

/// A member.
#[derive(Debug, Clone)]
pub(super) struct EtcdMember {
    /// Host and port.
    address: String,
    /// The name that its certificate must have; `None` without TLS.
    tls_name: Option<ServerName<'static>>,
}

impl EtcdMember {
    /// Returns the member with this URL; `None` if it is not one.
    pub(super) fn parse(url: &str) -> Option<Self> {
        let (scheme, address) = url.trim().split_once("://")?;
        let address = address.trim_end_matches('/');
        let (host, port) = address.rsplit_once(':')?;
        port.parse::<u16>().ok()?;
        let v6 = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let tls_name = match scheme {
            "http" => None,
            "https" => Some(ServerName::try_from(v6.unwrap_or(host).to_owned()).ok()?),
            _ => return None,
        };
        Some(Self {
            address: address.into(),
            tls_name,
        })
    }

    /// Returns host and port.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Returns whether the connection is encrypted.
    pub(super) fn has_tls(&self) -> bool {
        self.tls_name.is_some()
    }

    /// Opens a connection. The files of TLS are read each time, so that new ones are used.
    ///
    /// # Errors
    /// The reason, as a text.
    pub(super) async fn connect(&self, options: &EtcdOptions) -> Result<EtcdSender, String> {
        let tcp = TcpStream::connect(&self.address).await;
        let tcp = tcp.map_err(|e| e.to_string())?;
        // Calls are small and wait for each other.
        let _ = tcp.set_nodelay(true);
        let Some(name) = self.tls_name.clone() else {
            return shake_hands(tcp).await;
        };
        let files = options.tls_files();
        let config = files.config().map_err(|e| e.to_string())?;
        let host = name.to_str().into_owned();
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        let tls = tls.await.map_err(|e| tls_error(&e, &host, files))?;
        shake_hands(tls).await
    }

    /// Returns the likely cause if a new connection ends without an answer.
    pub(super) fn hint(&self, options: &EtcdOptions) -> String {
        match (&self.tls_name, &options.cert) {
            (None, _) => "if it has TLS, use https://".into(),
            (Some(_), None) => "it may require a client certificate: set --etcd-cert".into(),
            (Some(_), Some(cert)) => {
                format!(
                    "it may not accept the client certificate {}",
                    cert.display()
                )
            }
        }
    }
}

async fn shake_hands(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
) -> Result<EtcdSender, String> {
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(|e| http_error(&e))?;
    actix_rt::spawn(async move {
        if let Err(e) = connection.await {
            debug!(
                "mnat-server: the connection to etcd ended: {}",
                http_error(&e)
            );
        }
    });
    Ok(sender)
}

/// Describes why the TLS handshake with the member `host` failed.
fn tls_error(error: &io::Error, host: &str, files: ClientTlsFiles<'_>) -> String {
    let cause = error.get_ref().and_then(|e| e.downcast_ref());
    match cause {
        Some(rustls::Error::InvalidCertificate(why)) => {
            format!(
                "its certificate is rejected: {}",
                files.rejection(host, why)
            )
        }
        Some(rustls::Error::InvalidMessage(_)) => "it has no TLS; use http://".into(),
        _ if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it closed the connection in the TLS handshake; if it has no TLS, use http://".into()
        }
        _ => format!("TLS failed: {error}"),
    }
}

/// Describes an error of HTTP with its cause, such as a TLS alert.
pub(super) fn http_error(error: &hyper::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed() {
        for (url, expected) in [
            ("http://10.0.0.1:2379", Some(("10.0.0.1:2379", None))),
            (" http://etcd:2379/ ", Some(("etcd:2379", None))),
            (
                "https://etcd.example.net:2379",
                Some(("etcd.example.net:2379", Some("etcd.example.net"))),
            ),
            (
                "https://[fd00::1]:2379",
                Some(("[fd00::1]:2379", Some("fd00::1"))),
            ),
            ("https://etcd", None),
            ("https://:2379", None),
            ("https://a b:2379", None),
            ("http://etcd:99999", None),
            ("etcd:2379", None),
            ("ftp://etcd:2379", None),
        ] {
            let member = EtcdMember::parse(url);
            let parts = member.as_ref().map(|member| {
                let name = member.tls_name.as_ref().map(|name| name.to_str());
                (
                    member.address().to_owned(),
                    name.map(|name| name.into_owned()),
                )
            });
            let expected = expected.map(|(address, name): (&str, Option<&str>)| {
                (address.to_owned(), name.map(str::to_owned))
            });
            assert_eq!(parts, expected, "{url}");
        }
    }
}
