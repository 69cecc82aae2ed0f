//! The tables of `show`, in the format of smcroute.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Value, json};

use super::line::pattern;
use crate::api::view::{FlowView, GroupView, InterfaceView, PendingView, RouteView};
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
    /// The flows.
    pub flows: Vec<FlowView>,
    /// The configured joins.
    pub joins: Vec<JoinRule>,
    /// The memberships of this host.
    pub groups: Vec<GroupView>,
    /// The rules that wait for an interface.
    pub pending: Vec<PendingView>,
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
            "source": self.source, "group": self.group, "iif": self.iif, "oifs": self.oifs,
        })
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
                let oifs = oifs.filter(|name| egresses.contains(name) && *name != iif);
                // The number of received packets is that of the egress with the most packets.
                // Routes for several sources or groups show no counters; their flows do.
                let own = route.paths.iter().filter(|p| is_single && p.iif == iif);
                let most = own.max_by_key(|p| p.packets);
                rows.push(Row {
                    source: route.source.clone(),
                    group: route.group.clone(),
                    iif: iif.to_string(),
                    oifs: oifs.map(String::from).collect(),
                    packets: most.map_or(0, |p| p.packets),
                    bytes: most.map_or(0, |p| p.bytes),
                });
            }
        }
        rows
    }

    /// Returns the rows that the kernel's multicast table would have: routes with a single source
    /// and group, and flows.
    fn kernel_rows(&self) -> Vec<Row> {
        let mut rows = self.rule_rows(true);
        for flow in self.flows.iter().filter(|f| f.route.is_some()) {
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
        if !self.joins.is_empty() {
            let _ = writeln!(
                out,
                "Group Memberships Table_\n{:<ROUTE_WIDTH$} {:<16}=",
                "GROUP (S,G)", "IIF"
            );
        }
        for join in &self.joins {
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
        let mut next = 0;
        for interface in &self.interfaces {
            let number = match interface.name.as_str() {
                "lo" => "N/A".to_string(),
                _ => {
                    next += 1;
                    // The number of a disabled interface remains unused.
                    match interface.disabled {
                        true => "N/A".to_string(),
                        false => (next - 1).to_string(),
                    }
                }
            };
            let (index, ifname) = (interface.index, &interface.name);
            let _ = writeln!(out, "{index:>6} {ifname:<name$}  {number:>3}  {number:>3}");
        }
        out
    }

    fn pending_table(&self) -> String {
        if self.pending.is_empty() {
            return String::new();
        }
        let mut out = String::from("Pending Rules_\n");
        let _ = writeln!(out, "{:<ROUTE_WIDTH$} WAITING FOR=", "RULE");
        for pending in &self.pending {
            let waiting: Vec<String> = pending
                .waiting_for
                .iter()
                .map(|n| smcroute_pattern(n))
                .collect();
            let rule = format!("{} {}", pending.kind, pending.name);
            let _ = writeln!(out, "{rule:<ROUTE_WIDTH$} {}", waiting.join(" "));
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
            let conf = state.joins.iter().map(|join| {
                let source = join.source.map_or("*".into(), |s| s.to_string());
                json!({ "source": source, "group": join.group, "iif": smcroute_pattern(join.interface.as_str()) })
            });
            let kernel = state.kernel_memberships().map(|(source, group)| {
                json!({ "source": source, "group": group.group, "iif": group.interface })
            });
            json!({ "groups": { "conf": conf.collect::<Value>(), "kernel": kernel.collect::<Value>() }})
        }
        ShowKind::Interfaces => {
            let all = state
                .interfaces
                .iter()
                .map(|i| json!({ "index": i.index, "name": i.name }));
            json!({ "interfaces": all.collect::<Value>() })
        }
        ShowKind::Pending => {
            let all = state
                .pending
                .iter()
                .map(|p| json!({ "type": p.kind, "name": p.name, "waiting": p.waiting_for }));
            json!({ "pending": all.collect::<Value>() })
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
        for kind in [ShowKind::Routes, ShowKind::Groups, ShowKind::Pending] {
            for format in [ShowFormat::Plain, ShowFormat::Detail] {
                assert_eq!(
                    show(&RouteSnapshot::default(), kind, format),
                    "",
                    "{kind:?}"
                );
            }
        }
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
