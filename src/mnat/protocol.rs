//! What is said to the server and what it answers: paths, bodies, faults. No I/O.
//!
//! Written after the prototype's server as observed, which is lenient in some places and strict
//! in others: list entries go out as single objects, and come back in lists.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::channel::Channel;

/// Where the API begins.
pub const ROOT: &str = "/mnat-ds";
/// Content type of requests (RFC 7951 by way of RFC 8040 section 5.2).
pub const CONTENT_TYPE: &str = "application/yang-data+json";
/// Longest answer that is read, in bytes: some 60,000 mappings.
pub const LONGEST_ANSWER: usize = 16 << 20;
/// Longest request the prototype's server takes, in bytes: some 18,000 joins.
pub const LONGEST_REQUEST: usize = 1 << 20;
/// What a request of joins has beside them, in bytes, the longest id of 128 escaped bytes included.
const AROUND_JOINS: usize = 1024;
/// Mappings of an answer that are looked at; what comes after them is left out.
pub const MOST_MAPPINGS: usize = 65_536;
/// Longest watcher id, in bytes.
const LONGEST_ID: usize = 128;
/// Longest a server's own words are repeated, in characters.
const LONGEST_QUOTE: usize = 200;

/// What this end does with the mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MnatRole {
    /// Near senders: global in, local out.
    Ingress,
    /// Near receivers: local in, global out.
    Egress,
}

impl MnatRole {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The `role` label of metrics, and its word in the settings.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for MnatRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Ask for a watcher id.
    NewWatcher,
    /// Make the id known as an ingress' or egress'.
    Register,
    /// Tell what is joined.
    Join,
    /// Ask for the mappings.
    Poll,
    /// Keep the id alive.
    Refresh,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::NewWatcher,
        Self::Register,
        Self::Join,
        Self::Poll,
        Self::Refresh,
    ];

    /// The `op` label of metrics.
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
            Self::NewWatcher => "asking for a watcher id",
            Self::Register => "registering",
            Self::Join => "telling what is joined",
            Self::Poll => "asking for the mappings",
            Self::Refresh => "refreshing the watcher id",
        })
    }
}

/// A request, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MnatRequest {
    /// What it is for.
    pub op: Op,
    /// GET, POST or PUT.
    pub method: &'static str,
    /// From the root of the server.
    pub path: String,
    /// JSON; `None` has no body at all.
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

    /// Asks for a watcher id.
    pub fn new_watcher() -> Self {
        let path = "/operations/ietf-mnat:get-new-watcher-id".into();
        Self::new(Op::NewWatcher, "POST", path, None)
    }

    /// Makes an id known: an egress without joins, an ingress for every source.
    pub fn register(role: MnatRole, id: &str) -> Self {
        let (path, watcher) = match role {
            MnatRole::Egress => (
                "/data/ietf-mnat:egress-global-joined",
                json!({ "id": id, "joined-sg": [] }),
            ),
            // Ids of monitors are single characters: the prototype loses longer ones.
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

    /// How many joins, from the first on, one request can tell.
    pub fn room_for(joined: impl Iterator<Item = Channel>) -> usize {
        let mut left = LONGEST_REQUEST - AROUND_JOINS;
        joined
            .enumerate()
            .take_while(|join| {
                // With its comma.
                let len = joined_entry(*join).to_string().len() + 1;
                let fits = len <= left;
                left = left.saturating_sub(len);
                fits
            })
            .count()
    }

    /// Tells all that is joined.
    pub fn join(id: &str, joined: impl Iterator<Item = Channel>) -> Self {
        let joined: Vec<Value> = joined.enumerate().map(joined_entry).collect();
        let body = json!({ "ietf-mnat:watcher": { "id": id, "joined-sg": joined } });
        let path = format!("/data/ietf-mnat:egress-global-joined/watcher={}", key(id));
        Self::new(Op::Join, "PUT", path, Some(body))
    }

    /// Asks for the mappings.
    pub fn poll(id: &str) -> Self {
        let path = format!("/data/ietf-mnat:assigned-channels/watcher={}", key(id));
        Self::new(Op::Poll, "GET", path, None)
    }

    /// Keeps an id alive.
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

/// An id as a key in a path: all but unreserved characters escaped (RFC 8040 section 3.5.3).
fn key(id: &str) -> String {
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

/// What the server does with a global channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AssignmentState {
    /// It goes through the network as this one. Without a source it keeps its own.
    Assigned(Channel),
    /// There is no local channel for it now.
    Unassigned,
    /// The server named one that cannot be used, and this is why.
    Unusable(String),
}

/// A global channel and what the server does with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// What senders send and receivers want.
    pub global: Channel,
    /// How it goes through the network.
    pub state: AssignmentState,
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerResponse {
    /// To [`Op::NewWatcher`].
    Watcher {
        /// The id.
        id: String,
        /// How often it wants to be refreshed; between a second and a day.
        refresh: Duration,
    },
    /// To [`Op::Register`], [`Op::Join`] and [`Op::Refresh`].
    Done,
    /// To [`Op::Poll`].
    Mappings {
        /// Each global channel once.
        mappings: Vec<Mapping>,
        /// What was left out of the answer, and why.
        oddities: Vec<String>,
    },
    /// The server does not know the id any more.
    Forgotten,
}

/// Why an answer is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolFault {
    /// A status that promises nothing.
    #[error("the server answers {status}{}", said(.message))]
    Status {
        /// The status.
        status: u16,
        /// The server's own words, where there are any.
        message: Option<String>,
    },
    /// The body is no JSON.
    #[error("the server's answer is not JSON: {0}")]
    NotJson(String),
    /// The body is not what the request asks for.
    #[error("the server's answer lacks {0}")]
    Lacks(&'static str),
    /// The id cannot be used.
    #[error("the server gives a watcher id of {0} bytes; 1 to {LONGEST_ID} would do")]
    BadId(usize),
}

fn said(message: &Option<String>) -> String {
    message
        .as_ref()
        .map(|m| format!(": {m}"))
        .unwrap_or_default()
}

/// Reads an answer.
///
/// # Errors
/// All that cannot be gone on with.
pub fn read(op: Op, status: u16, body: &[u8]) -> Result<ServerResponse, ProtocolFault> {
    if !(200..300).contains(&status) {
        // An unknown id: 500 to a refresh, 404 to a PUT. A refresh has no other way to fail.
        return match (op, status) {
            (Op::Refresh, 400 | 404 | 500) | (Op::Join, 404) => Ok(ServerResponse::Forgotten),
            _ => Err(ProtocolFault::Status {
                status,
                message: message(body),
            }),
        };
    }
    match op {
        Op::Register | Op::Join | Op::Refresh => Ok(ServerResponse::Done),
        Op::NewWatcher => watcher(&parse(body)?),
        Op::Poll => mappings(&parse(body)?),
    }
}

fn parse(body: &[u8]) -> Result<Value, ProtocolFault> {
    serde_json::from_slice(body).map_err(|e| ProtocolFault::NotJson(e.to_string()))
}

/// The member of this name, with the module's prefix or without.
fn member<'v>(of: &'v Value, name: &str) -> Option<&'v Value> {
    of.get(name)
        .or_else(|| of.get(format!("ietf-mnat:{name}").as_str()))
}

fn watcher(body: &Value) -> Result<ServerResponse, ProtocolFault> {
    let inner = member(body, "output").unwrap_or(body);
    let found = |name| member(inner, name).or_else(|| member(body, name));
    let id = found("watcher-id").and_then(Value::as_str);
    let id = id.ok_or(ProtocolFault::Lacks("a watcher-id"))?;
    if id.is_empty() || id.len() > LONGEST_ID {
        return Err(ProtocolFault::BadId(id.len()));
    }
    let refresh = found("refresh-period").and_then(whole);
    let refresh = refresh.ok_or(ProtocolFault::Lacks("a refresh-period"))?;
    Ok(ServerResponse::Watcher {
        id: id.into(),
        refresh: Duration::from_secs(refresh.clamp(1, 86_400)),
    })
}

/// A whole number; RFC 7951 section 6.1 writes large ones as text.
fn whole(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .or_else(|| value.as_str().and_then(|s| s.parse().ok()))
}

fn mappings(body: &Value) -> Result<ServerResponse, ProtocolFault> {
    let watcher = member(body, "watcher").ok_or(ProtocolFault::Lacks("a watcher"))?;
    let watcher = match watcher {
        Value::Array(list) => list.first().ok_or(ProtocolFault::Lacks("a watcher"))?,
        one => one,
    };
    let watcher = watcher
        .as_object()
        .ok_or(ProtocolFault::Lacks("a watcher that is an object"))?;
    if watcher.is_empty() {
        return Ok(ServerResponse::Forgotten);
    }
    let list = watcher.get("mapped-sg").and_then(Value::as_array);
    let list = list.ok_or(ProtocolFault::Lacks("a mapped-sg list"))?;
    let mut oddities = Vec::new();
    let mut read = Vec::with_capacity(list.len().min(MOST_MAPPINGS));
    let mut seen = ahash::AHashMap::with_capacity(read.capacity());
    for entry in list.iter().take(MOST_MAPPINGS) {
        match mapping(entry) {
            Ok(mapping) => match seen.get(&mapping.global) {
                // Overlapping monitors name the same mapping several times.
                Some(n) if read[*n] == mapping => {}
                Some(_) => oddities.push(format!("{} has two mappings", mapping.global)),
                None => {
                    seen.insert(mapping.global, read.len());
                    read.push(mapping);
                }
            },
            Err(why) => oddities.push(why),
        }
    }
    if list.len() > MOST_MAPPINGS {
        oddities.push(format!("only the first {MOST_MAPPINGS} are looked at"));
    }
    Ok(ServerResponse::Mappings {
        mappings: read,
        oddities,
    })
}

fn mapping(entry: &Value) -> Result<Mapping, String> {
    let global = entry
        .get("global-subscription")
        .ok_or("a mapping without a global-subscription")?;
    let global = channel(global).map_err(|e| format!("global-subscription: {e}"))?;
    let state = entry.get("state").and_then(Value::as_str);
    let state = state.map(|s| s.strip_prefix("ietf-mnat:").unwrap_or(s));
    let state = match state {
        Some("assigned-local-multicast") => match entry.get("local-mapping").map(channel) {
            Some(Ok(local)) => AssignmentState::Assigned(local),
            Some(Err(e)) => AssignmentState::Unusable(format!("local-mapping: {e}")),
            None => AssignmentState::Unusable("no local-mapping".into()),
        },
        // Those that a later draft may bring carry nothing we could use.
        _ => AssignmentState::Unassigned,
    };
    Ok(Mapping { global, state })
}

fn channel(value: &Value) -> Result<Channel, String> {
    let text = |name| match value.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!("{name} is no text")),
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

/// What an error of RFC 8040 section 7.1 says.
fn message(body: &[u8]) -> Option<String> {
    let body: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let error = body.get("ietf-restconf:errors")?.get("error")?.get(0)?;
    let text = |name| error.get(name).and_then(Value::as_str);
    let words = text("error-message").or_else(|| text("error-app-tag"));
    words.or_else(|| text("error-tag")).map(quote)
}

/// A stranger's words: one line, not too long.
fn quote(words: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let mut text: String = words.chars().take(LONGEST_QUOTE).map(printable).collect();
    if words.chars().nth(LONGEST_QUOTE).is_some() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(request: &MnatRequest) -> Value {
        serde_json::from_slice(request.body.as_ref().unwrap()).unwrap()
    }

    #[test]
    fn an_asm_join_names_its_group_alone() {
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
    fn watcher_ids_come_bare_and_in_the_output_of_rfc_8040() {
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
                read(Op::NewWatcher, 200, text.as_bytes()),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn faulty_answers_are_named() {
        let long = format!(
            r#"{{"watcher-id": "{}", "refresh-period": 1}}"#,
            "x".repeat(129)
        );
        for (op, status, text, told) in [
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
                "id of 0 bytes",
            ),
            (Op::NewWatcher, 200, &long, "id of 129 bytes"),
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
                "answers 400: bad source",
            ),
        ] {
            let fault = read(op, status, text.as_bytes()).unwrap_err().to_string();
            assert!(fault.contains(told), "{text}: {fault}");
        }
    }

    #[test]
    fn what_means_that_an_id_is_forgotten() {
        let empty = br#"{"ietf-mnat:watcher": [{}]}"#;
        assert_eq!(read(Op::Poll, 200, empty), Ok(ServerResponse::Forgotten));
        assert_eq!(read(Op::Refresh, 500, b""), Ok(ServerResponse::Forgotten));
        assert_eq!(read(Op::Join, 404, b""), Ok(ServerResponse::Forgotten));
        assert!(read(Op::Poll, 500, b"").is_err());
        assert!(read(Op::Refresh, 503, b"").is_err());
    }

    fn poll(entries: Value) -> (Vec<Mapping>, Vec<String>) {
        let body = json!({ "ietf-mnat:watcher": [{ "id": "A", "mapped-sg": entries }] });
        match read(Op::Poll, 200, body.to_string().as_bytes()) {
            Ok(ServerResponse::Mappings { mappings, oddities }) => (mappings, oddities),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_fault_of_a_mapping_is_named_and_the_others_are_read() {
        let global = json!({ "source": "10.0.0.1", "group": "232.1.1.1" });
        let good = json!({ "global-subscription": global, "state": "assigned-local-multicast",
            "local-mapping": { "asm-group": "239.1.1.3" } });
        let with = |global: Value| json!({ "global-subscription": global });
        for (bad, told) in [
            (json!(7), "without a global-subscription"),
            (json!({}), "without a global-subscription"),
            (with(json!({})), "no source"),
            (with(json!({ "source": "10.0.0.1" })), "no group"),
            (
                with(json!({ "source": 1, "group": "232.1.1.1" })),
                "source is no text",
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
                "no sender",
            ),
        ] {
            let (mappings, oddities) = poll(json!([bad, good, good]));
            assert_eq!(mappings.len(), 1);
            assert!(
                oddities.len() == 1 && oddities[0].contains(told),
                "{oddities:?}"
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
        // A mapping the prototype makes of a pool that keeps sources.
        let mixed = json!({ "source": "2001:db8::1", "group": "239.192.0.1" });
        for local in [mixed, json!(null), json!({})] {
            let state = states(json!("assigned-local-multicast"), local);
            assert!(matches!(state, AssignmentState::Unusable(_)), "{state:?}");
        }
        let mut other = good.clone();
        other["local-mapping"] = local;
        let (mappings, oddities) = poll(json!([good, other]));
        assert_eq!(mappings.len(), 1);
        assert_eq!(oddities, ["(10.0.0.1, 232.1.1.1) has two mappings"]);
    }
}
