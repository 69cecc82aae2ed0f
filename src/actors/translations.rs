//! `show groups`: which membership is joined as which, where a route rewrites.

use std::collections::BTreeSet;

use crate::api::view::GroupView;
use crate::model::{Group, IfName, RouteRule, Source, SourceFilter};
use crate::table::translated_joins::{made_by, original, rewrites_to};

/// Writes beside members what they are translated from, and beside what is joined, what it is
/// translated to.
pub(super) fn show(groups: &mut [GroupView], rules: &[RouteRule]) {
    let rewriting: Vec<&RouteRule> = rules.iter().filter(|r| r.rewrite.is_some()).collect();
    let mut joined = Vec::new();
    for view in groups.iter_mut().filter(|view| view.role == "router") {
        let Some((downstream, group, filter)) = read(view) else {
            continue;
        };
        for rule in rewriting.iter().filter(|r| rewrites_to(r, &downstream)) {
            let Some((came, wanted)) = original(rule, group, &filter) else {
                continue;
            };
            if wanted.is_none() {
                continue;
            }
            let from = |stream| format!("{stream} from {}", rule.from);
            view.original
                .extend(streams(came, &wanted).into_iter().map(from));
            let asked = streams(group, &made_by(rule, &filter));
            joined.push((*rule, came, asked, downstream.clone()));
        }
    }
    for view in groups.iter_mut().filter(|view| view.role == "host") {
        let Some((interface, group, _)) = read(view) else {
            continue;
        };
        for (rule, came, asked, downstream) in &joined {
            if *came == group && rule.from.matches(&interface) {
                let to = asked.iter().map(|s| format!("{s} to {downstream}"));
                view.joined_for.extend(to);
            }
        }
    }
}

/// What a row says, read back.
fn read(view: &GroupView) -> Option<(IfName, Group, SourceFilter)> {
    let sources = |forwarded: bool| -> BTreeSet<Source> {
        let all = view.sources.iter().filter(|s| s.forwarded == forwarded);
        all.filter_map(|s| s.source.parse().ok()).collect()
    };
    let filter = match view.mode.as_str() {
        "include" => SourceFilter::Include(sources(true)),
        _ => SourceFilter::Exclude(sources(false)),
    };
    let (interface, group) = (view.interface.parse().ok()?, view.group.parse().ok()?);
    Some((interface, group, filter))
}

/// As in `(10.0.0.10, 225.1.2.3)`; all sources, but for some, are `*`.
fn streams(group: Group, filter: &SourceFilter) -> Vec<String> {
    match filter {
        SourceFilter::Include(sources) => {
            let stream = |source: &Source| format!("({source}, {group})");
            sources.iter().map(stream).collect()
        }
        SourceFilter::Exclude(_) => vec![format!("(*, {group})")],
    }
}
