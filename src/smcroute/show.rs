//! The tables of `show`, as smcroute draws them.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Value, json};

use super::line::pattern;
use crate::api::view::{FlowView, GroupView, InterfaceView, PendingView, RouteView};
use crate::model::{IfName, JoinRule};

/// Width of the column with source and group.
const WIDE: usize = 42;

/// All that tables are made of.
#[derive(Debug, Default)]
pub struct RouteSnapshot {
    /// The rules.
    pub routes: Vec<RouteView>,
    /// The interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// The flows.
    pub flows: Vec<FlowView>,
    /// The joins as they were asked for.
    pub joins: Vec<JoinRule>,
    /// The memberships there are.
    pub groups: Vec<GroupView>,
    /// What waits.
    pub pending: Vec<PendingView>,
}

/// What to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShowKind {
    /// Rules and flows.
    Routes,
    /// Joins.
    Groups,
    /// Interfaces.
    Interfaces,
    /// What waits.
    Pending,
}

impl ShowKind {
    /// Its first letter tells, as in `ifaces`; anything else means routes.
    pub fn named(word: Option<&str>) -> Self {
        match word.and_then(|word| word.chars().next()) {
            Some('g') => Self::Groups,
            Some('i') => Self::Interfaces,
            Some('p') => Self::Pending,
            _ => Self::Routes,
        }
    }
}

/// How to show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A table.
    Plain,
    /// A table with counters.
    Detail,
    /// One JSON object.
    Json,
}

/// What is asked for, as lines. Titles end in `_` and headings in `=`.
pub fn show(state: &RouteSnapshot, what: ShowKind, form: Form) -> String {
    let detail = form == Form::Detail;
    match (what, form) {
        (_, Form::Json) => format!("{}\n", json(state, what)),
        (ShowKind::Routes, _) => state.routes_table(detail),
        (ShowKind::Groups, _) => state.groups_table(detail),
        (ShowKind::Interfaces, _) => state.interfaces_table(),
        (ShowKind::Pending, _) => state.pending_table(),
    }
}

/// A line of a table of routes.
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
    /// The names that a name or pattern stands for, in the order of the interfaces.
    fn names(&self, name: &str) -> Vec<&str> {
        let Ok(fits) = pattern(name) else {
            return Vec::new();
        };
        let names = self.interfaces.iter().filter(|i| !i.disabled);
        let names = names.map(|i| i.name.as_str());
        let fitting = |n: &&str| n.parse::<IfName>().is_ok_and(|n| fits.matches(&n));
        names.filter(fitting).collect()
    }

    /// A line for each rule and interface it takes packets from.
    fn rules(&self, single_source_and_group: bool) -> Vec<Row> {
        let mut rows = Vec::new();
        for route in &self.routes {
            let whole =
                route.source != "*" && !format!("{}{}", route.source, route.group).contains('/');
            if whole != single_source_and_group {
                continue;
            }
            let wanted: BTreeSet<&str> = route.to.iter().flat_map(|to| self.names(to)).collect();
            for iif in self.names(&route.from) {
                let oifs = self.interfaces.iter().map(|i| i.name.as_str());
                let oifs = oifs.filter(|name| wanted.contains(name) && *name != iif);
                // What arrived is what went out on the egress that got most. Templates count
                // nothing: their flows do.
                let own = route.paths.iter().filter(|p| whole && p.iif == iif);
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

    /// What the kernel's table would hold: rules of one source and group, and flows.
    fn forwarded(&self) -> Vec<Row> {
        let mut rows = self.rules(true);
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

    /// The memberships the kernel has for us, each with its source, or `*`.
    fn held(&self) -> impl Iterator<Item = (&str, &GroupView)> {
        let own = |g: &&GroupView| g.role == "host" && g.error.is_none();
        self.groups.iter().filter(own).flat_map(|group| {
            let any = (group.mode == "exclude").then_some("*");
            let named = group.sources.iter().map(|s| s.source.as_str());
            let named = named.filter(move |_| any.is_none());
            any.into_iter()
                .chain(named)
                .map(move |source| (source, group))
        })
    }

    fn widest(&self) -> usize {
        let names = self.interfaces.iter().map(|i| i.name.len());
        names.max().unwrap_or_default().max(3)
    }

    fn routes_table(&self, detail: bool) -> String {
        let tables = [
            ("(*,G) Template Rules", self.rules(false)),
            ("(S,G) Rules", self.rules(true)),
            ("Kernel MFC Table", self.forwarded()),
        ];
        let mut out = String::new();
        let width = self.widest();
        for (title, rows) in tables {
            if rows.is_empty() {
                continue;
            }
            let counters = if detail { "   PACKETS      BYTES " } else { "" };
            // Text into a String does not fail.
            let _ = writeln!(out, "{title}_");
            let _ = writeln!(
                out,
                "{:<WIDE$} {:<width$} {counters} OIFS=",
                "ROUTE (S,G)", "IIF"
            );
            for row in rows {
                let _ = write!(out, "{:<WIDE$} {:<width$} ", row.name(), row.iif);
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
            let _ = writeln!(out, "{:<WIDE$} {}", format!("({source}, {group})"), iif);
        };
        if !self.joins.is_empty() {
            let _ = writeln!(
                out,
                "Group Memberships Table_\n{:<WIDE$} {:<16}=",
                "GROUP (S,G)", "IIF"
            );
        }
        for join in &self.joins {
            let source = join.source.map_or("*".into(), |s| s.to_string());
            row(
                &mut out,
                &source,
                &join.group.to_string(),
                &plus(join.interface.as_str()),
            );
        }
        if detail && self.held().next().is_some() {
            let _ = writeln!(out, "Kernel Group Membership Table_");
            for (source, group) in self.held() {
                row(&mut out, source, &group.group, &group.interface);
            }
        }
        out
    }

    fn interfaces_table(&self) -> String {
        let name = self.widest().max("PHYINT".len());
        let mut out = format!(" INDEX {:<name$}  VIF  MIF=\n", "PHYINT");
        let mut next = 0;
        for interface in &self.interfaces {
            let number = match interface.name.as_str() {
                "lo" => "N/A".to_string(),
                _ => {
                    next += 1;
                    // Its number is left free.
                    match interface.disabled {
                        true => "N/A".to_string(),
                        false => (next - 1).to_string(),
                    }
                }
            };
            let (index, called) = (interface.index, &interface.name);
            let _ = writeln!(out, "{index:>6} {called:<name$}  {number:>3}  {number:>3}");
        }
        out
    }

    fn pending_table(&self) -> String {
        if self.pending.is_empty() {
            return String::new();
        }
        let mut out = String::from("Pending Rules_\n");
        let _ = writeln!(out, "{:<WIDE$} WAITING FOR=", "RULE");
        for pending in &self.pending {
            let waiting: Vec<String> = pending.waiting_for.iter().map(|n| plus(n)).collect();
            let what = format!("{} {}", pending.kind, pending.name);
            let _ = writeln!(out, "{what:<WIDE$} {}", waiting.join(" "));
        }
        out
    }
}

/// A pattern as smcroute writes it.
fn plus(name: &str) -> String {
    match name.strip_suffix('*') {
        Some(start) => format!("{start}+"),
        None => name.to_string(),
    }
}

fn json(state: &RouteSnapshot, what: ShowKind) -> Value {
    let rows = |rows: Vec<Row>| rows.iter().map(Row::json).collect::<Value>();
    match what {
        ShowKind::Routes => json!({ "routes": {
            "asm": rows(state.rules(false)),
            "ssm": rows(state.rules(true)),
            "kernel": rows(state.forwarded()),
        }}),
        ShowKind::Groups => {
            let conf = state.joins.iter().map(|join| {
                let source = join.source.map_or("*".into(), |s| s.to_string());
                json!({ "source": source, "group": join.group, "iif": plus(join.interface.as_str()) })
            });
            let kernel = state.held().map(|(source, group)| {
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

    /// Word for word what smcrouted 2.5.6 sends.
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
        assert_eq!(show(&state(), ShowKind::Routes, Form::Plain), expected);
        let detail = show(&state(), ShowKind::Routes, Form::Detail);
        let lines: Vec<&str> = detail.lines().collect();
        assert_eq!(
            lines[1..3],
            [
                "ROUTE (S,G)                                IIF      PACKETS      BYTES  OIFS=",
                "(*, 225.1.2.3)                             eth0           0          0  eth1 eth2"
            ]
        );
        assert!(
            show(&state(), ShowKind::Interfaces, Form::Plain).starts_with(
                " INDEX PHYINT  VIF  MIF=\n     1 lo      N/A  N/A\n     2 peer0     0    0\n"
            )
        );
    }

    #[test]
    fn a_disabled_interface_is_left_out_and_empty_tables_are() {
        let mut state = state();
        state.interfaces[4].disabled = true;
        let shown = show(&state, ShowKind::Routes, Form::Plain);
        assert!(
            shown.contains("eth1\n") && !shown.contains("eth2"),
            "{shown}"
        );
        let shown = show(&state, ShowKind::Interfaces, Form::Plain);
        assert!(
            shown.ends_with("     5 eth1      2    2\n     7 eth2    N/A  N/A\n"),
            "{shown}"
        );
        for what in [ShowKind::Routes, ShowKind::Groups, ShowKind::Pending] {
            for form in [Form::Plain, Form::Detail] {
                assert_eq!(show(&RouteSnapshot::default(), what, form), "", "{what:?}");
            }
        }
    }

    #[test]
    fn words_are_shortened() {
        for (word, what) in [
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
            assert_eq!(ShowKind::named(word), what, "{word:?}");
        }
    }
}
