//! Containers that join and leave at random. `make soak` has more of them, for longer.

use std::time::{Duration, Instant};

use super::cases;
use super::docker::Site;
use crate::lab::{Lab, Ns, Numbered, PATIENCE, Random, Router, UdpRx, eventually, number};

cases!("containers_soak":
    #[Docker] nothing_is_lost_while_receivers_come_and_go,
);

const GROUPS: u32 = 4;

/// A number of the environment, or what a quick run takes.
fn or_quick(variable: &str, quick: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.map_or(quick, |v| v.parse().expect("a number"))
}

/// A container, and the group it is in.
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

    /// Leaves: from the first packet on there must be each, once, in order.
    #[track_caller]
    fn leave(&mut self, seed: u64) {
        let Some((rx, group, since)) = self.joined.take() else {
            return;
        };
        let numbers: Vec<u32> = rx.got().iter().map(|(_, bytes)| number(bytes)).collect();
        let gap = numbers.windows(2).find(|w| w[1] != w[0] + 1);
        assert!(
            gap.is_none(),
            "{} in group {group}: {gap:?} after {:?}; seed {seed}",
            self.name,
            since.elapsed()
        );
        assert!(
            !numbers.is_empty(),
            "{} in group {group}: nothing for {:?}; seed {seed}",
            self.name,
            since.elapsed()
        );
        self.windows += 1;
        self.packets += numbers.len() as u64;
    }
}

fn nothing_is_lost_while_receivers_come_and_go(lab: &Lab) {
    let containers = or_quick("MCASTOR_SOAK_CONTAINERS", 8) as usize;
    let seconds = Duration::from_secs(or_quick("MCASTOR_SOAK_SECONDS", 10));
    let site = Site::bridged(lab);
    // Timers as they are by default: shorter ones would have a busy machine answer too late.
    let proxy = "[[proxy]]\nname = \"p\"\ndownstream = [\"network:bridged\"]\nttl = { set = 16 }\n";
    let settings = format!("{}{proxy}", site.docker.settings());
    let router = Router::start(lab, &site.host, &settings);
    let started = |n: usize| {
        let name = format!("c{n}");
        site.docker.idle(&name, "--network bridged");
        let inside = site.docker.inside(lab, &name);
        Receiver {
            name,
            inside,
            joined: None,
            windows: 0,
            packets: 0,
        }
    };
    let mut all: Vec<Receiver> = (0..containers).map(started).collect();
    let streams: Vec<Numbered> = (0..GROUPS)
        .map(|group| {
            let to = format!("225.1.3.{group}:5000");
            Numbered::start(&site.lan, "eth0", "10.0.0.10:9", &to, 100)
        })
        .collect();
    let seed = Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id());
    let mut random = Random::new(seed);
    let end = Instant::now() + seconds;
    let stay = Duration::from_millis(1500);
    let mut restarts = 0;
    let limit = end + PATIENCE;
    let enough =
        |all: &[Receiver]| all.iter().map(|r| r.windows as usize).sum::<usize>() > containers;
    while Instant::now() < end || !enough(&all) && Instant::now() < limit {
        let at = random.below(all.len());
        match &all[at].joined {
            None if random.below(20) == 0 => {
                // Gone and back, as another container of the same name.
                let name = all[at].name.clone();
                site.docker.run(&format!("restart --time 0 {name}"));
                all[at].inside = site.docker.inside(lab, &name);
                restarts += 1;
            }
            None => all[at].join(random.below(GROUPS as usize) as u32),
            Some((_, _, since)) if since.elapsed() > stay => all[at].leave(seed),
            Some(_) => {}
        }
        std::thread::sleep(Duration::from_millis(5 + random.below(20) as u64));
    }
    eventually("who joined last has packets", true, || {
        let mut joined = all.iter().filter_map(|r| r.joined.as_ref());
        joined.all(|(rx, ..)| rx.count() > 0)
    });
    all.iter_mut().for_each(|receiver| receiver.leave(seed));
    let sent: u32 = streams.into_iter().map(Numbered::finish).sum();
    let windows: u32 = all.iter().map(|r| r.windows).sum();
    let packets: u64 = all.iter().map(|r| r.packets).sum();
    println!(
        "{containers} containers, {windows} memberships, {restarts} restarts; {sent} packets sent, \
         {packets} received, none lost"
    );
    assert!(windows as usize > containers, "{windows} memberships only");
    // Not that all have left: a container that ends right after its leave may take the report
    // with it, and then only time ends the membership (RFC 9776 section 8.4).
    router.stop();
}
