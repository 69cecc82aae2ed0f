//! Responses of multicast DNS that were relayed a moment ago, for askers that came too late to
//! receive them.
//!
//! A device does not multicast a record again within a second (RFC 6762 section 6), and a repeated
//! question does not cross for as long. On one link, a host that has just started asks for a unicast
//! answer therefore (section 5.4), and has it at once. Here, this router gives it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ahash::AHashSet;

use super::mdns::{ItemKey, MdnsMessage};
use crate::model::InterfaceId;

/// How long a response is kept. A question that a device does not answer because it did so less than
/// a second ago finds its response here, with time for both to be delayed.
const KEPT: Duration = Duration::from_secs(2);
/// The largest number of responses that are kept. Each has at most 9,000 bytes.
const MAX_RESPONSES: usize = 128;
/// The largest number of responses to one question.
const MAX_ANSWERS: usize = 8;

#[derive(Debug)]
struct RecentResponse {
    rule: usize,
    link: InterfaceId,
    at: Instant,
    message: MdnsMessage,
    /// What it answers.
    questions: Vec<ItemKey>,
}

/// The responses that were relayed to each link a moment ago.
#[derive(Debug, Default)]
pub struct RecentResponses(VecDeque<RecentResponse>);

impl RecentResponses {
    /// Notes a response that a rule relays to a link.
    pub fn note(&mut self, now: Instant, rule: usize, link: InterfaceId, message: &MdnsMessage) {
        self.expire(now);
        if self.0.len() >= MAX_RESPONSES {
            self.0.pop_front();
        }
        self.0.push_back(RecentResponse {
            rule,
            link,
            at: now,
            questions: message.answered_questions(),
            message: message.clone(),
        });
    }

    /// Returns the responses to a query from a link, the oldest first: those to its questions that
    /// ask for a unicast answer, without responses that the asker knows.
    pub fn answers(
        &self,
        now: Instant,
        rule: usize,
        link: InterfaceId,
        query: &MdnsMessage,
    ) -> Vec<&MdnsMessage> {
        let asked: AHashSet<ItemKey> = query.unicast_questions().collect();
        if asked.is_empty() {
            return Vec::new();
        }
        let known: AHashSet<ItemKey> = query.known_answers().collect();
        let is_answer = |recent: &&RecentResponse| {
            (recent.rule, recent.link) == (rule, link)
                && now.saturating_duration_since(recent.at) < KEPT
                && recent.questions.iter().any(|key| asked.contains(key))
                && recent.message.has_answer_beyond(&known)
        };
        let newest = self.0.iter().rev().filter(is_answer).take(MAX_ANSWERS);
        let mut answers: Vec<&MdnsMessage> = newest.map(|recent| &recent.message).collect();
        answers.reverse();
        answers
    }

    /// Forgets old responses.
    pub fn expire(&mut self, now: Instant) {
        let is_old = |recent: &RecentResponse| now.saturating_duration_since(recent.at) >= KEPT;
        while self.0.front().is_some_and(is_old) {
            self.0.pop_front();
        }
    }

    /// Forgets all responses: the links or what may cross has changed.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
