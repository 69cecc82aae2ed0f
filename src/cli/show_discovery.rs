//! The text of `mcastor show discovery`.

use super::table::{new_table, seconds, table_text};
use crate::api::DiscoveryView;

/// Returns for each `[[discovery]]` how it works, and tables of the offers, of who asked for what, and
/// of the open questions.
pub(super) fn discovery_text(discovery: &[DiscoveryView]) -> String {
    let mut texts = Vec::new();
    for view in discovery {
        let (from, to) = (view.from.join(", "), view.to.join(", "));
        let mut text = format!("{}: devices on {from}; askers on {to}", view.name);
        for protocol in &view.protocols {
            text += &format!(
                "\n  {}: answers {}, because {}",
                protocol.protocol, protocol.answers, protocol.reason
            );
        }
        texts.push(text);
        let header = ["PROTOCOL", "OFFER", "DEVICE", "FROM", "TO", "IDLE", "STATE"];
        let mut table = new_table(&header, &[5]);
        for offer in &view.offers {
            table.add_row([
                offer.protocol.clone(),
                name_of_service(&offer.instance, &offer.what),
                offer.device.clone(),
                offer.from.clone(),
                offer.to.clone(),
                seconds(offer.idle_ms),
                discovery_state(offer.withheld.as_deref(), "found"),
            ]);
        }
        texts.push(table_text(table));
        let header = [
            "PROTOCOL", "ASKER", "ASKS FOR", "FROM", "TO", "IDLE", "STATE",
        ];
        let mut table = new_table(&header, &[5]);
        for asker in &view.askers {
            table.add_row([
                asker.protocol.clone(),
                asker.asker.clone(),
                name_of_service(&asker.instance, &asker.what),
                asker.from.clone(),
                asker.to.clone(),
                seconds(asker.idle_ms),
                discovery_state(asker.withheld.as_deref(), "asked"),
            ]);
        }
        texts.push(table_text(table));
        let header = [
            "PROTOCOL",
            "ASKER",
            "FROM",
            "TO",
            "PORT",
            "ANSWERS",
            "REMAINING",
        ];
        let mut table = new_table(&header, &[4, 5, 6]);
        for question in &view.questions {
            table.add_row([
                question.protocol.clone(),
                question.asker.clone(),
                question.from.clone(),
                question.to.clone(),
                question.port.to_string(),
                question.answers.to_string(),
                seconds(question.remaining_ms),
            ]);
        }
        texts.push(table_text(table));
    }
    texts.join("\n")
}

/// Returns the name of an offer or question: service type, search target, types, or host name, and
/// the instance where there is one.
fn name_of_service(instance: &str, what: &str) -> String {
    match (instance, what) {
        ("", "") => "-".into(),
        ("", what) => what.into(),
        (instance, what) => format!("{instance} ({what})"),
    }
}

fn discovery_state(withheld: Option<&str>, crosses: &str) -> String {
    withheld.map_or(crosses.into(), |reason| format!("withheld: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::DiscoveryAskerView;

    #[test]
    fn askers_are_listed_with_what_they_ask_for() {
        let asker =
            |asker: &str, what: &str, instance: &str, withheld: Option<&str>| DiscoveryAskerView {
                from: "br0".into(),
                to: "eth0".into(),
                protocol: "mdns".into(),
                asker: asker.into(),
                mac: None,
                what: what.into(),
                instance: instance.into(),
                messages: 3,
                idle_ms: 1500,
                withheld: withheld.map(Into::into),
                explanation: None,
            };
        let view = DiscoveryView {
            name: "home".into(),
            from: vec!["eth0".into()],
            to: vec!["br0".into()],
            protocols: Vec::new(),
            offers: Vec::new(),
            askers: vec![
                asker("172.20.0.2", "_ipp._tcp", "", None),
                asker("172.20.0.3", "_ssh._tcp", "vault", Some("denied")),
                asker("172.20.0.4", "", "", None),
            ],
            questions: Vec::new(),
        };
        let text = discovery_text(&[view]);
        let words = |address: &str| {
            let line = text.lines().find(|line| line.contains(address));
            let line = line.unwrap_or_else(|| panic!("no {address}: {text}"));
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            words("172.20.0.2"),
            "mdns 172.20.0.2 _ipp._tcp br0 eth0 1.5 s asked"
        );
        let denied = words("172.20.0.3");
        assert!(denied.contains("vault (_ssh._tcp)"), "{denied}");
        assert!(denied.ends_with("withheld: denied"), "{denied}");
        assert!(words("172.20.0.4").contains("172.20.0.4 - br0"));
    }
}
