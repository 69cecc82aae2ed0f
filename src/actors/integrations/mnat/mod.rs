//! One end of multicast NAT: an ingress or an egress. Requests mappings from the server and sends
//! the routes for them to routing.
//!
//! The pure parts are [`Machine`], which decides when to send which request and what a response
//! changes, and [`RoutePlan`], which decides when routes are added and removed. This actor owns the
//! clock, the connection and the files.

mod events;
mod joinfile_writer;
mod reload;
mod restored;

pub use reload::{ACTOR_NAME, reconfigure};
pub use restored::restore_routes;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::events::summary;
use self::joinfile_writer::write_joins;
use crate::actors::child::ChildStart;
use crate::actors::messages::{
    ConfigureMnat, MembersChanged, MnatRoutesChanged, MnatStatus, QueryMnat, ReportMembers,
    RetryRefused, RoutesRefused,
};
use crate::actors::mnat_route::MnatRoute;
use crate::actors::shared::RouterContext;
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};
use crate::mnat::client::{MnatClient, MnatClientError, MnatResponse};
use crate::mnat::files::{FileContent, FileWatch};
use crate::mnat::machine::POLL_INTERVAL;
use crate::mnat::protocol::Op;
use crate::mnat::{
    Channel, Config, Machine, MappingChange, MappingReport, MappingStatus, MnatEvent, MnatRole,
    RoutePlan, RouteStep, joinfile,
};
use crate::model::RouteName;
use crate::model::escape::quote;
use crate::sys::boot_clock;

/// Longest time between two writes of the joinfile. The ingress writes it after each poll, which
/// takes less time.
const JOINFILE_INTERVAL: Duration = Duration::from_millis(POLL_INTERVAL.as_millis() as u64 * 5 / 4);
/// Shortest time between two writes of the joinfile.
const MIN_JOINFILE_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which timers and files are checked.
const TICK: Duration = Duration::from_millis(100);
/// Limit of the routes whose counters are checked for a first packet in one tick.
const MAX_CHECKED: usize = 256;
/// HTTP statuses with a label value of their own in metrics. The server chooses the status, so the
/// others share one value.
const KNOWN_STATUSES: [u16; 11] = [200, 201, 204, 304, 400, 401, 403, 404, 409, 500, 503];

/// Limit of the mailbox.
const MAILBOX: usize = 256;

/// The actor.
pub struct Mnat {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    config: Arc<Config>,
    machine: Machine,
    plan: RoutePlan,
    /// `None` while a request is in progress.
    client: Option<MnatClient>,
    /// Cancels the request in progress.
    cancel: CancellationToken,
    /// Number of the connection target. Responses of a former target are ignored.
    target_number: u64,
    file_watch: Option<FileWatch>,
    from_file: BTreeSet<Channel>,
    from_members: BTreeSet<Channel>,
    /// Whether routing has received all routes since the start of this actor.
    is_synchronised: bool,
    /// Whether routing was not there to receive the last routes.
    has_unsent: bool,
    write_failed: bool,
    /// When the joinfile of an ingress was written last.
    joinfile_written: Option<Instant>,
    /// When the joinfile of an ingress is written next, if the server does not answer before.
    joinfile_due: Instant,
    /// Routes that routing refused, and the reasons.
    refused: HashMap<RouteName, String>,
    last_error: Option<String>,
}

impl Mnat {
    /// Returns an actor without mappings.
    fn new(context: Arc<RouterContext>, death_guard: DeathGuard, config: Arc<Config>) -> Self {
        // Processes that start together have different seeds, so that they do not retry together.
        let seed = u64::from(std::process::id()) << 32 | context.now_ms();
        let mut actor = Self {
            machine: Machine::new(config.role, config.grace, Instant::now(), seed),
            plan: RoutePlan::new(config.role),
            client: Some(MnatClient::new(config.target.clone())),
            cancel: CancellationToken::new(),
            target_number: 0,
            file_watch: file_watch(&config),
            from_file: BTreeSet::new(),
            from_members: BTreeSet::new(),
            is_synchronised: false,
            has_unsent: false,
            write_failed: false,
            joinfile_written: None,
            joinfile_due: Instant::now(),
            refused: HashMap::new(),
            last_error: None,
            context,
            death_guard,
            config,
        };
        actor.restore();
        actor
    }

    /// Continues the state of the former actor, of this process or of the one before. Its joins stay
    /// until routing and the joinfile name the present ones.
    fn restore(&mut self) {
        let saved = self.context.store.mnat();
        let Some((saved, clock)) = saved.zip(boot_clock::read().ok()) else {
            return;
        };
        let (machine, plan) = (&mut self.machine, &mut self.plan);
        restored::restore(&self.config, (&saved, &clock), machine, plan);
        let joins = saved.joins.iter().copied().collect();
        match self.config.joins.members {
            true => self.from_members = joins,
            false => self.from_file = joins,
        }
        self.update_joins(clock.now);
    }

    /// Updates the store.
    fn save(&self) {
        if let Ok(clock) = boot_clock::read() {
            let mut saved = self.machine.saved(&clock, restored::server(&self.config));
            saved.transitions = self.plan.saved(&clock);
            self.context.store.set_mnat(Some(saved));
        }
    }

    /// Returns an actor with the settings in force; `None` without `[mnat]`.
    pub fn from_settings(start: &ChildStart) -> Option<Self> {
        let config = start.context().mnat.load_full()?;
        Some(Self::new(start.context(), start.death_guard(), config))
    }

    fn drive(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        self.check_file(now);
        self.machine.handle_timeout(now);
        self.plan.handle_timeout(now);
        self.check_first_packets(now);
        self.handle_events(now);
        // Before the first answer, an empty list would stop the readers of the file.
        let has_joins = self.machine.assigned().next().is_some();
        if now >= self.joinfile_due && (has_joins || self.joinfile_written.is_some()) {
            self.write_joinfile(now);
        }
        match self.has_unsent {
            true => self.send_all(false),
            false => self.send_steps(),
        }
        self.send_request(now, ctx);
    }

    fn send_request(&mut self, now: Instant, ctx: &mut Context<Self>) {
        if self.client.is_none() {
            if self.machine.should_cancel(now) {
                self.cancel.cancel();
            }
            return;
        }
        let Some(request) = self.machine.poll_request(now) else {
            return;
        };
        let Some(mut client) = self.client.take() else {
            return;
        };
        self.cancel = CancellationToken::new();
        let cancel = self.cancel.clone();
        let response = async move {
            let outcome = tokio::select! {
                outcome = client.request(&request) => Some(outcome),
                () = cancel.cancelled() => None,
            };
            (client, request.op, outcome)
        };
        let response = response.into_actor(self);
        let target_number = self.target_number;
        ctx.spawn(response.map(move |(client, op, outcome), actor, ctx| {
            if actor.target_number != target_number {
                return;
            }
            actor.client = Some(client);
            match outcome {
                Some(outcome) => actor.handle_response(op, outcome),
                None => actor.machine.handle_cancelled(),
            }
            actor.drive(ctx);
        }));
    }

    fn handle_response(&mut self, op: Op, outcome: Result<MnatResponse, MnatClientError>) {
        let count = |code: &str| self.context.catalog.mnat.count_request(op.label(), code);
        match &outcome {
            Ok(response) if KNOWN_STATUSES.contains(&response.status) => {
                count(&response.status.to_string());
            }
            Ok(_) => count("other"),
            Err(e) => count(e.label()),
        }
        if let Ok(response) = &outcome {
            self.machine.set_entity_tag(response.entity_tag.clone());
        }
        let outcome = outcome.as_ref();
        let response = outcome.map(|r| (r.status, r.body.as_slice()));
        let response = response.map_err(|e| quote(&e.to_string()));
        self.machine.handle_outcome(Instant::now(), response);
    }

    fn check_file(&mut self, now: Instant) {
        let Some(content) = self.file_watch.as_mut().and_then(|watch| watch.poll(now)) else {
            return;
        };
        let path = match &self.file_watch {
            Some(watch) => watch.path().display(),
            None => return,
        };
        let bytes = match content {
            FileContent::Bytes(bytes) => bytes,
            FileContent::Missing => {
                info!("mnat: the joinfile {path} does not exist; waiting for it");
                Vec::new()
            }
            FileContent::Unreadable(e) => {
                warn!(
                    "mnat: cannot read the joinfile {path}: {e}; its last content stays in force"
                );
                return;
            }
        };
        let file = joinfile::parse(&bytes);
        if file.fault_count > 0 {
            let faults = file.faults.iter();
            let faults =
                faults.map(|(line, fault)| format!("line {line}: {}", quote(&fault.to_string())));
            let faults = summary(file.fault_count, faults);
            warn!("mnat: {path}: invalid lines are skipped: {faults}");
        }
        for (channels, verb) in [
            (file.joins.difference(&self.from_file), "joined"),
            (self.from_file.difference(&file.joins), "left"),
        ] {
            let count = channels.clone().count();
            if count > 0 {
                debug!("mnat: {path}: {verb} {}", summary(count, channels));
            }
        }
        self.from_file = file.joins;
        self.update_joins(now);
    }

    fn update_joins(&mut self, now: Instant) {
        let joins = self.from_file.union(&self.from_members).copied().collect();
        self.machine.set_joins(now, &joins);
    }

    fn handle_events(&mut self, now: Instant) {
        let mut changed = false;
        while let Some(event) = self.machine.poll_event() {
            changed = true;
            match event {
                MnatEvent::Change(change) => self.handle_change(now, &change),
                MnatEvent::Polled { settled } => self.handle_poll(now, settled),
                other => {
                    events::log_event(&self.config.target.host, self.config.grace, &other);
                    match other {
                        MnatEvent::Failed { why, .. } => self.last_error = Some(why),
                        MnatEvent::ServerUp => self.last_error = None,
                        _ => {}
                    }
                }
            }
        }
        if changed {
            self.update_metrics();
            self.save();
        }
    }

    fn handle_change(&mut self, now: Instant, change: &MappingChange) {
        match change {
            MappingChange::Add {
                global,
                local,
                waited,
            } => {
                info!(group = %global.group(), "mnat: {global} is mapped to {local}");
                if let Some(waited) = waited {
                    self.context
                        .catalog
                        .mnat
                        .observe_join_seconds(waited.as_secs_f64());
                }
            }
            MappingChange::Remove { global, local, why } => {
                info!(
                    group = %global.group(), "mnat: {global} is no longer mapped to {local}: {}",
                    why.description()
                );
            }
            MappingChange::Swap {
                global, old, new, ..
            } => {
                info!(group = %global.group(), "mnat: {global} is mapped to {new} instead of {old}");
            }
        }
        self.plan.apply(now, change);
    }

    fn handle_poll(&mut self, now: Instant, settled: bool) {
        self.last_error = None;
        if settled && !self.is_synchronised {
            self.is_synchronised = true;
            self.send_all(true);
        }
        // A server that answers at each change may answer many times a second.
        match self.joinfile_written {
            Some(written) if now < written + MIN_JOINFILE_INTERVAL => {
                self.joinfile_due = written + MIN_JOINFILE_INTERVAL;
            }
            _ => self.write_joinfile(now),
        }
    }

    /// Writes the joinfile of an ingress: the streams that it forwards, also those whose mappings
    /// are held while the server is away.
    fn write_joinfile(&mut self, now: Instant) {
        self.joinfile_due = now + JOINFILE_INTERVAL;
        let is_ingress = self.config.role == MnatRole::Ingress;
        let Some(path) = self.config.joinfile.as_ref().filter(|_| is_ingress) else {
            return;
        };
        let joins: Vec<Channel> = self.machine.assigned().collect();
        let written = write_joins(path, &joins);
        self.joinfile_written = Some(now);
        match &written {
            Ok(()) if self.write_failed => {
                info!("mnat: the joinfile {} can be written again", path.display())
            }
            Err(e) if !self.write_failed => {
                let path = path.display();
                warn!("mnat: cannot write the joinfile {path}: {e}; trying again");
            }
            _ => {}
        }
        self.write_failed = written.is_err();
    }

    /// Ends the use of an old mapping when the new one has forwarded its first packet.
    fn check_first_packets(&mut self, now: Instant) {
        let awaited: Vec<_> = self.plan.awaited_routes().take(MAX_CHECKED).collect();
        for (matched, rewritten) in awaited {
            let name = MnatRoute { matched, rewritten }.name();
            let catalog = &self.context.catalog;
            let (iif, oif) = (&self.config.upstream, &self.config.downstream);
            let sent = catalog.path_totals(&name, iif.as_str(), oif.as_str());
            let stream = (matched, rewritten);
            self.plan.handle_packet_count(now, stream, sent.packets);
        }
    }

    /// Sends changed routes to routing.
    fn send_steps(&mut self) {
        let steps = self.take_steps();
        if !steps.is_empty() {
            self.send(false, steps);
        }
    }

    /// Sends all routes to routing. With `replace_all`, routing removes all other MNAT routes.
    fn send_all(&mut self, replace_all: bool) {
        let _ = self.take_steps();
        let all = self.plan.routes();
        let steps = all.map(MnatRoute::from).map(MnatRoute::install).collect();
        self.send(replace_all, steps);
    }

    fn take_steps(&mut self) -> Vec<RouteStep> {
        let mut steps = Vec::new();
        while let Some(step) = self.plan.poll_step() {
            if let RouteStep::Install { matched, rewritten } = step
                && !self.refused.is_empty()
            {
                let route = MnatRoute { matched, rewritten };
                self.refused.remove(&route.name());
            }
            steps.push(step);
        }
        steps
    }

    fn send(&mut self, replace_all: bool, steps: Vec<RouteStep>) {
        let message = MnatRoutesChanged {
            steps,
            replace_all,
            ..MnatRoutesChanged::remove_all(&self.config)
        };
        self.has_unsent = !self.context.directory.do_send(message);
        if self.has_unsent {
            self.is_synchronised = false;
        }
    }

    fn update_metrics(&self) {
        let metrics = &self.context.catalog.mnat;
        metrics.set_server_up(self.machine.is_up());
        let mut counts = self.machine.counts();
        if !self.refused.is_empty() {
            counts = MappingStatus::ALL.map(|_| 0);
            for report in self.mapping_reports() {
                let position = MappingStatus::ALL.iter().position(|s| *s == report.status);
                position
                    .into_iter()
                    .for_each(|position| counts[position] += 1);
            }
        }
        for (status, count) in MappingStatus::ALL.into_iter().zip(counts) {
            metrics.set_mappings(self.config.role.label(), status.label(), count);
        }
    }

    fn configure(&mut self, config: Arc<Config>, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let former = std::mem::replace(&mut self.config, config);
        let config = self.config.clone();
        self.machine.set_grace(config.grace);
        if former.target != config.target {
            let (host, port) = (&config.target.host, config.target.port);
            info!("mnat: new server {host}:{port}; mappings are held until it answers");
            // A response of the former server is ignored.
            self.target_number += 1;
            self.client = Some(MnatClient::new(config.target.clone()));
            self.machine.reset_connection(now);
            self.last_error = None;
        }
        if (&former.joinfile, former.joins) != (&config.joinfile, config.joins) {
            self.file_watch = file_watch(&config);
            // The joins of the former file stay until the new one is read below.
            if self.file_watch.is_none() {
                self.from_file.clear();
            }
            if !config.joins.members {
                self.from_members.clear();
            }
            self.write_failed = false;
        }
        if (&former.upstream, &former.downstream) != (&config.upstream, &config.downstream) {
            self.send_all(self.is_synchronised);
        }
        // The members may be those of another interface now.
        self.context.directory.do_send(ReportMembers);
        self.update_joins(now);
        self.drive(ctx);
        self.update_metrics();
    }

    fn end(&mut self, ctx: &mut Context<Self>) {
        info!("mnat: removed from the settings; removing its routes");
        let remove_all = MnatRoutesChanged::remove_all(&self.config);
        self.context.directory.do_send(remove_all);
        self.context.store.set_mnat(None);
        let metrics = &self.context.catalog.mnat;
        metrics.set_server_up(false);
        for status in MappingStatus::ALL {
            metrics.set_mappings(self.config.role.label(), status.label(), 0);
        }
        self.death_guard.disarm();
        ctx.stop();
    }

    /// Returns the status of every mapping, including those whose routes are refused.
    fn mapping_reports(&self) -> Vec<MappingReport> {
        let mut all = self.machine.mapping_reports();
        if self.refused.is_empty() {
            return all;
        }
        for report in &mut all {
            let Some(local) = report.local else { continue };
            let (matched, rewritten) = match self.config.role {
                MnatRole::Ingress => (report.global, local),
                MnatRole::Egress => (local, report.global),
            };
            let name = MnatRoute { matched, rewritten }.name();
            if let Some(why) = self.refused.get(&name) {
                report.status = MappingStatus::Conflict;
                report.why = Some(why.clone());
            }
        }
        all
    }
}

/// Returns the watch of the joinfile that an egress reads.
fn file_watch(config: &Config) -> Option<FileWatch> {
    let reads = config.role == MnatRole::Egress && config.joins.joinfile;
    config
        .joinfile
        .clone()
        .filter(|_| reads)
        .map(FileWatch::new)
}

impl Actor for Mnat {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let directory = &self.context.directory;
        directory
            .register(ctx.address())
            .receives::<MembersChanged>()
            .receives::<RoutesRefused>()
            .receives::<RetryRefused>()
            .receives::<ConfigureMnat>()
            .receives::<QueryMnat>();
        directory.do_send(ReportMembers);
        let (role, host) = (self.config.role, &self.config.target.host);
        info!("mnat: {role}, server {host}");
        self.update_metrics();
        if self.config.role == MnatRole::Egress {
            self.context.catalog.mnat.expose_join_seconds();
        }
        self.drive(ctx);
        ctx.run_interval(TICK, Self::drive);
    }
}

impl Handler<MembersChanged> for Mnat {
    type Result = ();

    fn handle(&mut self, message: MembersChanged, ctx: &mut Self::Context) {
        // The members may be those of another proxy on the same interface.
        if !self.config.joins.members {
            return;
        }
        self.from_members = message.0;
        self.update_joins(Instant::now());
        self.drive(ctx);
    }
}

impl Handler<RoutesRefused> for Mnat {
    type Result = ();

    fn handle(&mut self, message: RoutesRefused, _: &mut Self::Context) {
        let mut former = HashMap::new();
        if message.complete {
            former = std::mem::take(&mut self.refused);
        }
        let refused = message.refused.iter();
        let new = refused.filter(|(name, why)| former.get(name) != Some(why));
        let new: Vec<String> = new
            .map(|(name, why)| format!("\"{name}\": {why}"))
            .collect();
        if !new.is_empty() {
            warn!("mnat: routes are refused: {}", summary(new.len(), &new));
        }
        self.refused.extend(message.refused);
        // Reasons of removed mappings are forgotten.
        if !self.refused.is_empty() {
            let routes = self.plan.routes().map(|r| MnatRoute::from(r).name());
            let routes: HashSet<RouteName> = routes.collect();
            self.refused.retain(|name, _| routes.contains(name));
        }
        self.update_metrics();
    }
}

impl Handler<RetryRefused> for Mnat {
    type Result = ();

    fn handle(&mut self, _: RetryRefused, _: &mut Self::Context) {
        if !self.refused.is_empty() && self.is_synchronised {
            self.send_all(true);
        }
    }
}

impl Handler<QueryMnat> for Mnat {
    type Result = MnatStatus;

    fn handle(&mut self, _: QueryMnat, _: &mut Self::Context) -> MnatStatus {
        MnatStatus {
            config: self.config.clone(),
            is_up: self.machine.is_up(),
            error: self.last_error.clone(),
            mappings: self.mapping_reports(),
            are_routes_sent: !self.has_unsent,
        }
    }
}

panics_on_demand!(Mnat);

impl Handler<Stop> for Mnat {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.death_guard.disarm();
        ctx.stop();
    }
}
