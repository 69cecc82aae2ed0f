//! The parser for `smcroute.conf` and the files it includes. Valid lines become rules. Invalid
//! lines are reported as faults and skipped.
//!
//! Does no I/O: the caller provides a closure that reads files.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::line::{self, Directive, Mgroup, Mroute, Phyint};
use super::phyint::{self, SmcrouteInterface};
use crate::model::rule::MAX_EGRESSES;
use crate::model::{JoinPolicy, JoinRule, Origin, RouteName, RouteRule};

/// Maximum depth of nested includes.
pub const MAX_INCLUDE_DEPTH: usize = 16;
/// Maximum number of files, including all included files.
pub const MAX_FILES: usize = 1024;
/// Maximum number of lines in all files together.
pub const MAX_LINES: usize = 100_000;
/// Maximum number of different ignored words that a note names.
const MAX_NOTED_WORDS: usize = 16;

/// What users of smcroute need to know about every configuration with routes.
pub const KERNEL_NOTE: &str = "packets are forwarded without the kernel's IP layer: rules of iptables \
    and nftables (TTL, FORWARD, SNAT, DSCP) and rp_filter have no effect on them, and `ip mroute` \
    shows no routes; docs/smcroute.md has replacements";

/// A line number in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfLocation {
    /// The file.
    pub file: Arc<str>,
    /// The line number, counted from 1; 0 for the whole file.
    pub line: usize,
}

impl fmt::Display for ConfLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            n => write!(f, "{} line {n}", self.file),
        }
    }
}

/// A fault or a note, and its location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfFault {
    /// The location.
    pub location: ConfLocation,
    /// The description.
    pub cause: String,
}

impl fmt::Display for ConfFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location, self.cause)
    }
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfLine {
    /// The location.
    pub location: ConfLocation,
    /// The directive; `None` for an empty or invalid line.
    pub directive: Option<Directive>,
    /// The text after `#`.
    pub comment: Option<String>,
}

/// The parsed content of all files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conf {
    /// All lines of all files, in the order in which they are read.
    pub lines: Vec<ConfLine>,
    /// Interface options, each name once, in the order of [`SmcrouteInterface::at`]. If several
    /// match an interface, its own name takes precedence, then the first pattern.
    pub interfaces: Vec<SmcrouteInterface>,
    /// The routes, each with the index of its first line in `lines`. Lines with the same interface,
    /// source and group are merged.
    pub routes: Vec<(usize, RouteRule)>,
    /// The joins, each once, with the index of the first line in `lines`.
    pub joins: Vec<(usize, JoinRule)>,
    /// The reasons why lines were skipped.
    pub faults: Vec<ConfFault>,
    /// Descriptions of valid but suspicious lines.
    pub notes: Vec<ConfFault>,
    /// The reason why the main file could not be read. It is also in `faults`.
    pub unreadable: Option<String>,
}

/// The name of a file, and its bytes or the error of reading it.
pub type ConfFile = (String, io::Result<Vec<u8>>);

/// Reads `path` and the files it includes. `files` returns the files that match a path or a glob
/// pattern, in sorted order. `strict` refuses our additions to the format, and words that smcroute
/// ignores.
pub fn read(
    path: &str,
    strict: bool,
    files: &mut dyn FnMut(&str) -> io::Result<Vec<ConfFile>>,
) -> Conf {
    let mut reader = Reader {
        conf: Conf::default(),
        strict,
        files,
        files_read: 0,
        phyints: Vec::new(),
        ignored: Vec::new(),
    };
    match (reader.files)(path) {
        Ok(found) if found.is_empty() => reader.report_unreadable(path, "does not exist".into()),
        Ok(found) => {
            for (name, bytes) in found {
                match bytes {
                    Ok(bytes) => reader.file(name, &bytes, &mut Vec::new()),
                    Err(e) => reader.report_unreadable(&name, format!("cannot be read: {e}")),
                }
            }
        }
        Err(e) => reader.report_unreadable(path, format!("cannot be read: {e}")),
    }
    reader.conf.interfaces = phyint::resolve(&reader.phyints);
    reader.note_ignored_words();
    reader.conf
}

/// Returns true if `text` is in the format of `smcroute.conf`: a line starts with a directive that
/// is not a TOML key.
pub fn is_smcroute_format(text: &str) -> bool {
    text.lines().any(|line| {
        let text = line.split('#').next().unwrap_or_default();
        let mut words = text.split_whitespace();
        let first = words.next().unwrap_or_default();
        ["phyint", "mgroup", "ssmgroup", "mroute", "include"].contains(&first)
            && !words.next().is_some_and(|word| word.starts_with('='))
    })
}

/// Returns true if `text` looks like TOML and has no directive of `smcroute.conf`: its first line
/// with content is a header or an assignment.
pub fn is_toml_format(text: &str) -> bool {
    let lines = text.lines().map(|line| line.split('#').next());
    let mut lines = lines.flatten().map(str::trim);
    let first = lines.find(|line| !line.is_empty()).unwrap_or_default();
    let is_header = first.starts_with('[') && first.ends_with(']');
    let is_assignment = first.split_once('=').is_some_and(|(key, _)| {
        let key = key.trim();
        !key.is_empty() && !key.contains(char::is_whitespace)
    });
    (is_header || is_assignment) && !is_smcroute_format(text)
}

struct Reader<'a> {
    conf: Conf,
    strict: bool,
    files: &'a mut dyn FnMut(&str) -> io::Result<Vec<ConfFile>>,
    /// Number of files read.
    files_read: usize,
    phyints: Vec<(usize, Phyint)>,
    ignored: Vec<IgnoredWords>,
}

/// The words of all lines with one directive that have no meaning.
struct IgnoredWords {
    directive: &'static str,
    /// The first line.
    first: ConfLocation,
    /// The number of further lines.
    more_lines: usize,
    /// Each word once.
    words: Vec<String>,
}

impl Reader<'_> {
    fn report_unreadable(&mut self, file: &str, cause: String) {
        let location = ConfLocation {
            file: file.into(),
            line: 0,
        };
        self.conf.unreadable = Some(format!("{location}: {cause}"));
        self.fault(location, cause);
    }

    fn fault(&mut self, location: ConfLocation, cause: String) {
        self.conf.faults.push(ConfFault { location, cause });
    }

    fn file(&mut self, name: String, bytes: &[u8], include_stack: &mut Vec<String>) {
        self.files_read += 1;
        let file: Arc<str> = name.as_str().into();
        include_stack.push(name);
        for (n, bytes) in bytes.split(|b| *b == b'\n').enumerate() {
            let location = ConfLocation {
                file: file.clone(),
                line: n + 1,
            };
            if self.conf.lines.len() >= MAX_LINES {
                let cause = format!("more than {MAX_LINES} lines; the rest is not read");
                self.fault(location, cause);
                break;
            }
            self.line(
                location,
                bytes.strip_suffix(b"\r").unwrap_or(bytes),
                include_stack,
            );
        }
        include_stack.pop();
    }

    fn line(&mut self, location: ConfLocation, bytes: &[u8], include_stack: &mut Vec<String>) {
        let text = std::str::from_utf8(bytes);
        let text = text.map_err(|e| format!("not UTF-8 from byte {} on", e.valid_up_to() + 1));
        let parsed = match text.and_then(|text| line::read(text, self.strict)) {
            Ok(parsed) => parsed,
            Err(cause) => {
                self.conf.lines.push(ConfLine {
                    location: location.clone(),
                    directive: None,
                    comment: Some(format!(" not read: {}", String::from_utf8_lossy(bytes))),
                });
                return self.fault(location, cause);
            }
        };
        if let Some(directive) = &parsed.directive {
            self.add_ignored_words(directive.keyword(), &location, parsed.ignored);
        }
        for cause in parsed.notes {
            let location = location.clone();
            self.conf.notes.push(ConfFault { location, cause });
        }
        let at = self.conf.lines.len();
        self.conf.lines.push(ConfLine {
            location: location.clone(),
            directive: parsed.directive.clone(),
            comment: parsed.comment,
        });
        let result = match parsed.directive {
            None => Ok(()),
            Some(Directive::Phyint(phyint)) => {
                self.phyints.push((at, phyint));
                Ok(())
            }
            Some(Directive::Mgroup(mgroup)) => self.mgroup(at, &location, mgroup),
            Some(Directive::Mroute(mroute)) if mroute.group.is_link_local() => {
                let group = mroute.group;
                let cause = format!("mroute: {group} is link-local; it is not routed");
                self.conf.notes.push(ConfFault { location, cause });
                return;
            }
            Some(Directive::Mroute(mroute)) => self.mroute(at, mroute),
            Some(Directive::Include(path)) => self.include(&location, &path, include_stack),
        };
        if let Err(cause) = result {
            self.fault(location, cause);
        }
    }

    fn add_ignored_words(
        &mut self,
        directive: &'static str,
        location: &ConfLocation,
        words: Vec<String>,
    ) {
        if words.is_empty() {
            return;
        }
        let of_directive = self.ignored.iter_mut().find(|i| i.directive == directive);
        let Some(known) = of_directive else {
            self.ignored.push(IgnoredWords {
                directive,
                first: location.clone(),
                more_lines: 0,
                words,
            });
            return;
        };
        known.more_lines += 1;
        for word in words {
            if !known.words.contains(&word) && known.words.len() < MAX_NOTED_WORDS {
                known.words.push(word);
            }
        }
    }

    /// Adds one note on ignored words for each directive.
    fn note_ignored_words(&mut self) {
        for ignored in std::mem::take(&mut self.ignored) {
            let mut cause = line::note_ignored(ignored.directive, &ignored.words);
            match ignored.more_lines {
                0 => {}
                1 => cause += " (with 1 more line)",
                n => cause += &format!(" (with {n} more lines)"),
            }
            let location = ignored.first;
            self.conf.notes.push(ConfFault { location, cause });
        }
    }

    fn mgroup(&mut self, at: usize, location: &ConfLocation, mgroup: Mgroup) -> Result<(), String> {
        let mut sources: Vec<_> = mgroup.sources.iter().copied().map(Some).collect();
        if sources.is_empty() {
            sources.push(None);
        }
        for source in sources {
            let join = JoinRule {
                interface: mgroup.from.clone(),
                source,
                group: mgroup.group,
                origin: Origin::Settings,
            };
            if self.conf.joins.iter().any(|(_, j)| *j == join) {
                self.conf.notes.push(ConfFault {
                    location: location.clone(),
                    cause: format!("mgroup: {join} is already joined"),
                });
            } else {
                self.conf.joins.push((at, join));
            }
        }
        Ok(())
    }

    fn mroute(&mut self, at: usize, mroute: Mroute) -> Result<(), String> {
        let mut rule = RouteRule::new(mroute.from, mroute.group, mroute.to);
        rule.source = mroute.source;
        rule.except_sources = mroute.except;
        rule.ttl = mroute.ttl;
        rule.loop_guard = mroute.ttl.allows_endless_loop();
        // Only mgroup lines join groups.
        rule.join = JoinPolicy::Never;
        rule.name = RouteName::default_for(&rule.from, rule.source, rule.group);
        let lines = &self.conf.lines;
        let Some((first, same)) = self
            .conf
            .routes
            .iter_mut()
            .find(|(_, r)| r.is_ambiguous_with(&rule))
        else {
            self.conf.routes.push((at, rule));
            return Ok(());
        };
        let first = &lines[*first].location;
        if same.from != rule.from {
            return Err(format!(
                "mroute: {} and {} of {first} share interfaces, and source and group are the \
                 same; combine them in one line",
                rule.from, same.from
            ));
        }
        if (same.ttl, &same.except_sources) != (rule.ttl, &rule.except_sources) {
            return Err(format!(
                "mroute: the same route as in {first}, with another ttl or except"
            ));
        }
        let more: Vec<_> = rule
            .to
            .into_iter()
            .filter(|t| !same.to.contains(t))
            .collect();
        if same.to.len() + more.len() > MAX_EGRESSES {
            return Err(format!(
                "mroute: more than {MAX_EGRESSES} egress interfaces, together with {first}"
            ));
        }
        same.to.extend(more);
        Ok(())
    }

    fn include(
        &mut self,
        location: &ConfLocation,
        path: &str,
        include_stack: &mut Vec<String>,
    ) -> Result<(), String> {
        if include_stack.len() >= MAX_INCLUDE_DEPTH {
            return Err(format!(
                "include: more than {MAX_INCLUDE_DEPTH} levels of nested includes"
            ));
        }
        let found = (self.files)(path).map_err(|e| format!("include: {path}: {e}"))?;
        if found.is_empty() && !path.contains(['*', '?', '[']) {
            let cause = format!("include: {path} does not exist");
            match self.strict {
                true => return Err(cause),
                false => self.conf.notes.push(ConfFault {
                    location: location.clone(),
                    cause,
                }),
            }
        }
        for (name, bytes) in found {
            if include_stack.contains(&name) {
                return Err(format!("include: {name} includes itself"));
            }
            if self.files_read >= MAX_FILES {
                return Err(format!("include: more than {MAX_FILES} files"));
            }
            match bytes {
                Ok(bytes) => self.file(name, &bytes, include_stack),
                // The other files that match the pattern are still read.
                Err(e) => self.fault(location.clone(), format!("include: {name}: {e}")),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(files: &[(&str, &str)], strict: bool) -> Conf {
        let mut files_for = |path: &str| {
            let matches = |name: &str| match path.split_once('*') {
                Some((a, b)) => name.starts_with(a) && name.ends_with(b),
                None => name == path,
            };
            Ok(files
                .iter()
                .filter(|(name, _)| matches(name))
                .map(|(name, text)| {
                    let bytes = match *text {
                        UNREADABLE => Err(io::ErrorKind::PermissionDenied.into()),
                        text => Ok(text.as_bytes().to_vec()),
                    };
                    (name.to_string(), bytes)
                })
                .collect())
        };
        read(files[0].0, strict, &mut files_for)
    }

    /// Content that marks a file as unreadable.
    const UNREADABLE: &str = "unreadable";

    #[test]
    fn unreadable_include_does_not_affect_other_files() {
        let conf = read_all(
            &[
                ("a", "include d/*\n"),
                ("d/1", "mroute from eth0 group 225.1.2.3 to eth1\n"),
                ("d/2", UNREADABLE),
                ("d/3", "mroute from eth0 group 225.1.2.4 to eth1\n"),
            ],
            false,
        );
        assert_eq!(
            texts(&conf.faults),
            ["a line 1: include: d/2: permission denied"]
        );
        assert_eq!(conf.routes.len(), 2);
        assert_eq!(conf.unreadable, None);
        let conf = read_all(&[("a", UNREADABLE)], false);
        assert_eq!(
            texts(&conf.faults),
            ["a: cannot be read: permission denied"]
        );
        assert!(conf.unreadable.is_some());
    }

    fn texts(faults: &[ConfFault]) -> Vec<String> {
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn loopback_is_refused_but_not_a_named_ingress() {
        let conf = read_all(
            &[(
                "a",
                "mroute from lo group 225.1.2.3 to eth1\n\
                 mroute from eth0 group 225.1.2.4 to lo\n\
                 mroute from eth0 group 225.1.2.5 to lo eth1\n\
                 mroute from wlan1 group 225.1.2.6 to wlan1 eth1\n",
            )],
            false,
        );
        let at: Vec<usize> = conf.faults.iter().map(|f| f.location.line).collect();
        assert_eq!(at, [1, 2]);
        assert!(conf.faults[0].cause.contains("loopback"));
        let notes: Vec<usize> = conf.notes.iter().map(|f| f.location.line).collect();
        assert_eq!(notes, [3]);
        let to = |at: usize| {
            let (_, rule) = &conf.routes[at];
            let to: Vec<_> = rule.to.iter().map(ToString::to_string).collect();
            (to, rule.returns_packets())
        };
        assert_eq!(to(0), (vec!["eth1".into()], false));
        assert_eq!(to(1), (vec!["wlan1".into(), "eth1".into()], true));
    }

    #[test]
    fn all_directives_are_read_in_any_keyword_order() {
        let conf = read_all(
            &[(
                "a.conf",
                "# top\nphyint eth1 enable mrdisc ttl-threshold 3 # why\n\
                 mgroup from eth0 source 10.0.0.0/30 group 232.1.2.3\n\
                 mgroup from eth0 group 225.1.2.0/31\n\
                 mroute from eth0 group 225.1.2.3 source 10.0.0.10 to eth1 eth2\n\
                 mroute from eth+ source 0.0.0.0 group 225.1.2.4 to eth+\n\
                 mroute from eth0 group ff2e::42 to eth1\n\
                 mroute from eth0 group 225.9.0.0/16 to eth1 ttl set 8 except 10.0.0.1,10.1.0.0/16\n",
            )],
            false,
        );
        assert_eq!(texts(&conf.faults), [""; 0]);
        assert_eq!(conf.joins.len(), 5);
        let routes: Vec<String> = conf
            .routes
            .iter()
            .map(|(_, r)| r.name.to_string())
            .collect();
        assert_eq!(
            routes,
            [
                "eth0 (10.0.0.10, 225.1.2.3)",
                "eth* (*, 225.1.2.4)",
                "eth0 (*, ff2e::42)",
                "eth0 (*, 225.9.0.0/16)"
            ]
        );
        assert_eq!(conf.routes[3].1.except_sources.len(), 2);
        assert!(conf.routes.iter().all(|(_, r)| r.join == JoinPolicy::Never));
        assert!(conf.interfaces[0].mrdisc);
        assert_eq!(conf.lines[1].comment.as_deref(), Some(" why"));
    }

    #[test]
    fn invalid_line_is_reported_and_others_apply() {
        let conf = read_all(
            &[
                (
                    "a.conf",
                    "mroute from eth0 group 225.1.2.3 to eth1\ninclude d/*.conf\n",
                ),
                ("d/1.conf", "mroute from eth0\ninclude a.conf\n"),
                ("d/2.conf", "mroute from eth0 group 225.1.2.3 to eth2\n"),
            ],
            false,
        );
        assert_eq!(
            texts(&conf.faults),
            [
                "d/1.conf line 1: mroute: no group",
                "d/1.conf line 2: include: a.conf includes itself"
            ]
        );
        assert_eq!(conf.routes.len(), 1);
        assert_eq!(conf.routes[0].1.to.len(), 2);
    }

    #[test]
    fn strict_refuses_additions_and_ignored_words() {
        for (line, cause) in [
            ("mroute from a group 225.1.2.3 to b ttl keep", "--strict"),
            (
                "mroute from a group 225.1.2.3 to b except 10.0.0.1",
                "--strict",
            ),
            ("phyint a flat", "phyint: ignored: \"flat\""),
            ("phyint a ttl-threshold 0", "ignored: \"ttl-threshold 0\""),
            ("mroute from a group 225.1.2.3 to b to c", "ignored: \"to\""),
            (
                "mroute from a group 225.1.2.3 to lo b",
                "lo is the loopback",
            ),
            (
                "mroute from a group 225.1.2.3/24 to b",
                "is read as 225.1.2.0/24",
            ),
            ("include nowhere", "does not exist"),
        ] {
            let text = format!("{line}\n");
            let loose = read_all(&[("a", &text)], false);
            assert_eq!(texts(&loose.faults), [""; 0], "{line}");
            let strict = read_all(&[("a", &text)], true);
            assert!(texts(&strict.faults)[0].contains(cause), "{strict:?}");
        }
    }

    /// The expected meaning is that of smcrouted 2.5.6.
    #[test]
    fn keyword_order_has_the_meaning_of_smcroute() {
        let read = |line: &str| read_all(&[("a", line)], false);
        for (line, name, to) in [
            (
                "mroute group 225.1.2.3 from a source 10.0.0.9 to b",
                "a (10.0.0.9, 225.1.2.3)",
                "b",
            ),
            (
                "mroute from a group 225.1.2.3 to b source 10.0.0.9",
                "a (*, 225.1.2.3)",
                "b",
            ),
            (
                "mroute from x from a group 225.1.2.3 to b",
                "a (*, 225.1.2.3)",
                "b",
            ),
            (
                "mroute from a group 225.1.2.3 to b to c",
                "a (*, 225.1.2.3)",
                "b c",
            ),
            (
                "mroute from a group 225.1.2.3 to b, c",
                "a (*, 225.1.2.3)",
                "c",
            ),
            (
                "mroute from a group 225.1.2.3 to an-interface-name-too-long b lo c",
                "a (*, 225.1.2.3)",
                "b c",
            ),
        ] {
            let conf = read(line);
            assert_eq!(texts(&conf.faults), [""; 0], "{line}");
            let route = &conf.routes[0].1;
            let egresses: Vec<String> = route.to.iter().map(ToString::to_string).collect();
            let found = (route.name.to_string(), egresses.join(" "));
            assert_eq!(found, (name.to_string(), to.to_string()), "{line}");
        }
        for line in [
            "mroute to b from a group 225.1.2.3",
            "mroute from a to b group 225.1.2.3",
        ] {
            let conf = read(line);
            assert_eq!((conf.faults.len(), conf.routes.len()), (1, 0), "{line}");
        }
    }

    #[test]
    fn ignored_words_of_all_lines_give_one_note() {
        let text = "phyint a enable flat ttl-threshold 0\nphyint b foo ttl-threshold 5\n\
                    phyint c ttl-threshold\nmgroup from a group 225.1.2.3 to b\n\
                    ssmgroup from a source 10.0.0.9 group 232.1.2.3\n";
        let conf = read_all(&[("a", text)], false);
        assert_eq!(texts(&conf.faults), [""; 0]);
        assert_eq!(
            texts(&conf.notes),
            [
                "a line 1: phyint: ignored: \"flat\", \"ttl-threshold 0\", \"foo\", \
                 \"ttl-threshold\" (with 2 more lines)",
                "a line 4: mgroup: ignored: \"to\", \"b\"",
            ]
        );
        let thresholds: Vec<_> = conf.interfaces.iter().map(|i| i.ttl_threshold).collect();
        assert_eq!(thresholds.iter().flatten().count(), 1);
        assert_eq!(conf.joins.len(), 2);
    }

    #[test]
    fn wide_ipv6_mgroup_joins_its_first_group() {
        let conf = read_all(&[("a", "mgroup from a group ff2e::/64\n")], false);
        assert_eq!(texts(&conf.faults), [""; 0]);
        assert_eq!(
            texts(&conf.notes),
            [
                "a line 1: mgroup: ff2e::/64 has more than 4096 groups; only ff2e:: is joined, as by \
              smcroute"
            ]
        );
        assert_eq!(conf.joins[0].1.group.to_string(), "ff2e::");
    }

    #[test]
    fn number_of_included_files_is_limited() {
        let text = "include b\n".repeat(3000);
        let conf = read_all(
            &[("a", &text), ("b", "include c*\n"), ("c1", ""), ("c2", "")],
            false,
        );
        assert!(
            texts(&conf.faults)
                .iter()
                .any(|f| f.contains("more than 1024 files"))
        );
    }

    #[test]
    fn smcroute_format_is_distinguished_from_toml() {
        assert!(is_smcroute_format(
            "# x\n\n  mroute from eth0 group 225.1.2.3 to eth1\n"
        ));
        assert!(!is_smcroute_format("[[route]]\nfrom = \"eth0\"\n"));
        assert!(is_smcroute_format(
            "mroute from eth0 group 225.1.2.3 to eth1   # vlan=5\n"
        ));
        assert!(is_smcroute_format("include /etc/a=b.conf\n"));
        assert!(!is_smcroute_format("include = 3\n"));
        assert!(!is_smcroute_format("include=3\n"));
        assert!(!is_smcroute_format("include =3 # mroute\n"));
        assert!(!is_smcroute_format(""));
    }
}
