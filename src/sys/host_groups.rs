//! The groups that programs of this host listen to, as the kernel lists them (`/proc/net/igmp`,
//! `/proc/net/igmp6`), without the memberships that this process has itself.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use crate::model::IfIndex;

type Memberships = HashMap<(IfIndex, IpAddr), u32>;

/// The sockets of this process, by interface and group. One list for the process, because the
/// kernel has one list for the network namespace.
static OWN: Mutex<Option<Memberships>> = Mutex::new(None);

/// Notes that this many sockets of this process have joined a group.
pub(super) fn set_own(index: IfIndex, group: IpAddr, sockets: u32) {
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    let own = own.get_or_insert_default();
    match sockets {
        0 => own.remove(&(index, group)),
        sockets => own.insert((index, group), sockets),
    };
}

/// The groups that other programs have joined.
#[derive(Debug, Default)]
pub struct HostGroups {
    joined: Memberships,
    /// Whether the kernel's list could be read. Otherwise every group counts as joined.
    is_known: bool,
}

impl HostGroups {
    /// Reads the lists of the kernel, for the network namespace of this thread.
    pub fn read() -> Self {
        // Before the lists: a group that this process leaves meanwhile counts as joined by another
        // program until the next look.
        let own = OWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let read = |file| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let (Ok(v4), v6) = (read("igmp"), read("igmp6")) else {
            return Self::default();
        };
        let mut joined = parse_igmp(&v4);
        joined.extend(parse_igmp6(&v6.unwrap_or_default()));
        for (key, sockets) in own.into_iter().flatten() {
            if let Some(users) = joined.get_mut(&key) {
                *users = users.saturating_sub(sockets);
            }
        }
        joined.retain(|_, users| *users > 0);
        Self {
            joined,
            is_known: true,
        }
    }

    /// Returns whether a program listens to a group on an interface.
    pub fn wants(&self, index: IfIndex, group: IpAddr) -> bool {
        !self.is_known || self.joined.contains_key(&(index, group))
    }
}

/// Parses `/proc/net/igmp`: a line for each interface, which starts with its index, and indented
/// ones for its groups. A group is a number in the byte order of the machine.
fn parse_igmp(text: &str) -> Memberships {
    let mut index = None;
    let mut joined = Memberships::new();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        if !line.starts_with(['\t', ' ']) {
            index = fields
                .next()
                .and_then(|f| f.parse().ok())
                .and_then(IfIndex::new);
            continue;
        }
        let group = fields.next().and_then(|f| u32::from_str_radix(f, 16).ok());
        let users = fields.next().and_then(|f| f.parse().ok());
        if let (Some(index), Some(group), Some(users)) = (index, group, users) {
            let group = Ipv4Addr::from(group.to_ne_bytes());
            joined.insert((index, group.into()), users);
        }
    }
    joined
}

/// Parses `/proc/net/igmp6`: index, name, group, users, flags, timer.
fn parse_igmp6(text: &str) -> Memberships {
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [index, _, group, users, ..] = fields[..] else {
            return None;
        };
        let group = u128::from_str_radix(group, 16).ok()?;
        let key = (
            IfIndex::new(index.parse().ok()?)?,
            Ipv6Addr::from_bits(group).into(),
        );
        Some((key, users.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lists_of_the_kernel_are_read() {
        let igmp = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
                    2\teth0      :     2      V3\n\t\t\t\t030201E1     2 0:00000000\t\t1\n";
        let joined = parse_igmp(igmp);
        let key = |index, group: [u8; 4]| (IfIndex::new(index).unwrap(), IpAddr::from(group));
        assert_eq!(joined.get(&key(1, [224, 0, 0, 1])), Some(&1));
        assert_eq!(joined.get(&key(2, [225, 1, 2, 3])), Some(&2));
        assert_eq!(joined.len(), 2);
        let igmp6 = "3    eth1            ff050000000000000000000000000123     1 0000000C 0\n";
        let group: IpAddr = "ff05::123".parse().unwrap();
        let joined = parse_igmp6(igmp6);
        assert_eq!(joined.get(&(IfIndex::new(3).unwrap(), group)), Some(&1));
    }

    #[test]
    fn unknown_lists_count_as_joined() {
        let groups = HostGroups::default();
        assert!(groups.wants(IfIndex::new(1).unwrap(), [225, 1, 2, 3].into()));
    }
}
