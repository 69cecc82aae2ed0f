//! The parser for `igmpproxy.conf`, with the meaning that igmpproxy 0.3 gives to it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::model::TtlThreshold;

/// Maximum number of `phyint` entries.
pub const MAX_INTERFACES: usize = 1024;
/// Maximum number of networks of one `phyint` entry.
pub const MAX_NETWORKS: usize = 1024;

/// The role of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterfaceRole {
    /// Streams arrive on it.
    Upstream,
    /// It has members.
    Downstream,
    /// igmpproxy ignores it.
    Disabled,
}

/// A `phyint` entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyInterface {
    /// The line of the name, counted from 1.
    pub line: usize,
    /// The name, which may be that of an address alias, such as `eth0:1`.
    pub name: String,
    /// The role.
    pub role: InterfaceRole,
    /// The bandwidth limit, in Kbit/s; 0 for none.
    pub ratelimit: u32,
    /// Packets leave only if they arrived with a higher TTL.
    pub threshold: TtlThreshold,
    /// Networks of sources and hosts, in addition to those of the interface.
    pub altnets: Vec<Ipv4Net>,
    /// The groups that may be joined; empty for all.
    pub whitelist: Vec<Ipv4Net>,
    /// The groups that may not be joined. Newer releases than 0.3 have it.
    pub blacklist: Vec<Ipv4Net>,
}

/// The content of an `igmpproxy.conf`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyConf {
    /// The interfaces, in the order of the file.
    pub interfaces: Vec<ProxyInterface>,
    /// Leaves are passed on as soon as the last known host leaves.
    pub quickleave: bool,
    /// Interfaces without an entry are downstream.
    pub defaultdown: bool,
    /// Descriptions of words that have no counterpart here, each with its line.
    pub notes: Vec<(usize, String)>,
}

/// The reason why a file is not a valid `igmpproxy.conf`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {cause}")]
pub struct ProxyConfError {
    /// The line, counted from 1.
    pub line: usize,
    /// The description.
    pub cause: String,
}

/// Returns the words of a file, each with its line. `#` starts a comment.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().flat_map(|(n, line)| {
        let text = line.split('#').next().unwrap_or_default();
        text.split_whitespace().map(move |word| (n + 1, word))
    })
}

/// Returns true if `text` is in the format of `igmpproxy.conf`: it has `phyint` entries with words
/// that only igmpproxy knows, and no line of an `smcroute.conf`.
pub fn is_igmpproxy_format(text: &str) -> bool {
    let starts_line = |names: &[&str]| {
        let lines = text.lines().map(|line| line.split_whitespace().next());
        lines.flatten().any(|word| names.contains(&word))
    };
    let own_words = ["upstream", "downstream", "disabled", "altnet", "whitelist"];
    starts_line(&["phyint"])
        && !starts_line(&["mroute", "mgroup", "ssmgroup", "include"])
        && words(text).any(|(_, word)| own_words.contains(&word))
}

/// Parses `text`. Like igmpproxy, refuses the whole file for one invalid word.
///
/// # Errors
/// Returns the first invalid word, with its line.
pub fn parse(text: &str) -> Result<ProxyConf, ProxyConfError> {
    let mut conf = ProxyConf::default();
    let mut words = words(text).peekable();
    let error = |line: usize, cause: String| ProxyConfError { line, cause };
    while let Some((line, word)) = words.next() {
        match word {
            "quickleave" => conf.quickleave = true,
            "defaultdown" => conf.defaultdown = true,
            // New interfaces are always noticed here.
            "rescanvif" => {}
            "hashtablesize" => {
                words.next();
            }
            "chroot" | "user" => {
                let value = words.next().map_or("", |(_, value)| value);
                let note =
                    format!("{word} {value} is dropped: set the user in the unit of mcastor");
                conf.notes.push((line, note));
            }
            "phyint" => {
                let Some((line, name)) = words.next() else {
                    return Err(error(line, "phyint: no interface".into()));
                };
                if conf.interfaces.len() >= MAX_INTERFACES {
                    return Err(error(
                        line,
                        format!("more than {MAX_INTERFACES} interfaces"),
                    ));
                }
                let mut interface = ProxyInterface {
                    line,
                    name: name.into(),
                    role: match conf.defaultdown {
                        true => InterfaceRole::Downstream,
                        false => InterfaceRole::Disabled,
                    },
                    ratelimit: 0,
                    threshold: TtlThreshold::MIN,
                    altnets: Vec::new(),
                    whitelist: Vec::new(),
                    blacklist: Vec::new(),
                };
                while let Some((line, word)) = words.next_if(|(_, word)| is_option(word)) {
                    let mut value = || {
                        let value = words.next().map(|(_, value)| value);
                        value.ok_or_else(|| error(line, format!("{word} needs a value")))
                    };
                    match word {
                        "upstream" => interface.role = InterfaceRole::Upstream,
                        "downstream" => interface.role = InterfaceRole::Downstream,
                        "disabled" => interface.role = InterfaceRole::Disabled,
                        "ratelimit" => {
                            let text = value()?;
                            let invalid = format!("ratelimit {text} is not a number");
                            interface.ratelimit = text.parse().map_err(|_| error(line, invalid))?;
                        }
                        "threshold" => {
                            let text = value()?;
                            let threshold = text.parse().ok().and_then(TtlThreshold::new);
                            let invalid = format!("threshold {text} is not a number from 1 to 255");
                            interface.threshold = threshold.ok_or_else(|| error(line, invalid))?;
                        }
                        list => {
                            let text = value()?;
                            let net = parse_network(text).map_err(|e| error(line, e))?;
                            if list != "altnet" && net.trunc() != net {
                                let note = format!(
                                    "{list} {text} is read as {}; igmpproxy 0.3 matches no group \
                                     with it",
                                    net.trunc()
                                );
                                conf.notes.push((line, note));
                            }
                            let nets = match list {
                                "altnet" => &mut interface.altnets,
                                "blacklist" => &mut interface.blacklist,
                                _ => &mut interface.whitelist,
                            };
                            if nets.len() >= MAX_NETWORKS {
                                let cause = format!("more than {MAX_NETWORKS} networks");
                                return Err(error(line, cause));
                            }
                            nets.push(net.trunc());
                        }
                    }
                }
                conf.interfaces.push(interface);
            }
            other => return Err(error(line, format!("unknown word \"{other}\""))),
        }
    }
    Ok(conf)
}

fn is_option(word: &str) -> bool {
    [
        "upstream",
        "downstream",
        "disabled",
        "ratelimit",
        "threshold",
        "altnet",
        "whitelist",
        "blacklist",
    ]
    .contains(&word)
}

/// Parses a network. Bits beyond the prefix may be set.
fn parse_network(text: &str) -> Result<Ipv4Net, String> {
    let (address, len) = text.split_once('/').unwrap_or((text, "32"));
    let address: Ipv4Addr = address
        .parse()
        .map_err(|_| format!("{text} is not an IPv4 network"))?;
    let len = len.parse().ok();
    let net = len.and_then(|len| Ipv4Net::new(address, len).ok());
    net.ok_or_else(|| format!("{text}: the prefix length must be 0 to 32"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_is_distinguished_from_smcroute_and_toml() {
        for (text, is_igmpproxy) in [
            ("quickleave\nphyint eth0 upstream\n", true),
            ("phyint eth0\n  downstream threshold 1\n", true),
            ("# phyint eth0 upstream\n", false),
            ("phyint eth0 enable ttl-threshold 2\n", false),
            (
                "phyint eth0 disabled\nmroute from eth0 group 225.1.2.3 to eth1\n",
                false,
            ),
            ("[[proxy]]\nupstream = [\"eth0\"]\n", false),
            ("", false),
        ] {
            assert_eq!(is_igmpproxy_format(text), is_igmpproxy, "{text}");
        }
    }

    #[test]
    fn options_may_stand_on_lines_of_their_own() {
        let conf = parse(
            "quickleave # fast\n\nphyint eth0 upstream ratelimit 0 threshold 1\n\
             \taltnet 10.1.2.3/8 \n\taltnet 192.168.0.9\nphyint eth1 ratelimit 500\n\
             threshold 3 downstream whitelist 239.1.2.3/24 whitelist 224.0.0.0/4\n\
             phyint eth2 rescanvif defaultdown phyint eth3\n",
        );
        let conf = conf.unwrap();
        assert!(conf.quickleave && conf.defaultdown);
        let nets =
            |nets: &[Ipv4Net]| -> Vec<String> { nets.iter().map(|n| n.to_string()).collect() };
        let [eth0, eth1, eth2, eth3] = &conf.interfaces[..] else {
            panic!("{conf:?}");
        };
        assert_eq!((eth0.line, eth0.role), (3, InterfaceRole::Upstream));
        assert_eq!(nets(&eth0.altnets), ["10.0.0.0/8", "192.168.0.9/32"]);
        assert_eq!(eth1.role, InterfaceRole::Downstream);
        assert_eq!((eth1.ratelimit, eth1.threshold.get()), (500, 3));
        assert_eq!(nets(&eth1.whitelist), ["239.1.2.0/24", "224.0.0.0/4"]);
        assert_eq!(eth2.role, InterfaceRole::Disabled);
        assert_eq!(eth3.role, InterfaceRole::Downstream);
    }

    #[test]
    fn invalid_words_are_refused_with_their_line() {
        for (text, expected) in [
            ("phyint", "line 1: phyint: no interface"),
            ("phyint eth0 upstream\nfoo", "line 2: unknown word \"foo\""),
            (
                "phyint eth0 threshold 0",
                "line 1: threshold 0 is not a number from 1 to 255",
            ),
            ("phyint eth0\nthreshold", "line 2: threshold needs a value"),
            (
                "phyint eth0 ratelimit -1",
                "line 1: ratelimit -1 is not a number",
            ),
            (
                "phyint eth0 altnet 10.0.0/8",
                "line 1: 10.0.0/8 is not an IPv4 network",
            ),
            (
                "phyint eth0 whitelist 239.0.0.0/33",
                "the prefix length must be 0 to 32",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
        }
    }
}
