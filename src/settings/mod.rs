//! The settings: read, merged with the environment, and checked.
//!
//! ```text
//! file ──▶ FileText ─┐
//!                    ├─ merge ─▶ tree ─ deserialize ─▶ RawSettings ─ validate ─▶ Settings
//! MCASTOR__… ────────┘                                          └─ or a SettingsReport
//! ```
//!
//! `raw.rs` declares every key once; `declaration.rs` lists what is derived from it. Every problem
//! carries the path of its key, and `locate.rs` finds the bytes of the file or the environment
//! variable for a path. A file imports only files to the left of it:
//!
//! ```text
//! words, key_path, declaration ▷ raw ▷ report ▷ locate ▷ file, tree, unknown ▷ merge, deserialize
//!     ▷ checker ▷ addresses, validated ▷ the sections (tables, interfaces, joins, routes, …)
//!     ▷ validate ▷ mod
//! ```

mod addresses;
mod amt;
mod checker;
mod declaration;
mod deserialize;
mod discovery;
mod file;
mod interfaces;
mod joins;
mod key_path;
mod locate;
mod manual;
mod merge;
mod mnat;
mod monitor;
mod proxies;
mod raw;
mod reference;
mod report;
mod route_merge;
mod route_translation;
mod routes;
mod smcroute;
mod tables;
mod tree;
mod unknown;
mod validate;
mod validated;
mod words;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

pub use file::{DEFAULT_FILE, MAX_FILE};
pub use manual::manual_page;
pub use raw::{DEFAULT_BPFFS, DEFAULT_SOCKET};
pub use reference::{example_file, json_schema, key_table};
pub use report::{MAX_PROBLEMS, Problem, SettingsReport};
pub use smcroute::read as read_smcroute;
pub use unknown::PREFIX;
pub use validated::{
    ControlSettings, DockerSettings, HttpAddress, HttpSettings, InterfaceSettings, LimitSettings,
    LogFormat, LogSettings, MrdiscSettings, PlaneKind, PlaneSettings, Settings, StateSettings,
};

use crate::model::{Group, JoinPolicy, ProxyRule, RouteRule};
use locate::Sources;
use raw::RawSettings;

impl Default for Settings {
    fn default() -> Self {
        let refused = HashSet::new();
        let mut problems = Vec::new();
        validate::validate(
            RawSettings::default(),
            refused,
            &Sources::default(),
            &mut problems,
        )
    }
}

impl Settings {
    /// Returns a sentence for each setting that is valid but may not have the intended effect.
    pub fn notes(&self) -> Vec<String> {
        // Routes that only translate towards the downstream interfaces of proxies join a group
        // when a host there joins it.
        let is_joined_on_demand = |route: &&RouteRule| {
            let is_downstream = |to| {
                self.proxies
                    .iter()
                    .flat_map(|proxy| &proxy.downstream)
                    .any(|downstream| downstream.intersects(to))
            };
            route.translation.is_some() && route.to.iter().all(is_downstream)
        };
        let routes = self.routes.iter();
        let routes = routes.filter(|route| !is_joined_on_demand(route));
        let joins = routes.filter_map(note_on_join);
        let upward = self.proxies.iter().filter_map(note_on_upward);
        let doubtful = self.doubtful.iter().cloned();
        let http = note_on_api(&self.http);
        let addresses = self.routes.iter().filter_map(note_on_addresses);
        let returns = self.routes.iter().filter_map(note_on_return);
        let notes = doubtful.chain(http).chain(addresses).chain(returns);
        let discovery = discovery::notes(&self.discovery, &self.routes, &self.proxies);
        let amt = amt::notes(&self.amt, &self.routes, &self.proxies);
        let notes = notes.chain(joins).chain(upward);
        let mut notes: Vec<_> = notes.chain(discovery).chain(amt).collect();
        // The two paths of a merge are two routes.
        notes.dedup();
        notes
    }

    /// Reads `file`, if there is one, merges the variables of `env` that start with [`PREFIX`],
    /// and checks the result. The file is TOML or an `smcroute.conf`.
    ///
    /// # Errors
    /// All problems found, at most [`MAX_PROBLEMS`] of them in full.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Settings, SettingsReport> {
        if let Some(file) = file {
            smcroute::refuse_igmpproxy_conf(file)
                .map_err(|problem| SettingsReport::new(vec![*problem]))?;
        }
        if let Some(file) = file
            && smcroute::is_smcroute_conf(file)
        {
            return Self::load_smcroute(file, false, env);
        }
        let file = file
            .map(file::read)
            .transpose()
            .map_err(|problem| SettingsReport::new(vec![*problem]))?;
        let sources = Sources {
            file,
            ..Sources::default()
        };
        Self::from_sources(sources, env)
    }

    /// Reads `file` as an `smcroute.conf`. Invalid lines are skipped and listed in
    /// [`Settings::skipped`]. `strict` also refuses mcastor's additions to the format, and words
    /// that smcroute ignores.
    ///
    /// # Errors
    /// Problems of the environment, or `file` is an `igmpproxy.conf` or TOML.
    pub fn load_smcroute(
        file: &Path,
        strict: bool,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Settings, SettingsReport> {
        smcroute::refuse_igmpproxy_conf(file)
            .and_then(|()| smcroute::refuse_toml(file))
            .map_err(|problem| SettingsReport::new(vec![*problem]))?;
        let settings = Self::from_sources(Sources::default(), env)?;
        Ok(smcroute::add(settings, &smcroute::read(file, strict)))
    }

    fn from_sources(
        mut sources: Sources,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Settings, SettingsReport> {
        let mut problems = Vec::new();
        let tree = merge::merge(&mut sources, env, &mut problems);
        // The parsed document takes more memory than everything else, and only problems need it
        // again.
        if let Some(file) = &mut sources.file {
            file.release();
        }
        let (raw, refused) = deserialize::deserialize(tree, &sources, &mut problems);
        let settings = validate::validate(raw, refused, &sources, &mut problems);
        if problems.is_empty() {
            Ok(settings)
        } else {
            Err(SettingsReport::new(problems))
        }
    }
}

/// The groups of SSDP that leave a site: IPv4, and IPv6 with site scope.
const SSDP_GROUPS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250)),
    IpAddr::V6(Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 0xc)),
];

/// Returns a note on an API that other machines can read, unless the settings ask for it.
fn note_on_api(http: &HttpSettings) -> Option<String> {
    match http.listen {
        Some(HttpAddress::Tcp(address))
            if http.api && http.api_is_default && !address.ip().is_loopback() =>
        {
            Some(format!(
                "http: every machine that reaches {address} can read routes, groups and flows from \
                 /api/v1; api = false in [http] keeps only metrics and probes, listen = \
                 \"127.0.0.1:{}\" or \"unix:/run/mcastor/http.sock\" restricts access to this \
                 machine, api = true removes this note",
                address.port()
            ))
        }
        _ => None,
    }
}

/// Returns a note on a route that has an address where the name of an interface belongs. The kernel
/// permits such names, so it is no error.
fn note_on_addresses(route: &RouteRule) -> Option<String> {
    let mut names = std::iter::once(&route.from).chain(&route.to);
    let address = names.find(|name| name.as_str().parse::<IpAddr>().is_ok())?;
    Some(format!(
        "route \"{}\": {address} is an address, where the name of an interface belongs; `ip -br \
         address` lists the interface of each address",
        route.name
    ))
}

/// Returns a note on a route that sends packets back to the interface on which they arrive.
fn note_on_return(route: &RouteRule) -> Option<String> {
    let from = &route.from;
    let returns = !from.is_pattern() && route.to.contains(from);
    returns.then(|| {
        format!(
            "route \"{}\": {from} is in `from` and in `to`, so each packet also leaves on the \
             interface on which it arrived; remove {from} from `to`, unless stations on {from} do \
             not receive each other directly",
            route.name
        )
    })
}

/// Returns a note on a proxy that forwards the hosts' discovery messages to its upstream interface.
fn note_on_upward(proxy: &ProxyRule) -> Option<String> {
    let groups = SSDP_GROUPS.into_iter().flat_map(Group::new);
    let sent: Vec<String> = groups
        .filter(|group| proxy.upward && proxy.accepts_group(*group))
        .map(|group| group.to_string())
        .collect();
    let upstream = proxy.upstream.first().filter(|_| !sent.is_empty())?;
    Some(format!(
        "proxy \"{}\": what hosts send to groups, such as SSDP ({}), also leaves {upstream}; upward = \
         false keeps it downstream, deny_groups = {sent:?} keeps SSDP there and removes this note",
        proxy.name,
        sent.join(", ")
    ))
}

/// Returns why a route with `join = "auto"` does not join its groups.
fn note_on_join(route: &RouteRule) -> Option<String> {
    if route.join != JoinPolicy::Auto || route.implied_join().is_some() {
        return None;
    }
    let (name, group) = (&route.name, route.group);
    Some(match group.single() {
        None => format!(
            "route \"{name}\": the groups of {group} are not joined, so a snooping switch may not \
             deliver them; join = true joins each of them, join = false removes this note"
        ),
        Some(_) => format!(
            "route \"{name}\": {group} is source-specific and is not joined without a single \
             `source`, so a snooping switch may not deliver it; set the source, or join = false to \
             remove this note"
        ),
    })
}

/// Returns the environment variables of this process that start with [`PREFIX`], or would start
/// with it in capitals or if their underscores were doubled. Omits variables that Kubernetes sets for a Service.
/// Bytes that are not UTF-8 become U+FFFD, the replacement character.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.to_string_lossy().into_owned();
        let is_meant = || unknown::help_for_other_prefix(&name).is_some();
        (name.starts_with(PREFIX) || is_meant())
            .then(|| (name, value.to_string_lossy().into_owned()))
    });
    variables.filter(|(name, value)| !unknown::is_set_by_kubernetes(name, value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{MembershipLimits, QuerierTimers, Versions};

    fn load_text(text: String, env: Vec<(String, String)>) -> Result<Settings, SettingsReport> {
        let file =
            file::parse("a.toml", text).map_err(|problem| SettingsReport::new(vec![*problem]))?;
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        Settings::from_sources(sources, env.into_iter())
    }

    #[test]
    fn columns_count_characters_in_every_format() {
        let text = "[[route]]\nfrom = \"eth0\"\ngroup = \"225.1.2.3\"\nto = [\"é\", \"é\"]\n";
        let report = load_text(text.into(), vec![]).unwrap_err();
        assert!(report.to_string().starts_with("a.toml:4:12: "), "{report}");
        let pretty = report.pretty().to_string();
        assert!(pretty.contains("a.toml:4:12"), "{pretty}");
    }

    /// Returns true if miette can draw every label: each lies inside the text.
    fn is_drawn(report: &SettingsReport) -> bool {
        let text = report.pretty().to_string();
        !text.is_empty() && !text.contains("Failed to read contents")
    }

    #[test]
    fn conflict_of_variable_and_file_is_drawn() {
        let file = "[[route]]\nfrom = \"eth0\"\ngroup = \"225.1.2.3\"\nto = [\"eth1\"]\n";
        let value = "{ from = \"eth0\", group = \"225.1.2.3\", to = [\"x\"] }";
        let env = vec![("MCASTOR__ROUTE__1".to_string(), value.to_string())];
        let report = load_text(file.into(), env).unwrap_err();
        assert!(is_drawn(&report), "{}", report.pretty());
    }

    #[test]
    fn file_gives_the_same_tree_with_and_without_merge() {
        let mut text = EXAMPLE.to_string();
        text += "[[route]]\nfrom = 1979-05-27\ngroup = nan\nto = [1, [2.5, { a = true }]]\n";
        text += "ttl = { set = 3 }\n";
        let file =
            file::parse("a.toml", text).map_err(|problem| SettingsReport::new(vec![*problem]));
        let file = file.unwrap();
        let merged = tree::file_to_map(&file).into_iter();
        let merged = merged.map(|(name, value)| (name, tree::value_to_json(value)));
        assert_eq!(
            tree::file_to_json(&file),
            serde_json::Value::Object(merged.collect())
        );
    }

    /// The declared defaults are those of the model.
    #[test]
    fn declared_defaults_match_the_model() {
        let text = "[[proxy]]\nupstream = [\"eth0\"]\ndownstream = [\"eth1\"]\n";
        let settings = load_text(text.into(), vec![]).unwrap();
        let names = |name: &str| vec![name.parse().unwrap()];
        let model = crate::model::ProxyRule::new(names("eth0"), names("eth1"));
        assert_eq!(settings.proxies, [model]);
        let proxy = &settings.proxies[0];
        assert_eq!(proxy.timers, QuerierTimers::default());
        assert_eq!(proxy.limits, MembershipLimits::default());
        assert_eq!(proxy.version, Versions::default());
    }

    #[test]
    fn api_that_other_machines_can_read_is_noted() {
        let notes = |text: &str| {
            load_text(format!("[http]\n{text}"), vec![])
                .unwrap()
                .notes()
        };
        let note = &notes("listen = \"0.0.0.0:80\"")[0];
        assert!(
            note.contains("api = false") && note.contains("127.0.0.1:80"),
            "{note}"
        );
        for quiet in [
            "",
            "listen = \"0.0.0.0:80\"\napi = true",
            "listen = \"[::]:80\"\napi = false",
            "listen = \"[::1]:80\"",
            "listen = \"unix:/run/http.sock\"",
            "listen = \"off\"",
        ] {
            assert_eq!(notes(quiet), [""; 0], "{quiet}");
        }
    }

    #[test]
    fn http_hosts_are_compared_in_lower_case() {
        let text = "[http]\nhosts = [\"A.Example.NET.\", \"b_1.lan\"]\n";
        let http = load_text(text.into(), vec![]).unwrap().http;
        assert_eq!(http.hosts, ["a.example.net", "b_1.lan"]);
        assert!(http.api);
    }

    #[test]
    fn proxy_that_sends_ssdp_upstream_is_noted() {
        let notes = |extra: &str| {
            let text =
                format!("[[proxy]]\nupstream = [\"eth0\"]\ndownstream = [\"eth1\"]\n{extra}");
            load_text(text, vec![]).unwrap().notes()
        };
        let note = &notes("")[0];
        let expected = "deny_groups = [\"239.255.255.250\", \"ff05::c\"]";
        assert!(
            note.contains("leaves eth0") && note.contains(expected),
            "{note}"
        );
        assert_eq!(notes(expected), [""; 0]);
        assert_eq!(notes("upward = false"), [""; 0]);
        assert_eq!(notes("groups = [\"232.0.0.0/8\"]"), [""; 0]);
    }

    #[test]
    fn tunnel_interface_in_the_wrong_direction_is_noted() {
        let notes = |rule: &str| {
            let tunnels = "[[amt.gateway]]\nname = \"in\"\nrelay = \"driad\"\n\
                           [[amt.relay]]\nname = \"out\"\n";
            load_text(format!("{tunnels}{rule}"), vec![])
                .unwrap()
                .notes()
        };
        let route = |from: &str, to: &str| {
            notes(&format!(
                "[[route]]\nfrom = \"{from}\"\ngroup = \"239.1.1.1\"\nto = [\"{to}\"]\n"
            ))
        };
        let proxy = |upstream: &str, downstream: &str| {
            notes(&format!(
                "[[proxy]]\nupstream = [\"{upstream}\"]\ndownstream = [\"{downstream}\"]\n\
                 upward = false\n"
            ))
        };
        for notes in [route("out", "in"), proxy("out", "in")] {
            assert_eq!(notes.len(), 2, "{notes:?}");
            assert!(notes[0].contains("leaves on in, which"), "{notes:?}");
            assert!(notes[1].contains("arrives on out, which"), "{notes:?}");
        }
        assert_eq!(route("in", "out"), [""; 0]);
        assert_eq!(proxy("in", "out"), [""; 0]);
    }

    const EXAMPLE: &str = include_str!("../../conf/mcastor.toml");

    /// A line of the example, or a hostile line.
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
        fn damaged_example_never_panics(
            at in 0..EXAMPLE.len(),
            removed in 0usize..40,
            pieces in prop::collection::vec(piece(), 0..4),
        ) {
            let floor = |n: usize| {
                let mut offsets = (0..=n.min(EXAMPLE.len())).rev();
                offsets.find(|n| EXAMPLE.is_char_boundary(*n)).unwrap_or(0)
            };
            let (start, end) = (&EXAMPLE[..floor(at)], &EXAMPLE[floor(at + removed)..]);
            let text = format!("{start}{}{end}", pieces.concat());
            if let Err(report) = load_text(text, vec![]) {
                prop_assert!(!report.problems().is_empty());
                prop_assert!(!report.to_string().is_empty());
                prop_assert!(is_drawn(&report));
                prop_assert!(!report.json().to_string().is_empty());
            }
        }

        #[test]
        fn random_lines_never_panic(pieces in prop::collection::vec(piece(), 0..12)) {
            if let Err(report) = load_text(pieces.concat(), vec![]) {
                prop_assert!(is_drawn(&report));
            }
        }

        #[test]
        fn random_environment_never_panics(
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
                prop_assert!(is_drawn(&report));
                prop_assert!(!report.to_string().is_empty());
            }
        }
    }
}
