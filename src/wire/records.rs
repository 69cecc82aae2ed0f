//! Source lists and group records, which IGMPv3 and MLDv2 write alike: only their addresses
//! differ in size (RFC 9776 section 4.2, RFC 9777 section 5.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Refusal;
use super::group_message::{Record, RecordType};
use crate::model::{Group, Source};

/// Bytes of a group record before its group.
const RECORD_HEADER_LEN: usize = 4;

/// The IP version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Bytes of an address.
    pub(super) fn addr_len(self) -> usize {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }
}

/// Takes the fields of a message off its front.
pub(super) struct Fields<'a> {
    pub(super) rest: &'a [u8],
    pub(super) family: Family,
}

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], Refusal> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(Refusal::LyingCount)?;
        self.rest = rest;
        Ok(head)
    }

    /// The sources of a list of `count`. Takes memory only for what is there.
    pub(super) fn sources(&mut self, count: u16) -> Result<Vec<Source>, Refusal> {
        let len = self.family.addr_len();
        let list = self.take(usize::from(count) * len)?;
        Ok(list.chunks_exact(len).filter_map(source).collect())
    }

    /// The group records of a report. Types nobody knows are passed over (RFC 9776 section
    /// 4.2), and so are auxiliary data and whatever follows the records.
    pub(super) fn records(&mut self, count: u16) -> Result<Vec<Record>, Refusal> {
        let mut records = Vec::new();
        for _ in 0..count {
            let header = self.take(RECORD_HEADER_LEN)?;
            let group = address(self.take(self.family.addr_len())?);
            let sources = self.sources(u16::from_be_bytes([header[2], header[3]]))?;
            // In words of 32 bits.
            self.take(usize::from(header[1]) * 4)?;
            let Some(kind) = record_type(header[0]) else {
                continue;
            };
            records.push(Record {
                kind,
                group: group
                    .and_then(|g| Group::new(g).ok())
                    .ok_or(Refusal::NotAGroup)?,
                sources,
            });
        }
        Ok(records)
    }
}

/// The address in 4 or 16 bytes.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|b| Ipv4Addr::from(*b).into()),
        _ => bytes.first_chunk::<16>().map(|b| Ipv6Addr::from(*b).into()),
    }
}

/// The group in the bytes; none where they are all zero.
pub(super) fn queried_group(bytes: &[u8]) -> Result<Option<Group>, Refusal> {
    match address(bytes) {
        Some(addr) if addr.is_unspecified() => Ok(None),
        Some(addr) => Group::new(addr).map(Some).map_err(|_| Refusal::NotAGroup),
        None => Err(Refusal::Truncated),
    }
}

/// The group in the bytes, which must be one.
pub(super) fn reported_group(bytes: &[u8]) -> Result<Group, Refusal> {
    queried_group(bytes)?.ok_or(Refusal::NotAGroup)
}

/// The sources a query asks for. It must not be taken for a query of the whole group because
/// none of its sources can be one, and sources of no group cannot be asked for.
pub(super) fn queried_sources(
    fields: &mut Fields<'_>,
    count: u16,
    group: Option<Group>,
) -> Result<Vec<Source>, Refusal> {
    let sources = fields.sources(count)?;
    if count > 0 && (sources.is_empty() || group.is_none()) {
        return Err(Refusal::NotASource);
    }
    Ok(sources)
}

fn source(bytes: &[u8]) -> Option<Source> {
    let addr = address(bytes)?;
    let broadcast = matches!(addr, IpAddr::V4(a) if a.is_broadcast());
    if addr.is_unspecified() || addr.is_loopback() || broadcast {
        return None;
    }
    Source::new(addr).ok()
}

fn record_type(number: u8) -> Option<RecordType> {
    use RecordType::*;
    Some(match number {
        1 => ModeIsInclude,
        2 => ModeIsExclude,
        3 => ChangeToInclude,
        4 => ChangeToExclude,
        5 => AllowNewSources,
        6 => BlockOldSources,
        _ => return None,
    })
}

/// Writes an address.
pub(super) fn push(out: &mut Vec<u8>, addr: IpAddr) {
    match addr {
        IpAddr::V4(a) => out.extend(a.octets()),
        IpAddr::V6(a) => out.extend(a.octets()),
    }
}

/// Bytes of a record with `sources` sources.
pub(super) fn record_len(family: Family, sources: usize) -> usize {
    RECORD_HEADER_LEN + (1 + sources) * family.addr_len()
}

/// Writes records into as many bodies as are needed when each has room for `room` bytes, at
/// least those of one record with one source. With each body stands how many records it holds.
///
/// A record larger than a body is split, but one that excludes sources cannot be: each part
/// would take in what the others exclude. The sources that do not fit are left out, which
/// widens the filter (RFC 9776 section 4.2).
pub(super) fn bodies(records: &[Record], family: Family, room: usize) -> Vec<(u16, Vec<u8>)> {
    use RecordType::{ChangeToExclude, ModeIsExclude};
    let spare = room.saturating_sub(record_len(family, 0));
    let most = (spare / family.addr_len()).max(1);
    let mut done = Vec::new();
    let (mut count, mut body) = (0, Vec::new());
    for record in records {
        let mut sources = record.sources.as_slice();
        loop {
            let (now, later) = sources.split_at(sources.len().min(most));
            if body.len() + record_len(family, now.len()) > room {
                done.push((count, std::mem::take(&mut body)));
                count = 0;
            }
            body.extend([record.kind as u8, 0]);
            body.extend((now.len() as u16).to_be_bytes());
            push(&mut body, record.group.addr());
            now.iter().for_each(|s| push(&mut body, s.addr()));
            count += 1;
            sources = later;
            if sources.is_empty() || matches!(record.kind, ModeIsExclude | ChangeToExclude) {
                break;
            }
        }
    }
    done.push((count, body));
    done
}
