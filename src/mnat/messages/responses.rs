//! The bodies of responses.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::requests::Subscription;
use super::{integer, member};
use crate::mnat::channel::Channel;
use crate::model::escape::quote;

/// The state of a channel that has a local channel.
const ASSIGNED: &str = "assigned-local-multicast";

/// A watcher id that the server issues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatcherGrant {
    /// The watcher id.
    pub id: String,
    /// The interval at which the client refreshes it.
    pub refresh: Duration,
}

impl WatcherGrant {
    /// Encodes the grant in the form of the prototype, and in that of RFC 8040 beside it.
    pub fn encode(&self) -> Value {
        let output = json!({ "watcher-id": self.id, "refresh-period": self.refresh.as_secs() });
        let mut body = output.clone();
        body["ietf-mnat:output"] = output;
        body
    }

    /// Decodes id and refresh period in both forms. Returns `Err` with the member that is missing.
    ///
    /// # Errors
    /// The name of the missing member.
    pub fn decode(body: &Value) -> Result<Self, &'static str> {
        let inner = member(body, "output").unwrap_or(body);
        let find = |name| member(inner, name).or_else(|| member(body, name));
        let id = find("watcher-id").and_then(Value::as_str);
        let refresh = find("refresh-period").and_then(integer);
        Ok(Self {
            id: id.ok_or("a watcher-id")?.into(),
            refresh: Duration::from_secs(refresh.ok_or("a refresh-period")?.clamp(1, 86_400)),
        })
    }
}

/// The mapping state of a global channel, as a client reads it.
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

/// A global channel and its mapping state, as a client reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The channel that senders and receivers use.
    pub global: Channel,
    /// The mapping state.
    pub state: AssignmentState,
}

/// An entry of a list of mappings, as the server writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedChannel {
    /// The number of the mapping, the same for every watcher.
    pub id: u64,
    /// The global channel.
    pub global: Subscription,
    /// The local channel. `None` if none is assigned.
    pub local: Option<Channel>,
}

impl MappedChannel {
    /// Appends the entry of the list. Formats by hand, because an ingress receives ten thousands of
    /// entries in a response.
    fn write(&self, body: &mut Vec<u8>) {
        let id = self.id;
        let state = match self.local {
            Some(_) => ASSIGNED,
            None => "unassigned",
        };
        let head = format!(r#"{{"id":{id},"state":"ietf-mnat:{state}","global-subscription":"#);
        body.extend_from_slice(head.as_bytes());
        write_channel(body, &self.global);
        if let Some(local) = self.local {
            body.extend_from_slice(br#","local-mapping":"#);
            write_channel(body, &Subscription::Channel(local));
        }
        body.push(b'}');
    }

    /// Returns whether a channel without a source is part of the entry.
    pub fn is_any_source(&self) -> bool {
        let is_any = |channel: &Channel| channel.source().is_none();
        let global = match &self.global {
            Subscription::Channel(channel) => is_any(channel),
            Subscription::Unusable { source, .. } => source == "*",
        };
        global || self.local.as_ref().is_some_and(is_any)
    }
}

/// The mappings for a watcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedChannels {
    /// The watcher id.
    pub id: String,
    /// The mappings.
    pub mapped: Vec<MappedChannel>,
}

impl AssignedChannels {
    /// The body for a watcher that the server does not know.
    pub const UNKNOWN_WATCHER: &'static [u8] = br#"{"ietf-mnat:watcher":[{}]}"#;

    /// Encodes the mappings in at most `limit` bytes. Returns the body, and how many mappings were
    /// left out. Mappings with a local channel go first.
    pub fn encode(&self, limit: usize) -> (Vec<u8>, usize) {
        let id = Value::from(self.id.as_str());
        let mut body = format!(r#"{{"ietf-mnat:watcher":[{{"id":{id},"mapped-sg":["#).into_bytes();
        let tail = b"]}]}";
        let mut left_out = 0;
        let (assigned, unassigned): (Vec<_>, Vec<_>) = self
            .mapped
            .iter()
            .partition(|mapped| mapped.local.is_some());
        let mut separator: &[u8] = b"";
        for mapped in assigned.into_iter().chain(unassigned) {
            let before = body.len();
            body.extend_from_slice(separator);
            mapped.write(&mut body);
            if body.len() + tail.len() > limit {
                body.truncate(before);
                left_out += 1;
                continue;
            }
            separator = b",";
        }
        body.extend_from_slice(tail);
        (body, left_out)
    }

    /// Returns the members of the watcher in a body. They are empty if the server does not know the
    /// watcher.
    ///
    /// # Errors
    /// The name of the missing member.
    pub fn watcher(body: &Value) -> Result<&Map<String, Value>, &'static str> {
        let watcher = match member(body, "watcher").ok_or("a watcher")? {
            Value::Array(list) => list.first().ok_or("a watcher")?,
            entry => entry,
        };
        watcher.as_object().ok_or("a watcher that is an object")
    }

    /// Decodes an entry of the list of mappings.
    ///
    /// # Errors
    /// The reason why the entry cannot be used.
    pub fn decode_entry(entry: &Value) -> Result<Mapping, String> {
        let global = entry
            .get("global-subscription")
            .ok_or("a mapping without a global-subscription")?;
        let global = decode_channel(global).map_err(|e| format!("global-subscription: {e}"))?;
        let state = entry.get("state").and_then(Value::as_str);
        let state = state.map(|s| s.strip_prefix("ietf-mnat:").unwrap_or(s));
        let state = match state {
            Some(ASSIGNED) => match entry.get("local-mapping").map(decode_channel) {
                Some(Ok(local)) => AssignmentState::Assigned(local),
                Some(Err(e)) => AssignmentState::Unusable(format!("local-mapping: {e}")),
                None => AssignmentState::Unusable("no local-mapping".into()),
            },
            // Includes states of later versions of the draft, which have no local mapping.
            _ => AssignmentState::Unassigned,
        };
        Ok(Mapping { global, state })
    }
}

/// Appends the members of a channel as an object.
fn write_channel(body: &mut Vec<u8>, subscription: &Subscription) {
    let text = match subscription {
        Subscription::Channel(channel) => {
            let group = channel.group();
            match channel.source() {
                Some(source) => format!(r#"{{"source":"{source}","group":"{group}"}}"#),
                None => format!(r#"{{"asm-group":"{group}"}}"#),
            }
        }
        // Its text comes from a client.
        unusable => Value::Object(unusable.to_json()).to_string(),
    };
    body.extend_from_slice(text.as_bytes());
}

fn decode_channel(value: &Value) -> Result<Channel, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(source: Option<&str>, group: &str) -> Channel {
        Channel::parse(source, group).unwrap()
    }

    #[test]
    fn encoded_mappings_are_decoded() {
        let (global, local) = (
            channel(Some("10.0.0.1"), "232.1.1.1"),
            channel(None, "239.1.1.1"),
        );
        let mapped = |id, local| MappedChannel {
            id,
            global: Subscription::Channel(global),
            local,
        };
        let assigned = AssignedChannels {
            id: "A\"".into(),
            mapped: vec![mapped(1, None), mapped(2, Some(local))],
        };
        let (body, left_out) = assigned.encode(usize::MAX);
        assert_eq!(left_out, 0);
        let body: Value = serde_json::from_slice(&body).unwrap();
        let watcher = AssignedChannels::watcher(&body).unwrap();
        assert_eq!(watcher["id"], "A\"");
        let entries = watcher["mapped-sg"].as_array().unwrap().iter();
        let entries: Vec<_> = entries.map(AssignedChannels::decode_entry).collect();
        let read = [
            AssignmentState::Assigned(local),
            AssignmentState::Unassigned,
        ];
        assert_eq!(entries, read.map(|state| Ok(Mapping { global, state })));
    }

    #[test]
    fn long_lists_are_cut_at_the_limit_and_assigned_channels_go_first() {
        let mapped = |id: u64| MappedChannel {
            id,
            global: Subscription::Channel(channel(Some("10.0.0.1"), "232.1.1.1")),
            local: id
                .is_multiple_of(2)
                .then(|| channel(Some("10.9.1.2"), "239.1.1.1")),
        };
        let assigned = AssignedChannels {
            id: "A".into(),
            mapped: (0..600).map(mapped).collect(),
        };
        let (body, left_out) = assigned.encode(65_535);
        assert!(
            body.len() <= 65_535 && body.len() > 65_000,
            "{}",
            body.len()
        );
        let body: Value = serde_json::from_slice(&body).unwrap();
        let entries = body["ietf-mnat:watcher"][0]["mapped-sg"]
            .as_array()
            .unwrap();
        assert_eq!(entries.len() + left_out, 600);
        let unassigned = entries.iter().filter(|e| e["local-mapping"].is_null());
        assert_eq!(entries.len() - unassigned.count(), 300);
    }

    #[test]
    fn watcher_id_is_read_in_both_forms() {
        let grant = WatcherGrant {
            id: "A".into(),
            refresh: Duration::from_secs(20),
        };
        let body = grant.encode();
        assert_eq!(body["watcher-id"], "A");
        assert_eq!(WatcherGrant::decode(&body), Ok(grant.clone()));
        let rfc = json!({ "ietf-mnat:output": body["ietf-mnat:output"] });
        assert_eq!(WatcherGrant::decode(&rfc), Ok(grant));
        assert_eq!(WatcherGrant::decode(&json!({})), Err("a watcher-id"));
    }
}
