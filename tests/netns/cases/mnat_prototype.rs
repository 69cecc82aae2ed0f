//! The programs of the MNAT prototype with `mcastor mnat-server`, and with our ends.

use std::fs::{create_dir, read_to_string, rename, write};
use std::path::{Path, PathBuf};

use super::cases;
use super::mnat_server::{Network, POOL_V4, SERVER};
use crate::lab::mnat_prototype::Prototype;
use crate::lab::proxy::join_source;
use crate::lab::{
    Capture, Lab, NumberedStream, Program, Router, TIMEOUT, eventually, received_in_order,
    wait_until,
};

cases!("mnat_prototype":
    #[Variable("MCASTOR_MNAT_PROTOTYPE", "test-prototype PROTOTYPE=DIR")]
        prototype_ingress_serves_both_egresses,
    #[Variable("MCASTOR_MNAT_PROTOTYPE", "test-prototype PROTOTYPE=DIR")]
        ingress_serves_both_egresses,
    #[Variable("MCASTOR_MNAT_PROTOTYPE", "test-prototype PROTOTYPE=DIR")]
        prototype_ends_continue_after_a_restart_of_the_server,
);

/// An ingress of either kind.
enum Ingress {
    Prototype {
        _program: Program,
        joinfile: PathBuf,
    },
    Own(Router),
}

/// An egress of the prototype and one of ours behind an ingress, and a stream that both receive.
struct Site<'l> {
    lab: &'l Lab,
    network: Network,
    server: Program,
    state: PathBuf,
    ingress: Ingress,
    joinfile: PathBuf,
    own_egress: Router,
    egress: Program,
}

impl<'l> Site<'l> {
    fn new(lab: &'l Lab, has_prototype_ingress: bool) -> Self {
        let network = Network::new(lab);
        let prototype = Prototype::new(lab, SERVER, &network.ca_file);
        let state = lab.file("state");
        let server = network.serve(lab, POOL_V4, &["--state", state.to_str().unwrap()]);
        // The prototype sends on a raw socket, which needs a route.
        for (ns, iface) in [(&network.ing, "mid"), (&network.egresses[0], "out")] {
            ns.ip(&format!("route add 224.0.0.0/4 dev {iface}"));
        }
        let folder = lab.file("egress");
        create_dir(&folder).unwrap();
        let joinfile = folder.join("egress.sgs");
        write_joins(&joinfile, &[GROUP]);
        let egress = prototype.egress(lab, &network.egresses[0], "net0", "out", &joinfile);
        let own_egress = network.egress(lab, 1);
        let written = lab.file("ingress-joined.sgs");
        let ingress = match has_prototype_ingress {
            true => Ingress::Prototype {
                _program: prototype.ingress(lab, &network.ing, "in", "mid", &written),
                joinfile: written,
            },
            false => Ingress::Own(network.ingress(lab)),
        };
        Self {
            lab,
            network,
            server,
            state,
            ingress,
            joinfile,
            own_egress,
            egress,
        }
    }

    /// Restarts the server.
    fn restart_server(&mut self) {
        self.server.stop(libc::SIGKILL, TIMEOUT);
        let options = ["--state", self.state.to_str().unwrap()];
        self.server = self.network.serve(self.lab, POOL_V4, &options);
    }

    /// Joins these groups at the egress of the prototype, and waits until the ingress forwards them.
    #[track_caller]
    fn expect_forwarded(&self, groups: &[&str]) {
        write_joins(&self.joinfile, groups);
        let expected: Vec<String> = groups.iter().map(|group| group.to_string()).collect();
        eventually("the streams", expected, || self.forwarded());
    }

    /// Returns the groups that the ingress forwards.
    fn forwarded(&self) -> Vec<String> {
        let mut groups: Vec<String> = match &self.ingress {
            Ingress::Prototype { joinfile, .. } => {
                let text = read_to_string(joinfile).unwrap_or_default();
                let groups = text.lines().filter_map(|line| line.split_once(','));
                groups.map(|(_, group)| group.to_owned()).collect()
            }
            Ingress::Own(router) => {
                let mapped = super::mnat::mapped(router).into_iter();
                let assigned = mapped.filter(|(_, _, state)| state == "assigned");
                assigned.map(|(group, ..)| group).collect()
            }
        };
        groups.sort();
        groups
    }
}

/// Replaces a joinfile. Written in place, it would be read when it is empty.
fn write_joins(joinfile: &Path, groups: &[&str]) {
    let lines = groups.iter().map(|group| format!("10.0.0.10,{group}\n"));
    let new = joinfile.with_extension("new");
    write(&new, lines.collect::<String>()).unwrap();
    rename(&new, joinfile).unwrap();
}

/// A stream from the sender to the hosts behind both egresses.
struct Stream {
    wires: [Capture; 2],
    sender: NumberedStream,
}

const GROUP: &str = "232.1.1.1";
/// Packets a second. A block of the prototype is full after a second.
const RATE: u32 = 2000;
/// Packets that must arrive after a change: those of some blocks.
const PACKETS: usize = 5000;

impl Stream {
    /// Starts a stream, and waits until it arrives.
    fn start(site: &Site) -> Self {
        let network = &site.network;
        let wires = [0, 1].map(|n| Capture::new(&network.hosts[n], "eth1"));
        let to = format!("{GROUP}:5000");
        let sender = NumberedStream::start(&network.src, "eth0", "10.0.0.10:9", &to, RATE);
        for (n, wire) in wires.iter().enumerate() {
            let arrives = wait_until(TIMEOUT, || !wire.to(GROUP).is_empty());
            let log = site.egress.stderr();
            assert!(
                arrives,
                "egress {n}: {:?}\n{log}",
                super::mnat::mapped(&site.own_egress)
            );
        }
        Self { wires, sender }
    }

    /// Waits until both hosts have received `more` packets, and ends the stream. Each packet between
    /// the first and the last one that arrived must have arrived once and in order.
    #[track_caller]
    fn expect_complete(self, more: usize) {
        for wire in &self.wires {
            let before = wire.to(GROUP).len();
            let arrived = wait_until(TIMEOUT, || wire.to(GROUP).len() >= before + more);
            assert!(arrived, "{} packets", wire.to(GROUP).len() - before);
        }
        let sent = self.sender.finish();
        for wire in &self.wires {
            let got = received_in_order(wire, GROUP);
            // The prototype reads packets in blocks of 256 KiB. It keeps the last ones.
            let (first, last) = (got[0], got[got.len() - 1]);
            println!("{first} to {last} of {sent}: {} packets", got.len());
            assert_eq!(got.len() as u32, last - first + 1, "packets are missing");
        }
    }
}

/// A stream through both egresses; another one is joined at the egress of the prototype, and left.
fn expect_streams(lab: &Lab, has_prototype_ingress: bool) {
    let site = Site::new(lab, has_prototype_ingress);
    let _join = join_source(&site.network.hosts[1], "eth1", "10.0.0.10", GROUP);
    let stream = Stream::start(&site);
    site.expect_forwarded(&[GROUP, "232.1.1.2"]);
    site.expect_forwarded(&[GROUP]);
    stream.expect_complete(PACKETS);
}

fn prototype_ingress_serves_both_egresses(lab: &Lab) {
    expect_streams(lab, true);
}

fn ingress_serves_both_egresses(lab: &Lab) {
    expect_streams(lab, false);
}

/// The stream continues, and a stream that is joined after the restart is served.
fn prototype_ends_continue_after_a_restart_of_the_server(lab: &Lab) {
    let mut site = Site::new(lab, true);
    let _join = join_source(&site.network.hosts[1], "eth1", "10.0.0.10", GROUP);
    let stream = Stream::start(&site);
    site.restart_server();
    let reconnected = wait_until(TIMEOUT, || {
        let log = site.egress.stderr();
        let after = log.rsplit_once("connection to server lost");
        after.is_some_and(|(_, log)| log.contains("got response"))
    });
    assert!(reconnected, "{}", site.egress.stderr());
    site.expect_forwarded(&[GROUP, "232.1.1.2"]);
    stream.expect_complete(PACKETS);
}
