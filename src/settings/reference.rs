//! Generates documents from the declaration of the keys: the table in `docs/settings.md`,
//! `conf/mcastor.toml` and `conf/mcastor.schema.json`.

use std::fmt::Write;

use serde_json::{Map, Value as Json, json};

use super::declaration::{DefaultValue, KeyDeclaration, KeyType, TableDeclaration};
use super::raw::RawSettings;
use super::unknown::PREFIX;

/// Examples of further entries of a table, after the one that shows every key.
const FURTHER_EXAMPLES: [(&str, &str); 1] = [(
    "route",
    r#"
# Two paths of one stream, which leaves once.
[[route]]
name = "feed"
from = "eth0"
group = "239.5.1.1"
to = ["eth2"]
merge = { with = "eth1", window = "50ms", by = "rtp" }

# A translation of one sender to another source, group and UDP port.
[[route]]
name = "translated"
from = "eth0"
source = "10.0.0.10"
group = "232.1.1.1"
to = ["eth2"]
rewrite = { source = "10.9.1.2", group = "239.1.1.1", port = 5001 }

# An IPv6 group.
[[route]]
name = "sensors"
from = "br-*"
group = "ff3e::8000:1"
to = ["eth0"]
ttl = { set = 8 }

# mDNS uses a link-local group, which is forwarded only with `link_local = true`.
[[route]]
name = "mdns"
from = "eth0"
group = "224.0.0.251"
to = ["br-*"]
ttl = "keep"
link_local = true
"#,
)];

/// Returns the Markdown table of all keys.
pub fn key_table() -> String {
    let mut table =
        "| key | type | default | range | environment |\n|---|---|---|---|---|\n".into();
    for key in RawSettings::DECLARATION.keys {
        let prefix = match key.key_type {
            KeyType::Tables(_) => format!("{PREFIX}{}__0__", key.name.to_uppercase()),
            _ => format!("{PREFIX}{}__", key.name.to_uppercase()),
        };
        add_rows(&mut table, key, &format!("{}.", key.name), &prefix);
    }
    table
}

/// Adds a row for each key of the table `parent`. `path` and `variable` are the beginnings of
/// their paths and variables.
fn add_rows(rows: &mut String, parent: &KeyDeclaration, path: &str, variable: &str) {
    for key in parent.key_type.keys() {
        let (name, upper) = (key.name, key.name.to_uppercase());
        let default = match (key.default, key.default_toml(), parent.key_type) {
            (DefaultValue::Required, _, KeyType::Tables(_)) => "*required*".into(),
            (DefaultValue::Required, ..) => format!("required in `{}`", parent.header()),
            (DefaultValue::Described(text), ..) => text.into(),
            (_, toml, _) => format!("`{}`", toml.unwrap_or_default()),
        };
        // The rows of the keys inside say more than the row of a table could.
        if !key.is_table() {
            let _ = writeln!(
                rows,
                "| `{path}{name}` | {} | {default} | {} | `{variable}{upper}` |",
                type_name(&key.key_type),
                key.range_markdown(),
            );
            continue;
        }
        if let KeyType::Tables(_) = key.key_type {
            let path = format!("{path}{name}.");
            add_rows(rows, key, &path, &format!("{variable}{upper}__0__"));
            continue;
        }
        if !key.range_markdown().is_empty() {
            let range = key.range_markdown();
            let _ = writeln!(
                rows,
                "| `{path}{name}` | table | {default} | {range} | `{variable}{upper}` |",
            );
        }
        let path = format!("{path}{name}.");
        add_rows(rows, key, &path, &format!("{variable}{upper}__"));
    }
}

fn type_name(key_type: &KeyType) -> &'static str {
    match key_type {
        KeyType::String => "string",
        KeyType::Boolean => "boolean",
        KeyType::Integer => "integer",
        KeyType::Strings => "list of strings",
        KeyType::StringOrStrings => "string or list",
        KeyType::WordOrBoolean => "string or boolean",
        KeyType::WordOrTable(_) => "string or table",
        KeyType::Table(_) => "table",
        KeyType::Tables(_) => "array of tables",
    }
}

/// Returns a settings file that shows every key, with its meaning, default and range.
pub fn example_file() -> String {
    let mut file = String::from(
        "#:schema ./mcastor.schema.json\n\
         # Every key of the settings. This file is generated from the declaration of the keys\n\
         # (src/settings/raw.rs). It is valid as it is.\n\
         # Reference: docs/settings.md. To check a file: mcastor check FILE\n",
    );
    for table in RawSettings::DECLARATION.keys {
        add_table(&mut file, table, table.header(), false);
        for (name, examples) in FURTHER_EXAMPLES {
            if name == table.name {
                file.push_str(examples);
            }
        }
    }
    file
}

/// Adds the header of a table and its keys, commented out where `disabled`.
fn add_table(file: &mut String, table: &KeyDeclaration, header: String, disabled: bool) {
    file.push('\n');
    add_comment(file, table.text_lines());
    let mark = if disabled { "# " } else { "" };
    let _ = writeln!(file, "{mark}{header}");
    let keys = || table.key_type.keys().iter();
    for key in keys().filter(|key| !key.is_table()) {
        add_comment(file, key.text_lines());
        let default = match (key.default, key.default_toml()) {
            (DefaultValue::Required, _) => "Required".to_string(),
            (DefaultValue::Described(text), _) => format!("Default: {}", without_backticks(text)),
            (_, toml) => format!("Default: {}", toml.unwrap_or_default()),
        };
        let range = match key.key_type {
            KeyType::Boolean => String::new(),
            _ => format!(" Range: {}.", without_backticks(&key.range_markdown())),
        };
        let facts = format!("{default}.{range}");
        add_comment(file, [facts.as_str()].into_iter());
        let _ = writeln!(file, "{mark}{} = {}", key.name, key.example_toml());
    }
    for inner in keys().filter(|key| key.is_table()) {
        // A table that is absent by default would change what the other keys do.
        let disabled = disabled || matches!(inner.default, DefaultValue::Described("none"));
        let header = match inner.key_type {
            KeyType::Tables(_) => inner.header(),
            _ => table.header_of_inner(inner),
        };
        add_table(file, inner, header, disabled);
    }
}

fn add_comment<'a>(file: &mut String, lines: impl Iterator<Item = &'a str>) {
    for line in lines {
        let _ = writeln!(file, "# {line}");
    }
}

/// Removes the backticks of Markdown, which are noise in a comment of TOML.
fn without_backticks(markdown: &str) -> String {
    markdown.replace('`', "")
}

/// Returns the JSON schema (draft 7) of the settings.
///
/// The schema covers names, types, words, ranges of integers and required keys. Everything else,
/// such as addresses and the relation between routes, is checked by `mcastor check` only.
pub fn json_schema() -> Json {
    let mut schema = table_schema(&RawSettings::DECLARATION);
    schema.insert(
        "$schema".into(),
        "http://json-schema.org/draft-07/schema#".into(),
    );
    schema.insert("title".into(), "Settings of mcastor".into());
    Json::Object(schema)
}

fn table_schema(table: &TableDeclaration) -> Map<String, Json> {
    let properties: Map<String, Json> = table
        .keys
        .iter()
        .map(|key| (key.name.to_string(), Json::Object(key_schema(key))))
        .collect();
    let required: Vec<&str> = table
        .keys
        .iter()
        .filter(|key| matches!(key.default, DefaultValue::Required))
        .map(|key| key.name)
        .collect();
    let mut schema = object(json!({
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    }));
    if !required.is_empty() {
        schema.insert("required".into(), json!(required));
    }
    schema
}

fn key_schema(key: &KeyDeclaration) -> Map<String, Json> {
    let string = || {
        let mut schema = object(json!({ "type": "string" }));
        if !key.words.is_empty() {
            schema.insert("enum".into(), json!(key.words));
        }
        if !key.pattern.is_empty() {
            schema.insert("pattern".into(), json!(key.pattern));
        }
        schema
    };
    let mut schema = match key.key_type {
        KeyType::String => string(),
        KeyType::Boolean => object(json!({ "type": "boolean" })),
        KeyType::Integer => {
            let mut schema = object(json!({ "type": "integer" }));
            if let Some((lowest, highest)) = key.integers {
                schema.insert("minimum".into(), lowest.into());
                schema.insert("maximum".into(), highest.into());
            }
            schema
        }
        KeyType::Strings => {
            let mut schema = object(json!({ "type": "array", "items": string() }));
            if let Some((lowest, highest)) = key.entries {
                schema.insert("minItems".into(), lowest.into());
                schema.insert("maxItems".into(), highest.into());
            }
            schema
        }
        KeyType::StringOrStrings => {
            let list = json!({ "type": "array", "items": string() });
            object(json!({ "anyOf": [string(), list] }))
        }
        KeyType::WordOrBoolean => object(json!({ "anyOf": [string(), { "type": "boolean" }] })),
        KeyType::WordOrTable(table) => object(json!({ "anyOf": [string(), table_schema(table)] })),
        KeyType::Table(table) => table_schema(table),
        KeyType::Tables(table) => object(json!({ "type": "array", "items": table_schema(table) })),
    };
    let mut description = key.text_lines().collect::<Vec<_>>().join(" ");
    let range = without_backticks(&key.range_markdown());
    if !matches!(key.key_type, KeyType::Boolean) && !range.is_empty() {
        let _ = write!(description, " Range: {range}.");
    }
    match key.default {
        DefaultValue::Required => {}
        DefaultValue::String(text) => drop(schema.insert("default".into(), text.into())),
        DefaultValue::Integer(number) => drop(schema.insert("default".into(), number.into())),
        DefaultValue::Boolean(flag) => drop(schema.insert("default".into(), flag.into())),
        DefaultValue::Described("none") => {}
        DefaultValue::Described(text) => {
            let _ = write!(description, " Default: {}.", without_backticks(text));
        }
    }
    schema.insert("description".into(), description.into());
    schema
}

fn object(value: Json) -> Map<String, Json> {
    match value {
        Json::Object(map) => map,
        _ => Map::new(),
    }
}
