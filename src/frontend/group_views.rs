//! `show groups`: the memberships of this host and of members behind downstream interfaces, and how
//! routes with a translation connect them.

use std::net::IpAddr;
use std::time::Duration;

use crate::actors::messages::{HostGroup, MemberGroup};
use crate::api::view::{GroupSourceView, GroupView};
use crate::membership::SourceStatus;
use crate::model::{Group, IfName, RouteRule, Source, SourceFilter};
use crate::table::RouteRules;
use crate::table::translated_joins::{original_membership, translated_part, translates_to};

/// Streams that a route translates for the members of a group.
struct TranslatedJoin<'a> {
    rule: &'a RouteRule,
    downstream: &'a IfName,
    /// The group before the translation.
    original_group: Group,
    /// The streams before the translation.
    original_streams: Vec<String>,
    /// The streams after the translation, which the members joined.
    member_streams: Vec<String>,
}

/// Renders the groups: first those that this host joined, then those with members.
pub fn groups(joined: &[HostGroup], members: &[MemberGroup], rules: &RouteRules) -> Vec<GroupView> {
    let translations: Vec<Vec<TranslatedJoin<'_>>> = members
        .iter()
        .map(|member| translated_joins(member, rules))
        .collect();
    let host_views = joined.iter().map(|host| {
        let name = host.interface.as_ref();
        let fits = |join: &&TranslatedJoin<'_>| {
            join.original_group == host.group && name.is_some_and(|n| join.rule.from.matches(n))
        };
        let joins = translations.iter().flatten().filter(fits);
        let joined_for = joins.flat_map(|join| {
            let to = |stream| format!("{stream} to {}", join.downstream);
            join.member_streams.iter().map(to)
        });
        host_view(host, joined_for.collect())
    });
    let member_views = members.iter().zip(&translations).map(|(member, joins)| {
        let original = joins.iter().flat_map(|join| {
            let from = |stream| format!("{stream} from {}", join.rule.from);
            join.original_streams.iter().map(from)
        });
        member_view(member, original.collect())
    });
    host_views.chain(member_views).collect()
}

fn translated_joins<'a>(member: &'a MemberGroup, rules: &'a RouteRules) -> Vec<TranslatedJoin<'a>> {
    let (group, filter) = (member.status.group, &member.status.filter);
    let rules = rules
        .iter()
        .filter(|rule| translates_to(rule, &member.interface));
    let join = |rule: &'a RouteRule| {
        let (original_group, wanted) = original_membership(rule, group, filter)?;
        (!wanted.is_none()).then(|| TranslatedJoin {
            rule,
            downstream: &member.interface,
            original_group,
            original_streams: streams(original_group, &wanted),
            member_streams: streams(group, &translated_part(rule, filter)),
        })
    };
    rules.filter_map(join).collect()
}

fn host_view(host: &HostGroup, joined_for: Vec<String>) -> GroupView {
    let (sources, forwarded) = match &host.filter {
        SourceFilter::Include(sources) => (sources, true),
        SourceFilter::Exclude(sources) => (sources, false),
    };
    let source = |source: &Source| GroupSourceView {
        source: source.to_string(),
        forwarded,
        expires_ms: None,
    };
    let name = host.interface.as_ref();
    GroupView {
        interface: name.map_or_else(|| host.index.to_string(), ToString::to_string),
        role: "host".into(),
        group: host.group.to_string(),
        mode: mode(&host.filter).into(),
        sources: sources.iter().map(source).collect(),
        expires_ms: None,
        version: host.version.map(Into::into),
        reporters: Vec::new(),
        last_reporter: None,
        original: Vec::new(),
        joined_for,
        error: host.error.clone(),
    }
}

fn member_view(member: &MemberGroup, original: Vec<String>) -> GroupView {
    let status = &member.status;
    let ms = |d: Duration| d.as_millis() as u64;
    let source = |s: &SourceStatus| GroupSourceView {
        source: s.source.to_string(),
        forwarded: status.filter.accepts(s.source),
        expires_ms: s.source_timer.map(ms),
    };
    GroupView {
        interface: member.interface.to_string(),
        role: "router".into(),
        group: status.group.to_string(),
        mode: mode(&status.filter).into(),
        sources: status.sources.iter().map(source).collect(),
        expires_ms: status.group_timer.map(ms),
        version: Some(member.protocol.version(status.generation).into()),
        reporters: status.reporters.iter().map(IpAddr::to_string).collect(),
        last_reporter: Some(status.last_reporter.to_string()),
        original,
        joined_for: Vec::new(),
        error: None,
    }
}

fn mode(filter: &SourceFilter) -> &'static str {
    match filter {
        SourceFilter::Include(_) => "include",
        SourceFilter::Exclude(_) => "exclude",
    }
}

/// Returns streams such as `(10.0.0.10, 225.1.2.3)`, or `(*, 225.1.2.3)` for a filter that excludes
/// sources.
fn streams(group: Group, filter: &SourceFilter) -> Vec<String> {
    match filter {
        SourceFilter::Include(sources) => {
            let stream = |source: &Source| format!("({source}, {group})");
            sources.iter().map(stream).collect()
        }
        SourceFilter::Exclude(_) => vec![format!("(*, {group})")],
    }
}
