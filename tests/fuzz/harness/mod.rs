//! What is tried with bytes from strangers. Used by the fuzz targets beside this file and, with
//! a bounded number of generated inputs, by `tests/fuzzed.rs`. Each function panics where a
//! promise is broken, and tells whether the input came through: was forwarded or understood.

mod membership;
mod packets;
mod texts;

use mcastor::model::{IfIndex, Link};

pub use membership::membership;
pub use packets::{decision, switch, translate};
pub use texts::{control, joins, mnat_answer, recv, settings, smcroute_conf, smcroute_wire};

/// Takes bytes of the input apart; zeros where it ends.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }
}

fn link(index: u32, name: &str, mtu: u32, vlan: Option<u16>) -> Link {
    let iif = IfIndex::new(1).unwrap();
    Link {
        index: IfIndex::new(index).unwrap(),
        name: name.parse().unwrap(),
        mtu,
        up: true,
        carrier: true,
        vlan: vlan.map(|id| (iif, id)),
        known_as: Default::default(),
    }
}
