//! The check of the host that a request names.
//!
//! A web page can make a browser read the API of a router in the browser's network: its domain name
//! resolves to the router after the page was loaded (DNS rebinding). Such a request names the domain
//! of the page in `Host`. Requests are therefore accepted only for names that no stranger can
//! register in the public DNS, and for the names in the settings.

use std::net::{IpAddr, Ipv6Addr};

/// The names of this machine.
pub struct AllowedHosts {
    /// The names in the settings, in lower case.
    names: Vec<String>,
}

impl AllowedHosts {
    /// Returns a check that accepts `names` besides the built-in ones.
    pub fn new(names: &[String]) -> Self {
        let names = names.iter().map(|name| canonical(name)).collect();
        Self { names }
    }

    /// Returns whether a request for `host`, with or without a port, is for this machine.
    pub fn allows(&self, host: &str) -> bool {
        self.allows_on(host, own_name)
    }

    fn allows_on(&self, host: &str, own_name: impl FnOnce() -> Option<String>) -> bool {
        if let Some(literal) = host.strip_prefix('[') {
            let address = literal.split(']').next().unwrap_or_default();
            // A link-local address may have a zone: [fe80::1%25eth0].
            let address = address.split('%').next().unwrap_or_default();
            return address.parse::<Ipv6Addr>().is_ok();
        }
        let name = canonical(host.split(':').next().unwrap_or_default());
        // HTTP/1.1 permits an empty host.
        name.is_empty()
            || name.parse::<IpAddr>().is_ok()
            || !name.contains('.')
            || name.ends_with(".localhost")
            || self.names.contains(&name)
            || own_name().is_some_and(|own| canonical(&own) == name)
    }
}

/// Returns `name` in lower case and without the final dot.
fn canonical(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Returns the host name of this machine.
fn own_name() -> Option<String> {
    nix::unistd::gethostname().ok()?.into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_are_allowed() {
        let hosts = AllowedHosts::new(&["Metrics.Example.net".into()]);
        for host in [
            "",
            ":80",
            "127.0.0.1",
            "10.0.0.1:9464",
            "[::1]",
            "[2001:db8::1]:9464",
            "[fe80::1%25eth0]:9464",
            "localhost",
            "LOCALHOST:9464",
            "localhost.",
            "router.localhost:1",
            "mcastor",
            "mcastor:9464",
            "metrics.example.net",
            "METRICS.example.NET.:9464",
            "r1.lan",
        ] {
            let own_name = || Some("R1.lan".to_string());
            assert!(hosts.allows_on(host, own_name), "{host}");
        }
    }

    #[test]
    fn names_of_the_public_dns_are_refused() {
        let hosts = AllowedHosts::new(&["metrics.example.net".into()]);
        for host in [
            "evil.example",
            "evil.example:9464",
            "example.net",
            "x.metrics.example.net",
            "metrics.example.net.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "localhost.evil.example",
            "xlocalhost.example",
            "r1.lan",
            "[evil.example]",
            "[]",
        ] {
            assert!(!hosts.allows_on(host, || None), "{host}");
        }
    }
}
