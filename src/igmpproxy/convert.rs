//! Conversion of `igmpproxy.conf` to TOML settings, for `mcastor convert --from igmpproxy`.

use std::fmt::Write;

use ipnet::Ipv4Net;

use super::conf::{InterfaceRole, ProxyConf, ProxyInterface};
use crate::model::IfPattern;
use crate::smcroute::toml_text::{comment, list, quoted};

/// Largest number of upstream or downstream names of a proxy.
const MAX_NAMES: usize = 64;

/// Largest number of proxies that share an upstream interface.
const MAX_PROXIES: usize = crate::model::MAX_PROXIES;

/// The result of a conversion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversion {
    /// The settings.
    pub toml: String,
    /// What the settings do not have, or have in another form; some with a line of the file.
    pub notes: Vec<String>,
}

/// Converts `conf` to TOML settings with the same effect. `subnets` returns the subnets of an
/// interface of this machine; none if it does not exist.
///
/// # Errors
/// Returns the reason why igmpproxy would not start with this file.
pub fn convert(
    conf: &ProxyConf,
    subnets: impl Fn(&str) -> Vec<Ipv4Net>,
) -> Result<Conversion, String> {
    let mut notes: Vec<String> = Vec::new();
    for (line, note) in &conf.notes {
        notes.push(format!("line {line}: {note}"));
    }
    let mut out = String::new();
    comment(&mut out, " Converted from igmpproxy.conf.");
    let mut usable: Vec<&ProxyInterface> = Vec::new();
    for interface in &conf.interfaces {
        let (line, name) = (interface.line, &interface.name);
        if interface.ratelimit > 0 {
            let limit = interface.ratelimit;
            notes.push(format!(
                "line {line}: ratelimit {limit} of {name} is dropped; `bandwidth` of an [[interface]] \
                 limits what leaves there"
            ));
        }
        // Aliases such as eth0:1 have no colon in their interface's name.
        match name.parse::<IfPattern>() {
            // igmpproxy ignores the loopback interface, and all entries of a name but the first.
            Ok(_) if name == "lo" || usable.iter().any(|i| i.name == *name) => {}
            Ok(pattern) if !pattern.is_pattern() && !name.contains(':') => usable.push(interface),
            _ => notes.push(format!(
                "line {line}: {name} is dropped: it is not the name of an interface; all addresses \
                 of an interface are used"
            )),
        }
    }
    let with_role = |role: InterfaceRole| usable.iter().copied().filter(move |i| i.role == role);
    let upstreams: Vec<&ProxyInterface> = with_role(InterfaceRole::Upstream).collect();
    if upstreams.is_empty() {
        return Err("no phyint is upstream".into());
    }
    if upstreams.len() > MAX_NAMES {
        return Err(format!("more than {MAX_NAMES} interfaces are upstream"));
    }
    let downstreams: Vec<&ProxyInterface> = with_role(InterfaceRole::Downstream).collect();
    if downstreams.is_empty() && !conf.defaultdown {
        return Err("no phyint is downstream".into());
    }
    let sources = Sources::of_upstreams(&upstreams, &subnets, &mut notes);
    // igmpproxy forwards nothing between downstream interfaces, and neither do separate proxies. A
    // pattern must not overlap with another proxy.
    let is_separate = !conf.defaultdown && downstreams.len() <= MAX_PROXIES;
    let parts: Vec<Vec<&ProxyInterface>> = match is_separate {
        true => downstreams.iter().map(|i| vec![*i]).collect(),
        false => {
            notes.push(
                "all downstream interfaces are in one [[proxy]]: streams of hosts behind one of \
                 them are also forwarded to members behind the others"
                    .into(),
            );
            let parts = downstreams.chunks(MAX_NAMES - 1);
            let parts: Vec<Vec<&ProxyInterface>> = parts.map(<[_]>::to_vec).collect();
            match conf.defaultdown {
                // The pattern matches the others.
                true => vec![parts.into_iter().next().unwrap_or_default()],
                false => parts,
            }
        }
    };
    for part in &parts {
        let names: Vec<&str> = part.iter().map(|i| i.name.as_str()).collect();
        let mut downstream: Vec<String> = names.iter().map(ToString::to_string).collect();
        if conf.defaultdown {
            downstream.push("*".into());
        }
        let Some(groups) = groups(&upstreams, part, conf.defaultdown, &mut notes) else {
            continue;
        };
        out.push_str("\n[[proxy]]\n");
        if parts.len() > 1 {
            let _ = writeln!(out, "name = {}", quoted(&format!("igmpproxy {}", names[0])));
        }
        let upstream: Vec<&str> = upstreams.iter().map(|i| i.name.as_str()).collect();
        let _ = writeln!(out, "upstream = {}", list(&upstream));
        let _ = writeln!(out, "downstream = {}", list(&downstream));
        comment(
            &mut out,
            " igmpproxy forwards nothing from hosts to the upstream interface.",
        );
        out.push_str("upward = false\n");
        if conf.quickleave {
            out.push_str("fast_leave = true\n");
        }
        if !groups.is_empty() {
            comment(&mut out, " whitelist");
            let _ = writeln!(out, "groups = {}", list(&groups));
        }
        sources.write(&mut out);
        comment(
            &mut out,
            " igmpproxy handles IPv4 only. Delete ff00::/8 to forward IPv6 too.",
        );
        let denied = part.iter().chain(&upstreams).flat_map(|i| &i.blacklist);
        let denied = denied.filter(|net| ALL_GROUPS.contains(*net));
        let denied: Vec<String> = std::iter::once("ff00::/8".to_string())
            .chain(denied.map(ToString::to_string))
            .collect();
        let _ = writeln!(out, "deny_groups = {}", list(&denied));
        if part.iter().any(|i| !i.altnets.is_empty()) {
            comment(
                &mut out,
                " altnet: hosts may be outside the subnet of the interface.",
            );
            out.push_str("header_checks = \"lenient\"\n");
        }
    }
    for interface in &usable {
        let is_disabled = interface.role == InterfaceRole::Disabled;
        let has_threshold = interface.threshold.get() > 1 && !is_disabled;
        if !is_disabled && !has_threshold {
            continue;
        }
        let _ = write!(out, "\n[[interface]]\nname = {}\n", quoted(&interface.name));
        match is_disabled {
            true => out.push_str("enabled = false\n"),
            false => {
                let _ = writeln!(out, "ttl_threshold = {}", interface.threshold.get());
            }
        }
    }
    Ok(Conversion { toml: out, notes })
}

/// The sources that the upstream interfaces accept.
struct Sources {
    /// Empty for all sources.
    nets: Vec<Ipv4Net>,
}

impl Sources {
    /// igmpproxy accepts the subnets of the upstream interfaces and their altnets. Without an
    /// altnet, all sources are accepted here, because the subnet may change.
    fn of_upstreams(
        upstreams: &[&ProxyInterface],
        subnets: &impl Fn(&str) -> Vec<Ipv4Net>,
        notes: &mut Vec<String>,
    ) -> Self {
        let mut nets = Vec::new();
        for upstream in upstreams {
            let name = &upstream.name;
            if upstream.altnets.is_empty() {
                notes.push(format!(
                    "{name} has no altnet: igmpproxy accepts only sources in its subnet, the \
                     settings accept all; set `sources` to limit them"
                ));
                return Self { nets: Vec::new() };
            }
            nets.extend(&upstream.altnets);
            let own = subnets(name);
            if own.is_empty() {
                notes.push(format!(
                    "{name} has no address here: add its subnet to `sources` if senders are in it"
                ));
            }
            nets.extend(own);
        }
        let nets = match nets.iter().any(|net| net.prefix_len() == 0) {
            true => Vec::new(),
            false => Ipv4Net::aggregate(&nets),
        };
        Self { nets }
    }

    fn write(&self, out: &mut String) {
        if !self.nets.is_empty() {
            comment(out, " altnet, and the subnet of the upstream interface");
            let _ = writeln!(out, "sources = {}", list(&self.nets));
        }
    }
}

/// All groups.
const ALL_GROUPS: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(224, 0, 0, 0), 4);

/// Returns the groups that hosts behind `downstreams` may join and that are joined upstream; empty
/// for all, `None` for none.
fn groups(
    upstreams: &[&ProxyInterface],
    downstreams: &[&ProxyInterface],
    is_default: bool,
    notes: &mut Vec<String>,
) -> Option<Vec<Ipv4Net>> {
    let allowed = |interfaces: &[&ProxyInterface], notes: &mut Vec<String>| -> Vec<Ipv4Net> {
        if interfaces.iter().any(|i| i.whitelist.is_empty()) {
            return vec![ALL_GROUPS];
        }
        let mut nets: Vec<Ipv4Net> = Vec::new();
        for interface in interfaces {
            for net in &interface.whitelist {
                if net.contains(&ALL_GROUPS) {
                    nets.push(ALL_GROUPS);
                } else if ALL_GROUPS.contains(net) {
                    nets.push(*net);
                } else {
                    let (line, name) = (interface.line, &interface.name);
                    notes.push(format!(
                        "line {line}: whitelist {net} of {name} is dropped: it has no multicast \
                         group"
                    ));
                }
            }
        }
        Ipv4Net::aggregate(&nets)
    };
    let down = match is_default {
        true => {
            for interface in downstreams.iter().filter(|i| !i.whitelist.is_empty()) {
                let (line, name) = (interface.line, &interface.name);
                notes.push(format!(
                    "line {line}: the whitelist of {name} is dropped: with defaultdown all \
                     downstream interfaces are in one [[proxy]]; set its `groups`"
                ));
            }
            vec![ALL_GROUPS]
        }
        false => allowed(downstreams, notes),
    };
    let up = allowed(upstreams, notes);
    let mut both = Vec::new();
    for a in &down {
        for b in &up {
            if a.contains(b) {
                both.push(*b);
            } else if b.contains(a) {
                both.push(*a);
            }
        }
    }
    let both = Ipv4Net::aggregate(&both);
    if both.is_empty() {
        let names: Vec<&str> = downstreams.iter().map(|i| i.name.as_str()).collect();
        let names = names.join(", ");
        notes.push(format!(
            "{names}: the whitelists permit no group; no [[proxy]] is written"
        ));
        return None;
    }
    Some(if both == [ALL_GROUPS] {
        Vec::new()
    } else {
        both
    })
}

#[cfg(test)]
mod tests {
    use super::super::conf::parse;
    use super::*;

    fn converted(text: &str) -> Conversion {
        let subnets = |name: &str| match name {
            "eth0" => vec!["192.0.2.0/24".parse().unwrap()],
            _ => Vec::new(),
        };
        convert(&parse(text).unwrap(), subnets).unwrap()
    }

    #[test]
    fn every_option_is_converted_or_noted() {
        let conversion = converted(
            "quickleave\nphyint eth0 upstream ratelimit 0 threshold 1 altnet 10.1.2.3/8\n\
             whitelist 239.0.0.0/8\n\
             phyint eth1 downstream ratelimit 500 threshold 3 whitelist 239.1.2.3/24\n\
             phyint eth2 downstream whitelist 224.0.0.0/4\naltnet 10.9.0.0/16 blacklist 239.255.255.250\n\
             phyint eth3 disabled\nphyint eth0:1 disabled\nphyint lo disabled\n",
        );
        let expected = r#"# Converted from igmpproxy.conf.

[[proxy]]
name = "igmpproxy eth1"
upstream = ["eth0"]
downstream = ["eth1"]
# igmpproxy forwards nothing from hosts to the upstream interface.
upward = false
fast_leave = true
# whitelist
groups = ["239.1.2.0/24"]
# altnet, and the subnet of the upstream interface
sources = ["10.0.0.0/8", "192.0.2.0/24"]
# igmpproxy handles IPv4 only. Delete ff00::/8 to forward IPv6 too.
deny_groups = ["ff00::/8"]

[[proxy]]
name = "igmpproxy eth2"
upstream = ["eth0"]
downstream = ["eth2"]
# igmpproxy forwards nothing from hosts to the upstream interface.
upward = false
fast_leave = true
# whitelist
groups = ["239.0.0.0/8"]
# altnet, and the subnet of the upstream interface
sources = ["10.0.0.0/8", "192.0.2.0/24"]
# igmpproxy handles IPv4 only. Delete ff00::/8 to forward IPv6 too.
deny_groups = ["ff00::/8", "239.255.255.250/32"]
# altnet: hosts may be outside the subnet of the interface.
header_checks = "lenient"

[[interface]]
name = "eth1"
ttl_threshold = 3

[[interface]]
name = "eth3"
enabled = false
"#;
        assert_eq!(conversion.toml, expected);
        let notes = conversion.notes.join("\n");
        assert_eq!(conversion.notes.len(), 3, "{notes}");
        assert!(
            notes.contains("239.1.2.3/24 is read as 239.1.2.0/24"),
            "{notes}"
        );
        assert!(
            notes.contains("ratelimit 500 of eth1 is dropped"),
            "{notes}"
        );
        assert!(notes.contains("eth0:1 is dropped"), "{notes}");
    }

    #[test]
    fn defaultdown_becomes_a_pattern() {
        let conversion = converted(
            "defaultdown\nphyint eth0 upstream altnet 0.0.0.0/0\nphyint eth1 whitelist 239.0.0.0/8\n",
        );
        assert!(
            conversion.toml.contains("downstream = [\"eth1\", \"*\"]"),
            "{}",
            conversion.toml
        );
        assert!(!conversion.toml.contains("groups = [\"239"));
        assert!(!conversion.toml.contains("sources"));
        assert!(
            conversion
                .notes
                .iter()
                .any(|n| n.contains("whitelist of eth1 is dropped"))
        );
    }

    #[test]
    fn files_that_igmpproxy_refuses_are_refused() {
        let refused = |text: &str| convert(&parse(text).unwrap(), |_| Vec::new()).unwrap_err();
        assert_eq!(refused("phyint eth0 downstream"), "no phyint is upstream");
        assert_eq!(refused("phyint eth0 upstream"), "no phyint is downstream");
    }
}
