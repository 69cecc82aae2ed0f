//! Reads what clients watch, once for all of them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::frame::{LiveFrame, RateMemory, Readings};
use super::table::TableName;
use crate::actors::RouterContext;
use crate::api::FlowQuery;
use crate::frontend::{background, flow_views, query};

/// Interval between two frames.
const INTERVAL: Duration = Duration::from_secs(1);
/// Shortest interval, if a new client waits for its first frame.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(250);
/// A frame that takes long to make is followed by a pause that is this many times as long.
const PAUSE_FACTOR: u32 = 4;
/// Intervals without a client after which the counters of rates are forgotten.
const MAX_UNWATCHED: u32 = 5;
/// Most clients.
const MAX_SUBSCRIPTIONS: usize = 16;

/// The frames, and who watches them.
pub struct Feed {
    context: Arc<RouterContext>,
    frames: watch::Sender<Arc<LiveFrame>>,
    watched: Mutex<Watched>,
    /// Notified when a client waits for a frame.
    wanted: Notify,
}

#[derive(Default)]
struct Watched {
    is_running: bool,
    /// The tables of each client.
    clients: Vec<(u64, Vec<TableName>)>,
    next_id: u64,
}

/// A client that watches tables, until it is dropped.
pub struct FeedSubscription {
    id: u64,
    feed: Arc<Feed>,
    frames: watch::Receiver<Arc<LiveFrame>>,
}

/// There are as many clients as the feed serves.
#[derive(Debug, thiserror::Error)]
#[error(
    "{MAX_SUBSCRIPTIONS} event streams are open, which is the limit; close a page of this router \
     in another browser, and try again"
)]
pub struct TooManySubscriptions;

impl Feed {
    /// Returns a feed without clients.
    pub fn new(context: Arc<RouterContext>) -> Arc<Self> {
        Arc::new(Self {
            context,
            frames: watch::Sender::new(Arc::default()),
            watched: Mutex::default(),
            wanted: Notify::new(),
        })
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches tables. The first frame that contains them follows soon.
    ///
    /// # Errors
    /// There are too many clients.
    pub fn subscribe(
        self: &Arc<Self>,
        tables: Vec<TableName>,
    ) -> Result<FeedSubscription, TooManySubscriptions> {
        let mut watched = self.watched();
        if watched.clients.len() >= MAX_SUBSCRIPTIONS {
            return Err(TooManySubscriptions);
        }
        let id = watched.next_id;
        watched.next_id += 1;
        watched.clients.push((id, tables));
        if !std::mem::replace(&mut watched.is_running, true) {
            actix_web::rt::spawn(self.clone().run());
        }
        self.wanted.notify_one();
        Ok(FeedSubscription {
            id,
            feed: self.clone(),
            frames: self.frames.subscribe(),
        })
    }

    /// Makes frames while there are clients.
    async fn run(self: Arc<Self>) {
        let mut memory = RateMemory::default();
        let mut unwatched = 0;
        loop {
            let tables = self.watched().tables();
            let started = Instant::now();
            if tables.is_empty() {
                unwatched += 1;
                if unwatched > MAX_UNWATCHED && self.end_if_unwatched() {
                    self.frames.send_replace(Arc::default());
                    return;
                }
            } else {
                unwatched = 0;
                let readings = read(&self.context, tables).await;
                let made = background::run(move || {
                    let frame = LiveFrame::new(readings, &mut memory);
                    (frame, memory)
                });
                // Without a thread, there is no frame this time.
                memory = match made.await {
                    Some((frame, memory)) => {
                        self.frames.send_replace(frame.into());
                        memory
                    }
                    None => RateMemory::default(),
                };
            }
            let busy = started.elapsed() * PAUSE_FACTOR;
            let wanted = async {
                sleep(SHORTEST_INTERVAL.max(busy)).await;
                self.wanted.notified().await;
            };
            tokio::select! {
                () = sleep(INTERVAL.max(busy)) => {}
                () = wanted => {}
            }
        }
    }

    /// Returns whether there is still no client. A later one starts another task.
    fn end_if_unwatched(&self) -> bool {
        let mut watched = self.watched();
        watched.is_running = !watched.clients.is_empty();
        !watched.is_running
    }
}

impl Watched {
    fn tables(&self) -> BTreeSet<TableName> {
        let tables = self.clients.iter().flat_map(|(_, tables)| tables);
        tables.copied().collect()
    }
}

impl FeedSubscription {
    /// Waits for the next frame.
    pub async fn frame(&mut self) -> Option<Arc<LiveFrame>> {
        self.frames.changed().await.ok()?;
        Some(self.frames.borrow_and_update().clone())
    }
}

impl Drop for FeedSubscription {
    fn drop(&mut self) {
        self.feed.watched().clients.retain(|(id, _)| *id != self.id);
    }
}

/// Reads the replies that have the rows of `tables`.
async fn read(context: &RouterContext, mut tables: BTreeSet<TableName>) -> Readings {
    let mut readings = Readings {
        router: router(context),
        ..Readings::default()
    };
    if tables.remove(&TableName::Flows) {
        context.count_planes();
        let query = FlowQuery {
            dropped: true,
            ..FlowQuery::default()
        };
        match flow_views::read_table(context, &query).await {
            Ok(flows) => readings.flows = Some(flows),
            Err(_) => {
                readings.error = Some(query::QueryError::NoAnswer("an interface").to_string())
            }
        }
    }
    readings.at_ms = context.now_ms();
    while let Some(first) = tables.pop_first() {
        let source = first.source();
        let mut names = vec![first];
        names.extend(tables.iter().filter(|table| table.source() == source));
        tables.retain(|table| table.source() != source);
        match query::show(context, source).await {
            Ok(reply) => readings.replies.push((names, reply)),
            Err(e) => readings.error = Some(e.to_string()),
        }
    }
    readings
}

/// Returns properties of the router as a whole.
fn router(context: &RouterContext) -> Value {
    let plane = context.planes.serving(None);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "host": nix::unistd::gethostname().unwrap_or_default().to_string_lossy(),
        "plane": plane.map(|plane| plane.name()).unwrap_or_default(),
        "is_ready": context.health.is_ready(),
        "flows": context.flows.live(),
        "flow_limit": context.flows.limit(),
        "uptime_ms": context.now_ms(),
    })
}
