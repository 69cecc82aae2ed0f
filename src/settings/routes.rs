//! Route rules: each by itself, then all of them together.

use std::collections::{HashMap, HashSet};

use super::addresses::{parse_group, parse_source};
use super::checked::{Checker, TTL_FORMS};
use super::keys::KeyPath;
use super::rewrites;
use super::written::{WrittenJoin, WrittenJoinPolicy, WrittenRoute, WrittenTtl};
use crate::model::rule::MOST_JOINED_GROUPS;
use crate::model::{
    GroupPrefix, IfPattern, JoinPolicy, JoinRule, Origin, RouteName, RouteRule, SourcePrefix,
    TtlPolicy,
};

/// The ways to write a join policy.
pub(super) const JOIN_FORMS: &str = "\"auto\", true or false";

/// Egresses of one route at most.
const MOST_EGRESSES: usize = 64;

/// A rule and the index of its `[[route]]`.
struct Numbered {
    index: usize,
    rule: RouteRule,
}

/// Checks all routes; those that are wrong are left out of the result.
pub(super) fn check(
    checker: &mut Checker<'_>,
    written: impl Iterator<Item = Option<WrittenRoute>>,
) -> Vec<RouteRule> {
    let mut rules = Vec::new();
    for (index, written) in written.enumerate() {
        let Some(written) = written else { continue };
        let path = KeyPath::root("route").index(index);
        if let Some(rule) = one(checker, &path, written) {
            rules.push(Numbered { index, rule });
        }
    }
    let rivals = refuse_rivals(checker, &rules);
    refuse_same_names(checker, &rules, &rivals);
    let (indices, rules): (Vec<_>, Vec<_>) = rules.into_iter().map(|n| (n.index, n.rule)).unzip();
    rewrites::refuse_conflicts(checker, &indices, &rules);
    rules
}

fn one(checker: &mut Checker<'_>, path: &KeyPath, written: WrittenRoute) -> Option<RouteRule> {
    let from = checker.required(written.from, path, "from", "\"eth0\"");
    let group = checker.required(written.group, path, "group", "\"225.1.2.3\"");
    let to = checker.required(written.to, path, "to", "[\"eth1\"]");

    let from = from.and_then(|text| checker.pattern(&path.key("from"), &text));
    let group = group.and_then(|text| parse_group(checker, &path.key("group"), &text));
    // Without the group, whether addresses fit it cannot be said.
    let source = match (&written.source, group) {
        (Some(text), _) => parse_source(checker, &path.key("source"), text, group),
        (None, group) => group.map(SourcePrefix::any_for),
    };
    let except_sources = excepted(checker, path, written.except_sources, source, group);
    let to = to.and_then(|to| egresses(checker, path, to, from.as_ref()));
    let ttl = match written.ttl {
        None => Some(TtlPolicy::default()),
        Some(ttl) => ttl_policy(checker, &path.key("ttl"), ttl),
    };
    let link_local = written.link_local.unwrap_or_default();
    if let Some(group) = group.filter(|group| group.is_link_local() && !link_local) {
        checker.wrong(
            &path.key("group"),
            format!("the link-local group {group}"),
            "a group that routers may forward",
            "Such groups are not meant to leave their link. If this one shall, say so in the \
             route: link_local = true.",
        );
    }
    let default = "eth0 (*, 225.1.2.3)";
    let name = checker.route_name(&path.key("name"), written.name.as_deref(), default);
    let join = match written.join {
        None => Some(JoinPolicy::default()),
        Some(join) => join_policy(checker, &path.key("join"), join, group),
    };
    let rewrite = written.rewrite.map(|table| {
        let stream = source.zip(group);
        rewrites::one(checker, path, table.0, stream, link_local)
    });
    let (from, group, source, ttl) = (from?, group?, source?, ttl?);
    Some(RouteRule {
        name: name.unwrap_or_else(|| RouteName::default_for(&from, source, group)),
        origin: Origin::Settings,
        from,
        source,
        except_sources,
        group,
        to: to?,
        ttl,
        link_local,
        join: join?,
        loop_guard: written.loop_guard.unwrap_or(ttl.can_feed_a_loop()),
        // One that is wrong leaves the whole route out.
        rewrite: match rewrite {
            Some(rewrite) => Some(rewrite?),
            None => None,
        },
    })
}

fn excepted(
    checker: &mut Checker<'_>,
    route: &KeyPath,
    written: Option<Vec<Option<String>>>,
    source: Option<SourcePrefix>,
    group: Option<GroupPrefix>,
) -> Vec<SourcePrefix> {
    let mut excepted = Vec::new();
    let list = route.key("except_sources");
    for (n, text) in written.into_iter().flatten().enumerate() {
        let Some(text) = text else { continue };
        let path = list.index(n);
        let Some(except) = parse_source(checker, &path, &text, group) else {
            continue;
        };
        let inside = source.is_none_or(|source| {
            source != except && (source.is_any() || source.net().contains(&except.net()))
        });
        if inside {
            excepted.push(except);
        } else if let Some(source) = source {
            let (found, help) = if source == except {
                (
                    format!("{except}, all of `source`"),
                    "Such a route would take nothing; remove it instead.".to_string(),
                )
            } else {
                (
                    format!("{except}, outside of `source`"),
                    "The route does not take that sender anyway; remove the entry or widen \
                     `source`."
                        .into(),
                )
            };
            let span = checker.sources.span(&route.key("source"));
            let problem = checker.wrong(&path, found, format!("a part of {source}"), help);
            problem.also = span.map(|span| (span, "the source".into()));
        }
    }
    excepted
}

fn egresses(
    checker: &mut Checker<'_>,
    route: &KeyPath,
    written: Vec<Option<String>>,
    from: Option<&IfPattern>,
) -> Option<Vec<IfPattern>> {
    let list = route.key("to");
    if written.len() > MOST_EGRESSES {
        let found = format!("{} entries", written.len());
        let help = "A pattern takes many interfaces at once: to = [\"veth*\"].";
        checker.wrong(&list, found, "at most 64 interfaces", help);
        return None;
    }
    let mut seen: HashMap<IfPattern, usize> = HashMap::new();
    let mut to = Vec::new();
    let mut all_right = true;
    for (n, text) in written.into_iter().enumerate() {
        let path = list.index(n);
        let Some(entry) = text.and_then(|text| checker.pattern(&path, &text)) else {
            all_right = false;
            continue;
        };
        if let Some(first) = seen.get(&entry) {
            let span = checker.sources.span(&list.index(*first));
            let problem = checker.wrong(
                &path,
                format!("\"{entry}\" for the second time"),
                "each interface once",
                "Remove one of the two.",
            );
            problem.also = span.map(|span| (span, "the first".into()));
            all_right = false;
            continue;
        }
        // Under a pattern each ingress leaves itself out.
        if from.is_some_and(|from| !entry.is_pattern() && *from == entry) {
            let span = checker.sources.span(&route.key("from"));
            let found = format!("\"{entry}\", which is also `from`");
            let help = "Remove it: packets do not go back to where they came from. For both \
                        directions write two routes.";
            let problem = checker.wrong(&path, found, "an interface other than `from`", help);
            problem.also = span.map(|span| (span, "from here".into()));
            all_right = false;
        }
        seen.insert(entry.clone(), n);
        to.push(entry);
    }
    all_right.then_some(to)
}

pub(super) fn ttl_policy(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    written: WrittenTtl,
) -> Option<TtlPolicy> {
    match written {
        WrittenTtl::Word(word) if word == "decrement" => Some(TtlPolicy::Decrement),
        WrittenTtl::Word(word) if word == "keep" => Some(TtlPolicy::Keep),
        WrittenTtl::Word(word) => {
            let help = match super::keys::nearest(&word, ["decrement", "keep"]) {
                Some(near) => format!("Did you mean {near:?}?"),
                None => "To send with a TTL of 8: ttl = { set = 8 }.".into(),
            };
            checker.wrong(path, format!("{word:?}"), TTL_FORMS, help);
            None
        }
        WrittenTtl::Number(number) => {
            let set = number.clamp(1, 255);
            let help = format!("To send with this TTL: ttl = {{ set = {set} }}.");
            checker.wrong(path, format!("the number {number}"), TTL_FORMS, help);
            None
        }
        WrittenTtl::Set(set) => {
            let number = checker.required(set.set, path, "set", "8")?;
            let zero = "A packet with TTL 0 goes nowhere.";
            let ttl = checker.ttl_value(&path.key("set"), number, zero)?;
            Some(TtlPolicy::Set(ttl))
        }
    }
}

fn join_policy(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    written: WrittenJoinPolicy,
    group: Option<GroupPrefix>,
) -> Option<JoinPolicy> {
    match written {
        WrittenJoinPolicy::Word(word) if word == "auto" => Some(JoinPolicy::Auto),
        WrittenJoinPolicy::Word(word) => {
            let help = "auto joins single groups, true each group of a prefix too, false none.";
            checker.wrong(path, format!("{word:?}"), JOIN_FORMS, help);
            None
        }
        WrittenJoinPolicy::Flag(false) => Some(JoinPolicy::Never),
        WrittenJoinPolicy::Flag(true) => group
            .is_none_or(|g| few_enough(checker, path, g))
            .then_some(JoinPolicy::Always),
    }
}

/// Whether a prefix has no more groups than can be joined.
fn few_enough(checker: &mut Checker<'_>, path: &KeyPath, group: GroupPrefix) -> bool {
    let few = group.count() <= MOST_JOINED_GROUPS;
    if !few {
        checker.wrong(
            path,
            format!("a join of every group in {group}"),
            format!("at most {MOST_JOINED_GROUPS} groups"),
            "Each is joined by itself; name a longer prefix, or the groups you need.",
        );
    }
    few
}

/// Checks all joins; those that are wrong are left out of the result.
pub(super) fn check_joins(
    checker: &mut Checker<'_>,
    written: impl Iterator<Item = Option<WrittenJoin>>,
) -> Vec<JoinRule> {
    let mut joins = Vec::new();
    for (index, written) in written.enumerate() {
        let Some(written) = written else { continue };
        let path = KeyPath::root("join").index(index);
        let interface = checker.required(written.interface, &path, "interface", "\"eth0\"");
        let group = checker.required(written.group, &path, "group", "\"225.1.2.3\"");
        let interface = interface.and_then(|i| checker.pattern(&path.key("interface"), &i));
        let group_path = path.key("group");
        let group = group
            .and_then(|g| parse_group(checker, &group_path, &g))
            .filter(|g| few_enough(checker, &group_path, *g));
        let source_path = path.key("source");
        let source = match &written.source {
            None => Some(None),
            Some(text) => parse_source(checker, &source_path, text, group).and_then(|source| {
                let single = source.single();
                if single.is_none() {
                    let help = "Hosts join single sources; write a [[join]] for each.";
                    checker.wrong(&source_path, source.to_string(), "one source", help);
                }
                single.map(Some)
            }),
        };
        if let (Some(interface), Some(group), Some(source)) = (interface, group, source) {
            joins.push(JoinRule {
                interface,
                source,
                group,
                origin: Origin::Settings,
            });
        }
    }
    joins
}

/// Rules that could take the same packet equally well. Hands back the indices of the later
/// ones.
fn refuse_rivals(checker: &mut Checker<'_>, rules: &[Numbered]) -> HashSet<usize> {
    // Only rules of equal group and source can be rivals; among those, only a pattern can
    // meet an interface that is not written the same.
    #[derive(Default)]
    struct Bucket<'a> {
        names: HashMap<&'a str, &'a Numbered>,
        patterns: Vec<&'a Numbered>,
    }
    let mut buckets: HashMap<(GroupPrefix, SourcePrefix), Bucket<'_>> = HashMap::new();
    let mut refused = HashSet::new();
    for numbered in rules {
        let rule = &numbered.rule;
        let bucket = buckets.entry((rule.group, rule.source)).or_default();
        let meets = |other: &&&Numbered| other.rule.rivals(rule);
        let mut first = bucket.patterns.iter().find(meets).copied();
        if rule.from.is_pattern() {
            let named = bucket
                .names
                .values()
                .filter(|other| other.rule.rivals(rule));
            first = first.or_else(|| named.min_by_key(|other| other.index).copied());
            bucket.patterns.push(numbered);
        } else {
            first = first.or_else(|| bucket.names.get(rule.from.as_str()).copied());
            bucket.names.entry(rule.from.as_str()).or_insert(numbered);
        }
        if let Some(other) = first {
            refused.insert(numbered.index);
            rival(checker, numbered, other);
        }
    }
    refused
}

fn rival(checker: &mut Checker<'_>, this: &Numbered, other: &Numbered) {
    let routes = KeyPath::root("route");
    let other_group = routes.index(other.index).key("group");
    let at = checker.sources.value(&other_group).short();
    let span = checker.sources.span(&other_group);
    let rule = &this.rule;
    let interfaces = if rule.from == other.rule.from {
        format!("from \"{}\"", rule.from)
    } else {
        format!(
            "from \"{}\" and \"{}\", which overlap",
            rule.from, other.rule.from
        )
    };
    let problem = checker.wrong(
        &routes.index(this.index).key("group"),
        format!(
            "a second route for source {} and group {} {interfaces}",
            rule.source, rule.group
        ),
        "one route that fits best",
        format!(
            "The first is \"{}\" in {at}. Put both `to` lists into one route, or give the two \
             different sources, groups or interfaces.",
            other.rule.name
        ),
    );
    problem.also = span.map(|span| (span, "the first".into()));
}

fn refuse_same_names(checker: &mut Checker<'_>, rules: &[Numbered], rivals: &HashSet<usize>) {
    let routes = KeyPath::root("route");
    let mut names: HashMap<&RouteName, usize> = HashMap::new();
    for numbered in rules {
        let name = &numbered.rule.name;
        let Some(first) = names.get(name) else {
            names.insert(name, numbered.index);
            continue;
        };
        // Rivals without names share their default one; that is no second problem.
        if rivals.contains(&numbered.index) {
            continue;
        }
        let first = routes.index(*first).key("name");
        let (at, span) = (
            checker.sources.value(&first).short(),
            checker.sources.span(&first),
        );
        let problem = checker.wrong(
            &routes.index(numbered.index).key("name"),
            format!("the name \"{name}\" for the second time"),
            "a name of its own for each route",
            format!("The first is in {at}. Metrics are counted under this name."),
        );
        problem.also = span.map(|span| (span, "the first".into()));
    }
}
