//! Owns the rules and publishes the forwarding table. The data path never waits for it.

mod changes;
mod demand;
mod link_log;
mod membership_handlers;
mod mnat_handlers;
mod pace;
mod stored_members;
mod waiting_names;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use actix::prelude::*;
use ahash::AHashSet;
use tracing::{debug, info, warn};

use crate::actors::messages::{
    AliasesChanged, AnnounceLinks, ApplyChange, Barrier, DiscoveryLinks, DiscoveryStarted,
    JoiningInterface, LearningComplete, LinksChanged, MembersChanged, MembershipChanged,
    MembershipStarted, MnatRoutesChanged, Publish, QueryRouting, ReplaceRules, ReportMembers,
    Republish, RetryRefused, RoutesRefused, RoutingTables, ServeInterfaces, ServeTunnels,
    ServedInterface, SetJoins, TunnelsStarted, UpdateJoins,
};
use crate::actors::shared::RouterContext;
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};
use crate::mnat::Channel;
use crate::model::{
    Group, IfName, IfPattern, InterfaceId, Link, Links, MAX_PROXIES, RouteName, SourceFilter,
};
use crate::planes::tunnel::TunnelPlane;
use crate::table::joins;
use crate::table::mnat_routes::keep_mnat_routes;
use crate::table::{Fib, FibBuilder, FibDiff, MembershipDatabase, Rib, RibError, SubnetConflict};

use changes::RuleChanges;
use demand::Demand;
use link_log::LinkLog;
use pace::SnapshotPacer;
use stored_members::stored_memberships;
use waiting_names::WaitingNames;

/// Limit of the mailbox.
const MAILBOX: usize = 256;

/// The actor.
pub struct Routing {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    rib: Arc<Rib>,
    /// The links of the kernel; `None` until they are known.
    kernel_links: Option<Links>,
    /// The same links, with the names of the container engine.
    links: Option<Arc<Links>>,
    generation: u64,
    /// The forwarding table that was published last.
    fib: Arc<Fib>,
    /// The builder of that table; `None` before the first.
    builder: Option<FibBuilder>,
    /// Changes of rules that are not published yet.
    unpublished: RuleChanges,
    /// The interfaces in the last message to the membership actor; `None` before the first one.
    served: Option<BTreeMap<InterfaceId, ServedInterface>>,
    /// Whether the stored memberships have been looked at.
    is_restored: bool,
    /// Memberships from before a restart, of the process or of the membership actor, that have not
    /// been reported since.
    stale: AHashSet<(InterfaceId, Group)>,
    pacer: SnapshotPacer,
    /// The memberships to join upstream for members.
    demand: Demand,
    /// Memberships that joins and routes require on the links in `up`.
    fixed: joins::DesiredMemberships,
    /// The usable links that are up.
    up: Links,
    /// The patterns that match only ports or the loopback interface, of which the log has warned.
    warned_patterns: BTreeSet<IfPattern>,
    /// The subnet conflicts that the log has warned of.
    warned_conflicts: BTreeSet<SubnetConflict>,
    /// The streams of the last message to the MNAT actor.
    reported_to_mnat: Option<BTreeSet<Channel>>,
    waiting_names: WaitingNames,
    link_log: LinkLog,
    /// The links of the kernel that are ignored, because tunnels have their names.
    hidden_links: BTreeSet<IfName>,
}

impl Routing {
    /// Returns a routing actor with the rules in force. It publishes nothing until the links are
    /// known.
    pub fn new(context: Arc<RouterContext>, death_guard: DeathGuard) -> Self {
        // A restarted routing actor continues from the snapshot in force.
        let generation = context.snapshot.load().fib.generation;
        let rib = context.rib.load_full();
        Self {
            context,
            death_guard,
            rib,
            kernel_links: None,
            links: None,
            generation,
            fib: Arc::default(),
            builder: None,
            unpublished: RuleChanges::default(),
            served: None,
            is_restored: false,
            stale: AHashSet::new(),
            pacer: SnapshotPacer::new(Instant::now()),
            demand: Demand::default(),
            fixed: joins::DesiredMemberships::new(),
            up: Links::default(),
            warned_patterns: BTreeSet::new(),
            warned_conflicts: BTreeSet::new(),
            reported_to_mnat: None,
            waiting_names: WaitingNames::default(),
            link_log: LinkLog::default(),
            hidden_links: BTreeSet::new(),
        }
    }

    fn membership_database(&self) -> MutexGuard<'_, MembershipDatabase> {
        // Only routing locks it. A former instance may have died while it held the lock.
        let database = self.context.membership_database.lock();
        database.unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a forwarding table that is built from all rules.
    fn publish(&mut self) {
        self.unpublished.clear();
        self.builder = None;
        let has_engine_names = self.rib.patterns().any(IfPattern::is_engine_name);
        let needed = &self.context.catalog.engine_needed;
        needed.set(has_engine_names.into());
        let engine_wanted = &self.context.engine_wanted;
        engine_wanted.send_if_modified(|wanted| {
            std::mem::replace(wanted, has_engine_names) != has_engine_names
        });
        let Some(links) = self.links.clone() else {
            return;
        };
        let links = &links;
        let aliases = self.context.aliases.load_full();
        self.waiting_names
            .update(&self.rib, links, &aliases, Instant::now());
        self.generation += 1;
        let mut builder = self.rib.fib_builder(&self.rib.usable(links));
        let mut fib = builder.build(self.generation);
        self.restore_memberships(links, &fib);
        self.membership_database().rebuild(&mut fib);
        let fib = Arc::new(fib);
        for (proxy, iface) in fib.skipped_proxies.iter() {
            if !self
                .fib
                .skipped_proxies
                .contains(&(proxy.clone(), iface.clone()))
            {
                warn!(
                    interface = %iface,
                    route = %proxy,
                    "proxy {proxy}: packets that arrive on {iface} are not forwarded, because \
                     {MAX_PROXIES} proxies use the interface already; list several downstream \
                     interfaces in one proxy"
                );
            }
        }
        for pattern in self.rib.patterns() {
            warn_of_unselected(pattern, (&self.rib, links), &mut self.warned_patterns);
        }
        for conflict in fib.subnet_conflicts.iter() {
            if self.warned_conflicts.insert(conflict.clone()) {
                warn!(
                    interface = %conflict.egress,
                    "{}: {conflict}; receivers may drop packets from there, because the source is \
                     their own address or belongs to another interface. Give one of the networks \
                     another subnet, or translate the source with rewrite",
                    conflict.egress
                );
            }
        }
        // A conflict that is gone and returns is logged again.
        self.warned_conflicts
            .retain(|conflict| fib.subnet_conflicts.contains(conflict));
        self.link_log.update(&fib, links, Instant::now());
        self.fib = fib.clone();
        self.builder = Some(builder);
        let catalog = &self.context.catalog;
        catalog.routes.set(self.rib.rules.len() as i64);
        catalog.retire_paths(fib.paths.iter().map(|path| {
            let oif = &fib.egresses[path.egress as usize].name;
            (&path.route, path.iif.as_str(), oif.as_str())
        }));
        debug!(
            generation = self.generation,
            ingresses = fib.ingresses.len(),
            egresses = fib.egresses.len(),
            "publishing"
        );
        self.update_served_interfaces();
        self.set_joins();
        self.report_members_to_mnat();
        if !self.rib.discovery.is_empty() {
            self.send_discovery_links();
        }
        self.context.directory.do_send(Publish {
            fib,
            links: self.links.clone(),
        });
    }

    /// With the first forwarding table after the start of the process, continues the stored
    /// memberships, before the membership actor reports them.
    fn restore_memberships(&mut self, links: &Links, fib: &Fib) {
        if std::mem::replace(&mut self.is_restored, true) || !self.membership_database().is_empty()
        {
            return;
        }
        for (index, group, filter) in stored_memberships(&self.context.store, links, fib) {
            self.membership_database().set(index, group, filter);
            self.stale.insert((index, group));
        }
    }

    /// Publishes the changes of rules that are not published yet.
    fn publish_changes(&mut self) {
        let changes = std::mem::take(&mut self.unpublished);
        if !changes.is_empty() && !self.publish_changed_rules(&changes) {
            self.publish();
        }
    }

    /// Publishes changes of single rules. Returns false, without a publication, if they affect
    /// other rules, so that everything must be computed anew.
    fn publish_changed_rules(&mut self, changes: &RuleChanges) -> bool {
        let (Some(builder), Some(links)) = (self.builder.as_mut(), &self.links) else {
            return false;
        };
        if changes.affect_others(&self.rib) {
            return false;
        }
        let Some(paths) = changes.apply(builder) else {
            return false;
        };
        let mut fib = builder.build(self.generation + 1);
        fib.oif_table = self.fib.oif_table.clone();
        let diff = FibDiff {
            old: self.fib.clone(),
            new: Arc::new(fib),
        };
        if diff.interfaces_changed() || diff.old.subnet_conflicts != diff.new.subnet_conflicts {
            return false;
        }
        let patterns = changes.interface_patterns();
        let mut patterns = patterns.iter();
        if patterns.any(|pattern| links.matching(pattern).next().is_none()) {
            let aliases = self.context.aliases.load_full();
            self.waiting_names
                .update(&self.rib, links, &aliases, Instant::now());
        }
        for pattern in changes.interface_patterns() {
            warn_of_unselected(pattern, (&self.rib, links), &mut self.warned_patterns);
        }
        if diff.routes_changed() {
            self.generation += 1;
            self.fib = diff.new.clone();
            self.context.catalog.routes.set(self.rib.rules.len() as i64);
            self.context
                .catalog
                .update_paths(&paths.removed, &paths.added);
            self.context.directory.do_send(Publish {
                fib: diff.new,
                links: None,
            });
        }
        self.update_fixed_joins(changes);
        true
    }

    /// Sends the memberships that changed with rules to the joins actor.
    fn update_fixed_joins(&mut self, changes: &RuleChanges) {
        let rules = joins::JoiningRules {
            joins: &self.rib.joins,
            routes: &self.rib.rules,
            proxies: &self.rib.proxies,
        };
        let mut memberships = changes.update_memberships(rules, &mut self.fixed, &self.up);
        let groups: BTreeSet<_> = memberships.keys().map(|join| join.group).collect();
        for group in groups {
            memberships.extend(self.memberships_of_group(group));
        }
        if !memberships.is_empty() {
            self.context.directory.do_send(UpdateJoins(memberships));
        }
    }

    /// Sends all memberships of this host to the joins actor.
    fn set_joins(&mut self) {
        let Some(links) = &self.links else { return };
        // A link that is down has no memberships. They are joined again, and so reported at once,
        // when it comes up.
        let up: Links = self
            .rib
            .usable(links)
            .iter()
            .filter(|l| l.up)
            .cloned()
            .collect();
        self.demand = Demand::new(&self.rib, &self.fib);
        let database = self.context.membership_database.lock();
        let database = database.unwrap_or_else(PoisonError::into_inner);
        for (index, group, filter) in database.memberships() {
            self.demand
                .set_filter((&self.rib, &up), index, group, filter);
        }
        drop(database);
        self.demand.take_changed();
        let requested = self.demand.requested(&self.rib);
        let rules = joins::JoiningRules {
            joins: &self.rib.joins,
            routes: &self.rib.rules,
            proxies: &self.rib.proxies,
        };
        let fixed = joins::desired_memberships(rules, [], &up);
        let requested = requested.iter().map(|(origin, groups)| (*origin, groups));
        let interfaces = up.iter().filter_map(|link| {
            let ingress = self.fib.ingresses.get(&link.index)?;
            let interface = JoiningInterface {
                name: link.name.clone(),
                mtu: link.mtu,
                carrier: link.carrier,
                addresses: links
                    .addresses(link.index)
                    .iter()
                    .map(|a| a.address)
                    .collect(),
                serves_members: ingress.receives_membership,
                reports: self
                    .rib
                    .options(link)
                    .map_or_else(Default::default, |o| o.reports),
                plane: link.plane,
            };
            ingress.answers_queries.then_some((link.index, interface))
        });
        let message = SetJoins {
            joins: joins::desired_memberships(rules, requested, &up),
            interfaces: interfaces.collect(),
        };
        self.fixed = fixed;
        self.up = up;
        self.context.directory.do_send(message);
    }

    /// Sends the usable links to the discovery actor.
    fn send_discovery_links(&self) {
        if let Some(links) = &self.links {
            let links = Arc::new(self.rib.usable(links));
            self.context.directory.do_send(DiscoveryLinks(links));
        }
    }

    /// Applies the names of the container engine to the links, and publishes.
    fn apply_aliases(&mut self) {
        self.update_links();
        self.publish();
    }

    /// Joins three lists into the list of links: the links of the kernel, with the names of the
    /// container engine, and the tunnels.
    fn update_links(&mut self) {
        let aliases = self.context.aliases.load();
        let Some(links) = &self.kernel_links else {
            return;
        };
        let mut links = links.with_aliases(&aliases);
        let names = self.rib.tunnels.iter().map(|tunnel| tunnel.name.clone());
        let hidden = links.remove_named(&names.collect());
        for name in hidden.difference(&self.hidden_links) {
            warn!(
                interface = %name,
                "{name}: the kernel has an interface with the name of a tunnel; it is ignored. \
                 Rename it, or give the [[amt.gateway]] or [[amt.relay]] another name"
            );
        }
        self.hidden_links = hidden;
        for tunnel in &self.rib.tunnels {
            let id = self.context.tunnels.id(&tunnel.name);
            links.extend(id.map(|id| Link {
                mtu: tunnel.mtu,
                plane: Some(TunnelPlane::NAME),
                receives_only: tunnel.receives_only,
                bandwidth: tunnel.bandwidth,
                ..Link::new(id, tunnel.name.clone())
            }));
        }
        self.links = Some(Arc::new(links));
    }

    /// Replaces the rules, and publishes.
    fn commit(&mut self, rib: Rib) {
        self.rib = Arc::new(rib);
        self.context.rib.store(self.rib.clone());
        self.update_links();
        self.publish();
    }

    /// Sends the interfaces to serve to the membership actor, if they changed.
    fn update_served_interfaces(&mut self) {
        let Some(links) = &self.links else { return };
        let interfaces: BTreeMap<InterfaceId, ServedInterface> = self
            .rib
            .usable(links)
            .iter()
            .filter(|link| link.up)
            .filter_map(|link| {
                let downstream = self.fib.downstreams.iter().find(|d| d.index == link.index);
                let addresses = links.addresses(link.index);
                let served = ServedInterface {
                    name: link.name.clone(),
                    mtu: link.mtu,
                    addresses: addresses.iter().map(|a| a.address).collect(),
                    on_link: addresses.iter().map(|a| a.on_link).collect(),
                    proxy: downstream.map(|d| d.proxy.clone()),
                    mrdisc: self.rib.options(link).and_then(|o| o.mrdisc),
                    plane: link.plane,
                };
                let is_served = served.proxy.is_some() || served.mrdisc.is_some();
                is_served.then_some((link.index, served))
            })
            .collect();
        let all = self.served.is_none();
        if self.served.as_ref() == Some(&interfaces) {
            return;
        }
        if let Some(old) = &self.served {
            let has_members =
                |index: &InterfaceId| interfaces.get(index).is_some_and(|s| s.proxy.is_some());
            let mut database = self.membership_database();
            let removed = old.keys().filter(|index| !has_members(index));
            removed.for_each(|index| database.remove_downstream(*index));
        }
        self.served = Some(interfaces.clone());
        self.send_served_tunnels();
        let interfaces = interfaces.into_iter();
        let interfaces = interfaces.filter(|(_, s)| s.plane != Some(TunnelPlane::NAME));
        self.context.directory.do_send(ServeInterfaces {
            interfaces: interfaces.collect(),
            all,
        });
    }

    /// Sends the proxies whose downstream interfaces are tunnels to the AMT actor.
    fn send_served_tunnels(&self) {
        let served = self.served.iter().flatten();
        let tunnels = served.filter(|(_, s)| s.plane == Some(TunnelPlane::NAME));
        let tunnels = tunnels.filter_map(|(index, s)| Some((*index, s.proxy.clone()?)));
        let message = ServeTunnels(tunnels.collect());
        self.context.directory.do_send(message);
    }

    /// Publishes changed memberships, at once or as soon as the pace permits.
    fn schedule_publish(&mut self, ctx: &mut Context<Self>) {
        if self.pacer.is_scheduled {
            return;
        }
        let wait = self.pacer.next.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return self.publish_memberships();
        }
        self.pacer.is_scheduled = true;
        ctx.run_later(wait, |actor, _| {
            actor.pacer.is_scheduled = false;
            actor.publish_memberships();
        });
    }

    fn publish_memberships(&mut self) {
        if self.links.is_none() {
            return;
        }
        let started = Instant::now();
        let mut database = self.membership_database();
        let next = database.update(&self.fib, self.generation + 1);
        drop(database);
        if let Some(fib) = next {
            self.generation += 1;
            self.fib = Arc::new(fib);
            self.context.directory.do_send(Publish {
                fib: self.fib.clone(),
                links: None,
            });
        }
        self.update_joins();
        self.report_members_to_mnat();
        let now = Instant::now();
        self.pacer.start_pause(now, now - started);
    }

    /// Sends changed memberships to the joins actor.
    fn update_joins(&mut self) {
        let mut changes = joins::DesiredMemberships::new();
        for group in self.demand.take_changed() {
            changes.extend(self.memberships_of_group(group));
        }
        if !changes.is_empty() {
            self.context.directory.do_send(UpdateJoins(changes));
        }
    }

    /// Returns the memberships of a group on the interfaces where members may request it.
    fn memberships_of_group(&self, group: Group) -> joins::DesiredMemberships {
        let requested = self.demand.requested_of_group(&self.rib, group);
        let requested = requested.iter().map(|(origin, filter)| (*origin, filter));
        joins::desired_memberships_of_group(group, &self.fixed, requested, &self.up)
    }

    fn set_demand(&mut self, index: InterfaceId, group: Group, filter: &SourceFilter) {
        self.demand
            .set_filter((&self.rib, &self.up), index, group, filter);
    }

    /// Reports refused routes to the MNAT actor.
    fn report_refused(&self, complete: bool, refused: Vec<(RouteName, String)>) {
        if complete || !refused.is_empty() {
            self.context
                .directory
                .do_send(RoutesRefused { complete, refused });
        }
    }

    /// Requests refused routes from the MNAT actor again, because other routes changed.
    fn retry_refused(&self) {
        self.context.directory.do_send(RetryRefused);
    }

    /// Reports the members of the downstream interface to the MNAT actor, if they changed.
    fn report_members_to_mnat(&mut self) {
        let Some(config) = self.context.mnat.load_full() else {
            return;
        };
        let Some(index) = self.link(&config.downstream).map(|link| link.index) else {
            return;
        };
        let mut streams = BTreeSet::new();
        for (at, group, filter) in self.membership_database().memberships() {
            if at != index {
                continue;
            }
            match filter {
                SourceFilter::Include(sources) => {
                    let channels = sources.iter().map(|s| Channel::new(Some(*s), group));
                    streams.extend(channels.flatten());
                }
                // Members filter excluded sources themselves.
                SourceFilter::Exclude(_) => streams.extend(Channel::new(None, group)),
            }
        }
        if self.reported_to_mnat.as_ref() != Some(&streams) {
            self.context
                .directory
                .do_send(MembersChanged(streams.clone()));
            self.reported_to_mnat = Some(streams);
        }
    }

    fn link(&self, name: &IfName) -> Option<&Link> {
        self.links.as_ref()?.iter().find(|l| l.name == *name)
    }
}

/// Warns once of a pattern that matches only names of interfaces that patterns never select.
fn warn_of_unselected(
    pattern: &IfPattern,
    (rib, links): (&Rib, &Links),
    warned: &mut BTreeSet<IfPattern>,
) {
    // Options of interfaces also apply to ports.
    let is_option = || rib.interfaces.iter().any(|o| o.name == *pattern);
    if !pattern.is_pattern() || is_option() {
        return;
    }
    let unselected = links.unselected(pattern);
    if !unselected.is_empty() && warned.insert(pattern.clone()) {
        let names: Vec<_> = unselected.iter().map(|l| l.name.as_str()).collect();
        warn!(
            "{pattern} matches only interfaces that patterns do not select, ports of a bridge or bond \
             or the loopback interface: {}. Write their names, or use container:, network: or \
             label:",
            names.join(", ")
        );
    }
}

impl Actor for Routing {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        info!(
            routes = self.rib.rules.len(),
            proxies = self.rib.proxies.len(),
            "routing"
        );
        let directory = &self.context.directory;
        directory
            .register(ctx.address())
            .receives::<LinksChanged>()
            .receives::<AliasesChanged>()
            .receives::<Republish>()
            .receives::<MembershipStarted>()
            .receives::<MembershipChanged>()
            .receives::<LearningComplete>()
            .receives::<TunnelsStarted>()
            .receives::<DiscoveryStarted>()
            .receives::<MnatRoutesChanged>()
            .receives::<ReportMembers>()
            .receives::<ReplaceRules>()
            .receives::<ApplyChange>()
            .receives::<Barrier>()
            .receives::<QueryRouting>();
        directory.do_send(AnnounceLinks);
    }
}

impl Handler<LinksChanged> for Routing {
    type Result = ();

    fn handle(&mut self, message: LinksChanged, _: &mut Self::Context) {
        self.kernel_links = Some(message.0);
        self.apply_aliases();
    }
}

impl Handler<DiscoveryStarted> for Routing {
    type Result = ();

    fn handle(&mut self, _: DiscoveryStarted, _: &mut Self::Context) {
        self.send_discovery_links();
    }
}

impl Handler<AliasesChanged> for Routing {
    type Result = ();

    fn handle(&mut self, _: AliasesChanged, _: &mut Self::Context) {
        self.apply_aliases();
    }
}

impl Handler<Republish> for Routing {
    type Result = ();

    fn handle(&mut self, _: Republish, _: &mut Self::Context) {
        self.publish();
    }
}

panics_on_demand!(Routing);

impl Handler<Stop> for Routing {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.death_guard.disarm();
        ctx.stop();
    }
}

impl Handler<QueryRouting> for Routing {
    type Result = RoutingTables;

    fn handle(&mut self, _: QueryRouting, _: &mut Self::Context) -> RoutingTables {
        RoutingTables {
            rib: self.rib.clone(),
            links: self.links.clone().unwrap_or_default(),
            fib: self.fib.clone(),
            aliases: self.context.aliases.load_full(),
        }
    }
}

impl Handler<ApplyChange> for Routing {
    type Result = Result<String, RibError>;

    fn handle(
        &mut self,
        ApplyChange(change): ApplyChange,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let mut rib = Rib::clone(&self.rib);
        let frees_addresses = change.removes_egresses();
        let (changed, description) = change.apply(&mut rib)?;
        if frees_addresses {
            self.retry_refused();
        }
        self.rib = Arc::new(rib);
        self.context.rib.store(self.rib.clone());
        if self.unpublished.is_empty() {
            // The context polls this after the messages that wait in the mailbox.
            let publication = async {}.into_actor(self);
            ctx.spawn(publication.map(|(), actor, _| actor.publish_changes()));
        }
        self.unpublished.push(changed);
        info!("by command: {description}");
        Ok(description)
    }
}

impl Handler<ReplaceRules> for Routing {
    type Result = ();

    fn handle(&mut self, message: ReplaceRules, _: &mut Self::Context) {
        let mut rib = message.0;
        let refused = keep_mnat_routes(&mut rib, &self.rib);
        self.report_refused(false, refused);
        self.commit(rib);
        self.retry_refused();
    }
}
