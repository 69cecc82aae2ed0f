//! A router over the simulated plane, and packets for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use mcastor::actors::RouterContext;
use mcastor::actors::control::links::LinkSource;
use mcastor::actors::messages::{LinksChanged, Shutdown};
use mcastor::actors::supervisor::{Supervisor, SupervisorConfig};
use mcastor::app::children;
use mcastor::forward::DropReason;
use mcastor::metrics::Catalog;
use mcastor::model::{InterfaceId, Link, Links, RouteName, RouteRule, TtlPolicy};
use mcastor::planes::Planes;
use mcastor::planes::sim::SimPlane;
use mcastor::store::Store;
use mcastor::sys::membership_keeper::MembershipKeeper;
use mcastor::table::{InterfaceOptions, Rib};
use tokio_util::sync::CancellationToken;

use super::faulty::{Faults, Faulty};

pub const PATIENCE: Duration = Duration::from_secs(10);

/// A router over the simulated plane.
pub struct Router {
    pub sim: SimPlane,
    pub faults: Arc<Faults>,
    pub context: Arc<RouterContext>,
    pub supervisor: Addr<Supervisor>,
    pub failed: CancellationToken,
}

impl Router {
    pub async fn start(
        rules: Vec<RouteRule>,
        options: Vec<InterfaceOptions>,
        links: &[Link],
    ) -> Self {
        let plane = Faulty::default();
        let (sim, faults) = (plane.sim.clone(), plane.faults.clone());
        let rib = Rib {
            rules: rules.into(),
            interfaces: options,
            ..Rib::default()
        };
        let (context, _requests) = RouterContext::new(
            Catalog::new().unwrap(),
            Planes::new(Box::new(plane), Vec::new()),
            rib,
            Store::in_memory(),
            MembershipKeeper::default(),
            1000,
            "/nowhere/docker.sock".into(),
        );
        let failed = CancellationToken::new();
        let supervisor = Supervisor::new(SupervisorConfig {
            context: context.clone(),
            children: children::children(None, LinkSource::Given(links.iter().cloned().collect())),
            failed: failed.clone(),
            workers: 2,
        })
        .start();
        let router = Self {
            sim,
            faults,
            context,
            supervisor,
            failed,
        };
        router
            .until("the router is ready", |r| r.context.health.is_ready())
            .await;
        router
    }

    /// Waits for a condition.
    pub async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let started_at = Instant::now();
        while !condition(self) {
            assert!(
                started_at.elapsed() < PATIENCE,
                "timeout, waiting until {what}\n{}",
                self.text()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub fn text(&self) -> String {
        let text = String::from_utf8(self.context.catalog.text().unwrap()).unwrap();
        let is_nonzero = |l: &&str| !l.starts_with('#') && !l.ends_with(" 0");
        text.lines()
            .filter(is_nonzero)
            .collect::<Vec<_>>()
            .join("\n")
    }

    pub fn links(&self, links: &[Link]) {
        let links: Links = links.iter().cloned().collect();
        assert!(self.context.directory.do_send(LinksChanged(links)));
    }

    pub async fn links_in_force(&self, links: &[Link], egresses: usize) {
        let before = self.context.snapshot.load().fib.generation;
        self.links(links);
        self.until("the snapshot is in force", |r| {
            let fib = &r.context.snapshot.load().fib;
            fib.generation > before && fib.egresses.len() == egresses
        })
        .await;
        self.until("the router is ready", |r| r.context.health.is_ready())
            .await;
    }

    pub fn arrive(&self, n: u32, numbers: std::ops::Range<u32>, ttl: u8) {
        for i in numbers {
            self.sim.arrive(index(n), &[&packet(i, ttl)]);
        }
    }

    pub fn received(&self, name: &str) -> u64 {
        self.context.catalog.interface(name).received_packets.get()
    }

    pub fn transmitted(&self, name: &str) -> u64 {
        let counters = self.context.catalog.interface(name);
        counters.transmitted_packets.get()
    }

    pub fn dropped(&self, name: &str, reason: DropReason) -> u64 {
        self.context.catalog.interface(name).dropped(reason).get()
    }

    pub fn all_dropped(&self, name: &str) -> u64 {
        let counters = self.context.catalog.interface(name);
        let all = DropReason::ALL.iter();
        all.map(|r| counters.dropped(*r).get()).sum()
    }

    pub fn path(&self, iif: &str, oif: &str) -> (u64, u64) {
        let counters = self
            .context
            .catalog
            .path(&RouteName::new("all"), iif, oif, "sim");
        (counters.packets.get(), counters.bytes.get())
    }

    pub fn restarts(&self, actor: &str) -> u64 {
        let line = format!("mcastor_actor_restarts_total{{actor=\"{actor}\"}} ");
        let text = self.text();
        let found = text.lines().find_map(|l| l.strip_prefix(&line));
        found.map_or(0, |n| n.parse().unwrap())
    }

    pub async fn stop(&self) {
        let stopped = tokio::time::timeout(PATIENCE, self.supervisor.send(Shutdown)).await;
        stopped.expect("shutdown in time").unwrap();
    }
}

pub fn index(n: u32) -> InterfaceId {
    InterfaceId::new(n).unwrap()
}

pub fn link(n: u32, name: &str) -> Link {
    Link::new(index(n), name.parse().unwrap())
}

pub fn rule(from: &str, to: &[&str], ttl: TtlPolicy) -> RouteRule {
    let group = "225.0.0.0/8".parse().unwrap();
    let to = to.iter().map(|t| t.parse().unwrap()).collect();
    RouteRule {
        // The tests send one stream on several interfaces.
        takeover: None,
        name: RouteName::new("all"),
        ttl,
        ..RouteRule::new(from.parse().unwrap(), group, to)
    }
}

pub fn packet(n: u32, ttl: u8) -> Vec<u8> {
    let mut p = vec![0u8; 32];
    p[0] = 0x45;
    p[3] = 32;
    p[8] = ttl;
    p[9] = 17;
    p[12..20].copy_from_slice(&[10, 0, 0, 1, 225, 1, 2, 3]);
    p[28..].copy_from_slice(&n.to_be_bytes());
    mcastor::wire::ip::refresh_ipv4_checksum(&mut p);
    p
}

pub fn numbers(packets: &[Vec<u8>]) -> Vec<u32> {
    let number = |p: &Vec<u8>| u32::from_be_bytes(p[28..32].try_into().unwrap());
    packets.iter().map(number).collect()
}
