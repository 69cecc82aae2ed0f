//! What stands beside the router as a service: the script of `smcrouted -e`, and what systemd
//! is told.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::actors::RouterContext;
use crate::api::view::{FlowView, RouteView};
use crate::api::{FlowQuery, ShowQuery, ShowReply};
use crate::frontend::query;

/// Called once when the router captures packets on all its interfaces, or ten seconds after the
/// start.
pub type Started = Box<dyn FnOnce()>;

/// Why a script is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// All rules of the settings are in force.
    Reload,
    /// A flow is forwarded for the first time, by a rule for any source.
    Install {
        /// Who sends.
        source: String,
        /// To whom.
        group: String,
    },
}

/// A script, run for one call after the other.
pub struct Script(SyncSender<Call>);

/// Calls that may wait for a slow script.
const MOST_CALLS: usize = 1024;
/// How often new flows are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Script {
    /// Gets ready to call `path`, and watches the flows.
    pub fn start(path: PathBuf, context: &Arc<RouterContext>) -> Self {
        let (calls, called) = sync_channel(MOST_CALLS);
        // A thread of its own: scripts may take as long as they like.
        std::thread::spawn(move || run(&path, &called));
        actix::spawn(watch(context.clone(), calls.clone()));
        Self(calls)
    }

    /// Calls it, unless too many calls wait.
    pub fn call(&self, call: Call) {
        tell(&self.0, call);
    }
}

fn tell(calls: &SyncSender<Call>, call: Call) {
    if let Err(e) = calls.try_send(call) {
        warn!("script: too slow, a call is left out: {e}");
    }
}

fn run(path: &PathBuf, calls: &Receiver<Call>) {
    while let Ok(call) = calls.recv() {
        let mut command = Command::new(path);
        match call {
            Call::Reload => command.arg("reload"),
            Call::Install { source, group } => command
                .arg("install")
                .env("source", source)
                .env("group", group),
        };
        match command.status() {
            Ok(status) if status.success() => {}
            Ok(status) => warn!("script {}: {status}", path.display()),
            Err(e) => warn!("script {}: {e}", path.display()),
        }
    }
}

/// Tells of each flow of a rule for any source once, until it ends.
async fn watch(context: Arc<RouterContext>, calls: SyncSender<Call>) {
    let mut known = HashSet::new();
    loop {
        let begun = Instant::now();
        let flows = query::show(&context, ShowQuery::Flows(FlowQuery::default())).await;
        let routes = query::show(&context, ShowQuery::Routes).await;
        if let (Ok(ShowReply::Flows(flows)), Ok(ShowReply::Routes(routes))) = (flows, routes) {
            for call in new_flows(&mut known, flows, &routes) {
                tell(&calls, call);
            }
        }
        // Where there are many flows, looking takes time; most of the time is theirs.
        sleep(LOOK_EVERY.max(begun.elapsed() * 10)).await;
    }
}

type Key = (String, String, String);

fn new_flows(known: &mut HashSet<Key>, flows: Vec<FlowView>, routes: &[RouteView]) -> Vec<Call> {
    let is_template = |flow: &FlowView| {
        let name = flow.route.as_ref();
        let route = routes.iter().find(|r| Some(&r.name) == name);
        route.is_some_and(|r| r.source == "*" || r.source.contains('/') || r.group.contains('/'))
    };
    let keyed = |flow: FlowView| {
        (
            (flow.iif.clone(), flow.source.clone(), flow.group.clone()),
            flow,
        )
    };
    let now: Vec<(Key, FlowView)> = flows.into_iter().map(keyed).collect();
    let live: HashSet<&Key> = now.iter().map(|(key, _)| key).collect();
    known.retain(|key| live.contains(key));
    let mut calls = Vec::new();
    for (key, flow) in now {
        if is_template(&flow) && known.insert(key) {
            calls.push(Call::Install {
                source: flow.source,
                group: flow.group,
            });
        }
    }
    calls
}

/// How long systemd waits for an interface that cannot be captured.
const LONGEST_START: Duration = Duration::from_secs(10);

/// Tells systemd, and whoever started us in the background, that we are ready, and then, as often as it wants to hear, that we live: as
/// long as routing answers.
pub async fn tell_the_supervisor(context: Arc<RouterContext>, started: Option<Started>) {
    let begun = Instant::now();
    while !context.health.is_ready() && begun.elapsed() < LONGEST_START {
        sleep(Duration::from_millis(20)).await;
    }
    notify(NotifyState::Ready);
    if let Some(started) = started {
        started();
    }
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    loop {
        if query::show(&context, ShowQuery::Pending).await.is_ok() {
            notify(NotifyState::Watchdog);
        }
        sleep(limit / 3).await;
    }
}

/// Tells systemd that the end begins.
pub fn stopping() {
    notify(NotifyState::Stopping);
}

fn notify(state: NotifyState<'_>) {
    // Nobody listens where systemd did not start us.
    if let Err(e) = sd_notify::notify(&[state]) {
        debug!("systemd: {e}");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn flow(source: &str, route: Option<&str>) -> FlowView {
        serde_json::from_value(json!({
            "iif": "eth0", "source": source, "group": "225.1.2.3", "route": route, "oifs": [],
            "packets": 1, "bytes": 1, "age_ms": 0, "idle_ms": 0
        }))
        .unwrap()
    }

    #[test]
    fn a_flow_is_told_of_once_in_its_life() {
        let route = |name: &str, source: &str| -> RouteView {
            serde_json::from_value(json!({
                "name": name, "origin": "settings", "from": "eth0", "source": source,
                "except_sources": [], "group": "225.1.2.3", "to": [], "ttl": "decrement",
                "link_local": false, "paths": [], "waiting_for": []
            }))
            .unwrap()
        };
        let routes = [route("any", "*"), route("one", "10.0.0.2")];
        let mut known = HashSet::new();
        let mut look = |flows| new_flows(&mut known, flows, &routes).len();
        assert_eq!(look(vec![flow("10.0.0.1", Some("any"))]), 1);
        assert_eq!(look(vec![flow("10.0.0.1", None)]), 0);
        assert_eq!(
            look(vec![
                flow("10.0.0.1", Some("any")),
                flow("10.0.0.2", Some("one"))
            ]),
            0
        );
        assert_eq!(look(vec![]), 0);
        assert_eq!(look(vec![flow("10.0.0.1", Some("any"))]), 1);
    }
}
