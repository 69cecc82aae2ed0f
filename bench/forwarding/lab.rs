//! The topology: a source namespace, a router namespace, a namespace per receiver, and veth pairs
//! between them. IPv6 is off, so that only the bench sends packets.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::time::{Duration, Instant};

use mcastor::model::IfIndex;
use mcastor::sys::ifaddr::interfaces;
use mcastor::sys::netns::NetNs;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, new_connection};

use crate::Outcome;
use crate::sender::SenderKind;

/// The interface of the source and of every receiver.
pub const END: &str = "eth0";
/// The router's interface towards the source.
pub const IN: &str = "in";
/// The address of the source. The source addresses of raw packets are in the same network.
pub const SOURCE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const SOURCE_PREFIX: u8 = 15;
/// The address of the router on the link of the source.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The port that all packets are sent to.
const PORT: u16 = 5000;

/// The router's interface towards receiver `i`.
pub fn out(i: usize) -> String {
    format!("out{i}")
}

/// The namespaces of the topology.
pub struct Lab {
    pub source: NetNs,
    pub router: NetNs,
    pub receivers: Vec<Receiver>,
}

/// A receiver: a namespace without group members. It drops all packets, and its interface counts
/// them.
pub struct Receiver {
    pub netns: NetNs,
    /// `/proc/net/dev` of the namespace. An open file stays bound to its namespace.
    counters: File,
}

impl Receiver {
    fn new() -> io::Result<Self> {
        let netns = NetNs::new()?;
        disable_side_effects(&netns)?;
        let counters = netns.run(|| File::open("/proc/thread-self/net/dev"))??;
        Ok(Self { netns, counters })
    }

    /// Returns the number of bytes and packets that arrived on the interface since its creation.
    fn counters(&self) -> io::Result<(u64, u64)> {
        let mut text = String::new();
        let mut file = &self.counters;
        file.rewind()?;
        file.read_to_string(&mut text)?;
        let parse_line = |line: &str| {
            let values = line.trim().strip_prefix(END)?.strip_prefix(':')?;
            let mut values = values.split_whitespace();
            let bytes = values.next()?.parse().ok()?;
            Some((bytes, values.next()?.parse().ok()?))
        };
        text.lines()
            .find_map(parse_line)
            .ok_or_else(|| io::Error::other("no counters for the interface of the receiver"))
    }

    /// Returns the number of packets that arrived.
    pub fn arrived(&self) -> io::Result<u64> {
        Ok(self.counters()?.1)
    }

    /// Returns the number of datagrams with `size` bytes of payload that arrived. Counts the
    /// segments of GSO packets, which contain the headers only once.
    pub fn datagrams(&self, size: usize) -> io::Result<u64> {
        const HEADERS: u64 = 14 + 20 + 8;
        let (bytes, packets) = self.counters()?;
        Ok(bytes.saturating_sub(packets * HEADERS) / size as u64)
    }
}

/// Runs `ethtool` with these arguments in a namespace.
fn ethtool(netns: &NetNs, arguments: &[&str]) -> Outcome<()> {
    let output = netns.run(|| Command::new("ethtool").args(arguments).output())??;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ethtool: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

impl Lab {
    /// Creates the namespaces and waits until all interfaces are running.
    pub fn new(receivers: usize) -> Outcome<Self> {
        let lab = Self {
            source: NetNs::new()?,
            router: NetNs::new()?,
            receivers: (0..receivers)
                .map(|_| Receiver::new())
                .collect::<io::Result<_>>()?,
        };
        disable_side_effects(&lab.source)?;
        disable_side_effects(&lab.router)?;
        inside(&lab.router, async |handle| {
            let ends = lab.receivers.iter().map(|r| &r.netns);
            let ends = ends.enumerate().map(|(i, netns)| (out(i), netns));
            for (name, end) in [(IN.to_owned(), &lab.source)].into_iter().chain(ends) {
                let pair = LinkVeth::new(&name, END).build();
                handle.link().add(pair).execute().await?;
                let moved = LinkUnspec::new_with_name(END)
                    .setns_by_fd(end.as_fd().as_raw_fd())
                    .build();
                handle.link().set(moved).execute().await?;
            }
            Ok(())
        })?;
        let mut router = vec![(IN.to_owned(), ROUTER, SOURCE_PREFIX)];
        set_up(&lab.source, &[(END.to_owned(), SOURCE, SOURCE_PREFIX)])?;
        for (i, receiver) in lab.receivers.iter().enumerate() {
            let host = |host| Ipv4Addr::new(10, 1, i as u8, host);
            set_up(&receiver.netns, &[(END.to_owned(), host(2), 24)])?;
            router.push((out(i), host(1), 24));
        }
        set_up(&lab.router, &router)?;
        lab.router
            .run(|| wait_running(router.len() + 1))
            .and_then(|up| up)?;
        Ok(lab)
    }

    /// Returns the interface index of the source.
    pub fn source_index(&self) -> Outcome<IfIndex> {
        let all = self.source.run(interfaces)??;
        let found = all.iter().find(|i| i.name.as_str() == END);
        Ok(found.ok_or("the source has no interface")?.index)
    }

    /// Returns the link-layer address of the router on the link of the source.
    pub fn router_mac(&self) -> Outcome<[u8; 6]> {
        let show = || {
            let mut ip = Command::new("ip");
            ip.args(["-brief", "link", "show", "dev", IN]).output()
        };
        let output = self.router.run(show)??;
        let text = String::from_utf8_lossy(&output.stdout);
        let address = text.split_whitespace().nth(2).unwrap_or_default();
        let bytes = address.split(':').map(|byte| u8::from_str_radix(byte, 16));
        let bytes = bytes.collect::<Result<Vec<u8>, _>>()?;
        let bytes = bytes.try_into();
        bytes.map_err(|_| format!("no link-layer address: {text}").into())
    }

    /// Lets a program on the router join the groups of the flows. It reads nothing, so the kernel
    /// drops the packets when its buffer is full. It leaves the groups when the socket is dropped.
    pub fn listen(&self, kind: SenderKind, flows: usize) -> Outcome<UdpSocket> {
        let socket = self.router.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
            for flow in 0..flows {
                let (_, group) = kind.flow(flow);
                socket.join_multicast_v4(&group, &ROUTER)?;
            }
            io::Result::Ok(socket)
        });
        Ok(socket??)
    }

    /// Turns the transmit offloads of the source's interface on or off.
    pub fn offload(&self, on: bool) -> Outcome<()> {
        let state = if on { "on" } else { "off" };
        ethtool(&self.source, &["-K", END, "tx", state])
    }

    /// Lets the router's interface to the source coalesce UDP datagrams that arrive together, as
    /// hardware interfaces do by default. A veth does it only if its other end cannot send TCP
    /// segments.
    pub fn coalesce(&self) -> Outcome<()> {
        ethtool(&self.router, &["-K", IN, "gro", "on"])?;
        let segments = ["tx-tcp-segmentation", "tx-tcp6-segmentation"];
        let variants = ["tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation"];
        for feature in segments.into_iter().chain(variants) {
            ethtool(&self.source, &["-K", END, feature, "off"])?;
        }
        Ok(())
    }

    /// Returns the number of packets that arrived at each receiver.
    pub fn arrived(&self) -> io::Result<Vec<u64>> {
        self.receivers.iter().map(Receiver::arrived).collect()
    }

    /// Returns the number of datagrams with `size` bytes of payload that arrived at each receiver.
    pub fn datagrams(&self, size: usize) -> io::Result<Vec<u64>> {
        self.receivers.iter().map(|r| r.datagrams(size)).collect()
    }

    /// Waits until no more packets arrive, and returns the number of packets at each receiver.
    pub fn wait_until_quiet(&self) -> io::Result<Vec<u64>> {
        const INTERVAL: Duration = Duration::from_millis(30);
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut last = self.arrived()?;
        loop {
            std::thread::sleep(INTERVAL);
            let now = self.arrived()?;
            if now == last || Instant::now() > deadline {
                return Ok(now);
            }
            last = now;
        }
    }
}

/// Disables IPv6, which sends packets of its own, and the reverse path filter.
fn disable_side_effects(netns: &NetNs) -> io::Result<()> {
    netns.run(|| {
        for (key, value) in [
            ("ipv6/conf/all/disable_ipv6", "1"),
            ("ipv6/conf/default/disable_ipv6", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ] {
            // A kernel without IPv6 has no such file.
            let _ = fs::write(format!("/proc/sys/net/{key}"), value);
        }
    })
}

/// Sets the interfaces and the loopback up and assigns the addresses.
fn set_up(netns: &NetNs, links: &[(String, Ipv4Addr, u8)]) -> Outcome<()> {
    inside(netns, async |handle| {
        let all = interfaces().map_err(|e| rtnetlink::Error::NamespaceError(e.to_string()))?;
        for name in links.iter().map(|l| l.0.as_str()).chain(["lo"]) {
            let up = LinkUnspec::new_with_name(name).up().build();
            handle.link().set(up).execute().await?;
        }
        for (name, addr, length) in links {
            let index = all.iter().find(|i| i.name.as_str() == name);
            let index = index.map_or(0, |i| i.index.get());
            let request = handle.address().add(index, (*addr).into(), *length);
            request.execute().await?;
        }
        Ok(())
    })
}

/// Runs `work` with a netlink connection to `netns`.
fn inside(
    netns: &NetNs,
    work: impl AsyncFnOnce(Handle) -> Result<(), rtnetlink::Error> + Send,
) -> Outcome<()> {
    let done = netns.run(|| -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(|e| e.to_string())?;
        runtime.block_on(async {
            let (connection, handle, _) = new_connection().map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            work(handle).await.map_err(|e| e.to_string())
        })
    })?;
    Ok(done?)
}

/// Waits until `count` interfaces have a carrier.
fn wait_running(count: usize) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while interfaces()?.iter().filter(|i| i.running).count() < count {
        if Instant::now() > deadline {
            return Err(io::Error::other("the veth pairs have no carrier"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
