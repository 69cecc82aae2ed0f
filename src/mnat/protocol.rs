//! The requests of a client of the MNAT server, and what its responses mean. No I/O.
//!
//! [`super::messages`] has the format of paths and bodies.

use std::fmt;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;

use super::channel::Channel;
use super::config::MnatRole;
use super::messages::{
    AssignedChannels, JoinedSet, MAX_ID_LEN, MonitorSet, RefreshInput, Resource, RestconfError,
    Subscription, WatcherGrant, joined_entry_len,
};

pub use super::messages::{AssignmentState, Mapping};

/// Maximum length of a response, in bytes: about 60,000 mappings.
pub const MAX_RESPONSE_LEN: usize = 16 << 20;
/// Maximum length of a request that the prototype's server accepts, in bytes: about 18,000 joins.
pub const MAX_REQUEST_LEN: usize = 1 << 20;
/// Space for the rest of a join request, in bytes, including an escaped id of [`MAX_ID_LEN`] bytes.
const JOIN_REQUEST_OVERHEAD: usize = 1024;
/// Maximum number of mappings read from a response. Further mappings are ignored.
pub const MAX_MAPPINGS: usize = 65_536;

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
    /// How the server may delay its response; `None` for a request that is answered at once.
    pub wait: Option<WaitForChange>,
}

/// The permission to delay a response until something changes. Only servers that support it heed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitForChange {
    /// The longest delay.
    pub time: Duration,
    /// The entity tag of the last response. `None` asks for a response at once.
    pub known: Option<String>,
}

impl MnatRequest {
    fn new(op: Op, method: &'static str, resource: &Resource, body: Option<Value>) -> Self {
        Self {
            op,
            method,
            path: resource.path(),
            body: body.map(|b| b.to_string().into_bytes()),
            wait: None,
        }
    }

    /// Returns a request for a watcher id.
    pub fn new_watcher() -> Self {
        Self::new(Op::NewWatcher, "POST", &Resource::NewWatcher, None)
    }

    /// Returns a request that registers an id. It registers an egress without joins, and an ingress
    /// for all sources.
    pub fn register(role: MnatRole, id: &str) -> Self {
        let id = id.to_string();
        let (resource, body) = match role {
            MnatRole::Egress => {
                let joined = Vec::new();
                (Resource::Joined(None), JoinedSet { id, joined }.encode())
            }
            MnatRole::Ingress => {
                let all = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
                let prefixes = all.into();
                (
                    Resource::Watching(None),
                    MonitorSet { id, prefixes }.encode(),
                )
            }
        };
        Self::new(Op::Register, "POST", &resource, Some(body))
    }

    /// Returns how many of the first joins fit into one request.
    pub fn fitting_joins(joins: impl Iterator<Item = Channel>) -> usize {
        let mut left = MAX_REQUEST_LEN - JOIN_REQUEST_OVERHEAD;
        joins
            .enumerate()
            .take_while(|(n, channel)| {
                // Counts the comma after the entry.
                let len = joined_entry_len(*n, *channel) + 1;
                let fits = len <= left;
                left = left.saturating_sub(len);
                fits
            })
            .count()
    }

    /// Returns a request that replaces the joins of an egress.
    pub fn join(id: &str, joins: impl Iterator<Item = Channel>) -> Self {
        let resource = Resource::Joined(Some(id.into()));
        let set = JoinedSet {
            id: id.into(),
            joined: joins.map(Subscription::Channel).collect(),
        };
        Self::new(Op::Join, "PUT", &resource, Some(set.encode()))
    }

    /// Returns a request for the mappings.
    pub fn poll(id: &str) -> Self {
        let resource = Resource::Assigned(Some(id.into()));
        Self::new(Op::Poll, "GET", &resource, None)
    }

    /// Permits the server to wait for a change before it answers a request for the mappings.
    pub fn waiting(self, time: Duration, known: Option<String>) -> Self {
        let wait = Some(WaitForChange { time, known });
        Self { wait, ..self }
    }

    /// Returns a request that keeps an id valid.
    pub fn refresh(id: &str) -> Self {
        let input = RefreshInput { id: id.into() };
        Self::new(
            Op::Refresh,
            "POST",
            &Resource::Refresh,
            Some(input.encode()),
        )
    }
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
    /// The mappings are those of the response before.
    NotModified,
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
            (Op::Poll, 304) => Ok(ServerResponse::NotModified),
            _ => Err(ProtocolFault::Status {
                status,
                message: RestconfError::decode_text(body),
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

fn parse_watcher(body: &Value) -> Result<ServerResponse, ProtocolFault> {
    let WatcherGrant { id, refresh } =
        WatcherGrant::decode(body).map_err(ProtocolFault::MissingMember)?;
    if id.is_empty() || id.len() > MAX_ID_LEN {
        return Err(ProtocolFault::InvalidId(id.len()));
    }
    Ok(ServerResponse::Watcher { id, refresh })
}

fn parse_mappings(body: &Value) -> Result<ServerResponse, ProtocolFault> {
    let watcher = AssignedChannels::watcher(body).map_err(ProtocolFault::MissingMember)?;
    if watcher.is_empty() {
        return Ok(ServerResponse::UnknownWatcher);
    }
    let list = watcher.get("mapped-sg").and_then(Value::as_array);
    let list = list.ok_or(ProtocolFault::MissingMember("a mapped-sg list"))?;
    let mut problems = Vec::new();
    let mut mappings = Vec::with_capacity(list.len().min(MAX_MAPPINGS));
    let mut indexes = ahash::AHashMap::with_capacity(mappings.capacity());
    for entry in list.iter().take(MAX_MAPPINGS) {
        match AssignedChannels::decode_entry(entry) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
