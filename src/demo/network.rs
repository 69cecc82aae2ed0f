//! Three namespaces and two veth pairs, configured by netlink.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use netlink_packet_route::address::AddressHeaderFlags;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, new_connection};
use socket2::{Domain, Type};

use super::DemoError;
use crate::sys::ifaddr::interfaces;
use crate::sys::netns::{self, NetNs};

/// Longest wait for a link to come up.
const PATIENCE: Duration = Duration::from_secs(5);

/// The interface of sender and receiver.
pub const END: &str = "eth0";
/// The router's interface towards the sender.
pub const IN: &str = "in";
/// The router's interface towards the receiver.
pub const OUT: &str = "out";

const PREFIXES: (u8, u8) = (24, 64);

/// The addresses of a network of the demo: 1 is the sender's, 2 the receiver's.
fn addresses(network: u8, host: u8) -> [IpAddr; 2] {
    [
        [198, 18, network, host].into(),
        Ipv6Addr::new(0x2001, 2, 0, network.into(), 0, 0, 0, host.into()).into(),
    ]
}

/// The sender's address of the family that `v6` says.
pub fn sender_address(v6: bool) -> IpAddr {
    addresses(1, 2)[usize::from(v6)]
}

/// The namespaces.
#[derive(Debug)]
pub struct DemoNetwork {
    /// Where the streams come from.
    pub sender: NetNs,
    /// Where the router runs.
    pub router: NetNs,
    /// Where the streams go.
    pub receiver: NetNs,
    /// Whether the kernel has IPv6.
    pub has_ipv6: bool,
}

impl DemoNetwork {
    /// Makes them and everything in them. Becomes root in a user namespace where it must.
    pub fn new() -> Result<Self, DemoError> {
        if !netns::can_create_namespaces() {
            netns::enter_user_namespace().map_err(DemoError::Namespaces)?;
        }
        let netns = || NetNs::new().map_err(DemoError::Namespaces);
        let lab = Self {
            sender: netns()?,
            router: netns()?,
            receiver: netns()?,
            has_ipv6: socket2::Socket::new(Domain::IPV6, Type::DGRAM, None).is_ok(),
        };
        inside(&lab.router, async |handle| {
            for (name, end) in [(IN, &lab.sender), (OUT, &lab.receiver)] {
                handle
                    .link()
                    .add(LinkVeth::new(name, END).build())
                    .execute()
                    .await?;
                let moved = LinkUnspec::new_with_name(END)
                    .setns_by_fd(end.as_fd().as_raw_fd())
                    .build();
                handle.link().set(moved).execute().await?;
            }
            Ok(())
        })?;
        lab.configure(&lab.sender, &[(END, 1, 2)])?;
        lab.configure(&lab.receiver, &[(END, 2, 2)])?;
        lab.configure(&lab.router, &[(IN, 1, 1), (OUT, 2, 1)])?;
        for (netns, names) in [
            (&lab.sender, &[END] as &[_]),
            (&lab.receiver, &[END]),
            (&lab.router, &[IN, OUT]),
        ] {
            netns
                .run(|| wait_running(names))
                .and_then(|up| up)
                .map_err(|e| DemoError::Cables(e.to_string()))?;
        }
        Ok(lab)
    }

    /// Gives each interface its addresses in a network, as a host, and sets it up.
    fn configure(&self, netns: &NetNs, links: &[(&str, u8, u8)]) -> Result<(), DemoError> {
        inside(netns, async |handle| {
            let all = interfaces().map_err(rtnetlink_io)?;
            for name in links.iter().map(|l| l.0).chain(["lo"]) {
                let up = LinkUnspec::new_with_name(name).up().build();
                handle.link().set(up).execute().await?;
            }
            for &(name, network, host) in links {
                let found = all.iter().find(|i| i.name.as_str() == name);
                let index = found.map_or(0, |i| i.index.get());
                for addr in addresses(network, host) {
                    if addr.is_ipv6() && !self.has_ipv6 {
                        continue;
                    }
                    let length = if addr.is_ipv4() {
                        PREFIXES.0
                    } else {
                        PREFIXES.1
                    };
                    let mut request = handle.address().add(index, addr, length);
                    // Nobody else is on the cable; without it the address waits a second or two.
                    request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
                    request.execute().await?;
                }
            }
            Ok(())
        })
    }
}

fn rtnetlink_io(error: io::Error) -> rtnetlink::Error {
    rtnetlink::Error::NamespaceError(error.to_string())
}

/// Runs `work` with a netlink connection of `netns`.
fn inside(
    netns: &NetNs,
    work: impl AsyncFnOnce(Handle) -> Result<(), rtnetlink::Error> + Send,
) -> Result<(), DemoError> {
    let cables = |e: &dyn std::fmt::Display| DemoError::Cables(e.to_string());
    netns
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .map_err(|e| cables(&e))?;
            runtime.block_on(async {
                let (connection, handle, _) = new_connection().map_err(|e| cables(&e))?;
                tokio::spawn(connection);
                work(handle).await.map_err(|e| cables(&e))
            })
        })
        .map_err(DemoError::Namespaces)?
}

/// Waits until each of `names` has a carrier.
fn wait_running(names: &[&str]) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all = interfaces()?;
        let running = |name: &&str| {
            all.iter()
                .any(|i| i.name.as_str() == *name && i.up && i.running)
        };
        if names.iter().all(running) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!(
                "{} has no carrier",
                names.join(" or ")
            )));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
