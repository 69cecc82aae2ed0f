//! Joinfiles: one `source,group` per line. An egress reads its joinfile, an ingress writes one.
//!
//! Blank lines are skipped, and so is everything after a `#`. The source `*` means any source.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::channel::{Channel, ChannelError};

/// Maximum number of bytes read from a file.
pub const MAX_FILE_LEN: usize = 16 << 20;
/// Maximum number of joins read from a file. Further joins are ignored.
pub const MAX_JOINS: usize = 65_536;
/// Maximum number of faults kept per file. Further faults are only counted.
const MAX_FAULTS: usize = 20;

/// The reason why a line is skipped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// The line does not have two fields.
    #[error("expected `source,group`")]
    Fields,
    /// The line is not UTF-8.
    #[error("the line is not UTF-8")]
    NotText,
    /// Source and group do not form a channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The file has more than [`MAX_JOINS`] joins.
    #[error("more than {MAX_JOINS} joins; the rest is ignored")]
    TooMany,
}

/// The parsed content of a joinfile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joinfile {
    /// The joins, each once.
    pub joins: BTreeSet<Channel>,
    /// The first faults, each with its line number, counted from 1.
    pub faults: Vec<(usize, LineFault)>,
    /// Total number of faults.
    pub fault_count: usize,
}

/// Parses a joinfile.
pub fn parse(bytes: &[u8]) -> Joinfile {
    let mut file = Joinfile::default();
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    for (n, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let fault = match parse_line(line) {
            Ok(None) => continue,
            Ok(Some(channel)) => {
                if file.joins.len() < MAX_JOINS || file.joins.contains(&channel) {
                    file.joins.insert(channel);
                    continue;
                }
                LineFault::TooMany
            }
            Err(fault) => fault,
        };
        let last = fault == LineFault::TooMany;
        file.fault_count += 1;
        if file.faults.len() < MAX_FAULTS {
            file.faults.push((n + 1, fault));
        }
        if last {
            break;
        }
    }
    file
}

fn parse_line(line: &[u8]) -> Result<Option<Channel>, LineFault> {
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

/// Formats a joinfile.
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
    fn rendered_joins_parse_to_the_same_joins() {
        let text = "10.0.0.1,232.1.1.1\n2001:db8::1,ff3e::8000:1\n*,239.5.5.5\n";
        let file = parse(text.as_bytes());
        assert_eq!((file.joins.len(), file.fault_count), (3, 0));
        assert_eq!(parse(render(file.joins.clone()).as_bytes()), file);
    }

    #[test]
    fn comments_blanks_and_line_endings_are_ignored() {
        let text =
            "\u{feff}# joins\r\n\r\n  10.0.0.1 , 232.1.1.1  # camera\r\n10.0.0.1,232.1.1.1\n\t\n";
        let file = parse(text.as_bytes());
        assert_eq!((file.joins.len(), file.fault_count), (1, 0), "{file:?}");
    }

    #[test]
    fn faults_name_their_line_and_other_lines_are_read() {
        for (bad, expected) in [
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
            ("0.0.0.0,232.1.1.1", "not a valid source"),
        ] {
            let text = format!("# one\n{bad}\n10.0.0.9,232.1.1.9\n");
            let file = parse(text.as_bytes());
            assert_eq!(file.joins.len(), 1, "{bad}");
            let [(line, fault)] = &file.faults[..] else {
                panic!("{bad}: {:?}", file.faults);
            };
            assert!(
                *line == 2 && fault.to_string().contains(expected),
                "{bad}: {fault}"
            );
        }
        let file = parse(b"\xff\xfe\n10.0.0.9,232.1.1.9");
        assert_eq!(file.faults, [(1, LineFault::NotText)]);
        assert_eq!(file.joins.len(), 1);
    }

    #[test]
    fn number_of_faults_and_joins_is_limited() {
        let file = parse("x\n".repeat(1000).as_bytes());
        assert_eq!((file.faults.len(), file.fault_count), (MAX_FAULTS, 1000));
        let many = |n: usize| format!("10.{}.{}.{},232.1.1.1\n", n >> 16, n >> 8 & 255, n & 255);
        let text: String = (1..=MAX_JOINS + 5).map(many).collect();
        let file = parse(text.as_bytes());
        assert_eq!(file.joins.len(), MAX_JOINS);
        assert_eq!(file.faults, [(MAX_JOINS + 1, LineFault::TooMany)]);
    }
}
