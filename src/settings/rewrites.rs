//! What routes rewrite: each by itself, then against all other routes.

use std::collections::HashSet;
use std::num::NonZeroU16;

use ipnet::IpNet;

use super::addresses::{is_v4, parse_group, parse_source, shown, version};
use super::checked::Checker;
use super::keys::KeyPath;
use super::written::WrittenRewrite;
use crate::model::translation_conflicts::{all_merged, feeds_itself, proxy_ways};
use crate::model::{
    GroupPrefix, ProxyRule, RouteRule, SourcePrefix, TranslationError, TranslationRule,
};

/// Checks the `rewrite` of the route at `route`. Without `stream`, its source and group, of
/// which a fault was noted before, only what stands by itself can be checked.
pub(super) fn one(
    checker: &mut Checker<'_>,
    route: &KeyPath,
    written: WrittenRewrite,
    stream: Option<(SourcePrefix, GroupPrefix)>,
    link_local: bool,
) -> Option<TranslationRule> {
    let path = route.key("rewrite");
    // One that is wrong was said to be; what is left cannot be judged.
    let keys = ["source", "group", "port"];
    let mut all_right = !keys.iter().any(|key| checker.is_broken(&path.key(key)));
    let source = written.source.and_then(|text| {
        let source = parse_source(checker, &path.key("source"), &text, None);
        all_right &= source.is_some();
        source
    });
    let group = written.group.and_then(|text| {
        let group = parse_group(checker, &path.key("group"), &text);
        all_right &= group.is_some();
        group
    });
    let port = written.port.and_then(|number| {
        let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
        if port.is_none() {
            let expected = "a UDP port from 1 to 65535";
            let help = "To leave the port as it is, leave `port` out.";
            checker.wrong(&path.key("port"), number.to_string(), expected, help);
            all_right = false;
        }
        port
    });
    let stream = stream.filter(|_| all_right)?;
    match TranslationRule::new(stream, (source, group), port, link_local) {
        Ok(rewrite) => Some(rewrite),
        Err(error) => {
            refuse(checker, route, stream.0, source.is_some(), error);
            None
        }
    }
}

fn refuse(
    checker: &mut Checker<'_>,
    route: &KeyPath,
    source: SourcePrefix,
    names_source: bool,
    error: TranslationError,
) {
    let path = route.key("rewrite");
    let of_source = |from: IpNet| from == source.net();
    let place = match &error {
        TranslationError::Empty | TranslationError::ChangesNothing => path.clone(),
        TranslationError::Length { from, .. } | TranslationError::Collapses { from, .. }
            if of_source(*from) =>
        {
            path.key("source")
        }
        TranslationError::BadSource(_) => path.key("source"),
        TranslationError::MixedFamily(..) if names_source => path.key("source"),
        _ => path.key("group"),
    };
    let also = place.last_key().to_string();
    let (found, expected, help) = match error {
        TranslationError::Empty => (
            "an empty rewrite".to_string(),
            "`source`, `group` or `port`".to_string(),
            "For example: rewrite = { group = \"239.1.1.1\" }.".to_string(),
        ),
        TranslationError::ChangesNothing => (
            "a rewrite into what is there already".into(),
            "another source, group or port".into(),
            "Remove it, or name what shall be different.".into(),
        ),
        TranslationError::MixedFamily(to_source, to_group) => mixed(source, to_source, to_group),
        TranslationError::Collapses { from, to } if from.prefix_len() == 0 => (
            format!("{} in place of any source", shown(to)),
            "a route that names its sender".into(),
            format!(
                "All senders would become one. Write the one meant into `source` of the route, \
                 or map each to its own: {}.",
                wide_example(from, to)
            ),
        ),
        TranslationError::Collapses { from, to } | TranslationError::Length { from, to } => {
            let bits = from.max_prefix_len() - from.prefix_len();
            let length = to.max_prefix_len() - bits;
            let example = IpNet::new(to.addr(), length).map(|net| net.trunc());
            (
                format!("{}, where the route has {}", shown(to), shown(from)),
                match bits {
                    0 => "a single address, as the route has".into(),
                    _ => format!("a prefix of length {length}"),
                },
                format!(
                    "Prefixes map one to one, so both need as many addresses{}.",
                    example.map_or(String::new(), |net| format!(": {}", shown(net)))
                ),
            )
        }
        TranslationError::BadSource(source) => (
            format!("the source {source}"),
            "an address that routed packets may come from".into(),
            "Unspecified, loopback, link-local and broadcast addresses are none: receivers and \
             routers drop such packets."
                .into(),
        ),
        TranslationError::LinkLocal(group) => (
            format!("{group}, which holds link-local groups"),
            "a group that routers may forward".into(),
            "Such groups are not meant to leave their link. If this one shall, say so in the \
             route: link_local = true."
                .into(),
        ),
        TranslationError::SourceUnknown(to) => (
            format!("the source-specific group {to} for any source"),
            "a route that names its sender".into(),
            "Receivers of 232.0.0.0/8 and ff3x::/32 join a source by its address (RFC 4607): \
             write it into `source` of the route."
                .into(),
        ),
    };
    // Where the route says what the rewrite does not fit.
    let told = match also.as_str() {
        "source" => route.key("source"),
        _ => route.key("group"),
    };
    let span = checker.sources.span(&told);
    let problem = checker.wrong(&place, found, expected, help);
    if also == "source" || also == "group" {
        problem.also = span.map(|span| (span, format!("the {also} of the route")));
    }
}

/// A prefix that holds as many addresses as any source does, where there is one.
fn wide_example(from: IpNet, to: IpNet) -> String {
    match (is_v4(from), is_v4(to)) {
        (true, false) => "source = \"64:ff9b::/96\"".into(),
        _ => "a prefix of senders to one of the same length".into(),
    }
}

fn mixed(
    source: SourcePrefix,
    to_source: SourcePrefix,
    to_group: GroupPrefix,
) -> (String, String, String) {
    let found = format!(
        "an {} source {to_source} with the {} group {to_group}",
        version(to_source.net()),
        version(to_group.net())
    );
    let expected = "source and group of one IP version".to_string();
    let bits = source.net().max_prefix_len() - source.net().prefix_len();
    let help = if is_v4(to_source.net()) == is_v4(source.net()) {
        // The group changes its version, the source does not.
        match (is_v4(to_group.net()), bits) {
            (false, 0) => "Give packets an IPv6 source too: source = \"fd00::1\".".to_string(),
            (false, bits) => format!(
                "Give packets an IPv6 source too, a prefix of length {}: source = \
                 \"64:ff9b::/{}\".",
                128 - bits,
                128 - bits
            ),
            (true, 0) => "Give packets an IPv4 source too: source = \"10.0.0.1\".".into(),
            (true, bits @ 1..=32) => format!(
                "Give packets an IPv4 source too, a prefix of length {}.",
                32 - bits
            ),
            (true, _) => "Give packets an IPv4 source too; for that the route's own `source` has \
                          to be named, a prefix of length 96 or longer."
                .into(),
        }
    } else {
        "Give packets a group of that version too.".into()
    };
    (found, expected, help)
}

/// Refuses routes that would make one stream of two, and those that feed themselves. `indices`
/// are the numbers of the `[[route]]`s that `rules` came from.
pub(super) fn refuse_conflicts(checker: &mut Checker<'_>, indices: &[usize], rules: &[RouteRule]) {
    let routes = KeyPath::root("route");
    let place = |at: usize| {
        let route = routes.index(indices[at]);
        match rules[at].rewrite {
            Some(_) => route.key("rewrite"),
            None => route.key("group"),
        }
    };
    for (later, earlier, set) in all_merged(rules) {
        let other = place(earlier);
        let at = checker.sources.value(&other).short();
        let span = checker.sources.span(&other);
        let problem = checker.wrong(
            &place(later),
            format!("packets that leave as {set}, as those of another route do"),
            "streams that stay apart on each interface they leave on",
            format!(
                "The other is \"{}\" in {at}. Receivers could not tell the two apart: name \
                 different sources or groups, or other interfaces in `to`.",
                rules[earlier].name
            ),
        );
        problem.also = span.map(|span| (span, "the other".into()));
    }
    let mut told: HashSet<usize> = HashSet::new();
    for start in 0..rules.len() {
        if told.contains(&start) {
            continue;
        }
        let Some(way) = feeds_itself(rules, start) else {
            continue;
        };
        told.extend(&way);
        let others: Vec<_> = way[1..]
            .iter()
            .map(|at| {
                let place = checker.sources.value(&place(*at)).short();
                format!("\"{}\" in {place}", rules[*at].name)
            })
            .collect();
        let span = way.get(1).and_then(|at| checker.sources.span(&place(*at)));
        let problem = checker.wrong(
            &place(start),
            "a rewrite whose packets come back to it",
            "packets that no route takes back to where they came from",
            format!(
                "They are taken on by {}. Name the senders of each side in `source`, or other \
                 groups.",
                others.join(", then ")
            ),
        );
        problem.also = span.map(|span| (span, "taken on here".into()));
    }
}

/// Refuses routes whose packets come back to them over a proxy. `rules` are those of all
/// `[[route]]`s.
pub(super) fn refuse_rings(checker: &mut Checker<'_>, rules: &[RouteRule], proxies: &[ProxyRule]) {
    if proxies.is_empty() || rules.iter().all(|rule| rule.rewrite.is_none()) {
        return;
    }
    let mut ways = rules.to_vec();
    ways.extend(proxy_ways(proxies));
    let mut told: HashSet<usize> = HashSet::new();
    for start in 0..rules.len() {
        // A ring of routes alone was refused before.
        let over = |way: &Vec<usize>| way.iter().any(|at| *at >= rules.len());
        let way = feeds_itself(&ways, start).filter(over);
        let Some(way) = way.filter(|_| !told.contains(&start)) else {
            continue;
        };
        told.extend(way.iter().filter(|at| **at < rules.len()));
        let others = way[1..].iter().map(|at| format!("\"{}\"", ways[*at].name));
        let others: Vec<_> = others.collect();
        checker.wrong(
            &KeyPath::root("route").index(start).key("rewrite"),
            "a rewrite whose packets come back to it over a proxy",
            "packets that nothing takes back to where they came from",
            format!(
                "They are taken on by {}. Name the senders of each side in `source`, other groups, \
                 or in the proxy `deny_groups` or upward = false.",
                others.join(", then ")
            ),
        );
    }
}
