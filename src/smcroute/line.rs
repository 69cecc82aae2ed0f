//! The parser for one line of `smcroute.conf`.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::rule::{MAX_EGRESSES, MAX_JOINED_GROUPS};
use crate::model::{GroupPrefix, IfPattern, Source, SourcePrefix, TtlPolicy, TtlThreshold};

/// A directive of `smcroute.conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directive {
    /// `phyint IFNAME [enable|disable] [mrdisc] [ttl-threshold N]`
    Phyint(Phyint),
    /// `mgroup from IIF [source ADDR[/LEN]] group GROUP[/LEN]`
    Mgroup(Mgroup),
    /// `mroute from IIF [source ADDR[/LEN]] group GROUP[/LEN] [to OIF …]`
    Mroute(Mroute),
    /// `include PATH`
    Include(String),
}

/// A `phyint` directive: the options of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phyint {
    /// The interfaces.
    pub name: IfPattern,
    /// `Some(true)` for `disable`, `Some(false)` for `enable`, `None` if the line has neither.
    pub disabled: Option<bool>,
    /// Sends router advertisements (RFC 4286).
    pub mrdisc: bool,
    /// The TTL threshold for packets that leave the interface.
    pub ttl_threshold: Option<TtlThreshold>,
}

/// An `mgroup` directive: groups to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mgroup {
    /// The interfaces on which the groups are joined.
    pub from: IfPattern,
    /// The sources to join; empty for any source. A prefix is expanded to its addresses.
    pub sources: Vec<Source>,
    /// The groups.
    pub group: GroupPrefix,
}

/// An `mroute` directive: a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mroute {
    /// The ingress interfaces.
    pub from: IfPattern,
    /// The sources.
    pub source: SourcePrefix,
    /// Sources that the route excludes.
    pub except: Vec<SourcePrefix>,
    /// The groups.
    pub group: GroupPrefix,
    /// The egress interfaces. If there are none, the route drops matching packets.
    pub to: Vec<IfPattern>,
    /// How the TTL of forwarded packets is set.
    pub ttl: TtlPolicy,
}

/// The result of parsing a valid line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedLine {
    /// The directive; `None` for an empty line.
    pub directive: Option<Directive>,
    /// The text after `#`.
    pub comment: Option<String>,
    /// Descriptions of valid but suspicious input, such as unknown words.
    pub notes: Vec<String>,
}

/// Maximum length of a line, in bytes.
pub const MAX_LINE_LEN: usize = 8192;

/// Parses one line. `strict` refuses our additions to the format, and words that smcroute ignores.
///
/// # Errors
/// Returns the reason, without file and line number.
pub fn read(line: &str, strict: bool) -> Result<ParsedLine, String> {
    if line.len() > MAX_LINE_LEN {
        return Err(format!("longer than {MAX_LINE_LEN} bytes"));
    }
    if let Some(bad) = line.chars().find(|c| c.is_control() && *c != '\t') {
        return Err(format!("contains the control character {bad:?}"));
    }
    let (text, comment) = match line.split_once('#') {
        Some((text, comment)) => (text, Some(comment.trim_end().to_string())),
        None => (line, None),
    };
    let mut parsed = ParsedLine {
        directive: None,
        comment,
        notes: Vec::new(),
    };
    let mut words = text.split_whitespace();
    let Some(first) = words.next() else {
        return Ok(parsed);
    };
    let words: Vec<&str> = words.collect();
    let notes = &mut parsed.notes;
    parsed.directive = Some(match first {
        "phyint" => Directive::Phyint(phyint(&words, notes)?),
        "mgroup" => Directive::Mgroup(mgroup(&words, notes)?),
        "mroute" => Directive::Mroute(mroute(&words, strict, notes)?),
        "include" => match words[..] {
            [] => return Err("include: no path".into()),
            [path] => Directive::Include(path.into()),
            _ => return Err("include: only one path per line is allowed".into()),
        },
        other => {
            return Err(format!(
                "unknown directive {other:?}; expected phyint, mgroup, mroute or include"
            ));
        }
    });
    if strict && let Some(note) = parsed.notes.first() {
        return Err(note.clone());
    }
    // Added after the check for `strict`, because smcroute supports routes without an egress.
    if let Some(Directive::Mroute(mroute)) = &parsed.directive
        && mroute.to.is_empty()
    {
        let note = "mroute: no egress interface; matching packets are dropped";
        parsed.notes.push(note.into());
    }
    Ok(parsed)
}

/// Parses an interface name or pattern. `eth+` matches all names that start with `eth`.
///
/// # Errors
/// Returns the reason why no interface can have this name.
pub fn pattern(text: &str) -> Result<IfPattern, String> {
    if text.contains(',') {
        return Err(format!(
            "{text:?} is not an interface name; separate names with spaces, not commas"
        ));
    }
    let text = match text.strip_suffix('+') {
        Some(start) => format!("{start}*"),
        None => text.to_string(),
    };
    text.parse().map_err(|e| format!("{e}"))
}

fn phyint(words: &[&str], notes: &mut Vec<String>) -> Result<Phyint, String> {
    let Some((name, words)) = words.split_first() else {
        return Err("phyint: no interface".into());
    };
    let mut phyint = Phyint {
        name: pattern(name).map_err(|e| format!("phyint: {e}"))?,
        disabled: None,
        mrdisc: false,
        ttl_threshold: None,
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "enable" => phyint.disabled = Some(false),
            "disable" => phyint.disabled = Some(true),
            "mrdisc" => phyint.mrdisc = true,
            "ttl-threshold" => {
                let Some(number) = words.next() else {
                    return Err("phyint: ttl-threshold needs a number from 1 to 255".into());
                };
                let threshold = number.parse().ok().and_then(TtlThreshold::new);
                phyint.ttl_threshold = Some(threshold.ok_or_else(|| {
                    format!("phyint: ttl-threshold {number} is not a number from 1 to 255")
                })?);
            }
            other => notes.push(ignored("phyint", other)),
        }
    }
    Ok(phyint)
}

fn ignored(directive: &str, word: &str) -> String {
    format!("{directive}: {word:?} is unknown and ignored")
}

/// The values of an `mgroup` or `mroute` line, by keyword.
#[derive(Default)]
struct Keywords<'a> {
    from: Option<&'a str>,
    source: Option<&'a str>,
    group: Option<&'a str>,
    to: Vec<&'a str>,
    ttl: Option<TtlPolicy>,
    except: Option<&'a str>,
}

fn parse_keywords<'a>(
    directive: &str,
    words: &[&'a str],
    notes: &mut Vec<String>,
) -> Result<Keywords<'a>, String> {
    let mut keywords = Keywords::default();
    let mut words = words.iter().copied().peekable();
    while let Some(word) = words.next() {
        let mut value = |slot: &mut Option<&'a str>| {
            let value = words
                .next()
                .ok_or_else(|| format!("{directive}: {word} needs a value"))?;
            match slot.replace(value) {
                None => Ok(()),
                Some(_) => Err(format!("{directive}: {word} is given twice")),
            }
        };
        match word {
            "from" => value(&mut keywords.from)?,
            "source" => value(&mut keywords.source)?,
            "group" => value(&mut keywords.group)?,
            "except" if directive == "mroute" => value(&mut keywords.except)?,
            "ttl" if directive == "mroute" => {
                if keywords.ttl.is_some() {
                    return Err("mroute: ttl is given twice".into());
                }
                keywords.ttl = Some(parse_ttl(&mut words)?);
            }
            "to" if directive == "mroute" => {
                let is_keyword =
                    |w: &&str| ["from", "source", "group", "ttl", "except", "to"].contains(w);
                while let Some(oif) = words.next_if(|w| !is_keyword(w)) {
                    keywords.to.push(oif);
                }
            }
            other => notes.push(ignored(directive, other)),
        }
    }
    Ok(keywords)
}

fn parse_ttl<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<TtlPolicy, String> {
    let error = "mroute: ttl must be followed by keep, or by set and a number from 1 to 255";
    match words.next() {
        Some("keep") => Ok(TtlPolicy::Keep),
        Some("set") => match words.next().map(str::parse::<u8>) {
            Some(Ok(ttl)) if ttl > 0 => Ok(TtlPolicy::Set(ttl)),
            _ => Err(error.into()),
        },
        _ => Err(error.into()),
    }
}

/// Parses an address or prefix. `field` names it in error texts.
fn parse_net(field: &str, text: &str) -> Result<IpNet, String> {
    let no_address = || format!("{field} {text:?} is not an IP address");
    let Some((address, length)) = text.split_once('/') else {
        return text
            .parse::<IpAddr>()
            .map(IpNet::from)
            .map_err(|_| no_address());
    };
    let address: IpAddr = address.parse().map_err(|_| no_address())?;
    let length = length.parse::<u8>().ok();
    let net = length.and_then(|length| IpNet::new(address, length).ok());
    net.ok_or_else(|| {
        let max = if address.is_ipv4() { 32 } else { 128 };
        format!("{field} {text:?}: the prefix length must be 0 to {max}")
    })
}

/// Clears the bits beyond the prefix. smcroute accepts such bits, so they are only noted.
fn truncate(field: &str, net: IpNet, notes: &mut Vec<String>) -> IpNet {
    let truncated = net.trunc();
    if truncated != net {
        notes.push(format!("{field} {net} is read as {truncated}"));
    }
    truncated
}

/// Parses a group or a prefix of groups. Adds to `notes` if bits beyond the prefix are set.
///
/// # Errors
/// Returns the reason why `text` is not a multicast address or prefix.
pub fn parse_group(text: &str, notes: &mut Vec<String>) -> Result<GroupPrefix, String> {
    let net = parse_net("group", text)?;
    GroupPrefix::new(truncate("group", net, notes))
        .map_err(|_| format!("group {text} is not multicast (224.0.0.0/4 or ff00::/8)"))
}

/// Parses a source or a prefix of sources. `0.0.0.0` and `::` mean any source.
///
/// # Errors
/// Returns the reason why `text` is not a source of `group`.
pub fn parse_source(
    text: &str,
    group: GroupPrefix,
    notes: &mut Vec<String>,
) -> Result<SourcePrefix, String> {
    let net = parse_net("source", text)?;
    if net.addr().is_ipv4() != group.net().addr().is_ipv4() {
        return Err(format!(
            "source {text} and group {group} are of different IP versions"
        ));
    }
    if net.addr().is_unspecified() {
        return Ok(SourcePrefix::any_for(group));
    }
    SourcePrefix::new(truncate("source", net, notes))
        .map_err(|_| format!("source {text} is multicast; a source must be a unicast address"))
}

fn required<'a>(directive: &str, key: &str, value: Option<&'a str>) -> Result<&'a str, String> {
    value.ok_or_else(|| format!("{directive}: no {key}"))
}

/// Returns the addresses of a prefix of sources; empty for any source.
///
/// # Errors
/// Returns an error if sources and groups give more than [`MAX_JOINED_GROUPS`] memberships.
pub fn members(source: SourcePrefix, group: GroupPrefix) -> Result<Vec<Source>, String> {
    if source.is_any() {
        return match group.count() {
            n if n > MAX_JOINED_GROUPS => Err(too_many(n)),
            _ => Ok(Vec::new()),
        };
    }
    let net = source.net();
    let bits = u32::from(net.max_prefix_len() - net.prefix_len());
    let sources = 1u64.checked_shl(bits).unwrap_or(u64::MAX);
    let memberships = sources.saturating_mul(group.count());
    if memberships > MAX_JOINED_GROUPS {
        return Err(too_many(memberships));
    }
    let first = net.network();
    Ok((0..sources)
        .filter_map(|n| {
            let address = match first {
                IpAddr::V4(a) => IpAddr::V4((a.to_bits() + n as u32).into()),
                IpAddr::V6(a) => IpAddr::V6((a.to_bits() + u128::from(n)).into()),
            };
            Source::new(address).ok()
        })
        .collect())
}

fn too_many(memberships: u64) -> String {
    format!("mgroup: {memberships} memberships; at most {MAX_JOINED_GROUPS} per line are allowed")
}

fn mgroup(words: &[&str], notes: &mut Vec<String>) -> Result<Mgroup, String> {
    let keywords = parse_keywords("mgroup", words, notes)?;
    let from = required("mgroup", "from", keywords.from)?;
    let group = required("mgroup", "group", keywords.group)?;
    let with_directive = |e: String| format!("mgroup: {e}");
    let group = parse_group(group, notes).map_err(with_directive)?;
    let any = SourcePrefix::any_for(group);
    let source = keywords.source.map(|text| parse_source(text, group, notes));
    let source = source.transpose().map_err(with_directive)?.unwrap_or(any);
    Ok(Mgroup {
        from: pattern(from).map_err(with_directive)?,
        sources: members(source, group)?,
        group,
    })
}

/// smcroute refuses the loopback interface, because it is not multicast capable.
const NO_LOOPBACK: &str = "lo is the loopback interface, which smcroute does not route; a \
                           [[route]] of mcastor.toml can send to it";

fn is_loopback(name: &IfPattern) -> bool {
    name.as_str() == "lo"
}

fn mroute(words: &[&str], strict: bool, notes: &mut Vec<String>) -> Result<Mroute, String> {
    let keywords = parse_keywords("mroute", words, notes)?;
    let with_directive = |e: String| format!("mroute: {e}");
    let from = required("mroute", "from", keywords.from)?;
    let group = required("mroute", "group", keywords.group)?;
    let from = pattern(from).map_err(with_directive)?;
    let group = parse_group(group, notes).map_err(with_directive)?;
    let any = SourcePrefix::any_for(group);
    let source_prefix = keywords.source.map(|text| parse_source(text, group, notes));
    let source_prefix = source_prefix
        .transpose()
        .map_err(with_directive)?
        .unwrap_or(any);
    if strict && (keywords.ttl.is_some() || keywords.except.is_some()) {
        return Err("mroute: smcroute does not support ttl and except (--strict)".into());
    }
    if is_loopback(&from) {
        return Err(format!("mroute: {NO_LOOPBACK}"));
    }
    let mut to: Vec<IfPattern> = Vec::new();
    for oif in &keywords.to {
        let oif = pattern(oif).map_err(with_directive)?;
        if is_loopback(&oif) {
            if keywords.to.len() == 1 {
                return Err(format!("mroute: {NO_LOOPBACK}"));
            }
            notes.push(format!("mroute: {NO_LOOPBACK}; left out"));
        } else if !to.contains(&oif) {
            to.push(oif);
        }
    }
    if to.len() > MAX_EGRESSES {
        return Err(format!(
            "mroute: {} egress interfaces; at most {MAX_EGRESSES} are allowed",
            to.len()
        ));
    }
    let mut except = Vec::new();
    for text in keywords.except.into_iter().flat_map(|list| list.split(',')) {
        let excluded =
            parse_source(text, group, notes).map_err(|e| format!("mroute: except: {e}"))?;
        if excluded.is_any() {
            return Err("mroute: except must not exclude all sources".into());
        }
        let within = source_prefix.net().contains(&excluded.net());
        if !within || excluded == source_prefix {
            return Err(format!(
                "mroute: except {excluded} is not a subset of source {source_prefix}"
            ));
        }
        except.push(excluded);
    }
    Ok(Mroute {
        from,
        source: source_prefix,
        except,
        group,
        to,
        ttl: keywords.ttl.unwrap_or_default(),
    })
}
