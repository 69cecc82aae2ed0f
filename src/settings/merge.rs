//! File and environment become one tree.

use config::{Config, ConfigError, Map, Source, Value, ValueKind};
use serde_json::Value as Json;

use super::file::{self, syntax, value_from_text};
use super::keys::{KeyPath, Kind, ROOT, Step, listed, nearest};
use super::locate::{Part, Sources, Variable};
use super::report::{Place, Problem};

/// What every variable of ours starts with.
pub const PREFIX: &str = "MCASTOR__";

/// The highest list index a variable may carry: a slip must not allocate a huge list.
const MAX_INDEX: usize = 65_535;

/// One layer of settings for [`Config`] to merge.
#[derive(Debug, Clone)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

/// Merges what `sources.file` holds with `env`, which is noted in `sources.variables`.
pub(super) fn merge(
    sources: &mut Sources,
    env: impl Iterator<Item = (String, String)>,
    problems: &mut Vec<Problem>,
) -> Json {
    if let Some(file) = &sources.file {
        let unknown = file::unknown(file);
        problems.extend(unknown.iter().map(|path| unknown_key(sources, path)));
    }
    for (name, value) in env {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        match path_of(rest) {
            Ok(path) => {
                let variable = Variable { name, value };
                sources.variables.insert(path, variable);
            }
            Err(help) => problems.push(unknown_variable(&Variable { name, value }, help)),
        }
    }
    if sources.variables.is_empty() {
        // Merging copies, and a file may be large.
        let tree = sources.file.as_ref().map_or(Json::Null, file::json);
        problems.extend(gaps(sources, &tree));
        return tree;
    }
    let mut builder = Config::builder();
    if let Some(file) = &sources.file {
        builder = builder.add_source(Layer(file::tree(file)));
    }
    // A path sorts before the longer ones it starts, so a list given whole is there before
    // its entries are set one by one.
    for (path, variable) in &sources.variables {
        let Some((kind, _)) = path.find() else {
            continue;
        };
        let kind = match (kind, path.0.last()) {
            // One entry of a list of tables is a table.
            (Kind::Tables(keys), Some(Step::Index(_))) => &Kind::Table(keys),
            _ => kind,
        };
        match value_from_text(kind, &variable.value) {
            Ok(value) => {
                let layer = Map::from([(path.to_string(), value)]);
                builder = builder.add_source(Layer(layer));
            }
            Err(message) => {
                let (found, expected, _) = syntax(&message, None);
                problems.push(Problem {
                    place: variable.place(Part::Value),
                    key: path.to_string(),
                    found,
                    expected,
                    help: format!("`{}` takes a TOML value.", variable.name),
                    also: None,
                });
            }
        }
    }
    let tree = match builder.build() {
        Ok(config) => json_of(config.cache),
        Err(error) => {
            problems.push(Problem {
                place: Place::Nowhere,
                key: String::new(),
                found: error.to_string(),
                expected: "file and environment to fit together".into(),
                help: String::new(),
                also: None,
            });
            Json::Null
        }
    };
    problems.extend(gaps(sources, &tree));
    tree
}

/// A merged value as JSON, whose deserializer turns no number into a text or a flag.
pub(super) fn json_of(value: Value) -> Json {
    match value.kind {
        ValueKind::Nil => Json::Null,
        ValueKind::Boolean(flag) => flag.into(),
        ValueKind::I64(number) => number.into(),
        ValueKind::String(text) => text.into(),
        ValueKind::Table(table) => table
            .into_iter()
            .map(|(name, value)| (name, json_of(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        ValueKind::Array(entries) => entries.into_iter().map(json_of).collect::<Vec<_>>().into(),
        // JSON has no NaN and no infinity; as texts they are refused like any other.
        ValueKind::Float(number) => serde_json::Number::from_f64(number)
            .map_or_else(|| number.to_string().into(), Json::Number),
        other => other.to_string().into(),
    }
}

/// `ROUTE__0__GROUP` as a path; else a help line.
fn path_of(rest: &str) -> Result<KeyPath, String> {
    let mut path = KeyPath::default();
    for part in rest.split("__") {
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            match part.parse() {
                Ok(index) if index <= MAX_INDEX => path = path.index(index),
                _ => return Err(format!("An index is at most {MAX_INDEX}.")),
            }
        } else {
            path = path.key(&part.to_ascii_lowercase());
        }
        let upper = part == part.to_ascii_uppercase();
        if path.find().is_none() || !upper {
            return Err(help_for(&path, rest));
        }
    }
    Ok(path)
}

fn help_for(path: &KeyPath, rest: &str) -> String {
    let upper = rest.to_ascii_uppercase();
    if upper != rest && path_of(&upper).is_ok() {
        return format!("Variables are written in capitals: {PREFIX}{upper}.");
    }
    let parent = path.parent();
    let start: String = parent
        .0
        .iter()
        .fold(PREFIX.into(), |start, step| match step {
            Step::Key(name) => format!("{start}{}__", name.to_uppercase()),
            Step::Index(index) => format!("{start}{index}__"),
        });
    let Some((kind, _)) = parent.find() else {
        return String::new();
    };
    if matches!(kind, Kind::Tables(_)) && !matches!(parent.0.last(), Some(Step::Index(_))) {
        return format!(
            "Give the number of the entry, from 0: {start}0__{}.",
            path.last_key().to_uppercase()
        );
    }
    let known = || kind.keys().iter().map(|key| key.name);
    let variable = |name: &str| format!("{start}{}", name.to_uppercase());
    if kind.keys().is_empty() {
        let all = start.trim_end_matches('_');
        return format!("Nothing goes below {all}.");
    }
    match nearest(path.last_key(), known()) {
        Some(name) => {
            let near = variable(name);
            let below = rest.split("__").skip(path.0.len());
            let whole = below.fold(near.clone(), |name, part| format!("{name}__{part}"));
            let known = whole.strip_prefix(PREFIX).map(path_of);
            let meant = if matches!(known, Some(Ok(_))) {
                whole
            } else {
                near
            };
            format!("Did you mean {meant}?")
        }
        None => {
            let names: Vec<_> = known().map(variable).collect();
            format!("Known here: {}.", names.join(", "))
        }
    }
}

fn unknown_variable(variable: &Variable, help: String) -> Problem {
    Problem {
        place: variable.place(Part::Key),
        key: String::new(),
        found: format!("the unknown variable `{}`", variable.name),
        expected: "a variable that names a key of the settings".into(),
        help,
        also: None,
    }
}

/// The known key that an unknown one was probably meant to be.
pub(super) fn meant(path: &KeyPath) -> Option<KeyPath> {
    let parent = path.parent();
    let (kind, _) = parent.find()?;
    let near = nearest(path.last_key(), kind.keys().iter().map(|key| key.name))?;
    Some(parent.key(near))
}

/// A key the format does not know.
pub(super) fn unknown_key(sources: &Sources, path: &KeyPath) -> Problem {
    let parent = path.parent();
    let kind = parent.find().map_or(&ROOT, |(kind, _)| kind);
    let known = || kind.keys().iter().map(|key| key.name);
    let name = path.last_key();
    let near = nearest(name, known());
    let home = super::keys::home_of(name);
    let all = listed(known());
    let help = match (near, home) {
        (Some(near), _) => format!("Did you mean `{near}`? Known here: {all}."),
        (None, Some(home)) => format!("`{name}` belongs to {home}. Known here: {all}."),
        (None, None) => format!("Known here: {all}."),
    };
    let expected = match (parent.0.is_empty(), parent.last_key()) {
        (true, _) => "a table of the settings".to_string(),
        (_, "ttl") => "`set`".to_string(),
        (_, table) => format!("a key of `{table}`"),
    };
    Problem {
        place: sources.key(path),
        key: path.to_string(),
        found: format!("the unknown key `{name}`"),
        expected,
        help,
        also: None,
    }
}

/// Variables whose index leaves entries out, which the merge filled with nothing.
fn gaps(sources: &Sources, tree: &Json) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, variable) in &sources.variables {
        for (n, step) in path.0.iter().enumerate() {
            let Step::Index(index) = *step else { continue };
            let list = KeyPath(path.0[..n].to_vec());
            let Some(Json::Array(entries)) = at(tree, &list) else {
                continue;
            };
            let Some(free) = entries.iter().take(index).position(Json::is_null) else {
                continue;
            };
            problems.push(Problem {
                place: variable.place(Part::Key),
                key: path.to_string(),
                found: format!("index {index}"),
                expected: format!("{free}, the next free index of `{list}`"),
                help: "Entries are numbered from 0 without gaps, those of the file first.".into(),
                also: None,
            });
        }
    }
    problems
}

fn at<'a>(tree: &'a Json, path: &KeyPath) -> Option<&'a Json> {
    path.0.iter().try_fold(tree, |at, step| match step {
        Step::Key(name) => at.get(name),
        Step::Index(index) => at.get(index),
    })
}

/// The value at `path`, to change it.
pub(super) fn at_mut<'a>(tree: &'a mut Json, path: &KeyPath) -> Option<&'a mut Json> {
    path.0.iter().try_fold(tree, |at, step| match step {
        Step::Key(name) => at.get_mut(name),
        Step::Index(index) => at.get_mut(index),
    })
}
