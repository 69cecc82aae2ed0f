//! Follows the reports about monitored streams: sets their metrics, logs their events, and passes
//! alerts to the sender of the webhook. The data threads take no part in any of it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use actix::prelude::*;
use tracing::{info, warn};

use crate::actors::log_limit::LogLimit;
use crate::actors::messages::SendAlerts;
use crate::actors::shared::RouterContext;
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};
use crate::api::StreamView;
use crate::api::streams::TsView;
use crate::metrics::streams::{StreamCounter, StreamGauge, StreamLabels, StreamNumbers};
use crate::streams::alerts::Alerts;
use crate::streams::events::{Event, EventKind, EventTracker, StreamName};

/// The `actor` label of this actor.
pub const ACTOR_NAME: &str = "streams";

/// How often the reports are read.
const TICK: Duration = Duration::from_millis(500);

/// Event lines within a minute.
const MAX_LINES: u32 = 60;

/// The actor.
pub struct Streams {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    tracker: EventTracker,
    alerts: Alerts,
    log_limit: LogLimit,
    /// Whether any stream was monitored at the last tick.
    had_streams: bool,
}

impl Streams {
    /// Returns an actor that follows the reports in `context`.
    pub fn new(context: Arc<RouterContext>, death_guard: DeathGuard) -> Self {
        Self {
            context,
            death_guard,
            tracker: EventTracker::default(),
            alerts: Alerts::default(),
            log_limit: LogLimit::new(MAX_LINES),
            had_streams: false,
        }
    }

    fn tick(&mut self) {
        let monitoring = &self.context.monitoring;
        let metrics = &self.context.catalog.streams;
        let registry = &monitoring.registry;
        let left_out = registry.take_left_out();
        metrics.set_limit(registry.live(), registry.limit(), left_out);
        let snapshot = self.context.snapshot.load_full();
        let views = monitoring.views(&snapshot.fib, self.context.now_ms());
        let had_streams = std::mem::replace(&mut self.had_streams, !views.is_empty());
        if views.is_empty() && !had_streams {
            return;
        }
        metrics.set(&views.iter().map(numbers).collect());
        let settings = monitoring.events.load_full();
        let events = self.tracker.look(&views, settings.thresholds);
        for event in &events {
            metrics.count_event(event.kind.label());
            if let Some(suppressed) = self.log_limit.permit(Instant::now()) {
                log(event, &suppressed.to_string());
            }
        }
        let Some(webhook) = &settings.webhook else {
            self.alerts = Alerts::default();
            return;
        };
        let requests = (self.alerts).requests(&events, &self.tracker, SystemTime::now());
        for body in requests {
            let webhook = webhook.clone();
            let directory = &self.context.directory;
            if !directory.try_send(SendAlerts { webhook, body }) {
                metrics.count_alert_request("dropped");
            }
        }
    }
}

/// Logs an event.
fn log(event: &Event, suppressed: &str) {
    let StreamName { iif, source, group } = &event.stream;
    let route = event.route.as_deref().unwrap_or_default();
    let (kind, text) = (event.kind.label(), &event.text);
    // The level is part of the statement.
    macro_rules! line {
        ($level:ident) => {
            $level!(
                event = kind, interface = %iif, source = %source, group = %group, route = %route,
                "stream ({source}, {group}) from {iif}: {kind}: {text}{suppressed}"
            )
        };
    }
    match event.kind {
        EventKind::Silent | EventKind::Loss => line!(warn),
        EventKind::Back
        | EventKind::LossEnded
        | EventKind::SourceChanged
        | EventKind::RateChanged => line!(info),
    }
}

/// Returns the metrics of a stream.
fn numbers(view: &StreamView) -> (StreamLabels, StreamNumbers) {
    let health = &view.ingress;
    let mut counters = vec![
        (StreamCounter::Packets, String::new(), health.packets),
        (StreamCounter::Bytes, String::new(), health.bytes),
    ];
    let before = view.lost_before.map(|lost| lost.total);
    counters.extend(before.map(|total| (StreamCounter::LostBefore, String::new(), total)));
    let here = view.lost_here.iter();
    counters
        .extend(here.map(|(reason, lost)| (StreamCounter::LostHere, reason.clone(), lost.total)));
    let egresses = view.egresses.iter();
    counters.extend(egresses.map(|egress| {
        let packets = egress.health.packets;
        (StreamCounter::Sent, egress.interface.clone(), packets)
    }));
    if let Some(ts) = &health.ts {
        let errors = ts_errors(ts).into_iter();
        counters
            .extend(errors.map(|(kind, count)| (StreamCounter::TsErrors, kind.to_string(), count)));
    }
    let mut gauges = vec![
        (StreamGauge::Idle, view.idle_ms as f64 / 1e3),
        (StreamGauge::Rate, health.rate.bits_per_second as f64),
    ];
    let jitter_us = health.rtp.as_ref().and_then(|rtp| rtp.jitter_us);
    gauges.extend(jitter_us.map(|us| (StreamGauge::Jitter, us as f64 / 1e6)));
    if let Some(mdi) = health.mdi {
        let delay_factor = mdi.delay_factor_us as f64 / 1e6;
        gauges.push((StreamGauge::DelayFactor, delay_factor));
        gauges.push((StreamGauge::MediaLossRate, mdi.media_loss_rate as f64));
    }
    let labels = [view.iif.clone(), view.source.clone(), view.group.clone()];
    let numbers = StreamNumbers {
        counters,
        gauges,
        verdict: view.verdict.label(),
    };
    (labels, numbers)
}

/// Returns the faults of MPEG-TS, by kind.
fn ts_errors(ts: &TsView) -> [(&'static str, u64); 6] {
    [
        ("sync", ts.sync_errors),
        ("pat", ts.pat_errors),
        ("continuity", ts.continuity_errors),
        ("pmt", ts.pmt_errors),
        ("pid", ts.pid_errors),
        ("transport", ts.transport_errors),
    ]
}

impl Actor for Streams {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(TICK, |actor, _| actor.tick());
    }
}

panics_on_demand!(Streams);

impl Handler<Stop> for Streams {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.death_guard.disarm();
        ctx.stop();
    }
}
