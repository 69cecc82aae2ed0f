//! What an end continues of the process before: its session, its mappings, and their routes.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::actors::mnat_route::MnatRoute;
use crate::actors::shared::RouterContext;
use crate::mnat::{Channel, Config, Machine, MnatEvent, RoutePlan, SavedMnat};
use crate::model::{ClockReading, IfPattern};
use crate::sys::boot_clock;
use crate::table::mnat_routes::update_mnat_routes;

/// Adds the routes of the former process's mappings to the rules. Called before the actors start, so
/// that the first forwarding table has them. With a table that lacks them, this process would seem
/// to be ready, and would remove what the former one left in the kernel: its flows and joins.
pub fn restore_routes(context: &RouterContext) {
    let config = context.mnat.load_full();
    let saved = context.store.mnat();
    let (Some((config, saved)), Ok(clock)) = (config.zip(saved), boot_clock::read()) else {
        return;
    };
    let mut machine = Machine::new(config.role, config.grace, clock.now, 0);
    let mut plan = RoutePlan::new(config.role);
    restore(&config, (&saved, &clock), &mut machine, &mut plan);
    while let Some(event) = machine.poll_event() {
        if let MnatEvent::Change(change) = event {
            plan.apply(clock.now, &change);
        }
    }
    let (from, to) = (&config.upstream, &config.downstream);
    let (from, to) = (IfPattern::from(from), IfPattern::from(to));
    let routes = plan.routes().map(MnatRoute::from);
    // The actor sends all routes again, and reports those that are refused.
    let changes = routes.flat_map(|route| route.change(&from, &to));
    let mut rib = context.rib.load().as_ref().clone();
    update_mnat_routes(&mut rib, changes.collect());
    context.rib.store(Arc::new(rib));
}

/// Continues what the former process or actor has saved.
pub(super) fn restore(
    config: &Config,
    (saved, clock): (&SavedMnat, &ClockReading),
    machine: &mut Machine,
    plan: &mut RoutePlan,
) {
    machine.restore(clock, saved, &server(config));
    let restored: BTreeSet<Channel> = machine.assigned().collect();
    let mappings = saved.mappings.iter().map(|m| (m.global, m.local));
    let mappings = mappings.filter(|(global, _)| restored.contains(global));
    plan.restore(clock, &saved.transitions, &mappings.collect());
}

/// Returns host and port of the server.
pub(super) fn server(config: &Config) -> (String, u16) {
    (config.target.host.clone(), config.target.port)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::mnat::config::JoinSources;
    use crate::mnat::saved::SavedMapping;
    use crate::mnat::{MnatRole, Target};

    #[test]
    fn mappings_of_the_former_process_are_routes_before_the_actors_start() {
        let (context, _requests) = RouterContext::for_test();
        let config = Config {
            role: MnatRole::Egress,
            target: Target {
                host: "mnat.example.net".into(),
                port: 8443,
                ca: None,
                cert: None,
                key: None,
                only_if_present: true,
            },
            upstream: "up".parse().unwrap(),
            downstream: "out".parse().unwrap(),
            joinfile: None,
            joins: JoinSources::ALL,
            grace: Duration::from_secs(300),
        };
        let channel = |source, group| Channel::parse(Some(source), group).unwrap();
        let global = channel("10.0.0.10", "232.1.1.1");
        let local = channel("10.9.9.9", "239.1.1.1");
        let confirmed = boot_clock::read().unwrap().boot;
        context.store.set_mnat(Some(SavedMnat {
            role: "egress".into(),
            server: server(&config),
            watcher: None,
            mappings: vec![SavedMapping {
                global,
                local,
                confirmed,
            }],
            joins: vec![global],
            transitions: Vec::new(),
        }));
        let names = || {
            let rib = context.rib.load();
            let names = rib.rules.iter().map(|rule| rule.name.clone());
            names.collect::<Vec<_>>()
        };
        // Without `[mnat]`, what an earlier process was does not matter.
        restore_routes(&context);
        assert_eq!(names(), []);
        context.mnat.store(Some(Arc::new(config)));
        restore_routes(&context);
        assert_eq!(names(), [MnatRoute::from((local, global)).name()]);
        restore_routes(&context);
        assert_eq!(names().len(), 1);
    }
}
