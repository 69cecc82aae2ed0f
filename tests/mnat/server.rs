//! An MNAT server for tests: TLS and HTTP/2 in a separate thread. The test decides the responses.
//! Certificates are created at run time.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SigningKey};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{
    self, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, ServerConnection,
    SignatureScheme,
};

/// A CA that signs certificates.
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

    /// Returns a certificate for `names`. It has expired if `days` is negative.
    pub fn sign(&self, names: &[&str], days: i64) -> Identity {
        let mut subject = rcgen::DistinguishedName::new();
        subject.push(DnType::CommonName, names[0]);
        self.sign_subject(subject, names, days)
    }

    /// As [`Self::sign`], without a common name.
    pub fn sign_without_common_name(&self, names: &[&str]) -> Identity {
        self.sign_subject(rcgen::DistinguishedName::new(), names, 0)
    }

    fn sign_subject(
        &self,
        subject: rcgen::DistinguishedName,
        names: &[&str],
        days: i64,
    ) -> Identity {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = subject;
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

impl Identity {
    /// Returns the certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.cert
    }
}

impl Ca {
    /// As [`Ca::sign`], with X.509 version 1: without version and extensions.
    pub fn sign_version_1(&self, name: &str) -> Identity {
        const BIT_STRING: u8 = 0x03;
        let identity = self.sign(&[name], 0);
        let certificate = fields(&identity.cert);
        let signed = fields(certificate[0]);
        let [version, kept @ .., extensions] = &signed[..] else {
            panic!("no certificate");
        };
        assert_eq!((version[0], extensions[0]), (0xa0, 0xa3));
        let signed = element(SEQUENCE, &kept.concat());
        let signature = self.issuer.key().sign(&signed).unwrap();
        let signature = element(BIT_STRING, &[&[0], &signature[..]].concat());
        let cert = element(
            SEQUENCE,
            &[&signed[..], certificate[1], &signature].concat(),
        );
        let (_, key) = identity.pem.split_once("-----BEGIN PRIVATE").unwrap();
        let pem = pem::encode(&pem::Pem::new("CERTIFICATE", &cert[..]));
        Identity {
            pem: format!("{pem}-----BEGIN PRIVATE{key}"),
            cert: cert.into(),
            key: identity.key,
        }
    }
}

const SEQUENCE: u8 = 0x30;

/// Returns a DER element.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    assert!(length < 1 << 16);
    let head = [tag, 0x82, (length >> 8) as u8, length as u8];
    match length {
        0..0x80 => [&[tag, length as u8], content].concat(),
        0x80..0x100 => [&[tag, 0x81, length as u8], content].concat(),
        _ => [&head, content].concat(),
    }
}

/// Returns the elements of a DER sequence.
fn fields(sequence: &[u8]) -> Vec<&[u8]> {
    /// Returns the lengths of the head and of the content of the first element.
    fn lengths(der: &[u8]) -> (usize, usize) {
        match der[1] {
            0x81 => (3, der[2].into()),
            0x82 => (4, usize::from(der[2]) << 8 | usize::from(der[3])),
            length => (2, length.into()),
        }
    }
    let mut rest = &sequence[lengths(sequence).0..];
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (head, content) = lengths(rest);
        let (first, others) = rest.split_at(head + content);
        all.push(first);
        rest = others;
    }
    all
}

/// Accepts any client certificate, also one that cannot be parsed, and none.
#[derive(Debug)]
struct AnyClient;

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// When a [`ClosingServer`] closes the connection, without an alert or close_notify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseAt {
    /// Before it sends anything.
    Start,
    /// With its first messages, in TLS 1.2.
    ServerHello,
    /// After the handshake.
    Finished,
}

/// A server that requests a client certificate and closes TCP in or after the handshake.
pub struct ClosingServer {
    pub address: SocketAddr,
    /// The client certificates that it received, one for each handshake, in DER.
    pub received: Arc<Mutex<Vec<Option<Vec<u8>>>>>,
}

impl ClosingServer {
    /// Starts a server on a free port of 127.0.0.1. It ends with the test.
    pub fn start(identity: Identity, at: CloseAt) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let provider = Arc::new(default_provider());
        let key = provider.key_provider.load_private_key(identity.key);
        let key = CertifiedKey::new(vec![identity.cert], key.unwrap());
        let versions: &[_] = match at {
            CloseAt::ServerHello => &[&rustls::version::TLS12],
            _ => &[&rustls::version::TLS13],
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(Arc::new(AnyClient))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        let received = Arc::new(Mutex::new(Vec::new()));
        let seen = received.clone();
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                let mut tcp = tcp.unwrap();
                let mut tls = ServerConnection::new(config.clone()).unwrap();
                tls.read_tls(&mut tcp).unwrap();
                if at == CloseAt::Start {
                    continue;
                }
                tls.process_new_packets().unwrap();
                while tls.wants_write() {
                    tls.write_tls(&mut tcp).unwrap();
                }
                if at == CloseAt::Finished && tls.complete_io(&mut tcp).is_ok() {
                    let identity = tls.peer_certificates().and_then(|c| c.first());
                    seen.lock().unwrap().push(identity.map(|c| c.to_vec()));
                }
            }
        });
        Self { address, received }
    }
}

/// Returns a random number.
fn rand() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// A request that the server received.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceivedRequest {
    pub method: String,
    pub path: String,
    pub body: Vec<u8>,
    /// The client certificate, in DER.
    pub identity: Option<Vec<u8>>,
}

/// The reaction of the server to a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// A response with this status and body.
    Answer(u16, Vec<u8>),
    /// The connection is closed without a response.
    Drop,
    /// The stream is reset (RST_STREAM).
    Reset,
    /// The connection is ended with GOAWAY.
    GoAway,
    /// A response after a delay.
    Late(Duration, u16, Vec<u8>),
}

/// Decides how the server reacts to a request.
pub trait RequestHandler: Send + 'static {
    fn answer(&mut self, request: ReceivedRequest) -> Reply;
}

impl<F: FnMut(ReceivedRequest) -> Reply + Send + 'static> RequestHandler for F {
    fn answer(&mut self, request: ReceivedRequest) -> Reply {
        self(request)
    }
}

/// The TLS settings of the server.
pub struct Tls {
    pub identity: Identity,
    /// The CA of the client certificates. `None` requires no client certificate.
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

/// A running server. When dropped, it closes all its connections.
pub struct Server {
    pub address: SocketAddr,
    open: Arc<AtomicBool>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start(listener: TcpListener, tls: Tls, answers: impl RequestHandler) -> Self {
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
            let answers: Arc<Mutex<dyn RequestHandler>> = Arc::new(Mutex::new(answers));
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

    /// Starts a server on a free port of 127.0.0.1.
    pub fn local(tls: Tls, answers: impl RequestHandler) -> Self {
        Self::start(TcpListener::bind("127.0.0.1:0").unwrap(), tls, answers)
    }

    /// Sets whether the server accepts TLS on new connections and answers requests.
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
    answers: Arc<Mutex<dyn RequestHandler>>,
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
    answers: Arc<Mutex<dyn RequestHandler>>,
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
            // The body arrives only while the connection is polled.
            let chunk = tokio::select! {
                chunk = body.data() => chunk,
                _ = std::future::poll_fn(|cx| connection.poll_closed(cx)) => return None,
            };
            let Some(chunk) = chunk else { break };
            let chunk = chunk.ok()?;
            let _ = body.flow_control().release_capacity(chunk.len());
            bytes.extend_from_slice(&chunk);
        }
        if !open.load(Ordering::SeqCst) {
            return None;
        }
        let request = ReceivedRequest {
            method: head.method.to_string(),
            path: head.uri.path().to_string(),
            body: bytes,
            identity: identity.clone(),
        };
        let reply = answers.lock().unwrap().answer(request);
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

/// The directory with the files of one client.
pub struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces a file atomically. Returns its path.
    pub fn put(&self, name: &str, text: &str) -> PathBuf {
        let temporary = self.path(&format!("{name}.new"));
        std::fs::write(&temporary, text).unwrap();
        rename(&temporary, &self.path(name))
    }
}

fn rename(from: &Path, to: &Path) -> PathBuf {
    std::fs::rename(from, to).unwrap();
    to.to_path_buf()
}
