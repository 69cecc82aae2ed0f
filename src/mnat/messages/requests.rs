//! The bodies of requests.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::errors::{ErrorTag, RestconfError};
use super::{MAX_ID_LEN, member};
use crate::mnat::channel::Channel;

type Decoded<T> = Result<T, RestconfError>;

/// A channel that an egress requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Subscription {
    /// A channel that can be mapped.
    Channel(Channel),
    /// Valid addresses that no packet can have as source and group, or that are not forwarded.
    Unusable {
        /// The source as given.
        source: String,
        /// The group as given.
        group: String,
    },
}

/// Displays the channel as in a log.
impl fmt::Display for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Channel(channel) => write!(f, "{channel}"),
            Self::Unusable { source, group } => write!(f, "({source}, {group})"),
        }
    }
}

impl Subscription {
    /// Returns the members of the channel.
    pub(super) fn to_json(&self) -> Map<String, Value> {
        let mut object = Map::new();
        let mut set = |name: &str, value: String| object.insert(name.into(), value.into());
        match self {
            Self::Channel(channel) => {
                let group = channel.group().to_string();
                match channel.source() {
                    Some(source) => {
                        set("source", source.to_string());
                        set("group", group);
                    }
                    None => {
                        set("asm-group", group);
                    }
                }
            }
            Self::Unusable { source, group } => {
                set("source", source.clone());
                set("group", group.clone());
            }
        }
        object
    }
}

/// The complete set of channels that an egress joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedSet {
    /// The watcher id.
    pub id: String,
    /// The channels.
    pub joined: Vec<Subscription>,
}

impl JoinedSet {
    /// Encodes the set. The ids of the entries are their positions.
    pub fn encode(&self) -> Value {
        let entries = self.joined.iter().enumerate();
        let entries: Vec<Value> = entries.map(|(n, joined)| joined_entry(n, joined)).collect();
        json!({ "ietf-mnat:watcher": { "id": self.id, "joined-sg": entries } })
    }

    /// Decodes the body of a request. `key` is the watcher id of the path, if there is one.
    ///
    /// # Errors
    /// The part of the body that is not valid.
    pub fn decode(body: &Value, key: Option<&str>) -> Decoded<Self> {
        let list = "/ietf-mnat:egress-global-joined/watcher";
        let (id, entries) = watcher_entry(body, list, key, "joined-sg")?;
        let entry = |(n, entry): (usize, &Value)| {
            let path = format!("{list}={id}/joined-sg={n}");
            decode_joined(entry, &path)
        };
        let joined = entries.iter().enumerate().map(entry);
        Ok(Self {
            joined: joined.collect::<Decoded<_>>()?,
            id,
        })
    }
}

/// Encodes one entry of a [`JoinedSet`].
fn joined_entry(n: usize, joined: &Subscription) -> Value {
    let mut entry = joined.to_json();
    entry.insert("id".into(), n.to_string().into());
    Value::Object(entry)
}

/// Returns the length of the entry at position `n`, in bytes.
pub fn joined_entry_len(n: usize, channel: Channel) -> usize {
    joined_entry(n, &Subscription::Channel(channel))
        .to_string()
        .len()
}

fn decode_joined(entry: &Value, path: &str) -> Decoded<Subscription> {
    let object = object(entry, path)?;
    known_members(object, &["id", "source", "group", "asm-group"], path)?;
    // The prototype requires the id, which is the key of the list.
    text(object, "id", path)?;
    let given = |name| text(object, name, path).map(|text| (text, format!("{path}/{name}")));
    if object.contains_key("asm-group") {
        if let Some(other) = ["source", "group"]
            .iter()
            .find(|n| object.contains_key(**n))
        {
            let message = "asm-group excludes source and group";
            return Err(invalid(&format!("{path}/{other}"), message));
        }
        let (group, at) = given("asm-group")?;
        let group_address = multicast(group, &at)?;
        let channel = Channel::parse(None, &group_address.to_string());
        return Ok(match channel {
            Ok(channel) => Subscription::Channel(channel),
            Err(_) => Subscription::Unusable {
                source: "*".into(),
                group: group.into(),
            },
        });
    }
    let (source, at) = given("source")?;
    // A zone is valid in YANG (RFC 6991), and useless in a join.
    let plain = source.split('%').next().unwrap_or_default();
    let source_address: Result<IpAddr, _> = plain.parse();
    source_address.map_err(|_| invalid(&at, "not an IP address"))?;
    let (group, at) = given("group")?;
    let group_address = multicast(group, &at)?.to_string();
    Ok(match Channel::parse(Some(source), &group_address) {
        Ok(channel) => Subscription::Channel(channel),
        Err(_) => Subscription::Unusable {
            source: source.into(),
            group: group_address,
        },
    })
}

fn multicast(text: &str, path: &str) -> Decoded<IpAddr> {
    let address: Option<IpAddr> = text.parse().ok();
    let address = address.filter(IpAddr::is_multicast);
    address.ok_or_else(|| invalid(path, "not a multicast address"))
}

/// The complete set of sources that an ingress watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorSet {
    /// The watcher id.
    pub id: String,
    /// The prefixes of the sources of global channels, without host bits.
    pub prefixes: Vec<IpNet>,
}

impl MonitorSet {
    /// Encodes the set.
    pub fn encode(&self) -> Value {
        // Ids of monitors are single characters, because the prototype's server loses longer ones.
        let entry = |(n, prefix): (usize, &IpNet)| json!({ "id": n.to_string(), "global-source-prefix": prefix.to_string() });
        let monitors: Vec<Value> = self.prefixes.iter().enumerate().map(entry).collect();
        json!({ "ietf-mnat:watcher": { "id": self.id, "monitor": monitors } })
    }

    /// Decodes the body of a request. `key` is the watcher id of the path, if there is one.
    ///
    /// # Errors
    /// The part of the body that is not valid.
    pub fn decode(body: &Value, key: Option<&str>) -> Decoded<Self> {
        let list = "/ietf-mnat:ingress-watching/watcher";
        let (id, entries) = watcher_entry(body, list, key, "monitor")?;
        let entry = |(n, entry): (usize, &Value)| {
            let path = format!("{list}={id}/monitor={n}");
            let object = object(entry, &path)?;
            known_members(object, &["id", "global-source-prefix"], &path)?;
            text(object, "id", &path)?;
            let prefix = text(object, "global-source-prefix", &path)?;
            let at = format!("{path}/global-source-prefix");
            let net: IpNet = prefix
                .parse()
                .or_else(|_| prefix.parse::<IpAddr>().map(IpNet::from))
                .map_err(|_| invalid(&at, "not a prefix"))?;
            match net == net.trunc() {
                true => Ok(net),
                false => Err(invalid(&at, "bits are set beyond the prefix length")),
            }
        };
        let prefixes = entries.iter().enumerate().map(entry);
        Ok(Self {
            prefixes: prefixes.collect::<Decoded<_>>()?,
            id,
        })
    }
}

/// The input of the operation that keeps a watcher id valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshInput {
    /// The watcher id.
    pub id: String,
}

impl RefreshInput {
    /// Encodes the input.
    pub fn encode(&self) -> Value {
        json!({ "ietf-mnat:input": { "ietf-mnat:watcher-id": self.id } })
    }

    /// Decodes the body of a request.
    ///
    /// # Errors
    /// There is no watcher id.
    pub fn decode(body: &Value) -> Decoded<Self> {
        let input = member(body, "input");
        let id = input.and_then(|input| member(input, "watcher-id"));
        match id.and_then(Value::as_str) {
            Some(id) => Ok(Self { id: id.into() }),
            None => Err(RestconfError::new(
                ErrorTag::MissingElement,
                "expected {\"ietf-mnat:input\": {\"watcher-id\": ID}}",
            )),
        }
    }
}

/// Returns the name of the single member of a body, without the prefix of the YANG module.
fn member_name(body: &Value) -> Option<&str> {
    let mut names = body.as_object()?.keys();
    let name = names.next().filter(|_| names.next().is_none())?;
    Some(name.strip_prefix(super::PREFIX).unwrap_or(name))
}

/// Returns the watcher id of a body, and the entries of the list `name`.
fn watcher_entry<'v>(
    body: &'v Value,
    list: &str,
    key: Option<&str>,
    name: &str,
) -> Decoded<(String, &'v [Value])> {
    if member_name(body) != Some("watcher") {
        let message = "the body must contain exactly one member, ietf-mnat:watcher";
        return Err(RestconfError::new(ErrorTag::InvalidValue, message));
    }
    let watcher = match member(body, "watcher") {
        // The form of RFC 7951: a list with one entry.
        Some(Value::Array(list)) if list.len() == 1 => &list[0],
        Some(watcher) => watcher,
        None => &Value::Null,
    };
    let object = object(watcher, list)?;
    known_members(object, &["id", name], list)?;
    let id = text(object, "id", list)?;
    if id.is_empty() || id.len() > MAX_ID_LEN {
        return Err(invalid(&format!("{list}/id"), "not a watcher id"));
    }
    if key.is_some_and(|key| key != id) {
        let message = "the watcher id differs from that of the path";
        return Err(invalid(&format!("{list}/id"), message));
    }
    let path = format!("{list}={id}/{name}");
    let entries = object.get(name).ok_or_else(|| missing(&path))?;
    let entries = entries.as_array();
    let entries = entries.ok_or_else(|| invalid(&path, "expected a list"))?;
    Ok((id.into(), entries))
}

fn object<'v>(value: &'v Value, path: &str) -> Decoded<&'v Map<String, Value>> {
    let object = value.as_object();
    object.ok_or_else(|| invalid(path, "expected an object"))
}

fn known_members(object: &Map<String, Value>, known: &[&str], path: &str) -> Decoded<()> {
    match object.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(invalid(&format!("{path}/{name}"), "unknown member")),
        None => Ok(()),
    }
}

fn text<'v>(object: &'v Map<String, Value>, name: &str, path: &str) -> Decoded<&'v str> {
    let path = format!("{path}/{name}");
    let value = object.get(name).ok_or_else(|| missing(&path))?;
    let text = value.as_str();
    text.ok_or_else(|| invalid(&path, "expected a string"))
}

fn invalid(path: &str, message: &str) -> RestconfError {
    RestconfError::at(path, ErrorTag::InvalidValue, message)
}

fn missing(path: &str) -> RestconfError {
    RestconfError::at(path, ErrorTag::MissingElement, "this member is missing")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(joined: Value) -> Decoded<Vec<Subscription>> {
        let body = json!({ "ietf-mnat:watcher": { "id": "A", "joined-sg": joined } });
        JoinedSet::decode(&body, Some("A")).map(|set| set.joined)
    }

    #[test]
    fn encoded_sets_are_decoded() {
        let joined = [(Some("10.0.0.1"), "232.1.1.1"), (None, "ff1e::1")];
        let joined = joined.map(|(s, g)| Subscription::Channel(Channel::parse(s, g).unwrap()));
        let set = JoinedSet {
            id: "A".into(),
            joined: joined.into(),
        };
        assert_eq!(JoinedSet::decode(&set.encode(), None), Ok(set));
        let monitors = MonitorSet {
            id: "A".into(),
            prefixes: vec![
                "0.0.0.0/0".parse().unwrap(),
                "2001:db8::/32".parse().unwrap(),
            ],
        };
        assert_eq!(
            MonitorSet::decode(&monitors.encode(), Some("A")),
            Ok(monitors)
        );
        let refresh = RefreshInput { id: "A".into() };
        assert_eq!(RefreshInput::decode(&refresh.encode()), Ok(refresh));
    }

    #[test]
    fn object_and_list_forms_and_both_prefixes_are_accepted() {
        let entry = json!({ "id": "A", "joined-sg": [] });
        for body in [
            json!({ "ietf-mnat:watcher": entry }),
            json!({ "ietf-mnat:watcher": [entry] }),
            json!({ "watcher": entry }),
        ] {
            assert!(JoinedSet::decode(&body, Some("A")).is_ok(), "{body}");
        }
        for body in [
            json!({ "input": { "watcher-id": "A" } }),
            json!({ "ietf-mnat:input": { "ietf-mnat:watcher-id": "A" } }),
        ] {
            assert!(RefreshInput::decode(&body).is_ok(), "{body}");
        }
    }

    #[test]
    fn faults_are_reported_with_their_path() {
        let watcher = "/ietf-mnat:egress-global-joined/watcher";
        for (joined, path) in [
            (json!(7), "=A/joined-sg"),
            (json!([7]), "=A/joined-sg=0"),
            (
                json!([{ "id": "0", "source": "10.0.0.300", "group": "232.1.1.1" }]),
                "=A/joined-sg=0/source",
            ),
            (
                json!([{ "id": "0", "source": "10.0.0.1", "group": "10.0.0.1" }]),
                "=A/joined-sg=0/group",
            ),
            (
                json!([{ "id": "0", "source": "10.0.0.1" }]),
                "=A/joined-sg=0/group",
            ),
            (
                json!([{ "source": "10.0.0.1", "group": "232.1.1.1" }]),
                "=A/joined-sg=0/id",
            ),
            (
                json!([{ "id": 0, "source": "10.0.0.1", "group": "232.1.1.1" }]),
                "=A/joined-sg=0/id",
            ),
            (json!([{ "id": "0", "x": 1 }]), "=A/joined-sg=0/x"),
            (
                json!([{ "id": "0", "asm-group": "239.1.1.1", "group": "232.1.1.1" }]),
                "=A/joined-sg=0/group",
            ),
        ] {
            let fault = decode(joined).unwrap_err();
            assert_eq!(fault.path, Some(format!("{watcher}{path}")));
        }
    }

    #[test]
    fn channels_that_cannot_be_mapped_are_unusable() {
        for (source, group) in [
            ("232.0.0.5", "232.1.1.1"),
            ("10.1.1.3", "ff3e::1"),
            ("fe80::1%eth0", "ff3e::1"),
            ("10.1.1.3", "224.0.0.5"),
            ("0.0.0.0", "232.1.1.1"),
        ] {
            let joined = json!([{ "id": "0", "source": source, "group": group }]);
            let expected = Subscription::Unusable {
                source: source.into(),
                group: group.into(),
            };
            assert_eq!(decode(joined), Ok(vec![expected]));
        }
    }
}
