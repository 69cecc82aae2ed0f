//! Follows the kernel's interfaces by netlink and tells routing what there is.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use actix::prelude::*;
use futures_util::StreamExt;
use ipnet::IpNet;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tracing::{error, info, warn};

use super::context::{DeathGuard, Stop, panics_on_demand};
use crate::model::{IfIndex, IfPattern, Link, Links};

/// The kernel drops notices when its socket buffer is full, and tells so; all is read anew
/// then, and now and then in any case.
const READ_ANEW_EVERY: Duration = Duration::from_secs(30);

/// The interfaces there are now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LinksChanged(pub Links);

/// Sends the interfaces again, changed or not.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Announce(pub Recipient<LinksChanged>);

struct Notice(NetlinkMessage<RouteNetlinkMessage>);

/// The actor.
pub struct LinksWatch {
    death_guard: DeathGuard,
    routing: Recipient<LinksChanged>,
    links: Links,
    handle: Option<Handle>,
    complete: bool,
    /// A notice came while all was being read: what was read may be older than it.
    overtaken: bool,
    /// All is being read.
    reading: bool,
}

impl LinksWatch {
    /// Tells `routing` of every change.
    pub fn new(death_guard: DeathGuard, routing: Recipient<LinksChanged>) -> Self {
        Self {
            death_guard,
            routing,
            links: Links::default(),
            handle: None,
            complete: false,
            overtaken: false,
            reading: false,
        }
    }

    /// Reads all interfaces, once more where that is under way.
    fn read_again(&mut self, ctx: &mut Context<Self>) {
        if self.reading {
            self.overtaken = true;
        } else {
            self.read_anew(ctx);
        }
    }

    /// Reads all interfaces; what is not among them is gone.
    fn read_anew(&mut self, ctx: &mut Context<Self>) {
        let Some(handle) = self.handle.clone() else {
            return;
        };
        self.overtaken = false;
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
                let mut best: Option<(u32, IfIndex)> = None;
                while let Some(reply) = replies.next().await {
                    best = best.into_iter().chain(default_route(&reply?)).min();
                }
                routes.extend(best.map(|(_, index)| index));
            }
            for index in routes {
                links.call(index, IfPattern::default_route());
            }
            Ok::<_, rtnetlink::Error>(links)
        };
        ctx.spawn(
            read.into_actor(self)
                .map(|result, actor, ctx| match result {
                    Ok(_) if actor.overtaken => actor.read_anew(ctx),
                    Ok(links) => {
                        actor.reading = false;
                        let changed = links != actor.links || !actor.complete;
                        say_default_route(&actor.links, &links);
                        actor.links = links;
                        actor.complete = true;
                        if changed {
                            actor.announce();
                        }
                    }
                    Err(e) => {
                        actor.reading = false;
                        warn!("netlink: cannot list the interfaces: {e}; trying again");
                        ctx.run_later(Duration::from_secs(1), Self::read_again);
                    }
                }),
        );
    }

    fn announce(&self) {
        // A control fact: as many as the kernel has changes.
        self.routing.do_send(LinksChanged(self.links.clone()));
    }
}

impl Actor for LinksWatch {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        match rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ]) {
            Ok((connection, handle, notices)) => {
                actix::spawn(connection);
                self.handle = Some(handle);
                ctx.add_stream(notices.map(|(message, _): (_, SocketAddr)| Notice(message)));
                self.read_anew(ctx);
                ctx.run_interval(READ_ANEW_EVERY, Self::read_again);
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

impl StreamHandler<Notice> for LinksWatch {
    fn handle(&mut self, notice: Notice, ctx: &mut Self::Context) {
        let message = match notice.0.payload {
            NetlinkPayload::InnerMessage(message) => message,
            // Notices were lost.
            NetlinkPayload::Overrun(_) => return self.read_again(ctx),
            _ => return,
        };
        if let RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) =
            &message
        {
            // Which of several counts is for the kernel to say.
            if default_route(route).is_some() {
                self.read_again(ctx);
            }
            return;
        }
        self.overtaken = true;
        let changed = match &message {
            RouteNetlinkMessage::NewLink(link) => {
                link_of(link).is_some_and(|l| self.links.insert(l))
            }
            // A port that leaves a bridge is told of as a deleted link of that family.
            RouteNetlinkMessage::DelLink(link) if !is_bridge_port(link) => {
                IfIndex::new(link.header.index).is_some_and(|i| self.links.remove(i))
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

impl Handler<Announce> for LinksWatch {
    type Result = ();

    fn handle(&mut self, message: Announce, _: &mut Self::Context) {
        self.routing = message.0;
        if self.complete {
            self.announce();
        }
    }
}

/// The metric and interface of a default route of the main table.
fn default_route(message: &RouteMessage) -> Option<(u32, IfIndex)> {
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
            RouteAttribute::Oif(oif) => index = IfIndex::new(*oif),
            // Several ways: the first of them.
            RouteAttribute::MultiPath(hops) => {
                index = hops
                    .first()
                    .and_then(|hop| IfIndex::new(hop.interface_index));
            }
            _ => {}
        }
    }
    Some((metric, index?))
}

/// Says which interface has the default route, where that changed.
fn say_default_route(old: &Links, new: &Links) {
    let route = IfPattern::default_route();
    let names = |links: &Links| -> Vec<String> {
        links.matching(&route).map(|l| l.name.to_string()).collect()
    };
    let (old, new) = (names(old), names(new));
    match old == new {
        true => {}
        false if new.is_empty() => info!("no interface has the default route any more"),
        false => info!(
            "the default route is on {}: upstream of each [[proxy]] that names none",
            new.join(", ")
        ),
    }
}

fn is_bridge_port(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Bridge
}

/// A link as the model has it; `None` for notices of a bridge port and for nameless ones.
fn link_of(message: &LinkMessage) -> Option<Link> {
    if is_bridge_port(message) {
        return None;
    }
    let flags = message.header.flags;
    let mut name = None;
    let mut mtu = 0;
    let mut parent = None;
    let mut vlan = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(n) => name = n.parse().ok(),
            LinkAttribute::Mtu(m) => mtu = *m,
            LinkAttribute::Link(index) => parent = IfIndex::new(*index),
            LinkAttribute::LinkInfo(infos) => vlan = infos.iter().find_map(vlan_of),
            _ => {}
        }
    }
    Some(Link {
        index: IfIndex::new(message.header.index)?,
        name: name?,
        mtu,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        vlan: parent.zip(vlan),
        known_as: BTreeSet::new(),
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

/// An address that can be sent from: one that is not still looking for its like on the link
/// (RFC 4862 section 5.4), nor has found it.
fn usable_address(message: &AddressMessage) -> Option<(IfIndex, IpNet)> {
    let unfit = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    let optimistic = AddressHeaderFlags::Optimistic;
    let flags = message.header.flags;
    let unfit = flags.intersects(unfit) && !flags.contains(optimistic);
    if unfit { None } else { address_of(message) }
}

fn address_of(message: &AddressMessage) -> Option<(IfIndex, IpNet)> {
    // On a point-to-point link `Address` is the peer, and `Local` is ours.
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(local) => Some(*local),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let address = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some((IfIndex::new(message.header.index)?, address))
}
