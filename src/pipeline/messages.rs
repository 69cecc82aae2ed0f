//! Captured IGMP, MLD and router discovery messages, on their way to the actor that processes them.

/// A captured message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapturedMessage<'a> {
    /// The IP packet.
    pub bytes: &'a [u8],
    /// Whether this host sent it.
    pub outgoing: bool,
}

/// A list of IP packets in one buffer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Messages {
    bytes: Vec<u8>,
    /// The offset of the end of each packet, and whether this host sent it.
    ends: Vec<(u32, bool)>,
}

impl Messages {
    /// Returns the number of packets.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns true if there are no packets.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns the packet that was added at this position.
    pub fn get(&self, at: usize) -> Option<CapturedMessage<'_>> {
        let (end, outgoing) = *self.ends.get(at)?;
        let start = match at {
            0 => 0,
            _ => self.ends.get(at - 1)?.0,
        };
        Some(CapturedMessage {
            bytes: self.bytes.get(start as usize..end as usize)?,
            outgoing,
        })
    }

    /// Iterates over the packets, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = CapturedMessage<'_>> {
        (0..self.ends.len()).filter_map(|at| self.get(at))
    }

    /// Appends a packet.
    pub(crate) fn push(&mut self, message: CapturedMessage<'_>) {
        self.bytes.extend_from_slice(message.bytes);
        self.ends.push((self.bytes.len() as u32, message.outgoing));
    }
}
