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

impl Directive {
    /// Returns the keyword that the directive starts with.
    pub fn keyword(&self) -> &'static str {
        match self {
            Self::Phyint(_) => "phyint",
            Self::Mgroup(_) => "mgroup",
            Self::Mroute(_) => "mroute",
            Self::Include(_) => "include",
        }
    }
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
    /// Words that have no meaning, such as `flat` or `ttl-threshold 0`.
    pub ignored: Vec<String>,
    /// Descriptions of other valid but suspicious input.
    pub notes: Vec<String>,
}

/// The loopback interface. smcroute neither routes from it nor to it.
pub const LOOPBACK: &str = "lo";

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
        ignored: Vec::new(),
        notes: Vec::new(),
    };
    let mut words = text.split_whitespace();
    let Some(first) = words.next() else {
        return Ok(parsed);
    };
    let words: Vec<&str> = words.collect();
    let (ignored, notes) = (&mut parsed.ignored, &mut parsed.notes);
    parsed.directive = Some(match first {
        "phyint" => Directive::Phyint(phyint(&words, ignored)?),
        // The name of older releases for an mgroup with a source.
        "mgroup" | "ssmgroup" => Directive::Mgroup(mgroup(&words, ignored, notes)?),
        "mroute" => Directive::Mroute(mroute(&words, strict, ignored, notes)?),
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
    if strict {
        let ignored = (!parsed.ignored.is_empty()).then(|| note_ignored(first, &parsed.ignored));
        if let Some(error) = ignored.or(parsed.notes.first().cloned()) {
            return Err(error);
        }
    }
    // Added after the check for `strict`, because smcroute supports routes without an egress.
    if let Some(Directive::Mroute(mroute)) = &parsed.directive
        && mroute.to.is_empty()
    {
        let mut note = "mroute: no egress interface; matching packets are dropped".to_string();
        if let Some(word) = parsed.ignored.first() {
            note += &format!("; write \"to\" before \"{word}\"");
        }
        parsed.notes.push(note);
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

/// Returns the note on ignored words of a directive.
pub(super) fn note_ignored(directive: &str, ignored: &[String]) -> String {
    let words: Vec<String> = ignored.iter().map(|word| format!("\"{word}\"")).collect();
    format!("{directive}: ignored: {}", words.join(", "))
}

fn phyint(words: &[&str], ignored: &mut Vec<String>) -> Result<Phyint, String> {
    let Some((name, words)) = words.split_first() else {
        return Err("phyint: no interface".into());
    };
    if *name == LOOPBACK {
        return Err(format!("phyint: {}", no_loopback()));
    }
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
            // Without a number from 1 to 255, smcroute keeps the default.
            "ttl-threshold" => match words.next() {
                None => ignored.push((*word).into()),
                Some(number) => match number.parse().ok().and_then(TtlThreshold::new) {
                    Some(threshold) => phyint.ttl_threshold = Some(threshold),
                    None => ignored.push(format!("{word} {number}")),
                },
            },
            other => ignored.push(other.into()),
        }
    }
    Ok(phyint)
}

fn no_loopback() -> String {
    format!(
        "{LOOPBACK} is the loopback interface, which smcroute does not route; a [[route]] of \
         mcastor.toml can send to it"
    )
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

/// Parses keywords in any order. The last of two equal ones applies. As in smcroute, all words
/// after
/// `to` are interface names, except our additions `ttl` and `except`.
fn parse_keywords<'a>(
    directive: &str,
    words: &[&'a str],
    ignored: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Result<Keywords<'a>, String> {
    let mut keywords = Keywords::default();
    let mut words = words.iter().copied().peekable();
    while let Some(word) = words.next() {
        let mut value = |slot: &mut Option<&'a str>| {
            let value = words
                .next()
                .ok_or_else(|| format!("{directive}: {word} needs a value"))?;
            if slot.replace(value).is_some() {
                notes.push(format!(
                    "{directive}: {word} is given twice; {value} applies"
                ));
            }
            Ok::<(), String>(())
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
                let is_addition = |w: &&str| ["ttl", "except"].contains(w);
                while let Some(oif) = words.next_if(|w| !is_addition(w)) {
                    match oif {
                        "to" => ignored.push(oif.into()),
                        "from" | "source" | "group" => {
                            let value = words.next().unwrap_or_default();
                            notes.push(format!(
                                "{directive}: \"{oif} {value}\" after \"to\" is ignored, because \
                                 smcroute reads interface names there; write it before \"to\""
                            ));
                        }
                        _ => keywords.to.push(oif),
                    }
                }
            }
            "to" => ignored.extend(
                std::iter::once(word)
                    .chain(words.by_ref())
                    .map(String::from),
            ),
            other => ignored.push(other.into()),
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

/// Returns the groups that are joined for a prefix. Of an IPv6 prefix with more than
/// [`MAX_JOINED_GROUPS`] groups this is only the first, as in smcroute; adds to `notes` then.
pub fn joined_groups(group: GroupPrefix, notes: &mut Vec<String>) -> GroupPrefix {
    let net = group.net();
    let first = GroupPrefix::new(IpNet::from(net.network()));
    match first {
        Ok(first) if net.addr().is_ipv6() && group.count() > MAX_JOINED_GROUPS => {
            notes.push(format!(
                "mgroup: {group} has more than {MAX_JOINED_GROUPS} groups; only {first} is joined, \
                 as by smcroute"
            ));
            first
        }
        _ => group,
    }
}

fn mgroup(
    words: &[&str],
    ignored: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Result<Mgroup, String> {
    let keywords = parse_keywords("mgroup", words, ignored, notes)?;
    let from = required("mgroup", "from", keywords.from)?;
    let group = required("mgroup", "group", keywords.group)?;
    let with_directive = |e: String| format!("mgroup: {e}");
    let group = joined_groups(parse_group(group, notes).map_err(with_directive)?, notes);
    let any = SourcePrefix::any_for(group);
    let source = keywords.source.map(|text| parse_source(text, group, notes));
    let source = source.transpose().map_err(with_directive)?.unwrap_or(any);
    Ok(Mgroup {
        from: pattern(from).map_err(with_directive)?,
        sources: members(source, group)?,
        group,
    })
}

fn mroute(
    words: &[&str],
    strict: bool,
    ignored: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Result<Mroute, String> {
    let keywords = parse_keywords("mroute", words, ignored, notes)?;
    let with_directive = |e: String| format!("mroute: {e}");
    let from = required("mroute", "from", keywords.from)?;
    if from == LOOPBACK {
        return Err(with_directive(no_loopback()));
    }
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
    let oifs = keywords.to.iter().map(|oif| match *oif {
        LOOPBACK => Err(no_loopback()),
        oif => pattern(oif),
    });
    let oifs: Vec<Result<IfPattern, String>> = oifs.collect();
    let is_any_valid = oifs.iter().any(Result::is_ok);
    let mut to: Vec<IfPattern> = Vec::new();
    for oif in oifs {
        let oif = match oif {
            Ok(oif) => oif,
            Err(error) if is_any_valid => {
                notes.push(format!(
                    "mroute: an interface after \"to\" is skipped: {error}"
                ));
                continue;
            }
            Err(error) => return Err(with_directive(error)),
        };
        if !to.contains(&oif) {
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
