//! `smcroute.conf` with its includes: every good line as rules, every bad one as a fault.
//!
//! Pure over a closure that hands out files. A bad line is skipped and the rest stands.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::line::{self, Directive, MOST_EGRESSES, Mgroup, Mroute, Phyint};
use super::phyint::{self, SmcrouteInterface};
use crate::model::{JoinPolicy, JoinRule, Origin, RouteName, RouteRule};

/// How deep files may include files.
pub const DEEPEST_INCLUDE: usize = 16;
/// Files that are read at most, all includes together.
pub const MOST_FILES: usize = 1024;
/// Lines that are read at most, of all files together.
pub const MOST_LINES: usize = 100_000;

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfLocation {
    /// The file.
    pub file: Arc<str>,
    /// Counted from 1; 0 for the file as a whole.
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

/// What is wrong, or odd, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfFault {
    /// Where.
    pub place: ConfLocation,
    /// What, as a sentence.
    pub cause: String,
}

impl fmt::Display for ConfFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.cause)
    }
}

/// A line as written, and what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where it stands.
    pub place: ConfLocation,
    /// What it asks for; `None` for an empty line, and for a bad one.
    pub directive: Option<Directive>,
    /// What stands behind `#`.
    pub comment: Option<String>,
}

/// What the files say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conf {
    /// Every line of every file, in the order they are read.
    pub lines: Vec<Line>,
    /// Interface options, each name once, in the order of [`SmcrouteInterface::at`]. Where several fit
    /// an interface its name counts, else the first pattern.
    pub interfaces: Vec<SmcrouteInterface>,
    /// The routes, lines of the same interface, source and group merged. With each the
    /// number of its first line in `lines`.
    pub routes: Vec<(usize, RouteRule)>,
    /// The joins, each once, likewise.
    pub joins: Vec<(usize, JoinRule)>,
    /// Bad lines, skipped.
    pub faults: Vec<ConfFault>,
    /// Lines that stand, but may not mean what was meant.
    pub notes: Vec<ConfFault>,
    /// Why the file itself could not be read; a fault too.
    pub unread: Option<String>,
}

/// A file: its name and its bytes, or why it cannot be read.
pub type File = (String, io::Result<Vec<u8>>);

/// Reads `path` and all it includes. `files` answers a path or a glob pattern with the files
/// that fit, sorted. `strict` refuses what smcroute does not know or ignores.
pub fn read(
    path: &str,
    strict: bool,
    files: &mut dyn FnMut(&str) -> io::Result<Vec<File>>,
) -> Conf {
    let mut reader = Reader {
        conf: Conf::default(),
        strict,
        files,
        read: 0,
        phyints: Vec::new(),
    };
    match (reader.files)(path) {
        Ok(found) if found.is_empty() => reader.unread(path, "does not exist".into()),
        Ok(found) => {
            for (name, bytes) in found {
                match bytes {
                    Ok(bytes) => reader.file(name, &bytes, &mut Vec::new()),
                    Err(e) => reader.unread(&name, format!("cannot be read: {e}")),
                }
            }
        }
        Err(e) => reader.unread(path, format!("cannot be read: {e}")),
    }
    reader.conf.interfaces = phyint::resolve(&reader.phyints);
    reader.conf
}

/// Whether a text is meant as `smcroute.conf`: a line of it begins with a directive, and not
/// with a TOML key of that name.
pub fn reads_as_one(text: &str) -> bool {
    text.lines().any(|line| {
        let text = line.split('#').next().unwrap_or_default();
        let mut words = text.split_whitespace();
        let first = words.next().unwrap_or_default();
        ["phyint", "mgroup", "mroute", "include"].contains(&first)
            && !words.next().is_some_and(|word| word.starts_with('='))
    })
}

struct Reader<'a> {
    conf: Conf,
    strict: bool,
    files: &'a mut dyn FnMut(&str) -> io::Result<Vec<File>>,
    read: usize,
    phyints: Vec<(usize, Phyint)>,
}

impl Reader<'_> {
    fn unread(&mut self, file: &str, cause: String) {
        let place = ConfLocation {
            file: file.into(),
            line: 0,
        };
        self.conf.unread = Some(format!("{place}: {cause}"));
        self.fault(place, cause);
    }

    fn fault(&mut self, place: ConfLocation, cause: String) {
        self.conf.faults.push(ConfFault { place, cause });
    }

    fn file(&mut self, name: String, bytes: &[u8], above: &mut Vec<String>) {
        self.read += 1;
        let file: Arc<str> = name.as_str().into();
        above.push(name);
        for (n, bytes) in bytes.split(|b| *b == b'\n').enumerate() {
            let place = ConfLocation {
                file: file.clone(),
                line: n + 1,
            };
            if self.conf.lines.len() >= MOST_LINES {
                let cause = format!("more than {MOST_LINES} lines; the rest is not read");
                self.fault(place, cause);
                break;
            }
            self.line(place, bytes.strip_suffix(b"\r").unwrap_or(bytes), above);
        }
        above.pop();
    }

    fn line(&mut self, place: ConfLocation, bytes: &[u8], above: &mut Vec<String>) {
        let text = std::str::from_utf8(bytes);
        let text = text.map_err(|e| format!("not UTF-8 from byte {} on", e.valid_up_to() + 1));
        let read = match text.and_then(|text| line::read(text, self.strict)) {
            Ok(read) => read,
            Err(cause) => {
                self.conf.lines.push(Line {
                    place: place.clone(),
                    directive: None,
                    comment: Some(format!(" not read: {}", String::from_utf8_lossy(bytes))),
                });
                return self.fault(place, cause);
            }
        };
        for cause in read.notes {
            let place = place.clone();
            self.conf.notes.push(ConfFault { place, cause });
        }
        let at = self.conf.lines.len();
        self.conf.lines.push(Line {
            place: place.clone(),
            directive: read.directive.clone(),
            comment: read.comment,
        });
        let done = match read.directive {
            None => Ok(()),
            Some(Directive::Phyint(phyint)) => {
                self.phyints.push((at, phyint));
                Ok(())
            }
            Some(Directive::Mgroup(mgroup)) => self.mgroup(at, &place, mgroup),
            Some(Directive::Mroute(mroute)) if mroute.group.is_link_local() => {
                let group = mroute.group;
                let cause = format!("mroute: {group} never leaves its link; nothing is routed");
                self.conf.notes.push(ConfFault { place, cause });
                return;
            }
            Some(Directive::Mroute(mroute)) => self.mroute(at, mroute),
            Some(Directive::Include(path)) => self.include(&place, &path, above),
        };
        if let Err(cause) = done {
            self.fault(place, cause);
        }
    }

    fn mgroup(&mut self, at: usize, place: &ConfLocation, mgroup: Mgroup) -> Result<(), String> {
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
                    place: place.clone(),
                    cause: format!("mgroup: {join} is joined already"),
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
        rule.loop_guard = mroute.ttl.can_feed_a_loop();
        // Groups are joined by mgroup alone.
        rule.join = JoinPolicy::Never;
        rule.name = RouteName::default_for(&rule.from, rule.source, rule.group);
        let lines = &self.conf.lines;
        let Some((first, same)) = self.conf.routes.iter_mut().find(|(_, r)| r.rivals(&rule)) else {
            self.conf.routes.push((at, rule));
            return Ok(());
        };
        let first = &lines[*first].place;
        if same.from != rule.from {
            return Err(format!(
                "mroute: {} and {} of {first} share interfaces, and source and group are the \
                 same; write one line for both",
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
        if same.to.len() + more.len() > MOST_EGRESSES {
            return Err(format!(
                "mroute: with {first} more than {MOST_EGRESSES} interfaces to send to"
            ));
        }
        same.to.extend(more);
        Ok(())
    }

    fn include(
        &mut self,
        place: &ConfLocation,
        path: &str,
        above: &mut Vec<String>,
    ) -> Result<(), String> {
        if above.len() >= DEEPEST_INCLUDE {
            return Err(format!(
                "include: files include files {DEEPEST_INCLUDE} deep"
            ));
        }
        let found = (self.files)(path).map_err(|e| format!("include: {path}: {e}"))?;
        if found.is_empty() && !path.contains(['*', '?', '[']) {
            let cause = format!("include: {path} does not exist");
            match self.strict {
                true => return Err(cause),
                false => self.conf.notes.push(ConfFault {
                    place: place.clone(),
                    cause,
                }),
            }
        }
        for (name, bytes) in found {
            if above.contains(&name) {
                return Err(format!("include: {name} includes itself"));
            }
            if self.read >= MOST_FILES {
                return Err(format!("include: more than {MOST_FILES} files"));
            }
            match bytes {
                Ok(bytes) => self.file(name, &bytes, above),
                // The others that fit are no worse for it.
                Err(e) => self.fault(place.clone(), format!("include: {name}: {e}")),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(files: &[(&str, &str)], strict: bool) -> Conf {
        let mut hand = |path: &str| {
            let fits = |name: &str| match path.split_once('*') {
                Some((a, b)) => name.starts_with(a) && name.ends_with(b),
                None => name == path,
            };
            Ok(files
                .iter()
                .filter(|(name, _)| fits(name))
                .map(|(name, text)| {
                    let bytes = match *text {
                        UNREADABLE => Err(io::ErrorKind::PermissionDenied.into()),
                        text => Ok(text.as_bytes().to_vec()),
                    };
                    (name.to_string(), bytes)
                })
                .collect())
        };
        read(files[0].0, strict, &mut hand)
    }

    /// Stands for a file without rights.
    const UNREADABLE: &str = "unreadable";

    #[test]
    fn one_file_that_cannot_be_read_is_no_matter_of_the_others() {
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
        assert_eq!(conf.unread, None);
        let conf = read_all(&[("a", UNREADABLE)], false);
        assert_eq!(
            texts(&conf.faults),
            ["a: cannot be read: permission denied"]
        );
        assert!(conf.unread.is_some());
    }

    fn texts(faults: &[ConfFault]) -> Vec<String> {
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_directive_and_either_order() {
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
    fn a_bad_line_is_named_and_the_rest_stands() {
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
    fn strict_takes_nothing_that_smcroute_does_not_know() {
        for (line, cause) in [
            ("mroute from a group 225.1.2.3 to b ttl keep", "--strict"),
            (
                "mroute from a group 225.1.2.3 to b except 10.0.0.1",
                "--strict",
            ),
            ("phyint a flat", "\"flat\" means nothing here"),
            (
                "mroute from a group 225.1.2.3/24 to b",
                "is taken as 225.1.2.0/24",
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

    #[test]
    fn a_wide_include_ends() {
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
    fn a_file_is_told_from_toml() {
        assert!(reads_as_one(
            "# x\n\n  mroute from eth0 group 225.1.2.3 to eth1\n"
        ));
        assert!(!reads_as_one("[[route]]\nfrom = \"eth0\"\n"));
        assert!(reads_as_one(
            "mroute from eth0 group 225.1.2.3 to eth1   # vlan=5\n"
        ));
        assert!(reads_as_one("include /etc/a=b.conf\n"));
        assert!(!reads_as_one("include = 3\n"));
        assert!(!reads_as_one("include=3\n"));
        assert!(!reads_as_one("include =3 # mroute\n"));
        assert!(!reads_as_one(""));
    }
}
