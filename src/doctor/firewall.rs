//! Reads the rules that `iptables-save` and `nft list ruleset` print. It looks for single rules and
//! policies that matter for multicast, and does not evaluate whole rule sets.

use crate::discovery::askers::FIRST_PORT;

/// What a rule or policy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RuleEffect {
    /// Drops IGMP or MLD that arrives, or everything that no rule accepts, IGMP included.
    DropsIgmp,
    /// Drops multicast packets that arrive.
    DropsMulticast,
    /// Changes the TTL of packets.
    ChangesTtl,
    /// Drops packets that are forwarded and that no rule accepts.
    DropsForwarded,
    /// Drops what arrives and no rule accepts, among it UDP to the ports for answers of discovery.
    DropsAnswers,
    /// Keeps the packets of an internal network of a container engine inside its subnet. A group is
    /// not in the subnet.
    IsolatesNetwork,
}

/// A rule that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallRule {
    /// What it does.
    pub effect: RuleEffect,
    /// The rule as the program prints it.
    pub text: String,
}

/// Returns the rules that matter in the output of `iptables-save`.
pub fn iptables(saved: &str) -> Vec<FirewallRule> {
    let lines: Vec<&str> = saved.lines().map(str::trim).collect();
    let of_chain = |chain: &str| {
        let prefix = format!("-A {chain} ");
        lines.iter().filter(move |line| line.starts_with(&prefix))
    };
    let target = |line: &str, wanted: &[&str]| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let jump = words.iter().position(|word| *word == "-j" || *word == "-g");
        jump.and_then(|at| words.get(at + 1))
            .is_some_and(|found| wanted.contains(found))
    };
    let is_igmp = |line: &str| line.contains("-p igmp") || line.contains("-p 2 ");
    let is_multicast =
        |line: &str| line.contains("-d 224.0.0.0/4") || line.contains("--dst-type MULTICAST");
    let mut found = Vec::new();
    let mut add = |effect, text: &str| {
        found.push(FirewallRule {
            effect,
            text: text.to_owned(),
        });
    };
    let drops = ["DROP", "REJECT"];
    let mut accepts_igmp = false;
    for line in of_chain("INPUT") {
        let is_general = line.split_whitespace().count() == 4;
        accepts_igmp |=
            target(line, &["ACCEPT"]) && (is_igmp(line) || is_multicast(line) || is_general);
        if accepts_igmp || !target(line, &drops) {
            continue;
        }
        if is_igmp(line) || is_general {
            add(RuleEffect::DropsIgmp, line);
        } else if is_multicast(line) {
            add(RuleEffect::DropsMulticast, line);
        }
    }
    // Docker accepts what stays on a bridge: -i docker0 -o docker0.
    let stays_on_bridge = |line: &str| {
        let word_after = |flag: &str| {
            let mut words = line.split_whitespace().skip_while(|word| *word != flag);
            words.nth(1)
        };
        word_after("-i").is_some() && word_after("-i") == word_after("-o")
    };
    let accepts_on_bridge = lines
        .iter()
        .any(|line| target(line, &["ACCEPT"]) && stays_on_bridge(line));
    for line in &lines {
        let isolates =
            line.starts_with("-A DOCKER-ISOLATION") || line.starts_with("-A DOCKER-INTERNAL");
        if isolates && line.contains("! -d ") && target(line, &["DROP"]) {
            add(RuleEffect::IsolatesNetwork, line);
        }
        if line.starts_with(":INPUT DROP") && !accepts_igmp {
            add(RuleEffect::DropsIgmp, line);
        }
        if line.starts_with(":FORWARD DROP") && !accepts_on_bridge {
            add(RuleEffect::DropsForwarded, line);
        }
        if target(line, &["TTL", "HL"]) {
            add(RuleEffect::ChangesTtl, line);
        }
    }
    found
}

/// Returns the rules that matter in the output of `nft list ruleset`.
pub fn nft(ruleset: &str) -> Vec<FirewallRule> {
    let mut found = Vec::new();
    let mut hook = None;
    let mut policy_drops: Option<String> = None;
    let mut accepts_igmp = false;
    for line in ruleset.lines().map(str::trim) {
        let has = |words: &[&str]| words.iter().any(|word| line.contains(word));
        let mut add = |effect| {
            found.push(FirewallRule {
                effect,
                text: line.to_owned(),
            });
        };
        if line.starts_with("chain ") {
            (hook, policy_drops, accepts_igmp) = (None, None, false);
        } else if let Some((_, rest)) = line.split_once(" hook ") {
            hook = rest.split_whitespace().next();
            if line.contains("policy drop") {
                match hook {
                    Some("forward") => add(RuleEffect::DropsForwarded),
                    Some("input") => policy_drops = Some(line.to_owned()),
                    _ => {}
                }
            }
        } else if line == "}" {
            if let Some(text) = policy_drops.take().filter(|_| !accepts_igmp) {
                found.push(FirewallRule {
                    effect: RuleEffect::DropsIgmp,
                    text,
                });
            }
            hook = None;
        } else if has(&["ip ttl set", "ip6 hoplimit set"]) {
            add(RuleEffect::ChangesTtl);
        } else if matches!(hook, Some("input" | "prerouting")) {
            let is_igmp = has(&["ip protocol igmp", "meta l4proto igmp", "ip protocol 2"]);
            let is_multicast = has(&["ip daddr 224.0.0.0/4", "pkttype multicast"]);
            let is_general = matches!(line, "drop" | "reject" | "accept");
            accepts_igmp |= line.ends_with("accept") && (is_igmp || is_multicast || is_general);
            if has(&["drop", "reject"]) && !accepts_igmp {
                if is_igmp || is_general {
                    add(RuleEffect::DropsIgmp);
                } else if is_multicast {
                    add(RuleEffect::DropsMulticast);
                }
            }
        }
    }
    found
}

/// Returns the rule or policy that drops datagrams to the ports for answers of discovery, in the
/// output of either program. A rule that names the first of these ports is taken to accept them.
pub fn dropped_answers(rules: &str) -> Option<FirewallRule> {
    if rules.contains(&FIRST_PORT.to_string()) {
        return None;
    }
    let drops = |line: &&str| {
        let is_policy = line.contains("hook input") && line.contains("policy drop");
        let is_rule = ["-A INPUT -j DROP", "-A INPUT -j REJECT", ":INPUT DROP"];
        is_policy || is_rule.iter().any(|start| line.starts_with(start))
    };
    let text = rules.lines().map(str::trim).find(drops)?;
    Some(FirewallRule {
        effect: RuleEffect::DropsAnswers,
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effects(rules: &[FirewallRule]) -> Vec<RuleEffect> {
        rules.iter().map(|rule| rule.effect).collect()
    }

    #[test]
    fn iptables_rules_that_matter_are_found() {
        for (rules, expected) in [
            (":INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]", vec![]),
            (":INPUT DROP [3:120]", vec![RuleEffect::DropsIgmp]),
            (":INPUT DROP [3:120]\n-A INPUT -p igmp -j ACCEPT", vec![]),
            (":FORWARD DROP [0:0]", vec![RuleEffect::DropsForwarded]),
            (
                ":FORWARD DROP [0:0]\n-A FORWARD -i docker0 -o docker0 -j ACCEPT",
                vec![],
            ),
            (
                "-A DOCKER-ISOLATION-STAGE-1 ! -s 172.30.0.0/24 -o br-1 -j DROP\n\
                 -A DOCKER-ISOLATION-STAGE-1 ! -d 172.30.0.0/24 -i br-1 -j DROP",
                vec![RuleEffect::IsolatesNetwork],
            ),
            (
                ":INPUT DROP [3:120]\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT",
                vec![RuleEffect::DropsIgmp],
            ),
            (
                "-A INPUT -i lo -j ACCEPT\n-A INPUT -p igmp -j DROP",
                vec![RuleEffect::DropsIgmp],
            ),
            ("-A INPUT -p igmp -j ACCEPT\n-A INPUT -j REJECT", vec![]),
            ("-A INPUT -j DROP", vec![RuleEffect::DropsIgmp]),
            (
                "-A INPUT -d 224.0.0.0/4 -j DROP",
                vec![RuleEffect::DropsMulticast],
            ),
            (
                "-A PREROUTING -d 224.0.0.0/4 -j TTL --ttl-inc 1",
                vec![RuleEffect::ChangesTtl],
            ),
            (":FORWARD DROP [0:0]", vec![RuleEffect::DropsForwarded]),
            ("-A DOCKER -p igmp -j DROP", vec![]),
        ] {
            assert_eq!(effects(&iptables(rules)), expected, "{rules}");
        }
    }

    #[test]
    fn closed_input_drops_answers_unless_their_ports_are_accepted() {
        let closed = "chain input {\n\ttype filter hook input priority filter; policy drop;\n";
        for (rules, drops) in [
            (closed.to_string(), true),
            (format!("{closed}\tudp dport 61440-61951 accept\n"), false),
            (":INPUT DROP [3:120]".into(), true),
            (
                "-A INPUT -j REJECT --reject-with icmp-port-unreachable".into(),
                true,
            ),
            (
                ":INPUT DROP [0:0]\n-A INPUT -p udp --dport 61440:61951 -j ACCEPT".into(),
                false,
            ),
            (":INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]".into(), false),
        ] {
            assert_eq!(dropped_answers(&rules).is_some(), drops, "{rules}");
        }
    }

    #[test]
    fn nft_rules_that_matter_are_found() {
        let chain = |head: &str, rules: &str| {
            format!(
                "table inet filter {{\n\tchain x {{\n\t\ttype filter {head}\n\t\t{rules}\n\t}}\n}}\n"
            )
        };
        let input = "hook input priority filter; policy accept;";
        let closed = "hook input priority filter; policy drop;";
        for (ruleset, expected) in [
            (chain(input, ""), vec![]),
            (
                chain(closed, "tcp dport 22 accept"),
                vec![RuleEffect::DropsIgmp],
            ),
            (chain(closed, "ip protocol igmp accept"), vec![]),
            (
                chain(input, "ip protocol igmp drop"),
                vec![RuleEffect::DropsIgmp],
            ),
            (
                chain(input, "ip daddr 224.0.0.0/4 counter packets 0 bytes 0 drop"),
                vec![RuleEffect::DropsMulticast],
            ),
            (
                chain(
                    "hook prerouting priority mangle; policy accept;",
                    "ip ttl set 64",
                ),
                vec![RuleEffect::ChangesTtl],
            ),
            (
                chain("hook forward priority filter; policy drop;", ""),
                vec![RuleEffect::DropsForwarded],
            ),
            (
                chain(
                    "hook output priority filter; policy accept;",
                    "ip protocol igmp drop",
                ),
                vec![],
            ),
        ] {
            assert_eq!(effects(&nft(&ruleset)), expected, "{ruleset}");
        }
    }
}
