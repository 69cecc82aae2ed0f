//! Integration with the host: the script of `smcrouted -e`, and notifications to systemd.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::sync::oneshot;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::actors::RouterContext;
use crate::actors::shared::ProcessRequest;
use crate::api::view::{FlowView, RouteView};
use crate::api::{FlowQuery, ShowQuery, ShowReply};
use crate::frontend::query;
use crate::sys::process_usage;

/// Called once when the router captures packets on all its interfaces, or ten seconds after the
/// start.
pub type OnStarted = Box<dyn FnOnce()>;

/// An event for which the script is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScriptEvent {
    /// All rules of the settings have been applied.
    Reload,
    /// A flow of a route for more than one (S, G) has started.
    Install {
        /// Source address of the flow.
        source: String,
        /// Destination group of the flow.
        group: String,
    },
}

/// A script that is run once per event, one run after the other.
pub struct Script(SyncSender<ScriptEvent>);

/// Largest number of events that wait for a slow script.
const MAX_QUEUED_EVENTS: usize = 1024;
/// Shortest pause between two searches for new flows.
const SEARCH_INTERVAL: Duration = Duration::from_millis(100);

/// Interval at which the metrics of the process are set: shorter than the usual scrape interval.
const USAGE_INTERVAL: Duration = Duration::from_secs(5);

/// Sets the metrics of the process, until aborted. The threads of HTTP may open no files, so they
/// cannot read them when they answer.
pub async fn watch_usage(context: Arc<RouterContext>) {
    loop {
        match process_usage::read() {
            Ok(usage) => context.catalog.set_process_usage(&usage),
            Err(e) => {
                debug!("no metrics of the process: {e}");
                return;
            }
        }
        sleep(USAGE_INTERVAL).await;
    }
}

/// A function that is called several times a second. If it returns true, the settings are loaded
/// again.
pub type NeedsReload = Box<dyn FnMut() -> bool>;

/// Interval at which [`NeedsReload`] is called.
const RELOAD_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Loads the settings again whenever `needs_reload` returns true.
pub async fn reload_on_demand(context: Arc<RouterContext>, mut needs_reload: NeedsReload) {
    loop {
        sleep(RELOAD_CHECK_INTERVAL).await;
        if needs_reload() {
            let (answer, reloaded) = oneshot::channel();
            let sent = context.requests.send(ProcessRequest::Reload(answer)).await;
            // Either fails at the end of the process. The outcome of the reload is in the log.
            if sent.is_err() || reloaded.await.is_err() {
                return;
            }
        }
    }
}

impl Script {
    /// Starts the thread that runs the script at `path`, and the search for new flows.
    pub fn start(path: PathBuf, context: &Arc<RouterContext>) -> Self {
        let (events, queue) = sync_channel(MAX_QUEUED_EVENTS);
        // In its own thread, because a script may run for any time.
        std::thread::spawn(move || run_for_each(&path, &queue));
        actix::spawn(watch_flows(context.clone(), events.clone()));
        Self(events)
    }

    /// Queues a run of the script. Drops the event if the queue is full.
    pub fn notify(&self, event: ScriptEvent) {
        enqueue(&self.0, event);
    }
}

fn enqueue(events: &SyncSender<ScriptEvent>, event: ScriptEvent) {
    if let Err(e) = events.try_send(event) {
        warn!("script: not run for an event, because earlier runs have not finished: {e}");
    }
}

/// Runs the script for each event, until all senders are gone.
fn run_for_each(path: &PathBuf, events: &Receiver<ScriptEvent>) {
    while let Ok(event) = events.recv() {
        let mut command = Command::new(path);
        match event {
            ScriptEvent::Reload => command.arg("reload"),
            ScriptEvent::Install { source, group } => command
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

/// Queues an event for each new flow of a route for more than one (S, G). Searches for flows only
/// after an interface reported that one started or ended.
async fn watch_flows(context: Arc<RouterContext>, events: SyncSender<ScriptEvent>) {
    let mut known = HashMap::new();
    let began = Instant::now();
    loop {
        context.flow_changes.notified().await;
        let asked = began.elapsed();
        let flows = query::show(&context, ShowQuery::Flows(FlowQuery::default())).await;
        let answered = began.elapsed();
        let routes = query::show(&context, ShowQuery::Routes).await;
        if let (Ok(ShowReply::Flows(flows)), Ok(ShowReply::Routes(routes))) = (flows, routes) {
            for event in new_flows(&mut known, flows, &routes, asked..answered) {
                enqueue(&events, event);
            }
        }
        // With many flows a search takes long. The pause limits its share of the CPU time.
        sleep(SEARCH_INTERVAL.max((began.elapsed() - asked) * 10)).await;
    }
}

/// Ingress interface, source and group of a flow.
type FlowId = (String, String, String);

/// Returns the events of the `flows` that are not in `known`, or that ended and started again.
/// `known` has the latest time at which each can have started, and is updated. The ages of the flows
/// are those of a time within `asked`.
fn new_flows(
    known: &mut HashMap<FlowId, Duration>,
    flows: Vec<FlowView>,
    routes: &[RouteView],
    asked: Range<Duration>,
) -> Vec<ScriptEvent> {
    let is_of_wildcard_route = |flow: &FlowView| {
        let name = flow.route.as_ref();
        let route = routes.iter().find(|r| Some(&r.name) == name);
        route.is_some_and(|r| r.source == "*" || r.source.contains('/') || r.group.contains('/'))
    };
    let with_id = |flow: FlowView| {
        (
            (flow.iif.clone(), flow.source.clone(), flow.group.clone()),
            flow,
        )
    };
    let flows: Vec<(FlowId, FlowView)> = flows.into_iter().map(with_id).collect();
    let active: HashSet<&FlowId> = flows.iter().map(|(id, _)| id).collect();
    known.retain(|id, _| active.contains(id));
    let mut events = Vec::new();
    for (id, flow) in flows {
        if !is_of_wildcard_route(&flow) {
            continue;
        }
        let age = Duration::from_millis(flow.age_ms);
        let latest_start = asked.end.saturating_sub(age);
        // The age is in whole milliseconds.
        let earliest_start = asked.start.saturating_sub(age + Duration::from_millis(1));
        if let Some(known_start) = known.get(&id)
            && earliest_start <= *known_start
        {
            continue;
        }
        known.insert(id, latest_start);
        events.push(ScriptEvent::Install {
            source: flow.source,
            group: flow.group,
        });
    }
    events
}

/// Longest wait for the capture of all interfaces before the start is reported as complete.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Reports the end of the start to systemd and through `on_started`. Then sends keep-alive messages
/// to the watchdog of systemd, if it is enabled, as long as routing responds.
pub async fn notify_service_manager(context: Arc<RouterContext>, on_started: Option<OnStarted>) {
    let started = Instant::now();
    while !context.health.is_ready() && started.elapsed() < START_TIMEOUT {
        sleep(Duration::from_millis(20)).await;
    }
    notify(&[NotifyState::Ready]);
    if let Some(on_started) = on_started {
        on_started();
    }
    let Some(watchdog_timeout) = sd_notify::watchdog_enabled() else {
        return;
    };
    loop {
        if query::show(&context, ShowQuery::Pending).await.is_ok() {
            notify(&[NotifyState::Watchdog]);
        }
        sleep(watchdog_timeout / 3).await;
    }
}

/// Reports to systemd which process replaces this one.
pub fn notify_replaced(pid: u32) {
    notify(&[NotifyState::MainPid(pid)]);
}

/// Reports the start of the shutdown to systemd.
pub fn notify_stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Reports the start of a reload to systemd. Units with `Type=notify-reload` need the time of it.
pub fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(time) => notify(&[NotifyState::Reloading, time]),
        Err(e) => debug!("no monotonic clock: {e}"),
    }
}

/// Reports the end of a reload to systemd, and its result for `systemctl status`.
pub fn notify_reloaded(outcome: &Result<String, String>) {
    let status = match outcome {
        Ok(done) => done.clone(),
        Err(reason) => format!("reload refused: {reason}"),
    };
    // Further lines would be further notifications.
    let status = status.lines().next().unwrap_or_default();
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

fn notify(states: &[NotifyState<'_>]) {
    // Fails if systemd did not start this process.
    if let Err(e) = sd_notify::notify(states) {
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
            "packets": 1, "bytes": 1, "age_ms": 500, "idle_ms": 0
        }))
        .unwrap()
    }

    #[test]
    fn flow_of_wildcard_route_causes_one_event() {
        let route = |name: &str, source: &str| -> RouteView {
            serde_json::from_value(json!({
                "name": name, "origin": "settings", "from": "eth0", "source": source,
                "except_sources": [], "group": "225.1.2.3", "to": [], "ttl": "decrement",
                "link_local": false, "paths": [], "waiting_for": []
            }))
            .unwrap()
        };
        let routes = [route("any", "*"), route("one", "10.0.0.2")];
        let mut known = HashMap::new();
        let ms = Duration::from_millis;
        let mut asked = ms(1000)..ms(1100);
        let mut count_new = |flows| {
            let count = new_flows(&mut known, flows, &routes, asked.clone()).len();
            asked = asked.start + ms(400)..asked.end + ms(400);
            count
        };
        let aged = |age_ms| FlowView {
            age_ms,
            ..flow("10.0.0.1", Some("any"))
        };
        assert_eq!(count_new(vec![aged(50)]), 1);
        // The first age was that of 1,100 ms, and this one is that of 1,400 ms.
        assert_eq!(count_new(vec![aged(350)]), 0);
        assert_eq!(count_new(vec![aged(750)]), 0);
        // It started again at 1,900 ms.
        assert_eq!(count_new(vec![aged(350)]), 1);
        assert_eq!(count_new(vec![flow("10.0.0.1", None)]), 0);
        assert_eq!(
            count_new(vec![aged(1150), flow("10.0.0.2", Some("one"))]),
            0
        );
        assert_eq!(count_new(vec![]), 0);
        assert_eq!(count_new(vec![flow("10.0.0.1", Some("any"))]), 1);
    }
}
