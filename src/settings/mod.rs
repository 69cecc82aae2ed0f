//! The settings: read, merged with the environment, and checked.
//!
//! ```text
//! file ──▶ FileText ─┐
//!                    ├─ merge ─▶ one tree ─▶ Written ─▶ Settings
//! MCASTOR__… ────────┘                            └─ or a Report
//! ```
//!
//! Every fault carries the path of its key, and `locate` turns a path into the bytes of the
//! file or the environment variable that were written for it.

mod addresses;
mod checked;
mod file;
mod keys;
mod locate;
mod merge;
mod mnat;
mod proxies;
mod report;
mod rewrites;
mod routes;
mod smcroute;
mod written;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use file::MAX_FILE;
pub use merge::PREFIX;
pub use report::{MOST_PROBLEMS, Problem, Report};
pub use smcroute::read as read_smcroute;

use crate::model::{IfPattern, JoinPolicy, JoinRule, ProxyRule, RouteRule, TtlThreshold};
use locate::Sources;

/// All settings, checked. The default is what an empty file means.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// `[http]`
    pub http: HttpSettings,
    /// `[control]`
    pub control: ControlSettings,
    /// `[docker]`
    pub docker: DockerSettings,
    /// `[plane]`
    pub plane: PlaneSettings,
    /// `[log]`
    pub log: LogSettings,
    /// Each `[[interface]]`, in the order written.
    pub interfaces: Vec<InterfaceSettings>,
    /// Each `[[route]]`, in the order written. Names are unique and no two rules are rivals.
    pub routes: Vec<RouteRule>,
    /// Each `[[join]]`, in the order written.
    pub joins: Vec<JoinRule>,
    /// Each `[[proxy]]`, in the order written. Names are unique, and no interface is
    /// downstream of two.
    pub proxies: Vec<ProxyRule>,
    /// `[mrdisc]`
    pub mrdisc: MrdiscSettings,
    /// `[mnat]`
    pub mnat: Option<crate::mnat::Config>,
    /// `[limits]`
    pub limits: LimitSettings,
    /// Lines of an `smcroute.conf` that are wrong and were skipped, each with its place.
    pub skipped: Vec<String>,
    /// Lines of an `smcroute.conf` that may not mean what was meant, likewise.
    pub odd: Vec<String>,
    /// Why an `smcroute.conf` itself, and with it everything, could not be read.
    pub unread: Option<String>,
}

/// The listener for metrics, health and the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// Where it listens; `None` for `"off"`.
    pub listen: Option<SocketAddr>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9464))),
        }
    }
}

/// The control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlSettings {
    /// An absolute path of at most 107 bytes, what a UNIX socket address holds.
    pub socket: PathBuf,
}

impl Default for ControlSettings {
    fn default() -> Self {
        Self {
            socket: "/run/mcastor.sock".into(),
        }
    }
}

/// The container engine whose names may stand for interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerSettings {
    /// Its socket: an absolute path of at most 107 bytes.
    pub socket: PathBuf,
}

impl Default for DockerSettings {
    fn default() -> Self {
        Self {
            socket: "/var/run/docker.sock".into(),
        }
    }
}

/// How packets are taken in and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaneSettings {
    /// Which plane.
    pub kind: PlaneKind,
    /// Send past the queueing discipline: faster, and not seen by tcpdump.
    pub qdisc_bypass: bool,
    /// How long after a packet to look for the next one instead of sleeping until it comes,
    /// 0 to 1,000 microseconds; zero for never.
    pub busy_poll: Duration,
}

impl Default for PlaneSettings {
    fn default() -> Self {
        Self {
            kind: PlaneKind::default(),
            qdisc_bypass: false,
            busy_poll: Duration::from_micros(200),
        }
    }
}

/// The planes there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlaneKind {
    /// The best one this machine can do.
    #[default]
    Auto,
    /// Packet sockets.
    Packet,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// A level, or a list of tracing filter directives; it parses as such.
    pub level: String,
    /// Text or JSON.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::default(),
        }
    }
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Options of the interfaces that a name or pattern stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceSettings {
    /// Which interfaces.
    pub name: IfPattern,
    /// What may leave on them.
    pub ttl_threshold: Option<TtlThreshold>,
    /// Whether routes may use them; true unless written otherwise.
    pub enabled: bool,
    /// Whether multicast router advertisements are sent on them (RFC 4286).
    pub mrdisc: bool,
}

/// Multicast router discovery (RFC 4286).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MrdiscSettings {
    /// Between two advertisements, 4 to 180 seconds.
    pub interval: Duration,
}

impl Default for MrdiscSettings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(20),
        }
    }
}

/// What strangers may make us remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitSettings {
    /// Flows of all interfaces together, 1 to 10,000,000.
    pub flows: usize,
    /// Seconds after its last packet that a flow is forgotten, 1 to 3,600.
    pub flow_idle: u32,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            flows: 65_536,
            flow_idle: 60,
        }
    }
}

impl Settings {
    /// What is allowed but may not be what was meant, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let asked_for = |route: &&RouteRule| {
            let downstream = |to| {
                self.proxies
                    .iter()
                    .flat_map(|p| &p.downstream)
                    .any(|d| d.intersects(to))
            };
            route.rewrite.is_some() && route.to.iter().all(downstream)
        };
        // Those are joined as hosts ask for them.
        let routes = self.routes.iter().filter(|route| !asked_for(route));
        let joins = routes.filter_map(note_on_join);
        self.odd.iter().cloned().chain(joins).collect()
    }

    /// Reads `file`, if there is one, as `smcroute.conf` where it is one, else as TOML; lays the variables of `env` that start with
    /// [`PREFIX`] over it, and checks the result.
    ///
    /// # Errors
    /// All problems found, at most [`MOST_PROBLEMS`] of them in full.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Settings, Report> {
        if let Some(file) = file
            && smcroute::is_one(file)
        {
            return Self::load_smcroute(file, false, env);
        }
        let file = file
            .map(file::read)
            .transpose()
            .map_err(|problem| Report::new(vec![*problem]))?;
        let sources = Sources {
            file,
            ..Sources::default()
        };
        Self::from_sources(sources, env)
    }

    /// Reads `file` as `smcroute.conf`. Bad lines are skipped and stand in
    /// [`Settings::skipped`]; `strict` refuses what smcroute itself does not know or ignores.
    ///
    /// # Errors
    /// Problems of the environment only.
    pub fn load_smcroute(
        file: &Path,
        strict: bool,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Settings, Report> {
        let settings = Self::from_sources(Sources::default(), env)?;
        Ok(smcroute::add(settings, &smcroute::read(file, strict)))
    }

    fn from_sources(
        mut sources: Sources,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Settings, Report> {
        let mut problems = Vec::new();
        let tree = merge::merge(&mut sources, env, &mut problems);
        // It takes more memory than all else together, and only problems need it again.
        if let Some(file) = &mut sources.file {
            file.forget();
        }
        let (written, broken) = written::read(tree, &sources, &mut problems);
        let settings = checked::check(written, broken, &sources, &mut problems);
        if problems.is_empty() {
            Ok(settings)
        } else {
            Err(Report::new(problems))
        }
    }
}

/// Why a route that could join its groups does not.
fn note_on_join(route: &RouteRule) -> Option<String> {
    if route.join != JoinPolicy::Auto || route.wanted_join().is_some() {
        return None;
    }
    let (name, group) = (&route.name, route.group);
    Some(match group.single() {
        None => format!(
            "route \"{name}\": the groups of {group} are not joined, so a switch with snooping may \
             not deliver them; join = true joins each, join = false ends this note"
        ),
        Some(_) => format!(
            "route \"{name}\": {group} is source-specific and is not joined without a single \
             `source`, so a switch with snooping may not deliver it; name the source, or \
             join = false ends this note"
        ),
    })
}

/// The variables of this process that [`Settings::load`] looks at. Bytes that are no UTF-8
/// are replaced, so that the check refuses them instead of a panic.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.to_string_lossy().into_owned();
        name.starts_with(PREFIX)
            .then(|| (name, value.to_string_lossy().into_owned()))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load_text(text: String, env: Vec<(String, String)>) -> Result<Settings, Report> {
        let file = file::parse("a.toml", text).map_err(|problem| Report::new(vec![*problem]))?;
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        Settings::from_sources(sources, env.into_iter())
    }

    /// Where the drawing says a problem is, and where the plain line says so.
    #[test]
    fn columns_are_characters_in_every_form() {
        let text = "[[route]]\nfrom = \"eth0\"\ngroup = \"225.1.2.3\"\nto = [\"é\", \"é\"]\n";
        let report = load_text(text.into(), vec![]).unwrap_err();
        assert!(report.to_string().starts_with("a.toml:4:12: "), "{report}");
        let drawn = report.pretty().to_string();
        assert!(drawn.contains("a.toml:4:12"), "{drawn}");
    }

    /// Every label of the drawing lies in the text it is drawn on.
    fn drawn(report: &Report) -> bool {
        let text = report.pretty().to_string();
        !text.is_empty() && !text.contains("Failed to read contents")
    }

    #[test]
    fn a_variable_that_rivals_the_file_is_drawn() {
        let file = "[[route]]\nfrom = \"eth0\"\ngroup = \"225.1.2.3\"\nto = [\"eth1\"]\n";
        let value = "{ from = \"eth0\", group = \"225.1.2.3\", to = [\"x\"] }";
        let env = vec![("MCASTOR__ROUTE__1".to_string(), value.to_string())];
        let report = load_text(file.into(), env).unwrap_err();
        assert!(drawn(&report), "{}", report.pretty());
    }

    #[test]
    fn a_file_means_the_same_with_and_without_variables() {
        let mut text = EXAMPLE.to_string();
        text += "[[route]]\nfrom = 1979-05-27\ngroup = nan\nto = [1, [2.5, { a = true }]]\nttl = { set = 3 }\n";
        let file = file::parse("a.toml", text).map_err(|problem| Report::new(vec![*problem]));
        let file = file.unwrap();
        let merged = file::tree(&file).into_iter();
        let merged = merged.map(|(name, value)| (name, merge::json_of(value)));
        assert_eq!(
            file::json(&file),
            serde_json::Value::Object(merged.collect())
        );
    }

    const EXAMPLE: &str = include_str!("../../conf/mcastor.toml");

    /// A piece of the example, or something nasty.
    fn piece() -> impl Strategy<Value = String> {
        let line = (0..EXAMPLE.lines().count())
            .prop_map(|n| EXAMPLE.lines().nth(n).unwrap_or_default().to_string() + "\n");
        prop_oneof![
            line,
            Just("[[route]]\n".to_string()),
            Just("[[[[[[[[".to_string()),
            Just("\"\"\"\n\u{1f980}\r\n".to_string()),
            Just("a.b.c = { d = [nan, inf, 1979-05-27] }\n".to_string()),
            Just("\"route[70000].group\" = 1\n".to_string()),
            Just("ttl = { set = 9223372036854775807 }\n".to_string()),
            "\\PC{0,12}",
        ]
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(
            at in 0..EXAMPLE.len(),
            cut in 0usize..40,
            pieces in prop::collection::vec(piece(), 0..4),
        ) {
            let floor = |n: usize| (0..=n.min(EXAMPLE.len())).rev().find(|n| EXAMPLE.is_char_boundary(*n)).unwrap_or(0);
            let text = format!("{}{}{}", &EXAMPLE[..floor(at)], pieces.concat(), &EXAMPLE[floor(at + cut)..]);
            if let Err(report) = load_text(text, vec![]) {
                prop_assert!(!report.problems().is_empty());
                prop_assert!(!report.to_string().is_empty());
                prop_assert!(drawn(&report));
                prop_assert!(!report.json().to_string().is_empty());
            }
        }

        #[test]
        fn no_lines_in_any_order_make_it_panic(pieces in prop::collection::vec(piece(), 0..12)) {
            if let Err(report) = load_text(pieces.concat(), vec![]) {
                prop_assert!(drawn(&report));
            }
        }

        #[test]
        fn no_environment_makes_it_panic(
            vars in prop::collection::vec(
                (
                    "MCASTOR__(HTTP|ROUTE|INTERFACE|LOG|X)?(__(0|1|3|99999999999|TO|TTL|SET|FROM|GROUP|LISTEN|LEVEL|é))*",
                    prop_oneof![
                        "\\PC{0,12}",
                        Just("[\"a\", 1, {}]".to_string()),
                        Just("{ from = \"eth0\", group = \"225.1.2.3\" }".to_string()),
                        Just("[[[".to_string()),
                        Just("eth0,eth1".to_string()),
                    ],
                ),
                0..5,
            ),
        ) {
            if let Err(report) = load_text(EXAMPLE.into(), vars) {
                prop_assert!(drawn(&report));
                prop_assert!(!report.to_string().is_empty());
            }
        }
    }
}
