//! Receives many messages of a socket with one system call (`recvmmsg`) into pooled memory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use super::buffer::{Buffer, BufferPool, PACKETS, SMALL_LEN};

/// Smallest number of messages per call.
const MIN_BATCH: usize = 8;

/// Approximate number of bytes per call while large messages arrive.
const MAX_LARGE_BYTES: usize = 256 << 10;

/// Space for the control messages of a message.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct ControlBuffer(pub(super) [u8; 128]);

/// Data that the kernel writes.
///
/// # Safety
/// Any bytes are a valid value of the type.
pub(super) unsafe trait KernelData: Copy {}

// SAFETY: these types consist of integers.
unsafe impl KernelData for i32 {}
// SAFETY: as above.
unsafe impl KernelData for u32 {}
// SAFETY: as above.
unsafe impl KernelData for libc::timespec {}
// SAFETY: as above.
unsafe impl KernelData for libc::sockaddr_ll {}
// SAFETY: as above.
unsafe impl KernelData for libc::in_pktinfo {}
// SAFETY: as above.
unsafe impl KernelData for libc::in6_pktinfo {}

/// The messages of one call. `A` is the kind of address that they have.
pub(super) struct MessageBatch<A> {
    pool: BufferPool,
    /// The buffer for the next call, if it is already taken from the pool.
    spare: Option<Buffer>,
    /// Number of messages to request with the next call. Each of them has to be prepared, so the
    /// limit follows the number of messages that arrive.
    limit: usize,
    /// Whether the last call found fewer messages than it requested.
    is_drained: bool,
    messages: Box<[libc::mmsghdr; PACKETS]>,
    iovecs: Box<[[libc::iovec; 2]; PACKETS]>,
    addresses: Box<[A; PACKETS]>,
    controls: Box<[ControlBuffer; PACKETS]>,
}

// SAFETY: the pointers inside `messages` and `iovecs` are only followed during `receive`, which
// sets them before each system call.
unsafe impl<A: Send> Send for MessageBatch<A> {}

impl<A: KernelData> MessageBatch<A> {
    pub(super) fn new() -> Self {
        // SAFETY: a `mmsghdr` consists of integers and pointers, for which zeros are valid, and any
        // bytes are a valid address.
        let (message, address) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            pool: BufferPool::default(),
            spare: None,
            limit: MIN_BATCH,
            is_drained: false,
            messages: Box::new([message; PACKETS]),
            iovecs: Box::new([[iovec; 2]; PACKETS]),
            addresses: Box::new([address; PACKETS]),
            controls: Box::new([ControlBuffer([0; 128]); PACKETS]),
        }
    }

    /// Receives the waiting messages, at most one buffer of them. Returns the buffer and the number
    /// of messages. Does not block.
    ///
    /// # Errors
    /// `WouldBlock` if none waits, or an error of the kernel.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<(Buffer, usize)> {
        let mut buffer = match self.spare.take() {
            Some(buffer) => buffer,
            None => self.pool.take()?,
        };
        match self.receive_into(socket, &mut buffer, self.limit) {
            Ok(count) => {
                self.is_drained = count < self.limit;
                self.limit = self.next_limit(count);
                Ok((buffer, count))
            }
            Err(e) => {
                self.is_drained = e.kind() == io::ErrorKind::WouldBlock;
                self.spare = Some(buffer);
                Err(e)
            }
        }
    }

    /// Returns whether nothing waited any more after the last call.
    pub(super) fn is_drained(&self) -> bool {
        self.is_drained
    }

    /// Returns the number of messages to request after `count` messages were received.
    fn next_limit(&self, count: usize) -> usize {
        let largest = (0..count).map(|n| self.len(n)).max().unwrap_or_default();
        let max = match largest > SMALL_LEN {
            true => (MAX_LARGE_BYTES / largest).clamp(1, PACKETS),
            false => PACKETS,
        };
        (2 * count).clamp(MIN_BATCH, PACKETS).min(max)
    }

    fn receive_into(
        &mut self,
        socket: BorrowedFd<'_>,
        buffer: &mut Buffer,
        limit: usize,
    ) -> io::Result<usize> {
        let base = buffer.bytes_mut().as_mut_ptr();
        for n in 0..limit {
            let slots = Buffer::slots(n);
            for (iovec, (start, len)) in self.iovecs[n].iter_mut().zip(slots) {
                iovec.iov_base = base.wrapping_add(start).cast();
                iovec.iov_len = len;
            }
            let header = &mut self.messages[n].msg_hdr;
            header.msg_name = std::ptr::from_mut(&mut self.addresses[n]).cast();
            header.msg_namelen = size_of::<A>() as libc::socklen_t;
            header.msg_iov = self.iovecs[n].as_mut_ptr();
            header.msg_iovlen = 2;
            header.msg_control = self.controls[n].0.as_mut_ptr().cast();
            header.msg_controllen = size_of::<ControlBuffer>() as _;
            header.msg_flags = 0;
        }
        // SAFETY: each message points to iovecs, an address and a control buffer that live in `self`.
        // The iovecs point to memory of `buffer`, inside it and without overlap (`Buffer::slots`).
        // All of it outlives the call, and no other reference to it exists during the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.messages.as_mut_ptr(),
                limit as u32,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(received as usize)
    }

    /// Returns the length of message `n`.
    pub(super) fn len(&self, n: usize) -> usize {
        self.messages[n].msg_len as usize
    }

    /// Returns whether message `n` was longer than its space.
    pub(super) fn is_truncated(&self, n: usize) -> bool {
        self.messages[n].msg_hdr.msg_flags & libc::MSG_TRUNC != 0
    }

    /// Returns the sender of message `n`.
    pub(super) fn address(&self, n: usize) -> &A {
        &self.addresses[n]
    }

    /// Calls a function with each control message of message `n`.
    pub(super) fn for_each_control(&self, n: usize, mut examine: impl FnMut(ControlMessage<'_>)) {
        let header = &self.messages[n].msg_hdr;
        // SAFETY: the kernel filled `msg_control` up to `msg_controllen`, and the CMSG functions
        // stay within that length.
        unsafe {
            let mut at = libc::CMSG_FIRSTHDR(header);
            while let Some(entry) = at.as_ref() {
                examine(ControlMessage(entry));
                at = libc::CMSG_NXTHDR(header, at);
            }
        }
    }
}

/// A control message, in the memory of its [`MessageBatch`].
pub(super) struct ControlMessage<'m>(&'m libc::cmsghdr);

impl ControlMessage<'_> {
    /// Returns the level and the type.
    pub(super) fn kind(&self) -> (i32, i32) {
        (self.0.cmsg_level, self.0.cmsg_type)
    }

    /// Returns the data; `None` if it is shorter than the type.
    pub(super) fn data<T: KernelData>(&self) -> Option<T> {
        // SAFETY: the length of the entry covers the value, and any bytes are valid for its type.
        unsafe {
            let fits = self.0.cmsg_len >= libc::CMSG_LEN(size_of::<T>() as u32) as usize;
            fits.then(|| libc::CMSG_DATA(self.0).cast::<T>().read_unaligned())
        }
    }

    /// Returns the time of `SCM_TIMESTAMPNS`, in nanoseconds of `CLOCK_REALTIME`.
    pub(super) fn time_ns(&self) -> Option<u64> {
        let time: libc::timespec = self.data()?;
        Some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }
}

/// Returns the time, in nanoseconds of `CLOCK_REALTIME`.
pub(super) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_nanos() as u64
}
