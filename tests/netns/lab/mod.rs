//! The laboratory: namespaces, programs that run in them, and packets sent and received.

pub mod avahi;
pub mod bpffs;
pub mod control;
pub mod discovery_site;
pub mod dns;
pub mod docker;
pub mod flood;
pub mod frame;
pub mod frame_generator;
pub mod frr;
pub mod group_member;
pub mod harness;
pub mod http;
pub mod impaired_path;
pub mod keeper;
pub mod link;
pub mod metrics;
pub mod mnat;
pub mod name_server;
pub mod ns;
pub mod numbered_stream;
pub mod packet;
pub mod parallel;
pub mod pcap;
pub mod program;
pub mod proxy;
pub mod random;
pub mod recipe_site;
pub mod router;
pub mod smcroute;
pub mod star;
pub mod switch;
pub mod tshark;
pub mod tun;
pub mod udp;
pub mod webhook;

pub use docker::Docker;
pub use frame::{IpPacket, Udp};
pub use frr::Frr;
pub use group_member::GroupMember;
pub use impaired_path::{ImpairedPath, Impairment};
pub use link::{LinkEnd, connect, connect_all};
pub use ns::{Lab, Ns, sweep};
pub use numbered_stream::{
    NumberedStream, assert_increasing, missing, received_in_order, sequence_number,
};
pub use packet::{Capture, Injector};
pub use program::Program;
pub use random::Random;
pub use router::{BINARY, Router, binary, measures};
pub use star::{Star, macvlan};
pub use switch::{bridge, connect_to_bridge, switch};
pub use udp::{UdpRx, UdpTx};

use std::time::{Duration, Instant};

/// Longest wait for an event that normally happens at once. It is long because the machine may be
/// busy.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Polls `cond` until it returns true or `timeout` has passed. Returns whether it returned true.
pub fn wait_until(timeout: Duration, mut cond: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + timeout;
    loop {
        if cond() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5) * slowness());
    }
}

/// Returns how much slower than usual the machine is. tests/kernels sets it for its guests: streams
/// and polling at the usual rate would leave no time for the router.
pub fn slowness() -> u32 {
    let set = std::env::var("MCASTOR_SLOWNESS").ok();
    set.map_or(1, |n| n.parse().expect("a number"))
}

/// Polls `read` until it returns `expected`. After [`TIMEOUT`], panics with the last value;
/// `subject` names it.
#[track_caller]
pub fn eventually<T: PartialEq + std::fmt::Debug>(
    subject: &str,
    expected: T,
    mut read: impl FnMut() -> T,
) {
    let mut last = read();
    let ok = last == expected
        || wait_until(TIMEOUT, || {
            last = read();
            last == expected
        });
    assert!(ok, "{subject}: {last:?}, expected {expected:?}");
}
