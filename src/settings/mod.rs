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

mod checked;
mod file;
mod keys;
mod locate;
mod merge;
mod report;
mod routes;
mod written;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

pub use file::MAX_FILE;
pub use merge::PREFIX;
pub use report::{MOST_PROBLEMS, Problem, Report};

use crate::model::{IfPattern, JoinPolicy, JoinRule, RouteRule, TtlThreshold};
use locate::Sources;

/// All settings, checked. The default is what an empty file means.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// `[http]`
    pub http: HttpSettings,
    /// `[control]`
    pub control: ControlSettings,
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
    /// `[limits]`
    pub limits: LimitSettings,
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

/// How packets are taken in and sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlaneSettings {
    /// Which plane.
    pub kind: PlaneKind,
    /// Send past the queueing discipline: faster, and not seen by tcpdump.
    pub qdisc_bypass: bool,
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
}

/// What strangers may make us remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitSettings {
    /// Flows of all interfaces together, 1 to 10,000,000.
    pub flows: usize,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self { flows: 65_536 }
    }
}

impl Settings {
    /// What is allowed but may not be what was meant, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let prefixes = self
            .routes
            .iter()
            .filter(|r| r.join == JoinPolicy::Auto && r.group.single().is_none());
        prefixes
            .map(|route| {
                format!(
                    "route \"{}\": the groups of {} are not joined, so a switch with snooping may \
                     not deliver them; join = true joins each, join = false ends this note",
                    route.name, route.group
                )
            })
            .collect()
    }

    /// Reads `file`, if there is one, lays the variables of `env` that start with
    /// [`PREFIX`] over it, and checks the result.
    ///
    /// # Errors
    /// All problems found, at most [`MOST_PROBLEMS`] of them in full.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Settings, Report> {
        let file = file
            .map(file::read)
            .transpose()
            .map_err(|problem| Report::new(vec![problem]))?;
        let sources = Sources {
            file,
            ..Sources::default()
        };
        Self::from_sources(sources, env)
    }

    fn from_sources(
        mut sources: Sources,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Settings, Report> {
        let mut problems = Vec::new();
        let tree = merge::merge(&mut sources, env, &mut problems);
        let (written, broken) = written::read(tree, &sources, &mut problems);
        let settings = checked::check(written, broken, &sources, &mut problems);
        if problems.is_empty() {
            Ok(settings)
        } else {
            Err(Report::new(problems))
        }
    }
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
