//! Checks of groups, sources and their prefixes.

use ipnet::IpNet;

use super::checker::Checker;
use super::key_path::KeyPath;
use super::raw::find_key;
use crate::model::{AddrError, GroupPrefix, SourcePrefix};

/// Checks a multicast group or prefix.
pub(super) fn parse_group(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    text: &str,
) -> Option<GroupPrefix> {
    let mut error = match text.parse::<GroupPrefix>() {
        Ok(group) => return Some(group),
        Err(error) => error,
    };
    if let AddrError::HostBits { given } = error {
        // A unicast address is reported as such, even where it also has host bits.
        error = GroupPrefix::new(given).err()?;
    }
    let expected = "a multicast group or prefix";
    let (found, help) = match error {
        AddrError::NotMulticast(net) if net.addr().is_multicast() => (
            format!("{net}, which contains unicast addresses"),
            "The widest multicast prefixes are 224.0.0.0/4 and ff00::/8.".to_string(),
        ),
        AddrError::NotMulticast(net) => (
            format!("{}, which is unicast", shown(net)),
            format!(
                "Groups are in 224.0.0.0/4 or ff00::/8.{}",
                key_for(path, ("group", "source"), "The address of a sender")
            ),
        ),
        other => address_problem(text, &other),
    };
    checker.refuse(path, found, expected, help);
    None
}

/// Checks a unicast address or prefix, which must have the IP version of `group`.
pub(super) fn parse_source(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    text: &str,
    group: Option<GroupPrefix>,
) -> Option<SourcePrefix> {
    let mut expected = "the address or prefix of a sender".to_string();
    let (found, help) = match text.parse::<SourcePrefix>() {
        Ok(source) => match group {
            Some(group) if is_v4(group.net()) != is_v4(source.net()) => {
                expected = format!("an {} source, like the group", ip_version(group.net()));
                let source = source.net();
                (
                    format!("the {} source {}", ip_version(source), shown(source)),
                    format!("The group is {group}. Write one route for each IP version."),
                )
            }
            _ if source.net().addr().is_unspecified() && !source.is_any() => (
                format!("{text:?}, which no sender has"),
                "For any source, omit the key `source`.".to_string(),
            ),
            _ => return Some(source),
        },
        Err(AddrError::HostBits { given }) if given.addr().is_multicast() => multicast(path, given),
        Err(AddrError::NotUnicast(net)) => multicast(path, net),
        Err(_) if matches!(text.trim(), "*" | "any") => (
            format!("{text:?}"),
            "For any source, omit the key `source`.".to_string(),
        ),
        Err(other) => address_problem(text, &other),
    };
    checker.refuse(path, found, expected, help);
    None
}

fn multicast(path: &KeyPath, net: IpNet) -> (String, String) {
    (
        format!("{}, which is multicast", shown(net)),
        format!(
            "A source is the address of a sender.{}",
            key_for(path, ("source", "group"), "The group")
        ),
    )
}

/// Returns the sentence that `what` belongs in another key, if the table of `path` has it: its name
/// is that of `path` with the second word in place of the first. `deny_groups` leads to
/// `deny_sources`.
fn key_for(path: &KeyPath, (word, other): (&str, &str), what: &str) -> String {
    let table = match path.ends_with_index() {
        true => path.parent().parent(),
        false => path.parent(),
    };
    let key = path.last_key().replace(word, other);
    // Sources that a route excepts have no such key: its groups are in `group`.
    let key = key.strip_prefix("except_").map_or(&*key, |_| other);
    match find_key(&table.key(key)) {
        Some(_) => format!(" {what} belongs in `{key}`."),
        None => String::new(),
    }
}

/// Returns the texts `found` and `help` for a text that is not an address or prefix.
fn address_problem(text: &str, error: &AddrError) -> (String, String) {
    if let AddrError::HostBits { given } = error {
        let prefix = given.trunc();
        let help = format!(
            "Write {prefix}, or {} for the single address.",
            given.addr()
        );
        let found = format!("{given}, with bits set beyond its prefix length");
        return (found, help);
    }
    if let AddrError::WithPort(address) = error {
        let help = format!(
            "Write {} without the port: packets of all ports are taken.",
            address.ip()
        );
        return (format!("{text:?}"), help);
    }
    let help = match text.split_once('/') {
        Some((addr, length)) => match (addr.trim().parse::<std::net::IpAddr>(), length) {
            (Ok(addr), length) if length.parse::<u32>().is_ok() => {
                let longest = if addr.is_ipv4() { 32 } else { 128 };
                format!(
                    "The length of an {} prefix is 0 to {longest}.",
                    ip_version(addr.into())
                )
            }
            (Ok(_), _) => "The prefix length is a number: 225.1.2.0/24.".into(),
            _ => "Write an address as 225.1.2.3 or ff3e::1, a prefix as 225.1.2.0/24.".into(),
        },
        None if matches!(text.trim(), "*" | "any") => {
            "For all groups, write 224.0.0.0/4 or ff00::/8.".into()
        }
        None if text.contains('*') => "Write a range as a prefix: 225.1.2.0/24.".into(),
        None if text.contains('-') => "Write a range as prefixes: 225.1.2.0/24.".into(),
        None => "Write an address as 225.1.2.3 or ff3e::1. Names are not resolved.".into(),
    };
    (format!("{text:?}"), help)
}

pub(super) fn is_v4(net: IpNet) -> bool {
    net.addr().is_ipv4()
}

pub(super) fn ip_version(net: IpNet) -> &'static str {
    if is_v4(net) { "IPv4" } else { "IPv6" }
}

/// Formats a prefix of full length as an address.
pub(super) fn shown(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}
