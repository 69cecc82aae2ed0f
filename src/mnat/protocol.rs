//! Requests to the MNAT server and its responses: paths, bodies and faults. No I/O.
//!
//! The format follows the observed behaviour of the prototype's server. It differs from RFC 7951:
//! requests send a list entry as a single object, and responses return it in a list.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::channel::Channel;
use super::config::MnatRole;
use crate::model::escape::quote;

/// Path of the API on the server.
pub const ROOT: &str = "/mnat-ds";
/// Content type of requests (RFC 8040 section 5.2, RFC 7951).
pub const CONTENT_TYPE: &str = "application/yang-data+json";
/// Maximum length of a response, in bytes: about 60,000 mappings.
pub const MAX_RESPONSE_LEN: usize = 16 << 20;
/// Maximum length of a request that the prototype's server accepts, in bytes: about 18,000 joins.
pub const MAX_REQUEST_LEN: usize = 1 << 20;
/// Space for the rest of a join request, in bytes, including an escaped id of [`MAX_ID_LEN`] bytes.
const JOIN_REQUEST_OVERHEAD: usize = 1024;
/// Maximum number of mappings read from a response. Further mappings are ignored.
pub const MAX_MAPPINGS: usize = 65_536;
/// Maximum length of a watcher id, in bytes.
pub(super) const MAX_ID_LEN: usize = 128;

/// The kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Requests a watcher id.
    NewWatcher,
    /// Registers the id as that of an ingress or egress.
    Register,
    /// Sends the joins of an egress.
    Join,
    /// Requests the mappings.
    Poll,
    /// Keeps the id valid.
    Refresh,
}

impl Op {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::NewWatcher,
        Self::Register,
        Self::Join,
        Self::Poll,
        Self::Refresh,
    ];

    /// Returns the `op` label of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::NewWatcher => "new_watcher",
            Self::Register => "register",
            Self::Join => "join",
            Self::Poll => "poll",
            Self::Refresh => "refresh",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NewWatcher => "requesting a watcher id",
            Self::Register => "registering",
            Self::Join => "sending the joins",
            Self::Poll => "requesting the mappings",
            Self::Refresh => "refreshing the watcher id",
        })
    }
}

/// A request, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MnatRequest {
    /// The kind of the request.
    pub op: Op,
    /// The HTTP method: GET, POST or PUT.
    pub method: &'static str,
    /// The absolute path of the URL.
    pub path: String,
    /// The JSON body; `None` for a request without a body.
    pub body: Option<Vec<u8>>,
}

impl MnatRequest {
    fn new(op: Op, method: &'static str, path: String, body: Option<Value>) -> Self {
        Self {
            op,
            method,
            path: format!("{ROOT}{path}"),
            body: body.map(|b| b.to_string().into_bytes()),
        }
    }

    /// Returns a request for a watcher id.
    pub fn new_watcher() -> Self {
        let path = "/operations/ietf-mnat:get-new-watcher-id".into();
        Self::new(Op::NewWatcher, "POST", path, None)
    }

    /// Returns a request that registers an id. It registers an egress without joins, and an ingress
    /// for all sources.
    pub fn register(role: MnatRole, id: &str) -> Self {
        let (path, watcher) = match role {
            MnatRole::Egress => (
                "/data/ietf-mnat:egress-global-joined",
                json!({ "id": id, "joined-sg": [] }),
            ),
            // Ids of monitors are single characters, because the prototype's server loses longer
            // ones.
            MnatRole::Ingress => (
                "/data/ietf-mnat:ingress-watching",
                json!({ "id": id, "monitor": [
                    { "id": "0", "global-source-prefix": "0.0.0.0/0" },
                    { "id": "1", "global-source-prefix": "::/0" },
                ]}),
            ),
        };
        let body = json!({ "ietf-mnat:watcher": watcher });
        Self::new(Op::Register, "POST", path.into(), Some(body))
    }

    /// Returns how many of the first joins fit into one request.
    pub fn fitting_joins(joins: impl Iterator<Item = Channel>) -> usize {
        let mut left = MAX_REQUEST_LEN - JOIN_REQUEST_OVERHEAD;
        joins
            .enumerate()
            .take_while(|join| {
                // Counts the comma after the entry.
                let len = joined_entry(*join).to_string().len() + 1;
                let fits = len <= left;
                left = left.saturating_sub(len);
                fits
            })
            .count()
    }

    /// Returns a request that replaces the joins of an egress.
    pub fn join(id: &str, joins: impl Iterator<Item = Channel>) -> Self {
        let joined: Vec<Value> = joins.enumerate().map(joined_entry).collect();
        let body = json!({ "ietf-mnat:watcher": { "id": id, "joined-sg": joined } });
        let path = format!(
            "/data/ietf-mnat:egress-global-joined/watcher={}",
            path_key(id)
        );
        Self::new(Op::Join, "PUT", path, Some(body))
    }

    /// Returns a request for the mappings.
    pub fn poll(id: &str) -> Self {
        let path = format!("/data/ietf-mnat:assigned-channels/watcher={}", path_key(id));
        Self::new(Op::Poll, "GET", path, None)
    }

    /// Returns a request that keeps an id valid.
    pub fn refresh(id: &str) -> Self {
        let body = json!({ "ietf-mnat:input": { "ietf-mnat:watcher-id": id } });
        let path = "/operations/ietf-mnat:refresh-watcher-id".into();
        Self::new(Op::Refresh, "POST", path, Some(body))
    }
}

fn joined_entry((n, channel): (usize, Channel)) -> Value {
    let (n, group) = (n.to_string(), channel.group().to_string());
    match channel.source() {
        Some(source) => json!({ "id": n, "source": source, "group": group }),
        None => json!({ "id": n, "asm-group": group }),
    }
}

/// Formats an id as a key in a path. Escapes all but the unreserved characters (RFC 8040 section
/// 3.5.3).
fn path_key(id: &str) -> String {
    let mut key = String::with_capacity(id.len());
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            key.push(byte.into());
        } else {
            key += &format!("%{byte:02X}");
        }
    }
    key
}

/// The mapping state of a global channel in a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AssignmentState {
    /// The local channel of the global channel. If it has no source, packets keep their source
    /// address.
    Assigned(Channel),
    /// The global channel has no local channel now.
    Unassigned,
    /// The server assigned a local channel that cannot be used. The text is the reason.
    Unusable(String),
}

/// A global channel and its mapping state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The channel that senders and receivers use.
    pub global: Channel,
    /// The mapping state.
    pub state: AssignmentState,
}

/// A parsed response of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerResponse {
    /// The response to [`Op::NewWatcher`].
    Watcher {
        /// The watcher id.
        id: String,
        /// The refresh interval of the id; 1 second to 1 day.
        refresh: Duration,
    },
    /// The response to [`Op::Register`], [`Op::Join`] and [`Op::Refresh`].
    Done,
    /// The response to [`Op::Poll`].
    Mappings {
        /// The mappings, each global channel once.
        mappings: Vec<Mapping>,
        /// Descriptions of the entries that were skipped.
        problems: Vec<String>,
    },
    /// The server does not know the watcher id any more.
    UnknownWatcher,
}

/// The reason why a response cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolFault {
    /// The status is not a success.
    #[error("the server answers {status}{}", suffix(.message))]
    Status {
        /// The HTTP status.
        status: u16,
        /// The error text of the server, if the body contains one.
        message: Option<String>,
    },
    /// The body is not JSON.
    #[error("the server's response is not JSON: {0}")]
    NotJson(String),
    /// The body lacks a required member.
    #[error("the server's response lacks {0}")]
    MissingMember(&'static str),
    /// The length of the watcher id is not valid.
    #[error("the server's watcher id has {0} bytes; expected 1 to {MAX_ID_LEN}")]
    InvalidId(usize),
}

/// Formats the error text of the server as the end of a sentence.
fn suffix(message: &Option<String>) -> String {
    message
        .as_ref()
        .map(|m| format!(": {m}"))
        .unwrap_or_default()
}

/// Parses the response to a request of kind `op`.
///
/// # Errors
/// Returns the reason why the response cannot be used.
pub fn parse_response(op: Op, status: u16, body: &[u8]) -> Result<ServerResponse, ProtocolFault> {
    if !(200..300).contains(&status) {
        // The prototype's server answers 500 to a refresh of an unknown id, and 404 to a PUT. A
        // refresh fails in no other case.
        return match (op, status) {
            (Op::Refresh, 400 | 404 | 500) | (Op::Join, 404) => Ok(ServerResponse::UnknownWatcher),
            _ => Err(ProtocolFault::Status {
                status,
                message: error_message(body),
            }),
        };
    }
    match op {
        Op::Register | Op::Join | Op::Refresh => Ok(ServerResponse::Done),
        Op::NewWatcher => parse_watcher(&parse_json(body)?),
        Op::Poll => parse_mappings(&parse_json(body)?),
    }
}

fn parse_json(body: &[u8]) -> Result<Value, ProtocolFault> {
    serde_json::from_slice(body).map_err(|e| ProtocolFault::NotJson(e.to_string()))
}

/// Returns the member with this name, with or without the prefix of the YANG module.
fn member<'v>(object: &'v Value, name: &str) -> Option<&'v Value> {
    object
        .get(name)
        .or_else(|| object.get(format!("ietf-mnat:{name}").as_str()))
}

fn parse_watcher(body: &Value) -> Result<ServerResponse, ProtocolFault> {
    let inner = member(body, "output").unwrap_or(body);
    let find = |name| member(inner, name).or_else(|| member(body, name));
    let id = find("watcher-id").and_then(Value::as_str);
    let id = id.ok_or(ProtocolFault::MissingMember("a watcher-id"))?;
    if id.is_empty() || id.len() > MAX_ID_LEN {
        return Err(ProtocolFault::InvalidId(id.len()));
    }
    let refresh = find("refresh-period").and_then(integer);
    let refresh = refresh.ok_or(ProtocolFault::MissingMember("a refresh-period"))?;
    Ok(ServerResponse::Watcher {
        id: id.into(),
        refresh: Duration::from_secs(refresh.clamp(1, 86_400)),
    })
}

/// Parses an unsigned integer. RFC 7951 section 6.1 encodes 64-bit integers as strings.
fn integer(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .or_else(|| value.as_str().and_then(|s| s.parse().ok()))
}

fn parse_mappings(body: &Value) -> Result<ServerResponse, ProtocolFault> {
    let watcher = member(body, "watcher").ok_or(ProtocolFault::MissingMember("a watcher"))?;
    let watcher = match watcher {
        Value::Array(list) => list
            .first()
            .ok_or(ProtocolFault::MissingMember("a watcher"))?,
        entry => entry,
    };
    let watcher = watcher
        .as_object()
        .ok_or(ProtocolFault::MissingMember("a watcher that is an object"))?;
    if watcher.is_empty() {
        return Ok(ServerResponse::UnknownWatcher);
    }
    let list = watcher.get("mapped-sg").and_then(Value::as_array);
    let list = list.ok_or(ProtocolFault::MissingMember("a mapped-sg list"))?;
    let mut problems = Vec::new();
    let mut mappings = Vec::with_capacity(list.len().min(MAX_MAPPINGS));
    let mut indexes = ahash::AHashMap::with_capacity(mappings.capacity());
    for entry in list.iter().take(MAX_MAPPINGS) {
        match parse_mapping(entry) {
            Ok(mapping) => match indexes.get(&mapping.global) {
                // Overlapping monitors return the same mapping several times.
                Some(n) if mappings[*n] == mapping => {}
                Some(_) => problems.push(format!("{} has two mappings", mapping.global)),
                None => {
                    indexes.insert(mapping.global, mappings.len());
                    mappings.push(mapping);
                }
            },
            Err(why) => problems.push(why),
        }
    }
    if list.len() > MAX_MAPPINGS {
        problems.push(format!(
            "more than {MAX_MAPPINGS} mappings; the rest is ignored"
        ));
    }
    Ok(ServerResponse::Mappings { mappings, problems })
}

fn parse_mapping(entry: &Value) -> Result<Mapping, String> {
    let global = entry
        .get("global-subscription")
        .ok_or("a mapping without a global-subscription")?;
    let global = parse_channel(global).map_err(|e| format!("global-subscription: {e}"))?;
    let state = entry.get("state").and_then(Value::as_str);
    let state = state.map(|s| s.strip_prefix("ietf-mnat:").unwrap_or(s));
    let state = match state {
        Some("assigned-local-multicast") => match entry.get("local-mapping").map(parse_channel) {
            Some(Ok(local)) => AssignmentState::Assigned(local),
            Some(Err(e)) => AssignmentState::Unusable(format!("local-mapping: {e}")),
            None => AssignmentState::Unusable("no local-mapping".into()),
        },
        // Includes states of later versions of the draft, which have no local mapping.
        _ => AssignmentState::Unassigned,
    };
    Ok(Mapping { global, state })
}

fn parse_channel(value: &Value) -> Result<Channel, String> {
    let text = |name| match value.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!("{name} is not a string")),
    };
    let channel = match text("asm-group")? {
        Some(group) => Channel::parse(None, group),
        None => {
            let source = text("source")?.ok_or("no source")?;
            Channel::parse(Some(source), text("group")?.ok_or("no group")?)
        }
    };
    channel.map_err(|e| quote(&e.to_string()))
}

/// Returns the text of an error body (RFC 8040 section 7.1).
fn error_message(body: &[u8]) -> Option<String> {
    let body: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let error = body.get("ietf-restconf:errors")?.get("error")?.get(0)?;
    let text = |name| error.get(name).and_then(Value::as_str);
    let message = text("error-message").or_else(|| text("error-app-tag"));
    message.or_else(|| text("error-tag")).map(quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(request: &MnatRequest) -> Value {
        serde_json::from_slice(request.body.as_ref().unwrap()).unwrap()
    }

    #[test]
    fn asm_join_contains_only_the_group() {
        let joins = [
            Channel::parse(Some("10.0.0.1"), "232.1.1.1").unwrap(),
            Channel::parse(None, "239.5.5.5").unwrap(),
        ];
        let request = MnatRequest::join("A/B", joins.into_iter());
        assert!(request.path.ends_with("/watcher=A%2FB"), "{}", request.path);
        assert_eq!(
            body(&request)["ietf-mnat:watcher"]["joined-sg"],
            json!([
                { "id": "0", "source": "10.0.0.1", "group": "232.1.1.1" },
                { "id": "1", "asm-group": "239.5.5.5" },
            ])
        );
    }

    #[test]
    fn watcher_id_is_read_with_and_without_rpc_output() {
        let expected = Ok(ServerResponse::Watcher {
            id: "A".into(),
            refresh: Duration::from_secs(20),
        });
        for text in [
            r#"{"watcher-id": "A", "refresh-period": 20}"#,
            r#"{"ietf-mnat:output": {"watcher-id": "A", "refresh-period": 20}}"#,
            r#"{"ietf-mnat:output": {"ietf-mnat:watcher-id": "A", "refresh-period": "20"}}"#,
            r#"{"ietf-mnat:output": {"refresh-period": 20}, "watcher-id": "A"}"#,
        ] {
            assert_eq!(
                parse_response(Op::NewWatcher, 200, text.as_bytes()),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn invalid_responses_are_refused_with_a_reason() {
        let long = format!(
            r#"{{"watcher-id": "{}", "refresh-period": 1}}"#,
            "x".repeat(129)
        );
        for (op, status, text, expected) in [
            (Op::NewWatcher, 200, "", "not JSON"),
            (Op::NewWatcher, 200, "<html>", "not JSON"),
            (Op::NewWatcher, 200, "[]", "lacks a watcher-id"),
            (
                Op::NewWatcher,
                200,
                r#"{"watcher-id": 7}"#,
                "lacks a watcher-id",
            ),
            (
                Op::NewWatcher,
                200,
                r#"{"watcher-id": "A"}"#,
                "lacks a refresh-period",
            ),
            (
                Op::NewWatcher,
                200,
                r#"{"watcher-id": "A", "refresh-period": -1}"#,
                "lacks a refresh-period",
            ),
            (
                Op::NewWatcher,
                200,
                r#"{"watcher-id": "", "refresh-period": 1}"#,
                "id has 0 bytes",
            ),
            (Op::NewWatcher, 200, &long, "id has 129 bytes"),
            (Op::Poll, 200, "{}", "lacks a watcher"),
            (
                Op::Poll,
                200,
                r#"{"ietf-mnat:watcher": []}"#,
                "lacks a watcher",
            ),
            (
                Op::Poll,
                200,
                r#"{"ietf-mnat:watcher": [7]}"#,
                "lacks a watcher that is an object",
            ),
            (
                Op::Poll,
                200,
                r#"{"ietf-mnat:watcher": [{"id": "A"}]}"#,
                "lacks a mapped-sg list",
            ),
            (Op::Poll, 500, "oops", "answers 500"),
            (Op::Poll, 301, "", "answers 301"),
            (
                Op::Join,
                400,
                r#"{"ietf-restconf:errors": {"error": [{"error-message": "bad\nsource"}]}}"#,
                "answers 400: bad\\nsource",
            ),
        ] {
            let fault = parse_response(op, status, text.as_bytes())
                .unwrap_err()
                .to_string();
            assert!(fault.contains(expected), "{text}: {fault}");
        }
    }

    #[test]
    fn responses_that_mean_unknown_watcher() {
        let empty = br#"{"ietf-mnat:watcher": [{}]}"#;
        assert_eq!(
            parse_response(Op::Poll, 200, empty),
            Ok(ServerResponse::UnknownWatcher)
        );
        assert_eq!(
            parse_response(Op::Refresh, 500, b""),
            Ok(ServerResponse::UnknownWatcher)
        );
        assert_eq!(
            parse_response(Op::Join, 404, b""),
            Ok(ServerResponse::UnknownWatcher)
        );
        assert!(parse_response(Op::Poll, 500, b"").is_err());
        assert!(parse_response(Op::Refresh, 503, b"").is_err());
    }

    fn poll(entries: Value) -> (Vec<Mapping>, Vec<String>) {
        let body = json!({ "ietf-mnat:watcher": [{ "id": "A", "mapped-sg": entries }] });
        match parse_response(Op::Poll, 200, body.to_string().as_bytes()) {
            Ok(ServerResponse::Mappings { mappings, problems }) => (mappings, problems),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn invalid_mappings_are_reported_and_others_read() {
        let global = json!({ "source": "10.0.0.1", "group": "232.1.1.1" });
        let good = json!({ "global-subscription": global, "state": "assigned-local-multicast",
            "local-mapping": { "asm-group": "239.1.1.3" } });
        let with = |global: Value| json!({ "global-subscription": global });
        for (bad, expected) in [
            (json!(7), "without a global-subscription"),
            (json!({}), "without a global-subscription"),
            (with(json!({})), "no source"),
            (with(json!({ "source": "10.0.0.1" })), "no group"),
            (
                with(json!({ "source": 1, "group": "232.1.1.1" })),
                "source is not a string",
            ),
            (with(json!({ "source": "x", "group": "232.1.1.1" })), "`x`"),
            (
                with(json!({ "source": "10.0.0.1", "group": "10.0.0.2" })),
                "not a multicast",
            ),
            (
                with(json!({ "source": "232.1.1.1", "group": "232.1.1.1" })),
                "is a multicast",
            ),
            (
                with(json!({ "source": "fe80::1%eth0", "group": "ff3e::1" })),
                "`fe80::1%eth0`",
            ),
            (
                with(json!({ "source": "10.0.0.1", "group": "ff3e::1" })),
                "different IP versions",
            ),
            (
                with(json!({ "source": "10.0.0.1", "group": "224.0.0.1" })),
                "link-local",
            ),
            (
                with(json!({ "source": "0.0.0.0", "group": "232.1.1.1" })),
                "not a valid source",
            ),
        ] {
            let (mappings, problems) = poll(json!([bad, good, good]));
            assert_eq!(mappings.len(), 1);
            assert!(
                problems.len() == 1 && problems[0].contains(expected),
                "{problems:?}"
            );
        }
        let states = |state: Value, local: Value| {
            let entry =
                json!({ "global-subscription": global, "state": state, "local-mapping": local });
            poll(json!([entry])).0.remove(0).state
        };
        let local = json!({ "source": "10.9.1.2", "group": "239.1.1.7" });
        let assigned = Channel::parse(Some("10.9.1.2"), "239.1.1.7").unwrap();
        for state in [
            "ietf-mnat:assigned-local-multicast",
            "assigned-local-multicast",
        ] {
            assert_eq!(
                states(json!(state), local.clone()),
                AssignmentState::Assigned(assigned)
            );
        }
        for state in [
            json!("ietf-mnat:unassigned"),
            json!("ietf-mnat:new"),
            json!(3),
        ] {
            assert_eq!(states(state, local.clone()), AssignmentState::Unassigned);
        }
        // The prototype's server assigns this mapping from a pool that keeps source addresses.
        let mixed = json!({ "source": "2001:db8::1", "group": "239.192.0.1" });
        for local in [mixed, json!(null), json!({})] {
            let state = states(json!("assigned-local-multicast"), local);
            assert!(matches!(state, AssignmentState::Unusable(_)), "{state:?}");
        }
        let mut other = good.clone();
        other["local-mapping"] = local;
        let (mappings, problems) = poll(json!([good, other]));
        assert_eq!(mappings.len(), 1);
        assert_eq!(problems, ["(10.0.0.1, 232.1.1.1) has two mappings"]);
    }
}
