//! Looks up relays at the name servers of the host. The only part of this module with sockets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::time::sleep_until;

use super::candidate::LookupKey;
use super::driad::{self, AmtRelayRecord, RelayAddress, RelayTarget};
use super::query_rate::QueryRate;

/// Time to live of an answer without records that names none.
const NEGATIVE_TTL: Duration = Duration::from_secs(60);

/// Most records of one answer that are used.
const MAX_RECORDS: usize = 32;

/// Most instances of a service in one domain, and most servers of an instance, that are looked up.
const MAX_INSTANCES: usize = 8;
const MAX_SERVERS: usize = 4;

/// The service of relays in DNS-SD (RFC 8777 section 2.3.2).
const SERVICE: &str = "_amt._udp";

/// Why relays cannot be looked up.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// The configuration of the host names no server, or is invalid.
    #[error("resolv.conf: {0}")]
    Config(String),
    /// No server answered, or only with an error.
    #[error("{name}: {error}")]
    Failed {
        /// The name that was looked up.
        name: String,
        /// What the resolver says.
        error: String,
    },
}

/// What a lookup found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRelays {
    /// The addresses, in no order.
    pub addresses: Vec<RelayAddress>,
    /// How long the answer is valid.
    pub ttl: Duration,
    /// Records that could not be used, with the reason.
    pub invalid: Vec<String>,
}

/// A client of the name servers of this host. Clones share its cache.
#[derive(Clone)]
pub struct RelayResolver {
    resolver: TokioResolver,
    /// The domains in which services are looked for.
    domains: Vec<String>,
    /// One lookup may need many queries: names in records are looked up too.
    rate: Arc<Mutex<QueryRate>>,
}

impl RelayResolver {
    /// Creates a client from the text of `/etc/resolv.conf`. It opens no file.
    ///
    /// # Errors
    /// The text names no server.
    pub fn new(resolv_conf: &[u8]) -> Result<Self, ResolverError> {
        let to_error = |e: hickory_resolver::net::NetError| ResolverError::Config(e.to_string());
        let (config, options) = parse_resolv_conf(resolv_conf).map_err(to_error)?;
        Self::with_config(config, options).map_err(to_error)
    }

    fn with_config(
        config: ResolverConfig,
        mut options: ResolverOpts,
    ) -> Result<Self, hickory_resolver::net::NetError> {
        // The thread that uses it cannot open files.
        options.use_hosts_file = ResolveHosts::Never;
        options.try_tcp_on_error = true;
        let domains = config.domain().into_iter().chain(config.search());
        let domains = domains.map(ToString::to_string).collect();
        let provider = TokioRuntimeProvider::default();
        let builder = TokioResolver::builder_with_config(config, provider);
        Ok(Self {
            resolver: builder.with_options(options).build()?,
            domains,
            rate: Arc::default(),
        })
    }

    /// Looks relays up.
    ///
    /// # Errors
    /// No server answered.
    pub async fn find(&self, key: &LookupKey) -> Result<FoundRelays, ResolverError> {
        match key {
            LookupKey::Source(source) => self.records_of(source.addr()).await,
            LookupKey::Host(name, port) => {
                let (addresses, ttl) = self.addresses(name).await?;
                let addresses = addresses.into_iter().map(|ip| RelayAddress {
                    precedence: 0,
                    needs_discovery: true,
                    address: SocketAddr::new(ip, *port),
                });
                Ok(FoundRelays {
                    addresses: addresses.collect(),
                    ttl,
                    invalid: Vec::new(),
                })
            }
            LookupKey::DnsSd => self.services().await,
        }
    }

    /// Looks up the AMTRELAY records of a source. Servers follow CNAME and DNAME records.
    async fn records_of(&self, source: IpAddr) -> Result<FoundRelays, ResolverError> {
        let name = driad::reverse_name(source);
        let kind = RecordType::Unknown(driad::RECORD_TYPE);
        let (answer, mut ttl) = self.lookup(&name, kind).await?;
        let (mut addresses, mut invalid) = (Vec::new(), Vec::new());
        for data in answer.iter().take(MAX_RECORDS) {
            let RData::Unknown { rdata, .. } = data else {
                continue;
            };
            let record = match AmtRelayRecord::parse(&rdata.anything) {
                Ok(record) => record,
                Err(e) => {
                    invalid.push(e.to_string());
                    continue;
                }
            };
            let of_record = |ip| RelayAddress::of_record(&record, ip);
            match &record.relay {
                RelayTarget::None => {}
                RelayTarget::Address(ip) => addresses.push(of_record(*ip)),
                RelayTarget::Name(name) => match self.addresses(name).await {
                    Ok((ips, of_name)) => {
                        ttl = ttl.min(of_name);
                        addresses.extend(ips.into_iter().map(of_record));
                    }
                    Err(e) => invalid.push(e.to_string()),
                },
            }
        }
        Ok(FoundRelays {
            addresses,
            ttl,
            invalid,
        })
    }

    /// Looks up the relays that the search domains offer as a service: those of the first domain that
    /// has any. What cannot be looked up does not hide the others.
    async fn services(&self) -> Result<FoundRelays, ResolverError> {
        let mut errors = Vec::new();
        for domain in &self.domains {
            let service = format!("{SERVICE}.{domain}");
            match self.relays_of_service(&service, &mut errors).await {
                Ok(found) if !found.addresses.is_empty() => return Ok(found),
                Ok(_) => {}
                Err(e) => errors.push(e),
            }
        }
        match errors.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(FoundRelays {
                addresses: Vec::new(),
                ttl: NEGATIVE_TTL,
                invalid: Vec::new(),
            }),
        }
    }

    /// Looks up the relays of a service. Errors of single instances go to `errors`.
    async fn relays_of_service(
        &self,
        service: &str,
        errors: &mut Vec<ResolverError>,
    ) -> Result<FoundRelays, ResolverError> {
        let (instances, ttl) = self.lookup(service, RecordType::PTR).await?;
        let mut found = FoundRelays {
            addresses: Vec::new(),
            ttl,
            invalid: Vec::new(),
        };
        for instance in instances.iter().take(MAX_INSTANCES) {
            let RData::PTR(instance) = instance else {
                continue;
            };
            if let Err(e) = self.add_instance(&instance.to_string(), &mut found).await {
                found.invalid.push(e.to_string());
                errors.push(e);
            }
        }
        Ok(found)
    }

    /// Adds the relays of one instance of a service.
    async fn add_instance(
        &self,
        instance: &str,
        found: &mut FoundRelays,
    ) -> Result<(), ResolverError> {
        let (servers, ttl) = self.lookup(instance, RecordType::SRV).await?;
        for server in servers.iter().take(MAX_SERVERS) {
            let RData::SRV(server) = server else {
                continue;
            };
            let (ips, of_name) = self.addresses(&server.target.to_string()).await?;
            found.ttl = found.ttl.min(ttl).min(of_name);
            found
                .addresses
                .extend(ips.into_iter().map(|ip| RelayAddress {
                    precedence: server.priority,
                    needs_discovery: true,
                    address: SocketAddr::new(ip, server.port),
                }));
        }
        Ok(())
    }

    /// Looks up the IPv4 and IPv6 addresses of a host. An error of one of them is ignored.
    async fn addresses(&self, name: &str) -> Result<(Vec<IpAddr>, Duration), ResolverError> {
        let kinds = [RecordType::AAAA, RecordType::A];
        let answers = join_all(kinds.map(|kind| self.lookup(name, kind))).await;
        let (mut addresses, mut ttls) = (Vec::new(), BTreeMap::new());
        let mut error = None;
        for answer in answers {
            match answer {
                Ok((records, ttl)) => {
                    ttls.insert(!records.is_empty(), ttl);
                    let records = records.iter().take(MAX_RECORDS);
                    addresses.extend(records.filter_map(RData::ip_addr));
                }
                Err(e) => error = Some(e),
            }
        }
        match (ttls.last_key_value(), error) {
            (Some((_, ttl)), _) => Ok((addresses, *ttl)),
            (None, Some(e)) => Err(e),
            (None, None) => Ok((addresses, NEGATIVE_TTL)),
        }
    }

    /// Looks up records of one type. No records are an answer too.
    async fn lookup(
        &self,
        name: &str,
        kind: RecordType,
    ) -> Result<(Vec<RData>, Duration), ResolverError> {
        self.wait_for_rate().await;
        match self.resolver.lookup(name, kind).await {
            Ok(lookup) => Ok(records(&lookup, kind)),
            Err(e) if e.is_no_records_found() => Ok((Vec::new(), NEGATIVE_TTL)),
            Err(e) => Err(ResolverError::Failed {
                name: name.into(),
                error: e.to_string(),
            }),
        }
    }

    /// Waits until the rate limit permits a query. A query that the cache answers counts too.
    async fn wait_for_rate(&self) {
        loop {
            let taken = {
                let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
                rate.take(Instant::now())
            };
            match taken {
                Ok(()) => return,
                Err(until) => sleep_until(until.into()).await,
            }
        }
    }
}

/// Returns the records of one type in an answer, behind any CNAME records, and their time to live.
fn records(lookup: &Lookup, kind: RecordType) -> (Vec<RData>, Duration) {
    let answers = lookup.answers().iter();
    let of_kind = answers.filter(|record| record.record_type() == kind);
    let records = of_kind.map(|record| record.data.clone()).collect();
    let ttl = lookup
        .valid_until()
        .saturating_duration_since(Instant::now());
    (records, ttl)
}
