//! Source lists and group records, which IGMPv3 and MLDv2 share except for the address size
//! (RFC 9776 section 4.2, RFC 9777 section 5.2).
//!
//! A group record consists of: record type (1 byte), length of the auxiliary data in 32-bit words
//! (1 byte), number of sources (2 bytes), multicast address, source addresses, auxiliary data.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::RejectReason;
use super::membership_message::{GroupRecord, RecordType};
use crate::model::{Group, Source};

/// Bytes of a group record before its multicast address.
const RECORD_HEADER_LEN: usize = 4;

/// The IP version of a message, which determines the address size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressFamily {
    V4,
    V6,
}

impl AddressFamily {
    pub(super) fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Length of an address in bytes.
    pub(super) fn addr_len(self) -> usize {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }
}

/// A cursor over the fields of a message.
pub(super) struct FieldReader<'a> {
    pub(super) rest: &'a [u8],
    pub(super) family: AddressFamily,
}

impl<'a> FieldReader<'a> {
    /// Takes the next `n` bytes. Fails with [`RejectReason::CountMismatch`] if fewer are left.
    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], RejectReason> {
        let (head, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or(RejectReason::CountMismatch)?;
        self.rest = rest;
        Ok(head)
    }

    /// Reads a list of `count` sources. Checks the length before it allocates memory. Omits
    /// addresses that cannot be a source.
    pub(super) fn sources(&mut self, count: u16) -> Result<Vec<Source>, RejectReason> {
        let len = self.family.addr_len();
        let list = self.take(usize::from(count) * len)?;
        Ok(list.chunks_exact(len).filter_map(source).collect())
    }

    /// Reads `count` group records of a report.
    ///
    /// Skips records of unknown types, auxiliary data, and bytes after the last record
    /// (RFC 9776 section 4.2).
    pub(super) fn records(&mut self, count: u16) -> Result<Vec<GroupRecord>, RejectReason> {
        let mut records = Vec::new();
        for _ in 0..count {
            let header = self.take(RECORD_HEADER_LEN)?;
            let group = address(self.take(self.family.addr_len())?);
            let sources = self.sources(u16::from_be_bytes([header[2], header[3]]))?;
            // The auxiliary data length counts 32-bit words.
            self.take(usize::from(header[1]) * 4)?;
            let Some(kind) = record_type(header[0]) else {
                continue;
            };
            records.push(GroupRecord {
                kind,
                group: group
                    .and_then(|g| Group::new(g).ok())
                    .ok_or(RejectReason::NotAGroup)?,
                sources,
            });
        }
        Ok(records)
    }
}

/// Reads an address of 4 or 16 bytes.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|b| Ipv4Addr::from(*b).into()),
        _ => bytes.first_chunk::<16>().map(|b| Ipv6Addr::from(*b).into()),
    }
}

/// Reads the group of a query; `None` if the address is unspecified.
pub(super) fn queried_group(bytes: &[u8]) -> Result<Option<Group>, RejectReason> {
    match address(bytes) {
        Some(addr) if addr.is_unspecified() => Ok(None),
        Some(addr) => Group::new(addr)
            .map(Some)
            .map_err(|_| RejectReason::NotAGroup),
        None => Err(RejectReason::Truncated),
    }
}

/// Reads the group of a report or leave, which must be a multicast address.
pub(super) fn reported_group(bytes: &[u8]) -> Result<Group, RejectReason> {
    queried_group(bytes)?.ok_or(RejectReason::NotAGroup)
}

/// Reads the source list of a query.
///
/// # Errors
/// [`RejectReason::NotASource`] if a non-empty list has no group or only invalid addresses.
/// Dropping all its sources would turn such a query into a query for the whole group.
pub(super) fn queried_sources(
    fields: &mut FieldReader<'_>,
    count: u16,
    group: Option<Group>,
) -> Result<Vec<Source>, RejectReason> {
    let sources = fields.sources(count)?;
    if count > 0 && (sources.is_empty() || group.is_none()) {
        return Err(RejectReason::NotASource);
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

fn record_type(value: u8) -> Option<RecordType> {
    use RecordType::*;
    Some(match value {
        1 => ModeIsInclude,
        2 => ModeIsExclude,
        3 => ChangeToInclude,
        4 => ChangeToExclude,
        5 => AllowNewSources,
        6 => BlockOldSources,
        _ => return None,
    })
}

/// Appends an address.
pub(super) fn push_addr(out: &mut Vec<u8>, addr: IpAddr) {
    match addr {
        IpAddr::V4(a) => out.extend(a.octets()),
        IpAddr::V6(a) => out.extend(a.octets()),
    }
}

/// Length of a group record with `sources` sources in bytes.
pub(super) fn record_len(family: AddressFamily, sources: usize) -> usize {
    RECORD_HEADER_LEN + (1 + sources) * family.addr_len()
}

/// Writes records into report bodies of at most `capacity` bytes each. Returns each body with its
/// number of records. `capacity` must hold at least one record with one source.
///
/// A record that exceeds a body is split. An EXCLUDE record cannot be split, because each part
/// would include the sources that the other parts exclude. Its surplus sources are omitted, which
/// widens the filter (RFC 9776 section 4.2).
pub(super) fn write_bodies(
    records: &[GroupRecord],
    family: AddressFamily,
    capacity: usize,
) -> Vec<(u16, Vec<u8>)> {
    use RecordType::{ChangeToExclude, ModeIsExclude};
    let source_bytes = capacity.saturating_sub(record_len(family, 0));
    let max_sources = (source_bytes / family.addr_len()).max(1);
    let mut bodies = Vec::new();
    let (mut count, mut body) = (0, Vec::new());
    for record in records {
        let mut sources = record.sources.as_slice();
        loop {
            let (first, rest) = sources.split_at(sources.len().min(max_sources));
            if body.len() + record_len(family, first.len()) > capacity {
                bodies.push((count, std::mem::take(&mut body)));
                count = 0;
            }
            body.extend([record.kind as u8, 0]);
            body.extend((first.len() as u16).to_be_bytes());
            push_addr(&mut body, record.group.addr());
            first.iter().for_each(|s| push_addr(&mut body, s.addr()));
            count += 1;
            sources = rest;
            if sources.is_empty() || matches!(record.kind, ModeIsExclude | ChangeToExclude) {
                break;
            }
        }
    }
    bodies.push((count, body));
    bodies
}
