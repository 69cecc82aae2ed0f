//! Follows the reports about monitored streams: sets their metrics, logs their events, and sends
//! alerts to a webhook. The data threads take no part in any of it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use actix::prelude::*;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::actors::log_limit::LogLimit;
use crate::actors::shared::RouterContext;
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};
use crate::api::StreamView;
use crate::api::streams::TsView;
use crate::metrics::streams::{StreamCounter, StreamGauge, StreamLabels, StreamNumbers};
use crate::model::Webhook;
use crate::streams::alerts::Alerts;
use crate::streams::events::{Event, EventKind, EventTracker, StreamName};

/// The `actor` label of this actor.
pub const ACTOR_NAME: &str = "streams";

/// How often the reports are read.
const TICK: Duration = Duration::from_millis(500);

/// The most requests that wait for the webhook.
const MAX_REQUESTS: usize = 16;

/// How long the webhook may take for a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Event lines within a minute.
const MAX_LINES: u32 = 60;

/// The actor.
pub struct Streams {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    tracker: EventTracker,
    alerts: Alerts,
    requests: Option<mpsc::Sender<(Webhook, String)>>,
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
            requests: None,
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
            let queue = self.requests.as_ref();
            let sent = queue.map(|queue| queue.try_send((webhook.clone(), body)));
            if !matches!(sent, Some(Ok(()))) {
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

/// Sends the requests to the webhook, one after the other. Ends with the actor.
async fn send_requests(
    context: Arc<RouterContext>,
    mut requests: mpsc::Receiver<(Webhook, String)>,
) {
    let mut log_limit = LogLimit::new(1);
    while let Some((webhook, body)) = requests.recv().await {
        let sent = timeout(REQUEST_TIMEOUT, post(&webhook, body)).await;
        let metrics = &context.catalog.streams;
        let error = match sent {
            Ok(Ok(())) => {
                metrics.count_alert_request("sent");
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".into(),
        };
        metrics.count_alert_request("failed");
        if let Some(suppressed) = log_limit.permit(Instant::now()) {
            warn!(
                "monitor: the webhook at {} does not take alerts: {error}; check `monitor.webhook` \
                 in the settings{suppressed}",
                webhook.address
            );
        }
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
enum PostError {
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("it answers {0}")]
    Status(http::StatusCode),
}

async fn post(webhook: &Webhook, body: String) -> Result<(), PostError> {
    let request = Request::post(&webhook.path)
        .header(header::HOST, webhook.address.to_string())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let stream = TcpStream::connect(webhook.address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends when the sender is dropped. Its errors are those of the request.
    actix_rt::spawn(connection);
    let answer = sender.send_request(request).await?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(PostError::Status(status)),
    }
}

impl Actor for Streams {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (sender, receiver) = mpsc::channel(MAX_REQUESTS);
        self.requests = Some(sender);
        let context = self.context.clone();
        ctx.spawn(send_requests(context, receiver).into_actor(self));
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
