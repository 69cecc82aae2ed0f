//! State of streams that the interface actors share: active ingresses and other forwarders.

use super::active_ingress::{ActiveIngresses, IngressSelection};
use super::bandwidth_table::BandwidthTable;
use super::other_forwarders::OtherForwarders;
use super::stream_key::StreamKey;
use crate::model::MacAddress;

/// The state of all streams.
#[derive(Default)]
pub struct StreamState {
    /// The active ingress of each stream.
    pub ingresses: ActiveIngresses,
    /// The stations that send streams to links to which this router forwards them.
    pub forwarders: OtherForwarders,
    /// The streams of interfaces with a bandwidth limit.
    pub bandwidth: BandwidthTable,
}

impl StreamState {
    /// Returns the state for this number of streams.
    pub fn for_streams(streams: usize) -> Self {
        Self {
            ingresses: ActiveIngresses::for_streams(streams),
            forwarders: OtherForwarders::default(),
            bandwidth: BandwidthTable::default(),
        }
    }

    /// Notes a packet of `bytes` bytes that arrived from `sender` on the link of `selection`. If
    /// the stream has another active ingress, the sender is another forwarder on that link, or the
    /// source itself.
    pub fn note_arrival(
        &self,
        selection: &IngressSelection,
        stream: StreamKey,
        (sender, bytes): (MacAddress, u64),
        now_ms: u64,
    ) {
        // Some links return frames to their sender.
        if selection.address == Some(sender) {
            return;
        }
        let link = selection.interface;
        let active = self.ingresses.active(stream, now_ms);
        if active.is_none_or(|active| active == link) {
            return;
        }
        let own = selection.address;
        self.forwarders
            .note(stream, link, own, (sender, bytes), now_ms);
        self.ingresses.mark_contested(stream, now_ms);
    }
}
