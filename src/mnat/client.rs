//! The connection to the MNAT server: HTTP/2 over TLS, one request at a time.
//!
//! The first request opens the connection. Later requests use it until one of them fails.
//! Certificates are read for each connection. If they change on disk, the next request opens a new
//! connection with the new ones.

use std::fmt;
use std::fs;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, AlertDescription, ClientConfig};
use tokio_util::io::InspectReader;

use super::client_tls::{CERTIFICATES, ClientTlsError, ClientTlsFiles, certificates, is_version_1};
use super::config::Target;
use super::messages::CONTENT_TYPE;
use super::protocol::{MAX_RESPONSE_LEN, MnatRequest, WaitForChange};

/// Maximum duration of a request, including the time to connect.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum duration of a TCP connection attempt to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without an answer after which the next address of the host is tried too (RFC 8305 section
/// 8, Connection Attempt Delay).
const CONNECTION_ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// HTTP/2 flow control window of a response, in bytes.
const FLOW_CONTROL_WINDOW: u32 = 1 << 20;
/// How long the client waits for the first bytes of the server before it sends its own.
const SERVER_PREFACE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the client waits for the reason why a connection broke.
const CLOSE_REASON_TIMEOUT: Duration = Duration::from_millis(100);

/// The reason why a request got no response.
#[derive(Debug, thiserror::Error)]
pub enum MnatClientError {
    /// The certificates or the key cannot be used.
    #[error(transparent)]
    Files(#[from] ClientTlsError),
    /// The host is not valid as a TLS server name.
    #[error("{0:?} is not a valid server name")]
    InvalidServerName(String),
    /// Name resolution or the TCP connection failed.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, io::Error),
    /// The server's certificate is not valid.
    #[error("the certificate of {0} is rejected: {1}")]
    ServerCertificate(String, String),
    /// TLS failed for another reason.
    #[error("TLS with {0} failed: {1}")]
    Tls(String, String),
    /// The server ended the connection with a TLS alert.
    #[error("{server} rejects the connection: {alert}; {hint}")]
    TlsAlert {
        /// Host and port of the server.
        server: String,
        /// The alert.
        alert: String,
        /// The likely cause.
        hint: String,
    },
    /// The server ended the connection in the TLS handshake without an alert.
    #[error("{server} closed the connection in the TLS handshake without a reason; {hint}")]
    ClosedInHandshake {
        /// Host and port of the server.
        server: String,
        /// The likely cause.
        hint: String,
    },
    /// The server supports TLS, but not HTTP/2.
    #[error("{0} does not support HTTP/2")]
    NotHttp2(String),
    /// The connection broke.
    #[error("{0} dropped the connection: {1}")]
    Dropped(String, String),
    /// The response did not arrive in time.
    #[error("no response from {0} within {1:?}")]
    Timeout(String, Duration),
    /// The response is longer than [`MAX_RESPONSE_LEN`].
    #[error("the response of {0} is longer than {MAX_RESPONSE_LEN} bytes")]
    TooLong(String),
    /// The request is not valid HTTP.
    #[error("cannot build a request to {0}: {1}")]
    Request(String, String),
}

impl MnatClientError {
    /// Returns the `code` label of metrics for a request without an HTTP status.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Connect(..) | Self::InvalidServerName(_) => "connect",
            Self::Timeout(..) => "timeout",
            Self::Dropped(..) | Self::Request(..) => "dropped",
            Self::TooLong(_) => "too_long",
            _ => "tls",
        }
    }
}

/// Inode, size and modification time of each certificate file. They tell whether the files changed
/// since the connection was opened.
type Stamps = Vec<Option<(u64, u64, i64, i64)>>;

struct Connection {
    send: SendRequest<Bytes>,
    /// Receives the reason when the connection ends.
    ended: oneshot::Receiver<Option<String>>,
    stamps: Stamps,
}

/// The response to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MnatResponse {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    /// The entity tag, if the server supports [`super::protocol::WaitForChange`].
    pub entity_tag: Option<String>,
}

/// A client of the MNAT server.
pub struct MnatClient {
    target: Target,
    server: String,
    connection: Option<Connection>,
    timeout: Duration,
}

impl MnatClient {
    /// Returns a client without a connection.
    pub fn new(target: Target) -> Self {
        let server = match target.host.contains(':') {
            true => format!("[{}]:{}", target.host, target.port),
            false => format!("{}:{}", target.host, target.port),
        };
        Self {
            target,
            server,
            connection: None,
            timeout: REQUEST_TIMEOUT,
        }
    }

    /// Sets the maximum duration of a request, including the time to connect.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sends a request and waits for the response. Returns its status and body.
    ///
    /// # Errors
    /// Returns the reason why there is no response. The next request then opens a new connection.
    pub async fn send(&mut self, request: &MnatRequest) -> Result<(u16, Vec<u8>), MnatClientError> {
        let response = self.request(request).await?;
        Ok((response.status, response.body))
    }

    /// Sends a request and waits for the response.
    ///
    /// # Errors
    /// Returns the reason why there is no response. The next request then opens a new connection.
    pub async fn request(
        &mut self,
        request: &MnatRequest,
    ) -> Result<MnatResponse, MnatClientError> {
        let delay = request.wait.as_ref().map(|wait| wait.time);
        let limit = self.timeout + delay.unwrap_or_default();
        let response = match timeout(limit, self.exchange(request)).await {
            Ok(response) => response,
            Err(_) => Err(MnatClientError::Timeout(self.server.clone(), limit)),
        };
        if response.is_err() {
            self.connection = None;
        }
        response
    }

    async fn exchange(&mut self, request: &MnatRequest) -> Result<MnatResponse, MnatClientError> {
        let connection = match self.connection.take() {
            // A working connection is kept while the certificates on disk are incomplete.
            Some(c) if c.stamps == self.stamps() || self.tls_config().is_err() => c,
            _ => self.connect().await?,
        };
        let connection = self.connection.insert(connection);
        let response = send_request(&self.server, &mut connection.send, request).await;
        match response {
            Err(MnatClientError::Dropped(server, why)) => {
                let reason = timeout(CLOSE_REASON_TIMEOUT, &mut connection.ended).await;
                let reason = reason.ok().and_then(|r| r.ok().flatten());
                let why = reason.unwrap_or(why);
                Err(self.connection_error(server, why))
            }
            other => other,
        }
    }

    /// Returns the error for a connection that broke because of `why`. In TLS 1.3 the server checks
    /// the client certificate after the handshake is complete for the client. A rejected
    /// certificate therefore appears as a TLS alert on an open connection.
    fn connection_error(&self, server: String, why: String) -> MnatClientError {
        let Some((_, alert)) = why.split_once("received fatal alert: ") else {
            return MnatClientError::Dropped(server, why);
        };
        MnatClientError::TlsAlert {
            server,
            alert: alert.into(),
            hint: self.certificate_hint(),
        }
    }

    /// Returns the error for a connection that the server closed in the TLS handshake.
    fn closed_in_handshake(&self, has_answered: bool) -> MnatClientError {
        let hint = match has_answered {
            true => self.certificate_hint(),
            false => "it may be starting, or not be a TLS server".into(),
        };
        MnatClientError::ClosedInHandshake {
            server: self.server.clone(),
            hint,
        }
    }

    /// Returns why the server may reject the client, and what to do.
    fn certificate_hint(&self) -> String {
        let Some(path) = self.target.present(&self.target.cert) else {
            return format!(
                "it may require a client certificate, and `cert` is not set; see {CERTIFICATES}"
            );
        };
        let chain = certificates(path).unwrap_or_default();
        let version = match chain.first().is_some_and(is_version_1) {
            true => ", which has X.509 version 1; make a version 3 certificate",
            false => "",
        };
        let path = path.display();
        format!("it may not accept the client certificate {path}{version}; see {CERTIFICATES}")
    }

    fn stamps(&self) -> Stamps {
        let stamp = |path: &Path| {
            let m = fs::metadata(path).ok()?;
            Some((m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
        };
        self.target.files().map(stamp).collect()
    }

    fn tls_files(&self) -> ClientTlsFiles<'_> {
        let target = &self.target;
        ClientTlsFiles {
            ca: target.present(&target.ca),
            ca_option: "`ca`",
            cert: target.present(&target.cert),
            key: target.present(&target.key),
        }
    }

    fn tls_config(&self) -> Result<ClientConfig, ClientTlsError> {
        let mut config = self.tls_files().config()?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    async fn connect(&self) -> Result<Connection, MnatClientError> {
        let stamps = self.stamps();
        let config = self.tls_config()?;
        let server = &self.server;
        let host = &self.target.host;
        let name = ServerName::try_from(host.clone());
        let name = name.map_err(|_| MnatClientError::InvalidServerName(host.clone()))?;
        let connect_error = |e| MnatClientError::Connect(server.clone(), e);
        let addresses = lookup_host((host.as_str(), self.target.port)).await;
        let tcp = connect_first(addresses.map_err(connect_error)?).await;
        let tcp = tcp.map_err(connect_error)?;
        // Requests are small, and each one waits for its response.
        let _ = tcp.set_nodelay(true);
        let has_answered = Arc::new(AtomicBool::new(false));
        let answered = has_answered.clone();
        let tcp = InspectReader::new(tcp, move |bytes| {
            answered.fetch_or(!bytes.is_empty(), Ordering::Relaxed);
        });
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        let has_answered = || has_answered.load(Ordering::Relaxed);
        let tls = tls.await.map_err(|e| self.tls_error(&e, has_answered()))?;
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(MnatClientError::NotHttp2(server.clone()));
        }
        // Waits for the first bytes of the server before it sends anything. They are the HTTP/2
        // settings, or a TLS alert. An alert would be lost after a write to the closed connection.
        let mut tls = BufReader::new(tls);
        match timeout(SERVER_PREFACE_TIMEOUT, tls.fill_buf()).await {
            Ok(Err(e)) => return Err(self.tls_error(&e, true)),
            Ok(Ok([])) => return Err(self.closed_in_handshake(true)),
            Ok(Ok(_)) | Err(_) => {}
        }
        let (send, connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(FLOW_CONTROL_WINDOW)
            .initial_connection_window_size(FLOW_CONTROL_WINDOW)
            .handshake(tls)
            .await
            .map_err(|e| self.connection_error(server.clone(), reason(&e)))?;
        let (end, ended) = oneshot::channel();
        tokio::spawn(async move {
            let why = connection.await.err().map(|e| reason(&e));
            // Fails if the connection was dropped before; then the reason is not needed.
            let _ = end.send(why);
        });
        Ok(Connection {
            send,
            ended,
            stamps,
        })
    }

    /// Returns the error for a failed TLS handshake. `has_answered` is whether the server has sent
    /// anything.
    fn tls_error(&self, error: &io::Error, has_answered: bool) -> MnatClientError {
        let server = self.server.clone();
        let inner = error.get_ref().and_then(|e| e.downcast_ref());
        match inner {
            Some(rustls::Error::InvalidCertificate(why)) => {
                let why = self.tls_files().rejection(&self.target.host, why);
                MnatClientError::ServerCertificate(server, why)
            }
            Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                MnatClientError::NotHttp2(server)
            }
            Some(rustls::Error::AlertReceived(_)) => {
                self.connection_error(server, error.to_string())
            }
            _ if is_close(error) => self.closed_in_handshake(has_answered),
            _ => MnatClientError::Tls(server, error.to_string()),
        }
    }
}

/// Returns whether an error means that the server closed the connection.
fn is_close(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// Returns why an HTTP/2 connection or request failed. The text of rustls for a connection that
/// ends without close_notify is advice for programmers.
fn reason(error: &h2::Error) -> String {
    match error.get_io() {
        Some(e) if e.kind() == io::ErrorKind::UnexpectedEof => "it closed TCP, but not TLS".into(),
        _ => error.to_string(),
    }
}

/// Connects to the address that answers first (RFC 8305). The next address is tried when all
/// earlier attempts have failed, or after [`CONNECTION_ATTEMPT_DELAY`].
async fn connect_first(mut addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    loop {
        let next = addresses.next();
        let tried_another = next.is_some();
        attempts.extend(next.map(attempt));
        let delay = async {
            match tried_another {
                true => sleep(CONNECTION_ATTEMPT_DELAY).await,
                false => pending().await,
            }
        };
        tokio::select! {
            done = attempts.next() => match done {
                Some(Ok(tcp)) => return Ok(tcp),
                Some(Err(e)) => last = e,
                None => return Err(last),
            },
            () = delay => {}
        }
    }
}

/// Connects to one address. Error texts name the address.
async fn attempt(address: SocketAddr) -> io::Result<TcpStream> {
    let error = |kind, why: &dyn fmt::Display| io::Error::new(kind, format!("{address}: {why}"));
    match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(done) => done.map_err(|e| error(e.kind(), &e)),
        Err(_) => Err(error(
            io::ErrorKind::TimedOut,
            &format_args!("no answer within {CONNECT_TIMEOUT:?}"),
        )),
    }
}

async fn send_request(
    server: &str,
    send: &mut SendRequest<Bytes>,
    request: &MnatRequest,
) -> Result<MnatResponse, MnatClientError> {
    let dropped = |e: h2::Error| MnatClientError::Dropped(server.into(), reason(&e));
    let mut head = http::Request::builder()
        .method(request.method)
        .uri(format!("https://{server}{}", request.path))
        .version(http::Version::HTTP_2)
        .header("content-type", CONTENT_TYPE)
        .header("accept", CONTENT_TYPE);
    if let Some(WaitForChange { time, known }) = &request.wait {
        head = head.header("prefer", format!("wait={}", time.as_secs()));
        if let Some(known) = known {
            head = head.header("if-none-match", known);
        }
    }
    let head = head
        .body(())
        .map_err(|e| MnatClientError::Request(server.into(), e.to_string()))?;
    let mut ready = send.clone().ready().await.map_err(dropped)?;
    let (response, mut body) = ready
        .send_request(head, request.body.is_none())
        .map_err(dropped)?;
    if let Some(bytes) = &request.body {
        let bytes = Bytes::copy_from_slice(bytes);
        body.send_data(bytes, true).map_err(dropped)?;
    }
    let (head, mut body) = response.await.map_err(dropped)?.into_parts();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(dropped)?;
        // Extends the flow control window by the bytes read. Fails only if the connection is gone.
        let _ = body.flow_control().release_capacity(chunk.len());
        if bytes.len() + chunk.len() > MAX_RESPONSE_LEN {
            return Err(MnatClientError::TooLong(server.into()));
        }
        bytes.extend_from_slice(&chunk);
    }
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    // A server without this extension may send entity tags too.
    let waits = text("preference-applied").is_some_and(|applied| applied.contains("wait"));
    Ok(MnatResponse {
        status: head.status.as_u16(),
        entity_tag: text("etag").filter(|_| waits).map(String::from),
        body: bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::time::Instant;

    /// Opens a TCP listener on `address`. Returns the socket and its address with the port.
    fn listener(address: [u8; 4], backlog: i32) -> (Socket, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
        socket.listen(backlog).unwrap();
        let at = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, at)
    }

    #[actix_rt::test]
    async fn silent_and_refusing_addresses_are_skipped() {
        // A listener with a full backlog does not answer.
        let (_full, silent) = listener([127, 0, 0, 1], 0);
        let mut connections = Vec::new();
        let is_full = loop {
            let attempt = timeout(Duration::from_millis(200), TcpStream::connect(silent));
            match attempt.await {
                Ok(connection) => connections.push(connection.unwrap()),
                Err(_) => break connections.len() < 10,
            }
        };
        assert!(is_full);
        let (closed, refusing) = listener([127, 0, 0, 2], 1);
        drop(closed);
        let (_good, good) = listener([127, 0, 0, 3], 8);
        for addresses in [
            vec![silent, good],
            vec![refusing, good],
            vec![silent, refusing, good],
        ] {
            let start = Instant::now();
            let tcp = connect_first(addresses.into_iter()).await.unwrap();
            assert_eq!(tcp.peer_addr().unwrap(), good);
            assert!(start.elapsed() < CONNECT_TIMEOUT, "{:?}", start.elapsed());
        }
        let why = connect_first([refusing].into_iter()).await.unwrap_err();
        assert!(why.to_string().starts_with(&refusing.to_string()), "{why}");
        assert!(connect_first(std::iter::empty()).await.is_err());
    }
}
