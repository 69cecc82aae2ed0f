//! One line of `smcroute.conf`: words in, a directive or its fault out.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::rule::MOST_JOINED_GROUPS;
use crate::model::{GroupPrefix, IfPattern, Source, SourcePrefix, TtlPolicy, TtlThreshold};

/// What a line asks for.
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

/// Options of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phyint {
    /// Which interfaces.
    pub name: IfPattern,
    /// `disable` was said, or `enable`, or neither.
    pub disabled: Option<bool>,
    /// Announce this router (RFC 4286).
    pub mrdisc: bool,
    /// What may leave there.
    pub ttl_threshold: Option<TtlThreshold>,
}

/// Groups to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mgroup {
    /// On which interfaces.
    pub from: IfPattern,
    /// From which sources only; empty for any. A prefix stands here as its members.
    pub sources: Vec<Source>,
    /// Which groups.
    pub group: GroupPrefix,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mroute {
    /// Where packets arrive.
    pub from: IfPattern,
    /// Who sends.
    pub source: SourcePrefix,
    /// Who does not.
    pub except: Vec<SourcePrefix>,
    /// To whom.
    pub group: GroupPrefix,
    /// Where packets leave; nowhere for a line that stops what it takes.
    pub to: Vec<IfPattern>,
    /// What happens to the TTL.
    pub ttl: TtlPolicy,
}

/// A line understood, and what is odd about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// What it asks for; `None` for an empty line.
    pub directive: Option<Directive>,
    /// What stands behind `#`.
    pub comment: Option<String>,
    /// Things that are allowed, but may not be what was meant.
    pub notes: Vec<String>,
}

/// The directives there are, for those who misspelt one.
const DIRECTIVES: &str = "phyint, mgroup, mroute and include";

/// Bytes of the longest line that is read.
pub const LONGEST_LINE: usize = 8192;

/// Reads one line. `strict` refuses what smcroute does not know.
///
/// # Errors
/// The cause, as a sentence without its place.
pub fn read(line: &str, strict: bool) -> Result<Read, String> {
    if line.len() > LONGEST_LINE {
        return Err(format!("longer than {LONGEST_LINE} bytes"));
    }
    if let Some(bad) = line.chars().find(|c| c.is_control() && *c != '\t') {
        return Err(format!("holds {bad:?}; a line is plain text"));
    }
    let (text, comment) = match line.split_once('#') {
        Some((text, comment)) => (text, Some(comment.trim_end().to_string())),
        None => (line, None),
    };
    let mut read = Read {
        directive: None,
        comment,
        notes: Vec::new(),
    };
    let mut words = text.split_whitespace();
    let Some(first) = words.next() else {
        return Ok(read);
    };
    let words: Vec<&str> = words.collect();
    let notes = &mut read.notes;
    read.directive = Some(match first {
        "phyint" => Directive::Phyint(phyint(&words, notes)?),
        "mgroup" => Directive::Mgroup(mgroup(&words, notes)?),
        "mroute" => Directive::Mroute(mroute(&words, strict, notes)?),
        "include" => match words[..] {
            [] => return Err("include: no path".into()),
            [path] => Directive::Include(path.into()),
            _ => return Err("include: one path a line".into()),
        },
        other => {
            return Err(format!(
                "unknown directive {other:?}; there are {DIRECTIVES}"
            ));
        }
    });
    if strict && let Some(note) = read.notes.first() {
        return Err(note.clone());
    }
    // smcroute knows it, so `--strict` does.
    if let Some(Directive::Mroute(mroute)) = &read.directive
        && mroute.to.is_empty()
    {
        let note = "mroute: sends nowhere: stops what it takes";
        read.notes.push(note.into());
    }
    Ok(read)
}

/// `eth+` stands for all names that begin so.
///
/// # Errors
/// What no interface is called.
pub fn pattern(text: &str) -> Result<IfPattern, String> {
    if text.contains(',') {
        return Err(format!(
            "{text:?} is no interface name; names stand apart, without commas"
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
    format!("{directive}: {word:?} means nothing here and is ignored")
}

/// The words of a directive, by their keyword.
#[derive(Default)]
struct Parts<'a> {
    from: Option<&'a str>,
    source: Option<&'a str>,
    group: Option<&'a str>,
    to: Vec<&'a str>,
    ttl: Option<TtlPolicy>,
    except: Option<&'a str>,
}

fn parts<'a>(
    directive: &str,
    words: &[&'a str],
    notes: &mut Vec<String>,
) -> Result<Parts<'a>, String> {
    let mut parts = Parts::default();
    let mut words = words.iter().copied().peekable();
    while let Some(word) = words.next() {
        let mut value = |slot: &mut Option<&'a str>| {
            let value = words
                .next()
                .ok_or_else(|| format!("{directive}: {word} needs a value"))?;
            match slot.replace(value) {
                None => Ok(()),
                Some(_) => Err(format!("{directive}: {word} stands twice")),
            }
        };
        match word {
            "from" => value(&mut parts.from)?,
            "source" => value(&mut parts.source)?,
            "group" => value(&mut parts.group)?,
            "except" if directive == "mroute" => value(&mut parts.except)?,
            "ttl" if directive == "mroute" => {
                if parts.ttl.is_some() {
                    return Err("mroute: ttl stands twice".into());
                }
                parts.ttl = Some(ttl(&mut words)?);
            }
            "to" if directive == "mroute" => {
                let keyword =
                    |w: &&str| ["from", "source", "group", "ttl", "except", "to"].contains(w);
                while let Some(oif) = words.next_if(|w| !keyword(w)) {
                    parts.to.push(oif);
                }
            }
            other => notes.push(ignored(directive, other)),
        }
    }
    Ok(parts)
}

fn ttl<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<TtlPolicy, String> {
    let wrong = "mroute: ttl is followed by keep, or by set and a number from 1 to 255";
    match words.next() {
        Some("keep") => Ok(TtlPolicy::Keep),
        Some("set") => match words.next().map(str::parse::<u8>) {
            Some(Ok(ttl)) if ttl > 0 => Ok(TtlPolicy::Set(ttl)),
            _ => Err(wrong.into()),
        },
        _ => Err(wrong.into()),
    }
}

fn net(what: &str, text: &str) -> Result<IpNet, String> {
    let wrong = || format!("{what} {text:?} is not an IP address");
    let Some((address, length)) = text.split_once('/') else {
        return text.parse::<IpAddr>().map(IpNet::from).map_err(|_| wrong());
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let length = length.parse::<u8>().ok();
    let net = length.and_then(|length| IpNet::new(address, length).ok());
    net.ok_or_else(|| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        format!("{what} {text:?}: a prefix length is 0 to {most}")
    })
}

/// What smcroute takes too: bits beyond the prefix.
fn trunc(what: &str, net: IpNet, notes: &mut Vec<String>) -> IpNet {
    let whole = net.trunc();
    if whole != net {
        notes.push(format!("{what} {net} is taken as {whole}"));
    }
    whole
}

/// Reads a group or prefix.
///
/// # Errors
/// What it is instead.
pub fn group(text: &str, notes: &mut Vec<String>) -> Result<GroupPrefix, String> {
    let net = net("group", text)?;
    GroupPrefix::new(trunc("group", net, notes))
        .map_err(|_| format!("group {text} is not multicast (224.0.0.0/4 or ff00::/8)"))
}

/// Reads a source or prefix; `0.0.0.0` and `::` are any.
///
/// # Errors
/// What it is instead.
pub fn source(
    text: &str,
    group: GroupPrefix,
    notes: &mut Vec<String>,
) -> Result<SourcePrefix, String> {
    let net = net("source", text)?;
    if net.addr().is_ipv4() != group.net().addr().is_ipv4() {
        return Err(format!(
            "source {text} and group {group} are of different IP versions"
        ));
    }
    if net.addr().is_unspecified() {
        return Ok(SourcePrefix::any_for(group));
    }
    SourcePrefix::new(trunc("source", net, notes))
        .map_err(|_| format!("source {text} is multicast; a source is a sender's address"))
}

fn required<'a>(directive: &str, key: &str, value: Option<&'a str>) -> Result<&'a str, String> {
    value.ok_or_else(|| format!("{directive}: no {key}"))
}

/// Each address of a prefix of sources; none for any source.
///
/// # Errors
/// There are more than one join may name.
pub fn members(source: SourcePrefix, group: GroupPrefix) -> Result<Vec<Source>, String> {
    if source.is_any() {
        return match group.count() {
            n if n > MOST_JOINED_GROUPS => Err(too_many(n)),
            _ => Ok(Vec::new()),
        };
    }
    let net = source.net();
    let bits = u32::from(net.max_prefix_len() - net.prefix_len());
    let sources = 1u64.checked_shl(bits).unwrap_or(u64::MAX);
    let all = sources.saturating_mul(group.count());
    if all > MOST_JOINED_GROUPS {
        return Err(too_many(all));
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
    format!("mgroup: {memberships} memberships; a line may ask for {MOST_JOINED_GROUPS}")
}

fn mgroup(words: &[&str], notes: &mut Vec<String>) -> Result<Mgroup, String> {
    let parts = parts("mgroup", words, notes)?;
    let from = required("mgroup", "from", parts.from)?;
    let named = required("mgroup", "group", parts.group)?;
    let in_line = |e: String| format!("mgroup: {e}");
    let group = group(named, notes).map_err(in_line)?;
    let any = SourcePrefix::any_for(group);
    let source = parts.source.map(|text| source(text, group, notes));
    let source = source.transpose().map_err(in_line)?.unwrap_or(any);
    Ok(Mgroup {
        from: pattern(from).map_err(in_line)?,
        sources: members(source, group)?,
        group,
    })
}

/// Egresses of one route at most.
pub const MOST_EGRESSES: usize = 64;

fn mroute(words: &[&str], strict: bool, notes: &mut Vec<String>) -> Result<Mroute, String> {
    let parts = parts("mroute", words, notes)?;
    let in_line = |e: String| format!("mroute: {e}");
    let from = required("mroute", "from", parts.from)?;
    let named = required("mroute", "group", parts.group)?;
    let from = pattern(from).map_err(in_line)?;
    let group = group(named, notes).map_err(in_line)?;
    let any = SourcePrefix::any_for(group);
    let source_prefix = parts.source.map(|text| source(text, group, notes));
    let source_prefix = source_prefix.transpose().map_err(in_line)?.unwrap_or(any);
    if strict && (parts.ttl.is_some() || parts.except.is_some()) {
        return Err("mroute: smcroute knows no ttl and no except (--strict)".into());
    }
    let mut to: Vec<IfPattern> = Vec::new();
    for oif in &parts.to {
        let oif = pattern(oif).map_err(in_line)?;
        if !oif.is_pattern() && oif == from {
            notes.push(format!(
                "mroute: {oif} is where the packets come from; none is sent back there"
            ));
        } else if !to.contains(&oif) {
            to.push(oif);
        }
    }
    if to.len() > MOST_EGRESSES {
        return Err(format!(
            "mroute: {} interfaces to send to; at most {MOST_EGRESSES}",
            to.len()
        ));
    }
    let mut except = Vec::new();
    for text in parts.except.into_iter().flat_map(|list| list.split(',')) {
        let one = source(text, group, notes).map_err(|e| format!("mroute: except: {e}"))?;
        if one.is_any() {
            return Err("mroute: except takes senders out, not all of them".into());
        }
        let held = source_prefix.net().contains(&one.net());
        if !held || one == source_prefix {
            return Err(format!(
                "mroute: except {one} is not a part of source {source_prefix}"
            ));
        }
        except.push(one);
    }
    Ok(Mroute {
        from,
        source: source_prefix,
        except,
        group,
        to,
        ttl: parts.ttl.unwrap_or_default(),
    })
}
