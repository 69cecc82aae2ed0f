//! Joinfiles: one `source,group` a line. Read by an egress, written by an ingress.
//!
//! Blank lines are skipped, and what follows a `#`. A `*` for the source is any source.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::channel::{Channel, ChannelError};

/// Largest file that is read, in bytes.
pub const LONGEST_FILE: usize = 16 << 20;
/// Joins of a file that are looked at; what comes after them is left out.
pub const MOST_JOINS: usize = 65_536;
/// Faults of a file that are kept; more of them are counted only.
const MOST_FAULTS: usize = 20;

/// Why a line is skipped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// Not two fields.
    #[error("`source,group` is what a line holds")]
    Fields,
    /// Bytes that are no text.
    #[error("the line is not UTF-8")]
    NotText,
    /// Source or group are not such.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The file has more joins than are looked at.
    #[error("more than {MOST_JOINS} joins; the rest is left out")]
    TooMany,
}

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joinfile {
    /// The joins, each once.
    pub joins: BTreeSet<Channel>,
    /// The first faults, by number of the line, from 1.
    pub faults: Vec<(usize, LineFault)>,
    /// How many there were.
    pub fault_count: usize,
}

/// Reads a file.
pub fn parse(bytes: &[u8]) -> Joinfile {
    let mut file = Joinfile::default();
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    for (n, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let fault = match line_of(line) {
            Ok(None) => continue,
            Ok(Some(channel)) => {
                if file.joins.len() < MOST_JOINS || file.joins.contains(&channel) {
                    file.joins.insert(channel);
                    continue;
                }
                LineFault::TooMany
            }
            Err(fault) => fault,
        };
        let last = fault == LineFault::TooMany;
        file.fault_count += 1;
        if file.faults.len() < MOST_FAULTS {
            file.faults.push((n + 1, fault));
        }
        if last {
            break;
        }
    }
    file
}

fn line_of(line: &[u8]) -> Result<Option<Channel>, LineFault> {
    let line = line.split(|b| *b == b'#').next().unwrap_or(line);
    let line = std::str::from_utf8(line).map_err(|_| LineFault::NotText)?;
    let line = line.trim();
    if line.is_empty() {
        return Ok(None);
    }
    let (source, group) = line.split_once(',').ok_or(LineFault::Fields)?;
    let (source, group) = (source.trim(), group.trim());
    if source.is_empty() || group.is_empty() || group.contains(',') {
        return Err(LineFault::Fields);
    }
    let source = (source != "*").then_some(source);
    Ok(Some(Channel::parse(source, group)?))
}

/// Writes a file.
pub fn render(joins: impl IntoIterator<Item = Channel>) -> String {
    let mut text = String::new();
    for channel in joins {
        // Writing to a String does not fail.
        let _ = match channel.source() {
            Some(source) => writeln!(text, "{source},{}", channel.group()),
            None => writeln!(text, "*,{}", channel.group()),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let text = "10.0.0.1,232.1.1.1\n2001:db8::1,ff3e::8000:1\n*,239.5.5.5\n";
        let file = parse(text.as_bytes());
        assert_eq!((file.joins.len(), file.fault_count), (3, 0));
        assert_eq!(parse(render(file.joins.clone()).as_bytes()), file);
    }

    #[test]
    fn comments_blanks_and_line_ends_do_not_matter() {
        let text =
            "\u{feff}# joins\r\n\r\n  10.0.0.1 , 232.1.1.1  # camera\r\n10.0.0.1,232.1.1.1\n\t\n";
        let file = parse(text.as_bytes());
        assert_eq!((file.joins.len(), file.fault_count), (1, 0), "{file:?}");
    }

    #[test]
    fn each_fault_is_named_by_its_line_and_the_others_are_read() {
        for (bad, told) in [
            ("10.0.0.1", "`source,group`"),
            ("10.0.0.1,232.1.1.1,7", "`source,group`"),
            (",232.1.1.1", "`source,group`"),
            ("10.0.0.1,", "`source,group`"),
            ("10.0.0.300,232.1.1.1", "10.0.0.300"),
            ("camera,232.1.1.1", "`camera`"),
            ("10.0.0.1,10.0.0.2", "not a multicast group"),
            ("232.1.1.2,232.1.1.1", "multicast address"),
            ("10.0.0.1,ff3e::1", "different IP versions"),
            ("fe80::1%eth0,ff3e::1", "fe80::1%eth0"),
            ("10.0.0.0/24,232.1.1.1", "10.0.0.0/24"),
            ("10.0.0.1,232.1.1.0/24", "232.1.1.0/24"),
            ("10.0.0.1,224.0.0.251", "link-local"),
            ("0.0.0.0,232.1.1.1", "no sender"),
        ] {
            let text = format!("# one\n{bad}\n10.0.0.9,232.1.1.9\n");
            let file = parse(text.as_bytes());
            assert_eq!(file.joins.len(), 1, "{bad}");
            let [(line, fault)] = &file.faults[..] else {
                panic!("{bad}: {:?}", file.faults);
            };
            assert!(
                *line == 2 && fault.to_string().contains(told),
                "{bad}: {fault}"
            );
        }
        let file = parse(b"\xff\xfe\n10.0.0.9,232.1.1.9");
        assert_eq!(file.faults, [(1, LineFault::NotText)]);
        assert_eq!(file.joins.len(), 1);
    }

    #[test]
    fn faults_and_joins_without_end_are_cut() {
        let file = parse("x\n".repeat(1000).as_bytes());
        assert_eq!((file.faults.len(), file.fault_count), (MOST_FAULTS, 1000));
        let many = |n: usize| format!("10.{}.{}.{},232.1.1.1\n", n >> 16, n >> 8 & 255, n & 255);
        let text: String = (1..=MOST_JOINS + 5).map(many).collect();
        let file = parse(text.as_bytes());
        assert_eq!(file.joins.len(), MOST_JOINS);
        assert_eq!(file.faults, [(MOST_JOINS + 1, LineFault::TooMany)]);
    }
}
