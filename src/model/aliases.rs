//! Interface aliases from other programs than the kernel, and hints for names without an interface.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::{IfName, IfPattern, InterfaceId};

/// Shorter names are too similar to each other to be suggested.
const MIN_SUGGESTION_CHARS: usize = 4;
/// A suggestion may differ from a name of up to this many characters by one edit, and from a longer
/// name by two.
const SHORT_NAME_CHARS: usize = 7;

/// The ports of this host under which ports of containers are reached: by address and port of the
/// container, and whether it is TCP.
pub type PublishedPorts = BTreeMap<(IpAddr, u16, bool), u16>;

/// Aliases of links, from other programs than the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aliases {
    /// Aliases of links with a known index.
    pub by_index: BTreeMap<InterfaceId, BTreeSet<IfPattern>>,
    /// Aliases of links with a known name.
    pub by_name: BTreeMap<IfName, BTreeSet<IfPattern>>,
    /// Names that the container engine knows and that have no interface here.
    pub without_interface: BTreeMap<IfPattern, NoInterface>,
    /// Why the container engine does not answer, and the remedy; `None` while it answers or no
    /// rule needs it.
    pub engine_error: Option<String>,
    /// The ports that the engine publishes.
    pub published: PublishedPorts,
}

/// Why a name of the container engine has no interface in this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoInterface {
    /// A network with another driver than `bridge`.
    Driver(String),
    /// The bridge of a network does not exist.
    NoBridge(IfName),
    /// A rootless engine keeps the interfaces in a network namespace of its own.
    Rootless,
    /// A container that is only on networks without a bridge; the driver of the first one.
    ContainerDriver(String),
    /// A container without a network of its own, such as one on the network of the host.
    NoNetwork,
    /// The kernel does not return the other ends of veth pairs without CAP_NET_ADMIN.
    NoCapability,
}

impl fmt::Display for NoInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver(driver) => {
                write!(f, "a network with the driver {driver} has no bridge here")?;
                write_driver_remedy(f, driver)
            }
            Self::NoBridge(bridge) => write!(
                f,
                "its bridge {bridge} does not exist here; Podman creates the bridge with the first \
                 container"
            ),
            Self::Rootless => f.write_str(
                "the engine is rootless and keeps its interfaces in a network namespace of its \
                 own; use the engine of root",
            ),
            Self::ContainerDriver(driver) => {
                write!(
                    f,
                    "a network with the driver {driver} has no veth pair here"
                )?;
                write_driver_remedy(f, driver)
            }
            Self::NoNetwork => f.write_str(
                "the container has no network of its own; it shares the network of the host, of a \
                 pod or of another container, or has none",
            ),
            Self::NoCapability => f.write_str("CAP_NET_ADMIN is missing; network: needs none"),
        }
    }
}

/// Appends what works with a network of the driver, if anything does.
fn write_driver_remedy(f: &mut fmt::Formatter<'_>, driver: &str) -> fmt::Result {
    match driver {
        "overlay" => f.write_str("; use network:docker_gwbridge"),
        "macvlan" | "ipvlan" => f.write_str("; its containers receive from the LAN directly"),
        _ => Ok(()),
    }
}

/// A hint about why a name matches no interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitingHint<'a> {
    /// The engine knows the name.
    Known(&'a NoInterface),
    /// The engine knows a similar name.
    Similar(&'a IfPattern),
    /// The engine does not answer, for this reason.
    NoEngine(&'a str),
    /// The name is that of the default route, which does not exist.
    NoDefaultRoute,
}

impl fmt::Display for WaitingHint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(reason) => reason.fmt(f),
            Self::Similar(name) => write!(f, "did you mean {name}?"),
            Self::NoEngine(reason) => write!(f, "the container engine does not answer: {reason}"),
            Self::NoDefaultRoute => f.write_str(
                "there is no default route; set `upstream` in the proxy to name an interface, or add \
                 a default route",
            ),
        }
    }
}

impl Aliases {
    /// Returns a hint about why a name or pattern matches no interface; `None` without one.
    pub fn hint(&self, name: &IfPattern) -> Option<WaitingHint<'_>> {
        if name.is_default_route() {
            return Some(WaitingHint::NoDefaultRoute);
        }
        if !name.is_engine_name() {
            return None;
        }
        // What the engine knew before may no longer be true.
        if let Some(reason) = &self.engine_error {
            return Some(WaitingHint::NoEngine(reason));
        }
        let mut known = self.without_interface.iter();
        if let Some((_, reason)) = known.find(|(alias, _)| name.matches_alias(alias)) {
            return Some(WaitingHint::Known(reason));
        }
        if name.is_pattern() {
            return None;
        }
        let all = self.by_index.values().chain(self.by_name.values());
        let all = all.flatten().chain(self.without_interface.keys());
        let rated = all.filter_map(|alias| Some((difference(name, alias)?, alias)));
        let (_, nearest) = rated.min()?;
        Some(WaitingHint::Similar(nearest))
    }
}

/// Returns how different two names are, or `None` if one is no plausible mistake for the other.
fn difference(wanted: &IfPattern, alias: &IfPattern) -> Option<usize> {
    let (wanted_kind, wanted) = wanted.as_str().split_once(':')?;
    let (kind, alias) = alias.as_str().split_once(':')?;
    if kind != wanted_kind {
        return (wanted == alias).then_some(1);
    }
    if wanted.eq_ignore_ascii_case(alias) {
        return Some(0);
    }
    if has_compose_affixes(alias, wanted) {
        return Some(1);
    }
    let chars = wanted.chars().count();
    let edits = if chars > SHORT_NAME_CHARS { 2 } else { 1 };
    if chars < MIN_SUGGESTION_CHARS || alias.chars().count().abs_diff(chars) > edits {
        return None;
    }
    // `web-1` is no misspelt `web-2`.
    let letters = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
    if letters(wanted) == letters(alias) {
        return None;
    }
    let difference = strsim::osa_distance(wanted, alias);
    (difference <= edits).then_some(1 + difference)
}

/// Returns whether `alias` is the name that compose gives to `name`: `PROJECT_name` for a network,
/// `PROJECT-name-1` for a container.
fn has_compose_affixes(alias: &str, name: &str) -> bool {
    let separators = ['-', '_'];
    let without_number = alias.trim_end_matches(|c: char| c.is_ascii_digit());
    let without_number = without_number.strip_suffix(separators).unwrap_or(alias);
    [alias, without_number].iter().any(|text| {
        let project = text.strip_suffix(name);
        project.is_some_and(|project| project.len() > 1 && project.ends_with(separators))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> IfPattern {
        text.parse().unwrap()
    }

    fn hint(existing: &[&str], wanted: &str) -> Option<String> {
        let aliases = Aliases {
            by_name: [(
                "br-a".parse().unwrap(),
                existing.iter().map(|n| name(n)).collect(),
            )]
            .into(),
            ..Aliases::default()
        };
        aliases.hint(&name(wanted)).map(|hint| hint.to_string())
    }

    #[test]
    fn misspelt_name_gets_the_nearest_existing_name() {
        let existing = ["network:cameras", "network:camera", "container:cameras2"];
        for (wanted, expected) in [
            ("network:camras", "network:cameras"),
            ("network:Cameras", "network:cameras"),
            ("network:camerasx", "network:cameras"),
            ("container:cameras", "network:cameras"),
        ] {
            let expected = format!("did you mean {expected}?");
            assert_eq!(hint(&existing, wanted), Some(expected), "{wanted}");
        }
    }

    #[test]
    fn name_in_compose_file_gets_the_name_with_project() {
        for (existing, wanted) in [
            ("network:home_cameras", "network:cameras"),
            ("container:home-web-1", "container:web"),
            ("container:home_web_1", "container:web"),
            ("container:home-web-1", "container:web-1"),
        ] {
            let expected = format!("did you mean {existing}?");
            assert_eq!(hint(&[existing], wanted), Some(expected), "{wanted}");
        }
    }

    #[test]
    fn plausible_other_names_get_no_suggestion() {
        for (existing, wanted) in [
            ("container:cam-1", "container:cam-2"),
            ("network:lan", "network:wan"),
            ("network:recorders", "network:cameras"),
            ("network:cameras", "network:camra*"),
            ("network:eth0", "eth1"),
            ("network:cameras", "container:camera"),
        ] {
            assert_eq!(hint(&[existing], wanted), None, "{wanted}");
        }
    }

    #[test]
    fn missing_engine_and_default_route_have_a_hint() {
        let aliases = Aliases {
            engine_error: Some("/run/e.sock: not found; start it".into()),
            ..Aliases::default()
        };
        let hint = |text: &str| aliases.hint(&name(text)).map(|hint| hint.to_string());
        let no_engine = "the container engine does not answer: /run/e.sock: not found; start it";
        assert_eq!(hint("network:cameras").as_deref(), Some(no_engine));
        assert_eq!(hint("container:cam*").as_deref(), Some(no_engine));
        assert_eq!(hint("eth0"), None);
        let no_route = hint("route:default").unwrap();
        assert!(
            no_route.starts_with("there is no default route; set `upstream`"),
            "{no_route}"
        );
    }

    #[test]
    fn reason_of_the_engine_takes_precedence_over_suggestions() {
        let mut aliases = Aliases::default();
        let driver = NoInterface::Driver("overlay".into());
        aliases
            .without_interface
            .insert(name("network:cams"), driver);
        aliases
            .by_name
            .insert("br-a".parse().unwrap(), [name("network:cam")].into());
        for wanted in ["network:cams", "network:cams*"] {
            let hint = aliases.hint(&name(wanted)).unwrap().to_string();
            assert!(hint.contains("overlay"), "{hint}");
            assert!(hint.contains("network:docker_gwbridge"), "{hint}");
        }
    }
}
