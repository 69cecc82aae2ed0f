//! Problems with keys and variables that the settings do not have, with hints.

use super::declaration::{KeyDeclaration, KeyType};
use super::key_path::{KeyPath, PathSegment};
use super::locate::{EnvVariable, LabelTarget, Sources};
use super::raw::{RawSettings, find_key};
use super::report::Problem;
use super::words::nearest;

/// The prefix of every environment variable of the settings.
pub const PREFIX: &str = "MCASTOR__";

/// The highest list index of a variable, so that a typing error does not allocate a huge list.
const MAX_INDEX: usize = 65_535;

/// Returns the known key that the user probably meant with an unknown key.
pub(super) fn probable_key(path: &KeyPath) -> Option<KeyPath> {
    let parent = path.parent();
    let (key_type, _) = find_key(&parent)?;
    let known = key_type.keys().iter().map(|key| key.name);
    Some(parent.key(nearest(path.last_key(), known)?))
}

/// Describes a key that the settings do not have.
pub(super) fn unknown_key(sources: &Sources, path: &KeyPath) -> Problem {
    let parent = path.parent();
    let keys = find_key(&parent).map_or(RawSettings::DECLARATION.keys, |(key_type, _)| {
        key_type.keys()
    });
    let known = || keys.iter().map(|key| key.name);
    let name = path.last_key();
    // A message names a top-level table by its header. The header says how to write the table.
    let written = |key: &str| match find_key(&parent.key(key)) {
        Some((_, Some(declared))) if parent.0.is_empty() => declared.header(),
        _ => format!("`{key}`"),
    };
    let all: Vec<String> = known().map(written).collect();
    let all = all.join(", ");
    let near = key_of_other_program(&parent, name);
    let near = near.or_else(|| key_of_subtable(&parent, keys, name));
    let near = near.or_else(|| nearest(name, known()).map(written));
    let help = match (near, table_with_key(name)) {
        (Some(near), _) => format!("Did you mean {near}? Valid here: {all}."),
        (None, Some(table)) => format!("`{name}` belongs to {table}. Valid here: {all}."),
        (None, None) => format!("Valid here: {all}."),
    };
    let expected = match (parent.0.is_empty(), parent.last_key()) {
        (true, _) => "a table of the settings".to_string(),
        (_, "ttl") => "`set`".to_string(),
        (_, table) => format!("a key of `{table}`"),
    };
    let found = format!("the unknown key `{name}`");
    Problem::new(sources.key(path), path, found, expected, help)
}

/// Returns what replaces a word of smcroute.conf or igmpproxy.conf in the table at `parent`.
fn key_of_other_program(parent: &KeyPath, name: &str) -> Option<String> {
    // The tables of these keys stand at the top level.
    let header = |header: &str| match parent.0.is_empty() {
        true => header.to_string(),
        false => format!("a table {header} of its own"),
    };
    let has_key = |key: &str| find_key(&parent.key(key)).is_some();
    Some(match name {
        "quickleave" => "`fast_leave`".into(),
        "altnet" => "`sources`".into(),
        "whitelist" => "`groups`".into(),
        "mgroup" | "ssmgroup" if !parent.0.is_empty() && has_key("group") => {
            format!("`group`, or {}", header("[[join]]"))
        }
        "mgroup" | "ssmgroup" => header("[[join]]"),
        "mroute" => header("[[route]]"),
        "phyint" => header("[[interface]]"),
        "threshold" | "ttl-threshold" if has_key("ttl_threshold") => "`ttl_threshold`".into(),
        "threshold" | "ttl-threshold" => "`ttl_threshold` of [[interface]]".into(),
        _ => return None,
    })
}

/// Returns the key of this name in a table inside the table at `parent`, such as
/// `` `timers.query_interval` `` for `query_interval` in `[[proxy]]`.
fn key_of_subtable(parent: &KeyPath, keys: &[KeyDeclaration], name: &str) -> Option<String> {
    // At the top level, the header of the table is named.
    if parent.0.is_empty() {
        return None;
    }
    let table = keys.iter().find(|table| {
        let mut keys = table.key_type.keys().iter();
        keys.any(|key| key.name == name)
    })?;
    Some(format!("`{}.{name}`", table.name))
}

/// Returns the header of a top-level table that has a key of this name.
fn table_with_key(name: &str) -> Option<String> {
    RawSettings::DECLARATION.keys.iter().find_map(|table| {
        let has_key = table.key_type.keys().iter().any(|key| key.name == name);
        has_key.then(|| table.header())
    })
}

/// Describes a variable that names no key of the settings.
pub(super) fn unknown_variable(variable: &EnvVariable, help: String) -> Problem {
    Problem::new(
        variable.location(LabelTarget::Key),
        &KeyPath::default(),
        format!("the unknown variable `{}`", variable.name),
        "a variable that names a key of the settings",
        help,
    )
}

/// Returns whether a variable names no key and looks like one that Kubernetes sets in every
/// container for a Service, such as `MCASTOR__X_SERVICE_HOST` for a Service `mcastor--x`.
pub(super) fn is_set_by_kubernetes(name: &str, value: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return false;
    };
    if path_of_variable(rest).is_ok() {
        return false;
    }
    let is_url = ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme));
    let is_number = |text: &str| text.parse::<u16>().is_ok();
    // NAME_PORT_80_TCP_ADDR, of any port and protocol.
    let is_part_of_port = |part: &str| {
        let port = rest
            .strip_suffix(part)
            .and_then(|rest| rest.rsplit_once("_PORT_"));
        port.and_then(|(_, port)| port.split_once('_'))
            .is_some_and(|(number, protocol)| {
                is_number(number) && matches!(protocol, "TCP" | "UDP" | "SCTP")
            })
    };
    rest.ends_with("_SERVICE_HOST") && value.parse::<std::net::IpAddr>().is_ok()
        || rest.contains("_SERVICE_PORT") && is_number(value)
        || rest.ends_with("_PORT") && is_url
        || is_part_of_port("") && is_url
        || ["_PROTO", "_PORT", "_ADDR"]
            .into_iter()
            .any(is_part_of_port)
}

/// Returns the help text for a variable that probably means one of the settings and does not start
/// with [`PREFIX`]. Without it, the variable would have no effect and no message.
pub(super) fn help_for_other_prefix(name: &str) -> Option<String> {
    let upper = name.to_ascii_uppercase();
    if let Some(meant) = with_two_underscores(&upper) {
        return Some(format!("Two underscores separate the parts: {meant}."));
    }
    let rest = upper.strip_prefix(PREFIX).filter(|_| upper != name)?;
    Some(match path_of_variable(rest) {
        Ok(_) => format!("Write the variable in capitals: {upper}."),
        Err(help) => help,
    })
}

/// Returns the variable that was probably meant by one with single underscores, such as
/// `MCASTOR__ROUTE__0__FROM` for `MCASTOR_ROUTE_0_FROM`.
fn with_two_underscores(name: &str) -> Option<String> {
    let rest = name.strip_prefix("MCASTOR_")?;
    let words: Vec<&str> = rest.split('_').filter(|word| !word.is_empty()).collect();
    if rest.starts_with('_') || !(2..=MAX_WORDS).contains(&words.len()) {
        return None;
    }
    // Each gap is one underscore or two. A variable of the settings has at least one gap of two.
    (1u32..1 << (words.len() - 1)).find_map(|gaps| {
        let mut candidate = words[0].to_owned();
        for (gap, word) in words[1..].iter().enumerate() {
            candidate += if gaps >> gap & 1 == 1 { "__" } else { "_" };
            candidate += word;
        }
        path_of_variable(&candidate).ok()?;
        Some(format!("{PREFIX}{candidate}"))
    })
}

/// Most words of a variable that [`with_two_underscores`] examines.
const MAX_WORDS: usize = 9;

/// Converts the name of a variable after [`PREFIX`], such as `ROUTE__0__GROUP`, to a path.
///
/// # Errors
/// The help text for a name that leads to no key.
pub(super) fn path_of_variable(name: &str) -> Result<KeyPath, String> {
    let mut path = KeyPath::default();
    for segment in name.split("__") {
        if !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit()) {
            match segment.parse() {
                Ok(index) if index <= MAX_INDEX => path = path.index(index),
                _ => return Err(format!("An index is at most {MAX_INDEX}.")),
            }
        } else {
            path = path.key(&segment.to_ascii_lowercase());
        }
        let is_upper = segment == segment.to_ascii_uppercase();
        if find_key(&path).is_none() || !is_upper {
            return Err(variable_help(&path, name));
        }
    }
    Ok(path)
}

/// Returns the variable of a key, such as `MCASTOR__ROUTE__0__FROM`.
pub(super) fn variable_of(path: &KeyPath) -> String {
    let segment = |segment: &PathSegment| match segment {
        PathSegment::Key(name) => name.to_uppercase(),
        PathSegment::Index(index) => index.to_string(),
    };
    let segments: Vec<String> = path.0.iter().map(segment).collect();
    format!("{PREFIX}{}", segments.join("__"))
}

/// Returns the assignment of a TOML value to the variable of a key, such as
/// `MCASTOR__ROUTE__0__FROM=eth0`. A variable needs neither quotes nor the brackets of a list. The
/// entries have no spaces between them, so that a shell reads them as one word.
pub(super) fn variable_assignment(path: &KeyPath, toml: &str) -> String {
    let plain: String = toml.chars().filter(|c| !"[]\"".contains(*c)).collect();
    let plain = match toml.starts_with('[') {
        true => plain.replace(", ", ","),
        false => plain,
    };
    format!("{}={plain}", variable_of(path))
}

/// Returns the help text for a variable whose name is wrong at the end of `path`.
fn variable_help(path: &KeyPath, name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    if upper != name && path_of_variable(&upper).is_ok() {
        return format!("Write the variable in capitals: {PREFIX}{upper}.");
    }
    let parent = path.parent();
    let start = match parent.0.is_empty() {
        true => PREFIX.to_owned(),
        false => format!("{}__", variable_of(&parent)),
    };
    let Some((key_type, _)) = find_key(&parent) else {
        return String::new();
    };
    if matches!(key_type, KeyType::Tables(_)) && !parent.ends_with_index() {
        return format!(
            "Add the number of the entry, from 0: {start}0__{}.",
            path.last_key().to_uppercase()
        );
    }
    let known = || key_type.keys().iter().map(|key| key.name);
    let variable = |name: &str| format!("{start}{}", name.to_uppercase());
    if key_type.keys().is_empty() {
        let parent = start.trim_end_matches('_');
        return format!("{parent} has no keys below it.");
    }
    match nearest(path.last_key(), known()) {
        Some(near) => {
            let near = variable(near);
            let rest = name.split("__").skip(path.0.len());
            let full = rest.fold(near.clone(), |name, segment| format!("{name}__{segment}"));
            let is_known = full
                .strip_prefix(PREFIX)
                .is_some_and(|name| path_of_variable(name).is_ok());
            let suggestion = if is_known { full } else { near };
            format!("Did you mean {suggestion}?")
        }
        None => {
            let names: Vec<_> = known().map(variable).collect();
            format!("Valid here: {}.", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_underscores_are_recognised() {
        for (name, meant) in [
            ("MCASTOR_ROUTE_0_FROM", Some("MCASTOR__ROUTE__0__FROM")),
            ("MCASTOR_LOG_LEVEL", Some("MCASTOR__LOG__LEVEL")),
            (
                "MCASTOR_ROUTE_0_LINK_LOCAL_SOURCES",
                Some("MCASTOR__ROUTE__0__LINK_LOCAL_SOURCES"),
            ),
            ("MCASTOR_TEST_PANIC", None),
            ("MCASTOR__ROUTE__0__FROM", None),
            // Kubernetes sets these for the Service `mcastor-http`.
            ("MCASTOR_HTTP_SERVICE_HOST", None),
            ("MCASTOR_HTTP_PORT", None),
            ("MCASTOR_HTTP_PORT_80_TCP", None),
        ] {
            assert_eq!(with_two_underscores(name).as_deref(), meant, "{name}");
        }
    }

    #[test]
    fn variables_of_kubernetes_services_are_recognised() {
        // Set by Kubernetes 1.31 for a Service `mcastor--x` with the ports http 80/TCP and 5000/UDP.
        for (name, value) in [
            ("X_SERVICE_HOST", "10.96.0.7"),
            ("X_SERVICE_PORT", "80"),
            ("X_SERVICE_PORT_HTTP", "80"),
            ("X_PORT", "tcp://10.96.0.7:80"),
            ("X_PORT_80_TCP", "tcp://10.96.0.7:80"),
            ("X_PORT_80_TCP_PROTO", "tcp"),
            ("X_PORT_80_TCP_PORT", "80"),
            ("X_PORT_80_TCP_ADDR", "10.96.0.7"),
            ("X_PORT_5000_UDP_ADDR", "10.96.0.7"),
        ] {
            let name = format!("{PREFIX}{name}");
            assert!(is_set_by_kubernetes(&name, value), "{name}");
        }
        // Typing errors are still reported, and keys are still read.
        for (name, value) in [
            ("HTTP_LISTEN", "127.0.0.1:80"),
            ("HTTP_PORT", "80"),
            ("HTTP__LISTEN", "127.0.0.1:80"),
            ("ROUTE__0__REWRITE__PORT", "80"),
        ] {
            let name = format!("{PREFIX}{name}");
            assert!(!is_set_by_kubernetes(&name, value), "{name}");
        }
    }
}
