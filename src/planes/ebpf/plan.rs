//! Which flows the kernel forwards, and how. Pure.
//!
//! The kernel forwards a flow whole or not at all. A [`Plan`] says how; a [`Declined`] says why the
//! packet plane keeps it.

use std::net::IpAddr;

use crate::forward::{egress_check, entry_paths, look_up, monitor_of};
use crate::model::{IfName, InterfaceId, KernelForwarding, RouteName, TranslationRule, TtlPolicy};
use crate::sys::offload::{KernelAction, KernelEgress, KernelRewrite, MAX_EGRESSES};
use crate::table::Fib;
use crate::table::flows::FlowKey;
use crate::wire::ip::is_valid_source;

/// Why the packet plane forwards a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Declined {
    /// No route and no proxy forwards it.
    #[error("no route forwards it")]
    NoRoute,
    /// Several routes or proxies forward it, each in its own way.
    #[error("several routes or proxies forward it")]
    SeveralRoutes,
    /// The route translates between IPv4 and IPv6.
    #[error("its route translates between IPv4 and IPv6")]
    OtherIpVersion,
    /// The route replaces the source by one that no packet may have.
    #[error("its route replaces the source by an invalid one")]
    InvalidSource,
    /// The route has a loop guard.
    #[error("its route has a loop guard")]
    LoopGuard,
    /// The route merges it with its copy on another path.
    #[error("its route merges two paths")]
    Merge,
    /// Another forwarder sends it to one of the egress links.
    #[error("another forwarder sends it to an egress link")]
    OtherForwarder,
    /// An egress is down, or has no carrier.
    #[error("an egress is down")]
    EgressDown,
    /// An egress is no plain Ethernet link.
    #[error("an egress is no plain Ethernet link")]
    EgressKind,
    /// The ingress is no plain Ethernet link, or has not got the program.
    #[error("its ingress is no plain Ethernet link")]
    IngressKind,
    /// More egresses than the program serves.
    #[error("it has more than {MAX_EGRESSES} egresses")]
    TooManyEgresses,
    /// The settings keep its ingress on the packet plane.
    #[error("its ingress has plane = \"packet\" in the settings")]
    IngressSetting,
    /// The settings keep an egress on the packet plane.
    #[error("an egress has plane = \"packet\" in the settings")]
    EgressSetting,
    /// An egress has a bandwidth limit.
    #[error("an egress has a bandwidth limit")]
    Bandwidth,
    /// It is monitored, which needs each of its packets.
    #[error("it is monitored")]
    Monitored,
    /// A table in the kernel is full.
    #[error("a table in the kernel is full")]
    TableFull,
}

/// A path of a plan, by names: identifiers change with the forwarding table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PlannedPath {
    /// The route or proxy.
    pub route: RouteName,
    /// The ingress.
    pub iif: IfName,
    /// The egress.
    pub oif: IfName,
}

/// What is done with the packets of a flow, and how they are counted. Flows may share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PlannedAction {
    /// What the kernel does.
    pub action: KernelAction,
    /// For each egress, the path.
    pub paths: Vec<PlannedPath>,
}

/// How the kernel forwards a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What it does.
    pub action: PlannedAction,
    /// The addresses that the packets get.
    pub rewrite: Option<KernelRewrite>,
    /// Packets with a TTL or hop limit of at most this are left to the packet plane, which drops
    /// some or all copies.
    pub min_ttl: u8,
    /// Longer IP packets are left to the packet plane, which fragments or drops them.
    pub max_len: u16,
}

/// What the plan depends on besides the forwarding table.
pub trait LinkFacts {
    /// Returns whether frames of an interface start with an Ethernet header that the IP header
    /// follows.
    fn is_plain_ethernet(&self, interface: InterfaceId) -> bool;

    /// Returns whether an interface is one end of a veth pair, and the other end is in another
    /// network namespace.
    fn has_peer_elsewhere(&self, interface: InterfaceId) -> bool;

    /// Returns whether a program of this host listens to a group on an interface, or whether the
    /// frames of the interface also go elsewhere, such as to a bridge.
    fn host_wants(&self, interface: InterfaceId, group: IpAddr) -> bool;
}

/// Returns the addresses that a translation gives to a flow.
fn rewrite_of(rule: &TranslationRule, from: FlowKey) -> Result<KernelRewrite, Declined> {
    if !rule.kind().keeps_ip_version() {
        return Err(Declined::OtherIpVersion);
    }
    let to = rule.addresses(from.0, from.1);
    if !is_valid_source(to.0) {
        return Err(Declined::InvalidSource);
    }
    Ok(KernelRewrite {
        from,
        to,
        port: rule.port(),
    })
}

/// Plans how the kernel forwards a flow that arrives on `ingress`.
///
/// # Errors
/// The packet plane forwards it, for this reason.
pub fn plan(
    fib: &Fib,
    ingress: InterfaceId,
    key: FlowKey,
    links: &dyn LinkFacts,
) -> Result<Plan, Declined> {
    let arrival = fib.ingresses.get(&ingress).ok_or(Declined::NoRoute)?;
    if arrival.kernel_forwarding == KernelForwarding::Never {
        return Err(Declined::IngressSetting);
    }
    if !links.is_plain_ethernet(ingress) {
        return Err(Declined::IngressKind);
    }
    let verdicts = look_up(fib, arrival, key).map_err(|_| Declined::NoRoute)?;
    if monitor_of(fib, arrival, verdicts, key).is_some() {
        return Err(Declined::Monitored);
    }
    let mut entries = entry_paths(fib, arrival, verdicts);
    let (entry, paths) = entries.next().ok_or(Declined::NoRoute)?;
    if entries.next().is_some() {
        return Err(Declined::SeveralRoutes);
    }
    let rewrite = entry.translation.map(|rule| rewrite_of(&rule, key));
    let rewrite = rewrite.transpose()?;
    if entry.loop_guard {
        return Err(Declined::LoopGuard);
    }
    if entry.merge.is_some() {
        return Err(Declined::Merge);
    }
    let mut plan = Plan {
        action: PlannedAction {
            action: KernelAction {
                egresses: Vec::new(),
                keep_original: links.host_wants(ingress, key.1),
                decrement: entry.ttl == TtlPolicy::Decrement,
                set_ttl: match entry.ttl {
                    TtlPolicy::Set(ttl) => Some(ttl),
                    TtlPolicy::Keep | TtlPolicy::Decrement => None,
                },
                rewrites: rewrite.is_some(),
            },
            paths: Vec::new(),
        },
        rewrite,
        min_ttl: match entry.ttl {
            TtlPolicy::Decrement => 1,
            TtlPolicy::Keep | TtlPolicy::Set(_) => 0,
        },
        max_len: u16::MAX,
    };
    for id in paths {
        let path = fib.paths.get(id as usize).ok_or(Declined::NoRoute)?;
        let egress = fib.egress_of(id).ok_or(Declined::NoRoute)?;
        if egress.kernel_forwarding == KernelForwarding::Never {
            return Err(Declined::EgressSetting);
        }
        // Each new stream has to be measured before it may leave there.
        if egress.bandwidth.is_some() {
            return Err(Declined::Bandwidth);
        }
        // With the highest TTL only a fault of the egress remains; the threshold is checked by the
        // program.
        if egress_check(path, egress, u8::MAX).is_err() {
            return Err(Declined::EgressDown);
        }
        let threshold = path.threshold.map_or(0, |t| t.get());
        plan.min_ttl = plan.min_ttl.max(threshold);
        plan.max_len = plan
            .max_len
            .min(u16::try_from(egress.mtu).unwrap_or(u16::MAX));
        let kernel_egress = egress.index.ifindex().zip(egress.address);
        let Some((index, address)) =
            kernel_egress.filter(|_| links.is_plain_ethernet(egress.index))
        else {
            return Err(Declined::EgressKind);
        };
        let to_peer = egress.kernel_forwarding == KernelForwarding::ToPeer
            && links.has_peer_elsewhere(egress.index);
        let action = &mut plan.action;
        // The program sends the last copy only to the peer.
        let first_peer = action.action.egresses.iter().position(|e| e.to_peer);
        let at = first_peer.filter(|_| !to_peer);
        let at = at.unwrap_or(action.paths.len());
        let kernel_egress = KernelEgress {
            index,
            address,
            to_peer,
        };
        action.action.egresses.insert(at, kernel_egress);
        let planned = PlannedPath {
            route: path.route.clone(),
            iif: path.iif.clone(),
            oif: egress.name.clone(),
        };
        action.paths.insert(at, planned);
    }
    match plan.action.paths.len() {
        0 => Err(Declined::NoRoute),
        1..=MAX_EGRESSES => Ok(plan),
        _ => Err(Declined::TooManyEgresses),
    }
}

#[cfg(test)]
mod tests;
