//! What questions and records of DNS-SD (RFC 6763) are about, by their names.

use hickory_proto::rr::{Name, RData, Record};

/// What a question or record is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A service, and the instance where there is one.
    Service(String, Option<String>),
    /// All service types.
    ServiceTypes,
    /// A host.
    Host(String),
    /// An address, of a host that the question does not know.
    Reverse,
}

impl Subject {
    /// Returns what a name is about.
    pub fn of_name(name: &Name) -> Self {
        let labels = labels(name);
        let is_transport =
            |label: &str| label.eq_ignore_ascii_case("_tcp") || label.eq_ignore_ascii_case("_udp");
        let at = labels.iter().rposition(|label| is_transport(label));
        if let Some(at) = at.filter(|at| *at > 0) {
            let (Some(service), Some(transport)) = (labels.get(at - 1), labels.get(at)) else {
                return Self::ServiceTypes;
            };
            if service.eq_ignore_ascii_case("_dns-sd") {
                return Self::ServiceTypes;
            }
            let before = labels.get(..at - 1).unwrap_or_default();
            let is_subtype = before
                .last()
                .is_some_and(|l| l.eq_ignore_ascii_case("_sub"));
            let instance = (!before.is_empty() && !is_subtype).then(|| before.join("."));
            return Self::Service(format!("{service}.{transport}"), instance);
        }
        match labels
            .last()
            .is_some_and(|label| label.eq_ignore_ascii_case("arpa"))
        {
            true => Self::Reverse,
            false => Self::Host(labels.join(".")),
        }
    }

    /// Returns what a record is about: a PTR record is about its target.
    pub fn of_record(record: &Record) -> Self {
        let own = Self::of_name(&record.name);
        let RData::PTR(target) = &record.data else {
            return own;
        };
        match (own, Self::of_name(&target.0)) {
            (Self::Service(service, None), Self::Service(_, instance)) => {
                Self::Service(service, instance)
            }
            (Self::ServiceTypes, Self::Service(service, _)) => Self::Service(service, None),
            (Self::Reverse, Self::Host(host)) => Self::Host(host),
            (own, _) => own,
        }
    }
}

/// Returns whether a name has a label, in whatever case.
pub fn has_label(name: &Name, label: &str) -> bool {
    let mut labels = name.iter();
    labels.any(|l| l.eq_ignore_ascii_case(label.as_bytes()))
}

/// Returns the labels of a name as text, without the final `local`.
fn labels(name: &Name) -> Vec<String> {
    let labels = name
        .iter()
        .map(|label| String::from_utf8_lossy(label).into_owned());
    let mut labels: Vec<String> = labels.collect();
    if labels.len() > 1
        && labels
            .last()
            .is_some_and(|l| l.eq_ignore_ascii_case("local"))
    {
        labels.pop();
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services_and_hosts_are_distinguished() {
        let of = |text: &str| Subject::of_name(&text.parse().unwrap());
        let service = |instance: Option<&str>| {
            Subject::Service("_ipp._tcp".into(), instance.map(str::to_owned))
        };
        assert_eq!(of("_ipp._tcp.local."), service(None));
        assert_eq!(of("floor\\.2._ipp._tcp.local."), service(Some("floor.2")));
        // A subtype (RFC 6763 section 7.1) is no instance.
        assert_eq!(of("_universal._sub._ipp._tcp.local."), service(None));
        assert_eq!(of("_services._dns-sd._udp.local."), Subject::ServiceTypes);
        assert_eq!(of("shelf.LOCAL."), Subject::Host("shelf".into()));
        assert_eq!(of("9.2.0.10.in-addr.arpa."), Subject::Reverse);
    }
}
