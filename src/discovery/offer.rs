//! What a device offers, and the rules that allow or deny it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::reason::WithheldReason;
use crate::model::link::glob_matches;
use crate::model::{IfPattern, Link, MacAddress};

/// A property of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Property<'a> {
    /// Offers of this kind have no such property.
    #[default]
    Absent,
    /// The offer has it, but a question does not say which.
    Unknown,
    /// The offer has this one.
    Is(&'a str),
    /// The offer has each of these.
    AnyOf(&'a [String]),
}

/// What is offered, or asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServiceOffer<'a> {
    /// Service type of DNS-SD, such as `_ipp._tcp`.
    pub service: Property<'a>,
    /// Instance name of DNS-SD, such as `Printer 2nd floor`.
    pub instance: Property<'a>,
    /// Host name, without `.local`.
    pub name: Property<'a>,
    /// Search target or notification type of SSDP.
    pub st: Property<'a>,
    /// Types of WS-Discovery, without namespace.
    pub types: Property<'a>,
}

/// Where an offer is made, and where it would be seen.
#[derive(Debug, Clone, Copy)]
pub struct Way<'a> {
    /// The link of the device.
    pub from: &'a Link,
    /// The link of the asker.
    pub to: &'a Link,
    /// The device; `None` in a question.
    pub device: Option<IpAddr>,
    /// Its station; `None` in a question, and on links without addresses.
    pub station: Option<MacAddress>,
}

/// A rule of `allow` or `deny`. An offer matches if every field that is present matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OfferRule {
    /// Pattern of the service type.
    pub service: Option<String>,
    /// Pattern of the instance name.
    pub instance: Option<String>,
    /// Pattern of the host name.
    pub name: Option<String>,
    /// Prefix of the address of the device.
    pub device: Option<IpNet>,
    /// The station of the device.
    pub mac: Option<MacAddress>,
    /// Pattern of the search target of SSDP.
    pub st: Option<String>,
    /// Pattern of a type of WS-Discovery.
    pub types: Option<String>,
    /// The link of the device.
    pub from: Option<IfPattern>,
    /// The link of the asker.
    pub to: Option<IfPattern>,
}

/// Whether a rule matches. What a question does not say is only known with the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    No,
    Maybe,
    Yes,
}

/// Returns whether a text matches a pattern with `*` and `?`, ignoring case.
fn fits(pattern: &str, text: &str) -> bool {
    let pattern = pattern.to_lowercase();
    glob_matches(pattern.as_bytes(), text.to_lowercase().as_bytes())
}

fn match_property(pattern: Option<&String>, property: Property<'_>) -> Match {
    let Some(pattern) = pattern else {
        return Match::Yes;
    };
    let is_match = match property {
        Property::Absent => false,
        Property::Unknown => return Match::Maybe,
        Property::Is(text) => fits(pattern, text),
        Property::AnyOf(texts) => texts.iter().any(|text| fits(pattern, text)),
    };
    if is_match { Match::Yes } else { Match::No }
}

fn match_known<T>(rule: Option<&T>, known: Option<bool>) -> Match {
    match (rule, known) {
        (None, _) | (Some(_), Some(true)) => Match::Yes,
        (Some(_), Some(false)) => Match::No,
        (Some(_), None) => Match::Maybe,
    }
}

impl OfferRule {
    fn matches(&self, offer: &ServiceOffer<'_>, way: &Way<'_>) -> Match {
        let device = self.device.as_ref();
        let in_prefix = device.zip(way.device).map(|(net, ip)| net.contains(&ip));
        let mac = self.mac.as_ref();
        let is_station = mac.zip(way.station).map(|(mac, station)| *mac == station);
        // The station of an answer is unknown on a link without addresses, and so no match.
        let is_station = is_station.or(way.device.map(|_| false));
        let link = |pattern: &Option<IfPattern>, link: &Link| {
            let is_match = pattern.as_ref().is_none_or(|pattern| link.matches(pattern));
            if is_match { Match::Yes } else { Match::No }
        };
        [
            match_property(self.service.as_ref(), offer.service),
            match_property(self.instance.as_ref(), offer.instance),
            match_property(self.name.as_ref(), offer.name),
            match_property(self.st.as_ref(), offer.st),
            match_property(self.types.as_ref(), offer.types),
            match_known(device, in_prefix),
            match_known(mac, is_station),
            link(&self.from, way.from),
            link(&self.to, way.to),
        ]
        .into_iter()
        .min()
        .unwrap_or(Match::No)
    }
}

/// The rules of one `[[discovery]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OfferPolicy {
    /// What is permitted; everything if empty.
    pub allow: Vec<OfferRule>,
    /// What is not permitted, even where `allow` matches.
    pub deny: Vec<OfferRule>,
}

impl OfferPolicy {
    /// Returns why an offer may not cross, if so.
    ///
    /// # Errors
    /// The offer is denied, or not allowed.
    pub fn check_offer(
        &self,
        offer: &ServiceOffer<'_>,
        way: &Way<'_>,
    ) -> Result<(), WithheldReason> {
        self.check(offer, way, Match::Yes)
    }

    /// Returns why a question may not cross: no answer to it could.
    ///
    /// # Errors
    /// Each answer would be denied, or not allowed.
    pub fn check_question(
        &self,
        offer: &ServiceOffer<'_>,
        way: &Way<'_>,
    ) -> Result<(), WithheldReason> {
        self.check(offer, way, Match::Maybe)
    }

    /// Checks against the rules; a rule of `allow` must match at least as `needed`.
    fn check(
        &self,
        offer: &ServiceOffer<'_>,
        way: &Way<'_>,
        needed: Match,
    ) -> Result<(), WithheldReason> {
        let mut denied = self.deny.iter();
        if denied.any(|rule| rule.matches(offer, way) == Match::Yes) {
            return Err(WithheldReason::Denied);
        }
        let mut allowed = self.allow.iter();
        if self.allow.is_empty() || allowed.any(|rule| rule.matches(offer, way) >= needed) {
            return Ok(());
        }
        Err(WithheldReason::NotAllowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::InterfaceId;

    fn link(n: u32, name: &str) -> Link {
        Link::new(InterfaceId::new(n).unwrap(), name.parse().unwrap())
    }

    fn some(text: &str) -> Option<String> {
        Some(text.into())
    }

    /// Every field of a rule decides alone whether the rule matches.
    #[test]
    fn each_field_of_a_rule_decides() {
        let (from, to) = (link(1, "vlan20"), link(2, "eth0"));
        let way = Way {
            from: &from,
            to: &to,
            device: Some("192.168.20.7".parse().unwrap()),
            station: Some(MacAddress([2, 0, 0, 0, 0, 7])),
        };
        let types = ["Device".to_string(), "NetworkVideoTransmitter".into()];
        let offer = ServiceOffer {
            service: Property::Is("_googlecast._tcp"),
            instance: Property::Is("Living Room"),
            name: Property::Is("tv"),
            st: Property::Is("urn:schemas-upnp-org:device:MediaServer:1"),
            types: Property::AnyOf(&types),
        };
        let rule = OfferRule::default;
        let cases = [
            (
                OfferRule {
                    service: some("_GoogleCast._tcp"),
                    ..rule()
                },
                true,
            ),
            (
                OfferRule {
                    service: some("_ssh._tcp"),
                    ..rule()
                },
                false,
            ),
            (
                OfferRule {
                    instance: some("living*"),
                    ..rule()
                },
                true,
            ),
            (
                OfferRule {
                    instance: some("bed*"),
                    ..rule()
                },
                false,
            ),
            (
                OfferRule {
                    name: some("tv"),
                    ..rule()
                },
                true,
            ),
            (
                OfferRule {
                    name: some("t"),
                    ..rule()
                },
                false,
            ),
            (
                OfferRule {
                    st: some("urn:*:MediaServer:*"),
                    ..rule()
                },
                true,
            ),
            (
                OfferRule {
                    st: some("urn:*:MediaRenderer:*"),
                    ..rule()
                },
                false,
            ),
            (
                OfferRule {
                    types: some("NetworkVideo*"),
                    ..rule()
                },
                true,
            ),
            (
                OfferRule {
                    types: some("Printer"),
                    ..rule()
                },
                false,
            ),
            (
                OfferRule {
                    device: Some("192.168.20.0/24".parse().unwrap()),
                    ..rule()
                },
                true,
            ),
            (
                OfferRule {
                    device: Some("192.168.21.0/24".parse().unwrap()),
                    ..rule()
                },
                false,
            ),
            (
                OfferRule {
                    mac: Some(MacAddress([2, 0, 0, 0, 0, 7])),
                    ..rule()
                },
                true,
            ),
            (
                OfferRule {
                    mac: Some(MacAddress([2, 0, 0, 0, 0, 8])),
                    ..rule()
                },
                false,
            ),
            (
                OfferRule {
                    from: Some("vlan*".parse().unwrap()),
                    ..rule()
                },
                true,
            ),
            (
                OfferRule {
                    from: Some("eth0".parse().unwrap()),
                    ..rule()
                },
                false,
            ),
            (
                OfferRule {
                    to: Some("eth0".parse().unwrap()),
                    ..rule()
                },
                true,
            ),
            (
                OfferRule {
                    to: Some("vlan20".parse().unwrap()),
                    ..rule()
                },
                false,
            ),
        ];
        for (rule, is_match) in cases {
            let allow = OfferPolicy {
                allow: vec![rule.clone()],
                deny: vec![],
            };
            assert_eq!(
                allow.check_offer(&offer, &way).is_ok(),
                is_match,
                "{rule:?}"
            );
            let deny = OfferPolicy {
                allow: vec![],
                deny: vec![rule.clone()],
            };
            assert_eq!(
                deny.check_offer(&offer, &way).is_err(),
                is_match,
                "{rule:?}"
            );
        }
    }

    #[test]
    fn deny_overrides_allow() {
        let (from, to) = (link(1, "a"), link(2, "b"));
        let way = Way {
            from: &from,
            to: &to,
            device: None,
            station: None,
        };
        let rule = OfferRule {
            service: some("*"),
            ..OfferRule::default()
        };
        let policy = OfferPolicy {
            allow: vec![rule.clone()],
            deny: vec![rule],
        };
        let offer = ServiceOffer {
            service: Property::Is("_x._tcp"),
            ..ServiceOffer::default()
        };
        assert_eq!(
            policy.check_offer(&offer, &way),
            Err(WithheldReason::Denied)
        );
        assert_eq!(OfferPolicy::default().check_offer(&offer, &way), Ok(()));
    }

    /// A question passes if some answer could pass, and the answer is checked again.
    #[test]
    fn question_passes_if_an_answer_could_pass() {
        let (from, to) = (link(1, "a"), link(2, "b"));
        let way = Way {
            from: &from,
            to: &to,
            device: None,
            station: None,
        };
        let of_device = OfferRule {
            device: Some("10.0.0.7/32".parse().unwrap()),
            ..OfferRule::default()
        };
        let policy = OfferPolicy {
            allow: vec![of_device.clone()],
            deny: vec![],
        };
        let offer = ServiceOffer {
            st: Property::Is("x"),
            ..ServiceOffer::default()
        };
        assert_eq!(policy.check_question(&offer, &way), Ok(()));
        let answered = Way {
            device: Some("10.0.0.8".parse().unwrap()),
            ..way
        };
        assert_eq!(
            policy.check_offer(&offer, &answered),
            Err(WithheldReason::NotAllowed)
        );
        let deny = OfferPolicy {
            allow: vec![],
            deny: vec![of_device],
        };
        assert_eq!(deny.check_question(&offer, &way), Ok(()));
    }
}
