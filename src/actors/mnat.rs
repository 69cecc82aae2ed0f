//! One end of multicast NAT: asks the server, and has routing rewrite what it maps.
//!
//! A shell: [`Machine`] decides when what is asked and what the answers change, [`RoutePlan`] which
//! routes come and go and when. Here are the clock, the connection and the files.

mod reload;
mod tell;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use tracing::{debug, info, warn};

use super::context::{DeathGuard, RouterContext, Stop, panics_on_demand};
use super::rewritings::{Rewriting, Rewritings, TellHosts};
use crate::api::view::{MappingView, MnatView};
use crate::mnat::client::{MnatClient, MnatClientError};
use crate::mnat::files::{self, FileContent, FileWatch};

use crate::mnat::protocol::Op;
use crate::mnat::{
    Channel, Config, Machine, MappingChange, MappingReport, MappingStatus, MnatEvent, MnatRole,
    RoutePlan, RouteStep, joinfile,
};
use crate::model::{IfName, RouteName};

/// How often clock and files are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Routes between two mappings that are asked for their first packet in one turn.
const MOST_ASKED: usize = 256;
/// Statuses that have a value of their own in metrics; a stranger chooses them.
const KNOWN_STATUSES: [u16; 10] = [200, 201, 204, 400, 401, 403, 404, 409, 500, 503];

/// What hosts downstream want from now on, whole: an egress has it mapped.
#[derive(Message)]
#[rtype(result = "()")]
pub struct HostsWant(pub BTreeSet<Channel>);

/// Which routes routing left out, and why.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Refused {
    /// There are no others.
    pub whole: bool,
    /// Their names, and the reasons.
    pub refused: Vec<(RouteName, String)>,
}

/// What was left out may be tried again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Resend;

pub use reload::Configure;

/// Asks how everything stands.
pub struct AskMnat;

impl Message for AskMnat {
    type Result = MnatView;
}

/// Where the actor that lives now is found.
pub struct MnatHandle {
    /// Its address.
    pub address: Addr<Mnat>,
    /// Behind which interface the hosts are that an egress listens to.
    pub downstream: IfName,
}

/// The actor.
pub struct Mnat {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    config: Arc<Config>,
    machine: Machine,
    plan: RoutePlan,
    /// `None` while a request is on its way.
    client: Option<MnatClient>,
    /// Which client that is: one more with each other target.
    asking: u64,
    watch: Option<FileWatch>,
    from_file: BTreeSet<Channel>,
    from_hosts: BTreeSet<Channel>,
    /// Routing has heard of all routes of this life.
    swept: bool,
    cannot_write: bool,
    /// Routes that routing left out, and why.
    refused: HashMap<RouteName, String>,
    trouble: Option<String>,
}

impl Mnat {
    /// An end that knows no mappings yet.
    pub fn new(context: Arc<RouterContext>, death_guard: DeathGuard, config: Arc<Config>) -> Self {
        // Differs between processes started together, so that they do not come back together.
        let seed = u64::from(std::process::id()) << 32 | context.now_ms();
        Self {
            machine: Machine::new(config.role, config.grace, Instant::now(), seed),
            plan: RoutePlan::new(config.role),
            client: Some(MnatClient::new(config.target.clone())),
            asking: 0,
            watch: watch_of(&config),
            from_file: BTreeSet::new(),
            from_hosts: BTreeSet::new(),
            swept: false,
            cannot_write: false,
            refused: HashMap::new(),
            trouble: None,
            context,
            death_guard,
            config,
        }
    }

    /// Others find this actor from now on.
    fn take_seat(&self, ctx: &Context<Self>) {
        self.context.mnat.store(Some(Arc::new(MnatHandle {
            address: ctx.address(),
            downstream: self.config.downstream.clone(),
        })));
    }

    fn drive(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        self.look_at_file(now);
        self.machine.handle_timeout(now);
        self.plan.handle_timeout(now);
        self.look_for_packets();
        self.take_events(now);
        self.send_steps();
        self.ask(now, ctx);
    }

    fn ask(&mut self, now: Instant, ctx: &mut Context<Self>) {
        if self.client.is_none() {
            return;
        }
        let Some(request) = self.machine.poll_request(now) else {
            return;
        };
        let Some(mut client) = self.client.take() else {
            return;
        };
        let asked = async move {
            let outcome = client.send(&request).await;
            (client, request.op, outcome)
        };
        let asked = asked.into_actor(self);
        let asking = self.asking;
        ctx.spawn(asked.map(move |(client, op, outcome), actor, ctx| {
            if actor.asking != asking {
                return;
            }
            actor.client = Some(client);
            actor.outcome(op, outcome);
            actor.drive(ctx);
        }));
    }

    fn outcome(&mut self, op: Op, outcome: Result<(u16, Vec<u8>), MnatClientError>) {
        let count = |code: &str| self.context.catalog.mnat.count_request(op.label(), code);
        match &outcome {
            Ok((status, _)) if KNOWN_STATUSES.contains(status) => count(&status.to_string()),
            Ok(_) => count("other"),
            Err(e) => count(e.label()),
        }
        let outcome = outcome.as_ref();
        let told = outcome.map(|(status, body)| (*status, body.as_slice()));
        let told = told.map_err(ToString::to_string);
        self.machine.handle_outcome(Instant::now(), told);
    }

    fn look_at_file(&mut self, now: Instant) {
        let Some(seen) = self.watch.as_mut().and_then(|watch| watch.look(now)) else {
            return;
        };
        let path = match &self.watch {
            Some(watch) => watch.path().display(),
            None => return,
        };
        let bytes = match seen {
            FileContent::Bytes(bytes) => bytes,
            FileContent::Gone => {
                info!("mnat: there is no joinfile {path}; waiting for it");
                Vec::new()
            }
            FileContent::Unreadable(e) => {
                warn!("mnat: cannot read the joinfile {path}: {e}; what it said last still counts");
                return;
            }
        };
        let file = joinfile::parse(&bytes);
        for (line, fault) in &file.faults {
            warn!("mnat: {path}:{line}: {fault}; the line is skipped");
        }
        let more = file.fault_count - file.faults.len();
        if more > 0 {
            warn!("mnat: {path}: {more} more lines are skipped");
        }
        for channel in file.joins.difference(&self.from_file) {
            debug!("mnat: {channel}: joined by {path}");
        }
        for channel in self.from_file.difference(&file.joins) {
            debug!("mnat: {channel}: left by {path}");
        }
        self.from_file = file.joins;
        self.want(now);
    }

    fn want(&mut self, now: Instant) {
        let wanted = self.from_file.union(&self.from_hosts).copied().collect();
        self.machine.want(now, &wanted);
    }

    fn take_events(&mut self, now: Instant) {
        let mut any = false;
        while let Some(event) = self.machine.poll_event() {
            any = true;
            match event {
                MnatEvent::Change(change) => self.change(now, &change),
                MnatEvent::Polled { settled } => self.polled(settled),
                other => self.tell(other),
            }
        }
        if any {
            self.show();
        }
    }

    fn change(&mut self, now: Instant, change: &MappingChange) {
        match change {
            MappingChange::Add {
                global,
                local,
                waited,
            } => {
                info!("mnat: {global} is {local} in the network");
                if let Some(waited) = waited {
                    self.context
                        .catalog
                        .mnat
                        .observe_join_seconds(waited.as_secs_f64());
                }
            }
            MappingChange::Remove { global, local, why } => {
                info!("mnat: {global} is no longer {local}: {}", why.words());
            }
            MappingChange::Swap { global, old, new } => {
                info!("mnat: {global} is {new} in the network, and no longer {old}");
            }
        }
        self.plan.apply(now, change);
    }

    fn polled(&mut self, settled: bool) {
        self.trouble = None;
        if settled && !self.swept {
            self.swept = true;
            self.send_all(true);
        }
        let writes = self.config.role == MnatRole::Ingress;
        let Some(path) = self.config.joinfile.as_ref().filter(|_| writes) else {
            return;
        };
        let text = joinfile::render(self.machine.assigned());
        let written = files::write(path, &text);
        match &written {
            Ok(()) if self.cannot_write => info!("mnat: {} is written again", path.display()),
            Err(e) if !self.cannot_write => {
                let path = path.display();
                warn!("mnat: cannot write the joinfile {path}: {e}; trying again with each poll");
            }
            _ => {}
        }
        self.cannot_write = written.is_err();
    }

    /// The first packet of a new mapping ends the use of the old one.
    fn look_for_packets(&mut self) {
        let awaited: Vec<_> = self.plan.awaited().take(MOST_ASKED).collect();
        for (matched, rewritten) in awaited {
            let name = Rewriting { matched, rewritten }.name();
            let catalog = &self.context.catalog;
            let (iif, oif) = (&self.config.upstream, &self.config.downstream);
            let plane = self.context.plane.name();
            let sent = catalog.path(&name, iif.as_str(), oif.as_str(), plane);
            if sent.packets.get() > 0 {
                self.plan.delivered(matched);
            }
        }
    }

    /// Tells routing what changed.
    fn send_steps(&mut self) {
        let steps = self.take_steps();
        if !steps.is_empty() {
            self.send(false, steps);
        }
    }

    /// Tells routing of all routes. `whole`: what it has besides, of an earlier life, is gone.
    fn send_all(&mut self, whole: bool) {
        let _ = self.take_steps();
        let all = self.plan.routes();
        let steps = all.map(Rewriting::from).map(Rewriting::install).collect();
        self.send(whole, steps);
    }

    fn take_steps(&mut self) -> Vec<RouteStep> {
        let mut steps = Vec::new();
        while let Some(step) = self.plan.poll_step() {
            if let RouteStep::Install { matched, rewritten } = step
                && !self.refused.is_empty()
            {
                let again = Rewriting { matched, rewritten };
                self.refused.remove(&again.name());
            }
            steps.push(step);
        }
        steps
    }

    fn send(&mut self, whole: bool, steps: Vec<RouteStep>) {
        let message = Rewritings {
            steps,
            whole,
            ..Rewritings::none(&self.config)
        };
        // As many as mappings change; routing that is being rebuilt is told all anew.
        match self.context.routing.load_full() {
            Some(routing) => routing.do_send(message),
            None => self.swept = false,
        }
    }

    fn show(&self) {
        let families = &self.context.catalog.mnat;
        families.set_server_up(self.machine.is_up());
        let mut counts = self.machine.counts();
        if !self.refused.is_empty() {
            counts = MappingStatus::ALL.map(|_| 0);
            for stand in self.standings() {
                let at = MappingStatus::ALL.iter().position(|s| *s == stand.standing);
                at.into_iter().for_each(|at| counts[at] += 1);
            }
        }
        for (standing, count) in MappingStatus::ALL.into_iter().zip(counts) {
            families.set_mappings(self.config.role.label(), standing.label(), count);
        }
    }

    /// How each stands, what routing left out included.
    fn standings(&self) -> Vec<MappingReport> {
        let mut all = self.machine.standings();
        if self.refused.is_empty() {
            return all;
        }
        for stand in &mut all {
            let Some(local) = stand.local else { continue };
            let (matched, rewritten) = match self.config.role {
                MnatRole::Ingress => (stand.global, local),
                MnatRole::Egress => (local, stand.global),
            };
            let name = Rewriting { matched, rewritten }.name();
            if let Some(why) = self.refused.get(&name) {
                stand.standing = MappingStatus::Conflict;
                stand.why = Some(why.clone());
            }
        }
        all
    }

    fn view(&self) -> MnatView {
        let target = &self.config.target;
        let mappings = self.standings().into_iter().map(|stand| {
            let source = |c: Channel| c.source().map(|s| s.to_string());
            MappingView {
                source: source(stand.global),
                group: stand.global.group().to_string(),
                local_source: stand.local.and_then(source),
                local_group: stand.local.map(|l| l.group().to_string()),
                state: stand.standing.label().into(),
                error: stand.why,
            }
        });
        MnatView {
            role: self.config.role.label().into(),
            server: format!("{}:{}", target.host, target.port),
            up: self.machine.is_up(),
            error: self.trouble.clone(),
            upstream: self.config.upstream.to_string(),
            downstream: self.config.downstream.to_string(),
            mappings: mappings.collect(),
        }
    }
}

/// What an egress reads, if it does.
fn watch_of(config: &Config) -> Option<FileWatch> {
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
        ctx.set_mailbox_capacity(256);
        self.take_seat(ctx);
        if let Some(routing) = self.context.routing.load_full() {
            routing.do_send(TellHosts);
        }
        let (role, host) = (self.config.role, &self.config.target.host);
        info!("mnat: {role}, server {host}");
        self.show();
        if self.config.role == MnatRole::Egress {
            self.context.catalog.mnat.expose_join_seconds();
        }
        self.drive(ctx);
        ctx.run_interval(TICK, Self::drive);
    }
}

impl Handler<HostsWant> for Mnat {
    type Result = ();

    fn handle(&mut self, wanted: HostsWant, ctx: &mut Self::Context) {
        // Another proxy may have members behind the same interface.
        if !self.config.joins.members {
            return;
        }
        self.from_hosts = wanted.0;
        self.want(Instant::now());
        self.drive(ctx);
    }
}

impl Handler<Refused> for Mnat {
    type Result = ();

    fn handle(&mut self, message: Refused, _: &mut Self::Context) {
        let mut before = HashMap::new();
        if message.whole {
            before = std::mem::take(&mut self.refused);
        }
        for (name, why) in message.refused {
            if before.get(&name) != Some(&why) {
                warn!("mnat: route \"{name}\" is left out: {why}");
            }
            self.refused.insert(name, why);
        }
        // Of mappings that are gone nothing is kept.
        if !self.refused.is_empty() {
            let routes = self.plan.routes().map(|r| Rewriting::from(r).name());
            let routes: HashSet<RouteName> = routes.collect();
            self.refused.retain(|name, _| routes.contains(name));
        }
        self.show();
    }
}

impl Handler<Resend> for Mnat {
    type Result = ();

    fn handle(&mut self, _: Resend, _: &mut Self::Context) {
        if !self.refused.is_empty() && self.swept {
            self.send_all(true);
        }
    }
}

impl Handler<AskMnat> for Mnat {
    type Result = MessageResult<AskMnat>;

    fn handle(&mut self, _: AskMnat, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.view())
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
