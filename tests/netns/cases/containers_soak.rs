//! Containers that join and leave at random. `make soak` runs more of them for longer.

use std::time::{Duration, Instant};

use super::cases;
use super::docker::Site;
use crate::lab::{
    Lab, Ns, NumberedStream, Random, Router, TIMEOUT, UdpRx, eventually, sequence_number,
};

cases!("containers_soak":
    #[Docker] random_joins_and_restarts_lose_no_packet,
);

const GROUPS: u32 = 4;

/// Returns the number in an environment variable, or `default` for a quick run.
fn from_env(variable: &str, default: u64) -> u64 {
    let value = std::env::var(variable).ok();
    value.map_or(default, |v| v.parse().expect("a number"))
}

/// A container and the group that it has joined.
struct Receiver {
    name: String,
    inside: Ns,
    joined: Option<(UdpRx, u32, Instant)>,
    windows: u32,
    packets: u64,
}

impl Receiver {
    fn join(&mut self, group: u32) {
        let to = format!("225.1.3.{group}:5000");
        let rx = UdpRx::join(&self.inside, "eth0", &to);
        self.joined = Some((rx, group, Instant::now()));
    }

    /// Leaves the group. Every packet since the first received one must have arrived once, in
    /// order.
    #[track_caller]
    fn leave(&mut self, seed: u64) {
        let Some((rx, group, since)) = self.joined.take() else {
            return;
        };
        let numbers: Vec<u32> = rx
            .received()
            .iter()
            .map(|(_, bytes)| sequence_number(bytes))
            .collect();
        let gap = numbers.windows(2).find(|w| w[1] != w[0] + 1);
        assert!(
            gap.is_none(),
            "{} in group {group}: {gap:?} after {:?}; seed {seed}",
            self.name,
            since.elapsed()
        );
        assert!(
            !numbers.is_empty(),
            "{} in group {group}: no packets for {:?}; seed {seed}",
            self.name,
            since.elapsed()
        );
        self.windows += 1;
        self.packets += numbers.len() as u64;
    }
}

fn random_joins_and_restarts_lose_no_packet(lab: &Lab) {
    let containers = from_env("MCASTOR_SOAK_CONTAINERS", 8) as usize;
    let seconds = Duration::from_secs(from_env("MCASTOR_SOAK_SECONDS", 10));
    let site = Site::bridged(lab);
    // Default timers: a busy machine would answer too late for shorter ones.
    let proxy = "[[proxy]]\nname = \"p\"\ndownstream = [\"network:bridged\"]\nttl = { set = 16 }\n";
    let settings = format!("{}{proxy}", site.docker.settings());
    let router = Router::start(lab, &site.host, &settings);
    let start = |n: usize| {
        let name = format!("c{n}");
        site.docker.run_idle(&name, "--network bridged");
        let inside = site.docker.namespace_of(lab, &name);
        Receiver {
            name,
            inside,
            joined: None,
            windows: 0,
            packets: 0,
        }
    };
    let mut all: Vec<Receiver> = (0..containers).map(start).collect();
    let streams: Vec<NumberedStream> = (0..GROUPS)
        .map(|group| {
            let to = format!("225.1.3.{group}:5000");
            NumberedStream::start(&site.lan, "eth0", "10.0.0.10:9", &to, 100)
        })
        .collect();
    let seed = Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id());
    let mut random = Random::new(seed);
    let end = Instant::now() + seconds;
    let stay = Duration::from_millis(1500);
    let mut restarts = 0;
    let limit = end + TIMEOUT;
    let enough =
        |all: &[Receiver]| all.iter().map(|r| r.windows as usize).sum::<usize>() > containers;
    while Instant::now() < end || !enough(&all) && Instant::now() < limit {
        let at = random.below(all.len());
        match &all[at].joined {
            None if random.below(20) == 0 => {
                // The container restarts under the same name.
                let name = all[at].name.clone();
                site.docker.run(&format!("restart --time 0 {name}"));
                all[at].inside = site.docker.namespace_of(lab, &name);
                restarts += 1;
            }
            None => all[at].join(random.below(GROUPS as usize) as u32),
            Some((_, _, since)) if since.elapsed() > stay => all[at].leave(seed),
            Some(_) => {}
        }
        std::thread::sleep(Duration::from_millis(5 + random.below(20) as u64));
    }
    eventually("the last joins receive packets", true, || {
        let mut joined = all.iter().filter_map(|r| r.joined.as_ref());
        joined.all(|(rx, ..)| rx.count() > 0)
    });
    all.iter_mut().for_each(|receiver| receiver.leave(seed));
    let sent: u32 = streams.into_iter().map(NumberedStream::finish).sum();
    let windows: u32 = all.iter().map(|r| r.windows).sum();
    let packets: u64 = all.iter().map(|r| r.packets).sum();
    println!(
        "{containers} containers, {windows} memberships, {restarts} restarts; {sent} packets sent, \
         {packets} received, none lost"
    );
    assert!(windows as usize > containers, "{windows} memberships only");
    // The test does not check that all members have left: a container that exits right after its
    // leave may lose the report, and then the membership ends by timeout (RFC 9776 section 8.4).
    router.stop();
}
