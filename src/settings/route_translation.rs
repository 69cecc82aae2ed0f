//! Checks of the translation of routes, `rewrite`: each one, then against all other routes.

use std::collections::HashSet;
use std::num::NonZeroU16;

use ipnet::IpNet;

use super::addresses::{ip_version, is_v4, parse_group, parse_source, shown};
use super::checker::Checker;
use super::key_path::KeyPath;
use super::raw::RawTranslation;
use crate::model::translation_conflicts::{all_merged_streams, proxy_routes, translation_loop};
use crate::model::{
    GroupPrefix, ProxyRule, RouteRule, SourcePrefix, TranslationError, TranslationRule,
};

/// Checks the translation of the route at `route`. `stream` is the source and group of the route;
/// without it, because one of the two was refused, only the translation itself is checked.
pub(super) fn check_translation(
    checker: &mut Checker<'_>,
    route: &KeyPath,
    raw: RawTranslation,
    stream: Option<(SourcePrefix, GroupPrefix)>,
    link_local: bool,
) -> Option<TranslationRule> {
    let path = route.key("rewrite");
    // After one of its keys was refused, the rest cannot be judged.
    let keys = ["source", "group", "port"];
    let mut is_good = !keys.iter().any(|key| checker.was_refused(&path.key(key)));
    let source = raw.source.and_then(|text| {
        let source = parse_source(checker, &path.key("source"), &text, None);
        is_good &= source.is_some();
        source
    });
    let group = raw.group.and_then(|text| {
        let group = parse_group(checker, &path.key("group"), &text);
        is_good &= group.is_some();
        group
    });
    let port = raw.port.and_then(|number| {
        let help = "For an unchanged port, omit the key.";
        let port = checker.named_integer(&path.key("port"), Some(number), "a UDP port", help);
        let port = port.and_then(|port| NonZeroU16::new(u16::try_from(port).ok()?));
        is_good &= port.is_some();
        port
    });
    let stream = stream.filter(|_| is_good)?;
    match TranslationRule::new(stream, (source, group), port, link_local) {
        Ok(rewrite) => Some(rewrite),
        Err(error) => {
            refuse_translation(checker, route, stream.0, source.is_some(), error);
            None
        }
    }
}

fn refuse_translation(
    checker: &mut Checker<'_>,
    route: &KeyPath,
    source: SourcePrefix,
    has_source: bool,
    error: TranslationError,
) {
    let table = route.key("rewrite");
    let is_source = |from: IpNet| from == source.net();
    let path = match &error {
        TranslationError::Empty | TranslationError::ChangesNothing => table.clone(),
        TranslationError::Length { from, .. } | TranslationError::Collapses { from, .. }
            if is_source(*from) =>
        {
            table.key("source")
        }
        TranslationError::BadSource(_) => table.key("source"),
        TranslationError::MixedFamily(..) if has_source => table.key("source"),
        _ => table.key("group"),
    };
    let key = path.last_key().to_string();
    let texts = match error {
        TranslationError::Empty => (
            "an empty table".to_string(),
            "`source`, `group` or `port`".to_string(),
            "For example: rewrite = { group = \"239.1.1.1\" }.".to_string(),
        ),
        TranslationError::ChangesNothing => (
            "a translation that changes nothing".into(),
            "another source, group or port".into(),
            "Remove it, or set a value that differs from the route's.".into(),
        ),
        TranslationError::MixedFamily(to_source, to_group) => {
            mixed_versions(source, to_source, to_group)
        }
        TranslationError::Collapses { from, to } if from.prefix_len() == 0 => (
            format!("{} in place of any source", shown(to)),
            "a route with a `source`".into(),
            format!(
                "All senders would get the same address. Set the intended sender in `source` of \
                 the route, or map each sender to an address of its own: {}.",
                any_source_example(from, to)
            ),
        ),
        TranslationError::Collapses { from, to } | TranslationError::Length { from, to } => {
            let bits = from.max_prefix_len() - from.prefix_len();
            let length = to.max_prefix_len() - bits;
            let example = IpNet::new(to.addr(), length).map(|net| net.trunc());
            (
                format!("{}, where the route has {}", shown(to), shown(from)),
                match bits {
                    0 => "a single address, as in the route".into(),
                    _ => format!("a prefix of length {length}"),
                },
                format!(
                    "Prefixes map one to one, so both need the same number of addresses{}.",
                    example.map_or(String::new(), |net| format!(": {}", shown(net)))
                ),
            )
        }
        TranslationError::BadSource(source) => (
            format!("the source {source}"),
            "an address that may be the source of routed packets".into(),
            "Receivers and routers drop packets from unspecified, loopback, link-local and \
             broadcast addresses."
                .into(),
        ),
        TranslationError::LinkLocal(group) => (
            format!("{group}, which contains link-local groups"),
            "a group that routers may forward".into(),
            "Link-local groups must not leave their link. To forward this one anyway, set \
             link_local = true in the route."
                .into(),
        ),
        TranslationError::SourceUnknown(to) => (
            format!("the source-specific group {to} for any source"),
            "a route with a `source`".into(),
            "Receivers join groups of 232.0.0.0/8 and ff3x::/32 together with the address of a \
             source (RFC 4607). Set `source` in the route."
                .into(),
        ),
    };
    if key == "source" || key == "group" {
        // Marks the value of the route that the translation does not fit.
        let related = route.key(&key);
        let label = format!("the {key} of the route");
        checker.refuse_related(&path, texts, (&related, label.as_str()));
    } else {
        checker.refuse(&path, texts.0, texts.1, texts.2);
    }
}

/// Returns a prefix with as many addresses as "any source" has, for a help text.
fn any_source_example(from: IpNet, to: IpNet) -> String {
    match (is_v4(from), is_v4(to)) {
        (true, false) => "source = \"64:ff9b::/96\"".into(),
        _ => "from a prefix in `source` of the route to a prefix of the same length".into(),
    }
}

/// Describes a new source and a new group of different IP versions.
fn mixed_versions(
    source: SourcePrefix,
    to_source: SourcePrefix,
    to_group: GroupPrefix,
) -> (String, String, String) {
    let found = format!(
        "an {} source {to_source} with the {} group {to_group}",
        ip_version(to_source.net()),
        ip_version(to_group.net())
    );
    let expected = "source and group of the same IP version".to_string();
    let bits = source.net().max_prefix_len() - source.net().prefix_len();
    let help = if is_v4(to_source.net()) == is_v4(source.net()) {
        // Only the group changes its IP version.
        match (is_v4(to_group.net()), bits) {
            (false, 0) => "Set an IPv6 source too: source = \"fd00::1\".".to_string(),
            (false, bits) => format!(
                "Set an IPv6 source too, a prefix of length {}: source = \"64:ff9b::/{}\".",
                128 - bits,
                128 - bits
            ),
            (true, 0) => "Set an IPv4 source too: source = \"10.0.0.1\".".into(),
            (true, bits @ 1..=32) => {
                format!("Set an IPv4 source too, a prefix of length {}.", 32 - bits)
            }
            (true, _) => "Set an IPv4 source too. This requires a `source` in the route, a prefix \
                          of length 96 or longer."
                .into(),
        }
    } else {
        "Set a group of the same IP version too.".into()
    };
    (found, expected, help)
}

/// Refuses routes whose packets leave as the same stream as those of another route, and routes
/// that take their own translated packets again. `indices` are the indices of the `[[route]]`s of
/// `rules`.
pub(super) fn refuse_conflicts(checker: &mut Checker<'_>, indices: &[usize], rules: &[RouteRule]) {
    let routes = KeyPath::root("route");
    let path_of = |rule: usize| {
        let route = routes.index(indices[rule]);
        match rules[rule].translation {
            Some(_) => route.key("rewrite"),
            None => route.key("group"),
        }
    };
    for (later, earlier, set) in all_merged_streams(rules) {
        let other = path_of(earlier);
        let location = checker.sources.value(&other).short();
        let texts = (
            format!("packets that leave as {set}, like those of another route"),
            "different streams on each egress interface",
            format!(
                "The other is \"{}\" in {location}. Receivers could not distinguish the two \
                 streams. Set different sources or groups, or different interfaces in `to`.",
                rules[earlier].name
            ),
        );
        checker.refuse_related(&path_of(later), texts, (&other, "the other"));
    }
    let mut reported: HashSet<usize> = HashSet::new();
    for start in 0..rules.len() {
        if reported.contains(&start) {
            continue;
        }
        let Some(cycle) = translation_loop(rules, start) else {
            continue;
        };
        reported.extend(&cycle);
        let others: Vec<_> = cycle[1..]
            .iter()
            .map(|rule| {
                let location = checker.sources.value(&path_of(*rule)).short();
                format!("\"{}\" in {location}", rules[*rule].name)
            })
            .collect();
        let texts = (
            "a translation whose packets come back to it",
            "packets that no other route returns",
            format!(
                "They return over {}. Set the senders of each side in `source`, or use other \
                 groups.",
                others.join(", then ")
            ),
        );
        match cycle.get(1) {
            Some(next) => {
                let next = path_of(*next);
                checker.refuse_related(&path_of(start), texts, (&next, "taken again here"));
            }
            None => {
                checker.refuse(&path_of(start), texts.0, texts.1, texts.2);
            }
        }
    }
}

/// Refuses routes whose translated packets come back to them over a proxy. `rules` are the rules
/// of all `[[route]]`s.
pub(super) fn refuse_proxy_cycles(
    checker: &mut Checker<'_>,
    rules: &[RouteRule],
    proxies: &[ProxyRule],
) {
    if proxies.is_empty() || rules.iter().all(|rule| rule.translation.is_none()) {
        return;
    }
    let mut all_routes = rules.to_vec();
    all_routes.extend(proxy_routes(proxies));
    let mut reported: HashSet<usize> = HashSet::new();
    for start in 0..rules.len() {
        // A cycle of routes alone was refused before.
        let has_proxy = |cycle: &Vec<usize>| cycle.iter().any(|route| *route >= rules.len());
        let cycle = translation_loop(&all_routes, start).filter(has_proxy);
        let Some(cycle) = cycle.filter(|_| !reported.contains(&start)) else {
            continue;
        };
        reported.extend(cycle.iter().filter(|way| **way < rules.len()));
        let others = cycle[1..]
            .iter()
            .map(|route| format!("\"{}\"", all_routes[*route].name));
        let others: Vec<_> = others.collect();
        checker.refuse(
            &KeyPath::root("route").index(start).key("rewrite"),
            "a translation whose packets come back to it over a proxy",
            "packets that no route or proxy returns",
            format!(
                "They return over {}. Set the senders of each side in `source`, use other groups, \
                 or set `deny_groups` or upward = false in the proxy.",
                others.join(", then ")
            ),
        );
    }
}
