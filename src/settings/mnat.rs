//! Checks of `[mnat]`, one end of multicast NAT.

use std::path::{Path, PathBuf};

use super::checker::Checker;
use super::key_path::KeyPath;
use super::raw::RawMnat;
use crate::mnat::MnatRole;
use crate::mnat::Target;
use crate::mnat::config::{Config, JoinSources};
use crate::model::IfName;

/// The port of a URL without a port.
const HTTPS_PORT: u16 = 443;

/// Checks the table. Returns nothing where something in it is wrong.
pub(super) fn check_mnat(checker: &mut Checker<'_>, raw: RawMnat) -> Option<Config> {
    let path = KeyPath::root("mnat");
    let role = checker.required(raw.role, &path, "role");
    let roles = MnatRole::ALL.map(|role| (role.label(), Some(role)));
    let role = checker.word(&path.key("role"), role, &roles);
    let server = checker.required(raw.server, &path, "server");
    let server = server.and_then(|url| check_server(checker, &path.key("server"), &url));
    let upstream = checker.required(raw.upstream, &path, "upstream");
    let upstream = upstream.and_then(|name| check_name(checker, &path.key("upstream"), &name));
    let downstream = checker.required(raw.downstream, &path, "downstream");
    let downstream =
        downstream.and_then(|name| check_name(checker, &path.key("downstream"), &name));
    if upstream.is_some() && upstream == downstream {
        let found = "the same name as `upstream`";
        let help = "Streams arrive on one interface and leave on the other.";
        checker.refuse(&path.key("downstream"), found, "another interface", help);
    }
    let ca = check_file(checker, &path.key("ca"), raw.ca);
    let cert = check_file(checker, &path.key("cert"), raw.cert);
    let key = check_file(checker, &path.key("key"), raw.key);
    let joinfile = check_file(checker, &path.key("joinfile"), raw.joinfile);
    if key.is_some() && cert.is_none() {
        let help = "Set `cert` to the certificate of this key.";
        let found = "a key without `cert`";
        checker.refuse(&path.key("key"), found, "both or neither", help);
    }
    let has_joinfile = joinfile.is_some();
    let joins = check_joins(checker, &path.key("joins"), raw.joins, role, has_joinfile);
    let grace = checker.duration_or_default(&path.key("grace"), raw.grace);
    let (host, port) = server?;
    Some(Config {
        role: role?,
        target: Target {
            host,
            port,
            ca,
            cert,
            key,
            only_if_present: false,
        },
        upstream: upstream?,
        downstream: downstream?,
        joinfile,
        joins: joins?,
        grace,
    })
}

/// Checks where an egress learns its joins; the default is all sources.
fn check_joins(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: Option<Vec<Option<String>>>,
    role: Option<MnatRole>,
    has_joinfile: bool,
) -> Option<JoinSources> {
    let Some(raw) = raw else {
        return Some(JoinSources::ALL);
    };
    let words: Vec<&str> = raw.iter().flatten().map(String::as_str).collect();
    let list = "a list of \"members\" and \"joinfile\"";
    let (found, expected, help) = match JoinSources::named(words) {
        Ok(_) if role == Some(MnatRole::Ingress) => {
            let help = "An ingress sends what any egress requests.";
            ("`joins` at an ingress".to_string(), "no such key", help)
        }
        Ok(sources) if !sources.members && !has_joinfile => {
            let help = "Set `joinfile`. Without it, nothing is ever joined.";
            ("\"joinfile\" without a `joinfile`".into(), "a file", help)
        }
        Ok(sources) => return Some(sources),
        Err(word) if word.is_empty() => {
            let help = "Without the key, both are used.";
            ("an empty list".into(), list, help)
        }
        Err(word) => (format!("{word:?}"), list, ""),
    };
    checker.refuse(path, found, expected, help);
    None
}

/// Checks the name of one interface, which may not be a pattern.
fn check_name(checker: &mut Checker<'_>, path: &KeyPath, text: &str) -> Option<IfName> {
    let pattern = checker.pattern(path, text)?;
    if pattern.is_pattern() {
        let help = "An end of MNAT has one upstream and one downstream interface.";
        let expected = "the name of one interface";
        checker.refuse(path, format!("{text:?}"), expected, help);
        return None;
    }
    text.parse().ok()
}

fn check_file(checker: &mut Checker<'_>, path: &KeyPath, text: Option<String>) -> Option<PathBuf> {
    let text = text?;
    if !Path::new(&text).is_absolute() || text.ends_with('/') || text.contains('\0') {
        let help = "The daemon has no working directory of its own: \"/etc/mnat/ca.pem\".";
        let expected = "the absolute path of a file";
        checker.refuse(path, format!("{text:?}"), expected, help);
        return None;
    }
    Some(text.into())
}

fn check_server(checker: &mut Checker<'_>, path: &KeyPath, url: &str) -> Option<(String, u16)> {
    match parse_server(url) {
        Ok(server) => Some(server),
        Err(help) => {
            let expected = "a URL such as \"https://mnat.example.net:8443\"";
            checker.refuse(path, format!("{url:?}"), expected, help);
            None
        }
    }
}

/// Returns host and port of an https URL that contains nothing else.
///
/// # Errors
/// The help text for a URL that is not of this form.
fn parse_server(url: &str) -> Result<(String, u16), &'static str> {
    let scheme = "The URL starts with https://: MNAT requires TLS.";
    let rest = url.strip_prefix("https://").ok_or(scheme)?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#', '@', ' ']) {
        return Err("Give only host and port. The protocol defines the paths.");
    }
    let (host, port) = match rest.strip_prefix('[') {
        Some(v6) => {
            let (host, port) = v6
                .split_once(']')
                .ok_or("The closing bracket is missing.")?;
            let host: std::net::Ipv6Addr = host
                .parse()
                .map_err(|_| "Only an IPv6 address is put in brackets.")?;
            (host.to_string(), port.strip_prefix(':'))
        }
        None => match rest.split_once(':') {
            Some((host, port)) => (host.to_string(), Some(port)),
            None => (rest.to_string(), None),
        },
    };
    if host.is_empty() {
        return Err("The host is missing.");
    }
    let port = match port {
        None => HTTPS_PORT,
        Some(port) => match port.parse() {
            Ok(port) if port > 0 => port,
            _ => {
                return Err("A port is a number from 1 to 65535. Put an IPv6 address in brackets.");
            }
        },
    };
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_url_has_host_and_optional_port() {
        for (url, host, port) in [
            ("https://mnat.example.net:8443", "mnat.example.net", 8443),
            ("https://mnat.example.net/", "mnat.example.net", 443),
            ("https://10.0.0.1:8443", "10.0.0.1", 8443),
            ("https://[2001:db8::1]:8443", "2001:db8::1", 8443),
            ("https://[2001:db8::1]", "2001:db8::1", 443),
        ] {
            assert_eq!(parse_server(url), Ok((host.to_string(), port)), "{url}");
        }
        for url in [
            "http://a",
            "a:8443",
            "https://",
            "https://:1",
            "https://a:0",
            "https://a:x",
            "https://2001:db8::1",
            "https://[x]:1",
            "https://a/mnat-ds",
            "https://u@a",
        ] {
            assert!(parse_server(url).is_err(), "{url}");
        }
    }
}
