//! From written to meant: addresses, ranges, and what must hold between keys.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::keys::{KeyPath, listed, nearest};
use super::locate::Sources;
use super::report::Problem;
use super::written::{
    Written, WrittenControl, WrittenDocker, WrittenHttp, WrittenInterface, WrittenLimits,
    WrittenLog, WrittenMrdisc, WrittenPlane,
};
use super::{
    ControlSettings, DockerSettings, HttpSettings, InterfaceSettings, LimitSettings, LogFormat,
    LogSettings, MrdiscSettings, PlaneKind, PlaneSettings, Settings,
};
use super::{mnat, proxies, rewrites, routes};
use crate::model::{IfPattern, LinkError, RouteName, TtlThreshold};

/// The longest path a UNIX socket address holds: 108 bytes less the NUL (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// The highest limit of flows.
const MOST_FLOWS: usize = 10_000_000;
/// The longest a flow may be idle, in seconds.
const LONGEST_IDLE: u32 = 3600;

/// The longest time to look for a packet, in microseconds.
const LONGEST_BUSY_POLL: u64 = 1000;

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
    let docker = written.docker.map(|table| table.0).unwrap_or_default();
    let plane = written.plane.map(|table| table.0).unwrap_or_default();
    let log = written.log.map(|table| table.0).unwrap_or_default();
    let interfaces = written.interface.unwrap_or_default();
    let routes = written.route.unwrap_or_default();
    let joins = written.join.unwrap_or_default();
    let proxies = written.proxy.unwrap_or_default();
    let mrdisc = written.mrdisc.map(|table| table.0).unwrap_or_default();
    let mnat = written.mnat.map(|table| table.0);
    let limits = written.limits.map(|table| table.0).unwrap_or_default();
    let settings = Settings {
        http: checker.http(http),
        control: checker.control(control),
        docker: checker.docker(docker),
        plane: checker.plane(plane),
        log: checker.log(log),
        interfaces: checker.interfaces(interfaces.into_iter().map(|t| t.map(|t| t.0))),
        routes: routes::check(&mut checker, routes.into_iter().map(|t| t.map(|t| t.0))),
        joins: routes::check_joins(&mut checker, joins.into_iter().map(|t| t.map(|t| t.0))),
        proxies: proxies::check(&mut checker, proxies.into_iter().map(|t| t.map(|t| t.0))),
        mrdisc: checker.mrdisc(mrdisc),
        mnat: mnat.and_then(|mnat| mnat::check(&mut checker, mnat)),
        limits: checker.limits(limits),
        skipped: Vec::new(),
        odd: Vec::new(),
        unread: None,
    };
    // Only where all there is is right can it be said who hands on to whom.
    if checker.problems.is_empty() {
        rewrites::refuse_rings(&mut checker, &settings.routes, &settings.proxies);
    }
    settings
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

    /// Whether the value of this key was refused before.
    pub fn is_broken(&self, path: &KeyPath) -> bool {
        self.broken.contains(path)
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
                    "mnat" => format!("a key `{name}` in [mnat]"),
                    what => format!("a key `{name}` in each [[{what}]]"),
                },
                format!("For example: {name} = {example}."),
            );
        }
        value
    }

    /// One of a few words.
    pub fn word<T: Copy + Default>(
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

    /// A whole number inside a range; the default where none was written or a wrong one.
    pub fn number(
        &mut self,
        path: &KeyPath,
        written: Option<i64>,
        default: i64,
        range: RangeInclusive<i64>,
        help: &str,
    ) -> i64 {
        match written {
            None => default,
            Some(number) if range.contains(&number) => number,
            Some(number) => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                self.wrong(path, number.to_string(), expected, help);
                default
            }
        }
    }

    /// A duration such as "500ms" or "2m 5s" inside a range; the default where none was
    /// written or a wrong one.
    pub fn duration(
        &mut self,
        path: &KeyPath,
        written: Option<String>,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let Some(text) = written else {
            return default;
        };
        let help = match (humantime::parse_duration(&text), text.trim().parse::<f64>()) {
            (Ok(duration), _) if range.contains(&duration) => return duration,
            (Err(_), Ok(_)) => {
                format!("Give the unit: {:?}, or \"ms\", \"m\".", format!("{text}s"))
            }
            _ => "Units are ms, s, m and h: \"500ms\", \"2m 5s\".".into(),
        };
        let show = |d: &Duration| humantime::format_duration(*d).to_string();
        let expected = format!(
            "a time from {} to {}",
            show(range.start()),
            show(range.end())
        );
        self.wrong(path, format!("{text:?}"), expected, help);
        default
    }

    /// A name for metrics, where one was written.
    pub fn route_name(
        &mut self,
        path: &KeyPath,
        written: Option<&str>,
        default: &str,
    ) -> Option<RouteName> {
        let name = written?;
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            let expected = "a name of visible characters";
            let help = format!("Leave the key out for a default such as {default:?}.");
            self.wrong(path, format!("{name:?}"), expected, help);
        }
        Some(RouteName::new(name))
    }

    /// An interface name or pattern.
    pub fn pattern(&mut self, path: &KeyPath, text: &str) -> Option<IfPattern> {
        let list = "One name each: a list is written [\"eth1\", \"eth2\"].";
        let (found, help) = match text.parse::<IfPattern>() {
            // The kernel would take a comma in a name; whoever writes one means a list.
            Ok(pattern) if !pattern.is_alias() && text.contains(',') => {
                (format!("{text:?}"), list.to_string())
            }
            Ok(pattern) => return Some(pattern),
            Err(LinkError::Empty) => ("an empty text".to_string(), String::new()),
            Err(LinkError::TooLong(_)) => (
                format!("{text:?}, {} bytes long", text.len()),
                "Linux names have at most 15 bytes; `ip link` lists them. `*` shortens: \"br-*\"."
                    .into(),
            ),
            Err(LinkError::BadChar(_, ' ')) => (format!("{text:?}"), list.to_string()),
            Err(LinkError::NoLabelValue(_)) => (
                format!("{text:?}"),
                "A label is written label:KEY=VALUE.".to_string(),
            ),
            Err(LinkError::BadChar(_, ':')) => (
                format!("{text:?}"),
                "No interface name holds ':'. Containers are named container:NAME, \
                 label:KEY=VALUE or network:NAME."
                    .into(),
            ),
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
        match written.socket {
            None => ControlSettings::default(),
            Some(text) => ControlSettings {
                socket: self.socket(&path, text, "/run/mcastor.sock"),
            },
        }
    }

    fn docker(&mut self, written: WrittenDocker) -> DockerSettings {
        let path = KeyPath::root("docker").key("socket");
        match written.socket {
            None => DockerSettings::default(),
            Some(text) => DockerSettings {
                socket: self.socket(&path, text, "/var/run/docker.sock"),
            },
        }
    }

    /// The path of a socket; `usual` is what it mostly is.
    fn socket(&mut self, path: &KeyPath, text: String, usual: &str) -> PathBuf {
        let quoted = format!("{text:?}");
        if !Path::new(&text).is_absolute() {
            let help = format!(
                "The daemon has no folder of its own: socket = \"/run/{}\".",
                text.trim_start_matches("./")
            );
            self.wrong(path, quoted, "an absolute path", help);
        } else if text.ends_with('/') || text.contains('\0') {
            let help = format!("Name the socket itself: socket = {usual:?}.");
            self.wrong(path, quoted, "the path of a file", help);
        } else if text.len() > SOCKET_PATH_MAX {
            let found = format!("a path of {} bytes", text.len());
            let expected = format!("at most {SOCKET_PATH_MAX} bytes");
            let help =
                "The kernel takes no longer path for a socket; put it higher up, as in /run.";
            self.wrong(path, found, expected, help);
        }
        text.into()
    }

    fn plane(&mut self, written: WrittenPlane) -> PlaneSettings {
        let path = KeyPath::root("plane").key("kind");
        let kinds = [("auto", PlaneKind::Auto), ("packet", PlaneKind::Packet)];
        PlaneSettings {
            kind: self.word(&path, written.kind, &kinds),
            qdisc_bypass: written.qdisc_bypass.unwrap_or_default(),
            busy_poll: self.busy_poll(written.busy_poll),
        }
    }

    fn busy_poll(&mut self, written: Option<i64>) -> Duration {
        let usual = PlaneSettings::default().busy_poll;
        let Some(number) = written else { return usual };
        match u64::try_from(number) {
            Ok(us) if us <= LONGEST_BUSY_POLL => Duration::from_micros(us),
            _ => {
                let path = KeyPath::root("plane").key("busy_poll");
                let expected = format!("a number of microseconds from 0 to {LONGEST_BUSY_POLL}");
                let help = "After a packet the next one is looked for that long; 0 for never.";
                self.wrong(&path, number.to_string(), expected, help);
                usual
            }
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

    fn mrdisc(&mut self, written: WrittenMrdisc) -> MrdiscSettings {
        let path = KeyPath::root("mrdisc").key("interval");
        // RFC 4286 section 3.1: MaxAdvertisementInterval is 4 to 180 seconds.
        let range = Duration::from_secs(4)..=Duration::from_secs(180);
        let default = MrdiscSettings::default().interval;
        MrdiscSettings {
            interval: self.duration(&path, written.interval, default, range),
        }
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
                enabled: written.enabled.unwrap_or(true),
                mrdisc: written.mrdisc.unwrap_or_default(),
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
