//! An MNAT server to test against: TLS and HTTP/2 on a thread of its own, whose answers the
//! test decides, and certificates made on the spot.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// Signs certificates.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    cert: rcgen::Certificate,
}

/// A certificate and its key, in PEM and DER.
pub struct Identity {
    pub pem: String,
    cert: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = format!("test CA {}", rand());
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        Self { issuer, cert }
    }

    pub fn pem(&self) -> String {
        self.cert.pem()
    }

    /// A certificate for these names, shifted by so many days.
    pub fn sign(&self, names: &[&str], days: i64) -> Identity {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let year = 2024 + if days < 0 { -10 } else { 0 };
        params.not_before = rcgen::date_time_ymd(year, 1, 1);
        params.not_after = rcgen::date_time_ymd(if days < 0 { 2015 } else { 2100 }, 1, 1);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            pem: format!("{}{}", cert.pem(), key.serialize_pem()),
            cert: cert.der().clone(),
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        }
    }
}

/// Different for each caller.
fn rand() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// What a client asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub body: Vec<u8>,
    /// The certificate it showed, in DER.
    pub identity: Option<Vec<u8>>,
}

/// What it gets.
#[derive(Debug, Clone)]
pub enum Reply {
    Answer(u16, Vec<u8>),
    /// The connection ends without a word.
    Drop,
    /// RST_STREAM.
    Reset,
    /// GOAWAY, and nothing more.
    GoAway,
    /// Nothing, for so long; then this.
    Late(Duration, u16, Vec<u8>),
}

/// Decides what is answered.
pub trait Answers: Send + 'static {
    fn answer(&mut self, asked: Asked) -> Reply;
}

impl<F: FnMut(Asked) -> Reply + Send + 'static> Answers for F {
    fn answer(&mut self, asked: Asked) -> Reply {
        self(asked)
    }
}

/// How the server presents itself.
pub struct Tls {
    pub identity: Identity,
    /// Who must have signed the clients' certificates.
    pub clients: Option<Ca>,
    pub alpn: &'static [u8],
}

impl Tls {
    fn config(self) -> ServerConfig {
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match &self.clients {
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(ca.cert.der().clone()).unwrap();
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
            None => builder.with_no_client_auth(),
        };
        let Identity { cert, key, .. } = self.identity;
        let mut config = builder.with_single_cert(vec![cert], key).unwrap();
        config.alpn_protocols = vec![self.alpn.to_vec()];
        config
    }
}

/// A running server; dropped, it is gone with all its connections.
pub struct Server {
    pub address: SocketAddr,
    open: Arc<AtomicBool>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start(listener: TcpListener, tls: Tls, answers: impl Answers) -> Self {
        let address = listener.local_addr().unwrap();
        let config = Arc::new(tls.config());
        let open = Arc::new(AtomicBool::new(true));
        let (end, ended) = oneshot::channel();
        let is_open = open.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let answers: Arc<Mutex<dyn Answers>> = Arc::new(Mutex::new(answers));
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, config, answers, is_open) => {}
                    _ = ended => {}
                }
            });
        });
        Self {
            address,
            open,
            end: Some(end),
            thread: Some(thread),
        }
    }

    /// On a port of this host.
    pub fn local(tls: Tls, answers: impl Answers) -> Self {
        Self::start(TcpListener::bind("127.0.0.1:0").unwrap(), tls, answers)
    }

    /// Whether connections get further than TCP.
    pub fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::SeqCst);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    answers: Arc<Mutex<dyn Answers>>,
    open: Arc<AtomicBool>,
) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        if !open.load(Ordering::SeqCst) {
            continue;
        }
        let acceptor = TlsAcceptor::from(config.clone());
        tokio::spawn(serve(acceptor, tcp, answers.clone(), open.clone()));
    }
}

async fn serve(
    acceptor: TlsAcceptor,
    tcp: tokio::net::TcpStream,
    answers: Arc<Mutex<dyn Answers>>,
    open: Arc<AtomicBool>,
) -> Option<()> {
    let tls = acceptor.accept(tcp).await.ok()?;
    let identity = tls.get_ref().1.peer_certificates();
    let identity = identity.and_then(|c| c.first()).map(|c| c.to_vec());
    let mut connection = h2::server::handshake(tls).await.ok()?;
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request.ok()?;
        let (head, mut body) = request.into_parts();
        let mut bytes = Vec::new();
        loop {
            // The connection has to be driven for the body to come.
            let piece = tokio::select! {
                piece = body.data() => piece,
                _ = std::future::poll_fn(|cx| connection.poll_closed(cx)) => return None,
            };
            let Some(piece) = piece else { break };
            let piece = piece.ok()?;
            let _ = body.flow_control().release_capacity(piece.len());
            bytes.extend_from_slice(&piece);
        }
        if !open.load(Ordering::SeqCst) {
            return None;
        }
        let asked = Asked {
            method: head.method.to_string(),
            path: head.uri.path().to_string(),
            body: bytes,
            identity: identity.clone(),
        };
        let reply = answers.lock().unwrap().answer(asked);
        let (status, body) = match reply {
            Reply::Answer(status, body) => (status, body),
            Reply::Late(wait, status, body) => {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    _ = std::future::poll_fn(|cx| connection.poll_closed(cx)) => return None,
                }
                (status, body)
            }
            Reply::Drop => return None,
            Reply::Reset => {
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
                continue;
            }
            Reply::GoAway => {
                connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                continue;
            }
        };
        let head = http::Response::builder().status(status).body(()).unwrap();
        let empty = body.is_empty();
        let mut send = respond.send_response(head, empty).ok()?;
        if !empty {
            send.send_data(Bytes::from(body), true).ok()?;
        }
    }
    Some(())
}

/// Files of one client.
pub struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file as one does who replaces it.
    pub fn put(&self, name: &str, text: &str) -> PathBuf {
        let beside = self.path(&format!("{name}.new"));
        std::fs::write(&beside, text).unwrap();
        rename(&beside, &self.path(name))
    }
}

fn rename(from: &Path, to: &Path) -> PathBuf {
    std::fs::rename(from, to).unwrap();
    to.to_path_buf()
}
