//! The settings of discovery: `[[discovery]]`.

use super::offer::OfferPolicy;
use super::protocol::{DiscoveryProtocol, Transport};
use crate::model::{GroupPrefix, IfPattern, JoinRule, Link, Origin};

/// How answers to a question come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AnswerMode {
    /// By this router, where the protocol is answered by unicast.
    #[default]
    Auto,
    /// By this router, to which devices answer.
    Relay,
    /// By the routes of the devices: the question keeps the address of the asker.
    Direct,
}

/// What happens to addresses in answers that the other link cannot use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AddressMode {
    /// They are replaced, or the answer is left out.
    #[default]
    Rewrite,
    /// They stay.
    Keep,
}

/// Limits of what strangers can create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiscoveryLimits {
    /// Open questions.
    pub questions: usize,
    /// Open questions of one address.
    pub questions_per_asker: usize,
    /// Messages a second that leave on a link.
    pub messages_per_second: u32,
    /// Offers that `show discovery` knows, and questions by asker.
    pub offers: usize,
}

impl Default for DiscoveryLimits {
    fn default() -> Self {
        Self {
            questions: 512,
            questions_per_asker: 32,
            messages_per_second: 200,
            offers: 2048,
        }
    }
}

/// One `[[discovery]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryRule {
    /// Its name in `show discovery`.
    pub name: String,
    /// The links between which offers cross in every direction.
    pub between: Vec<IfPattern>,
    /// The links of the devices.
    pub from: Vec<IfPattern>,
    /// The links of the askers.
    pub to: Vec<IfPattern>,
    /// The protocols.
    pub protocols: Vec<DiscoveryProtocol>,
    /// What may cross.
    pub policy: OfferPolicy,
    /// How answers come back.
    pub answers: AnswerMode,
    /// What happens to addresses that the other link cannot use.
    pub addresses: AddressMode,
    /// Its limits.
    pub limits: DiscoveryLimits,
}

impl DiscoveryRule {
    /// Returns whether what is offered on `from` may be seen on `to`, as far as the links decide.
    pub fn covers(&self, from: &Link, to: &Link) -> bool {
        let selects = |patterns: &[IfPattern], link: &Link| {
            patterns.iter().any(|pattern| link.matches(pattern))
        };
        let is_between = selects(&self.between, from) && selects(&self.between, to);
        let is_one_way = selects(&self.from, from) && selects(&self.to, to);
        from.index != to.index && (is_between || is_one_way)
    }

    /// Returns whether the rule uses a link.
    pub fn uses(&self, link: &Link) -> bool {
        self.patterns().any(|pattern| link.matches(pattern))
    }

    /// Returns the names and patterns of its links.
    pub fn patterns(&self) -> impl Iterator<Item = &IfPattern> {
        self.between.iter().chain(&self.from).chain(&self.to)
    }

    /// Returns whether answers of a protocol come back through this router, and why.
    pub fn relays_answers(&self, protocol: DiscoveryProtocol) -> (bool, &'static str) {
        match (protocol.transport(), self.answers) {
            (Transport::Announcements, _) => (
                false,
                "the messages hold addresses, to which devices answer directly",
            ),
            (_, AnswerMode::Direct) => (false, "answers = \"direct\""),
            (_, AnswerMode::Relay) => (true, "answers = \"relay\""),
            (Transport::Mdns, AnswerMode::Auto) => (
                true,
                "answers are multicast; unicast ones come back through this router",
            ),
            (Transport::UnicastAnswers(_), AnswerMode::Auto) => (
                true,
                "answers are unicast; through this router they need no route to the asker",
            ),
        }
    }

    /// Returns the groups to join, so that snooping switches deliver the messages.
    pub fn joins(&self) -> impl Iterator<Item = JoinRule> {
        let groups: Vec<GroupPrefix> = self
            .protocols
            .iter()
            .flat_map(|protocol| protocol.groups())
            .filter_map(|group| GroupPrefix::new(group.into()).ok())
            .collect();
        self.patterns().flat_map(move |pattern| {
            let pattern = pattern.clone();
            groups.clone().into_iter().map(move |group| JoinRule {
                interface: pattern.clone(),
                source: None,
                group,
                origin: Origin::Settings,
            })
        })
    }
}

/// Returns the joins of all rules, each once.
pub fn joins(rules: &[DiscoveryRule]) -> Vec<JoinRule> {
    let mut joins: Vec<JoinRule> = rules.iter().flat_map(DiscoveryRule::joins).collect();
    joins.sort();
    joins.dedup();
    joins
}
