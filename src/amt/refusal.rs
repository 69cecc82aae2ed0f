//! The reasons for which a received AMT message is refused: the `reason` label of
//! `mcastor_amt_refused_total`.

use crate::membership::MembershipRefusal;
use crate::wire::amt::AmtParseError;
use crate::wire::reason_enum::reason_enum;

reason_enum! {
    /// Why a gateway or relay refuses a message.
    enum AmtRefusal;
    /// The version of the message is not 0.
    Version = "version",
    /// The type of the message is not known.
    UnknownType = "unknown_type",
    /// The message is too short or too long for its type.
    Length = "length",
    /// The receiver has no use for messages of this type.
    UnexpectedType = "unexpected_type",
    /// The sender is not a relay of this gateway.
    UnknownRelay = "unknown_relay",
    /// The nonce is not that of the last request.
    WrongNonce = "wrong_nonce",
    /// The advertised relay address has another IP version than the address that was queried.
    OtherFamily = "other_family",
    /// The advertised relay address cannot be that of a relay, such as a multicast address.
    BadAddress = "bad_address",
    /// The encapsulated packet is no valid general query of IGMPv3 or MLDv2.
    BadQuery = "bad_query",
    /// The encapsulated packet is no valid report of IGMPv3 or MLDv2.
    BadReport = "bad_report",
    /// The response MAC is wrong or too old.
    WrongMac = "wrong_mac",
    /// No tunnel exists for the address.
    UnknownGateway = "unknown_gateway",
    /// The relay has as many gateways as its limit allows.
    GatewayLimit = "gateway_limit",
    /// The gateway has as many groups or sources as its limit allows.
    GroupLimit = "group_limit",
    /// A group or source is not permitted by the settings.
    NotPermitted = "not_permitted",
    /// Too many messages came from the prefix of the sender, or from the gateway.
    RateLimit = "rate_limit",
    /// The updates of gateways cause more work than `limits.reports_per_second` of the proxy allows.
    UpdateRate = "update_rate",
}

impl From<AmtParseError> for AmtRefusal {
    fn from(e: AmtParseError) -> Self {
        match e {
            AmtParseError::Version => Self::Version,
            AmtParseError::UnknownType => Self::UnknownType,
            AmtParseError::Length => Self::Length,
        }
    }
}

impl From<MembershipRefusal> for AmtRefusal {
    fn from(reason: MembershipRefusal) -> Self {
        match reason {
            MembershipRefusal::GroupLimit | MembershipRefusal::SourceLimit => Self::GroupLimit,
            MembershipRefusal::GroupDenied
            | MembershipRefusal::SourceDenied
            | MembershipRefusal::LinkLocalGroup
            | MembershipRefusal::AnySourceInSsm => Self::NotPermitted,
            MembershipRefusal::MemberRate | MembershipRefusal::UnknownSenderRate => {
                Self::UpdateRate
            }
            _ => Self::BadReport,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn labels_are_unique_and_reasons_have_a_meaning() {
        let labels: HashSet<_> = AmtRefusal::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), AmtRefusal::COUNT);
        assert!(AmtRefusal::ALL.iter().all(|r| r.meaning().ends_with('.')));
    }
}
