//! Reads the facts of the host: interfaces and routes by netlink, the rest from `/proc`, `/sys` and
//! the programs of the firewall. Changes nothing.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoBridge, InfoData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::{Handle, RouteMessageBuilder};
use socket2::{Domain, Socket, Type};

use super::facts::{BridgeFacts, HostFacts, InterfaceFacts};
use super::firewall;
use crate::sys::burst_limit::SoftnetStat;
use crate::sys::offload::OffloadProgram;
use crate::sys::{capabilities, kernel_release, router_processes};

/// How long drops of the kernel are watched.
const WATCH: Duration = Duration::from_millis(200);

/// Sockets of container engines.
const ENGINE_SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/podman/podman.sock"];

/// Reads the facts of the network namespace of this process.
///
/// # Errors
/// Netlink does not answer. What else cannot be read is in
/// [`HostFacts::not_examined`].
pub async fn read() -> io::Result<HostFacts> {
    let mut facts = HostFacts::default();
    let before = backlog_drops();
    let clocks = (SystemTime::now(), Instant::now());
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let driver = tokio::spawn(connection);
    let links = read_links(&handle, &mut facts)
        .await
        .map_err(io::Error::other);
    driver.abort();
    let names = links?;
    read_groups(&mut facts, &names);
    read_firewall(&mut facts);
    facts.checksum_errors = checksum_errors();
    facts.forwarders = router_processes::in_this_namespace();
    facts.max_memberships = number("/proc/sys/net/ipv4/igmp_max_memberships");
    facts.bridge_nf = number("/proc/sys/net/bridge/bridge-nf-call-iptables") == Some(1);
    let interfaces_of_kernel = fs::read_to_string("/proc/net/ip_mr_vif").unwrap_or_default();
    facts.kernel_multicast_routing = interfaces_of_kernel.lines().count() > 1;
    let held = capabilities::held();
    facts.capabilities = (held.net_raw, held.net_admin);
    // Ignores a failure: the programs are denied then.
    let _ = capabilities::raise_effective();
    let refused = OffloadProgram::probe().err();
    facts.kernel_forwarding_error = refused.map(|e| (e.to_string(), e.remedy()));
    if held.net_raw {
        let opened = Socket::new(Domain::PACKET, Type::DGRAM, None);
        facts.packet_socket_error = opened.err().map(|e| format!("a packet socket: {e}"));
    }
    facts.kernel = kernel_release::release();
    facts.engine_socket_error = engine_socket_error();
    tokio::time::sleep(WATCH).await;
    facts.backlog_drops = backlog_drops().saturating_sub(before);
    facts.clock_step_ms = clock_step_ms(clocks);
    Ok(facts)
}

/// Returns the UDP packets that were dropped for their checksum, over IPv4 and IPv6.
fn checksum_errors() -> u64 {
    const FIELD: &str = "InCsumErrors";
    // Two lines of the same length: names and values.
    let snmp = fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let mut udp = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let names = udp.next().unwrap_or_default().split_whitespace();
    let values = udp.next().unwrap_or_default().split_whitespace();
    let v4 = names.zip(values).find(|(name, _)| *name == FIELD);
    // A name and a value a line.
    let snmp6 = fs::read_to_string("/proc/net/snmp6").unwrap_or_default();
    let mut pairs = snmp6
        .lines()
        .filter_map(|line| line.split_once(char::is_whitespace));
    let v6 = pairs.find(|(name, _)| *name == "Udp6InCsumErrors");
    let values = [v4, v6].into_iter().flatten();
    values
        .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
        .sum()
}

/// Returns by how many milliseconds the clock was set forward since `from`.
fn clock_step_ms((system, monotonic): (SystemTime, Instant)) -> i64 {
    let passed = monotonic.elapsed();
    let step = match SystemTime::now().duration_since(system) {
        Ok(shown) => shown.as_millis() as i128 - passed.as_millis() as i128,
        Err(back) => -((back.duration() + passed).as_millis() as i128),
    };
    i64::try_from(step).unwrap_or_default()
}

fn number<T: std::str::FromStr>(path: impl AsRef<Path>) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Reads interfaces, addresses and routes. Returns the names by index.
async fn read_links(
    handle: &Handle,
    facts: &mut HostFacts,
) -> Result<HashMap<u32, String>, rtnetlink::Error> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let mut names = HashMap::new();
    for link in &links {
        let name = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
        names.insert(link.header.index, name.unwrap_or_default());
    }
    let all_filter: u8 = number("/proc/sys/net/ipv4/conf/all/rp_filter").unwrap_or_default();
    for link in &links {
        facts.interfaces.push(interface(link, &names, all_filter));
    }
    let addresses: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    for message in &addresses {
        let name = names.get(&message.header.index);
        let address = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
        let net = address.and_then(|a| IpNet::new(a, message.header.prefix_len).ok());
        let interface = facts.interfaces.iter_mut().find(|i| Some(&i.name) == name);
        if let (Some(interface), Some(net)) = (interface, net) {
            interface.addresses.push(net);
        }
    }
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    for family in [v4, v6] {
        let routes: Vec<RouteMessage> = handle.route().get(family).execute().try_collect().await?;
        facts
            .routes
            .extend(routes.iter().filter_map(|message| route(message, &names)));
    }
    Ok(names)
}

fn interface(link: &LinkMessage, names: &HashMap<u32, String>, all_filter: u8) -> InterfaceFacts {
    let flags = link.header.flags;
    let name = names.get(&link.header.index).cloned().unwrap_or_default();
    let own_filter: u8 =
        number(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).unwrap_or_default();
    let mut facts = InterfaceFacts {
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        multicast: flags.contains(LinkFlags::Multicast),
        rp_filter: own_filter.max(all_filter),
        name,
        ..InterfaceFacts::default()
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => facts.mtu = *mtu,
            LinkAttribute::Controller(index) => facts.master = names.get(index).cloned(),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Data(InfoData::Bridge(data)) = info {
                        facts.bridge = Some(bridge(data));
                    }
                }
            }
            _ => {}
        }
    }
    facts
}

fn bridge(data: &[InfoBridge]) -> BridgeFacts {
    let mut facts = BridgeFacts::default();
    for attribute in data {
        match attribute {
            InfoBridge::MulticastSnooping(on) => facts.snooping = *on,
            InfoBridge::MulticastQuerier(on) => facts.querier = *on,
            InfoBridge::MulticastQuerierState(state) => facts.other_querier = !state.is_empty(),
            _ => {}
        }
    }
    facts
}

/// Returns a unicast route of the main table.
fn route(message: &RouteMessage, names: &HashMap<u32, String>) -> Option<(IpNet, String, u32)> {
    if message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let (mut net, mut interface, mut metric) = (None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                net = IpNet::new((*address).into(), message.header.destination_prefix_length).ok();
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                net = IpNet::new((*address).into(), message.header.destination_prefix_length).ok();
            }
            RouteAttribute::Oif(index) => interface = names.get(index).cloned(),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let everything: IpAddr = match message.header.address_family {
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let net = net.or_else(|| IpNet::new(everything, 0).ok())?;
    Some((net, interface?, metric))
}

/// Reads the groups that the kernel has joined, from `/proc/net/igmp` and `/proc/net/igmp6`.
fn read_groups(facts: &mut HostFacts, names: &HashMap<u32, String>) {
    let igmp = fs::read_to_string("/proc/net/igmp").unwrap_or_default();
    let igmp6 = fs::read_to_string("/proc/net/igmp6").unwrap_or_default();
    let index_of = |line: &str| line.split_whitespace().next()?.parse().ok();
    let mut index: Option<u32> = None;
    let mut add = |index: Option<u32>, group: IpAddr| {
        let name = index.and_then(|index| names.get(&index));
        let interface = facts.interfaces.iter_mut().find(|i| Some(&i.name) == name);
        if let Some(interface) = interface {
            interface.groups.push(group);
        }
    };
    for line in igmp.lines().skip(1) {
        match line.starts_with(char::is_numeric) {
            true => index = index_of(line),
            false => {
                let word = line.split_whitespace().next().unwrap_or_default();
                // In the byte order of the machine.
                if let Ok(bits) = u32::from_str_radix(word, 16) {
                    add(index, Ipv4Addr::from(bits.to_ne_bytes()).into());
                }
            }
        }
    }
    for line in igmp6.lines() {
        let word = line.split_whitespace().nth(2).unwrap_or_default();
        if let Ok(bits) = u128::from_str_radix(word, 16) {
            add(index_of(line), Ipv6Addr::from(bits).into());
        }
    }
}

/// Reads the firewall with the programs that are installed.
fn read_firewall(facts: &mut HostFacts) {
    let mut read = 0;
    if let Some(ruleset) = output("nft", &["list", "ruleset"]) {
        facts.firewall.extend(firewall::nft(&ruleset));
        facts.firewall.extend(firewall::dropped_answers(&ruleset));
        read += 1;
    } else if let Some(saved) = output("iptables-save", &[]) {
        facts.firewall.extend(firewall::iptables(&saved));
        facts.firewall.extend(firewall::dropped_answers(&saved));
        read += 1;
    }
    if read == 0 {
        let why = "the firewall: neither nft nor iptables-save can be run by this user";
        facts.not_examined.push(why.into());
    }
}

/// Returns the output of a program, if it can be run.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    let output = command
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let output = output.ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// Returns how many packets the kernel dropped since its boot, because the queue of a core was full.
fn backlog_drops() -> u64 {
    let dropped = SoftnetStat::open().and_then(|mut stat| stat.dropped());
    dropped.unwrap_or_default()
}

fn engine_socket_error() -> Option<(String, String)> {
    let socket = ENGINE_SOCKETS
        .iter()
        .find(|path| Path::new(path).exists())?;
    let error = std::os::unix::net::UnixStream::connect(socket).err()?;
    let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
    is_denied.then(|| (socket.to_string(), error.to_string()))
}
