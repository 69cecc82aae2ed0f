//! A receive ring shared with the kernel: `TPACKET_V3`, blocks of frames of any length
//! (kernel Documentation/networking/packet_mmap.rst).
//!
//! The kernel fills a block and then hands it over: it sets `TP_STATUS_USER` in the block header. A
//! [`RingBlock`] is one such block. Its owner may read and change its frames in place. Dropping it
//! clears the status and thereby returns the block to the kernel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use libc::{tpacket_block_desc, tpacket_req3, tpacket3_hdr};

use super::fanout::{FanoutGroupId, FanoutMember};
use super::filter::CaptureFilter;
use super::packet::{Frame, bind, sender, set_option, set_option_int, socket};
use super::shared_mapping::SharedMapping;
use super::{filter, packet};
use crate::model::IfIndex;
use crate::wire::offload::{Offload, VNET_HEADER_LEN};
use crate::wire::vlan::vlan_id;

/// Size of a receive ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSize {
    /// Bytes per block: a multiple of the page size, and more than the largest packet.
    pub block: u32,
    /// Number of blocks.
    pub blocks: u32,
    /// Milliseconds after which the kernel hands over a block that is not full.
    pub retire_ms: u32,
}

impl Default for RingSize {
    /// Returns a ring of 5 MiB. A block holds the 64 KiB packets of segmentation offload. At
    /// 300,000 small packets per second a block is almost full after 2 ms, so the ring holds 50 ms
    /// of traffic. With a shorter timeout the kernel would hand over blocks that are partly empty,
    /// and the ring would run out of blocks.
    fn default() -> Self {
        Self {
            block: 128 << 10,
            blocks: 40,
            retire_ms: 2,
        }
    }
}

struct RingMapping {
    memory: SharedMapping,
    block_len: usize,
    /// Per block, whether a [`RingBlock`] for it exists. The status word alone cannot distinguish a
    /// block that is still held from one that the kernel handed over again.
    lent: Box<[AtomicBool]>,
}

// SAFETY: the mapping is plain memory that stays valid until the last owner drops it. Words that
// the kernel changes concurrently are accessed as atomics only, and the bytes of a block belong to
// the one `RingBlock` that `lent` permits.
unsafe impl Send for RingMapping {}
// SAFETY: as above.
unsafe impl Sync for RingMapping {}

impl RingMapping {
    fn status(&self, block: usize) -> &AtomicU32 {
        let desc = self
            .memory
            .base()
            .wrapping_add(block * self.block_len)
            .cast::<tpacket_block_desc>();
        // SAFETY: `block` is below the number of blocks, so the descriptor is inside the mapping
        // and aligned to a page. The status word is shared with the kernel and only accessed as an
        // atomic.
        unsafe { AtomicU32::from_ptr(&raw mut (*desc).hdr.bh1.block_status) }
    }

    /// The number of packets in a block so far.
    fn packet_count(&self, block: usize) -> &AtomicU32 {
        let desc = self
            .memory
            .base()
            .wrapping_add(block * self.block_len)
            .cast::<tpacket_block_desc>();
        // SAFETY: as for `status`.
        unsafe { AtomicU32::from_ptr(&raw mut (*desc).hdr.bh1.num_pkts) }
    }
}

/// A capture socket with its ring.
pub struct CaptureRing {
    fd: Arc<OwnedFd>,
    map: Arc<RingMapping>,
    next: usize,
    size: RingSize,
}

impl CaptureRing {
    /// Opens a ring that joins `group` and receives only packets for which the group selects it.
    /// Captures what `filter` accepts, incoming and outgoing.
    pub fn open(
        index: IfIndex,
        filter: &CaptureFilter,
        size: RingSize,
        group: FanoutGroupId,
    ) -> io::Result<Self> {
        let fd = socket(libc::SOCK_RAW)?;
        let version = libc::tpacket_versions::TPACKET_V3 as i32;
        set_option_int(&fd, libc::SOL_PACKET, libc::PACKET_VERSION, version)?;
        set_option_int(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        // Without this filter the socket would receive duplicates of the packets of the other group
        // members between `bind` and `join`.
        filter::attach(&fd, &filter::drop_all())?;
        let request = tpacket_req3 {
            tp_block_size: size.block,
            tp_block_nr: size.blocks,
            tp_frame_size: size.block,
            tp_frame_nr: size.blocks,
            tp_retire_blk_tov: size.retire_ms,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set_option(&fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let map = Arc::new(map_ring(&fd, size)?);
        bind(&fd, index, libc::ETH_P_ALL as u16)?;
        let fd = Arc::new(fd);
        FanoutMember::new(fd.clone()).join(group)?;
        filter.attach(&fd)?;
        Ok(Self {
            fd,
            map,
            next: 0,
            size,
        })
    }

    /// Continues the capture of a ring of this size that another process has opened.
    /// [`CaptureRing::continue_at`] must follow before a block is read.
    ///
    /// # Errors
    /// The ring cannot be mapped.
    pub fn from_socket(fd: OwnedFd, size: RingSize) -> io::Result<Self> {
        let map = Arc::new(map_ring(&fd, size)?);
        Ok(Self {
            fd: Arc::new(fd),
            map,
            next: 0,
            size,
        })
    }

    /// Returns another descriptor of the socket, for another process.
    ///
    /// # Errors
    /// The process has too many open files.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Returns the size.
    pub fn size(&self) -> RingSize {
        self.size
    }

    /// Returns the block that is read next; `None` while this process still holds earlier ones.
    pub fn position(&self) -> Option<u32> {
        let is_held = |lent: &AtomicBool| lent.load(Ordering::Acquire);
        (!self.map.lent.iter().any(is_held)).then_some(self.next as u32)
    }

    /// Reads this block next: the [`CaptureRing::position`] of another process.
    pub fn continue_at(&mut self, position: u32) {
        self.next = position as usize % self.map.lent.len().max(1);
    }

    /// Replaces the filter.
    ///
    /// # Errors
    /// The kernel refuses the filter.
    pub fn set_filter(&self, filter: &CaptureFilter) -> io::Result<()> {
        filter.attach(&self.fd)
    }

    /// Returns the next block if the kernel handed it over.
    pub fn next_block(&mut self) -> Option<RingBlock> {
        let index = self.next;
        let status = self.map.status(index).load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 || self.map.lent[index].load(Ordering::Acquire) {
            return None;
        }
        self.map.lent[index].store(true, Ordering::Relaxed);
        self.next = (index + 1) % self.map.lent.len();
        Some(RingBlock {
            map: self.map.clone(),
            index,
        })
    }

    /// Returns true if [`CaptureRing::next_block`] has returned all received packets. The ring
    /// stays drained only while the fanout group selects another socket.
    pub fn is_drained(&self) -> bool {
        let status = self.map.status(self.next).load(Ordering::Acquire);
        if self.map.lent[self.next].load(Ordering::Acquire) {
            // All blocks are held, so the kernel has none to fill.
            return true;
        }
        // The kernel fills this block next. It holds no packet if its count is zero: dropping a
        // `RingBlock` clears the count, so a block that the kernel has not started yet has zero.
        status & libc::TP_STATUS_USER == 0
            && self.map.packet_count(self.next).load(Ordering::Acquire) == 0
    }

    /// Returns the number of packets that the kernel dropped since the last call because the ring
    /// was full.
    pub fn take_dropped(&self) -> io::Result<u64> {
        packet::take_dropped(&self.fd)
    }

    /// Stops the capture. Packets that are already in the ring can still be received.
    pub fn stop_capture(&self) -> io::Result<()> {
        filter::attach(&self.fd, &filter::drop_all())
    }

    /// Returns and clears the pending error of the socket, such as `ENETDOWN`.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        socket2::SockRef::from(&*self.fd).take_error()
    }
}

impl AsRawFd for CaptureRing {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

fn map_ring(fd: &OwnedFd, size: RingSize) -> io::Result<RingMapping> {
    let len = size.block as usize * size.blocks as usize;
    Ok(RingMapping {
        memory: SharedMapping::new(fd.as_fd(), len)?,
        block_len: size.block as usize,
        lent: (0..size.blocks).map(|_| AtomicBool::new(false)).collect(),
    })
}

/// One block of frames. The kernel does not write to it until it is dropped.
pub struct RingBlock {
    map: Arc<RingMapping>,
    index: usize,
}

impl RingBlock {
    /// Returns the whole block.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the block lies inside the mapping, which outlives `self`. The kernel does not
        // write to a lent block, and this process writes to it only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.base(), self.map.block_len) }
    }

    /// Returns the whole block for changing frames in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`. `lent` ensures that this is the only `RingBlock` of its memory,
        // and `&mut self` that this is the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.base(), self.map.block_len) }
    }

    fn base(&self) -> *mut u8 {
        self.map
            .memory
            .base()
            .wrapping_add(self.index * self.map.block_len)
    }

    /// Appends the frames of the block to `frames` in order of arrival. Returns the number of places
    /// without a frame: the kernel reserved them for packets whose offload it cannot describe, and
    /// counted these packets as dropped.
    pub fn frames(&self, frames: &mut Vec<Frame>) -> u64 {
        let desc = self.base().cast::<tpacket_block_desc>();
        // SAFETY: the descriptor is at the start of the block, inside the mapping, and the kernel
        // does not write to a lent block.
        let (count, first) = unsafe {
            let header = (*desc).hdr.bh1;
            (header.num_pkts, header.offset_to_first_pkt as usize)
        };
        frames.reserve(count as usize);
        let mut offset = first;
        let mut empty = 0;
        for _ in 0..count {
            let Some((frame, next_offset)) = self.frame(offset) else {
                break;
            };
            match frame {
                Some(frame) => frames.push(frame),
                None => empty += 1,
            }
            offset += next_offset;
        }
        empty
    }

    /// Reads the frame header at offset `at`. Also returns the distance to the next header. The
    /// frame is `None` if the place contains no packet, but the remains of an earlier one. The
    /// result is `None` if the header lies outside the block, which the kernel never does.
    fn frame(&self, at: usize) -> Option<(Option<Frame>, usize)> {
        let header_len = size_of::<tpacket3_hdr>() + size_of::<libc::sockaddr_ll>();
        let bytes = self.bytes();
        let header = bytes.get(at..at + header_len)?;
        // SAFETY: the slice is long enough for both structs. They consist of integers, for which
        // any bytes are valid, and `read_unaligned` requires no alignment.
        let (h, address) = unsafe {
            let base = header.as_ptr();
            let address = base.add(size_of::<tpacket3_hdr>());
            (
                base.cast::<tpacket3_hdr>().read_unaligned(),
                address.cast::<libc::sockaddr_ll>().read_unaligned(),
            )
        };
        if h.tp_status & libc::TP_STATUS_USER == 0 {
            return Some((None, h.tp_next_offset as usize));
        }
        let (mac, net) = (usize::from(h.tp_mac), usize::from(h.tp_net));
        let link_len = net.checked_sub(mac)?;
        let start = at + net;
        let end = at + mac + h.tp_snaplen as usize;
        let vnet: &[u8; VNET_HEADER_LEN] = bytes
            .get((at + mac).checked_sub(VNET_HEADER_LEN)?..)?
            .first_chunk()?;
        if end > bytes.len() {
            return None;
        }
        let tagged = h.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
        let frame = Frame {
            start: start as u32,
            len: end.saturating_sub(start) as u32,
            received_ns: u64::from(h.tp_sec) * 1_000_000_000 + u64::from(h.tp_nsec),
            ethertype: u16::from_be(address.sll_protocol),
            vlan: tagged.then(|| vlan_id(h.hv1.tp_vlan_tci as u16)),
            offload: Offload::from_vnet_header(vnet, link_len as u16),
            sender: sender(&address),
            outgoing: packet::is_outgoing(&address),
            truncated: h.tp_snaplen < h.tp_len,
        };
        Some((Some(frame), h.tp_next_offset as usize))
    }
}

impl Drop for RingBlock {
    fn drop(&mut self) {
        self.map
            .packet_count(self.index)
            .store(0, Ordering::Relaxed);
        // The order matters: a block that is not lent but still has TP_STATUS_USER would be
        // returned by `next_block` a second time.
        self.map
            .status(self.index)
            .store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.map.lent[self.index].store(false, Ordering::Release);
    }
}
