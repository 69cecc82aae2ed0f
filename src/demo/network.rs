//! The network of the demo: three namespaces and two veth pairs, configured with netlink.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use netlink_packet_route::address::AddressHeaderFlags;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, new_connection};
use socket2::{Domain, Type};

use super::error::DemoError;
use crate::sys::ifaddr::interfaces;
use crate::sys::netns::{self, NetNs};

/// Longest wait for the links to come up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Name of the interface of the sender and of the receiver.
pub const END: &str = "eth0";
/// Name of the router's interface to the sender.
pub const IN: &str = "in";
/// Name of the router's interface to the receiver.
pub const OUT: &str = "out";

/// Prefix lengths of the IPv4 and IPv6 addresses.
const PREFIX_LENGTHS: (u8, u8) = (24, 64);

/// Returns the IPv4 and the IPv6 address of `host` in `network`: 1 is the sender's, 2 the
/// receiver's.
fn addresses(network: u8, host: u8) -> [IpAddr; 2] {
    [
        [198, 18, network, host].into(),
        Ipv6Addr::new(0x2001, 2, 0, network.into(), 0, 0, 0, host.into()).into(),
    ]
}

/// Returns the sender's IPv6 address if `v6`, else its IPv4 address.
pub fn sender_address(v6: bool) -> IpAddr {
    addresses(1, 2)[usize::from(v6)]
}

/// The network namespaces of the demo. They disappear when this value is dropped.
#[derive(Debug)]
pub struct DemoNetwork {
    /// Namespace of the sender.
    pub sender: NetNs,
    /// Namespace of the router.
    pub router: NetNs,
    /// Namespace of the receiver.
    pub receiver: NetNs,
    /// Whether the kernel supports IPv6.
    pub has_ipv6: bool,
}

impl DemoNetwork {
    /// Creates the namespaces and configures their interfaces. Without the privileges for it, first
    /// enters a user namespace as its root.
    pub fn new() -> Result<Self, DemoError> {
        if !netns::can_create_namespaces() {
            netns::enter_user_namespace().map_err(DemoError::Namespaces)?;
        }
        let netns = || NetNs::new().map_err(DemoError::Namespaces);
        let network = Self {
            sender: netns()?,
            router: netns()?,
            receiver: netns()?,
            has_ipv6: socket2::Socket::new(Domain::IPV6, Type::DGRAM, None).is_ok(),
        };
        with_netlink(&network.router, async |handle| {
            for (name, end) in [(IN, &network.sender), (OUT, &network.receiver)] {
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
        network.configure(&network.sender, &[(END, 1, 2)])?;
        network.configure(&network.receiver, &[(END, 2, 2)])?;
        network.configure(&network.router, &[(IN, 1, 1), (OUT, 2, 1)])?;
        for (netns, names) in [
            (&network.sender, &[END] as &[_]),
            (&network.receiver, &[END]),
            (&network.router, &[IN, OUT]),
        ] {
            netns
                .run(|| wait_running(names))
                .and_then(|up| up)
                .map_err(|e| DemoError::Links(e.to_string()))?;
        }
        Ok(network)
    }

    /// Sets the interfaces up and adds their addresses. `links` holds interface name, network and
    /// host number.
    fn configure(&self, netns: &NetNs, links: &[(&str, u8, u8)]) -> Result<(), DemoError> {
        with_netlink(netns, async |handle| {
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
                        PREFIX_LENGTHS.0
                    } else {
                        PREFIX_LENGTHS.1
                    };
                    let mut request = handle.address().add(index, addr, length);
                    // Skips duplicate address detection: it takes a second or two, and the veth
                    // pair has no other host.
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

/// Runs `work` with a netlink connection in `netns`.
fn with_netlink(
    netns: &NetNs,
    work: impl AsyncFnOnce(Handle) -> Result<(), rtnetlink::Error> + Send,
) -> Result<(), DemoError> {
    let link_error = |e: &dyn std::fmt::Display| DemoError::Links(e.to_string());
    netns
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .map_err(|e| link_error(&e))?;
            runtime.block_on(async {
                let (connection, handle, _) = new_connection().map_err(|e| link_error(&e))?;
                tokio::spawn(connection);
                work(handle).await.map_err(|e| link_error(&e))
            })
        })
        .map_err(DemoError::Namespaces)?
}

/// Waits until each interface of `names` is up and has a carrier.
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
