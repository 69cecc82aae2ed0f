//! Reading the file, as far as TOML goes.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use config::Value;
use serde_json::Value as Json;
use toml_edit::{Document, Item, TableLike};

use super::keys::{KeyPath, Kind, ROOT};
use super::locate::{FileText, Lines, place_in};
use super::merge::json_of;
use super::report::{NamedText, Place, Problem};

/// The largest file that is read, in bytes: 100,000 routes are 10 MiB. While it is read it
/// takes some fifty times as much memory, which is given back.
pub const MAX_FILE: u64 = 16 * 1024 * 1024;

/// Reads and parses `file`.
pub(super) fn read(file: &Path) -> Result<FileText, Box<Problem>> {
    let name = file.display().to_string();
    let whole = |found: String, expected: &str, help: &str| {
        Box::new(Problem {
            place: Place::Whole { file: name.clone() },
            key: String::new(),
            found,
            expected: expected.into(),
            help: help.into(),
            also: None,
        })
    };
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => whole(
            "no such file".into(),
            "a settings file",
            "Check the path; an empty file is a valid start.",
        ),
        std::io::ErrorKind::PermissionDenied => whole(
            "a file this user may not read".into(),
            "a readable settings file",
            "Check the permissions of the file and of the folders above it.",
        ),
        _ => whole(
            format!("a file that cannot be read ({error})"),
            "a readable settings file",
            "",
        ),
    };
    let open = File::open(file).map_err(unreadable)?;
    if open.metadata().map_err(unreadable)?.is_dir() {
        return Err(whole(
            "a directory".into(),
            "a settings file",
            "Name the file itself, such as /etc/mcastor.toml.",
        ));
    }
    let mut bytes = Vec::new();
    open.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(whole(
            "a file over 16 MiB".into(),
            "settings of at most 16 MiB",
            "Is this the right file?",
        ));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..offset]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
            + 1;
        whole(
            format!("bytes that are not UTF-8 in line {line} (byte {offset} of the file)"),
            "a UTF-8 text file",
            "Save the file as UTF-8.",
        )
    })?;
    parse(&name, text)
}

/// Parses the text of a file called `name`.
pub(super) fn parse(name: &str, text: String) -> Result<FileText, Box<Problem>> {
    let text: Arc<str> = text.into();
    let named = Arc::new(NamedText {
        name: name.into(),
        text: text.clone(),
    });
    match Document::parse(text.clone()) {
        Ok(document) => Ok(FileText::new(named, document)),
        Err(error) => {
            let span = error.span().unwrap_or(text.len()..text.len());
            let (found, expected, help) = syntax(error.message(), text.get(span.clone()));
            Err(Box::new(Problem {
                place: place_in(&named, &Lines::of(&text), span),
                key: String::new(),
                found,
                expected,
                help,
                also: None,
            }))
        }
    }
}

/// The parser's message as found, expected and help.
pub(super) fn syntax(message: &str, at: Option<&str>) -> (String, String, String) {
    let (what, wanted) = message.split_once(", expected ").unwrap_or((message, ""));
    let at = at
        .map(str::trim)
        .filter(|at| !at.is_empty() && at.len() <= 40);
    let shown = at.map_or_else(|| "a value".to_string(), |at| format!("`{at}`"));
    let own = |found: String, expected: &str, help: String| (found, expected.to_string(), help);
    match what {
        "duplicate key" => own(
            format!("{shown} for the second time"),
            "each key once in its table",
            "Remove one of the two; a further route starts with its own [[route]].".into(),
        ),
        "string values must be quoted" => own(
            format!("{shown} without quotes"),
            "a text in quotes",
            at.map_or_else(String::new, |at| format!("Write \"{at}\".")),
        ),
        // What an address without quotes looks like to the parser.
        "invalid float" | "extra unexpected dot" => own(
            format!("{shown}, which does not belong to a number"),
            "a value",
            "Addresses stand in quotes: group = \"225.1.2.3\".".into(),
        ),
        "integer number overflowed" | "floating-point number overflowed" => own(
            format!("{shown}, a number too large"),
            "a smaller number",
            String::new(),
        ),
        "missing comma between array elements" => own(
            "a list that goes on without a comma".into(),
            "`,` or `]`",
            "A list is written [\"eth1\", \"eth2\"].".into(),
        ),
        "unclosed array table" | "unclosed table" => own(
            "a header that is not closed".into(),
            wanted,
            "Headers are written [http] and [[route]].".into(),
        ),
        "key with no value" => own(
            "a key without a value".into(),
            wanted,
            "Settings are lines of the form key = value.".into(),
        ),
        _ => {
            let found = match at {
                Some(at) if !what.contains(at) => format!("`{at}` ({what})"),
                _ => what.to_string(),
            };
            let expected = match wanted {
                "" => "valid TOML",
                "nothing" => "nothing more here",
                "newline, `#`" => "the end of the line",
                wanted => wanted,
            };
            let help = match what {
                _ if what.contains("array") => "A list is written [\"eth1\", \"eth2\"].",
                _ if what.contains("string") => "Close the quotes on the same line.",
                _ if what.contains("key or value") => "One key a line.",
                _ => "",
            };
            own(found, expected, help.into())
        }
    }
}

/// Names of the file that are no table of the format.
pub(super) fn unknown(file: &FileText) -> Vec<KeyPath> {
    let names = top(file).map(|(name, _)| name);
    names.filter(|n| !is_known(n)).map(KeyPath::root).collect()
}

/// The file's keys as a tree to merge, without unknown names: merging would take a quoted
/// `"a.b[9]"` for a path.
pub(super) fn tree(file: &FileText) -> config::Map<String, Value> {
    let known = top(file).filter(|(name, _)| is_known(name));
    known.map(|(n, i)| (n.to_string(), value_of(i))).collect()
}

/// The same as JSON, where there is nothing to merge.
pub(super) fn json(file: &FileText) -> Json {
    let known = top(file).filter(|(name, _)| is_known(name));
    let entries = known.map(|(name, item)| (name.to_string(), json_of_item(item)));
    Json::Object(entries.collect())
}

fn top(file: &FileText) -> impl Iterator<Item = (&str, &Item)> {
    file.root()
        .as_table_like()
        .into_iter()
        .flat_map(|t| t.iter())
}

fn is_known(name: &str) -> bool {
    ROOT.keys().iter().any(|key| key.name == name)
}

fn json_of_item(item: &Item) -> Json {
    match item {
        Item::None => Json::Null,
        Item::Value(toml_edit::Value::InlineTable(table)) => json_of_table(table),
        Item::Value(value) => json_of(plain_value(value)),
        Item::Table(table) => json_of_table(table),
        Item::ArrayOfTables(tables) => tables.iter().map(|t| json_of_table(t)).collect(),
    }
}

fn json_of_table(table: &dyn TableLike) -> Json {
    let entries = table.iter();
    Json::Object(
        entries
            .map(|(n, item)| (n.to_string(), json_of_item(item)))
            .collect(),
    )
}

/// A TOML item as a value to merge.
fn value_of(item: &Item) -> Value {
    match item {
        Item::None => Value::default(),
        Item::Value(value) => plain_value(value),
        Item::Table(table) => table_value(table),
        Item::ArrayOfTables(tables) => {
            let tables: Vec<Value> = tables.iter().map(|table| table_value(table)).collect();
            Value::new(None, tables)
        }
    }
}

fn table_value(table: &dyn TableLike) -> Value {
    let entries = table
        .iter()
        .map(|(name, item)| (name.to_string(), value_of(item)));
    Value::new(None, entries.collect::<config::Map<String, Value>>())
}

fn plain_value(value: &toml_edit::Value) -> Value {
    use toml_edit::Value as Toml;
    match value {
        Toml::String(text) => Value::new(None, text.value().as_str()),
        Toml::Integer(number) => Value::new(None, *number.value()),
        Toml::Float(number) => Value::new(None, *number.value()),
        Toml::Boolean(flag) => Value::new(None, *flag.value()),
        Toml::Datetime(date) => Value::new(None, date.value().to_string()),
        Toml::Array(array) => Value::new(None, array.iter().map(plain_value).collect::<Vec<_>>()),
        Toml::InlineTable(table) => table_value(table),
    }
}

/// What a text of the environment means for a key of this kind.
pub(super) fn value_from_text(kind: &Kind, text: &str) -> Result<Value, String> {
    let trimmed = text.trim();
    let toml = || {
        trimmed
            .parse::<toml_edit::Value>()
            .map_err(|e| e.message().to_string())
    };
    let as_toml = |value: toml_edit::Value| plain_value(&value);
    let word = |value: &str| Value::new(None, value);
    match kind {
        // Only quotes make TOML of it: a name such as `42` or `true` is a text too.
        Kind::Text if trimmed.starts_with(['"', '\'']) => toml().map(as_toml),
        Kind::Text => Ok(word(text)),
        Kind::Flag | Kind::Number | Kind::WordOrFlag => {
            Ok(toml().map_or_else(|_| word(text), as_toml))
        }
        Kind::List if trimmed.starts_with('[') => toml().map(as_toml),
        Kind::List => {
            let entries = trimmed.split(',').map(str::trim).filter(|s| !s.is_empty());
            Ok(Value::new(None, entries.map(word).collect::<Vec<_>>()))
        }
        Kind::WordOrTable(_) if trimmed.starts_with(['{', '"', '\'']) => toml().map(as_toml),
        Kind::WordOrTable(_) if trimmed.parse::<i64>().is_ok() => toml().map(as_toml),
        Kind::WordOrTable(_) => Ok(word(trimmed)),
        Kind::Table(_) | Kind::Tables(_) if trimmed.starts_with(['{', '[']) => toml().map(as_toml),
        Kind::Table(_) | Kind::Tables(_) => Ok(word(text)),
    }
}
