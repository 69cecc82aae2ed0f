//! Checks of `[[amt.gateway]]` and `[[amt.relay]]`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::checker::Checker;
use super::key_path::KeyPath;
use super::raw::{RawAmt, RawAmtGateway, RawAmtRelay, RawStrings, RawTable};
use crate::amt::candidate::RelayWay;
use crate::amt::config::{AmtConfig, GatewayInterface, RelayConfig, RelayInterface};
use crate::model::{IfName, IfPattern, ProxyRule, RouteRule};
use crate::wire::amt::PORT;

/// The addresses of `listen` without the key.
const DEFAULT_LISTEN: [&str; 2] = ["0.0.0.0:2268", "[::]:2268"];

/// The interface that the kernel always has.
const LOOPBACK: &str = "lo";

/// The names of interfaces that were checked, and where they are.
type Names = HashMap<IfName, KeyPath>;

/// Checks the tables. Returns the interfaces that could be built; problems go to `checker`.
pub(super) fn check_amt(checker: &mut Checker<'_>, raw: RawAmt) -> AmtConfig {
    let root = KeyPath::root("amt");
    let mut names = Names::new();
    let mut config = AmtConfig::default();
    let mut through = Vec::new();
    for (n, raw) in entries(raw.gateway) {
        let path = root.key("gateway").index(n);
        let gateway = check_gateway(checker, &path, raw, &mut names);
        let interface = gateway.as_ref().and_then(|g| g.interface.clone());
        through.extend(interface.map(|name| (path.key("interface"), name)));
        config.gateways.extend(gateway);
    }
    for (n, raw) in entries(raw.relay) {
        let path = root.key("relay").index(n);
        let relay = check_relay(checker, &path, raw, &mut names);
        config.relays.extend(relay);
    }
    for (path, name) in through {
        if let Some(first) = names.get(&name) {
            let help = "Tunnels leave on an interface of the kernel.";
            let texts = (format!("\"{name}\""), "no tunnel interface", help);
            checker.refuse_related(&path, texts, (first, "the tunnel"));
        }
    }
    config
}

/// Returns a note on each route and proxy that has a tunnel interface in a list where nothing can
/// arrive or leave on it.
pub(super) fn notes(
    config: &AmtConfig,
    routes: &[RouteRule],
    proxies: &[ProxyRule],
) -> Vec<String> {
    let mut notes = Vec::new();
    let mut examine = |user: String, arriving: &[IfPattern], leaving: &[IfPattern]| {
        let is = |name: &IfName| {
            let name = name.clone();
            move |pattern: &IfPattern| pattern.as_str() == name.as_str()
        };
        for GatewayInterface { name, .. } in &config.gateways {
            if leaving.iter().any(is(name)) {
                notes.push(format!(
                    "{user}: no packet leaves on {name}, which is an AMT gateway; it belongs in \
                     `from` or `upstream`"
                ));
            }
        }
        for RelayInterface { name, .. } in &config.relays {
            if arriving.iter().any(is(name)) {
                notes.push(format!(
                    "{user}: no packet arrives on {name}, which is an AMT relay; it belongs in `to` \
                     or `downstream`"
                ));
            }
        }
    };
    for route in routes {
        let from = std::slice::from_ref(&route.from);
        examine(format!("route \"{}\"", route.name), from, &route.to);
    }
    for proxy in proxies {
        let user = format!("proxy \"{}\"", proxy.name);
        examine(user, &proxy.upstream, &proxy.downstream);
    }
    notes
}

/// Returns the entries of an array of tables with their positions, except refused ones.
fn entries<T>(raw: Option<Vec<Option<RawTable<T>>>>) -> impl Iterator<Item = (usize, T)> {
    let entries = raw.unwrap_or_default().into_iter().enumerate();
    entries.filter_map(|(n, entry)| Some((n, entry?.0)))
}

fn check_gateway(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: RawAmtGateway,
    names: &mut Names,
) -> Option<GatewayInterface> {
    let name = checker.required(raw.name, path, "name");
    let name = name.and_then(|name| check_own_name(checker, &path.key("name"), &name, names));
    let relay = checker.required(raw.relay, path, "relay");
    let relay_path = path.key("relay");
    let ways = relay.and_then(|relay| check_ways(checker, &relay_path, relay));
    let interface_path = path.key("interface");
    let interface = raw
        .interface
        .and_then(|name| check_name(checker, &interface_path, &name));
    let families = check_families(checker, &path.key("families"), raw.families);
    let limits = raw.limits.map(|table| table.0).unwrap_or_default();
    let bandwidth_path = path.key("limits").key("bandwidth");
    let bandwidth = checker.bandwidth(&bandwidth_path, limits.bandwidth);
    Some(GatewayInterface {
        bandwidth,
        name: name?,
        ways: ways?,
        interface,
        families,
    })
}

fn check_relay(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: RawAmtRelay,
    names: &mut Names,
) -> Option<RelayInterface> {
    let name = checker.required(raw.name, path, "name");
    let name = name.and_then(|name| check_own_name(checker, &path.key("name"), &name, names));
    let listen = check_listen(checker, &path.key("listen"), raw.listen);
    let advertise = check_advertise(checker, &path.key("advertise"), raw.advertise);
    let query_interval =
        checker.duration_or_default(&path.key("query_interval"), raw.query_interval);
    let mtu = checker.integer_or_default(&path.key("mtu"), raw.mtu, "");
    let limits = raw.limits.map(|table| table.0).unwrap_or_default();
    let bandwidth_path = path.key("limits").key("bandwidth");
    let bandwidth = checker.bandwidth(&bandwidth_path, limits.bandwidth);
    let mut limit =
        |key: &str, number| checker.integer_or_default(&path.key("limits").key(key), number, "");
    let relay = RelayConfig {
        advertise,
        query_interval,
        gateways: limit("gateways", limits.gateways) as usize,
        groups_per_gateway: limit("groups_per_gateway", limits.groups_per_gateway) as usize,
        answers_per_prefix: limit("answers_per_prefix", limits.answers_per_prefix) as u32,
        answers: limit("answers", limits.answers) as u32,
    };
    Some(RelayInterface {
        bandwidth,
        name: name?,
        listen,
        mtu: mtu as u32,
        fragment: raw.fragment.unwrap_or(true),
        relay,
    })
}

/// Checks the name of a tunnel interface, which no other one may have.
fn check_own_name(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    text: &str,
    names: &mut Names,
) -> Option<IfName> {
    let name = check_name(checker, path, text)?;
    if text == LOOPBACK {
        let expected = "a name that the kernel does not use";
        checker.refuse(path, format!("{text:?}"), expected, "Choose another name.");
        return None;
    }
    if let Some(first) = names.get(&name) {
        let found = format!("\"{name}\" for the second time");
        let texts = (
            found,
            "a name for each tunnel interface",
            "Choose another name.",
        );
        checker.refuse_related(path, texts, (first, "the first"));
        return None;
    }
    names.insert(name.clone(), path.clone());
    Some(name)
}

/// Checks the name of one interface, which may not be a pattern.
fn check_name(checker: &mut Checker<'_>, path: &KeyPath, text: &str) -> Option<IfName> {
    let pattern = checker.pattern(path, text)?;
    let name = text.parse().ok();
    if pattern.is_pattern() || name.is_none() {
        let expected = "the name of one interface";
        checker.refuse(
            path,
            format!("{text:?}"),
            expected,
            "Patterns are not supported here.",
        );
        return None;
    }
    name
}

fn check_ways(checker: &mut Checker<'_>, path: &KeyPath, raw: RawStrings) -> Option<Vec<RelayWay>> {
    let texts = match raw {
        RawStrings::One(text) => vec![(path.clone(), text)],
        RawStrings::Many(texts) => {
            let texts = texts.into_iter().enumerate();
            texts
                .filter_map(|(n, text)| Some((path.index(n), text?)))
                .collect()
        }
    };
    if texts.is_empty() {
        checker.refuse(
            path,
            "an empty list",
            "at least one way",
            "For example: \"driad\".",
        );
        return None;
    }
    let mut ways = Some(Vec::new());
    for (path, text) in texts {
        let parsed = parse_way(&text);
        if parsed.is_none() {
            let expected =
                "\"auto\", \"driad\", \"dns-sd\", \"anycast\", a host name or an address";
            let help = "With a port: \"192.0.2.1:2268\", \"[2001:db8::1]:2268\", \"relay.example.net:2268\".";
            checker.refuse(&path, format!("{text:?}"), expected, help);
        }
        match (&mut ways, parsed) {
            (Some(ways), Some(parsed)) => ways.extend(parsed),
            _ => ways = None,
        }
    }
    ways
}

/// Returns the ways that a text names.
fn parse_way(text: &str) -> Option<Vec<RelayWay>> {
    Some(match text {
        "auto" => RelayWay::DEFAULT_ORDER.to_vec(),
        "driad" => vec![RelayWay::Driad],
        "dns-sd" => vec![RelayWay::DnsSd],
        "anycast" => vec![RelayWay::Anycast],
        other => vec![parse_address(other)?],
    })
}

fn parse_address(text: &str) -> Option<RelayWay> {
    let is_usable = |ip: IpAddr| !ip.is_multicast() && !ip.is_unspecified();
    if let Ok(ip) = text.parse::<IpAddr>() {
        return is_usable(ip).then(|| RelayWay::Address(SocketAddr::new(ip, PORT)));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        let is_valid = is_usable(address.ip()) && address.port() > 0;
        return is_valid.then_some(RelayWay::Address(address));
    }
    let (host, port) = match text.split_once(':') {
        None => (text, PORT),
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0)?),
    };
    let is_label = |label: &str| {
        let is_valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&label.len()) && label.chars().all(is_valid)
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    // An address with a typing error is no host name: no top-level domain is a number.
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_name = name.len() <= 253
        && name.split('.').all(is_label)
        && !last.chars().all(|c| c.is_ascii_digit());
    is_name.then(|| RelayWay::Host(host.into(), port))
}

fn check_families(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: Option<Vec<Option<String>>>,
) -> [bool; 2] {
    let Some(raw) = raw else {
        return [true; 2];
    };
    let mut families = [false; 2];
    for (n, text) in raw.into_iter().enumerate() {
        match text.as_deref() {
            Some("ipv4") => families[0] = true,
            Some("ipv6") => families[1] = true,
            Some(other) => {
                let expected = "\"ipv4\" or \"ipv6\"";
                checker.refuse(&path.index(n), format!("{other:?}"), expected, "");
            }
            None => {}
        }
    }
    if families == [false; 2] && checker.has_no_problems() {
        let help = "Without the key, streams of both versions are requested.";
        checker.refuse(path, "an empty list", "\"ipv4\", \"ipv6\", or both", help);
    }
    families
}

fn check_listen(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: Option<Vec<Option<String>>>,
) -> Vec<SocketAddr> {
    let Some(raw) = raw else {
        let parsed = DEFAULT_LISTEN.map(|text| text.parse().ok());
        return parsed.into_iter().flatten().collect();
    };
    if raw.is_empty() {
        let help = "Without the key, gateways are served on all addresses.";
        checker.refuse(path, "an empty list", "at least one address", help);
    }
    let mut listen = Vec::new();
    for (n, text) in raw.into_iter().enumerate() {
        let Some(text) = text else { continue };
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() > 0 && !address.ip().is_multicast() => {
                listen.push(address);
            }
            _ => {
                let help = "For example: \"0.0.0.0:2268\" or \"[2001:db8::1]:2268\".";
                let expected = "an address and port";
                checker.refuse(&path.index(n), format!("{text:?}"), expected, help);
            }
        }
    }
    listen
}

fn check_advertise(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: Option<Vec<Option<String>>>,
) -> [Option<IpAddr>; 2] {
    let mut advertise = [None; 2];
    for (n, text) in raw.into_iter().flatten().enumerate() {
        let Some(text) = text else { continue };
        let parsed = text.parse::<IpAddr>().ok();
        let usable = parsed.filter(|ip| !ip.is_multicast() && !ip.is_unspecified());
        let Some(ip) = usable else {
            let expected = "an address of this host, without port";
            checker.refuse(&path.index(n), format!("{text:?}"), expected, "");
            continue;
        };
        let of_version = &mut advertise[usize::from(ip.is_ipv6())];
        if of_version.replace(ip).is_some() {
            let expected = "one address for each IP version";
            checker.refuse(
                &path.index(n),
                format!("{text:?}"),
                expected,
                "Remove one of them.",
            );
        }
    }
    advertise
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_words_names_and_addresses() {
        let address = |text: &str| RelayWay::Address(text.parse().unwrap());
        let host = |name: &str, port| RelayWay::Host(name.into(), port);
        for (text, way) in [
            ("driad", RelayWay::Driad),
            ("192.0.2.1", address("192.0.2.1:2268")),
            ("192.0.2.1:5000", address("192.0.2.1:5000")),
            ("2001:db8::1", address("[2001:db8::1]:2268")),
            ("[2001:db8::1]:5000", address("[2001:db8::1]:5000")),
            ("relay.example.net", host("relay.example.net", 2268)),
            ("relay.example.net:5000", host("relay.example.net", 5000)),
        ] {
            assert_eq!(parse_way(text), Some(vec![way]), "{text}");
        }
        assert_eq!(parse_way("auto").unwrap().len(), 3);
        for bad in [
            "",
            "192.0.2",
            "192.0.2.1:0",
            "224.0.0.1",
            "::",
            "a b",
            "relay:x",
            "https://x",
        ] {
            assert_eq!(parse_way(bad), None, "{bad:?}");
        }
    }
}
