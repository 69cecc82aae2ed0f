//! `[mnat]`: one end of multicast NAT.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::checked::Checker;
use super::keys::KeyPath;
use super::written::WrittenMnat;
use crate::mnat::client::Target;
use crate::mnat::config::{Config, DEFAULT_GRACE, JoinSources};
use crate::mnat::protocol::Role;
use crate::model::IfName;

/// The longest time without a server.
const LONGEST_GRACE: Duration = Duration::from_secs(30 * 86_400);
/// The port of a URL that names none.
const HTTPS: u16 = 443;

/// Checks the table; `None` where something in it is wrong.
pub(super) fn check(checker: &mut Checker<'_>, written: WrittenMnat) -> Option<Config> {
    let path = KeyPath::root("mnat");
    let role = checker.required(written.role, &path, "role", "\"egress\"");
    let roles = Role::ALL.map(|role| (role.label(), Some(role)));
    let role = checker.word(&path.key("role"), role, &roles);
    let example = "\"https://mnat.example.net:8443\"";
    let server = checker.required(written.server, &path, "server", example);
    let server = server.and_then(|url| server_of(checker, &path.key("server"), &url));
    let upstream = checker.required(written.upstream, &path, "upstream", "\"xup0\"");
    let upstream = upstream.and_then(|name| interface(checker, &path.key("upstream"), &name));
    let downstream = checker.required(written.downstream, &path, "downstream", "\"xdn0\"");
    let downstream = downstream.and_then(|name| interface(checker, &path.key("downstream"), &name));
    if upstream.is_some() && upstream == downstream {
        let found = "the name of `upstream` again";
        let help = "Streams come from one side and leave on the other.";
        checker.wrong(&path.key("downstream"), found, "another interface", help);
    }
    let mut files = [written.ca, written.cert, written.key, written.joinfile]
        .into_iter()
        .zip(["ca", "cert", "key", "joinfile"])
        .map(|(text, name)| file(checker, &path.key(name), text));
    let [ca, cert, key, joinfile] = std::array::from_fn(|_| files.next().flatten());
    drop(files);
    if key.is_some() && cert.is_none() {
        let help = "Name the certificate that the key belongs to.";
        checker.wrong(
            &path.key("key"),
            "a key without `cert`",
            "both or neither",
            help,
        );
    }
    let joins = joins(
        checker,
        &path.key("joins"),
        written.joins,
        role,
        joinfile.is_some(),
    );
    let range = Duration::ZERO..=LONGEST_GRACE;
    let grace = checker.duration(&path.key("grace"), written.grace, DEFAULT_GRACE, range);
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

/// Where joins come from; both where nothing is said.
fn joins(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    written: Option<Vec<Option<String>>>,
    role: Option<Role>,
    joinfile: bool,
) -> Option<JoinSources> {
    let Some(written) = written else {
        return Some(JoinSources::ALL);
    };
    let words: Vec<&str> = written.iter().flatten().map(String::as_str).collect();
    let expected = "a list of \"members\" and \"joinfile\"";
    let (found, expected, help) = match JoinSources::named(words) {
        Ok(_) if role == Some(Role::Ingress) => {
            let help = "An ingress takes what any egress wants.";
            ("`joins` at an ingress".to_string(), "no such key", help)
        }
        Ok(sources) if !sources.members && !joinfile => {
            let help = "Name the `joinfile`, or nothing is ever joined.";
            ("\"joinfile\" alone, and no file".into(), "a file", help)
        }
        Ok(sources) => return Some(sources),
        Err(word) if word.is_empty() => {
            ("nothing".into(), expected, "Without the key, both count.")
        }
        Err(word) => (format!("{word:?}"), expected, ""),
    };
    checker.wrong(path, found, expected, help);
    None
}

fn interface(checker: &mut Checker<'_>, path: &KeyPath, text: &str) -> Option<IfName> {
    let pattern = checker.pattern(path, text)?;
    if pattern.is_pattern() {
        let help = "An end of MNAT has one interface on each side.";
        checker.wrong(path, format!("{text:?}"), "the name of one interface", help);
        return None;
    }
    text.parse().ok()
}

fn file(checker: &mut Checker<'_>, path: &KeyPath, text: Option<String>) -> Option<PathBuf> {
    let text = text?;
    if !Path::new(&text).is_absolute() || text.ends_with('/') || text.contains('\0') {
        let help = "The daemon has no folder of its own: \"/etc/mnat/ca.pem\".";
        checker.wrong(
            path,
            format!("{text:?}"),
            "the absolute path of a file",
            help,
        );
        return None;
    }
    Some(text.into())
}

fn server_of(checker: &mut Checker<'_>, path: &KeyPath, url: &str) -> Option<(String, u16)> {
    let why = match split(url) {
        Ok(server) => return Some(server),
        Err(why) => why,
    };
    let expected = "an address such as \"https://mnat.example.net:8443\"";
    checker.wrong(path, format!("{url:?}"), expected, why);
    None
}

/// Host and port of an https URL that names nothing else.
fn split(url: &str) -> Result<(String, u16), &'static str> {
    let scheme = "It begins with https://: MNAT is spoken over TLS only.";
    let rest = url.strip_prefix("https://").ok_or(scheme)?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#', '@', ' ']) {
        return Err("Host and port only: the paths are fixed by the protocol.");
    }
    let (host, port) = match rest.strip_prefix('[') {
        Some(v6) => {
            let (host, port) = v6.split_once(']').ok_or("A bracket is not closed.")?;
            let host: std::net::Ipv6Addr = host
                .parse()
                .map_err(|_| "An IPv6 address belongs into brackets.")?;
            (host.to_string(), port.strip_prefix(':'))
        }
        None => match rest.split_once(':') {
            Some((host, port)) => (host.to_string(), Some(port)),
            None => (rest.to_string(), None),
        },
    };
    if host.is_empty() {
        return Err("There is no host.");
    }
    let port = match port {
        None => HTTPS,
        Some(port) => match port.parse() {
            Ok(port) if port > 0 => port,
            _ => {
                return Err(
                    "A port is a number from 1 to 65535; IPv6 addresses stand in brackets.",
                );
            }
        },
    };
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_host_and_a_port() {
        for (url, host, port) in [
            ("https://mnat.example.net:8443", "mnat.example.net", 8443),
            ("https://mnat.example.net/", "mnat.example.net", 443),
            ("https://10.0.0.1:8443", "10.0.0.1", 8443),
            ("https://[2001:db8::1]:8443", "2001:db8::1", 8443),
            ("https://[2001:db8::1]", "2001:db8::1", 443),
        ] {
            assert_eq!(split(url), Ok((host.to_string(), port)), "{url}");
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
            assert!(split(url).is_err(), "{url}");
        }
    }
}
