//! Checks of `[[route]]`: each route, then the routes against each other.

use std::collections::{HashMap, HashSet};

use super::addresses::{parse_group, parse_source};
use super::checker::{Checker, default_boolean};
use super::joins::check_group_count;
use super::key_path::KeyPath;
use super::monitor::check_monitor_kind;
use super::raw::{JOIN_FORMS, RawJoinPolicy, RawRoute};
use super::route_merge::{check_merge, refuse_with_merge};
use super::route_translation::{check_translation, refuse_conflicts};
use crate::model::{
    FragmentPolicy, GroupPrefix, IfPattern, JoinPolicy, Origin, RouteName, RouteRule, SourcePrefix,
};

/// A rule and the index of its `[[route]]`.
struct IndexedRule {
    index: usize,
    rule: RouteRule,
}

/// Checks all routes. Returns those that could be built; problems go to `checker`.
pub(super) fn check_routes(
    checker: &mut Checker<'_>,
    raw: impl Iterator<Item = Option<RawRoute>>,
) -> Vec<RouteRule> {
    let mut rules = Vec::new();
    for (index, raw) in raw.enumerate() {
        let Some(raw) = raw else { continue };
        let path = KeyPath::root("route").index(index);
        let checked = check_route(checker, &path, raw).unwrap_or_default();
        rules.extend(checked.into_iter().map(|rule| IndexedRule { index, rule }));
    }
    let equals = refuse_equal_routes(checker, &rules);
    refuse_equal_names(checker, &rules, &equals);
    let (indices, rules): (Vec<_>, Vec<_>) = rules.into_iter().map(|n| (n.index, n.rule)).unzip();
    refuse_conflicts(checker, &indices, &rules);
    rules
}

/// Checks one `[[route]]`. Returns its rule, or the two rules of a merge.
fn check_route(checker: &mut Checker<'_>, path: &KeyPath, raw: RawRoute) -> Option<Vec<RouteRule>> {
    let from = checker.required(raw.from, path, "from");
    let group = checker.required(raw.group, path, "group");
    let to = checker.required(raw.to, path, "to");

    let from = from.and_then(|text| checker.pattern(&path.key("from"), &text));
    let group = group.and_then(|text| parse_group(checker, &path.key("group"), &text));
    // Without a group, the IP version of "any source" is unknown.
    let source = match (&raw.source, group) {
        (Some(text), _) => parse_source(checker, &path.key("source"), text, group),
        (None, group) => group.map(SourcePrefix::any_for),
    };
    let except_sources = check_except_sources(checker, path, raw.except_sources, source, group);
    let to = to.and_then(|to| check_egresses(checker, path, to));
    let ttl = checker.ttl_policy(&path.key("ttl"), raw.ttl);
    let link_local = raw
        .link_local
        .unwrap_or(default_boolean(&path.key("link_local")));
    if let Some(group) = group.filter(|group| group.is_link_local() && !link_local) {
        checker.refuse(
            &path.key("group"),
            format!("the link-local group {group}"),
            "a group that routers may forward",
            "Link-local groups must not leave their link. To forward this one anyway, set \
             link_local = true in the route.",
        );
    }
    let fragment = check_fragment_policy(checker, path, raw.fragment);
    let example = "eth0 (*, 225.1.2.3)";
    let name = checker.metrics_name(&path.key("name"), raw.name.as_deref(), example);
    let join = match raw.join {
        None => Some(JoinPolicy::default()),
        Some(join) => check_join_policy(checker, &path.key("join"), join, group),
    };
    let rewrite = raw.rewrite.map(|table| {
        let stream = source.zip(group);
        check_translation(checker, path, table.0, stream, link_local)
    });
    if raw.merge.is_some() {
        let given = [
            ("ingress", raw.ingress.is_some()),
            ("takeover", raw.takeover.is_some()),
        ];
        for (key, _) in given.iter().filter(|(_, is_given)| *is_given) {
            refuse_with_merge(checker, path, key);
        }
    }
    let monitor = check_monitor_kind(checker, &path.key("monitor"), raw.monitor);
    let ingresses = [("one", false), ("all", true)];
    let all_ingresses = checker.word(&path.key("ingress"), raw.ingress, &ingresses);
    let takeover = checker.duration_or_default(&path.key("takeover"), raw.takeover);
    let (from, group, source, ttl) = (from?, group?, source?, ttl?);
    let rule = RouteRule {
        name: name.unwrap_or_else(|| RouteName::default_for(&from, source, group)),
        origin: Origin::Settings,
        from,
        source,
        except_sources,
        group,
        to: to?,
        ttl,
        link_local,
        link_local_sources: raw
            .link_local_sources
            .unwrap_or(default_boolean(&path.key("link_local_sources"))),
        fragment,
        join: join?,
        loop_guard: raw.loop_guard.unwrap_or(ttl.allows_endless_loop()),
        takeover: (!all_ingresses).then_some(takeover),
        redundant: raw
            .redundant
            .unwrap_or(default_boolean(&path.key("redundant"))),
        monitor,
        // A wrong translation excludes the route from the result.
        translation: match rewrite {
            Some(rewrite) => Some(rewrite?),
            None => None,
        },
        merge: None,
    };
    match raw.merge {
        Some(merge) => check_merge(checker, path, merge.0, rule),
        None => Some(vec![rule]),
    }
}

/// Checks the key `fragment` of a route or proxy.
pub(super) fn check_fragment_policy(
    checker: &mut Checker<'_>,
    rule: &KeyPath,
    raw: Option<String>,
) -> FragmentPolicy {
    let policies = [
        ("auto", FragmentPolicy::Auto),
        ("always", FragmentPolicy::Always),
    ];
    checker.word(&rule.key("fragment"), raw, &policies)
}

fn check_except_sources(
    checker: &mut Checker<'_>,
    route: &KeyPath,
    raw: Option<Vec<Option<String>>>,
    source: Option<SourcePrefix>,
    group: Option<GroupPrefix>,
) -> Vec<SourcePrefix> {
    let mut except_sources = Vec::new();
    let list = route.key("except_sources");
    for (n, text) in raw.into_iter().flatten().enumerate() {
        let Some(text) = text else { continue };
        let path = list.index(n);
        let Some(except) = parse_source(checker, &path, &text, group) else {
            continue;
        };
        let Some(source) = source else {
            except_sources.push(except);
            continue;
        };
        let (found, help) = if source == except {
            (
                format!("{except}, all of `source`"),
                "The route would take no packets. Remove the route instead.",
            )
        } else if source.is_any() || source.net().contains(&except.net()) {
            except_sources.push(except);
            continue;
        } else {
            (
                format!("{except}, outside of `source`"),
                "The route does not take packets of this sender anyway. Remove the entry or widen \
                 `source`.",
            )
        };
        let texts = (found, format!("a part of {source}"), help);
        checker.refuse_related(&path, texts, (&route.key("source"), "the source"));
    }
    except_sources
}

fn check_egresses(
    checker: &mut Checker<'_>,
    route: &KeyPath,
    raw: Vec<Option<String>>,
) -> Option<Vec<IfPattern>> {
    let count_help = "A pattern matches many interfaces at once: to = [\"br-*\"].";
    checker.patterns(&route.key("to"), raw, count_help, |_, _, _| true)
}

fn check_join_policy(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: RawJoinPolicy,
    group: Option<GroupPrefix>,
) -> Option<JoinPolicy> {
    match raw {
        RawJoinPolicy::Word(word) if word == "auto" => Some(JoinPolicy::Auto),
        RawJoinPolicy::Word(word) => {
            let help = match word.as_str() {
                "true" | "false" => format!("Remove the quotes: join = {word}."),
                _ => "\"auto\" joins single groups, true also joins each group of a prefix, false \
                      joins none."
                    .into(),
            };
            checker.refuse(path, format!("{word:?}"), JOIN_FORMS, help);
            None
        }
        RawJoinPolicy::Flag(false) => Some(JoinPolicy::Never),
        RawJoinPolicy::Flag(true) => group
            .is_none_or(|group| check_group_count(checker, path, group))
            .then_some(JoinPolicy::Always),
    }
}

/// Refuses routes that fit the same packet equally well as an earlier route: equal group, equal
/// source, and an interface that both accept. Returns the indices of the later routes.
fn refuse_equal_routes(checker: &mut Checker<'_>, rules: &[IndexedRule]) -> HashSet<usize> {
    // Compares only within a bucket of equal group and source. There, a route with a plain name
    // can only collide with the same name or with a pattern.
    #[derive(Default)]
    struct Bucket<'a> {
        names: HashMap<&'a str, &'a IndexedRule>,
        patterns: Vec<&'a IndexedRule>,
    }
    let mut buckets: HashMap<(GroupPrefix, SourcePrefix), Bucket<'_>> = HashMap::new();
    let mut refused = HashSet::new();
    for indexed in rules {
        let rule = &indexed.rule;
        let bucket = buckets.entry((rule.group, rule.source)).or_default();
        let collides = |other: &&&IndexedRule| other.rule.is_ambiguous_with(rule);
        let mut first = bucket.patterns.iter().find(collides).copied();
        if rule.from.is_pattern() {
            let named = bucket
                .names
                .values()
                .filter(|other| other.rule.is_ambiguous_with(rule));
            first = first.or_else(|| named.min_by_key(|other| other.index).copied());
            bucket.patterns.push(indexed);
        } else {
            first = first.or_else(|| bucket.names.get(rule.from.as_str()).copied());
            bucket.names.entry(rule.from.as_str()).or_insert(indexed);
        }
        if let Some(other) = first {
            refused.insert(indexed.index);
            refuse_equal_route(checker, indexed, other);
        }
    }
    refused
}

fn refuse_equal_route(checker: &mut Checker<'_>, this: &IndexedRule, other: &IndexedRule) {
    let routes = KeyPath::root("route");
    let other_group = routes.index(other.index).key("group");
    let location = checker.sources.value(&other_group).short();
    let rule = &this.rule;
    let interfaces = if rule.from == other.rule.from {
        format!("from \"{}\"", rule.from)
    } else {
        format!(
            "from \"{}\" and \"{}\", which overlap",
            rule.from, other.rule.from
        )
    };
    let texts = (
        format!(
            "a second route for source {} and group {} {interfaces}",
            rule.source, rule.group
        ),
        "one route that fits best",
        format!(
            "The first is \"{}\" in {location}. Merge the two `to` lists into one route, or give \
             the two routes different sources, groups or interfaces.",
            other.rule.name
        ),
    );
    let path = routes.index(this.index).key("group");
    checker.refuse_related(&path, texts, (&other_group, "the first"));
}

/// Refuses routes with the name of an earlier route. `refused` holds the indices of routes that
/// were refused already.
fn refuse_equal_names(checker: &mut Checker<'_>, rules: &[IndexedRule], refused: &HashSet<usize>) {
    let routes = KeyPath::root("route");
    let mut first_index: HashMap<&RouteName, usize> = HashMap::new();
    for indexed in rules {
        let name = &indexed.rule.name;
        let Some(first) = first_index.get(name) else {
            first_index.insert(name, indexed.index);
            continue;
        };
        // Two routes of the same interface, source and group have the same default name, which is
        // not a second problem. The two paths of a merge have the same name.
        if refused.contains(&indexed.index) || *first == indexed.index {
            continue;
        }
        let first = routes.index(*first).key("name");
        let location = checker.sources.value(&first).short();
        let texts = (
            format!("the name \"{name}\" for the second time"),
            "a different name for each route",
            format!("The first is in {location}. The name is the label of the route in metrics."),
        );
        let path = routes.index(indexed.index).key("name");
        checker.refuse_related(&path, texts, (&first, "the first"));
    }
}
