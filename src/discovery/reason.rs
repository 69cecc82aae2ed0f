//! Why a discovery message is withheld: the `reason` label of `mcastor_discovery_withheld_total`.

use crate::wire::reason_enum::reason_enum;

reason_enum! {
    /// Why a message, a question in it, or an offer in it does not cross.
    enum WithheldReason;
    /// A rule of `deny` matches.
    Denied = "denied",
    /// No rule of `allow` matches, and there are some; or no offers cross in this direction.
    NotAllowed = "not_allowed",
    /// The same was sent to that link a moment ago: another reflector or a repetition.
    Repeated = "repeated",
    /// The asker's own link has the instance or host that it asks for.
    OnOwnLink = "on_own_link",
    /// More messages than `limits.messages_per_second` were to leave, or too many arrived.
    RateLimit = "rate_limit",
    /// The asker has as many open questions as `limits.questions_per_asker`.
    AskerLimit = "asker_limit",
    /// There are as many open questions as `limits.questions`.
    QuestionLimit = "question_limit",
    /// No port for answers is free.
    NoPort = "no_port",
    /// The question is not open any more, or it was answered too often.
    NotAsked = "not_asked",
    /// The message is malformed, or of a kind that the protocol does not send to the group.
    Malformed = "malformed",
    /// The offer has only addresses that the other link cannot use, such as fe80::1.
    UnusableAddress = "unusable_address",
    /// The service of a container has no published port.
    NotPublished = "not_published",
    /// This host has no address of that IP version on the link.
    NoAddress = "no_address",
    /// The message is larger than the MTU of the link and may not be fragmented.
    TooBig = "too_big",
    /// The message has an address of this host as source, so it has come back.
    OwnAddress = "own_address",
    /// The kernel refused to send the message.
    SendFailed = "send_failed",
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn labels_are_unique_and_reasons_have_a_meaning() {
        let labels: HashSet<_> = WithheldReason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), WithheldReason::COUNT);
        let meanings = WithheldReason::ALL.iter().map(|r| r.meaning());
        assert!(meanings.into_iter().all(|m| m.ends_with('.')));
    }
}
