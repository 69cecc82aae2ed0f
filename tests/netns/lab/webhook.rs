//! A receiver of alerts: an HTTP server, also over TLS.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use serde_json::Value;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::TIMEOUT;
use super::ns::Ns;

/// A server that answers each request with 200. It ends with the test.
pub struct Webhook {
    /// The alerts of each request.
    requests: Receiver<Value>,
}

impl Webhook {
    /// Starts a server at an address of a namespace.
    pub fn start(ns: &Ns, address: &str) -> Self {
        Self::serve(ns, address, receive)
    }

    /// Starts a server that speaks TLS, with the certificate and the key of `pem`.
    pub fn start_tls(ns: &Ns, address: &str, pem: &str) -> Self {
        let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>();
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(certificates.expect("certificates"), key);
        let config = Arc::new(config.expect("a certificate"));
        Self::serve(ns, address, move |tcp| {
            let tls = ServerConnection::new(config.clone()).ok()?;
            receive(StreamOwned::new(tls, tcp))
        })
    }

    fn serve(
        ns: &Ns,
        address: &str,
        receive: impl Fn(TcpStream) -> Option<Value> + Send + 'static,
    ) -> Self {
        let listener = ns.enter(|| TcpListener::bind(address)).expect("a socket");
        let (sender, requests) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let alerts = receive(stream);
                if alerts.is_some_and(|alerts| sender.send(alerts).is_err()) {
                    return;
                }
            }
        });
        Self { requests }
    }

    /// Waits for an alert with this name.
    #[track_caller]
    pub fn expect(&self, alertname: &str) -> Value {
        let began = Instant::now();
        let mut others = Vec::new();
        while let Some(remaining) = TIMEOUT.checked_sub(began.elapsed()) {
            let Ok(alerts) = self.requests.recv_timeout(remaining) else {
                break;
            };
            let alerts = alerts.as_array().expect("a list of alerts").clone();
            let mut named = alerts
                .iter()
                .filter(|alert| alert["labels"]["alertname"] == alertname);
            if let Some(alert) = named.next() {
                return alert.clone();
            }
            others.push(alerts);
        }
        panic!("no {alertname}, but {others:?}");
    }
}

/// Reads a request, and answers it. Returns its body.
fn receive(mut stream: impl Read + Write) -> Option<Value> {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let len @ 1.. = stream.read(&mut buffer).ok()? else {
            return None;
        };
        request.extend_from_slice(&buffer[..len]);
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        assert!(head.starts_with("POST /api/v2/alerts HTTP/1.1"), "{head}");
        if let Ok(body) = serde_json::from_str::<Value>(body) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.flush();
            return Some(body);
        }
    }
}
