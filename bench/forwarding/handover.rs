//! What handing packets to an actor costs, by how many go in one message. It stands beside the
//! cost of a packet: what an actor for each egress costs on top of the sockets.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Instant;

use actix::prelude::*;
use mcastor::pipeline::Slot;

use crate::Outcome;

/// Packets in one message.
const BATCHES: [usize; 3] = [1, 8, 64];
const PACKETS: usize = 400_000;
const SLOT: Slot = Slot {
    start: 0,
    len: 228,
    in_side_buffer: false,
    segments: None,
    path: 0,
    received_ns: 0,
};

/// Nanoseconds a packet, each round; by where the actor lives, and packets in a message.
pub type Handover = BTreeMap<(&'static str, usize), Vec<f64>>;

#[derive(Message)]
#[rtype(result = "()")]
struct Slots(Vec<Slot>);

#[derive(Message)]
#[rtype(result = "()")]
struct Done(mpsc::Sender<u64>);

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

impl Handler<Done> for Sink {
    type Result = ();

    fn handle(&mut self, done: Done, _: &mut Self::Context) {
        let _ = done.0.send(self.0);
    }
}

/// Measures so many rounds, the sizes taking turns.
pub fn measure(rounds: usize) -> Outcome<Handover> {
    let system = System::new();
    let mut all = Handover::new();
    for _ in 0..rounds {
        for batch in BATCHES {
            let here = all.entry(("same thread", batch)).or_default();
            here.push(system.block_on(same_thread(batch))?);
            let there = all.entry(("another thread", batch)).or_default();
            there.push(another_thread(batch)?);
        }
    }
    Ok(all)
}

async fn same_thread(batch: usize) -> Outcome<f64> {
    let sink = Sink::default().start();
    let started = Instant::now();
    for message in 0..PACKETS / batch {
        sink.try_send(Slots(vec![SLOT; batch]))?;
        // As the interface actor lets the forwarders come to send.
        if message % 4 == 3 {
            tokio::task::yield_now().await;
        }
    }
    let (tell, told) = mpsc::channel();
    sink.send(Done(tell)).await?;
    per_packet(started, told.recv()?)
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
    let (tell, told) = mpsc::channel();
    sink.do_send(Done(tell));
    let cost = per_packet(started, told.recv()?);
    arbiter.stop();
    cost
}

fn per_packet(started: Instant, packets: u64) -> Outcome<f64> {
    if packets != PACKETS as u64 {
        return Err(format!("{packets} of {PACKETS} packets came to the actor").into());
    }
    Ok(started.elapsed().as_nanos() as f64 / packets as f64)
}
