//! Follows the kernel's interfaces by netlink and tells routing what there is.

use std::time::Duration;

use actix::prelude::*;
use futures_util::StreamExt;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup};
use tracing::{error, warn};

use super::world::{Stop, Vital, panics_on_demand};
use crate::model::{IfIndex, Link, Links};

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
    vital: Vital,
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
    pub fn new(vital: Vital, routing: Recipient<LinksChanged>) -> Self {
        Self {
            vital,
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
            Ok::<_, rtnetlink::Error>(links)
        };
        ctx.spawn(
            read.into_actor(self)
                .map(|result, actor, ctx| match result {
                    Ok(_) if actor.overtaken => actor.read_anew(ctx),
                    Ok(links) => {
                        actor.reading = false;
                        let changed = links != actor.links || !actor.complete;
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
        match rtnetlink::new_multicast_connection(&[MulticastGroup::Link]) {
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
        self.vital.disarm();
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
        self.overtaken = true;
        let changed = match &message {
            RouteNetlinkMessage::NewLink(link) => {
                link_of(link).is_some_and(|l| self.links.insert(l))
            }
            // A port that leaves a bridge is told of as a deleted link of that family.
            RouteNetlinkMessage::DelLink(link) if !is_bridge_port(link) => {
                IfIndex::new(link.header.index).is_some_and(|i| self.links.remove(i))
            }
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
