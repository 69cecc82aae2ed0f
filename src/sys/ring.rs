//! A receive ring shared with the kernel: `TPACKET_V3`, blocks of frames of any length
//! (kernel Documentation/networking/packet_mmap.rst).
//!
//! The kernel fills a block, then hands it over by setting `TP_STATUS_USER` in its header;
//! we hand it back by clearing that. A [`RingBlock`] is one handed-over block: whoever holds it
//! may read and change its frames in place, and dropping it hands it back.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use libc::{tpacket_block_desc, tpacket_req3, tpacket3_hdr};

use super::fanout::{FanoutGroupId, FanoutMember};
use super::packet::{Frame, bind, set_option, set_option_int, socket};
use super::{filter, packet};
use crate::model::IfIndex;
use crate::wire::offload::{Offload, VNET_HEADER_LEN};
use crate::wire::vlan::vlan_id;

/// Size of a receive ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSize {
    /// Bytes of a block: a multiple of the page size, and more than the largest packet.
    pub block: u32,
    /// How many blocks.
    pub blocks: u32,
    /// After how many milliseconds a block that is not full is handed over.
    pub retire_ms: u32,
}

impl Default for RingSize {
    /// 5 MiB; a block holds the 64 KiB packets that segmentation offload makes. Blocks that
    /// wait for 2 ms are about full at 300,000 small packets a second, so that the ring holds
    /// 50 ms of them; closed sooner, they would be handed over part empty and run out.
    fn default() -> Self {
        Self {
            block: 128 << 10,
            blocks: 40,
            retire_ms: 2,
        }
    }
}

struct RingMapping {
    base: *mut u8,
    len: usize,
    block_len: usize,
    /// Which blocks are lent out: the kernel's status alone cannot tell a block we still
    /// hold from one handed over anew.
    lent: Box<[AtomicBool]>,
}

// SAFETY: the mapping is plain memory that stays valid until the last owner drops it. All
// access to the parts that change under us goes through atomics, and the bytes of a block
// belong to the one `RingBlock` that `lent` allows.
unsafe impl Send for RingMapping {}
// SAFETY: as above.
unsafe impl Sync for RingMapping {}

impl RingMapping {
    fn status(&self, block: usize) -> &AtomicU32 {
        let desc = self
            .base
            .wrapping_add(block * self.block_len)
            .cast::<tpacket_block_desc>();
        // SAFETY: `block` is below the number of blocks, so the descriptor is inside the
        // mapping and aligned to a page; the status word is shared with the kernel and
        // therefore only ever accessed as an atomic.
        unsafe { AtomicU32::from_ptr(&raw mut (*desc).hdr.bh1.block_status) }
    }
}

impl RingMapping {
    /// How many packets are in a block so far.
    fn count(&self, block: usize) -> &AtomicU32 {
        let desc = self
            .base
            .wrapping_add(block * self.block_len)
            .cast::<tpacket_block_desc>();
        // SAFETY: as for `status`.
        unsafe { AtomicU32::from_ptr(&raw mut (*desc).hdr.bh1.num_pkts) }
    }
}

impl Drop for RingMapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those mmap returned, and no RingBlock exists any more: each
        // holds an Arc of this.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

/// A capture socket with its ring.
pub struct CaptureRing {
    fd: Arc<OwnedFd>,
    map: Arc<RingMapping>,
    next: usize,
}

impl CaptureRing {
    /// A ring that joins `group`, and captures what the group chooses it for: multicast of
    /// all IP protocols, incoming and outgoing, except what bears `mark` on its way out.
    pub fn open(
        index: IfIndex,
        mark: u32,
        size: RingSize,
        group: FanoutGroupId,
    ) -> io::Result<Self> {
        let fd = socket(libc::SOCK_RAW)?;
        let version = libc::tpacket_versions::TPACKET_V3 as i32;
        set_option_int(&fd, libc::SOL_PACKET, libc::PACKET_VERSION, version)?;
        set_option_int(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        // Between being bound and being in the group it would take in what the others get.
        filter::attach(&fd, &filter::nothing())?;
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
        filter::attach(&fd, &filter::multicast(mark))?;
        Ok(Self { fd, map, next: 0 })
    }

    /// The next block the kernel handed over, if there is one.
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

    /// Whether nothing is left that [`CaptureRing::next_block`] has not handed out. Only true for
    /// good while the group chooses another socket.
    pub fn is_drained(&self) -> bool {
        let status = self.map.status(self.next).load(Ordering::Acquire);
        if self.map.lent[self.next].load(Ordering::Acquire) {
            // Every block is out: the kernel had no room for anything further.
            return true;
        }
        // The block being filled: no packet in it yet. We clear the count of a block that we
        // hand back, so that one the kernel has not begun again counts none.
        status & libc::TP_STATUS_USER == 0 && self.map.count(self.next).load(Ordering::Acquire) == 0
    }

    /// Packets the kernel dropped since the last call because the ring was full.
    pub fn take_dropped(&self) -> io::Result<u64> {
        packet::take_dropped(&self.fd)
    }

    /// Takes nothing more in; what is in the ring is still handed out.
    pub fn shut(&self) -> io::Result<()> {
        filter::attach(&self.fd, &filter::nothing())
    }

    /// The error the kernel has for the socket, such as `ENETDOWN`; reading clears it.
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
    // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing of ours.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(RingMapping {
        base: base.cast(),
        len,
        block_len: size.block as usize,
        lent: (0..size.blocks).map(|_| AtomicBool::new(false)).collect(),
    })
}

/// One block of frames, ours until dropped.
pub struct RingBlock {
    map: Arc<RingMapping>,
    index: usize,
}

impl RingBlock {
    /// The whole block.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the block lies inside the mapping, which outlives `self`; while it is lent
        // the kernel does not write to it, and we write only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.base(), self.map.block_len) }
    }

    /// The whole block, to change frames in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`; `lent` makes this the only RingBlock of its memory, and
        // `&mut self` the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.base(), self.map.block_len) }
    }

    fn base(&self) -> *mut u8 {
        self.map.base.wrapping_add(self.index * self.map.block_len)
    }

    /// Appends the frames of the block to `frames`, in the order they came in.
    pub fn frames(&self, frames: &mut Vec<Frame>) {
        let desc = self.base().cast::<tpacket_block_desc>();
        // SAFETY: the descriptor stands at the start of the block, inside the mapping, and
        // the kernel does not write to a block that is lent.
        let (count, first) = unsafe {
            let header = (*desc).hdr.bh1;
            (header.num_pkts, header.offset_to_first_pkt as usize)
        };
        frames.reserve(count as usize);
        let mut at = first;
        for _ in 0..count {
            let Some((frame, step)) = self.frame(at) else {
                break;
            };
            frames.push(frame);
            at += step;
        }
    }

    /// Reads the frame header at `at`; also returns how far the next one is. `None` where
    /// the header does not fit the block, which the kernel never does.
    fn frame(&self, at: usize) -> Option<(Frame, usize)> {
        let header_len = size_of::<tpacket3_hdr>() + size_of::<libc::sockaddr_ll>();
        let bytes = self.bytes();
        let header = bytes.get(at..at + header_len)?;
        // SAFETY: the slice is long enough for both structs, they are plain numbers for
        // which any bytes are valid, and read_unaligned asks for no alignment.
        let (h, address) = unsafe {
            let base = header.as_ptr();
            let address = base.add(size_of::<tpacket3_hdr>());
            (
                base.cast::<tpacket3_hdr>().read_unaligned(),
                address.cast::<libc::sockaddr_ll>().read_unaligned(),
            )
        };
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
            cut: h.tp_snaplen < h.tp_len,
        };
        Some((frame, h.tp_next_offset as usize))
    }
}

impl Drop for RingBlock {
    fn drop(&mut self) {
        self.map.count(self.index).store(0, Ordering::Relaxed);
        // In this order: a block that is ours no more but looks handed over would be lent twice.
        self.map
            .status(self.index)
            .store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.map.lent[self.index].store(false, Ordering::Release);
    }
}
