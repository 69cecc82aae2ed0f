//! `mcastor demo`: test streams through a router, isolated in three network namespaces.
//!
//! ```text
//!   sender              router              receiver
//!   eth0 ------------ in      out ------------ eth0
//!   198.18.1.2     198.18.1.1  198.18.2.1     198.18.2.2
//!   2001:2:0:1::2                             2001:2:0:2::2
//! ```
//!
//! The addresses are reserved for tests of network devices (RFC 2544, RFC 5180). The router is a
//! child process that runs `mcastor run`. Threads in the other two namespaces send and receive the
//! streams. The namespaces have no name on the host, so the kernel removes them with the process.

pub mod error;
pub mod flows;
pub mod network;
pub mod router;
pub mod view;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use error::{DemoError, system_error};
use flows::{DemoFlow, FlowStates};
use network::DemoNetwork;
use router::RouterProcess;
use view::{DemoOutcome, DemoView, Verdict};

/// Longest wait until the router is ready and the receivers have joined.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for the last packets and counter updates after the senders have finished.
const SETTLE: Duration = Duration::from_secs(2);
/// How often the progress is checked.
const TICK: Duration = Duration::from_millis(50);
/// Packets per second and flow during the test.
const RATE: f64 = 1000.0;
/// Packets per second and flow after the verdict, with `--keep`.
const KEEP_RATE: f64 = 10.0;

/// Options of the demo.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Duration of the test in seconds.
    pub seconds: u32,
    /// Whether the demo continues after the verdict until it is stopped.
    pub keep: bool,
}

/// Runs the demo until the verdict, or with `keep` until `stop`. Calls `on_outcome` once, with the
/// verdict. Unless the process is root, it must have only one thread when this is called.
pub fn run(
    options: &DemoOptions,
    view: &mut DemoView,
    stop: &AtomicBool,
    on_outcome: &mut dyn FnMut(&DemoOutcome),
) -> Result<Verdict, DemoError> {
    let listener = router::bind_http().map_err(system_error("listen on 127.0.0.1"))?;
    let network = DemoNetwork::new()?;
    let flows = DemoFlow::all(network.has_ipv6);
    let mut router = RouterProcess::start(&network.router, listener, &flows)?;
    let states = FlowStates::new(flows.len());
    let outcome = match router.wait_ready(PATIENCE, stop)? {
        Some(reason) => DemoOutcome::failed(reason, router.metrics_url()),
        None => {
            view.print_line(&format!(
                "router ready, metrics at {}",
                router.metrics_url()
            ));
            measure(options, view, stop, &network, &flows, &states, &mut router)?
        }
    };
    on_outcome(&outcome);

    if options.keep && !stop.load(Ordering::Relaxed) && router.exit_reason().is_none() {
        view.print_line(&format!(
            "\nsending {KEEP_RATE} packets/s per flow until Ctrl-C\n  metrics  {}\n  \
             control  {}\n  settings {}",
            router.metrics_url(),
            router.socket().display(),
            router.config().display(),
        ));
        std::thread::scope(|scope| {
            for (flow, state) in flows.iter().zip(&states.flows) {
                let network = &network;
                scope.spawn(move || flow.send(&network.sender, KEEP_RATE, None, state, stop));
                scope.spawn(move || flow.receive(&network.receiver, state, stop));
            }
        });
    }
    router.stop();
    Ok(outcome.verdict)
}

/// Sends for `options.seconds` and derives the verdict from the counts.
fn measure(
    options: &DemoOptions,
    view: &mut DemoView,
    stop: &AtomicBool,
    network: &DemoNetwork,
    flows: &[DemoFlow],
    states: &FlowStates,
    router: &mut RouterProcess,
) -> Result<DemoOutcome, DemoError> {
    let halt = &AtomicBool::new(false);
    let count = (f64::from(options.seconds) * RATE) as u64;
    std::thread::scope(|scope| {
        // Stops the receivers on every return, because the scope waits for them.
        let _halt = SetOnDrop(halt);
        let pairs = || flows.iter().zip(&states.flows);
        let receivers: Vec<_> = pairs()
            .map(|(flow, state)| scope.spawn(move || flow.receive(&network.receiver, state, halt)))
            .collect();
        states.wait_joined(PATIENCE, stop);
        let senders: Vec<_> = pairs()
            .map(|(flow, state)| {
                scope.spawn(move || flow.send(&network.sender, RATE, Some(count), state, stop))
            })
            .collect();
        let started = Instant::now();
        let mut shown = 0;
        while !senders.iter().all(|s| s.is_finished()) {
            std::thread::sleep(TICK);
            if started.elapsed().as_secs() > shown {
                shown = started.elapsed().as_secs();
                view.print_table(shown, &states.rows(flows, &router.forwarded(), false));
            }
        }
        for sender in senders {
            sender.join().map_err(|_| panicked())??;
        }
        // The last packets may still be in flight, and the router's counters lag behind them.
        let settled = Instant::now();
        let forwarded = loop {
            let forwarded = router.forwarded();
            let rows = states.rows(flows, &forwarded, true);
            if settled.elapsed() > SETTLE || rows.iter().all(|r| r.failure().is_none()) {
                break forwarded;
            }
            std::thread::sleep(TICK);
        };
        // A receiver ends by itself when its stream is complete and the wait for duplicates is
        // over.
        let ended = Instant::now();
        while ended.elapsed() < SETTLE
            && states
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
        let rows = states.rows(flows, &forwarded, true);
        view.print_table(started.elapsed().as_secs(), &rows);
        let (exit, drops) = (router.exit_reason(), router.drops());
        Ok(DemoOutcome::judge(rows, exit, &drops, router.metrics_url()))
    })
}

/// Sets a flag when it is dropped.
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
