//! Joinfiles: one `source,group` per line. An egress reads its joinfile, an ingress writes one.
//!
//! Blank lines are skipped, and so is everything after a `#`. The source `*` means any source.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::Range;

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

/// Returns the contents that a file with the content `former` must have one after another, so that
/// it contains `joins` at the end, and a reader never misses a join that is in both.
///
/// A reader may see any mixture of two successive contents, byte by byte. Lines that stay keep their
/// place. The other ones are overwritten: they become comments, then comments of `#` only, then
/// comments with the new joins, and last the joins. So no mixture is another join either.
pub fn overwrite_steps(former: &[u8], joins: impl IntoIterator<Item = Channel>) -> Vec<Vec<u8>> {
    let mut missing: BTreeSet<Channel> = joins.into_iter().collect();
    let mut ended = former.to_vec();
    if ended.last().is_some_and(|byte| *byte != b'\n') {
        ended.push(b'\n');
    }
    let mut gaps: Vec<Range<usize>> = Vec::new();
    let mut marked_at = Vec::new();
    let mut start = 0;
    for line in ended.split_inclusive(|byte| *byte == b'\n') {
        let end = start + line.len();
        let join = parse_line(line).ok().flatten();
        if !join.is_some_and(|join| missing.remove(&join)) {
            marked_at.extend((line.len() > 1).then_some(start));
            match gaps.last_mut() {
                Some(gap) if gap.end == start => gap.end = end,
                _ => gaps.push(start..end),
            }
        }
        start = end;
    }
    let lines = missing.iter().map(|join| render([*join])).collect();
    let (placed, len) = place(&gaps, ended.len(), lines);

    let mut grown = ended;
    if len > grown.len() {
        match gaps.last_mut().filter(|gap| gap.end == grown.len()) {
            Some(gap) => gap.end = len,
            None => gaps.push(grown.len()..len),
        }
        grown.resize(len - 1, b'#');
        grown.push(b'\n');
    }
    let mut marked = grown.clone();
    for at in marked_at {
        marked[at] = b'#';
    }
    let mut cleared = marked.clone();
    let mut last = marked.clone();
    for gap in &gaps {
        cleared[gap.start..gap.end - 1].fill(b'#');
        last[gap.clone()].fill(b'\n');
    }
    let mut filled = cleared.clone();
    for (start, line) in &placed {
        let range = *start..start + line.len();
        filled[range.clone()].copy_from_slice(line.as_bytes());
        filled[*start] = b'#';
        last[range].copy_from_slice(line.as_bytes());
    }
    let is_line = |(at, byte): (usize, &u8)| (*byte != b'\n').then_some(at);
    let end = last.iter().enumerate().rev().find_map(is_line);
    last.truncate(end.map_or(0, |end| end + 2));

    let mut steps = vec![former.to_vec(), grown, marked, cleared, filled, last];
    steps.dedup();
    if steps.len() > 1 {
        steps.remove(0);
    }
    steps
}

/// Returns the offsets at which new lines are written: in gaps if they fit, and else at the end.
/// Returns the length of the file as well.
fn place(gaps: &[Range<usize>], len: usize, lines: Vec<String>) -> (Vec<(usize, String)>, usize) {
    let mut placed = Vec::with_capacity(lines.len());
    let mut lines = lines.into_iter().peekable();
    // The last gap ends with the file, which grows.
    let inner = gaps.iter().filter(|gap| gap.end < len);
    let last = gaps.last().filter(|gap| gap.end == len);
    let last = last.map_or(len, |gap| gap.start)..usize::MAX;
    let mut end = len;
    for gap in inner.chain([&last]) {
        let mut at = gap.start;
        while let Some(line) = lines.next_if(|line| at + line.len() <= gap.end) {
            let next = at + line.len();
            placed.push((at, line));
            at = next;
        }
        end = end.max(at);
    }
    (placed, end)
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

    fn join(n: u64) -> Channel {
        // Lines of different lengths.
        let source = format!("10.0.{}.{}", n % 3 * 100, n + 1);
        Channel::parse(Some(&source), &format!("232.1.1.{}", n % 251)).unwrap()
    }

    /// Returns whether a reader that sees `content` misses none of `common`, and sees no join that
    /// is not in `all`.
    #[track_caller]
    fn check(content: &[u8], common: &BTreeSet<Channel>, all: &BTreeSet<Channel>) {
        let text = String::from_utf8_lossy(content);
        let file = parse(content);
        assert!(file.joins.is_superset(common), "{common:?} in {text:?}");
        assert!(file.joins.is_subset(all), "{all:?} in {text:?}");
        assert_eq!(file.fault_count, 0, "{text:?}");
    }

    #[test]
    fn torn_writes_show_all_common_joins_and_no_other() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let mut content =
            b"# by hand\n\n 10.0.0.1 , 232.1.1.0 # camera\r\n10.0.0.1,232.1.1.0".to_vec();
        for _ in 0..400 {
            let former = parse(&content).joins;
            let count = random(12);
            let next: BTreeSet<Channel> = (0..count).map(|_| join(random(16) as u64)).collect();
            let common = former.intersection(&next).copied().collect();
            let all = former.union(&next).copied().collect();
            for step in overwrite_steps(&content, next.clone()) {
                let longest = content.len().max(step.len());
                for _ in 0..20 {
                    // Some bytes of one content and some of the other, in runs.
                    let mut take_new = random(2) == 0;
                    let mut seen = Vec::new();
                    for at in 0..longest {
                        take_new ^= random(8) == 0;
                        let (first, second) = match take_new {
                            true => (&step, &content),
                            false => (&content, &step),
                        };
                        seen.extend(first.get(at).or(second.get(at)));
                    }
                    // The file grows or shrinks to any length in between.
                    let shortest = content.len().min(step.len());
                    seen.truncate(shortest + random(longest - shortest + 1));
                    check(&seen, &common, &all);
                }
                check(&step, &common, &all);
                content = step;
            }
            assert_eq!(parse(&content).joins, next);
            assert!(
                content.len() < 30 * 20,
                "{}",
                String::from_utf8_lossy(&content)
            );
        }
    }

    #[test]
    fn overwritten_file_without_foreign_lines_is_as_rendered() {
        let joins = [join(1), join(2)];
        for former in ["", "\n", "#\n", "10.9.9.9,232.9.9.9\n10.9.9.8,232.9.9.8"] {
            let steps = overwrite_steps(former.as_bytes(), joins);
            let last = String::from_utf8(steps.last().unwrap().clone()).unwrap();
            assert_eq!(last, render(joins), "{former:?}");
        }
        // An unchanged file is written once, as a sign of life.
        let text = render(joins).into_bytes();
        assert_eq!(overwrite_steps(&text, joins), [text]);
        assert_eq!(overwrite_steps(b"", []), [b""]);
        assert_eq!(
            overwrite_steps(b"10.0.0.1,232.1.1.1\n", []).last().unwrap(),
            b""
        );
    }
}
