//! A connection of a client: TLS, HTTP/2, and its requests.
//!
//! h2 is used without actix-web here: actix-http can neither limit the streams of a connection nor
//! close a connection on which nothing moves, and its version of h2 is another one.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Ping, PingPong, Reason, RecvStream};
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::net::TcpStream;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::machine::{Caller, ServerRequest};
use super::pacing::RequestPacer;
use super::request_body::{BodyError, BodySender, RequestBody};
use super::rest::{self, RestAnswer, RestRequest};
use super::site::{MemoryKind, ServerSite};
use super::tls;
use crate::frontend::http::{ClientSource, Share};
use crate::metrics::mnat_server::CloseReason;
use crate::mnat::messages::{self, PROTOTYPE_CONTENT_TYPE};
use crate::model::escape::quote;

/// How long a client may take for the handshakes of TLS and HTTP/2 together.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of pings, and how long a client may take to answer one.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long a connection may last without a request. Clients refresh their ids every 20 seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a client may read nothing of its answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Flow control window of a request body, in bytes. The prototype's clients cannot continue a body
/// that is longer than the window.
const STREAM_WINDOW: u32 = 1 << 20;
/// Flow control window of a connection, in bytes.
const CONNECTION_WINDOW: u32 = 2 << 20;
/// Maximum number of requests of a connection at the same time.
const MAX_STREAMS: u32 = 16;
/// Maximum length of the headers of a request, in bytes.
const MAX_HEADERS: u32 = 16 << 10;
/// Part of an answer that is sent at a time, in bytes.
const CHUNK: usize = 64 << 10;
/// Longest time that a poll waits for a change.
const MAX_WAIT: Duration = Duration::from_secs(20);
/// Pause after an answer, for each byte of it, before a waiting poll of the connection is answered
/// again. A long list that changes all the time would occupy the server otherwise.
const PAUSE_FOR_BYTES: Duration = Duration::from_nanos(50);

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The place of a connection among those of all clients.
pub struct ClientConnection {
    /// The client.
    pub source: ClientSource,
    /// Its share of the connections.
    pub share: Share,
    /// Closes the connection.
    pub closed: CancellationToken,
}

/// What the requests of a connection share.
struct ConnectionState {
    site: Rc<ServerSite>,
    client: ClientConnection,
    identity: Option<Arc<[u8]>>,
    pacer: RefCell<RequestPacer>,
    last_request: Cell<Instant>,
    /// When a waiting poll may be answered.
    next_push: Cell<Instant>,
}

impl ConnectionState {
    /// Closes the connection, and counts it.
    fn close(&self, reason: CloseReason) {
        if !self.client.closed.is_cancelled() {
            self.site.metrics.count_closed_connection(reason);
            self.client.closed.cancel();
        }
    }

    /// Waits until the connection is to be closed.
    async fn closed(&self) {
        self.client.closed.cancelled().await;
    }
}

/// Serves a connection until it ends, or `shutdown` is cancelled.
pub async fn serve(
    site: Rc<ServerSite>,
    tcp: TcpStream,
    client: ClientConnection,
    config: Arc<ServerConfig>,
    shutdown: CancellationToken,
) {
    // Answers are small, and clients wait for them.
    let _ = tcp.set_nodelay(true);
    let peer = tcp.peer_addr().ok();
    let handshake = async {
        let tls = TlsAcceptor::from(config).accept(tcp).await;
        let tls = tls.map_err(|e| format!("TLS: {e}"))?;
        let identity = tls::subject(tls.get_ref().1.peer_certificates());
        let connection = h2::server::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADERS)
            .handshake::<_, Bytes>(tls)
            .await;
        let connection = connection.map_err(|e| format!("HTTP/2: {e}"))?;
        Ok::<_, String>((identity, connection))
    };
    // In memory of its own, which ends with the handshake: the task lives as long as the connection.
    let handshake = Box::pin(timeout(HANDSHAKE_TIMEOUT, handshake));
    let done = tokio::select! {
        done = handshake => done,
        () = client.closed.cancelled() => return,
    };
    let (identity, mut connection) = match done {
        Ok(Ok(done)) => done,
        Ok(Err(why)) => {
            site.metrics
                .count_closed_connection(CloseReason::HandshakeFailed);
            let peer = peer.map(|p| p.to_string()).unwrap_or_default();
            site.warn(format_args!("{peer}: {}", quote(&why)));
            return;
        }
        Err(_) => {
            site.metrics
                .count_closed_connection(CloseReason::HandshakeTimeout);
            return debug!("mnat-server: a client did not complete the handshake in time");
        }
    };
    let now = Instant::now();
    let state = Rc::new(ConnectionState {
        site,
        client,
        identity,
        pacer: RefCell::new(RequestPacer::new(now)),
        last_request: Cell::new(now),
        next_push: Cell::new(now),
    });
    if let Some(ping_pong) = connection.ping_pong() {
        actix_rt::spawn(watch(state.clone(), ping_pong));
    }
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = state.closed() => break,
            () = shutdown.cancelled() => {
                connection.abrupt_shutdown(Reason::NO_ERROR);
                // Sends GOAWAY.
                let _ = timeout(Duration::from_millis(200), connection.accept()).await;
                break;
            }
        };
        let Some(Ok((request, respond))) = accepted else {
            break;
        };
        state.last_request.set(Instant::now());
        state.client.share.touch();
        actix_rt::spawn(answer(state.clone(), request, respond));
    }
    // Ends the tasks of the connection.
    state.client.closed.cancel();
}

/// Closes a connection whose client answers no ping, or sends no request.
async fn watch(state: Rc<ConnectionState>, mut ping_pong: PingPong) {
    let watch = async {
        loop {
            sleep(PING_INTERVAL).await;
            let is_answered = timeout(PING_INTERVAL, ping_pong.ping(Ping::opaque()));
            match is_answered.await {
                Err(_) => state.close(CloseReason::Silent),
                // The connection has ended.
                Ok(Err(_)) => return,
                Ok(Ok(_)) if state.last_request.get().elapsed() >= IDLE_TIMEOUT => {
                    state.close(CloseReason::Idle);
                }
                Ok(Ok(_)) => {}
            }
        }
    };
    tokio::select! {
        () = watch => {}
        () = state.closed() => {}
    }
}

/// Answers a request.
async fn answer(
    state: Rc<ConnectionState>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let start = Instant::now();
    let (head, mut body) = request.into_parts();
    let answered = async {
        let delay = state.pacer.borrow_mut().delay(start);
        // The whole body is read before the answer: otherwise the stream would be reset.
        let sender = BodySender {
            site: &state.site,
            source: state.client.source,
            closed: &state.client.closed,
        };
        let body = match RequestBody::read(&mut body, sender).await {
            Ok(body) => body,
            Err(BodyError::Slow) => return Some(CloseReason::SlowBody),
            Err(BodyError::Long) => return Some(CloseReason::LongBody),
            Err(BodyError::Ended) => return None,
        };
        if !delay.is_zero() {
            sleep_until((start + delay).into()).await;
        }
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let caller = Caller {
            identity: state.identity.clone(),
            can_wait: wait_preference(&head.headers).is_some(),
        };
        let (op, request) = rest::parse(head.method.as_str(), path, body.bytes());
        // The request takes about as much memory as its body.
        let share = body.into_share();
        let answer = match request {
            RestRequest::Answer(answer) => answer,
            RestRequest::Server(request) => {
                let Some(answer) = handle(&state, request, &caller, &head.headers).await else {
                    return Some(CloseReason::StoreTimeout);
                };
                answer.for_method(head.method.as_str(), op)
            }
        };
        drop(share);
        let _share = (!answer.body.is_empty()).then(|| {
            let len = answer.body.len();
            let ClientConnection { source, closed, .. } = &state.client;
            let kind = MemoryKind::Answers;
            state.site.use_memory(kind, None, len, *source, closed)
        });
        let code = answer.status.to_string();
        let is_head = head.method == http::Method::HEAD;
        send(
            &state,
            &mut respond,
            answer,
            &caller,
            &head.headers,
            is_head,
        )
        .await;
        let seconds = start.elapsed().as_secs_f64();
        state
            .site
            .metrics
            .observe_request(op.label(), &code, seconds);
        None
    };
    tokio::select! {
        unanswered = answered => {
            // A reset of the stream would end a client of the prototype too.
            if let Some(reason) = unanswered {
                state.close(reason);
            }
        }
        () = state.closed() => {}
    }
}

/// Returns the time that a client would wait for a change (RFC 7240 section 4.3).
fn wait_preference(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(PREFER).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    let preferences = texts.flat_map(|text| text.split(','));
    let seconds = preferences.filter_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("wait")
            .then(|| value.trim().parse().ok())?
    });
    let wait = seconds.map(Duration::from_secs).next();
    wait.map(|wait| wait.min(MAX_WAIT))
}

/// Handles a request to the machine, and waits until the answer may be sent. Returns `None` if the
/// store does not decide in time.
async fn handle(
    state: &ConnectionState,
    request: ServerRequest,
    caller: &Caller,
    headers: &HeaderMap,
) -> Option<RestAnswer> {
    let site = &state.site;
    if let ServerRequest::Assigned(id) = &request
        && let Some(version) = wait_for_change(state, id, caller, headers).await
    {
        return Some(RestAnswer::not_modified(version));
    }
    let reply = site.handle_committed(request, caller).await?;
    let answer = RestAnswer::reply(reply, caller);
    if answer.left_out > 0 {
        site.warn(format_args!(
            "an answer lacks {} of the mappings of its watcher: clients of the prototype cannot \
             read more than 65,535 bytes; spread the streams over more of them",
            answer.left_out
        ));
    }
    Some(answer)
}

/// Waits for a change, if the client has the current version and would wait. Returns the version if
/// nothing changed.
async fn wait_for_change(
    state: &ConnectionState,
    id: &str,
    caller: &Caller,
    headers: &HeaderMap,
) -> Option<u64> {
    let site = &state.site;
    let wait = wait_preference(headers)?;
    let known = headers.get(IF_NONE_MATCH)?.to_str().ok()?;
    let is_current = || {
        let version = site.version(id, caller)?;
        (site.entity_tag(version) == known).then_some(version)
    };
    let start = Instant::now();
    while let Some(version) = is_current() {
        let left = wait.saturating_sub(start.elapsed());
        if left.is_zero() || timeout(left, site.changed(id)).await.is_err() {
            return Some(version);
        }
    }
    let pause = state
        .next_push
        .get()
        .saturating_duration_since(Instant::now());
    sleep(pause.min(MAX_WAIT)).await;
    None
}

/// Sends an answer.
async fn send(
    state: &ConnectionState,
    respond: &mut SendResponse<Bytes>,
    answer: RestAnswer,
    caller: &Caller,
    request_headers: &HeaderMap,
    is_head: bool,
) {
    let mut response = Response::new(());
    *response.status_mut() =
        http::StatusCode::from_u16(answer.status).unwrap_or(http::StatusCode::OK);
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    let accepts_rfc = request_headers.get_all(ACCEPT).into_iter().any(|accept| {
        let accept = accept.to_str().unwrap_or_default();
        accept.contains(messages::CONTENT_TYPE)
    });
    if !answer.body.is_empty() {
        set(
            CONTENT_TYPE,
            match (answer.is_xml, accepts_rfc) {
                (true, _) => "application/xrd+xml",
                (false, true) => messages::CONTENT_TYPE,
                (false, false) => PROTOTYPE_CONTENT_TYPE,
            },
        );
    }
    set(CACHE_CONTROL, "no-cache");
    if let Some(allow) = answer.allow {
        set(ALLOW, allow);
    }
    if caller.can_wait {
        set(PREFERENCE_APPLIED, "wait");
        if let Some(version) = answer.version {
            set(ETAG, &state.site.entity_tag(version));
        }
    }
    let mut body = match is_head {
        true => Bytes::new(),
        false => Bytes::from(answer.body),
    };
    if answer.version.is_some() {
        let bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
        state
            .next_push
            .set(Instant::now() + PAUSE_FOR_BYTES * bytes);
    }
    let Ok(mut stream) = respond.send_response(response, body.is_empty()) else {
        return;
    };
    while !body.is_empty() {
        stream.reserve_capacity(body.len().min(CHUNK));
        let capacity = timeout(READ_TIMEOUT, poll_fn(|cx| stream.poll_capacity(cx))).await;
        match capacity {
            Ok(Some(Ok(capacity))) => {
                let part = body.split_to(capacity.min(body.len()));
                if stream.send_data(part, body.is_empty()).is_err() {
                    return;
                }
            }
            // The stream or the connection has ended.
            Ok(_) => return,
            Err(_) => {
                state.close(CloseReason::SlowReader);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_preference_is_found_among_others() {
        for (text, seconds) in [
            ("wait=10", Some(10)),
            ("respond-async, Wait = 5", Some(5)),
            ("wait=1000", Some(20)),
            ("wait", None),
            ("wait=x", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(PREFER, HeaderValue::from_static(text));
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(wait_preference(&headers), expected, "{text}");
        }
    }
}
