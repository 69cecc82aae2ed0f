//! The checks that all sections share: required keys, ranges, words, durations and names.
//!
//! Ranges, words, defaults and examples come from the declaration of the key in `raw.rs`.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::declaration::{DefaultValue, KeyDeclaration, KeyType};
use super::key_path::KeyPath;
use super::locate::Sources;
use super::raw::{RawTtlPolicy, TTL_FORMS, find_key};
use super::report::{Problem, SourceLocation};
use super::unknown::variable_assignment;
use super::words::{did_you_mean, quoted_choice};
use crate::model::{Bandwidth, IfPattern, LinkError, RouteName, TtlPolicy};

/// The longest path in a UNIX socket address: 108 bytes less the NUL (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// Collects problems while the sections are checked.
pub(super) struct Checker<'a> {
    pub sources: &'a Sources,
    /// The paths of values that were refused before. Their absence is not a second problem.
    refused: HashSet<KeyPath>,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Checker<'a> {
    pub fn new(
        sources: &'a Sources,
        refused: HashSet<KeyPath>,
        problems: &'a mut Vec<Problem>,
    ) -> Self {
        Self {
            sources,
            refused,
            problems,
        }
    }

    /// Reports that the value at `path` is wrong.
    pub fn refuse(
        &mut self,
        path: &KeyPath,
        found: impl Into<String>,
        expected: impl Into<String>,
        help: impl Into<String>,
    ) -> &mut Problem {
        let location = self.sources.value(path);
        self.problems
            .push(Problem::new(location, path, found, expected, help));
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }

    /// Like [`Checker::refuse`], and marks the value at `related` with `label` too.
    pub fn refuse_related(
        &mut self,
        path: &KeyPath,
        (found, expected, help): (impl Into<String>, impl Into<String>, impl Into<String>),
        (related, label): (&KeyPath, &str),
    ) {
        let span = self.sources.span(related);
        let problem = self.refuse(path, found, expected, help);
        problem.related = span.map(|span| (span, label.into()));
    }

    /// Whether no problem has been found, in any section.
    pub fn has_no_problems(&self) -> bool {
        self.problems.is_empty()
    }

    /// Whether the value of this key was refused before.
    pub fn was_refused(&self, path: &KeyPath) -> bool {
        self.refused.contains(path)
    }

    /// Reports the absence of a required key of the table at `table`.
    pub fn required<T>(&mut self, value: Option<T>, table: &KeyPath, name: &str) -> Option<T> {
        let path = table.key(name);
        if value.is_none() && !self.refused.contains(&path) {
            let expected = match find_key(table) {
                Some((KeyType::WordOrTable(_), _)) => TTL_FORMS.to_string(),
                Some((KeyType::Tables(_), Some(key))) => {
                    format!("a key `{name}` in each {}", key.header())
                }
                _ => format!("a key `{name}` in [{}]", table.last_key()),
            };
            let example = declaration(&path).map_or_else(String::new, KeyDeclaration::example_toml);
            let help = match self.sources.key(table) {
                SourceLocation::Variable { .. } => variable_assignment(&path, &example),
                _ => format!("{name} = {example}"),
            };
            let help = format!("For example: {help}.");
            self.refuse(table, format!("no `{name}`"), expected, help);
        }
        value
    }

    /// Checks a string that must be one of the declared words, and maps it with `words`. Returns
    /// the default of `T` for an absent or wrong word.
    pub fn word<T: Copy + Default>(
        &mut self,
        path: &KeyPath,
        word: Option<String>,
        words: &[(&str, T)],
    ) -> T {
        let Some(word) = word else {
            return T::default();
        };
        if let Some((_, value)) = words.iter().find(|(known, _)| *known == word) {
            return *value;
        }
        let known = declaration(path).map_or(&[][..], |key| key.words);
        let known = || known.iter().copied();
        let help = did_you_mean(&word, known()).unwrap_or_default();
        self.refuse(path, format!("{word:?}"), quoted_choice(known()), help);
        T::default()
    }

    /// Checks an integer against the declared range. Returns nothing for an absent or wrong one.
    pub fn integer(&mut self, path: &KeyPath, number: Option<i64>, help: &str) -> Option<i64> {
        self.named_integer(path, number, "a number", help)
    }

    /// Like [`Checker::integer`]; the problem describes the expected integer as `noun`.
    pub fn named_integer(
        &mut self,
        path: &KeyPath,
        number: Option<i64>,
        noun: &str,
        help: &str,
    ) -> Option<i64> {
        let number = number?;
        let key = declaration(path);
        let (lowest, highest) = key
            .and_then(|key| key.integers)
            .unwrap_or((i64::MIN, i64::MAX));
        if (lowest..=highest).contains(&number) {
            return Some(number);
        }
        let unit = match key.map_or("", |key| key.unit) {
            "" => String::new(),
            unit => format!(" of {unit}"),
        };
        let expected = format!("{noun}{unit} from {lowest} to {highest}");
        self.refuse(path, number.to_string(), expected, help);
        None
    }

    /// Like [`Checker::integer`], with the declared default for an absent or wrong number.
    pub fn integer_or_default(&mut self, path: &KeyPath, number: Option<i64>, help: &str) -> i64 {
        let number = self.integer(path, number, help);
        number.unwrap_or_else(|| match default_of(path) {
            DefaultValue::Integer(default) => default,
            _ => 0,
        })
    }

    /// Checks a TTL: an integer from 1 to 255. `zero_help` is the help text for a 0.
    pub fn ttl(&mut self, path: &KeyPath, number: i64, zero_help: &str) -> Option<u8> {
        let help = if number == 0 { zero_help } else { "" };
        let ttl = self.integer(path, Some(number), help)?;
        u8::try_from(ttl).ok()
    }

    /// Checks a duration such as "500ms" or "2m 5s" against the declared range. Returns nothing
    /// for an absent or wrong one.
    pub fn duration(&mut self, path: &KeyPath, text: Option<String>) -> Option<Duration> {
        let text = text?;
        let (shortest, longest) = declaration(path)
            .and_then(|key| key.durations)
            .unwrap_or((Duration::ZERO, Duration::MAX));
        let help = match (humantime::parse_duration(&text), text.trim().parse::<f64>()) {
            (Ok(duration), _) if (shortest..=longest).contains(&duration) => {
                return Some(duration);
            }
            (Err(_), Ok(_)) => {
                let with_unit = format!("{text}s");
                format!("Add the unit: {with_unit:?}, or \"ms\", \"m\".")
            }
            _ => "Units are ms, s, m and h: \"500ms\", \"2m 5s\".".into(),
        };
        let expected = format!(
            "a time from {} to {}",
            humantime::format_duration(shortest),
            humantime::format_duration(longest)
        );
        self.refuse(path, format!("{text:?}"), expected, help);
        None
    }

    /// Like [`Checker::duration`], with the declared default for an absent or wrong duration.
    pub fn duration_or_default(&mut self, path: &KeyPath, text: Option<String>) -> Duration {
        self.duration(path, text).unwrap_or_else(|| {
            let default = humantime::parse_duration(default_string(path));
            default.unwrap_or_default()
        })
    }

    /// Checks a bit rate such as "100Mbit". Returns nothing for an absent or wrong one.
    pub fn bandwidth(&mut self, path: &KeyPath, text: Option<String>) -> Option<Bandwidth> {
        let text = text?;
        let parsed = text.parse();
        if parsed.is_err() {
            let expected = "a bit rate such as \"100Mbit\" or \"1.5Gbit\"";
            let help = "Units are bit, kbit, Mbit and Gbit. For no limit, omit the key.";
            self.refuse(path, format!("{text:?}"), expected, help);
        }
        parsed.ok()
    }

    /// Checks a name for metrics, where there is one. `example` is a default name.
    pub fn metrics_name(
        &mut self,
        path: &KeyPath,
        name: Option<&str>,
        example: &str,
    ) -> Option<RouteName> {
        let name = name?;
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            let expected = "a name of visible characters";
            let help = format!("Without the key, the default is a name such as {example:?}.");
            self.refuse(path, format!("{name:?}"), expected, help);
        }
        Some(RouteName::new(name))
    }

    /// Checks an interface name or pattern.
    pub fn pattern(&mut self, path: &KeyPath, text: &str) -> Option<IfPattern> {
        let list = "Each entry is one name. Write a list as [\"eth1\", \"eth2\"].";
        let (found, help) = match text.parse::<IfPattern>() {
            // The kernel accepts a comma in a name, but here it is most likely a list.
            Ok(pattern) if !pattern.is_alias() && text.contains(',') => {
                (format!("{text:?}"), list.to_string())
            }
            Ok(pattern) => return Some(pattern),
            Err(LinkError::Empty) if text.is_empty() => {
                ("an empty string".to_string(), String::new())
            }
            Err(LinkError::Empty) => (
                format!("{text:?}, without a name"),
                format!("Write the name after the colon: \"{text}NAME\"."),
            ),
            Err(LinkError::TooLong(_)) => (
                format!("{text:?}, {} bytes long", text.len()),
                "Linux interface names have at most 15 bytes; `ip link` lists them. Use `*` to \
                 shorten it: \"br-*\"."
                    .into(),
            ),
            Err(LinkError::BadChar(_, ' ')) => (format!("{text:?}"), list.to_string()),
            Err(LinkError::NoLabelValue(_)) => (
                format!("{text:?}"),
                "Write a label as label:KEY=VALUE.".to_string(),
            ),
            Err(LinkError::BadChar(_, ':')) => (
                format!("{text:?}"),
                "Interface names do not contain ':'. Write a container as container:NAME or \
                 label:KEY=VALUE, a container network as network:NAME."
                    .into(),
            ),
            Err(LinkError::BadChar(_, bad)) => (
                format!("{text:?}"),
                format!("Interface names do not contain {bad:?}."),
            ),
        };
        let expected = "an interface name such as \"eth0\" or a pattern such as \"br-*\"";
        self.refuse(path, found, expected, help);
        None
    }

    /// Checks a list of interface names and patterns, each of which may occur once. `count_help`
    /// is the help text for a list that is too short or too long. `check_entry` checks an entry
    /// further and returns whether it is good.
    pub fn patterns(
        &mut self,
        list: &KeyPath,
        names: Vec<Option<String>>,
        count_help: &str,
        check_entry: impl Fn(&mut Self, &KeyPath, &IfPattern) -> bool,
    ) -> Option<Vec<IfPattern>> {
        let range = declaration(list).and_then(|key| key.entries);
        let (lowest, highest) = range.unwrap_or((0, usize::MAX));
        if !(lowest..=highest).contains(&names.len()) {
            let found = match names.len() {
                0 => "an empty list".to_string(),
                n => format!("{n} entries"),
            };
            let expected = match lowest {
                0 => format!("at most {highest} interfaces"),
                _ => format!("{lowest} to {highest} interfaces"),
            };
            self.refuse(list, found, expected, count_help);
            return None;
        }
        let mut first_index: HashMap<IfPattern, usize> = HashMap::new();
        let mut patterns = Some(Vec::new());
        for (n, text) in names.into_iter().enumerate() {
            let path = list.index(n);
            let Some(name) = text.and_then(|text| self.pattern(&path, &text)) else {
                patterns = None;
                continue;
            };
            if let Some(first) = first_index.get(&name) {
                let found = format!("\"{name}\" for the second time");
                let texts = (found, "each interface once", "Remove one of the two.");
                let first = list.index(*first);
                self.refuse_related(&path, texts, (&first, "the first"));
                patterns = None;
                continue;
            }
            first_index.insert(name.clone(), n);
            if !check_entry(self, &path, &name) {
                patterns = None;
            }
            if let Some(patterns) = &mut patterns {
                patterns.push(name);
            }
        }
        patterns
    }

    /// Checks the path of a folder, or "off", which is `None`.
    pub fn folder_or_off(&mut self, path: &KeyPath, text: Option<String>) -> Option<PathBuf> {
        let text = text.unwrap_or_else(|| default_string(path).into());
        if text == "off" {
            return None;
        }
        if !Path::new(&text).is_absolute() || text.contains('\0') {
            let help = format!(
                "For example: {} = \"{}\".",
                path.last_key(),
                default_string(path)
            );
            self.refuse(
                path,
                format!("{text:?}"),
                "an absolute path, or \"off\"",
                help,
            );
        }
        Some(text.into())
    }

    /// Checks the path of a UNIX socket.
    pub fn socket_path(&mut self, path: &KeyPath, text: Option<String>) -> PathBuf {
        let default = default_string(path);
        let Some(text) = text else {
            return default.into();
        };
        self.path_of_socket(path, "", &text, default)
    }

    /// Checks the path of a UNIX socket in the address of the HTTP server.
    pub fn http_socket_path(&mut self, path: &KeyPath, text: &str) -> PathBuf {
        self.path_of_socket(path, "unix:", text, "/run/mcastor/http.sock")
    }

    /// Checks the path `text`, which follows `prefix` in the value at `path`.
    fn path_of_socket(
        &mut self,
        path: &KeyPath,
        prefix: &str,
        text: &str,
        example: &str,
    ) -> PathBuf {
        let name = path.last_key();
        let quoted = format!("{:?}", format!("{prefix}{text}"));
        if !Path::new(text).is_absolute() {
            // As in DOCKER_HOST: unix:///var/run/docker.sock.
            let of_url = text.strip_prefix("unix:");
            let of_url = of_url.map(|path| path.trim_start_matches("//"));
            let help = match of_url.filter(|path| path.starts_with('/')) {
                Some(path) => format!("Give the path alone: {name} = \"{prefix}{path}\"."),
                None if text.contains("://") => {
                    format!("Only UNIX sockets are supported: {name} = \"{prefix}{example}\".")
                }
                None => format!(
                    "The daemon has no working directory of its own: {name} = \"{prefix}/run/{}\".",
                    text.trim_start_matches("./")
                ),
            };
            self.refuse(path, quoted, "an absolute path", help);
        } else if text.ends_with('/') || text.contains('\0') {
            let help =
                format!("Give the path of the socket itself: {name} = \"{prefix}{example}\".");
            self.refuse(path, quoted, "the path of a file", help);
        } else if text.len() > SOCKET_PATH_MAX {
            let found = format!("a path of {} bytes", text.len());
            let expected = format!("at most {SOCKET_PATH_MAX} bytes");
            let help = "The kernel limits the path of a socket. Use a directory such as /run.";
            self.refuse(path, found, expected, help);
        }
        text.into()
    }

    /// Checks the TTL policy of a route or proxy.
    pub fn ttl_policy(
        &mut self,
        path: &KeyPath,
        policy: Option<RawTtlPolicy>,
    ) -> Option<TtlPolicy> {
        match policy {
            None => Some(TtlPolicy::default()),
            Some(RawTtlPolicy::Word(word)) if word == "decrement" => Some(TtlPolicy::Decrement),
            Some(RawTtlPolicy::Word(word)) if word == "keep" => Some(TtlPolicy::Keep),
            Some(RawTtlPolicy::Word(word)) => {
                let help = did_you_mean(&word, ["decrement", "keep"])
                    .unwrap_or_else(|| format!("For a TTL of 8: {}.", self.set_ttl(path, 8)));
                self.refuse(path, format!("{word:?}"), TTL_FORMS, help);
                None
            }
            Some(RawTtlPolicy::Number(number)) => {
                let ttl = number.clamp(1, 255);
                let help = format!("For this TTL: {}.", self.set_ttl(path, ttl));
                self.refuse(path, format!("the number {number}"), TTL_FORMS, help);
                None
            }
            Some(RawTtlPolicy::Set(table)) => {
                let number = self.required(table.set, path, "set")?;
                let zero_help = "A packet with TTL 0 is not forwarded.";
                let ttl = self.ttl(&path.key("set"), number, zero_help)?;
                Some(TtlPolicy::Set(ttl))
            }
        }
    }
}

impl Checker<'_> {
    /// Returns how to set this TTL, in the form of the source that has the value at `path`.
    fn set_ttl(&self, path: &KeyPath, ttl: i64) -> String {
        match self.sources.value(path) {
            SourceLocation::Variable { .. } => {
                variable_assignment(&path.key("set"), &ttl.to_string())
            }
            _ => format!("ttl = {{ set = {ttl} }}"),
        }
    }
}

/// Returns the declaration of the key at `path`.
fn declaration(path: &KeyPath) -> Option<&'static KeyDeclaration> {
    find_key(path)?.1
}

fn default_of(path: &KeyPath) -> DefaultValue {
    declaration(path).map_or(DefaultValue::Required, |key| key.default)
}

/// Returns the declared default of a string.
pub(super) fn default_string(path: &KeyPath) -> &'static str {
    match default_of(path) {
        DefaultValue::String(text) => text,
        _ => "",
    }
}

/// Returns the declared default of a boolean.
pub(super) fn default_boolean(path: &KeyPath) -> bool {
    matches!(default_of(path), DefaultValue::Boolean(true))
}
