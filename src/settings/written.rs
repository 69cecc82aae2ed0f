//! The settings as typed: the right keys with the right kinds of values, nothing resolved.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value as Json;
use serde_path_to_error::Segment;

use super::keys::{KeyPath, Kind, Step, header};
use super::locate::Sources;
use super::merge::{at_mut, meant, unknown_key};
use super::report::{MOST_PROBLEMS, Problem};

// Every field is optional and every list entry too: what was refused is blanked out, so that
// the rest can still be looked at. What must be there is checked later.

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Written {
    pub http: Option<Table<WrittenHttp>>,
    pub control: Option<Table<WrittenControl>>,
    pub docker: Option<Table<WrittenDocker>>,
    pub plane: Option<Table<WrittenPlane>>,
    pub log: Option<Table<WrittenLog>>,
    pub interface: Option<Vec<Option<Table<WrittenInterface>>>>,
    pub route: Option<Vec<Option<Table<WrittenRoute>>>>,
    pub join: Option<Vec<Option<Table<WrittenJoin>>>>,
    pub proxy: Option<Vec<Option<Table<WrittenProxy>>>>,
    pub mrdisc: Option<Table<WrittenMrdisc>>,
    pub mnat: Option<Table<WrittenMnat>>,
    pub limits: Option<Table<WrittenLimits>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenHttp {
    pub listen: Option<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenControl {
    pub socket: Option<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenDocker {
    pub socket: Option<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenPlane {
    pub kind: Option<String>,
    pub qdisc_bypass: Option<bool>,
    pub busy_poll: Option<i64>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenLog {
    pub level: Option<String>,
    pub format: Option<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenInterface {
    pub name: Option<String>,
    pub ttl_threshold: Option<i64>,
    pub enabled: Option<bool>,
    pub mrdisc: Option<bool>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenRoute {
    pub name: Option<String>,
    pub from: Option<String>,
    pub source: Option<String>,
    pub except_sources: Option<Vec<Option<String>>>,
    pub group: Option<String>,
    pub to: Option<Vec<Option<String>>>,
    pub ttl: Option<WrittenTtl>,
    pub link_local: Option<bool>,
    pub join: Option<WrittenJoinPolicy>,
    pub loop_guard: Option<bool>,
    pub rewrite: Option<Table<WrittenRewrite>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenRewrite {
    pub source: Option<String>,
    pub group: Option<String>,
    pub port: Option<i64>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenJoin {
    pub interface: Option<String>,
    pub source: Option<String>,
    pub group: Option<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenMnat {
    pub role: Option<String>,
    pub server: Option<String>,
    pub ca: Option<String>,
    pub cert: Option<String>,
    pub key: Option<String>,
    pub upstream: Option<String>,
    pub downstream: Option<String>,
    pub joinfile: Option<String>,
    pub joins: Option<Vec<Option<String>>>,
    pub grace: Option<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenLimits {
    pub flows: Option<i64>,
    pub flow_idle: Option<i64>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenProxy {
    pub name: Option<String>,
    pub upstream: Option<Vec<Option<String>>>,
    pub downstream: Option<Vec<Option<String>>>,
    pub upward: Option<bool>,
    pub querier: Option<String>,
    pub version: Option<Table<WrittenVersions>>,
    pub groups: Option<Vec<Option<String>>>,
    pub deny_groups: Option<Vec<Option<String>>>,
    pub sources: Option<Vec<Option<String>>>,
    pub deny_sources: Option<Vec<Option<String>>>,
    pub fast_leave: Option<bool>,
    pub ttl: Option<WrittenTtl>,
    pub header_checks: Option<String>,
    pub takeover: Option<String>,
    pub timers: Option<Table<WrittenProxyTimers>>,
    pub limits: Option<Table<WrittenProxyLimits>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenVersions {
    pub igmp: Option<i64>,
    pub mld: Option<i64>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenProxyTimers {
    pub robustness: Option<i64>,
    pub query_interval: Option<String>,
    pub query_response_interval: Option<String>,
    pub last_member_query_interval: Option<String>,
    pub last_member_query_count: Option<i64>,
    pub startup_query_count: Option<i64>,
    pub startup_query_interval: Option<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenProxyLimits {
    pub groups: Option<i64>,
    pub sources_per_group: Option<i64>,
    pub reports_per_second: Option<i64>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenMrdisc {
    pub interval: Option<String>,
}

/// `"auto"`, `true` or `false`.
#[derive(Debug, serde::Deserialize)]
#[serde(untagged, expecting = "a word or a flag")]
pub(super) enum WrittenJoinPolicy {
    Flag(bool),
    Word(String),
}

/// `"keep"`, `{ set = 8 }`, or a bare number, which is refused later with the way to write it.
#[derive(Debug)]
pub(super) enum WrittenTtl {
    Word(String),
    Set(SetTtl),
    Number(i64),
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SetTtl {
    pub set: Option<i64>,
}

impl<'de> Deserialize<'de> for WrittenTtl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TtlVisitor;
        impl<'de> Visitor<'de> for TtlVisitor {
            type Value = WrittenTtl;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word or a table")
            }
            fn visit_str<E: Error>(self, word: &str) -> Result<WrittenTtl, E> {
                Ok(WrittenTtl::Word(word.into()))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<WrittenTtl, E> {
                Ok(WrittenTtl::Number(number))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<WrittenTtl, E> {
                Ok(WrittenTtl::Number(
                    i64::try_from(number).unwrap_or(i64::MAX),
                ))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WrittenTtl, A::Error> {
                SetTtl::deserialize(MapAccessDeserializer::new(map)).map(WrittenTtl::Set)
            }
        }
        deserializer.deserialize_any(TtlVisitor)
    }
}

/// A table and nothing else: a derived struct would take a list for its fields in order.
#[derive(Debug)]
pub(super) struct Table<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TableVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for TableVisitor<T> {
            type Value = Table<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Table<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Table)
            }
        }
        deserializer.deserialize_map(TableVisitor(PhantomData))
    }
}

/// Reads the tree. A fault is noted and blanked out, and the tree read again, so that one
/// slip does not hide the next. The paths of what was blanked out come back too.
pub(super) fn read(
    mut tree: Json,
    sources: &Sources,
    problems: &mut Vec<Problem>,
) -> (Written, HashSet<KeyPath>) {
    let mut broken = HashSet::new();
    while problems.len() <= MOST_PROBLEMS {
        if tree.is_null() {
            break;
        }
        let error = match serde_path_to_error::deserialize::<_, Written>(&tree) {
            Ok(written) => return (written, broken),
            Err(error) => error,
        };
        let path = path_of(error.path());
        let value = at_mut(&mut tree, &path).map(Json::take);
        if path.find().is_none() {
            problems.push(unknown_key(sources, &path));
            // Of `form` it was said that it means `from`: that there is no `from` is old news.
            if let Some(meant) = meant(&path) {
                broken.insert(meant);
            }
            if let Some(Json::Object(table)) = at_mut(&mut tree, &path.parent()) {
                table.remove(path.last_key());
            }
        } else {
            problems.push(wrong_kind(sources, &path, value.as_ref()));
        }
        // A second fault in the same place would mean that blanking it out did nothing.
        if !broken.insert(path) {
            break;
        }
    }
    (Written::default(), broken)
}

fn path_of(path: &serde_path_to_error::Path) -> KeyPath {
    let steps = path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    KeyPath(steps.collect())
}

fn wrong_kind(sources: &Sources, path: &KeyPath, value: Option<&Json>) -> Problem {
    let (kind, key) = path.find().unwrap_or((&Kind::Text, None));
    let entry = matches!(path.0.last(), Some(Step::Index(_)));
    let (name, example) = key.map_or(("", ""), |key| (key.name, key.example));
    let expected = match kind {
        Kind::Text => "a text in quotes".to_string(),
        Kind::Flag => "true or false, without quotes".to_string(),
        Kind::Number => "a whole number, without quotes".to_string(),
        Kind::List => "a list of texts".to_string(),
        Kind::WordOrTable(_) => super::checked::TTL_FORMS.to_string(),
        Kind::WordOrFlag => super::routes::JOIN_FORMS.to_string(),
        Kind::Tables(_) if !entry => "a list of tables".to_string(),
        Kind::Table(_) | Kind::Tables(_) => "a single table".to_string(),
    };
    let help = match (kind, value) {
        (Kind::Text, Some(Json::Number(port))) if name == "listen" => {
            format!("Give the address too: listen = \"127.0.0.1:{port}\".")
        }
        (Kind::List, Some(Json::String(one))) => format!("Put it in brackets: {name} = [{one:?}]."),
        (Kind::Text, _) if entry => format!("For example: {name} = {example}."),
        (Kind::Text, Some(Json::Array(list))) if list.len() == 1 => {
            format!("Without brackets: {name} = {}.", list[0])
        }
        (Kind::Text, Some(Json::Array(_))) if name == "from" => {
            "One name or pattern such as \"br-*\"; else write a route for each.".to_string()
        }
        (Kind::Number, Some(Json::String(text))) if text.parse::<i64>().is_ok() => {
            format!("Without quotes: {name} = {text}.")
        }
        (Kind::Flag, Some(Json::String(text))) if text == "true" || text == "false" => {
            format!("Without quotes: {name} = {text}.")
        }
        (Kind::Table(_) | Kind::Tables(_), _) if entry || key.is_none() => String::new(),
        (Kind::Table(_), _) if !example.is_empty() => format!("For example: {name} = {example}."),
        (Kind::Table(_) | Kind::Tables(_), _) => key.map_or_else(String::new, |key| {
            format!(
                "Write the header {}, and below it its keys, one a line.",
                header(key)
            )
        }),
        _ => format!("For example: {name} = {example}."),
    };
    Problem {
        place: sources.value(path),
        key: path.to_string(),
        found: describe(value),
        expected,
        help,
        also: None,
    }
}

fn describe(value: Option<&Json>) -> String {
    match value {
        Some(Json::String(text)) => format!("the text {text:?}"),
        Some(Json::Number(number)) => format!("the number {number}"),
        Some(Json::Bool(flag)) => format!("`{flag}`"),
        Some(Json::Array(list)) if list.iter().any(Json::is_object) => "a list of tables".into(),
        Some(Json::Array(_)) => "a list".into(),
        Some(Json::Object(_)) => "a single table".into(),
        Some(Json::Null) | None => "nothing".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::{Key, ROOT};
    use super::*;

    /// The list of keys and the structs cannot drift apart: the structs say what they know.
    #[test]
    fn structs_and_keys_agree() {
        fn known_to_structs(tree: Json) -> Vec<String> {
            let error = serde_json::from_value::<Written>(tree)
                .unwrap_err()
                .to_string();
            assert!(error.contains("unknown field `zzz`"), "{error}");
            error
                .split('`')
                .skip(3)
                .step_by(2)
                .map(String::from)
                .collect()
        }
        fn names(keys: &[Key]) -> Vec<String> {
            keys.iter().map(|key| key.name.to_string()).collect()
        }
        let wrong = serde_json::json!({ "zzz": 0 });
        assert_eq!(known_to_structs(wrong.clone()), names(ROOT.keys()));
        for table in ROOT.keys() {
            let tree = match table.kind {
                Kind::Tables(_) => serde_json::json!({ table.name: [wrong] }),
                _ => serde_json::json!({ table.name: wrong }),
            };
            assert_eq!(
                known_to_structs(tree),
                names(table.kind.keys()),
                "{}",
                table.name
            );
            for key in table.kind.keys() {
                if let Kind::WordOrTable(keys) | Kind::Table(keys) = key.kind {
                    let tree = serde_json::json!({ table.name: [{ key.name: wrong }] });
                    assert_eq!(known_to_structs(tree), names(keys));
                }
            }
        }
    }
}
