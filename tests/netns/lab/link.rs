//! veth links between namespaces.

use std::fmt::Write;

use super::ns::{Ns, ip_batch};

/// One end of a veth link.
pub struct LinkEnd<'a> {
    ns: &'a Ns,
    iface: String,
    addresses: Vec<String>,
}

impl<'a> LinkEnd<'a> {
    /// Describes the end named `iface` in `ns`, with addresses in prefix notation.
    pub fn new(ns: &'a Ns, iface: impl Into<String>, addresses: &[&str]) -> Self {
        Self {
            ns,
            iface: iface.into(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Creates one veth link; see [`connect_all`].
#[track_caller]
pub fn connect<'a>(near: LinkEnd<'a>, far: LinkEnd<'a>) {
    connect_all(&[(near, far)]);
}

/// Creates veth links, each from a near end to a far end, and waits until packets cross them.
///
/// The far ends are set up first, so that packets from a near end arrive as soon as that end is up.
/// Each step runs one `ip` process per namespace, regardless of the number of links.
#[track_caller]
pub fn connect_all(links: &[(LinkEnd, LinkEnd)]) {
    let mut pairs = String::new();
    let mut far_up = Batches::default();
    let mut near_up = Batches::default();
    let mut far_addresses = Batches::default();
    for (near, far) in links {
        let _ = writeln!(
            pairs,
            "link add {} netns {} type veth peer name {} netns {}",
            near.iface,
            near.ns.name(),
            far.iface,
            far.ns.name()
        );
        far_up.set_up(far);
        near_up.set_up(near);
        near_up.add_addresses(near);
        far_addresses.add_addresses(far);
    }
    ip_batch(&[], &pairs).unwrap_or_else(|e| panic!("{e}"));
    for batches in [far_up, near_up, far_addresses] {
        batches.run();
    }
    for (near, far) in links {
        near.ns.wait_until_up(&near.iface);
        far.ns.wait_until_up(&far.iface);
    }
}

/// Lines for `ip -batch` by namespace.
#[derive(Default)]
struct Batches<'a>(Vec<(&'a Ns, String)>);

impl<'a> Batches<'a> {
    fn set_up(&mut self, end: &LinkEnd<'a>) {
        self.add(end.ns, &format!("link set {} up", end.iface));
    }

    fn add_addresses(&mut self, end: &LinkEnd<'a>) {
        for address in &end.addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            let line = format!("address add {address} dev {}{nodad}", end.iface);
            self.add(end.ns, &line);
        }
    }

    fn add(&mut self, ns: &'a Ns, line: &str) {
        let at = self.0.iter().position(|(n, _)| n.name() == ns.name());
        let at = at.unwrap_or_else(|| {
            self.0.push((ns, String::new()));
            self.0.len() - 1
        });
        self.0[at].1 += line;
        self.0[at].1.push('\n');
    }

    #[track_caller]
    fn run(self) {
        for (ns, lines) in self.0 {
            ns.ip_batch(&lines);
        }
    }
}
