//! Merges the file and the environment into one tree.

use config::{Config, ConfigError, Map, Source, Value};
use serde_json::Value as Json;

use super::declaration::KeyType;
use super::file::syntax;
use super::key_path::{KeyPath, PathSegment};
use super::locate::{EnvVariable, LabelTarget, Sources};
use super::raw::find_key;
use super::report::{Problem, SourceLocation};
use super::tree::{
    file_to_json, file_to_map, text_to_value, unknown_tables, value_at, value_to_json,
};
use super::unknown::{
    PREFIX, help_for_other_prefix, path_of_variable, unknown_key, unknown_variable,
};

/// One layer of settings, which [`Config`] puts over the layers before it.
#[derive(Debug, Clone)]
struct MergeLayer(Map<String, Value>);

impl Source for MergeLayer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

/// Merges the file of `sources` with the variables of `env`. Stores these variables in
/// `sources.variables`.
pub(super) fn merge(
    sources: &mut Sources,
    env: impl Iterator<Item = (String, String)>,
    problems: &mut Vec<Problem>,
) -> Json {
    if let Some(file) = &sources.file {
        let unknown = unknown_tables(file);
        problems.extend(unknown.iter().map(|path| unknown_key(sources, path)));
    }
    for (name, value) in env {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            if let Some(help) = help_for_other_prefix(&name) {
                problems.push(unknown_variable(&EnvVariable { name, value }, help));
            }
            continue;
        };
        match path_of_variable(rest) {
            Ok(path) => {
                let variable = EnvVariable { name, value };
                sources.variables.insert(path, variable);
            }
            Err(help) => problems.push(unknown_variable(&EnvVariable { name, value }, help)),
        }
    }
    if sources.variables.is_empty() {
        // Saves the copy that merging makes: a file may be large.
        return sources.file.as_ref().map_or(Json::Null, file_to_json);
    }
    let mut builder = Config::builder();
    if let Some(file) = &sources.file {
        builder = builder.add_source(MergeLayer(file_to_map(file)));
    }
    // A path sorts before the longer paths that start with it, so a variable for a list applies
    // before the variables for its entries.
    for (path, variable) in &sources.variables {
        let Some((key_type, _)) = find_key(path) else {
            continue;
        };
        let key_type = match key_type {
            // One entry of an array of tables is a table.
            KeyType::Tables(table) if path.ends_with_index() => KeyType::Table(table),
            key_type => key_type,
        };
        match text_to_value(&key_type, &variable.value) {
            Ok(value) => {
                let layer = Map::from([(path.to_string(), value)]);
                builder = builder.add_source(MergeLayer(layer));
            }
            Err(message) => {
                let (found, expected, _) = syntax(&message, None);
                problems.push(Problem::new(
                    variable.location(LabelTarget::Value),
                    path,
                    found,
                    expected,
                    format!("`{}` takes a TOML value.", variable.name),
                ));
            }
        }
    }
    let tree = match builder.build() {
        Ok(config) => value_to_json(config.cache),
        Err(error) => {
            problems.push(Problem::new(
                SourceLocation::Unknown,
                &KeyPath::default(),
                error.to_string(),
                "a file and variables that can be merged",
                "",
            ));
            Json::Null
        }
    };
    problems.extend(index_gaps(sources, &tree));
    tree
}

/// Reports variables whose index leaves earlier entries undefined, which the merge fills with
/// nulls.
fn index_gaps(sources: &Sources, tree: &Json) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, variable) in &sources.variables {
        for (n, segment) in path.0.iter().enumerate() {
            let PathSegment::Index(index) = *segment else {
                continue;
            };
            let list = KeyPath(path.0[..n].to_vec());
            let Some(Json::Array(entries)) = value_at(tree, &list) else {
                continue;
            };
            let Some(free) = entries.iter().take(index).position(Json::is_null) else {
                continue;
            };
            problems.push(Problem::new(
                variable.location(LabelTarget::Key),
                path,
                format!("index {index}"),
                format!("{free}, the next free index of `{list}`"),
                "Number the entries from 0 without gaps. The entries of the file come first.",
            ));
        }
    }
    problems
}
