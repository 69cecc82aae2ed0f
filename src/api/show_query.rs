//! The queries of `show`, with their arguments.

use std::fmt;
use std::net::IpAddr;

use serde::de::{self, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::{IntoParams, ToSchema};

use super::streams::StreamQuery;

/// A query for one kind of data.
///
/// In JSON a query is its name, such as `"routes"`, or an object with its arguments, such as
/// `{"flows":{"limit":10,"order":"packets"}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShowQuery {
    /// Routes and the packets that they forward.
    Routes,
    /// Interfaces and their counters.
    Interfaces,
    /// Flows that are being forwarded.
    Flows(FlowQuery),
    /// Groups joined as a host, and groups with members.
    Groups,
    /// Routes, joins and proxies that wait for an interface.
    Pending,
    /// The end of multicast NAT and its mappings.
    Mnat,
    /// The tunnels of AMT.
    Tunnels,
    /// What devices offer between networks, who asks, and what is withheld.
    Discovery,
    /// The streams with the most dropped packets.
    Drops(DropQuery),
    /// The health of monitored streams.
    Streams(StreamQuery),
}

/// The arguments of [`ShowQuery::Drops`]. By default, all drops that are known are shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DropQuery {
    /// Largest number of rows. No limit by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Only drops on this interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    /// Only drops from this source.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub source: Option<IpAddr>,
    /// Only drops to this group.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub group: Option<IpAddr>,
}

/// The arguments of [`ShowQuery::Flows`]. By default, all flows are shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FlowQuery {
    /// Largest number of flows. No limit by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// The order, which decides which flows a limit selects.
    pub order: FlowOrder,
    /// Only flows that arrive on this interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    /// Only flows from this source.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub source: Option<IpAddr>,
    /// Only flows to this group.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub group: Option<IpAddr>,
    /// Also the flows whose packets are dropped by routes, members or TTL.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
}

/// The order of flows.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum FlowOrder {
    /// The flow with the latest packet first.
    #[default]
    Recent,
    /// The flow with the most packets first.
    Packets,
    /// The flow with the most bytes first.
    Bytes,
    /// By group, then by source.
    Address,
}

/// The names of the queries.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum QueryName {
    Routes,
    Interfaces,
    Flows,
    Groups,
    Pending,
    Mnat,
    Tunnels,
    Discovery,
    Drops,
    Streams,
}

impl From<QueryName> for ShowQuery {
    fn from(name: QueryName) -> Self {
        match name {
            QueryName::Routes => Self::Routes,
            QueryName::Interfaces => Self::Interfaces,
            QueryName::Flows => Self::Flows(FlowQuery::default()),
            QueryName::Groups => Self::Groups,
            QueryName::Pending => Self::Pending,
            QueryName::Mnat => Self::Mnat,
            QueryName::Tunnels => Self::Tunnels,
            QueryName::Discovery => Self::Discovery,
            QueryName::Drops => Self::Drops(DropQuery::default()),
            QueryName::Streams => Self::Streams(StreamQuery::default()),
        }
    }
}

impl ShowQuery {
    /// Returns all queries, with default arguments.
    pub fn all() -> [Self; 10] {
        [
            Self::Routes,
            Self::Interfaces,
            Self::Flows(FlowQuery::default()),
            Self::Groups,
            Self::Pending,
            Self::Mnat,
            Self::Tunnels,
            Self::Discovery,
            Self::Drops(DropQuery::default()),
            Self::Streams(StreamQuery::default()),
        ]
    }

    /// Returns the name of the query, as in `/api/v1/routes`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Interfaces => "interfaces",
            Self::Flows(_) => "flows",
            Self::Groups => "groups",
            Self::Pending => "pending",
            Self::Mnat => "mnat",
            Self::Tunnels => "tunnels",
            Self::Discovery => "discovery",
            Self::Drops(_) => "drops",
            Self::Streams(_) => "streams",
        }
    }
}

impl Serialize for ShowQuery {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Flows(query) if *query != FlowQuery::default() => {
                serializer.collect_map([(self.name(), query)])
            }
            Self::Drops(query) if *query != DropQuery::default() => {
                serializer.collect_map([(self.name(), query)])
            }
            Self::Streams(query) if *query != StreamQuery::default() => {
                serializer.collect_map([(self.name(), query)])
            }
            _ => serializer.serialize_str(self.name()),
        }
    }
}

impl<'de> Deserialize<'de> for ShowQuery {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QueryVisitor)
    }
}

struct QueryVisitor;

impl<'de> Visitor<'de> for QueryVisitor {
    type Value = ShowQuery;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a query, or an object with its name and arguments")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<ShowQuery, E> {
        QueryName::deserialize(name.into_deserializer()).map(ShowQuery::from)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ShowQuery, A::Error> {
        let Some(name) = map.next_key::<QueryName>()? else {
            return Err(de::Error::custom("the name of the query is missing"));
        };
        let query = match name {
            QueryName::Flows => ShowQuery::Flows(map.next_value()?),
            QueryName::Drops => ShowQuery::Drops(map.next_value()?),
            QueryName::Streams => ShowQuery::Streams(map.next_value()?),
            other => {
                // These queries have no arguments, so the object must be empty.
                let NoArguments {} = map.next_value()?;
                other.into()
            }
        };
        match map.next_key::<String>()? {
            Some(_) => Err(de::Error::custom("one query at a time")),
            None => Ok(query),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoArguments {}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_objects_are_queries() {
        for query in ShowQuery::all() {
            let json = serde_json::to_value(&query).unwrap();
            assert_eq!(json, json!(query.name()));
            assert_eq!(serde_json::from_value::<ShowQuery>(json).unwrap(), query);
        }
        let query = ShowQuery::Flows(FlowQuery {
            limit: Some(10),
            order: FlowOrder::Packets,
            group: Some([225, 1, 2, 3].into()),
            ..FlowQuery::default()
        });
        let json = json!({"flows": {"limit": 10, "order": "packets", "group": "225.1.2.3"}});
        assert_eq!(serde_json::to_value(&query).unwrap(), json);
        assert_eq!(serde_json::from_value::<ShowQuery>(json).unwrap(), query);
        let routes = serde_json::from_value::<ShowQuery>(json!({"routes": {}})).unwrap();
        assert_eq!(routes, ShowQuery::Routes);
    }

    #[test]
    fn invalid_queries_are_refused() {
        for json in [
            json!("fly"),
            json!({}),
            json!({"routes": {"limit": 1}}),
            json!({"flows": {"limt": 1}}),
            json!({"flows": {}, "routes": {}}),
            json!(7),
        ] {
            let parsed = serde_json::from_value::<ShowQuery>(json.clone());
            assert!(parsed.is_err(), "{json}");
        }
        let error = serde_json::from_str::<ShowQuery>("\"fly\"").unwrap_err();
        assert!(error.to_string().contains("expected one of `routes`"));
    }
}
