//! Measures the cost per packet of passing packets to an actor, for several numbers of packets per
//! message. The router has an actor for each egress, so this cost adds to that of the sockets.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Instant;

use actix::prelude::*;
use mcastor::pipeline::Slot;

use crate::Outcome;

/// Packets per message.
const BATCHES: [usize; 3] = [1, 8, 64];
const PACKETS: usize = 400_000;
const SLOT: Slot = Slot {
    start: 0,
    len: 228,
    in_side_buffer: false,
    segments: None,
    path: 0,
    received_ns: 0,
    stream: None,
};

/// Nanoseconds per packet in each round. The key is the thread of the actor and the number of
/// packets per message.
pub type MessageCosts = BTreeMap<(&'static str, usize), Vec<f64>>;

#[derive(Message)]
#[rtype(result = "()")]
struct Slots(Vec<Slot>);

#[derive(Message)]
#[rtype(result = "()")]
struct GetCount(mpsc::Sender<u64>);

#[derive(Default)]
struct Sink(u64);

impl Actor for Sink {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(4096);
    }
}

impl Handler<Slots> for Sink {
    type Result = ();

    fn handle(&mut self, slots: Slots, _: &mut Self::Context) {
        self.0 += slots.0.len() as u64;
    }
}

impl Handler<GetCount> for Sink {
    type Result = ();

    fn handle(&mut self, request: GetCount, _: &mut Self::Context) {
        let _ = request.0.send(self.0);
    }
}

/// Runs `rounds` rounds. Each round measures every message size once.
pub fn measure(rounds: usize) -> Outcome<MessageCosts> {
    let system = System::new();
    let mut all = MessageCosts::new();
    for _ in 0..rounds {
        for batch in BATCHES {
            let same = all.entry(("same thread", batch)).or_default();
            same.push(system.block_on(same_thread(batch))?);
            let other = all.entry(("another thread", batch)).or_default();
            other.push(another_thread(batch)?);
        }
    }
    Ok(all)
}

async fn same_thread(batch: usize) -> Outcome<f64> {
    let sink = Sink::default().start();
    let started = Instant::now();
    for message in 0..PACKETS / batch {
        sink.try_send(Slots(vec![SLOT; batch]))?;
        // The interface actor yields in the same way, so that the forwarders can send.
        if message % 4 == 3 {
            tokio::task::yield_now().await;
        }
    }
    let (sender, receiver) = mpsc::channel();
    sink.send(GetCount(sender)).await?;
    per_packet(started, receiver.recv()?)
}

fn another_thread(batch: usize) -> Outcome<f64> {
    let arbiter = Arbiter::new();
    let sink = Sink::start_in_arbiter(&arbiter.handle(), |_| Sink::default());
    let started = Instant::now();
    for _ in 0..PACKETS / batch {
        let mut message = Slots(vec![SLOT; batch]);
        while let Err(SendError::Full(back)) = sink.try_send(message) {
            message = back;
            std::thread::yield_now();
        }
    }
    let (sender, receiver) = mpsc::channel();
    sink.do_send(GetCount(sender));
    let cost = per_packet(started, receiver.recv()?);
    arbiter.stop();
    cost
}

fn per_packet(started: Instant, packets: u64) -> Outcome<f64> {
    if packets != PACKETS as u64 {
        return Err(format!("{packets} of {PACKETS} packets reached the actor").into());
    }
    Ok(started.elapsed().as_nanos() as f64 / packets as f64)
}
