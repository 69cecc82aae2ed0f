//! A stream across a router, on a host of its own: three network namespaces, two cables.
//!
//! ```text
//!   sender              router              receiver
//!   eth0 ------------ in      out ------------ eth0
//!   198.18.1.2     198.18.1.1  198.18.2.1     198.18.2.2
//!   2001:2:0:1::2                             2001:2:0:2::2
//! ```
//!
//! The addresses are those set aside for tests of network devices (RFC 2544, RFC 5180). The
//! router is this program's `run` in a child process; the streams come from threads that live in
//! the other two namespaces. Nothing of it has a name on the host, so nothing is left behind.

pub mod flows;
pub mod network;
pub mod router;
pub mod view;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flows::{DemoFlow, FlowStates};
use network::DemoNetwork;
use router::RouterProcess;
use view::{DemoOutcome, DemoView, Verdict};

use crate::probe::StreamError;

/// Longest wait for the router to say that it is ready, and for its last counts.
const PATIENCE: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(2);
/// How often the state of affairs is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Packets per second and flow, during the test and while `--keep` stays up.
const RATE: f64 = 1000.0;
const KEEP_RATE: f64 = 10.0;

/// Why the demo cannot run: not a verdict on the router.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The system gives no namespaces.
    #[error(
        "cannot make network namespaces: {0}\n\
         Run it as root (`sudo mcastor demo`). Without root it takes unprivileged user namespaces: \
         sysctl user.max_user_namespaces above 0, and where they exist \
         kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0. \
         In a container: --cap-add SYS_ADMIN --cap-add NET_ADMIN --cap-add NET_RAW."
    )]
    Namespaces(std::io::Error),
    /// Links or addresses could not be made.
    #[error(
        "cannot lay the cables of the demo: {0}\nIt takes the kernel's `veth` driver: `modprobe veth`."
    )]
    Cables(String),
    /// A file or a socket.
    #[error("cannot {what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        error: std::io::Error,
    },
    /// A stream could not be sent or received.
    #[error("{0}")]
    Stream(#[from] StreamError),
    /// The metrics of the router cannot be read over the loopback interface.
    #[error(
        "cannot reach 127.0.0.1: {0}\nThe loopback interface of this network namespace is down; \
         `ip link set lo up` mends it."
    )]
    Loopback(std::io::Error),
}

pub(crate) fn system(what: &'static str) -> impl Fn(std::io::Error) -> DemoError {
    move |error| DemoError::System { what, error }
}

/// What to do.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// How long to send.
    pub seconds: u32,
    /// Stay up after the verdict.
    pub keep: bool,
}

/// Runs the demo until the verdict, and with `keep` until `stop`; `tell` gets the verdict when it
/// stands. Must be called while the process has one thread, unless it is root.
pub fn run(
    plan: &DemoOptions,
    view: &mut DemoView,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(&DemoOutcome),
) -> Result<Verdict, DemoError> {
    let listener = router::bind_http().map_err(system("listen on 127.0.0.1"))?;
    let lab = DemoNetwork::new()?;
    let flows = DemoFlow::all(lab.has_ipv6);
    let mut router = RouterProcess::start(&lab.router, listener, &flows)?;
    let running = FlowStates::new(flows.len());
    let outcome = match router.wait_ready(PATIENCE, stop)? {
        Some(reason) => DemoOutcome::failed(reason, router.metrics_url()),
        None => {
            view.say(&format!(
                "router ready, metrics at {}",
                router.metrics_url()
            ));
            measure(plan, view, stop, &lab, &flows, &running, &mut router)?
        }
    };
    tell(&outcome);

    if plan.keep && !stop.load(Ordering::Relaxed) && router.gone().is_none() {
        view.say(&format!(
            "\nstaying up at {KEEP_RATE} packets/s and flow until Ctrl-C\n  metrics  {}\n  \
             control  {}\n  settings {}",
            router.metrics_url(),
            router.socket().display(),
            router.config().display(),
        ));
        std::thread::scope(|scope| {
            for (flow, state) in flows.iter().zip(&running.flows) {
                let lab = &lab;
                scope.spawn(move || flow.send(&lab.sender, KEEP_RATE, None, state, stop));
                scope.spawn(move || flow.receive(&lab.receiver, state, stop));
            }
        });
    }
    router.stop();
    Ok(outcome.verdict)
}

/// Sends for the planned time and judges what arrived.
fn measure(
    plan: &DemoOptions,
    view: &mut DemoView,
    stop: &AtomicBool,
    lab: &DemoNetwork,
    flows: &[DemoFlow],
    running: &FlowStates,
    router: &mut RouterProcess,
) -> Result<DemoOutcome, DemoError> {
    let halt = &AtomicBool::new(false);
    let count = (f64::from(plan.seconds) * RATE) as u64;
    std::thread::scope(|scope| {
        // Ends the receivers on every way out, or the scope would wait for them for ever.
        let _halt = SetOnDrop(halt);
        let pairs = || flows.iter().zip(&running.flows);
        let receivers: Vec<_> = pairs()
            .map(|(flow, state)| scope.spawn(move || flow.receive(&lab.receiver, state, halt)))
            .collect();
        running.wait_joined(PATIENCE, stop);
        let senders: Vec<_> = pairs()
            .map(|(flow, state)| {
                scope.spawn(move || flow.send(&lab.sender, RATE, Some(count), state, stop))
            })
            .collect();
        let started = Instant::now();
        let mut shown = 0;
        while !senders.iter().all(|s| s.is_finished()) {
            std::thread::sleep(TICK);
            if started.elapsed().as_secs() > shown {
                shown = started.elapsed().as_secs();
                view.table(shown, &running.rows(flows, &router.forwarded(), false));
            }
        }
        for sender in senders {
            sender.join().map_err(|_| panicked())??;
        }
        // The last packets may still be on the way, and the counters behind them.
        let settled = Instant::now();
        let forwarded = loop {
            let forwarded = router.forwarded();
            let rows = running.rows(flows, &forwarded, true);
            if settled.elapsed() > SETTLE || rows.iter().all(|r| r.trouble().is_none()) {
                break forwarded;
            }
            std::thread::sleep(TICK);
        };
        // A receiver ends by itself when its stream is whole and no duplicate followed.
        let ended = Instant::now();
        while ended.elapsed() < SETTLE
            && running
                .rows(flows, &forwarded, true)
                .iter()
                .all(|r| r.lost == 0)
            && !receivers.iter().all(|r| r.is_finished())
        {
            std::thread::sleep(TICK);
        }
        halt.store(true, Ordering::Relaxed);
        for receiver in receivers {
            receiver.join().map_err(|_| panicked())??;
        }
        let rows = running.rows(flows, &forwarded, true);
        view.table(started.elapsed().as_secs(), &rows);
        let (gone, drops) = (router.gone(), router.drops());
        Ok(DemoOutcome::judge(rows, gone, &drops, router.metrics_url()))
    })
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn panicked() -> DemoError {
    DemoError::System {
        what: "run a stream",
        error: std::io::Error::other("its thread panicked"),
    }
}
