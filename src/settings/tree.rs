//! Conversions of TOML and of texts of the environment to the trees that are merged and read.
//!
//! The crate `config` merges [`Value`]s. serde reads [`Json`], whose deserializer never converts a
//! number to a string or a boolean.

use config::{Value, ValueKind};
use serde_json::Value as Json;
use toml_edit::{Item, TableLike};

use super::declaration::KeyType;
use super::key_path::{KeyPath, PathSegment};
use super::locate::FileText;
use super::raw::RawSettings;

/// Returns the top-level keys of the file that the settings do not have.
pub(super) fn unknown_tables(file: &FileText) -> Vec<KeyPath> {
    let names = top_level(file).map(|(name, _)| name);
    let unknown = names.filter(|name| !is_known(name));
    unknown.map(KeyPath::root).collect()
}

/// Converts the file to a tree to merge. Leaves unknown top-level keys out, because `config` takes
/// a quoted key such as `"a.b[9]"` for a path.
pub(super) fn file_to_map(file: &FileText) -> config::Map<String, Value> {
    let known = top_level(file).filter(|(name, _)| is_known(name));
    known
        .map(|(name, item)| (name.to_string(), item_to_value(item)))
        .collect()
}

/// Converts the file to JSON directly, for the case that there is nothing to merge.
pub(super) fn file_to_json(file: &FileText) -> Json {
    let known = top_level(file).filter(|(name, _)| is_known(name));
    let entries = known.map(|(name, item)| (name.to_string(), item_to_json(item)));
    Json::Object(entries.collect())
}

fn top_level(file: &FileText) -> impl Iterator<Item = (&str, &Item)> {
    let table = file.root().as_table_like();
    table.into_iter().flat_map(|table| table.iter())
}

fn is_known(name: &str) -> bool {
    let tables = RawSettings::DECLARATION.keys;
    tables.iter().any(|table| table.name == name)
}

fn item_to_json(item: &Item) -> Json {
    match item {
        Item::None => Json::Null,
        Item::Value(toml_edit::Value::InlineTable(table)) => table_to_json(table),
        Item::Value(value) => value_to_json(toml_to_value(value)),
        Item::Table(table) => table_to_json(table),
        Item::ArrayOfTables(tables) => tables.iter().map(|t| table_to_json(t)).collect(),
    }
}

fn table_to_json(table: &dyn TableLike) -> Json {
    let entries = table.iter();
    Json::Object(
        entries
            .map(|(n, item)| (n.to_string(), item_to_json(item)))
            .collect(),
    )
}

/// Converts a TOML item to a value to merge.
fn item_to_value(item: &Item) -> Value {
    match item {
        Item::None => Value::default(),
        Item::Value(value) => toml_to_value(value),
        Item::Table(table) => table_to_value(table),
        Item::ArrayOfTables(tables) => {
            let tables: Vec<Value> = tables.iter().map(|table| table_to_value(table)).collect();
            Value::new(None, tables)
        }
    }
}

fn table_to_value(table: &dyn TableLike) -> Value {
    let entries = table
        .iter()
        .map(|(name, item)| (name.to_string(), item_to_value(item)));
    Value::new(None, entries.collect::<config::Map<String, Value>>())
}

fn toml_to_value(value: &toml_edit::Value) -> Value {
    use toml_edit::Value as Toml;
    match value {
        Toml::String(text) => Value::new(None, text.value().as_str()),
        Toml::Integer(number) => Value::new(None, *number.value()),
        Toml::Float(number) => Value::new(None, *number.value()),
        Toml::Boolean(flag) => Value::new(None, *flag.value()),
        Toml::Datetime(date) => Value::new(None, date.value().to_string()),
        Toml::Array(array) => Value::new(None, array.iter().map(toml_to_value).collect::<Vec<_>>()),
        Toml::InlineTable(table) => table_to_value(table),
    }
}

/// Converts a merged value to JSON.
pub(super) fn value_to_json(value: Value) -> Json {
    match value.kind {
        ValueKind::Nil => Json::Null,
        ValueKind::Boolean(flag) => flag.into(),
        ValueKind::I64(number) => number.into(),
        ValueKind::String(text) => text.into(),
        ValueKind::Table(table) => table
            .into_iter()
            .map(|(name, value)| (name, value_to_json(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        ValueKind::Array(entries) => entries
            .into_iter()
            .map(value_to_json)
            .collect::<Vec<_>>()
            .into(),
        // JSON has no NaN and no infinity. As strings, they are refused where a number is expected.
        ValueKind::Float(number) => serde_json::Number::from_f64(number)
            .map_or_else(|| number.to_string().into(), Json::Number),
        other => other.to_string().into(),
    }
}

/// Converts the text of an environment variable to a value for a key of `key_type`.
///
/// # Errors
/// The message of the TOML parser, if the text begins like TOML but is invalid.
pub(super) fn text_to_value(key_type: &KeyType, text: &str) -> Result<Value, String> {
    let trimmed = text.trim();
    let toml = || -> Result<Value, String> {
        let parsed = trimmed.parse::<toml_edit::Value>();
        let value = parsed.map_err(|error| error.message().to_string())?;
        Ok(toml_to_value(&value))
    };
    let string = |text: &str| Value::new(None, text);
    match key_type {
        // Only quotes select TOML: a name such as `42` or `true` is a string too.
        KeyType::String if trimmed.starts_with(['"', '\'']) => toml(),
        KeyType::String => Ok(string(text)),
        KeyType::Boolean | KeyType::Integer | KeyType::WordOrBoolean => {
            Ok(toml().unwrap_or_else(|_| string(text)))
        }
        KeyType::Strings | KeyType::StringOrStrings if trimmed.starts_with('[') => toml(),
        KeyType::Strings | KeyType::StringOrStrings => {
            let entries = trimmed.split(',').map(str::trim).filter(|s| !s.is_empty());
            Ok(Value::new(None, entries.map(string).collect::<Vec<_>>()))
        }
        KeyType::WordOrTable(_) if trimmed.starts_with(['{', '"', '\'']) => toml(),
        KeyType::WordOrTable(_) if trimmed.parse::<i64>().is_ok() => toml(),
        KeyType::WordOrTable(_) => Ok(string(trimmed)),
        KeyType::Table(_) | KeyType::Tables(_) if trimmed.starts_with(['{', '[']) => toml(),
        KeyType::Table(_) | KeyType::Tables(_) => Ok(string(text)),
    }
}

/// Returns the value at `path`.
pub(super) fn value_at<'a>(tree: &'a Json, path: &KeyPath) -> Option<&'a Json> {
    path.0
        .iter()
        .try_fold(tree, |value, segment| match segment {
            PathSegment::Key(name) => value.get(name),
            PathSegment::Index(index) => value.get(index),
        })
}

/// Returns the value at `path`, to change it.
pub(super) fn value_at_mut<'a>(tree: &'a mut Json, path: &KeyPath) -> Option<&'a mut Json> {
    path.0
        .iter()
        .try_fold(tree, |value, segment| match segment {
            PathSegment::Key(name) => value.get_mut(name),
            PathSegment::Index(index) => value.get_mut(index),
        })
}
