//! Which host offers which service, from the records of multicast DNS.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use hickory_proto::op::Query;
use hickory_proto::rr::{RData, Record};
use lru::LruCache;

use super::subject::Subject;
use crate::model::InterfaceId;

/// The largest number of hosts, and of instances, that are known.
const MAX_KNOWN: usize = 4096;
/// The largest number of services of one host.
const MAX_SERVICES: usize = 64;
/// The largest number of services of all hosts. A name has up to 255 bytes.
const MAX_ALL_SERVICES: usize = 8192;
/// Longest time for which an instance or host counts as present on a link. It is the TTL for records
/// without a host name in RFC 6762, section 10.
const MAX_PRESENCE: Duration = Duration::from_secs(75 * 60);

/// The services of a host.
#[derive(Debug)]
struct HostServices {
    /// Service type and instance.
    services: Vec<(String, String)>,
    presence: Presence,
}

/// The host of an instance.
#[derive(Debug)]
struct InstanceHost {
    host: String,
    presence: Presence,
}

/// Whether a record of an instance or host is as old as its TTL.
#[derive(Debug)]
struct Presence {
    until: Instant,
    is_over: bool,
}

impl Presence {
    fn new(until: Instant) -> Self {
        let is_over = false;
        Self { until, is_over }
    }

    fn expire(&mut self, now: Instant) {
        self.is_over |= self.until <= now;
    }
}

/// Which host offers which service, from the SRV records of each link.
///
/// What a host offers is remembered for longer than its records last, because the address of a host
/// may be asked for without its services. Only whether it is present on a link depends on the TTL.
#[derive(Debug)]
pub struct ServiceHosts {
    services: LruCache<(InterfaceId, String), HostServices>,
    /// The number of services of all hosts.
    all_services: usize,
    hosts: LruCache<(InterfaceId, String, String), InstanceHost>,
}

impl Default for ServiceHosts {
    fn default() -> Self {
        let max = NonZeroUsize::new(MAX_KNOWN).unwrap_or(NonZeroUsize::MIN);
        Self {
            services: LruCache::new(max),
            all_services: 0,
            hosts: LruCache::new(max),
        }
    }
}

impl ServiceHosts {
    /// Learns from the SRV records of a response that arrived on a link.
    pub fn learn<'a>(
        &mut self,
        now: Instant,
        link: InterfaceId,
        records: impl Iterator<Item = &'a Record>,
    ) {
        for record in records {
            let RData::SRV(srv) = &record.data else {
                continue;
            };
            let Subject::Service(service, Some(instance)) = Subject::of_name(&record.name) else {
                continue;
            };
            let Subject::Host(host) = Subject::of_name(&srv.target) else {
                continue;
            };
            let (service, instance) = (service.to_lowercase(), instance.to_lowercase());
            let host = host.to_lowercase();
            // RFC 6762 section 10.1: a TTL of zero ends the record. What the host offered decides
            // whether its goodbye crosses.
            if record.ttl == 0 {
                let key = (link, service, instance);
                if let Some(known) = self.hosts.peek_mut(&key) {
                    known.presence.is_over = true;
                }
                continue;
            }
            let ttl = Duration::from_secs(record.ttl.into()).min(MAX_PRESENCE);
            let until = now + ttl;
            self.add(
                (link, host.clone()),
                (service.clone(), instance.clone()),
                until,
            );
            let presence = Presence::new(until);
            let host = InstanceHost { host, presence };
            self.hosts.put((link, service, instance), host);
        }
    }

    fn add(&mut self, host: (InterfaceId, String), service: (String, String), until: Instant) {
        let is_full = self.services.len() == self.services.cap().get();
        if is_full && !self.services.contains(&host) {
            self.forget_oldest_host();
        }
        let known = self.services.get_or_insert_mut(host, || HostServices {
            services: Vec::new(),
            presence: Presence::new(until),
        });
        known.presence = Presence::new(until.max(known.presence.until));
        if !known.services.contains(&service) && known.services.len() < MAX_SERVICES {
            known.services.push(service);
            self.all_services += 1;
        }
        while self.all_services > MAX_ALL_SERVICES {
            self.forget_oldest_host();
        }
    }

    fn forget_oldest_host(&mut self) {
        let oldest = self.services.pop_lru();
        self.all_services -= oldest.map_or(0, |(_, known)| known.services.len());
    }

    /// Notes that hosts and instances are no longer present whose records have expired.
    pub fn expire(&mut self, now: Instant) {
        let services = self.services.iter_mut().map(|(_, s)| &mut s.presence);
        let hosts = self.hosts.iter_mut().map(|(_, h)| &mut h.presence);
        services.chain(hosts).for_each(|p| p.expire(now));
    }

    /// Returns whether a question is about an instance or host that is known on `link` and not on
    /// `other`.
    pub fn is_only_on(&self, link: InterfaceId, other: InterfaceId, query: &Query) -> bool {
        let is_on = |link| match Subject::of_name(query.name()) {
            Subject::Service(service, Some(instance)) => {
                let key = (link, service.to_lowercase(), instance.to_lowercase());
                self.hosts.peek(&key).is_some_and(|h| !h.presence.is_over)
            }
            Subject::Host(host) => {
                let key = (link, host.to_lowercase());
                self.services
                    .peek(&key)
                    .is_some_and(|s| !s.presence.is_over)
            }
            _ => false,
        };
        is_on(link) && !is_on(other)
    }

    /// Returns the services of a host on a link: service type and instance.
    pub fn services(&self, link: InterfaceId, host: &str) -> &[(String, String)] {
        let services = self.services.peek(&(link, host.to_lowercase()));
        services.map_or(&[], |known| &known.services)
    }

    /// Returns the host of an instance on a link.
    pub fn host(&self, link: InterfaceId, service: &str, instance: &str) -> Option<&str> {
        let key = (link, service.to_lowercase(), instance.to_lowercase());
        self.hosts.peek(&key).map(|host| host.host.as_str())
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Name;
    use hickory_proto::rr::rdata::SRV;

    use super::*;

    /// One station can name any number of hosts and services.
    #[test]
    fn services_of_all_hosts_are_limited() {
        let (mut hosts, link) = (ServiceHosts::default(), InterfaceId::new(1).unwrap());
        let name = |text: String| text.parse::<Name>().unwrap();
        for host in 0..5000 {
            let services = if host < 200 { 70 } else { 1 };
            let records: Vec<Record> = (0..services)
                .map(|n| {
                    let srv = SRV::new(0, 0, 80, name(format!("host-{host}.local.")));
                    let instance = name(format!("i{n}-{host}._http._tcp.local."));
                    Record::from_rdata(instance, 120, RData::SRV(srv))
                })
                .collect();
            hosts.learn(Instant::now(), link, records.iter());
            let known = hosts.services(link, &format!("host-{host}")).len();
            assert_eq!(known, services.min(MAX_SERVICES));
            let all: usize = hosts.services.iter().map(|(_, s)| s.services.len()).sum();
            assert_eq!(all, hosts.all_services);
            assert!(all <= MAX_ALL_SERVICES && hosts.services.len() <= MAX_KNOWN);
        }
        assert_eq!(hosts.services(link, "host-4999").len(), 1);
        assert_eq!(hosts.services.len(), MAX_KNOWN);
    }
}
