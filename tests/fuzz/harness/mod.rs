//! The fuzz target functions. The libFuzzer targets use them, and `tests/fuzzed.rs` runs them on a
//! bounded number of generated inputs. Each function panics if an invariant is violated, and
//! returns true if the code under test accepted the input.

mod amt;
mod discovery;
mod membership;
mod packets;
mod texts;

use mcastor::model::{InterfaceId, Link};

pub use amt::amt;
pub use discovery::discovery;
pub use membership::membership;
pub use packets::{decision, switch, translate};
pub use texts::{control, joins, mnat_answer, recv, settings, smcroute_conf, smcroute_wire};

/// A reader of the fuzz input. Returns zeros after its end.
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
    let iif = InterfaceId::new(1).unwrap();
    let id = InterfaceId::new(index).unwrap();
    Link {
        mtu,
        vlan: vlan.map(|id| (iif, id)),
        ..Link::new(id, name.parse().unwrap())
    }
}
