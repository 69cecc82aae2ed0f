//! The tables of `show`, in the format of smcroute.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Value, json};

use super::line::{LOOPBACK, pattern};
use crate::api::view::{FlowView, GroupView, InterfaceView, RouteView};
use crate::model::{IfName, JoinRule};

/// Width of the column with source and group.
const ROUTE_WIDTH: usize = 42;

/// The data that the tables show.
#[derive(Debug, Default)]
pub struct RouteSnapshot {
    /// The routes.
    pub routes: Vec<RouteView>,
    /// The interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// The flows, with those that are dropped.
    pub flows: Vec<FlowView>,
    /// The configured joins.
    pub joins: Vec<JoinRule>,
    /// The memberships of this host.
    pub groups: Vec<GroupView>,
}

/// A table of `show`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShowKind {
    /// Routes and flows.
    Routes,
    /// Joins.
    Groups,
    /// Interfaces.
    Interfaces,
    /// Rules that wait for an interface.
    Pending,
}

impl ShowKind {
    /// Parses the argument of `show`. Only its first letter counts, as in `ifaces`. Any other
    /// letter means routes.
    pub fn parse(word: Option<&str>) -> Self {
        match word.and_then(|word| word.chars().next()) {
            Some('g') => Self::Groups,
            Some('i') => Self::Interfaces,
            Some('p') => Self::Pending,
            _ => Self::Routes,
        }
    }
}

/// The output format of `show`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShowFormat {
    /// A table.
    Plain,
    /// A table with counters.
    Detail,
    /// One JSON object.
    Json,
}

/// Returns the output of `show`. Titles of tables end with `_`, and column headings with `=`.
pub fn show(state: &RouteSnapshot, kind: ShowKind, format: ShowFormat) -> String {
    let detail = format == ShowFormat::Detail;
    match (kind, format) {
        (_, ShowFormat::Json) => format!("{}\n", json(state, kind)),
        (ShowKind::Routes, _) => state.routes_table(detail),
        (ShowKind::Groups, _) => state.groups_table(detail),
        (ShowKind::Interfaces, _) => state.interfaces_table(),
        (ShowKind::Pending, _) => state.pending_table(),
    }
}

/// A row of a table of routes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    source: String,
    group: String,
    iif: String,
    oifs: Vec<String>,
    packets: u64,
    bytes: u64,
}

impl Row {
    fn name(&self) -> String {
        format!("({}, {})", self.source, self.group)
    }

    fn json(&self) -> Value {
        json!({
            "source": specific(&self.source), "group": self.group, "iif": self.iif,
            "oifs": self.oifs,
        })
    }
}

/// Returns a source, or `None` for any source.
fn specific(source: &str) -> Option<&str> {
    (source != "*").then_some(source)
}

/// A line of the file or a command that waits for an interface.
struct PendingRule {
    /// `mroute` or `mgroup`.
    kind: &'static str,
    iif: String,
    /// Source; `None` for any source.
    source: Option<String>,
    group: String,
    oifs: Vec<String>,
}

impl PendingRule {
    fn json(&self) -> Value {
        json!({
            "kind": self.kind, "iif": self.iif, "source": self.source, "group": self.group,
            "oifs": self.oifs,
        })
    }

    /// Returns the rule as a line of `smcroute.conf`.
    fn line(&self) -> String {
        let mut line = format!("{:<7} from {}", self.kind, self.iif);
        if let Some(source) = &self.source {
            line += &format!(" source {source}");
        }
        line += &format!(" group {}", self.group);
        if !self.oifs.is_empty() {
            line += &format!(" to {}", self.oifs.join(" "));
        }
        line
    }
}

impl RouteSnapshot {
    /// Returns the enabled interfaces that match a name or pattern, in the order of the interfaces.
    fn matching_interfaces(&self, name: &str) -> Vec<&str> {
        let Ok(pattern) = pattern(name) else {
            return Vec::new();
        };
        let names = self.interfaces.iter().filter(|i| !i.disabled);
        let names = names.map(|i| i.name.as_str());
        let matching = |n: &&str| n.parse::<IfName>().is_ok_and(|n| pattern.matches(&n));
        names.filter(matching).collect()
    }

    /// Returns a row for each route and ingress interface: for the routes with a single source and
    /// a single group if `single` is set, else for all others.
    fn rule_rows(&self, single: bool) -> Vec<Row> {
        let mut rows = Vec::new();
        for route in &self.routes {
            let is_single =
                route.source != "*" && !format!("{}{}", route.source, route.group).contains('/');
            if is_single != single {
                continue;
            }
            let egresses: BTreeSet<&str> = route
                .to
                .iter()
                .flat_map(|to| self.matching_interfaces(to))
                .collect();
            for iif in self.matching_interfaces(&route.from) {
                let oifs = self.interfaces.iter().map(|i| i.name.as_str());
                // A pattern does not include the interface on which a packet arrived.
                let returns = route.to.iter().any(|to| to == iif);
                let oifs = oifs.filter(|name| egresses.contains(name) && (*name != iif || returns));
                // The number of received packets is that of the egress with the most packets.
                // Routes for several sources or groups show no counters; their flows do.
                // A flow also counts packets that are dropped for their TTL.
                let own = route.paths.iter().filter(|p| is_single && p.iif == iif);
                let own = own.map(|p| (p.packets, p.bytes));
                let is_own = |f: &&FlowView| {
                    is_single
                        && f.iif == iif
                        && (&f.source, &f.group) == (&route.source, &route.group)
                };
                let flows = self
                    .flows
                    .iter()
                    .filter(is_own)
                    .map(|f| (f.packets, f.bytes));
                let most = own.chain(flows).max();
                rows.push(Row {
                    source: route.source.clone(),
                    group: route.group.clone(),
                    iif: iif.to_string(),
                    oifs: oifs.map(String::from).collect(),
                    packets: most.map_or(0, |(packets, _)| packets),
                    bytes: most.map_or(0, |(_, bytes)| bytes),
                });
            }
        }
        rows
    }

    /// Returns the rows that the kernel's multicast table would have: routes with a single source
    /// and group, and flows. A dropped flow that no route takes has no egress.
    fn kernel_rows(&self) -> Vec<Row> {
        let mut rows = self.rule_rows(true);
        let flows = self.flows.iter();
        for flow in flows.filter(|f| f.route.is_some() || f.dropped) {
            let same = |r: &&mut Row| {
                (&r.source, &r.group, &r.iif) == (&flow.source, &flow.group, &flow.iif)
            };
            let mut oifs = flow.oifs.clone();
            let index = |name: &String| self.interfaces.iter().position(|i| i.name == *name);
            oifs.sort_by_key(index);
            match rows.iter_mut().find(same) {
                Some(row) => {
                    row.packets = row.packets.max(flow.packets);
                    row.bytes = row.bytes.max(flow.bytes);
                }
                None => rows.push(Row {
                    source: flow.source.clone(),
                    group: flow.group.clone(),
                    iif: flow.iif.clone(),
                    oifs,
                    packets: flow.packets,
                    bytes: flow.bytes,
                }),
            }
        }
        rows
    }

    /// Returns the memberships of this host in the kernel, each with its source, or `*` for any.
    fn kernel_memberships(&self) -> impl Iterator<Item = (&str, &GroupView)> {
        let own = |g: &&GroupView| g.role == "host" && g.error.is_none();
        self.groups.iter().filter(own).flat_map(|group| {
            let any = (group.mode == "exclude").then_some("*");
            let sources = group.sources.iter().map(|s| s.source.as_str());
            let sources = sources.filter(move |_| any.is_none());
            any.into_iter()
                .chain(sources)
                .map(move |source| (source, group))
        })
    }

    /// Returns the joins that match an interface. The others are pending.
    fn active_joins(&self) -> impl Iterator<Item = &JoinRule> {
        self.joins.iter().filter(|join| self.is_present(join))
    }

    fn is_present(&self, join: &JoinRule) -> bool {
        let names = self.interfaces.iter().map(|i| i.name.parse::<IfName>());
        names.flatten().any(|name| join.interface.matches(&name))
    }

    /// Returns the rules that wait for an interface.
    fn pending_rules(&self) -> Vec<PendingRule> {
        let waiting = self.routes.iter().filter(|r| !r.waiting_for.is_empty());
        let routes = waiting.map(|route| PendingRule {
            kind: "mroute",
            iif: smcroute_pattern(&route.from),
            source: specific(&route.source).map(String::from),
            group: route.group.clone(),
            oifs: route.to.iter().map(|oif| smcroute_pattern(oif)).collect(),
        });
        let waiting = self.joins.iter().filter(|join| !self.is_present(join));
        let joins = waiting.map(|join| PendingRule {
            kind: "mgroup",
            iif: smcroute_pattern(join.interface.as_str()),
            source: join.source.map(|source| source.to_string()),
            group: join.group.to_string(),
            oifs: Vec::new(),
        });
        routes.chain(joins).collect()
    }

    /// Returns the interfaces, each with its number, which smcroute calls VIF and MIF; `None` for
    /// an interface that is not used.
    fn numbered_interfaces(&self) -> Vec<(&InterfaceView, Option<usize>)> {
        let mut next = 0;
        let numbered = self.interfaces.iter().map(|interface| {
            if interface.name == LOOPBACK {
                return (interface, None);
            }
            next += 1;
            // The number of a disabled interface remains unused.
            (interface, (!interface.disabled).then_some(next - 1))
        });
        numbered.collect()
    }

    /// Returns the width of the column with interface names.
    fn interface_width(&self) -> usize {
        let names = self.interfaces.iter().map(|i| i.name.len());
        names.max().unwrap_or_default().max(3)
    }

    fn routes_table(&self, detail: bool) -> String {
        let tables = [
            ("(*,G) Template Rules", self.rule_rows(false)),
            ("(S,G) Rules", self.rule_rows(true)),
            ("Kernel MFC Table", self.kernel_rows()),
        ];
        let mut out = String::new();
        let width = self.interface_width();
        for (title, rows) in tables {
            if rows.is_empty() {
                continue;
            }
            let counters = if detail { "   PACKETS      BYTES " } else { "" };
            // Writing to a String does not fail.
            let _ = writeln!(out, "{title}_");
            let _ = writeln!(
                out,
                "{:<ROUTE_WIDTH$} {:<width$} {counters} OIFS=",
                "ROUTE (S,G)", "IIF"
            );
            for row in rows {
                let _ = write!(out, "{:<ROUTE_WIDTH$} {:<width$} ", row.name(), row.iif);
                if detail {
                    let _ = write!(out, "{:>10} {:>10} ", row.packets, row.bytes);
                }
                for oif in &row.oifs {
                    let _ = write!(out, " {oif}");
                }
                out.push('\n');
            }
        }
        out
    }

    fn groups_table(&self, detail: bool) -> String {
        let mut out = String::new();
        let row = |out: &mut String, source: &str, group: &str, iif: &str| {
            let _ = writeln!(
                out,
                "{:<ROUTE_WIDTH$} {}",
                format!("({source}, {group})"),
                iif
            );
        };
        if self.active_joins().next().is_some() {
            let _ = writeln!(
                out,
                "Group Memberships Table_\n{:<ROUTE_WIDTH$} {:<16}=",
                "GROUP (S,G)", "IIF"
            );
        }
        for join in self.active_joins() {
            let source = join.source.map_or("*".into(), |s| s.to_string());
            row(
                &mut out,
                &source,
                &join.group.to_string(),
                &smcroute_pattern(join.interface.as_str()),
            );
        }
        if detail && self.kernel_memberships().next().is_some() {
            let _ = writeln!(out, "Kernel Group Membership Table_");
            for (source, group) in self.kernel_memberships() {
                row(&mut out, source, &group.group, &group.interface);
            }
        }
        out
    }

    fn interfaces_table(&self) -> String {
        let name = self.interface_width().max("PHYINT".len());
        let mut out = format!(" INDEX {:<name$}  VIF  MIF=\n", "PHYINT");
        for (interface, number) in self.numbered_interfaces() {
            let number = number.map_or("N/A".to_string(), |number| number.to_string());
            let (index, ifname) = (interface.index, &interface.name);
            let _ = writeln!(out, "{index:>6} {ifname:<name$}  {number:>3}  {number:>3}");
        }
        out
    }

    fn pending_table(&self) -> String {
        let rules = self.pending_rules();
        if rules.is_empty() {
            return "No pending routes or groups\n".into();
        }
        let mut out = String::from("PENDING ROUTES AND GROUPS\n");
        for rule in rules {
            let _ = writeln!(out, "{}", rule.line());
        }
        out
    }
}

/// Formats an interface pattern in the syntax of smcroute.
fn smcroute_pattern(name: &str) -> String {
    match name.strip_suffix('*') {
        Some(start) => format!("{start}+"),
        None => name.to_string(),
    }
}

fn json(state: &RouteSnapshot, kind: ShowKind) -> Value {
    let rows = |rows: Vec<Row>| rows.iter().map(Row::json).collect::<Value>();
    match kind {
        ShowKind::Routes => json!({ "routes": {
            "asm": rows(state.rule_rows(false)),
            "ssm": rows(state.rule_rows(true)),
            "kernel": rows(state.kernel_rows()),
        }}),
        ShowKind::Groups => {
            let conf = state.active_joins().map(|join| {
                json!({ "source": join.source, "group": join.group, "iif": smcroute_pattern(join.interface.as_str()) })
            });
            let kernel = state.kernel_memberships().map(|(source, group)| {
                json!({ "source": specific(source), "group": group.group, "iif": group.interface })
            });
            json!({ "groups": { "conf": conf.collect::<Value>(), "kernel": kernel.collect::<Value>() }})
        }
        ShowKind::Interfaces => {
            let all = state.numbered_interfaces().into_iter().map(|(i, number)| {
                json!({ "index": i.index, "name": i.name, "vif": number, "mif": number })
            });
            json!({ "interfaces": all.collect::<Value>() })
        }
        ShowKind::Pending => {
            let rules = state.pending_rules();
            json!({ "pending": rules.iter().map(PendingRule::json).collect::<Value>() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str) -> InterfaceView {
        serde_json::from_value(json!({
            "index": index, "name": name, "up": true, "carrier": true, "mtu": 1500,
            "ingress": true, "egress": true, "ttl_threshold": null, "received_packets": 0,
            "transmitted_packets": 0, "dropped_packets": {}, "socket_dropped_packets": 0
        }))
        .unwrap()
    }

    fn route(from: &str, source: &str, group: &str, to: &[&str]) -> RouteView {
        serde_json::from_value(json!({
            "name": "r", "origin": "settings", "from": from, "source": source,
            "except_sources": [], "group": group, "to": to, "ttl": "decrement",
            "link_local": false, "paths": [], "waiting_for": []
        }))
        .unwrap()
    }

    fn state() -> RouteSnapshot {
        RouteSnapshot {
            interfaces: vec![
                interface(1, "lo"),
                interface(2, "peer0"),
                interface(3, "eth0"),
                interface(5, "eth1"),
                interface(7, "eth2"),
            ],
            routes: vec![
                route("eth0", "*", "225.1.2.3", &["eth2", "eth1", "gone"]),
                route("eth0", "10.0.0.10", "225.1.2.4", &["eth+"]),
                route("eth9", "*", "225.9.9.9", &["eth1"]),
            ],
            ..RouteSnapshot::default()
        }
    }

    /// The expected text is the output of smcrouted 2.5.6.
    #[test]
    fn tables_are_those_of_smcrouted() {
        let expected = "(*,G) Template Rules_\n\
             ROUTE (S,G)                                IIF    OIFS=\n\
             (*, 225.1.2.3)                             eth0   eth1 eth2\n\
             (S,G) Rules_\n\
             ROUTE (S,G)                                IIF    OIFS=\n\
             (10.0.0.10, 225.1.2.4)                     eth0   eth1 eth2\n\
             Kernel MFC Table_\n\
             ROUTE (S,G)                                IIF    OIFS=\n\
             (10.0.0.10, 225.1.2.4)                     eth0   eth1 eth2\n";
        assert_eq!(
            show(&state(), ShowKind::Routes, ShowFormat::Plain),
            expected
        );
        let detail = show(&state(), ShowKind::Routes, ShowFormat::Detail);
        let lines: Vec<&str> = detail.lines().collect();
        assert_eq!(
            lines[1..3],
            [
                "ROUTE (S,G)                                IIF      PACKETS      BYTES  OIFS=",
                "(*, 225.1.2.3)                             eth0           0          0  eth1 eth2"
            ]
        );
        assert!(
            show(&state(), ShowKind::Interfaces, ShowFormat::Plain).starts_with(
                " INDEX PHYINT  VIF  MIF=\n     1 lo      N/A  N/A\n     2 peer0     0    0\n"
            )
        );
    }

    #[test]
    fn disabled_interfaces_and_empty_tables_are_omitted() {
        let mut state = state();
        state.interfaces[4].disabled = true;
        let output = show(&state, ShowKind::Routes, ShowFormat::Plain);
        assert!(
            output.contains("eth1\n") && !output.contains("eth2"),
            "{output}"
        );
        let output = show(&state, ShowKind::Interfaces, ShowFormat::Plain);
        assert!(
            output.ends_with("     5 eth1      2    2\n     7 eth2    N/A  N/A\n"),
            "{output}"
        );
        for kind in [ShowKind::Routes, ShowKind::Groups] {
            for format in [ShowFormat::Plain, ShowFormat::Detail] {
                assert_eq!(
                    show(&RouteSnapshot::default(), kind, format),
                    "",
                    "{kind:?}"
                );
            }
        }
    }

    fn join(interface: &str, source: Option<&str>, group: &str) -> JoinRule {
        JoinRule {
            interface: interface.parse().unwrap(),
            source: source.map(|s| s.parse().unwrap()),
            group: group.parse().unwrap(),
            origin: crate::model::Origin::Settings,
        }
    }

    /// The expected lines and fields are those of smcroute 2.6.
    #[test]
    fn pending_rules_are_shown_as_by_smcroute_2_6() {
        let mut state = state();
        state.routes[0].waiting_for = vec!["gone".into()];
        state.joins = vec![
            join("eth1", None, "225.1.1.1"),
            join("wg0", None, "225.4.5.6"),
            join("wg*", Some("10.0.0.5"), "232.4.5.6"),
        ];
        let expected = "PENDING ROUTES AND GROUPS\n\
             mroute  from eth0 group 225.1.2.3 to eth2 eth1 gone\n\
             mgroup  from wg0 group 225.4.5.6\n\
             mgroup  from wg+ source 10.0.0.5 group 232.4.5.6\n";
        for format in [ShowFormat::Plain, ShowFormat::Detail] {
            assert_eq!(show(&state, ShowKind::Pending, format), expected);
        }
        let shown = json(&state, ShowKind::Pending);
        assert_eq!(
            shown["pending"][0],
            json!({"kind": "mroute", "iif": "eth0", "source": null, "group": "225.1.2.3",
                   "oifs": ["eth2", "eth1", "gone"]})
        );
        assert_eq!(
            shown["pending"][2],
            json!({"kind": "mgroup", "iif": "wg+", "source": "10.0.0.5", "group": "232.4.5.6",
                   "oifs": []})
        );
        let groups = show(&state, ShowKind::Groups, ShowFormat::Plain);
        assert!(
            groups.contains("225.1.1.1") && !groups.contains("wg"),
            "{groups}"
        );
        let groups = json(&state, ShowKind::Groups);
        assert_eq!(
            groups["groups"]["conf"],
            json!([{"source": null, "group": "225.1.1.1", "iif": "eth1"}])
        );
        let none = show(
            &RouteSnapshot::default(),
            ShowKind::Pending,
            ShowFormat::Plain,
        );
        assert_eq!(none, "No pending routes or groups\n");
    }

    #[test]
    fn json_has_vif_and_null_for_any_source() {
        let state = state();
        let interfaces = json(&state, ShowKind::Interfaces);
        assert_eq!(
            interfaces["interfaces"][0],
            json!({"index": 1, "name": "lo", "vif": null, "mif": null})
        );
        assert_eq!(
            interfaces["interfaces"][1],
            json!({"index": 2, "name": "peer0", "vif": 0, "mif": 0})
        );
        let routes = json(&state, ShowKind::Routes);
        assert_eq!(routes["routes"]["asm"][0]["source"], Value::Null);
        assert_eq!(routes["routes"]["ssm"][0]["source"], "10.0.0.10");
    }

    #[test]
    fn dropped_flows_are_kernel_rows() {
        let flow = |source: &str, route: Option<&str>, oifs: &[&str], dropped: bool| -> FlowView {
            serde_json::from_value(json!({
                "iif": "eth0", "source": source, "group": "225.1.2.3", "route": route,
                "oifs": oifs, "packets": 3, "bytes": 252, "age_ms": 0, "idle_ms": 0,
                "dropped": dropped
            }))
            .unwrap()
        };
        let state = RouteSnapshot {
            interfaces: state().interfaces,
            flows: vec![
                flow("10.0.0.1", None, &[], true),
                flow("10.0.0.2", Some("r"), &["eth1"], true),
                flow("10.0.0.3", None, &[], false),
            ],
            ..RouteSnapshot::default()
        };
        let shown = show(&state, ShowKind::Routes, ShowFormat::Detail);
        let lines: Vec<&str> = shown.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "(10.0.0.1, 225.1.2.3)                      eth0           3        252 ",
                "(10.0.0.2, 225.1.2.3)                      eth0           3        252  eth1",
            ]
        );
    }

    #[test]
    fn show_argument_may_be_abbreviated() {
        for (word, kind) in [
            (None, ShowKind::Routes),
            (Some("r"), ShowKind::Routes),
            (Some("g"), ShowKind::Groups),
            (Some("inter"), ShowKind::Interfaces),
            (Some("pend"), ShowKind::Pending),
            (Some("ifaces"), ShowKind::Interfaces),
            (Some("iface"), ShowKind::Interfaces),
            (Some(""), ShowKind::Routes),
            (Some("foo"), ShowKind::Routes),
        ] {
            assert_eq!(ShowKind::parse(word), kind, "{word:?}");
        }
    }
}
