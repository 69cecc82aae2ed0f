//! Cables into other network namespaces, and the Ethernet address at their other end.
//!
//! The kernel answers questions about a link in another namespace to those who have
//! CAP_NET_ADMIN there, which root of this host has for every container that is not given a
//! user namespace of its own. No process of the container is looked at, and no file.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::Handle;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use super::aliases::{MacAddr, VethPeer};
use crate::model::{IfIndex, IfName};

/// A cable before it is asked about: our end, its bridge, the other namespace and the index
/// there.
struct Cable {
    index: IfIndex,
    bridge: Option<IfIndex>,
    namespace: i32,
    other: u32,
}

/// The interfaces of this host, as far as they matter to an engine's names.
#[derive(Debug, Default)]
pub struct VethPeers {
    /// Of each name the index.
    pub indexes: BTreeMap<IfName, IfIndex>,
    /// Every cable that leads into another namespace.
    pub cables: Vec<VethPeer>,
    /// The kernel does not let us ask for the other ends: CAP_NET_ADMIN is missing.
    pub refused: bool,
}

/// Reads them. A cable that vanishes meanwhile is left out.
pub async fn read(handle: &Handle) -> Result<VethPeers, rtnetlink::Error> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let mut peers = VethPeers {
        indexes: links.iter().filter_map(name_of).collect(),
        ..VethPeers::default()
    };
    for cable in links.iter().filter_map(cable_of) {
        match other_end(handle, &cable).await {
            Ok(Some(mac)) => peers.cables.push(VethPeer {
                index: cable.index,
                bridge: cable.bridge,
                mac,
            }),
            Err(e) if is_refused(&e) => {
                peers.refused = true;
                break;
            }
            Ok(None) | Err(_) => {}
        }
    }
    Ok(peers)
}

fn is_refused(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else {
        return false;
    };
    let kind = std::io::Error::from_raw_os_error(-message.raw_code()).kind();
    kind == std::io::ErrorKind::PermissionDenied
}

async fn other_end(handle: &Handle, cable: &Cable) -> Result<Option<MacAddr>, rtnetlink::Error> {
    let mut request = handle.link().get().match_index(cable.other);
    let message = request.message_mut();
    // The kernel's IFLA_TARGET_NETNSID is another name of the same number.
    let elsewhere = LinkAttribute::IfNetnsId(cable.namespace);
    message.attributes.push(elsewhere);
    let mut replies = std::pin::pin!(request.execute());
    let Some(reply) = replies.next().await else {
        return Ok(None);
    };
    let address = reply?.attributes.into_iter().find_map(|a| match a {
        LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes).ok(),
        _ => None,
    });
    Ok(address.map(MacAddr))
}

fn name_of(link: &LinkMessage) -> Option<(IfName, IfIndex)> {
    let name = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => name.parse().ok(),
        _ => None,
    });
    Some((name?, IfIndex::new(link.header.index)?))
}

fn cable_of(link: &LinkMessage) -> Option<Cable> {
    let mut veth = false;
    let mut namespace = None;
    let mut other = None;
    let mut bridge = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::LinkInfo(infos) => {
                veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
            LinkAttribute::Link(index) => other = Some(*index),
            LinkAttribute::Controller(index) => bridge = IfIndex::new(*index),
            _ => {}
        }
    }
    veth.then_some(Cable {
        index: IfIndex::new(link.header.index)?,
        bridge,
        namespace: namespace?,
        other: other?,
    })
}
