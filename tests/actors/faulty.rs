//! The simulated plane with injected faults.

use std::io;
use std::panic::panic_any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use mcastor::model::InterfaceId;
use mcastor::pipeline::{Batch, OutPacket, PacketSink, PacketSource};
use mcastor::planes::Plane;
use mcastor::planes::sim::SimPlane;

/// Faults to inject. Each counter is the number of times its fault still occurs, except
/// `captures`, which counts the open captures.
#[derive(Default)]
pub struct Faults {
    pub capture_error: AtomicU32,
    pub capture_panic: AtomicU32,
    pub send_panic: AtomicU32,
    pub captures_refused: AtomicU32,
    pub captures: AtomicU32,
}

impl Faults {
    /// Consumes one occurrence of `fault`, if one is left.
    fn take(fault: &AtomicU32) -> bool {
        let decrement = |n: u32| n.checked_sub(1);
        fault
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, decrement)
            .is_ok()
    }
}

/// The simulated plane with injected faults.
#[derive(Clone, Default)]
pub struct Faulty {
    pub sim: SimPlane,
    pub faults: Arc<Faults>,
}

impl Plane for Faulty {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn capture(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSource>> {
        if Faults::take(&self.faults.captures_refused) {
            return Err(io::ErrorKind::Other.into());
        }
        self.faults.captures.fetch_add(1, Ordering::AcqRel);
        let capture = self.sim.capture(interface)?;
        Ok(Box::new(FaultyCapture(capture, self.faults.clone())))
    }

    fn transmit(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSink>> {
        let transmit = self.sim.transmit(interface)?;
        Ok(Box::new(FaultyTransmit(transmit, self.faults.clone())))
    }
}

struct FaultyCapture(Box<dyn PacketSource>, Arc<Faults>);

struct FaultyTransmit(Box<dyn PacketSink>, Arc<Faults>);

impl Drop for FaultyCapture {
    fn drop(&mut self) {
        self.1.captures.fetch_sub(1, Ordering::AcqRel);
    }
}

impl PacketSource for FaultyCapture {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        if Faults::take(&self.1.capture_error) {
            return Poll::Ready(Err(io::ErrorKind::Other.into()));
        }
        if Faults::take(&self.1.capture_panic) {
            panic_any("injected panic of a capture");
        }
        self.0.poll_batch(cx)
    }

    fn take_dropped(&mut self) -> u64 {
        self.0.take_dropped()
    }

    fn stop_capture(&mut self) {
        self.0.stop_capture();
    }

    fn mode(&self) -> &'static str {
        self.0.mode()
    }
}

impl PacketSink for FaultyTransmit {
    fn send(&mut self, packets: &mut dyn Iterator<Item = OutPacket<'_>>) -> io::Result<usize> {
        if Faults::take(&self.1.send_panic) {
            panic_any("injected panic of a transmit");
        }
        self.0.send(packets)
    }

    fn accepts_gso(&mut self) -> bool {
        self.0.accepts_gso()
    }

    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_writable(cx)
    }
}
