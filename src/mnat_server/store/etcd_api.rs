//! The JSON interface of etcd (its gRPC gateway) over HTTP/1.1.
//!
//! etcd offers each call of its gRPC interface as JSON too. That needs nothing but the HTTP client
//! that mcastor has anyway. The crate `etcd-client` adds a gRPC stack, and needs the compiler
//! `protoc` in each build.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::debug;

use super::etcd_member::{EtcdMember, EtcdOptions, EtcdSender, http_error};
use crate::model::escape::quote;

/// How long one member of etcd may take for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Limit of an answer, and of an event of a watch, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// How much of an answer that is no JSON the log shows, in bytes.
const MAX_SHOWN: usize = 200;
/// The gRPC codes of errors that another attempt, perhaps with another member, may not have: unknown,
/// deadline exceeded, resource exhausted, aborted, internal, unavailable.
const TRANSIENT_CODES: [u64; 6] = [2, 4, 8, 10, 13, 14];
/// The gRPC code of a token that etcd does not know, or not any more.
const UNAUTHENTICATED: u64 = 16;
/// In the error about a token from before a change of users or roles.
const OLD_TOKEN: &str = "auth store is old";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// The member cannot be reached, or does not answer as it should.
    #[error("etcd at {0}: {1}")]
    Member(String, String),
    /// etcd refuses the call. Another attempt would be refused too.
    #[error("etcd: {0}")]
    Refused(String),
    /// etcd wants a new token of the user.
    #[error("etcd: {0}")]
    InvalidToken(String),
    /// The password cannot be read.
    #[error("cannot read {}: {}", .0.display(), .1)]
    Password(PathBuf, io::Error),
}

/// The members of an etcd cluster, of which one is used until a call fails.
pub struct EtcdApi {
    members: Vec<EtcdMember>,
    options: EtcdOptions,
    current: usize,
    sender: Option<EtcdSender>,
    /// Proves that calls are those of the user.
    token: Option<String>,
}

/// The answers of a call, one for each part of the request.
pub type Answers = Vec<Value>;

impl EtcdApi {
    /// Returns the members, of which there is at least one. `options` has what they need.
    pub(super) fn new(members: Vec<EtcdMember>, options: EtcdOptions) -> Self {
        Self {
            members,
            options,
            current: 0,
            sender: None,
            token: None,
        }
    }

    fn member(&self) -> Option<&EtcdMember> {
        self.members.get(self.current)
    }

    fn error(&self, why: impl ToString) -> EtcdError {
        let address = self.member().map_or("", EtcdMember::address);
        EtcdError::Member(address.into(), why.to_string())
    }

    /// Returns the error of a connection that ended before its first answer.
    fn error_without_answer(&self, why: String) -> EtcdError {
        let hint = self.member().map(|member| member.hint(&self.options));
        self.error(format!("{why}; {}", hint.unwrap_or_default()))
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
            let attempt = timeout(CALL_TIMEOUT, self.call_member(path, &body)).await;
            let error = match attempt {
                Ok(Err(error @ EtcdError::Member(..))) => error,
                Ok(result) => return result,
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

    /// Makes a call with the present member, and authenticates the user if that is necessary.
    async fn call_member(&mut self, path: &str, body: &str) -> Result<Answers, EtcdError> {
        if self.options.user.is_some() && self.token.is_none() {
            self.authenticate().await?;
        }
        match self.exchange(path, body).await {
            Err(EtcdError::InvalidToken(why)) => {
                debug!("mnat-server: etcd: {why}");
                self.authenticate().await?;
                self.exchange(path, body).await
            }
            other => other,
        }
    }

    /// Gets a token of the user.
    async fn authenticate(&mut self) -> Result<(), EtcdError> {
        self.token = None;
        let Some((name, file)) = self.options.user.clone() else {
            return Err(EtcdError::Refused("no user is set".into()));
        };
        let password = std::fs::read_to_string(&file);
        let password = password.map_err(|e| EtcdError::Password(file, e))?;
        let password = password.trim_end_matches(['\r', '\n']);
        let body = json!({ "name": name, "password": password }).to_string();
        let answers = self.exchange("/v3/auth/authenticate", &body).await?;
        let token = answers.first().and_then(|answer| answer["token"].as_str());
        self.token = token.map(String::from);
        Ok(())
    }

    async fn exchange(&mut self, path: &str, body: &str) -> Result<Answers, EtcdError> {
        let open = self.sender.take().filter(|sender| !sender.is_closed());
        let is_new = open.is_none();
        let mut sender = match open {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let answer = self.send(&mut sender, path, body, is_new).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|e| self.error(e))?.to_bytes();
        let values = serde_json::Deserializer::from_slice(&body).into_iter::<Value>();
        let values: Result<Answers, _> = values.collect();
        let values = values.map_err(|_| self.error(no_json(status, &body)))?;
        self.sender = Some(sender);
        match values.iter().find(|value| !value["error"].is_null()) {
            Some(value) => Err(self.answered_error(value)),
            None if !status.is_success() => Err(self.error("an error without a reason")),
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
        let is_of_token = code == UNAUTHENTICATED || text.contains(OLD_TOKEN);
        match TRANSIENT_CODES.contains(&code) {
            true => self.error(text),
            false if is_of_token && self.token.is_some() => EtcdError::InvalidToken(text),
            false => EtcdError::Refused(text),
        }
    }

    async fn send(
        &self,
        sender: &mut EtcdSender,
        path: &str,
        body: &str,
        is_new: bool,
    ) -> Result<http::Response<Incoming>, EtcdError> {
        let address = self.member().map_or("", EtcdMember::address);
        let mut request = Request::post(path).header(header::HOST, address);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .map_err(|e| self.error(e))?;
        let error = |e: hyper::Error| match is_new {
            true => self.error_without_answer(http_error(&e)),
            false => self.error(http_error(&e)),
        };
        sender.ready().await.map_err(error)?;
        sender.send_request(request).await.map_err(error)
    }

    async fn connect(&self) -> Result<EtcdSender, EtcdError> {
        let Some(member) = self.member() else {
            return Err(self.error("there are no members"));
        };
        let connected = member.connect(&self.options).await;
        connected.map_err(|why| self.error(why))
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
        let create = create.to_string();
        let open = async {
            let mut sender = self.connect().await?;
            let answer = self.send(&mut sender, "/v3/watch", &create, true).await?;
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
    _sender: EtcdSender,
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

/// Describes an answer that is no JSON: often one sentence, with which etcd refuses all calls.
fn no_json(status: StatusCode, body: &[u8]) -> String {
    let shown = body.get(..MAX_SHOWN).unwrap_or(body);
    let text = quote(String::from_utf8_lossy(shown).trim());
    format!("it answers {status}, and no JSON: {text}")
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
