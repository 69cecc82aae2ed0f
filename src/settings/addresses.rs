//! Addresses and prefixes as typed, and what is wrong with them.

use ipnet::IpNet;

use super::checked::Checker;
use super::keys::KeyPath;
use crate::model::{AddrError, GroupPrefix, SourcePrefix};

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
        // That it is no group weighs more than a bit too many.
        error = GroupPrefix::new(given).err()?;
    }
    let expected = "a multicast group or prefix";
    let (found, help) = match error {
        AddrError::NotMulticast(net) if net.addr().is_multicast() => (
            format!("{net}, which is wider than all of multicast"),
            "The widest prefixes are 224.0.0.0/4 and ff00::/8.".to_string(),
        ),
        AddrError::NotMulticast(net) => (
            format!("{}, which is unicast", shown(net)),
            "Groups are in 224.0.0.0/4 or ff00::/8; a sender's address belongs in `source`.".into(),
        ),
        other => address_fault(text, &other),
    };
    checker.wrong(path, found, expected, help);
    None
}

pub(super) fn parse_source(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    text: &str,
    group: Option<GroupPrefix>,
) -> Option<SourcePrefix> {
    let mut expected = "a sender's address or prefix".to_string();
    let (found, help) = match text.parse::<SourcePrefix>() {
        Ok(source) => match group {
            Some(group) if is_v4(group.net()) != is_v4(source.net()) => {
                expected = format!("an {} source, as the group is", version(group.net()));
                (
                    format!(
                        "the {} source {}",
                        version(source.net()),
                        shown(source.net())
                    ),
                    format!("The group is {group}; write one route for each IP version."),
                )
            }
            _ => return Some(source),
        },
        Err(AddrError::HostBits { given }) if given.addr().is_multicast() => multicast(given),
        Err(AddrError::NotUnicast(net)) => multicast(net),
        Err(_) if text.trim() == "*" => (
            "\"*\"".into(),
            "For any source leave `source` out.".to_string(),
        ),
        Err(other) => address_fault(text, &other),
    };
    checker.wrong(path, found, expected, help);
    None
}

fn multicast(net: IpNet) -> (String, String) {
    (
        format!("{}, which is multicast", shown(net)),
        "A source is who sends; the group belongs in `group`.".into(),
    )
}

/// What is wrong with an address in general: found, help.
fn address_fault(text: &str, error: &AddrError) -> (String, String) {
    if let AddrError::HostBits { given } = error {
        let wide = given.trunc();
        let help = format!("Write {wide}, or {} for the one address.", given.addr());
        return (
            format!("{given}, with bits set beyond its prefix length"),
            help,
        );
    }
    let help = match text.split_once('/') {
        Some((addr, length)) => match (addr.trim().parse::<std::net::IpAddr>(), length) {
            (Ok(addr), length) if length.parse::<u32>().is_ok() => {
                let most = if addr.is_ipv4() { 32 } else { 128 };
                format!(
                    "The length of an {} prefix is 0 to {most}.",
                    version(addr.into())
                )
            }
            (Ok(_), _) => "The prefix length is a number: 225.1.2.0/24.".into(),
            _ => "An address is written 225.1.2.3 or ff3e::1, a prefix 225.1.2.0/24.".into(),
        },
        None if text.contains('*') => "A range is written as a prefix: 225.1.2.0/24.".into(),
        None if text.contains('-') => "A range is written as prefixes: 225.1.2.0/24.".into(),
        None => "An address is written 225.1.2.3 or ff3e::1; names are not looked up.".into(),
    };
    (format!("{text:?}"), help)
}

pub(super) fn is_v4(net: IpNet) -> bool {
    net.addr().is_ipv4()
}

pub(super) fn version(net: IpNet) -> &'static str {
    if is_v4(net) { "IPv4" } else { "IPv6" }
}

/// A prefix of full length as the address it is.
pub(super) fn shown(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}
