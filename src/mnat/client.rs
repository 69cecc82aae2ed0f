//! The connection to the server: HTTP/2 over TLS, one request at a time.
//!
//! Lifecycle: made by the first request, kept as long as it works, given up with the first that
//! fails. Certificates are read for each connection; when they change on disk, the next request
//! makes a new one with them.

use std::fmt;
use std::fs;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::client::SendRequest;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, AlertDescription, CertificateError, ClientConfig, RootCertStore};

use super::protocol::{CONTENT_TYPE, LONGEST_ANSWER, MnatRequest};

/// How long a request may take, its connection included.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long the connection alone may take, with one address.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an address may keep silent until the next one of the host is tried too (RFC 8305
/// section 8, Connection Attempt Delay).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// How much of an answer may be on its way; more waits until this is read.
const WINDOW: u32 = 1 << 20;
/// How long the server may take to speak first; it need not.
const FIRST_WORDS: Duration = Duration::from_millis(500);
/// How long the reason of a broken connection is waited for.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Where the server is, and how both sides know each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Who signed the server's certificate; without it, any CA of this system.
    pub ca: Option<PathBuf>,
    /// Our certificate, with its chain.
    pub cert: Option<PathBuf>,
    /// Its key; without it, in the same file.
    pub key: Option<PathBuf>,
    /// Files that are not there do not count, instead of being a fault.
    pub only_if_present: bool,
}

impl Target {
    fn files(&self) -> impl Iterator<Item = &Path> {
        let all = [&self.ca, &self.cert, &self.key];
        all.into_iter().flatten().map(PathBuf::as_path)
    }

    /// The file, unless it need not be there and is not.
    fn present<'t>(&self, file: &'t Option<PathBuf>) -> Option<&'t Path> {
        let file = file.as_deref()?;
        (!self.only_if_present || file.exists()).then_some(file)
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum MnatClientError {
    /// A certificate or key cannot be read.
    #[error("cannot read {path}: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Our certificate and its key do not fit, or are of no known kind.
    #[error("our certificate {path} cannot be used: {why}")]
    Own {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Nobody to trust.
    #[error("no CA to verify the server with: give `ca`, or install the CAs of the system")]
    NoCa,
    /// The host cannot be the name of a server.
    #[error("{0:?} is no name of a server")]
    Name(String),
    /// TCP.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, io::Error),
    /// The server's certificate is not good.
    #[error("the certificate of {0} is refused: {1}")]
    Server(String, String),
    /// TLS failed otherwise.
    #[error("no TLS with {0}: {1}")]
    Tls(String, String),
    /// The server said in TLS that it will not talk with us.
    #[error("{server} refuses us: {alert}; {hint}")]
    Refused {
        /// Which.
        server: String,
        /// Its alert.
        alert: String,
        /// What may be wrong.
        hint: String,
    },
    /// It speaks TLS and no HTTP/2.
    #[error("{0} does not speak HTTP/2")]
    NotHttp2(String),
    /// The connection broke.
    #[error("{0} dropped the connection: {1}")]
    Dropped(String, String),
    /// No answer in time.
    #[error("no answer from {0} within {1:?}")]
    Slow(String, Duration),
    /// An answer larger than any we know of.
    #[error("the answer of {0} is longer than {LONGEST_ANSWER} bytes")]
    TooLong(String),
    /// A request that cannot be written.
    #[error("cannot ask {0}: {1}")]
    Request(String, String),
}

impl MnatClientError {
    /// The `code` label of metrics, where there is no status.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Connect(..) | Self::Name(_) => "connect",
            Self::Slow(..) => "timeout",
            Self::Dropped(..) | Self::Request(..) => "dropped",
            Self::TooLong(_) => "too_long",
            _ => "tls",
        }
    }
}

/// What tells certificates on disk from those in use.
type Stamps = Vec<Option<(u64, u64, i64, i64)>>;

struct Connection {
    send: SendRequest<Bytes>,
    /// Why it ended.
    ended: oneshot::Receiver<Option<String>>,
    stamps: Stamps,
}

/// The client.
pub struct MnatClient {
    target: Target,
    server: String,
    connection: Option<Connection>,
    patience: Duration,
}

impl MnatClient {
    /// A client without a connection.
    pub fn new(target: Target) -> Self {
        let server = match target.host.contains(':') {
            true => format!("[{}]:{}", target.host, target.port),
            false => format!("{}:{}", target.host, target.port),
        };
        Self {
            target,
            server,
            connection: None,
            patience: PATIENCE,
        }
    }

    /// The same with another limit for a request and its connection.
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Sends a request and waits for the answer: its status and body.
    ///
    /// # Errors
    /// All that prevents an answer. The next request makes a new connection.
    pub async fn send(&mut self, request: &MnatRequest) -> Result<(u16, Vec<u8>), MnatClientError> {
        let answer = match timeout(self.patience, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(MnatClientError::Slow(self.server.clone(), self.patience)),
        };
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    async fn exchange(&mut self, request: &MnatRequest) -> Result<(u16, Vec<u8>), MnatClientError> {
        let connection = match self.connection.take() {
            // Half written certificates are no reason to give up a connection that works.
            Some(c) if c.stamps == self.stamps() || self.config().is_err() => c,
            _ => self.connect().await?,
        };
        let connection = self.connection.insert(connection);
        let sent = ask(&self.server, &mut connection.send, request).await;
        match sent {
            Err(MnatClientError::Dropped(server, why)) => {
                let words = timeout(LAST_WORDS, &mut connection.ended).await;
                let why = words.ok().and_then(|w| w.ok().flatten()).unwrap_or(why);
                Err(self.broken(server, why))
            }
            other => other,
        }
    }

    /// A TLS alert comes as the end of a connection that seemed good: TLS 1.3 lets the server
    /// judge our certificate after we think that all is done.
    fn broken(&self, server: String, why: String) -> MnatClientError {
        let Some((_, alert)) = why.split_once("received fatal alert: ") else {
            return MnatClientError::Dropped(server, why);
        };
        let hint = match self.target.present(&self.target.cert) {
            Some(cert) => format!("it may not accept our certificate {}", cert.display()),
            None => "it may want a certificate, and `cert` names none".into(),
        };
        MnatClientError::Refused {
            server,
            alert: alert.into(),
            hint,
        }
    }

    fn stamps(&self) -> Stamps {
        let stamp = |path: &Path| {
            let m = fs::metadata(path).ok()?;
            Some((m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
        };
        self.target.files().map(stamp).collect()
    }

    fn config(&self) -> Result<ClientConfig, MnatClientError> {
        let target = &self.target;
        let mut roots = RootCertStore::empty();
        match target.present(&target.ca) {
            Some(ca) => {
                for cert in certificates(ca)? {
                    roots.add(cert).map_err(|e| file(ca, e))?;
                }
            }
            None => {
                // Those that cannot be parsed are left out, as everybody does.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if roots.is_empty() {
            return Err(MnatClientError::NoCa);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| MnatClientError::Tls(self.server.clone(), e.to_string()))?
            .with_root_certificates(roots);
        let mut config = match target.present(&target.cert) {
            Some(cert) => {
                let key = target.present(&target.key).unwrap_or(cert);
                let own = PrivateKeyDer::from_pem_file(key).map_err(|e| file(key, e))?;
                let unfit = |e: rustls::Error| MnatClientError::Own {
                    path: cert.into(),
                    why: e.to_string(),
                };
                let chain = certificates(cert)?;
                config.with_client_auth_cert(chain, own).map_err(unfit)?
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    async fn connect(&self) -> Result<Connection, MnatClientError> {
        let stamps = self.stamps();
        let config = self.config()?;
        let server = &self.server;
        let host = &self.target.host;
        let name = ServerName::try_from(host.clone());
        let name = name.map_err(|_| MnatClientError::Name(host.clone()))?;
        let refused = |e| MnatClientError::Connect(server.clone(), e);
        let addresses = lookup_host((host.as_str(), self.target.port)).await;
        let tcp = first_of(addresses.map_err(refused)?).await;
        let tcp = tcp.map_err(refused)?;
        // Requests are small and waited for.
        let _ = tcp.set_nodelay(true);
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        let tls = tls.await.map_err(|e| self.tls(&e))?;
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(MnatClientError::NotHttp2(server.clone()));
        }
        // The server speaks first: its settings, or an alert if it does not want us, which would
        // be lost once we wrote to what it has closed.
        let mut tls = BufReader::new(tls);
        if let Ok(Err(e)) = timeout(FIRST_WORDS, tls.fill_buf()).await {
            return Err(self.tls(&e));
        }
        let (send, connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(tls)
            .await
            .map_err(|e| self.broken(server.clone(), e.to_string()))?;
        let (end, ended) = oneshot::channel();
        tokio::spawn(async move {
            let why = connection.await.err().map(|e| e.to_string());
            // Nobody may be interested any more.
            let _ = end.send(why);
        });
        Ok(Connection {
            send,
            ended,
            stamps,
        })
    }

    fn tls(&self, error: &io::Error) -> MnatClientError {
        let server = self.server.clone();
        let inner = error.get_ref().and_then(|e| e.downcast_ref());
        match inner {
            Some(rustls::Error::InvalidCertificate(why)) => {
                MnatClientError::Server(server, self.judgement(why))
            }
            Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                MnatClientError::NotHttp2(server)
            }
            Some(rustls::Error::AlertReceived(_)) => self.broken(server, error.to_string()),
            _ => MnatClientError::Tls(server, error.to_string()),
        }
    }

    fn judgement(&self, why: &CertificateError) -> String {
        let ca = match self.target.present(&self.target.ca) {
            Some(ca) => format!("a CA in {}", ca.display()),
            None => "a CA of this system; `ca` names others".into(),
        };
        match why {
            CertificateError::UnknownIssuer => format!("it is not signed by {ca}"),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("it is not for {}", self.target.host)
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "it has expired".into()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "it is not valid yet; is the clock right?".into()
            }
            other => other.to_string(),
        }
    }
}

fn file(path: &Path, why: impl ToString) -> MnatClientError {
    MnatClientError::File {
        path: path.into(),
        why: why.to_string(),
    }
}

/// Connects to whichever address answers first. The next one is tried when those before
/// have failed, or kept silent for a moment: of two addresses one may lead nowhere (RFC 8305).
async fn first_of(mut addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    loop {
        let next = addresses.next();
        let more = next.is_some();
        attempts.extend(next.map(attempt));
        // Without another address there is nobody to turn to meanwhile.
        let moment = async {
            match more {
                true => sleep(NEXT_ADDRESS).await,
                false => pending().await,
            }
        };
        tokio::select! {
            done = attempts.next() => match done {
                Some(Ok(tcp)) => return Ok(tcp),
                Some(Err(e)) => last = e,
                None => return Err(last),
            },
            () = moment => {}
        }
    }
}

/// Connects to one address. Errors name it.
async fn attempt(address: SocketAddr) -> io::Result<TcpStream> {
    let named = |kind, why: &dyn fmt::Display| io::Error::new(kind, format!("{address}: {why}"));
    match timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(done) => done.map_err(|e| named(e.kind(), &e)),
        Err(_) => Err(named(
            io::ErrorKind::TimedOut,
            &format_args!("nobody answers within {CONNECT:?}"),
        )),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, MnatClientError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates: Vec<_> = read.map_err(|e| file(path, e))?;
    if certificates.is_empty() {
        return Err(file(path, "it holds no certificate"));
    }
    Ok(certificates)
}

async fn ask(
    server: &str,
    send: &mut SendRequest<Bytes>,
    request: &MnatRequest,
) -> Result<(u16, Vec<u8>), MnatClientError> {
    let dropped = |e: h2::Error| MnatClientError::Dropped(server.into(), e.to_string());
    let head = http::Request::builder()
        .method(request.method)
        .uri(format!("https://{server}{}", request.path))
        .version(http::Version::HTTP_2)
        .header("content-type", CONTENT_TYPE)
        .header("accept", CONTENT_TYPE)
        .body(())
        .map_err(|e| MnatClientError::Request(server.into(), e.to_string()))?;
    let mut ready = send.clone().ready().await.map_err(dropped)?;
    let (answer, mut body) = ready
        .send_request(head, request.body.is_none())
        .map_err(dropped)?;
    if let Some(bytes) = &request.body {
        let bytes = Bytes::copy_from_slice(bytes);
        body.send_data(bytes, true).map_err(dropped)?;
    }
    let (head, mut body) = answer.await.map_err(dropped)?.into_parts();
    let mut bytes = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(dropped)?;
        // What was read makes room for more; a connection that is gone needs none.
        let _ = body.flow_control().release_capacity(piece.len());
        if bytes.len() + piece.len() > LONGEST_ANSWER {
            return Err(MnatClientError::TooLong(server.into()));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok((head.status.as_u16(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::time::Instant;

    /// Somebody who listens, on an address of their own.
    fn listener(address: [u8; 4], backlog: i32) -> (Socket, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
        socket.listen(backlog).unwrap();
        let at = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, at)
    }

    #[actix_rt::test]
    async fn an_address_that_keeps_silent_or_refuses_is_passed_over() {
        // A listener whose queue is full answers nobody.
        let (_full, silent) = listener([127, 0, 0, 1], 0);
        let mut kept = Vec::new();
        let is_full = loop {
            let one = timeout(Duration::from_millis(200), TcpStream::connect(silent));
            match one.await {
                Ok(one) => kept.push(one.unwrap()),
                Err(_) => break kept.len() < 10,
            }
        };
        assert!(is_full);
        let (gone, refusing) = listener([127, 0, 0, 2], 1);
        drop(gone);
        let (_good, good) = listener([127, 0, 0, 3], 8);
        for addresses in [
            vec![silent, good],
            vec![refusing, good],
            vec![silent, refusing, good],
        ] {
            let begun = Instant::now();
            let tcp = first_of(addresses.into_iter()).await.unwrap();
            assert_eq!(tcp.peer_addr().unwrap(), good);
            assert!(begun.elapsed() < CONNECT, "{:?}", begun.elapsed());
        }
        let why = first_of([refusing].into_iter()).await.unwrap_err();
        assert!(why.to_string().starts_with(&refusing.to_string()), "{why}");
        assert!(first_of(std::iter::empty()).await.is_err());
    }
}
