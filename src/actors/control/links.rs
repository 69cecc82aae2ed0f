//! Follows the interfaces, addresses and default routes of the kernel by netlink, and sends them
//! to routing.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::StreamExt;
use ipnet::IpNet;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoPortKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tracing::{error, info, warn};

use crate::actors::messages::{AnnounceLinks, LinksChanged};
use crate::actors::shared::RouterContext;
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};
use crate::model::{IfPattern, InterfaceId, Link, LinkAddress, Links, MacAddress};

/// Interval at which everything is read again. It is also read again when the kernel reports that
/// it dropped notifications because the socket buffer was full.
const REREAD_INTERVAL: Duration = Duration::from_secs(30);

/// The source of the interfaces.
#[derive(Clone)]
pub enum LinkSource {
    /// The kernel.
    Netlink,
    /// A fixed list, for tests.
    Given(Links),
}

struct Notification(NetlinkMessage<RouteNetlinkMessage>);

/// The actor.
pub struct LinksWatch {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    source: LinkSource,
    links: Links,
    handle: Option<Handle>,
    /// Whether everything has been read once.
    complete: bool,
    /// Whether a notification arrived during the present read, which may be older.
    outdated: bool,
    /// Whether everything is being read.
    reading: bool,
}

impl LinksWatch {
    /// Returns an actor that reads the interfaces of `source` when it starts.
    pub fn new(context: Arc<RouterContext>, death_guard: DeathGuard, source: LinkSource) -> Self {
        Self {
            context,
            death_guard,
            source,
            links: Links::default(),
            handle: None,
            complete: false,
            outdated: false,
            reading: false,
        }
    }

    /// Reads everything. If a read is in progress, another one follows it.
    fn reread(&mut self, ctx: &mut Context<Self>) {
        if self.reading {
            self.outdated = true;
        } else {
            self.read_all(ctx);
        }
    }

    /// Reads everything and replaces the present state.
    fn read_all(&mut self, ctx: &mut Context<Self>) {
        let Some(handle) = self.handle.clone() else {
            return;
        };
        self.outdated = false;
        self.reading = true;
        let read = async move {
            let mut links = Links::default();
            let mut replies = std::pin::pin!(handle.link().get().execute());
            while let Some(reply) = replies.next().await {
                if let Some(link) = link_of(&reply?) {
                    links.insert(link);
                }
            }
            let mut replies = std::pin::pin!(handle.address().get().execute());
            while let Some(reply) = replies.next().await {
                if let Some((index, address)) = usable_address(&reply?) {
                    links.insert_address(index, address);
                }
            }
            let mut routes = Vec::new();
            let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
            let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
            for family in [v4, v6] {
                let mut replies = std::pin::pin!(handle.route().get(family).execute());
                let mut best: Option<(u32, InterfaceId)> = None;
                while let Some(reply) = replies.next().await {
                    best = best.into_iter().chain(default_route(&reply?)).min();
                }
                routes.extend(best.map(|(_, index)| index));
            }
            for index in routes {
                links.add_alias(index, IfPattern::default_route());
            }
            Ok::<_, rtnetlink::Error>(links)
        };
        ctx.spawn(
            read.into_actor(self)
                .map(|result, actor, ctx| match result {
                    Ok(_) if actor.outdated => actor.read_all(ctx),
                    Ok(links) => {
                        actor.reading = false;
                        let changed = links != actor.links || !actor.complete;
                        log_default_route(&actor.links, &links);
                        actor.links = links;
                        actor.complete = true;
                        if changed {
                            actor.announce();
                        }
                    }
                    Err(e) => {
                        actor.reading = false;
                        warn!("netlink: cannot list the interfaces: {e}; trying again");
                        ctx.run_later(Duration::from_secs(1), Self::reread);
                    }
                }),
        );
    }

    fn announce(&self) {
        self.context
            .directory
            .do_send(LinksChanged(self.links.clone()));
    }
}

impl Actor for LinksWatch {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let directory = &self.context.directory;
        directory
            .register(ctx.address())
            .receives::<AnnounceLinks>();
        if let LinkSource::Given(links) = &self.source {
            self.links = links.clone();
            self.complete = true;
            return self.announce();
        }
        match rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ]) {
            Ok((connection, handle, notifications)) => {
                actix::spawn(connection);
                self.handle = Some(handle);
                ctx.add_stream(
                    notifications.map(|(message, _): (_, SocketAddr)| Notification(message)),
                );
                self.read_all(ctx);
                ctx.run_interval(REREAD_INTERVAL, Self::reread);
            }
            Err(e) => {
                error!("netlink: cannot follow the interfaces: {e}");
                ctx.terminate();
            }
        }
    }
}

panics_on_demand!(LinksWatch);

impl Handler<Stop> for LinksWatch {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.death_guard.disarm();
        ctx.stop();
    }
}

impl StreamHandler<Notification> for LinksWatch {
    fn handle(&mut self, notification: Notification, ctx: &mut Self::Context) {
        let message = match notification.0.payload {
            NetlinkPayload::InnerMessage(message) => message,
            // Notifications were lost.
            NetlinkPayload::Overrun(_) => return self.reread(ctx),
            _ => return,
        };
        if let RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) =
            &message
        {
            // The kernel knows which of several default routes is the best.
            if default_route(route).is_some() {
                self.reread(ctx);
            }
            return;
        }
        self.outdated = true;
        let changed = match &message {
            RouteNetlinkMessage::NewLink(link) => {
                link_of(link).is_some_and(|l| self.links.insert(l))
            }
            // For a port that leaves a bridge, the kernel reports a deleted link of the family
            // AF_BRIDGE.
            RouteNetlinkMessage::DelLink(link) if !is_bridge_port(link) => {
                InterfaceId::new(link.header.index).is_some_and(|i| self.links.remove(i))
            }
            RouteNetlinkMessage::NewAddress(message) => usable_address(message)
                .is_some_and(|(index, address)| self.links.insert_address(index, address)),
            RouteNetlinkMessage::DelAddress(message) => address_of(message)
                .is_some_and(|(index, address)| self.links.remove_address(index, address)),
            _ => false,
        };
        if changed && self.complete {
            self.announce();
        }
    }

    fn finished(&mut self, ctx: &mut Self::Context) {
        ctx.terminate();
    }
}

impl Handler<AnnounceLinks> for LinksWatch {
    type Result = ();

    fn handle(&mut self, _: AnnounceLinks, _: &mut Self::Context) {
        if self.complete {
            self.announce();
        }
    }
}

/// Returns the metric and the interface of a default route of the main table.
fn default_route(message: &RouteMessage) -> Option<(u32, InterfaceId)> {
    let header = &message.header;
    let main = header.table == RouteHeader::RT_TABLE_MAIN;
    if !main || header.kind != RouteType::Unicast || header.destination_prefix_length != 0 {
        return None;
    }
    let mut metric = 0;
    let mut index = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(oif) => index = InterfaceId::new(*oif),
            // A multipath route: its first interface.
            RouteAttribute::MultiPath(hops) => {
                index = hops
                    .first()
                    .and_then(|hop| InterfaceId::new(hop.interface_index));
            }
            _ => {}
        }
    }
    Some((metric, index?))
}

/// Logs which interface has the default route, if that changed.
fn log_default_route(old: &Links, new: &Links) {
    let route = IfPattern::default_route();
    let names = |links: &Links| -> Vec<String> {
        links.matching(&route).map(|l| l.name.to_string()).collect()
    };
    let (old, new) = (names(old), names(new));
    match old == new {
        true => {}
        false if new.is_empty() => info!("no interface has the default route any more"),
        false => info!(
            "the default route is on {}; it is the upstream interface of each [[proxy]] without `upstream`",
            new.join(", ")
        ),
    }
}

fn is_bridge_port(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Bridge
}

/// A link as the model has it; `None` for messages about a bridge port and without a name.
fn link_of(message: &LinkMessage) -> Option<Link> {
    if is_bridge_port(message) {
        return None;
    }
    let flags = message.header.flags;
    let mut name = None;
    let mut mtu = 0;
    let mut address = None;
    let mut parent = None;
    let mut vlan = None;
    let mut has_controller = false;
    let mut is_in_vrf = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(n) => name = n.parse().ok(),
            LinkAttribute::Mtu(m) => mtu = *m,
            LinkAttribute::Address(bytes) => address = MacAddress::from_slice(bytes),
            LinkAttribute::Link(index) => parent = InterfaceId::new(*index),
            LinkAttribute::Controller(index) => has_controller = *index != 0,
            LinkAttribute::LinkInfo(infos) => {
                vlan = infos.iter().find_map(vlan_of);
                let vrf = LinkInfo::PortKind(InfoPortKind::Vrf);
                is_in_vrf = infos.contains(&vrf);
            }
            _ => {}
        }
    }
    Some(Link {
        index: InterfaceId::new(message.header.index)?,
        name: name?,
        mtu,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        address,
        vlan: parent.zip(vlan),
        is_port: has_controller && !is_in_vrf,
        loopback: flags.contains(LinkFlags::Loopback),
        known_as: BTreeSet::new(),
        plane: None,
        receives_only: false,
        bandwidth: None,
    })
}

fn vlan_of(info: &LinkInfo) -> Option<u16> {
    let LinkInfo::Data(InfoData::Vlan(data)) = info else {
        return None;
    };
    data.iter().find_map(|d| match d {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })
}

/// Returns an address that packets can be sent from: one for which duplicate address detection
/// (RFC 4862 section 5.4) has neither failed nor is in progress.
fn usable_address(message: &AddressMessage) -> Option<(InterfaceId, LinkAddress)> {
    let unusable = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    let optimistic = AddressHeaderFlags::Optimistic;
    let flags = message.header.flags;
    let is_unusable = flags.intersects(unusable) && !flags.contains(optimistic);
    if is_unusable {
        None
    } else {
        address_of(message)
    }
}

fn address_of(message: &AddressMessage) -> Option<(InterfaceId, LinkAddress)> {
    // On a point-to-point link, `Address` is the address of the peer, to which the prefix length
    // belongs, and `Local` the own one. Elsewhere they are equal, or there is only one of them.
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(local) => Some(*local),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let on_link = IpNet::new(address.or(local)?, message.header.prefix_len).ok()?;
    let address = LinkAddress {
        address: local.or(address)?,
        on_link,
    };
    Some((InterfaceId::new(message.header.index)?, address))
}
