//! `[[proxy]]`: each by itself, then all of them together.

use std::collections::HashMap;
use std::time::Duration;

use super::addresses::{parse_group, parse_source};
use super::checked::Checker;
use super::keys::KeyPath;
use super::routes::ttl_policy;
use super::written::{
    Table, WrittenProxy, WrittenProxyLimits, WrittenProxyTimers, WrittenVersions,
};
use crate::model::{
    GroupPrefix, HeaderChecks, IfPattern, MOST_PROXIES, MembershipLimits, ProxyRule, QuerierPolicy,
    QuerierTimers, SourcePrefix, TtlPolicy, Versions,
};

/// Upstream or downstream names of one proxy at most.
const MOST_NAMES: usize = 64;
/// The highest limit of groups, and of sources of a group.
const MOST_REMEMBERED: i64 = 1_000_000;
/// The longest interval: what the querier's interval code can say (RFC 9776 section 4.1.7).
const LONGEST_INTERVAL: Duration = Duration::from_secs(31_744);
/// The longest response time that IGMPv3 can say (section 4.1.1).
const LONGEST_RESPONSE: Duration = Duration::from_millis(3_174_400);

/// Checks all proxies; those that are wrong are left out of the result.
pub(super) fn check(
    checker: &mut Checker<'_>,
    written: impl Iterator<Item = Option<WrittenProxy>>,
) -> Vec<ProxyRule> {
    let mut proxies: Vec<(usize, ProxyRule)> = Vec::new();
    for (index, written) in written.enumerate() {
        let Some(written) = written else { continue };
        let path = KeyPath::root("proxy").index(index);
        if let Some(proxy) = one(checker, &path, written) {
            refuse_shared(checker, &path, &proxy, &proxies);
            refuse_crowd(checker, &path, &proxy, &proxies);
            proxies.push((index, proxy));
        }
    }
    proxies.into_iter().map(|(_, proxy)| proxy).collect()
}

fn one(checker: &mut Checker<'_>, path: &KeyPath, written: WrittenProxy) -> Option<ProxyRule> {
    let downstream = checker.required(written.downstream, path, "downstream", "[\"br-*\"]");
    let upstream = match written.upstream {
        None => Some(vec![IfPattern::default_route()]),
        Some(list) => names(checker, &path.key("upstream"), list),
    };
    let downstream = downstream.and_then(|list| names(checker, &path.key("downstream"), list));
    if let (Some(up), Some(down)) = (&upstream, &downstream) {
        refuse_both_ways(checker, path, up, down);
    }
    let groups = groups(checker, &path.key("groups"), written.groups);
    let deny_groups = self::groups(checker, &path.key("deny_groups"), written.deny_groups);
    let sources = sources(checker, &path.key("sources"), written.sources);
    let deny_sources = self::sources(checker, &path.key("deny_sources"), written.deny_sources);
    let policies = [
        ("auto", QuerierPolicy::Auto),
        ("on", QuerierPolicy::On),
        ("off", QuerierPolicy::Off),
    ];
    let querier = checker.word(&path.key("querier"), written.querier, &policies);
    let checks = [
        ("strict", HeaderChecks::Strict),
        ("lenient", HeaderChecks::Lenient),
    ];
    let header_checks = checker.word(&path.key("header_checks"), written.header_checks, &checks);
    let ttl = match written.ttl {
        None => Some(TtlPolicy::default()),
        Some(ttl) => ttl_policy(checker, &path.key("ttl"), ttl),
    };
    let version = versions(checker, &path.key("version"), written.version);
    let takeover = checker.duration(
        &path.key("takeover"),
        written.takeover,
        Duration::from_secs(1),
        Duration::from_millis(10)..=Duration::from_secs(3600),
    );
    let timers = timers(checker, &path.key("timers"), written.timers);
    let limits = limits(checker, &path.key("limits"), written.limits);
    let name = checker.route_name(&path.key("name"), written.name.as_deref(), "proxy eth0");
    let proxy = ProxyRule::new(upstream?, downstream?);
    Some(ProxyRule {
        name: name.unwrap_or_else(|| proxy.name.clone()),
        upward: written.upward.unwrap_or(proxy.upward),
        fast_leave: written.fast_leave.unwrap_or(proxy.fast_leave),
        querier,
        version,
        groups,
        deny_groups,
        sources,
        deny_sources,
        ttl: ttl?,
        header_checks,
        timers,
        limits,
        takeover,
        ..proxy
    })
}

/// Interface names and patterns, at least one.
fn names(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    written: Vec<Option<String>>,
) -> Option<Vec<IfPattern>> {
    if written.is_empty() || written.len() > MOST_NAMES {
        let found = match written.len() {
            0 => "an empty list".to_string(),
            n => format!("{n} entries"),
        };
        let help = "Name interfaces or patterns such as \"br-*\"; they need not exist yet.";
        checker.wrong(path, found, "1 to 64 interfaces", help);
        return None;
    }
    let mut seen: HashMap<IfPattern, usize> = HashMap::new();
    let mut right = Some(Vec::new());
    for (n, text) in written.into_iter().enumerate() {
        let at = path.index(n);
        let Some(name) = text.and_then(|text| checker.pattern(&at, &text)) else {
            right = None;
            continue;
        };
        if let Some(first) = seen.get(&name) {
            let span = checker.sources.span(&path.index(*first));
            let problem = checker.wrong(
                &at,
                format!("\"{name}\" for the second time"),
                "each interface once",
                "Remove one of the two.",
            );
            problem.also = span.map(|span| (span, "the first".into()));
            right = None;
            continue;
        }
        seen.insert(name.clone(), n);
        if let Some(right) = &mut right {
            right.push(name);
        }
    }
    right
}

/// A name that is upstream and downstream at once. A pattern downstream may meet a name
/// upstream: that interface is then upstream only.
fn refuse_both_ways(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    upstream: &[IfPattern],
    downstream: &[IfPattern],
) {
    for (n, down) in downstream.iter().enumerate() {
        let meets = |up: &IfPattern| {
            up.intersects(down) && (!down.is_pattern() || (up.is_pattern() && up == down))
        };
        let Some(at) = upstream.iter().position(meets) else {
            continue;
        };
        let up = &upstream[at];
        let span = checker.sources.span(&path.key("upstream").index(at));
        let problem = checker.wrong(
            &path.key("downstream").index(n),
            format!("\"{down}\", which `upstream` = \"{up}\" takes in as well"),
            "an interface that is not upstream",
            "Streams come from upstream, hosts are downstream; leave it in one of the lists.",
        );
        problem.also = span.map(|span| (span, "upstream here".into()));
    }
}

/// Two proxies that would serve the hosts of one interface.
fn refuse_shared(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    proxy: &ProxyRule,
    others: &[(usize, ProxyRule)],
) {
    for (n, down) in proxy.downstream.iter().enumerate() {
        let found = others.iter().find_map(|(index, other)| {
            let at = other.downstream.iter().position(|d| d.intersects(down))?;
            Some((*index, at, other))
        });
        let Some((index, at, other)) = found else {
            continue;
        };
        let first = KeyPath::root("proxy")
            .index(index)
            .key("downstream")
            .index(at);
        let span = checker.sources.span(&first);
        let help = format!(
            "\"{}\" in {} has it already; put both into one [[proxy]], with all upstream names.",
            other.name,
            checker.sources.value(&first).short()
        );
        let problem = checker.wrong(
            &path.key("downstream").index(n),
            format!("\"{down}\", which is downstream of another proxy"),
            "an interface of one proxy only",
            help,
        );
        problem.also = span.map(|span| (span, "the first".into()));
    }
    let same = |other: &&(usize, ProxyRule)| other.1.name == proxy.name;
    if let Some((index, _)) = others.iter().find(same) {
        let first = KeyPath::root("proxy").index(*index);
        let at = checker.sources.value(&first).short();
        checker.wrong(
            path,
            format!("the name \"{}\" for the second time", proxy.name),
            "a name of its own for each proxy",
            format!(
                "The first is in {at}; metrics are counted under this name. Give one: \
                 name = \"cameras\"."
            ),
        );
    }
}

/// More proxies upstream of one interface than there are places.
fn refuse_crowd(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    proxy: &ProxyRule,
    others: &[(usize, ProxyRule)],
) {
    for (n, up) in proxy.upstream.iter().enumerate() {
        let same = others.iter().filter(|(_, o)| o.upstream.contains(up));
        if same.count() >= MOST_PROXIES {
            checker.wrong(
                &path.key("upstream").index(n),
                format!("\"{up}\" upstream of one proxy more than {MOST_PROXIES}"),
                "an interface of fewer proxies",
                "Put downstream interfaces together into one [[proxy]]: each gets what its own \
                 hosts ask for.",
            );
        }
    }
}

fn groups(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    written: Option<Vec<Option<String>>>,
) -> Vec<GroupPrefix> {
    let texts = written.into_iter().flatten().enumerate();
    let mut groups = Vec::new();
    for (n, text) in texts {
        groups.extend(text.and_then(|text| parse_group(checker, &path.index(n), &text)));
    }
    groups
}

fn sources(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    written: Option<Vec<Option<String>>>,
) -> Vec<SourcePrefix> {
    let texts = written.into_iter().flatten().enumerate();
    let mut sources = Vec::new();
    for (n, text) in texts {
        sources.extend(text.and_then(|text| parse_source(checker, &path.index(n), &text, None)));
    }
    sources
}

fn versions(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    written: Option<Table<WrittenVersions>>,
) -> Versions {
    let default = Versions::default();
    let written = written.map(|table| table.0).unwrap_or_default();
    let igmp = checker.number(
        &path.key("igmp"),
        written.igmp,
        default.igmp.into(),
        1..=3,
        "3 speaks to hosts of every version.",
    );
    let mld = checker.number(
        &path.key("mld"),
        written.mld,
        default.mld.into(),
        1..=2,
        "2 speaks to hosts of both versions.",
    );
    Versions {
        igmp: igmp as u8,
        mld: mld as u8,
    }
}

fn limits(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    written: Option<Table<WrittenProxyLimits>>,
) -> MembershipLimits {
    let default = MembershipLimits::default();
    let written = written.map(|table| table.0).unwrap_or_default();
    let help = "Each downstream interface has this limit of its own.";
    let mut number = |name: &str, written, default: usize| {
        let range = 1..=MOST_REMEMBERED;
        checker.number(&path.key(name), written, default as i64, range, help)
    };
    MembershipLimits {
        groups: number("groups", written.groups, default.groups) as usize,
        sources_per_group: number(
            "sources_per_group",
            written.sources_per_group,
            default.sources_per_group,
        ) as usize,
        reports_per_second: number(
            "reports_per_second",
            written.reports_per_second,
            default.reports_per_second as usize,
        ) as u32,
    }
}

fn timers(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    written: Option<Table<WrittenProxyTimers>>,
) -> QuerierTimers {
    let default = QuerierTimers::default();
    let written = written.map(|table| table.0).unwrap_or_default();
    let shortest = Duration::from_millis(100);
    let count = "A count of messages; the robustness variable where none is given.";
    let robustness = checker.number(
        &path.key("robustness"),
        written.robustness,
        default.robustness.into(),
        1..=7,
        "How many messages in a row may be lost.",
    );
    let mut counted = |name: &str, written: Option<i64>| {
        written.map(|n| checker.number(&path.key(name), Some(n), 2, 1..=7, count) as u8)
    };
    let last_member_query_count =
        counted("last_member_query_count", written.last_member_query_count);
    let startup_query_count = counted("startup_query_count", written.startup_query_count);
    let query_interval = checker.duration(
        &path.key("query_interval"),
        written.query_interval,
        default.query_interval,
        Duration::from_secs(1)..=LONGEST_INTERVAL,
    );
    let query_response_interval = checker.duration(
        &path.key("query_response_interval"),
        written.query_response_interval,
        default.query_response_interval.min(query_interval / 2),
        shortest..=LONGEST_RESPONSE,
    );
    if query_response_interval >= query_interval {
        checker.wrong(
            &path.key("query_response_interval"),
            format!("{query_response_interval:?}"),
            format!("less than the query interval of {query_interval:?}"),
            "Hosts must have answered before they are asked again (RFC 9776 section 8.3).",
        );
    }
    let last_member_query_interval = checker.duration(
        &path.key("last_member_query_interval"),
        written.last_member_query_interval,
        default.last_member_query_interval,
        shortest..=LONGEST_RESPONSE,
    );
    let startup_query_interval = written.startup_query_interval.map(|text| {
        checker.duration(
            &path.key("startup_query_interval"),
            Some(text),
            query_interval / 4,
            shortest..=LONGEST_INTERVAL,
        )
    });
    QuerierTimers {
        robustness: robustness as u8,
        query_interval,
        query_response_interval,
        last_member_query_interval,
        last_member_query_count,
        startup_query_count,
        startup_query_interval,
    }
}
