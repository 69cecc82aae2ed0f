//! Checks that refuse routes which conflict with other routes because of a translation.

use std::borrow::Borrow;
use std::collections::HashMap;

use super::rib_error::RibError;
use crate::model::translation_conflicts::{merged_streams, proxy_routes, translation_loop};
use crate::model::{IfPattern, ProxyRule, RouteRule};

/// Refuses a new or changed route `rules[at]` that conflicts with the other routes or with proxies.
pub(super) fn refuse_conflicts(
    rules: &[&RouteRule],
    proxies: &[ProxyRule],
    at: usize,
) -> Result<(), RibError> {
    refuse_merges(rules, at)?;
    let proxy_routes = proxy_routes(proxies);
    let all: Vec<&RouteRule> = rules.iter().copied().chain(&proxy_routes).collect();
    refuse_loops(&all, at)
}

/// Refuses the route `rules[at]` if two different streams would leave it and another route as the
/// same stream.
pub(super) fn refuse_merges<R: Borrow<RouteRule>>(rules: &[R], at: usize) -> Result<(), RibError> {
    let rule: &RouteRule = rules[at].borrow();
    let others = rules.iter().enumerate().filter(|(other, _)| *other != at);
    for (_, other) in others {
        let other: &RouteRule = other.borrow();
        if let Some(set) = merged_streams(rule, other, rules) {
            return Err(RibError::MergesStreams(other.name.clone(), set));
        }
    }
    Ok(())
}

/// Refuses to remove a route if two of the remaining `rules` would merge streams that the removed
/// route matched before.
pub(super) fn refuse_uncovered_merge(
    rules: &[&RouteRule],
    removed: &RouteRule,
) -> Result<(), RibError> {
    let removed_streams = removed.matched_streams();
    let is_affected = |rule: &RouteRule| {
        rule.from == removed.from && rule.matched_streams().overlap(removed_streams).is_some()
    };
    for rule in rules.iter().copied().filter(|rule| is_affected(rule)) {
        let other = rules.iter().copied().find_map(|other| {
            let set = merged_streams(rule, other, rules)?;
            Some((other.name.clone(), set))
        });
        if let Some((other, set)) = other {
            return Err(RibError::PreventsMerge(rule.name.clone(), other, set));
        }
    }
    Ok(())
}

/// Refuses the route `all[at]` if packets would return over it to a route that translated them.
/// `all` holds the routes and those of [`proxy_routes`].
pub(super) fn refuse_loops<R: Borrow<RouteRule>>(all: &[R], at: usize) -> Result<(), RibError> {
    // Loops that do not contain this route are not caused by it. The filter by interfaces is cheap
    // and excludes most routes.
    let start = loop_candidates(all, at).into_iter().find(|start| {
        let positions = translation_loop(all, *start);
        positions.is_some_and(|positions| positions.contains(&at))
    });
    match start {
        Some(start) => {
            let rule: &RouteRule = all[start].borrow();
            Err(RibError::TranslationLoop(rule.name.clone()))
        }
        None => Ok(()),
    }
}

/// Returns the routes that a loop through `rules[at]` may contain, judged by their interfaces
/// alone.
fn loop_candidates<R: Borrow<RouteRule>>(rules: &[R], at: usize) -> Vec<usize> {
    // Routes with equal interfaces are examined once: ten thousand mappings have the same.
    let mut interface_ids: HashMap<(&IfPattern, &[IfPattern]), usize> = HashMap::new();
    let mut id_of_rule = Vec::with_capacity(rules.len());
    for rule in rules {
        let rule: &RouteRule = rule.borrow();
        let next = interface_ids.len();
        id_of_rule.push(*interface_ids.entry((&rule.from, &rule.to)).or_insert(next));
    }
    let mut interfaces = vec![None; interface_ids.len()];
    interface_ids
        .into_iter()
        .for_each(|(key, id)| interfaces[id] = Some(key));
    let interfaces: Vec<(&IfPattern, &[IfPattern])> = interfaces.into_iter().flatten().collect();
    let forwards_to = |a: usize, b: usize| {
        interfaces[a]
            .1
            .iter()
            .any(|to| to.intersects(interfaces[b].0))
    };
    let reachable = |downstream: bool| {
        let mut visited = vec![false; interfaces.len()];
        let mut pending = vec![id_of_rule[at]];
        while let Some(from) = pending.pop() {
            for (to, visited) in visited.iter_mut().enumerate() {
                let is_edge = match downstream {
                    true => forwards_to(from, to),
                    false => forwards_to(to, from),
                };
                if is_edge && !*visited {
                    *visited = true;
                    pending.push(to);
                }
            }
        }
        visited
    };
    let (after, before) = (reachable(true), reachable(false));
    (0..rules.len())
        .filter(|rule| after[id_of_rule[*rule]] && before[id_of_rule[*rule]])
        .collect()
}
