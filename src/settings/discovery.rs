//! Checks of `[[discovery]]`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::checker::Checker;
use super::key_path::KeyPath;
use super::raw::{RawDiscovery, RawDiscoveryLimits, RawOfferRule, RawTable};
use super::words::did_you_mean;
use crate::discovery::config::{AddressMode, AnswerMode, DiscoveryLimits, DiscoveryRule};
use crate::discovery::offer::{OfferPolicy, OfferRule};
use crate::discovery::protocol::{DiscoveryProtocol, MAX_DDS_DOMAIN};
use crate::model::{Group, GroupPrefix, IfPattern, MacAddress, ProxyRule, RouteRule, TtlPolicy};

/// Checks all tables. Returns those that could be built; problems go to `checker`.
pub(super) fn check_discovery(
    checker: &mut Checker<'_>,
    raw: impl Iterator<Item = Option<RawDiscovery>>,
) -> Vec<DiscoveryRule> {
    let mut rules: Vec<DiscoveryRule> = Vec::new();
    for (index, raw) in raw.enumerate() {
        let Some(raw) = raw else { continue };
        let path = KeyPath::root("discovery").index(index);
        let Some(rule) = check_rule(checker, &path, raw) else {
            continue;
        };
        if rules.iter().any(|other| other.name == rule.name) {
            let found = format!("the name \"{}\" for the second time", rule.name);
            let help = "Set one: name = \"printers\".";
            checker.refuse(
                &path,
                found,
                "a different name for each [[discovery]]",
                help,
            );
        }
        rules.push(rule);
    }
    rules
}

fn check_rule(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: RawDiscovery,
) -> Option<DiscoveryRule> {
    let name = checker.metrics_name(&path.key("name"), raw.name.as_deref(), "eth0, br0");
    let links = check_links(checker, path, (raw.between, raw.from, raw.to));
    let protocols = checker.required(raw.protocols, path, "protocols");
    let protocols_path = path.key("protocols");
    let protocols = protocols.and_then(|list| check_protocols(checker, &protocols_path, list));
    let answers = [
        ("auto", AnswerMode::Auto),
        ("relay", AnswerMode::Relay),
        ("direct", AnswerMode::Direct),
    ];
    let answers = checker.word(&path.key("answers"), raw.answers, &answers);
    let addresses = [
        ("rewrite", AddressMode::Rewrite),
        ("keep", AddressMode::Keep),
    ];
    let addresses = checker.word(&path.key("addresses"), raw.addresses, &addresses);
    let policy = OfferPolicy {
        allow: check_offers(checker, &path.key("allow"), raw.allow),
        deny: check_offers(checker, &path.key("deny"), raw.deny),
    };
    let limits = check_limits(checker, &path.key("limits"), raw.limits);
    let [between, from, to] = links?;
    let default_name = || {
        let mut names: Vec<&str> = Vec::new();
        for pattern in between
            .iter()
            .chain(&from)
            .chain(&to)
            .map(IfPattern::as_str)
        {
            if !names.contains(&pattern) {
                names.push(pattern);
            }
        }
        names.join(", ")
    };
    Some(DiscoveryRule {
        name: name.map_or_else(default_name, |name| name.to_string()),
        between,
        from,
        to,
        protocols: protocols?,
        policy,
        answers,
        addresses,
        limits,
    })
}

type RawNames = Option<Vec<Option<String>>>;

/// Returns the names of `between`, `from` and `to`.
fn check_links(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    (between, from, to): (RawNames, RawNames, RawNames),
) -> Option<[Vec<IfPattern>; 3]> {
    let keys = ["between", "from", "to"];
    let was_refused = keys.iter().any(|key| checker.was_refused(&path.key(key)));
    let is_complete = from.is_some() == to.is_some() && (between.is_some() || from.is_some());
    if !is_complete && !was_refused {
        let found = match (&between, &from, &to) {
            (None, None, None) => "neither `between`, nor `from` and `to`",
            (_, Some(_), _) => "`from` without `to`",
            _ => "`to` without `from`",
        };
        let expected = "`between`, or `from` and `to`";
        let help = "Both directions: between = [\"eth0\", \"br0\"]. What devices on eth0 offer, \
                    to askers on br0: from = [\"eth0\"], to = [\"br0\"].";
        checker.refuse(path, found, expected, help);
        return None;
    }
    let mut names = |key: &str, list: RawNames| match list {
        None => Some(Vec::new()),
        Some(list) => {
            let help = "List interfaces or patterns. They need not exist yet.";
            checker.patterns(&path.key(key), list, help, |_, _, _| true)
        }
    };
    let lists = [
        names("between", between),
        names("from", from),
        names("to", to),
    ];
    let [Some(between), Some(from), Some(to)] = lists else {
        return None;
    };
    if matches!(between.as_slice(), [name] if name.is_single()) {
        let expected = "at least two interfaces, or a pattern";
        let help = "Messages cross from one interface to another.";
        checker.refuse(&path.key("between"), "one interface", expected, help);
        return None;
    }
    Some([between, from, to])
}

fn check_protocols(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: Vec<Option<String>>,
) -> Option<Vec<DiscoveryProtocol>> {
    if raw.is_empty() {
        let help = "For example: protocols = [\"mdns\", \"ssdp\"].";
        checker.refuse(path, "an empty list", "at least one protocol", help);
        return None;
    }
    let mut protocols = Some(Vec::new());
    for (n, text) in raw.into_iter().enumerate() {
        let parsed = text.as_deref().map(str::parse::<DiscoveryProtocol>);
        match (parsed, &mut protocols) {
            (Some(Ok(protocol)), Some(list)) => {
                if !list.contains(&protocol) {
                    list.push(protocol);
                }
            }
            (Some(Err(_)), _) => {
                let known = DiscoveryProtocol::NAMED.map(|(name, _)| format!("\"{name}\""));
                let expected = format!(
                    "{}, a group with port such as \"239.1.2.3:5000\", or \"broadcast:PORT\"",
                    known.join(", ")
                );
                let text = text.unwrap_or_default();
                let help = protocol_help(&text);
                checker.refuse(&path.index(n), format!("{text:?}"), expected, help);
                protocols = None;
            }
            _ => protocols = None,
        }
    }
    protocols
}

/// Returns what was probably meant by a text that names no protocol.
fn protocol_help(text: &str) -> String {
    let names = DiscoveryProtocol::NAMED.map(|(name, _)| name);
    if let Some(help) = did_you_mean(text, names) {
        return help;
    }
    let is_group = |text: &str| text.parse().is_ok_and(|ip: IpAddr| ip.is_multicast());
    match text.split_once(':') {
        Some(("dds", _)) => format!("A domain of DDS is 0 to {MAX_DDS_DOMAIN}: \"dds:1\"."),
        Some(("broadcast", _)) => "A UDP port is 1 to 65535: \"broadcast:9\".".into(),
        Some((name, _)) if names.contains(&name) => {
            format!("The port is that of the protocol: {name:?}.")
        }
        None if is_group(text) => format!("Add the UDP port: \"{text}:5000\"."),
        _ if is_group(text) => format!("Add the UDP port: \"[{text}]:5000\"."),
        _ => String::new(),
    }
}

fn check_offers(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: Option<Vec<Option<RawTable<RawOfferRule>>>>,
) -> Vec<OfferRule> {
    let mut rules = Vec::new();
    for (n, raw) in raw.into_iter().flatten().enumerate() {
        let Some(RawTable(raw)) = raw else { continue };
        let path = path.index(n);
        let device = raw.device.and_then(|text| {
            let parsed = text.parse::<IpNet>().ok();
            let parsed = parsed.or_else(|| text.parse().ok().map(|ip: std::net::IpAddr| ip.into()));
            if parsed.is_none() {
                let expected = "an address or prefix of devices";
                checker.refuse(&path.key("device"), format!("{text:?}"), expected, "");
            }
            parsed
        });
        let mac = raw.mac.and_then(|text| {
            let parsed = parse_mac(&text);
            if parsed.is_none() {
                let expected = "an address such as \"02:00:00:00:00:07\"";
                checker.refuse(&path.key("mac"), format!("{text:?}"), expected, "");
            }
            parsed
        });
        let mut link = |key: &str, name: Option<String>| {
            name.and_then(|name| checker.pattern(&path.key(key), &name))
        };
        let rule = OfferRule {
            from: link("from", raw.from),
            to: link("to", raw.to),
            service: raw.service,
            instance: raw.instance,
            name: raw.name,
            device,
            mac,
            st: raw.st,
            types: raw.types,
        };
        if rule == OfferRule::default() && checker.has_no_problems() {
            let expected = "at least one key";
            let help =
                "An empty rule would match everything. For example: { service = \"_ipp._tcp\" }.";
            checker.refuse(&path, "an empty table", expected, help);
        }
        rules.push(rule);
    }
    rules
}

fn parse_mac(text: &str) -> Option<MacAddress> {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let is_octet = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
    if !parts.iter().all(is_octet) {
        return None;
    }
    let octets: Option<Vec<u8>> = parts
        .iter()
        .map(|p| u8::from_str_radix(p, 16).ok())
        .collect();
    MacAddress::from_slice(&octets?)
}

fn check_limits(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: Option<RawTable<RawDiscoveryLimits>>,
) -> DiscoveryLimits {
    let raw = raw.map(|table| table.0).unwrap_or_default();
    let mut limit = |name: &str, number| checker.integer_or_default(&path.key(name), number, "");
    DiscoveryLimits {
        questions: limit("questions", raw.questions) as usize,
        questions_per_asker: limit("questions_per_asker", raw.questions_per_asker) as usize,
        messages_per_second: limit("messages_per_second", raw.messages_per_second) as u32,
        offers: limit("offers", raw.offers) as usize,
    }
}

/// Returns a note for each route and proxy that does what `[[discovery]]` does better, or does it
/// twice.
pub(super) fn notes(
    rules: &[DiscoveryRule],
    routes: &[RouteRule],
    proxies: &[ProxyRule],
) -> Vec<String> {
    let mdns = DiscoveryProtocol::Mdns.groups();
    let is_mdns = |group: GroupPrefix| mdns.iter().any(|ip| is_only(group, *ip));
    let remedy = "[[discovery]] with protocols = [\"mdns\"] does it: see docs/discovery.md";
    let mut notes = Vec::new();
    for route in routes.iter().filter(|route| is_mdns(route.group)) {
        let name = &route.name;
        if matches!(route.ttl, TtlPolicy::Set(ttl) if ttl != 255)
            || route.ttl == TtlPolicy::Decrement
        {
            notes.push(format!(
                "route \"{name}\": mDNS leaves with another TTL than 255, so some hosts ignore it \
                 (RFC 6762 section 11); {remedy}"
            ));
        }
        let returns = |other: &RouteRule| {
            is_mdns(other.group)
                && route.to.iter().any(|to| to.intersects(&other.from))
                && other.to.iter().any(|to| to.intersects(&route.from))
        };
        if !routes.iter().any(returns) {
            notes.push(format!(
                "route \"{name}\": mDNS crosses in one direction only, so questions or answers do \
                 not arrive; {remedy}"
            ));
        }
    }
    for proxy in proxies {
        if proxy.groups.iter().any(|group| is_mdns(*group)) {
            notes.push(format!(
                "proxy \"{}\": a proxy does not forward mDNS, because no host joins link-local \
                 groups for other links; {remedy}",
                proxy.name
            ));
        }
    }
    for rule in rules {
        let groups: Vec<_> = rule.protocols.iter().flat_map(|p| p.groups()).collect();
        let names = |pattern: &IfPattern| rule.patterns().any(|other| other.intersects(pattern));
        let is_same = |group: GroupPrefix| groups.iter().any(|ip| group.net().contains(ip));
        let route = routes
            .iter()
            .find(|route| is_same(route.group) && names(&route.from) && route.to.iter().any(names));
        let proxy = proxies.iter().find(|proxy| {
            proxy.upward
                && proxy.upstream.iter().any(names)
                && proxy.downstream.iter().any(names)
                && groups
                    .iter()
                    .flat_map(|ip| Group::new(*ip))
                    .any(|group| !group.is_link_local() && proxy.accepts_group(group))
        });
        let other = route.map(|route| format!("route \"{}\"", route.name));
        let other = other.or_else(|| proxy.map(|proxy| format!("proxy \"{}\"", proxy.name)));
        if let Some(other) = other {
            notes.push(format!(
                "discovery \"{}\": {other} forwards messages of the same group between the same \
                 interfaces, so they arrive twice; exclude the group there (deny_groups in a proxy)",
                rule.name
            ));
        }
    }
    notes
}

/// Returns whether a prefix is one group, or the link-local range around it.
fn is_only(group: GroupPrefix, ip: IpAddr) -> bool {
    group.net().contains(&ip) && group.is_link_local()
}
