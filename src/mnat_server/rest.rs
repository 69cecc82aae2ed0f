//! RESTCONF: from method, path and body to a request, and from the result to an answer. Pure.
//!
//! Clients of the prototype stop working after an error, or an empty body, in response to a GET. So
//! a request for mappings is always answered with 200 and a body.

use serde_json::{Value, json};

use super::machine::{Caller, ServerReply, ServerRequest};
use crate::mnat::messages::{
    AssignedChannels, ErrorTag, JoinedSet, MonitorSet, RefreshInput, Resource, RestconfError,
};

/// Maximum length of a request body, in bytes.
pub const MAX_BODY: usize = 1 << 20;
/// Maximum length of an answer to a client of the prototype, in bytes: it never widens the window of
/// a stream.
const MAX_PROTOTYPE_ANSWER: usize = 65_535;
/// Maximum length of an answer to other clients, in bytes.
const MAX_ANSWER: usize = crate::mnat::protocol::MAX_RESPONSE_LEN;
/// The methods that some resource supports.
const METHODS: &str = "GET, HEAD, OPTIONS, POST, PUT, DELETE";
/// The version of the YANG library (RFC 8040 section 3.3.3).
const LIBRARY_VERSION: &str = "2019-01-04";

/// The kind of a request, as the label `op` of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerOp {
    /// Requests a watcher id.
    NewWatcher,
    /// Keeps a watcher id valid.
    Refresh,
    /// Sets joins.
    Join,
    /// Sets the watched sources.
    Watch,
    /// Requests the mappings.
    Poll,
    /// Everything else.
    Other,
}

impl ServerOp {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::NewWatcher,
        Self::Refresh,
        Self::Join,
        Self::Watch,
        Self::Poll,
        Self::Other,
    ];

    /// Returns the value of the label.
    pub fn label(self) -> &'static str {
        match self {
            Self::NewWatcher => "new_watcher",
            Self::Refresh => "refresh",
            Self::Join => "join",
            Self::Watch => "watch",
            Self::Poll => "poll",
            Self::Other => "other",
        }
    }
}

/// An answer, without the headers that depend on the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    /// Whether the body is XML instead of JSON.
    pub is_xml: bool,
    /// The value of the header `Allow`.
    pub allow: Option<&'static str>,
    /// The version of the mappings in the body.
    pub version: Option<u64>,
    /// How many mappings were left out, because the client can read no longer answer.
    pub left_out: usize,
}

impl RestAnswer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            body: body.into(),
            is_xml: false,
            allow: None,
            version: None,
            left_out: 0,
        }
    }

    fn json(body: &Value) -> Self {
        Self::new(200, body.to_string())
    }

    /// Returns the answer that nothing changed.
    pub fn not_modified(version: u64) -> Self {
        Self {
            version: Some(version),
            ..Self::new(304, "")
        }
    }

    /// Returns the answer to a refused request.
    pub fn error(error: &RestconfError) -> Self {
        let allow = (error.tag == ErrorTag::UnsupportedMethod).then_some(METHODS);
        Self {
            allow,
            ..Self::new(error.tag.status(), error.encode())
        }
    }

    /// Returns the answer with the status for the method. A POST is always answered with 201, as the
    /// prototype does, although the watcher may be registered already.
    pub fn for_method(self, method: &str, op: ServerOp) -> Self {
        match (method, op, self.status) {
            ("POST", ServerOp::Join | ServerOp::Watch, 204) => Self::new(201, ""),
            _ => self,
        }
    }

    /// Returns the answer to a request that the machine handled.
    pub fn reply(reply: Result<ServerReply, RestconfError>, caller: &Caller) -> Self {
        match reply {
            Ok(ServerReply::Granted(grant)) => Self::json(&grant.encode()),
            Ok(ServerReply::Created) => Self::new(201, ""),
            Ok(ServerReply::Done) => Self::new(204, ""),
            Ok(ServerReply::Assigned(channels, version)) => {
                let limit = match caller.can_wait {
                    true => MAX_ANSWER,
                    false => MAX_PROTOTYPE_ANSWER,
                };
                let (body, left_out) = channels.encode(limit);
                Self {
                    version: Some(version),
                    left_out,
                    ..Self::new(200, body)
                }
            }
            Ok(ServerReply::UnknownWatcher) => Self::new(200, AssignedChannels::UNKNOWN_WATCHER),
            Ok(ServerReply::Joined(set)) => Self::json(&listed(set.encode())),
            Ok(ServerReply::Monitors(set)) => Self::json(&listed(set.encode())),
            Err(error) => Self::error(&error),
        }
    }
}

/// Returns a body of a request in the form of a response: the entry in a list.
fn listed(mut body: Value) -> Value {
    if let Some(watcher) = body.get_mut("ietf-mnat:watcher") {
        *watcher = json!([watcher.take()]);
    }
    body
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestRequest {
    /// A request to the machine.
    Server(ServerRequest),
    /// A request that does not depend on the state.
    Answer(RestAnswer),
}

/// Parses a request. `body` is `None` if it is longer than [`MAX_BODY`].
pub fn parse(method: &str, path: &str, body: Option<&[u8]>) -> (ServerOp, RestRequest) {
    match parse_request(method, path, body) {
        Ok((op, request)) => (op, request),
        Err(error) => (
            ServerOp::Other,
            RestRequest::Answer(RestAnswer::error(&error)),
        ),
    }
}

fn parse_request(
    method: &str,
    path: &str,
    body: Option<&[u8]>,
) -> Result<(ServerOp, RestRequest), RestconfError> {
    let Some(body) = body else {
        let message = format!("a body may have {MAX_BODY} bytes");
        return Err(RestconfError::new(ErrorTag::TooBig, message));
    };
    let Some(resource) = Resource::parse(path) else {
        let message = "there is no such resource";
        return Err(RestconfError::new(ErrorTag::NotFound, message));
    };
    if !["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE"].contains(&method) {
        return Err(unsupported(method));
    }
    if method == "OPTIONS" {
        let options = RestAnswer {
            allow: Some(METHODS),
            ..RestAnswer::new(200, "")
        };
        return Ok((ServerOp::Other, RestRequest::Answer(options)));
    }
    let server = |op, request| Ok((op, RestRequest::Server(request)));
    let is_read = matches!(method, "GET" | "HEAD");
    match (resource, method) {
        (Resource::NewWatcher, "POST") => server(ServerOp::NewWatcher, ServerRequest::NewWatcher),
        (Resource::Refresh, "POST") => {
            let input = RefreshInput::decode(&parse_json(body)?)?;
            server(ServerOp::Refresh, ServerRequest::Refresh(input.id))
        }
        (Resource::Joined(key), "POST" | "PUT") => {
            check_key(method, key.as_deref())?;
            let set = JoinedSet::decode(&parse_json(body)?, key.as_deref())?;
            server(ServerOp::Join, ServerRequest::SetJoined(set))
        }
        (Resource::Watching(key), "POST" | "PUT") => {
            check_key(method, key.as_deref())?;
            let set = MonitorSet::decode(&parse_json(body)?, key.as_deref())?;
            server(ServerOp::Watch, ServerRequest::SetMonitors(set))
        }
        (Resource::Joined(Some(id)), "DELETE") => {
            server(ServerOp::Join, ServerRequest::RemoveJoined(id))
        }
        (Resource::Watching(Some(id)), "DELETE") => {
            server(ServerOp::Watch, ServerRequest::RemoveMonitors(id))
        }
        (Resource::Assigned(Some(id)), _) if is_read => {
            server(ServerOp::Poll, ServerRequest::Assigned(id))
        }
        (Resource::Joined(Some(id)), _) if is_read => {
            server(ServerOp::Other, ServerRequest::Joined(id))
        }
        (Resource::Watching(Some(id)), _) if is_read => {
            server(ServerOp::Other, ServerRequest::Monitors(id))
        }
        (
            Resource::Joined(None)
            | Resource::Watching(None)
            | Resource::Assigned(None)
            | Resource::Data,
            _,
        ) if is_read => Err(RestconfError::new(
            ErrorTag::AccessDenied,
            "a client may not list the watchers; name its own one: watcher=ID",
        )),
        (Resource::UnknownOperation, _) => Err(RestconfError::new(
            ErrorTag::UnknownOperation,
            "there is no such operation",
        )),
        (resource, _) if is_read => Ok((
            ServerOp::Other,
            RestRequest::Answer(information(&resource, path)),
        )),
        _ => Err(unsupported(method)),
    }
}

fn unsupported(method: &str) -> RestconfError {
    let method: String = method.chars().take(20).collect();
    RestconfError::new(
        ErrorTag::UnsupportedMethod,
        format!("{method} is not supported here"),
    )
}

/// Refuses a PUT without a watcher id in the path.
fn check_key(method: &str, key: Option<&str>) -> Result<(), RestconfError> {
    match (method, key) {
        ("PUT", None) => Err(RestconfError::new(
            ErrorTag::InvalidValue,
            "the path must name the watcher: watcher=ID",
        )),
        _ => Ok(()),
    }
}

fn parse_json(body: &[u8]) -> Result<Value, RestconfError> {
    serde_json::from_slice(body).map_err(|e| {
        RestconfError::new(
            ErrorTag::MalformedMessage,
            format!("the body is not JSON: {e}"),
        )
    })
}

/// Returns the answer for a resource that describes the server.
fn information(resource: &Resource, path: &str) -> RestAnswer {
    let operations = json!({
        "ietf-mnat:get-new-watcher-id": null,
        "ietf-mnat:refresh-watcher-id": null,
    });
    match resource {
        Resource::HostMeta => RestAnswer {
            is_xml: true,
            ..RestAnswer::new(
                200,
                "<XRD xmlns='http://docs.oasis-open.org/ns/xri/xrd-1.0'>\n\
                 <Link rel='restconf' href='/mnat-ds'/>\n</XRD>\n",
            )
        },
        Resource::LibraryVersion => {
            RestAnswer::json(&json!({ "ietf-restconf:yang-library-version": LIBRARY_VERSION }))
        }
        Resource::Operations => {
            RestAnswer::json(&json!({ "ietf-restconf:operations": operations }))
        }
        Resource::NewWatcher | Resource::Refresh => {
            let name = path.rsplit('/').next().unwrap_or_default();
            RestAnswer::json(&json!({ name: null }))
        }
        _ => RestAnswer::json(&json!({ "ietf-restconf:restconf": {
            "data": {}, "operations": operations, "yang-library-version": LIBRARY_VERSION,
        }})),
    }
}
