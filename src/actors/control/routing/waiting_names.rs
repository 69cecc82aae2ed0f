//! Logs the names in rules that match no interface, each with a hint: names of interfaces, and
//! names of a container engine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use ahash::AHashSet;
use tracing::{info, warn};

use crate::actors::log_limit::LogLimit;
use crate::model::{Aliases, IfPattern, Links};
use crate::table::Rib;

/// Maximum number of interfaces that one log line names.
const MAX_NAMES: usize = 8;

/// The names that match no interface, each with its last hint.
#[derive(Default)]
pub(super) struct WaitingNames {
    hints: BTreeMap<IfPattern, Option<String>>,
    /// The names of the engine that the hints were computed for.
    aliases: Arc<Aliases>,
    log_limit: LogLimit,
}

impl WaitingNames {
    /// Logs each new hint once. Computes hints only for new names, and after a change of `aliases`
    /// for all names of the engine, because this is called for every change of rules and links.
    pub(super) fn update(
        &mut self,
        rib: &Rib,
        links: &Links,
        aliases: &Arc<Aliases>,
        now: Instant,
    ) {
        let mut seen = AHashSet::new();
        let names = rib.patterns().filter(|p| seen.insert(*p));
        let waiting = names.filter(|p| links.matching(p).next().is_none());
        let mut former = std::mem::take(&mut self.hints);
        let is_changed = !Arc::ptr_eq(&self.aliases, aliases);
        self.aliases = aliases.clone();
        for name in waiting {
            if self.hints.contains_key(name) {
                continue;
            }
            let old = former.remove(name);
            let hint = match &old {
                Some(old) if !is_changed => old.clone(),
                Some(old) if !name.is_engine_name() => old.clone(),
                _ if name.is_default_route() => {
                    let hint = aliases.hint(name).map(|hint| format!("{hint}; "));
                    Some(hint.unwrap_or_default() + &present(links))
                }
                _ if !name.is_engine_name() => Some(present(links)),
                _ => aliases.hint(name).map(|hint| hint.to_string()),
            };
            if let Some(text) = hint.as_ref().filter(|_| old.as_ref() != Some(&hint))
                && let Some(suppressed) = self.log_limit.permit(now)
            {
                let owner = owner(rib, name);
                let similar = links.similar(name);
                match name.is_engine_name() {
                    _ if let Some(similar) = similar => {
                        warn!(
                            interface = %name,
                            "{owner}waiting for interface {name}, which does not exist; did you mean \
                             {similar}? ({text}){suppressed}"
                        )
                    }
                    true => {
                        warn!(interface = %name, "{owner}{name} matches no interface: {text}{suppressed}")
                    }
                    false => {
                        info!(interface = %name, "{owner}waiting for interface {name} ({text}){suppressed}")
                    }
                }
            }
            self.hints.insert(name.clone(), hint);
        }
    }
}

/// Returns the beginning of a log line about `name`: the first route, proxy or join that contains
/// it, such as `route "cameras": `.
fn owner(rib: &Rib, name: &IfPattern) -> String {
    let mut rules = rib.rules.iter();
    if let Some(rule) = rules.find(|rule| rule.from == *name || rule.to.contains(name)) {
        return format!("route \"{}\": ", rule.name);
    }
    let mut proxies = rib.proxies.iter();
    let has = |all: &[IfPattern]| all.contains(name);
    if let Some(proxy) = proxies.find(|proxy| has(&proxy.upstream) || has(&proxy.downstream)) {
        return format!("proxy \"{}\": ", proxy.name);
    }
    match rib.joins.iter().find(|join| join.interface == *name) {
        Some(join) => format!("join of {}: ", join.group),
        None => String::new(),
    }
}

/// Lists the interfaces that exist.
fn present(links: &Links) -> String {
    let mut names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(MAX_NAMES);
    names.truncate(MAX_NAMES);
    let names = names.join(", ");
    match more {
        0 => format!("present: {names}"),
        more => format!("present: {names} and {more} more"),
    }
}
