//! From written to meant: addresses, ranges, and what must hold between keys.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::keys::{KeyPath, listed, nearest};
use super::locate::Sources;
use super::report::Problem;
use super::routes;
use super::written::{
    Written, WrittenControl, WrittenHttp, WrittenInterface, WrittenLimits, WrittenLog, WrittenPlane,
};
use super::{
    ControlSettings, HttpSettings, InterfaceSettings, LimitSettings, LogFormat, LogSettings,
    PlaneKind, PlaneSettings, Settings,
};
use crate::model::{IfPattern, LinkError, TtlThreshold};

/// The longest path a UNIX socket address holds: 108 bytes less the NUL (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// The highest limit of flows.
const MOST_FLOWS: usize = 10_000_000;
/// The longest a flow may be idle, in seconds.
const LONGEST_IDLE: u32 = 3600;

/// Checks everything at once; the result counts only where no problem was added.
pub(super) fn check(
    written: Written,
    broken: HashSet<KeyPath>,
    sources: &Sources,
    problems: &mut Vec<Problem>,
) -> Settings {
    let mut checker = Checker {
        sources,
        broken,
        problems,
    };
    let http = written.http.map(|table| table.0).unwrap_or_default();
    let control = written.control.map(|table| table.0).unwrap_or_default();
    let plane = written.plane.map(|table| table.0).unwrap_or_default();
    let log = written.log.map(|table| table.0).unwrap_or_default();
    let interfaces = written.interface.unwrap_or_default();
    let routes = written.route.unwrap_or_default();
    let joins = written.join.unwrap_or_default();
    let limits = written.limits.map(|table| table.0).unwrap_or_default();
    Settings {
        http: checker.http(http),
        control: checker.control(control),
        plane: checker.plane(plane),
        log: checker.log(log),
        interfaces: checker.interfaces(interfaces.into_iter().map(|t| t.map(|t| t.0))),
        routes: routes::check(&mut checker, routes.into_iter().map(|t| t.map(|t| t.0))),
        joins: routes::check_joins(&mut checker, joins.into_iter().map(|t| t.map(|t| t.0))),
        limits: checker.limits(limits),
    }
}

/// Collects problems, each with its place.
pub(super) struct Checker<'a> {
    pub sources: &'a Sources,
    /// Paths whose value was refused before; what they lack is no second problem.
    broken: HashSet<KeyPath>,
    problems: &'a mut Vec<Problem>,
}

impl Checker<'_> {
    /// Notes that the value at `path` is wrong.
    pub fn wrong(
        &mut self,
        path: &KeyPath,
        found: impl Into<String>,
        expected: impl Into<String>,
        help: impl Into<String>,
    ) -> &mut Problem {
        self.problems.push(Problem {
            place: self.sources.value(path),
            key: path.to_string(),
            found: found.into(),
            expected: expected.into(),
            help: help.into(),
            also: None,
        });
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }

    /// The value of a key that must be there; `table` is where it belongs.
    pub fn required<T>(
        &mut self,
        value: Option<T>,
        table: &KeyPath,
        name: &str,
        example: &str,
    ) -> Option<T> {
        if value.is_none() && !self.broken.contains(&table.key(name)) {
            let what = table.last_key();
            self.wrong(
                table,
                format!("no `{name}`"),
                match what {
                    "ttl" => TTL_FORMS.to_string(),
                    what => format!("a key `{name}` in each [[{what}]]"),
                },
                format!("For example: {name} = {example}."),
            );
        }
        value
    }

    /// One of a few words.
    fn word<T: Copy + Default>(
        &mut self,
        path: &KeyPath,
        written: Option<String>,
        words: &[(&'static str, T)],
    ) -> T {
        let Some(written) = written else {
            return T::default();
        };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == written) {
            return *value;
        }
        let known = || words.iter().map(|(word, _)| *word);
        let help = match nearest(&written, known()) {
            Some(near) => format!("Did you mean {near:?}?"),
            None => String::new(),
        };
        self.wrong(path, format!("{written:?}"), one_of(&listed(known())), help);
        T::default()
    }

    /// A whole number from 1 to 255.
    pub fn ttl_value(&mut self, path: &KeyPath, number: i64, zero: &str) -> Option<u8> {
        match u8::try_from(number) {
            Ok(ttl) if ttl > 0 => Some(ttl),
            _ => {
                let help = if number == 0 { zero } else { "" };
                self.wrong(path, number.to_string(), "a number from 1 to 255", help);
                None
            }
        }
    }

    /// An interface name or pattern.
    pub fn pattern(&mut self, path: &KeyPath, text: &str) -> Option<IfPattern> {
        let list = "One name each: a list is written [\"eth1\", \"eth2\"].";
        let (found, help) = match text.parse::<IfPattern>() {
            // The kernel would take a comma in a name; whoever writes one means a list.
            Ok(_) if text.contains(',') => (format!("{text:?}"), list.to_string()),
            Ok(pattern) => return Some(pattern),
            Err(LinkError::Empty) => ("an empty text".to_string(), String::new()),
            Err(LinkError::TooLong(_)) => (
                format!("{text:?}, {} bytes long", text.len()),
                "Linux names have at most 15 bytes; `ip link` lists them. `*` shortens: \"br-*\"."
                    .into(),
            ),
            Err(LinkError::BadChar(_, ' ')) => (format!("{text:?}"), list.to_string()),
            Err(LinkError::BadChar(_, bad)) => (
                format!("{text:?}"),
                format!("No interface name holds {bad:?}."),
            ),
        };
        let expected = "an interface name such as \"eth0\" or a pattern such as \"br-*\"";
        self.wrong(path, found, expected, help);
        None
    }

    fn http(&mut self, written: WrittenHttp) -> HttpSettings {
        let path = KeyPath::root("http").key("listen");
        let Some(text) = written.listen else {
            return HttpSettings::default();
        };
        if text == "off" {
            return HttpSettings { listen: None };
        }
        let listen = text.parse::<SocketAddr>().ok();
        if listen.is_none() {
            let help = listen_help(&text);
            let expected = "an address and port, or \"off\"";
            self.wrong(&path, format!("{text:?}"), expected, help);
        }
        HttpSettings { listen }
    }

    fn control(&mut self, written: WrittenControl) -> ControlSettings {
        let path = KeyPath::root("control").key("socket");
        let Some(text) = written.socket else {
            return ControlSettings::default();
        };
        let quoted = format!("{text:?}");
        if !Path::new(&text).is_absolute() {
            let help = format!(
                "The daemon has no folder of its own: socket = \"/run/{}\".",
                text.trim_start_matches("./")
            );
            self.wrong(&path, quoted, "an absolute path", help);
        } else if text.ends_with('/') || text.contains('\0') {
            let help = "Name the socket itself: socket = \"/run/mcastor.sock\".";
            self.wrong(&path, quoted, "the path of a file", help);
        } else if text.len() > SOCKET_PATH_MAX {
            let found = format!("a path of {} bytes", text.len());
            let expected = format!("at most {SOCKET_PATH_MAX} bytes");
            let help =
                "The kernel takes no longer path for a socket; put it higher up, as in /run.";
            self.wrong(&path, found, expected, help);
        }
        ControlSettings {
            socket: text.into(),
        }
    }

    fn plane(&mut self, written: WrittenPlane) -> PlaneSettings {
        let path = KeyPath::root("plane").key("kind");
        let kinds = [("auto", PlaneKind::Auto), ("packet", PlaneKind::Packet)];
        PlaneSettings {
            kind: self.word(&path, written.kind, &kinds),
            qdisc_bypass: written.qdisc_bypass.unwrap_or_default(),
        }
    }

    fn log(&mut self, written: WrittenLog) -> LogSettings {
        let path = KeyPath::root("log");
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let format = self.word(&path.key("format"), written.format, &formats);
        let Some(level) = written.level else {
            return LogSettings {
                format,
                ..LogSettings::default()
            };
        };
        if !is_filter(&level) {
            let levels = ["error", "warn", "info", "debug", "trace"];
            let help = match nearest(&level, levels) {
                Some(near) => format!("Did you mean {near:?}?"),
                None => "Directives look so: level = \"info,mcastor::settings=debug\".".into(),
            };
            let expected = format!("{}, or filter directives", listed(levels));
            self.wrong(&path.key("level"), format!("{level:?}"), expected, help);
        }
        LogSettings { level, format }
    }

    fn limits(&mut self, written: WrittenLimits) -> LimitSettings {
        let mut limits = LimitSettings::default();
        if let Some(number) = written.flows {
            match usize::try_from(number) {
                Ok(flows) if (1..=MOST_FLOWS).contains(&flows) => limits.flows = flows,
                _ => {
                    let path = KeyPath::root("limits").key("flows");
                    let expected = format!("a number from 1 to {MOST_FLOWS}");
                    let help = "A flow takes about 250 bytes of memory.";
                    self.wrong(&path, number.to_string(), expected, help);
                }
            }
        }
        if let Some(number) = written.flow_idle {
            match u32::try_from(number) {
                Ok(idle) if (1..=LONGEST_IDLE).contains(&idle) => limits.flow_idle = idle,
                _ => {
                    let path = KeyPath::root("limits").key("flow_idle");
                    let expected = format!("a number of seconds from 1 to {LONGEST_IDLE}");
                    let help = "A flow without a packet for so long is forgotten.";
                    self.wrong(&path, number.to_string(), expected, help);
                }
            }
        }
        limits
    }

    fn interfaces(
        &mut self,
        written: impl Iterator<Item = Option<WrittenInterface>>,
    ) -> Vec<InterfaceSettings> {
        let all = KeyPath::root("interface");
        let mut first: HashMap<IfPattern, KeyPath> = HashMap::new();
        let mut interfaces = Vec::new();
        for (n, written) in written.enumerate() {
            let Some(written) = written else { continue };
            let path = all.index(n);
            let name_path = path.key("name");
            let ttl_threshold = written.ttl_threshold.and_then(|number| {
                let zero = "Without a threshold leave the key out.";
                let ttl = self.ttl_value(&path.key("ttl_threshold"), number, zero)?;
                TtlThreshold::new(ttl)
            });
            let Some(name) = self.required(written.name, &path, "name", "\"eth1\"") else {
                continue;
            };
            let Some(name) = self.pattern(&name_path, &name) else {
                continue;
            };
            if let Some(first) = first.get(&name) {
                let (at, span) = (self.sources.value(first).short(), self.sources.span(first));
                let problem = self.wrong(
                    &name_path,
                    format!("a second [[interface]] for \"{name}\""),
                    "one for each name",
                    format!("The first is in {at}; put the options together there."),
                );
                problem.also = span.map(|span| (span, "the first".into()));
            }
            first.entry(name.clone()).or_insert(name_path);
            interfaces.push(InterfaceSettings {
                name,
                ttl_threshold,
            });
        }
        interfaces
    }
}

/// The ways to write a TTL policy.
pub(super) const TTL_FORMS: &str = "\"decrement\", \"keep\" or { set = 1 to 255 }";

fn one_of(words: &str) -> String {
    match words.rsplit_once(", ") {
        Some((most, last)) => format!("{most} or {last}"),
        None => words.into(),
    }
}

fn listen_help(text: &str) -> String {
    let port = text.strip_prefix(':').unwrap_or(text);
    let port = port.strip_prefix("*:").unwrap_or(port);
    if port.parse::<u16>().is_ok() {
        return format!(
            "Give the address too: \"127.0.0.1:{port}\" for this machine, \"0.0.0.0:{port}\" for all."
        );
    }
    let v6 = text.matches(':').count() > 1 && !text.starts_with('[');
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(addr)) => return format!("Add the port: \"{addr}:9464\"."),
        Ok(IpAddr::V6(addr)) => return format!("Add the port: \"[{addr}]:9464\"."),
        Err(_) if v6 => return "IPv6 addresses stand in brackets: \"[::1]:9464\".".into(),
        Err(_) => {}
    }
    match text.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_err() => {
            "A port is a number from 0 to 65535.".into()
        }
        Some((host, port)) if host.parse::<IpAddr>().is_err() => {
            format!("Names are not looked up; give the address: \"127.0.0.1:{port}\".")
        }
        _ => "For example: listen = \"127.0.0.1:9464\".".into(),
    }
}

/// A single word that is no level would parse, as the name of a module to log everything of
/// and nothing else: surely a misspelt level.
fn is_filter(text: &str) -> bool {
    let word = !text.contains(['=', ',', '[', ':']);
    if word {
        return text.parse::<LevelFilter>().is_ok();
    }
    EnvFilter::builder().parse(text).is_ok()
}
