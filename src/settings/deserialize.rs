//! Reads the merged tree into the raw structs.

use std::collections::HashSet;

use serde_json::Value as Json;
use serde_path_to_error::Segment;

use super::declaration::KeyType;
use super::key_path::{KeyPath, PathSegment};
use super::locate::Sources;
use super::raw::{JOIN_FORMS, RawSettings, TTL_FORMS, find_key};
use super::report::{MAX_PROBLEMS, Problem, SourceLocation};
use super::tree::value_at_mut;
use super::unknown::{probable_key, unknown_key, variable_assignment};

/// Reads the tree. Returns the settings and the paths of refused values.
///
/// serde stops at the first error. Each refused value is reported, replaced by null, and the tree
/// is read again, so that one mistake does not hide the next.
pub(super) fn deserialize(
    mut tree: Json,
    sources: &Sources,
    problems: &mut Vec<Problem>,
) -> (RawSettings, HashSet<KeyPath>) {
    let mut refused = HashSet::new();
    while problems.len() <= MAX_PROBLEMS {
        if tree.is_null() {
            break;
        }
        let error = match serde_path_to_error::deserialize::<_, RawSettings>(&tree) {
            Ok(settings) => return (settings, refused),
            Err(error) => error,
        };
        let path = key_path(error.path());
        let value = value_at_mut(&mut tree, &path).map(Json::take);
        if find_key(&path).is_none() {
            problems.push(unknown_key(sources, &path));
            // After "did you mean `from`?" a missing `from` is not a second problem.
            if let Some(probable) = probable_key(&path) {
                refused.insert(probable);
            }
            if let Some(Json::Object(table)) = value_at_mut(&mut tree, &path.parent()) {
                table.remove(path.last_key());
            }
        } else {
            problems.push(wrong_type(sources, &path, value.as_ref()));
        }
        // A second error at the same path would repeat forever.
        if !refused.insert(path) {
            break;
        }
    }
    (RawSettings::default(), refused)
}

fn key_path(path: &serde_path_to_error::Path) -> KeyPath {
    let segments = path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(PathSegment::Index(*index)),
        Segment::Map { key } => Some(PathSegment::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    KeyPath(segments.collect())
}

/// Describes a value of the wrong type.
fn wrong_type(sources: &Sources, path: &KeyPath, value: Option<&Json>) -> Problem {
    let (key_type, key) = find_key(path).unwrap_or((KeyType::String, None));
    let is_entry = path.ends_with_index();
    let name = key.map_or("", |key| key.name);
    let example = key.map_or_else(String::new, |key| key.example_toml());
    let expected = match key_type {
        KeyType::String => "a string in quotes",
        KeyType::Boolean => "true or false, without quotes",
        KeyType::Integer => "an integer, without quotes",
        KeyType::Strings => "a list of strings",
        KeyType::StringOrStrings => "a string, or a list of strings",
        KeyType::WordOrTable(_) => TTL_FORMS,
        KeyType::WordOrBoolean => JOIN_FORMS,
        KeyType::Tables(_) if !is_entry => "an array of tables",
        KeyType::Table(_) | KeyType::Tables(_) => "a single table",
    };
    // The help has the form of the source: a line of the file, or a variable.
    let location = sources.value(path);
    let assign = |toml: &str| match location {
        SourceLocation::Variable { .. } if is_entry => variable_assignment(&path.parent(), toml),
        SourceLocation::Variable { .. } => variable_assignment(path, toml),
        _ => format!("{name} = {toml}"),
    };
    let help = match (key_type, value) {
        (KeyType::String, Some(Json::Number(port))) if name == "listen" => {
            format!("Add the address: listen = \"127.0.0.1:{port}\".")
        }
        (KeyType::Strings, Some(Json::String(one))) => {
            let items: Vec<String> = (one.split([',', ' ']))
                .filter(|item| !item.is_empty())
                .map(|item| format!("{item:?}"))
                .collect();
            format!(
                "Write a list: {}.",
                assign(&format!("[{}]", items.join(", ")))
            )
        }
        (KeyType::String, _) if is_entry => format!("For example: {}.", assign(&example)),
        (KeyType::String, Some(Json::Array(list))) if list.len() == 1 => {
            format!("Remove the brackets: {}.", assign(&list[0].to_string()))
        }
        (KeyType::String, Some(Json::Array(_))) if name == "group" => {
            "Give one group or one prefix, or write one route for each group.".to_string()
        }
        (KeyType::String, Some(Json::Array(_))) if name == "from" => {
            "Give one name, or a pattern such as \"br-*\", or write one route for each interface."
                .to_string()
        }
        (KeyType::Integer, Some(Json::String(text))) if text.parse::<i64>().is_ok() => {
            format!("Remove the quotes: {name} = {text}.")
        }
        (KeyType::Boolean, Some(Json::String(text))) if text == "true" || text == "false" => {
            format!("Remove the quotes: {name} = {text}.")
        }
        (KeyType::Table(_) | KeyType::Tables(_), _) if is_entry || key.is_none() => String::new(),
        (KeyType::Table(_), _) if !example.is_empty() => {
            format!("For example: {name} = {example}.")
        }
        (KeyType::Table(_) | KeyType::Tables(_), _) => key.map_or_else(String::new, |key| {
            format!(
                "Write the header {}, and its keys below it, one per line.",
                key.header()
            )
        }),
        _ => format!("For example: {}.", assign(&example)),
    };
    Problem::new(location, path, describe(value), expected, help)
}

fn describe(value: Option<&Json>) -> String {
    match value {
        Some(Json::String(text)) => format!("the string {text:?}"),
        Some(Json::Number(number)) => format!("the number {number}"),
        Some(Json::Bool(flag)) => format!("`{flag}`"),
        Some(Json::Array(list)) if list.iter().any(Json::is_object) => "an array of tables".into(),
        Some(Json::Array(_)) => "a list".into(),
        Some(Json::Object(_)) => "a single table".into(),
        Some(Json::Null) | None => "nothing".into(),
    }
}
