//! Veth pairs into other network namespaces, and the Ethernet address of their other end.
//!
//! The kernel returns a link of another network namespace only to a process with CAP_NET_ADMIN in
//! that namespace. Root of this host has it for every container that does not use a user namespace
//! of its own. The query needs no access to processes or files of the container.

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::Handle;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use super::aliases::{HostInterfaces, MacAddr, VethPeer};
use crate::model::{IfName, InterfaceId};

/// The host end of a veth pair whose other end is in another network namespace.
struct HostVeth {
    index: InterfaceId,
    bridge: Option<InterfaceId>,
    /// The ID of the other network namespace, relative to this one (`IFLA_LINK_NETNSID`).
    peer_netns_id: i32,
    /// The index of the other end in its namespace.
    peer_index: u32,
}

/// Queries the kernel. Skips a veth pair that disappears during the query.
pub async fn read(handle: &Handle) -> Result<HostInterfaces, rtnetlink::Error> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let mut host = HostInterfaces {
        indexes: links.iter().filter_map(name_of).collect(),
        ..HostInterfaces::default()
    };
    for veth in links.iter().filter_map(host_veth) {
        match peer_mac(handle, &veth).await {
            Ok(Some(mac)) => host.veths.push(VethPeer {
                index: veth.index,
                bridge: veth.bridge,
                mac,
            }),
            Err(e) if is_refused(&e) => {
                host.is_refused = true;
                break;
            }
            Ok(None) | Err(_) => {}
        }
    }
    Ok(host)
}

fn is_refused(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else {
        return false;
    };
    let kind = std::io::Error::from_raw_os_error(-message.raw_code()).kind();
    kind == std::io::ErrorKind::PermissionDenied
}

async fn peer_mac(handle: &Handle, veth: &HostVeth) -> Result<Option<MacAddr>, rtnetlink::Error> {
    let mut request = handle.link().get().match_index(veth.peer_index);
    let message = request.message_mut();
    // IFLA_TARGET_NETNSID is an alias of IFLA_IF_NETNSID.
    let netns = LinkAttribute::IfNetnsId(veth.peer_netns_id);
    message.attributes.push(netns);
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

fn name_of(link: &LinkMessage) -> Option<(IfName, InterfaceId)> {
    let name = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => name.parse().ok(),
        _ => None,
    });
    Some((name?, InterfaceId::new(link.header.index)?))
}

fn host_veth(link: &LinkMessage) -> Option<HostVeth> {
    let mut is_veth = false;
    let mut peer_netns_id = None;
    let mut peer_index = None;
    let mut bridge = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::LinkInfo(infos) => {
                is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            LinkAttribute::LinkNetNsId(id) => peer_netns_id = Some(*id),
            LinkAttribute::Link(index) => peer_index = Some(*index),
            LinkAttribute::Controller(index) => bridge = InterfaceId::new(*index),
            _ => {}
        }
    }
    is_veth.then_some(HostVeth {
        index: InterfaceId::new(link.header.index)?,
        bridge,
        peer_netns_id: peer_netns_id?,
        peer_index: peer_index?,
    })
}
