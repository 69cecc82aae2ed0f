//! The JSON interface of etcd (its gRPC gateway) over HTTP/1.1.
//!
//! etcd offers each call of its gRPC interface as JSON too. That needs nothing but the HTTP client
//! that mcastor has anyway. The crate `etcd-client` adds a gRPC stack, and needs the compiler
//! `protoc` in each build.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

/// How long one member of etcd may take for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Limit of an answer, and of an event of a watch, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// The gRPC codes of errors that another attempt, perhaps with another member, may not have: unknown,
/// deadline exceeded, resource exhausted, aborted, internal, unavailable.
const TRANSIENT_CODES: [u64; 6] = [2, 4, 8, 10, 13, 14];

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// The member cannot be reached, or does not answer as it should.
    #[error("etcd at {0}: {1}")]
    Member(String, String),
    /// etcd refuses the call. Another attempt would be refused too.
    #[error("etcd: {0}")]
    Refused(String),
}

/// The members of an etcd cluster, of which one is used until a call fails.
pub struct EtcdApi {
    /// Host and port of each member.
    members: Vec<String>,
    current: usize,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// The answers of a call, one for each part of the request.
pub type Answers = Vec<Value>;

impl EtcdApi {
    /// Returns the members with these addresses, `host:port` each.
    pub fn new(members: Vec<String>) -> Self {
        Self {
            members,
            current: 0,
            sender: None,
        }
    }

    fn member(&self) -> String {
        self.members.get(self.current).cloned().unwrap_or_default()
    }

    fn error(&self, why: impl ToString) -> EtcdError {
        EtcdError::Member(self.member(), why.to_string())
    }

    /// Uses the next member from now on.
    pub fn use_next_member(&mut self) {
        self.sender = None;
        self.current = (self.current + 1) % self.members.len().max(1);
    }

    /// Makes a call. Tries each member once.
    ///
    /// # Errors
    /// The error of the last member.
    pub async fn call(&mut self, path: &str, body: String) -> Result<Answers, EtcdError> {
        let mut attempts = self.members.len();
        loop {
            let attempt = timeout(CALL_TIMEOUT, self.call_member(path, body.clone())).await;
            let error = match attempt {
                Ok(Ok(answers)) => return Ok(answers),
                Ok(Err(EtcdError::Refused(why))) => return Err(EtcdError::Refused(why)),
                Ok(Err(error)) => error,
                Err(_) => self.error("no answer"),
            };
            debug!("mnat-server: {error}");
            self.use_next_member();
            attempts = attempts.saturating_sub(1);
            if attempts == 0 {
                return Err(error);
            }
        }
    }

    async fn call_member(&mut self, path: &str, body: String) -> Result<Answers, EtcdError> {
        let mut sender = match self.sender.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let answer = self.send(&mut sender, path, body).await?;
        let is_ok = answer.status().is_success();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|e| self.error(e))?.to_bytes();
        let values = serde_json::Deserializer::from_slice(&body).into_iter::<Value>();
        let values: Result<Answers, _> = values.collect();
        let values = values.map_err(|e| self.error(e))?;
        self.sender = Some(sender);
        match values.iter().find(|value| !value["error"].is_null()) {
            Some(value) => Err(self.answered_error(value)),
            None if !is_ok => Err(self.error("an error without a reason")),
            None => Ok(values),
        }
    }

    fn answered_error(&self, value: &Value) -> EtcdError {
        // An error within a stream is nested.
        let error = match value["error"].is_object() {
            true => &value["error"],
            false => value,
        };
        let code = [&error["code"], &error["grpc_code"]];
        let code = code.into_iter().find_map(Value::as_u64).unwrap_or(2);
        let text = [&error["message"], &error["error"]];
        let text = text.into_iter().find_map(Value::as_str);
        let text = text.unwrap_or("unknown error").to_string();
        match TRANSIENT_CODES.contains(&code) {
            true => self.error(text),
            false => EtcdError::Refused(text),
        }
    }

    async fn send(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        path: &str,
        body: String,
    ) -> Result<http::Response<Incoming>, EtcdError> {
        let request = Request::post(path)
            .header(header::HOST, self.member())
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| self.error(e))?;
        let ready = sender.ready().await;
        ready.map_err(|e| self.error(e))?;
        let answer = sender.send_request(request).await;
        answer.map_err(|e| self.error(e))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, EtcdError> {
        let stream = TcpStream::connect(self.member()).await;
        let stream = stream.map_err(|e| self.error(e))?;
        // Calls are small and wait for each other.
        let _ = stream.set_nodelay(true);
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|e| self.error(e))?;
        actix_rt::spawn(async move {
            if let Err(e) = connection.await {
                debug!("mnat-server: the connection to etcd ended: {e}");
            }
        });
        Ok(sender)
    }

    /// Watches the keys from `key` to `end`, exclusive, from a revision on. Uses the member of the
    /// last call.
    ///
    /// # Errors
    /// The member does not answer.
    pub async fn watch(&mut self, key: &str, end: &str, from: u64) -> Result<EtcdWatch, EtcdError> {
        let create = json!({ "create_request": {
            "key": encode(key), "range_end": encode(end), "start_revision": from.to_string(),
        }});
        let open = async {
            let mut sender = self.connect().await?;
            let answer = self
                .send(&mut sender, "/v3/watch", create.to_string())
                .await?;
            Ok(EtcdWatch {
                body: answer.into_body(),
                buffer: BytesMut::new(),
                _sender: sender,
            })
        };
        let opened = timeout(CALL_TIMEOUT, open).await;
        opened.unwrap_or_else(|_| Err(self.error("no answer to a watch")))
    }
}

/// A stream of events.
pub struct EtcdWatch {
    body: Incoming,
    buffer: BytesMut,
    /// The connection ends with it.
    _sender: SendRequest<Full<Bytes>>,
}

impl EtcdWatch {
    /// Returns the next message of the stream. May be cancelled.
    ///
    /// # Errors
    /// The stream ended.
    pub async fn next(&mut self) -> Result<Value, String> {
        loop {
            // A message is a line.
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return serde_json::from_slice(&line).map_err(|e| e.to_string());
            }
            if self.buffer.len() > MAX_ANSWER {
                return Err("a message is too long".into());
            }
            let frame = self.body.frame().await;
            let frame = frame.ok_or("the watch ended")?.map_err(|e| e.to_string())?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

/// Encodes a key or a value.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    data_encoding::BASE64.encode(bytes.as_ref())
}

/// Decodes a key or a value.
pub fn decode(value: &Value) -> Option<Vec<u8>> {
    data_encoding::BASE64
        .decode(value.as_str()?.as_bytes())
        .ok()
}

/// Returns a number, which JSON of etcd has as a text, and leaves out if it is 0.
pub fn number(value: &Value) -> u64 {
    let text = value.as_str().and_then(|text| text.parse().ok());
    text.or_else(|| value.as_u64()).unwrap_or_default()
}
