//! Reads capture files: pcap and pcapng.

use std::fs::File;
use std::path::Path;

use pcap_parser::traits::PcapReaderIterator;
use pcap_parser::{Block, PcapBlockOwned, PcapError, create_reader};

/// Size of the buffer at first.
const CAPACITY: usize = 1 << 18;
/// Largest block that is read.
const MAX_CAPACITY: usize = 1 << 26;

/// Why a file cannot be read. The text ends with a remedy where there is one.
#[derive(Debug, thiserror::Error)]
pub enum CaptureFileError {
    /// The file cannot be opened or read.
    #[error("{0}; check the path, and that this user may read it")]
    Io(#[from] std::io::Error),
    /// It is not a capture.
    #[error(
        "it is not a pcap or pcapng file; uncompress it, or convert it with `editcap -F pcapng`"
    )]
    NotACapture,
    /// A block is larger than the limit.
    #[error("a block of it is larger than {} MiB; cut it with `editcap`", MAX_CAPACITY >> 20)]
    TooLarge,
    /// A block cannot be parsed.
    #[error("it is damaged: {0}; try `tshark -r FILE -w NEW`, which keeps what can be read")]
    Damaged(String),
}

/// A packet of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapturedPacket<'a> {
    /// Nanoseconds since 1970; `None` if the file has no time for it.
    pub at_ns: Option<u64>,
    /// The link type, which says what the first header is.
    pub link_type: u16,
    /// Full length of the packet in bytes.
    pub len: u32,
    /// The packet, or its beginning.
    pub bytes: &'a [u8],
}

/// The next thing to do after a look at the buffer.
enum Step {
    Packet(usize),
    Skip(usize),
    Refill,
    Grow,
    End,
    CutShort,
}

/// An interface of a capture.
struct CapturedInterface {
    link_type: u16,
    /// Timestamps in a second.
    resolution: u64,
    offset_s: i64,
}

/// The packet that was read last, and what is needed to interpret the next ones.
#[derive(Default)]
struct CaptureState {
    interfaces: Vec<CapturedInterface>,
    bytes: Vec<u8>,
    at_ns: Option<u64>,
    link_type: u16,
    len: u32,
}

/// A capture file, read from the beginning to the end.
pub struct CaptureFile {
    reader: Box<dyn PcapReaderIterator + Send>,
    capacity: usize,
    state: CaptureState,
    cut_short: bool,
}

impl CaptureFile {
    /// Opens a file.
    ///
    /// # Errors
    /// It cannot be read, or is not a capture.
    pub fn open(path: &Path) -> Result<Self, CaptureFileError> {
        let file = File::open(path)?;
        let reader = create_reader(CAPACITY, file).map_err(|error| match error {
            PcapError::ReadError => {
                CaptureFileError::Io(std::io::Error::other("it cannot be read"))
            }
            _ => CaptureFileError::NotACapture,
        })?;
        Ok(Self {
            reader,
            capacity: CAPACITY,
            state: CaptureState::default(),
            cut_short: false,
        })
    }

    /// Returns whether the file ended within a packet. Known when [`Self::next_packet`] has returned
    /// `None`.
    pub fn is_cut_short(&self) -> bool {
        self.cut_short
    }

    /// Returns the next packet, or `None` at the end.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    pub fn next_packet(&mut self) -> Result<Option<CapturedPacket<'_>>, CaptureFileError> {
        loop {
            match self.step()? {
                Step::Packet(offset) => {
                    self.reader.consume(offset);
                    break;
                }
                Step::Skip(offset) => self.reader.consume(offset),
                Step::Refill => {
                    let before = self.reader.data().len();
                    let filled = self.reader.refill().is_ok();
                    if !filled {
                        return Err(CaptureFileError::Io(std::io::Error::other(
                            "it cannot be read further",
                        )));
                    }
                    if self.reader.data().len() == before && !self.reader.reader_exhausted() {
                        self.grow()?;
                    }
                }
                Step::Grow => self.grow()?,
                Step::End => return Ok(None),
                Step::CutShort => {
                    self.cut_short = true;
                    return Ok(None);
                }
            }
        }
        let state = &self.state;
        Ok(Some(CapturedPacket {
            at_ns: state.at_ns,
            link_type: state.link_type,
            len: state.len,
            bytes: &state.bytes,
        }))
    }

    /// Makes the buffer twice as large, up to the limit.
    fn grow(&mut self) -> Result<(), CaptureFileError> {
        self.capacity *= 2;
        if self.capacity > MAX_CAPACITY || !self.reader.grow(self.capacity) {
            return Err(CaptureFileError::TooLarge);
        }
        let _ = self.reader.refill();
        Ok(())
    }

    fn step(&mut self) -> Result<Step, CaptureFileError> {
        Ok(match self.reader.next() {
            Ok((offset, block)) => match self.state.take(&block)? {
                true => Step::Packet(offset),
                false => Step::Skip(offset),
            },
            Err(PcapError::Eof) => Step::End,
            Err(PcapError::UnexpectedEof) => Step::CutShort,
            Err(PcapError::Incomplete(_)) => Step::Refill,
            Err(PcapError::BufferTooSmall) => Step::Grow,
            Err(error) => {
                let text = match error {
                    PcapError::NomError(_, kind) | PcapError::OwnedNomError(_, kind) => {
                        format!("{kind:?}")
                    }
                    other => other.to_string(),
                };
                return Err(CaptureFileError::Damaged(text));
            }
        })
    }
}

impl CaptureState {
    /// Takes a block over. Returns whether it is a packet.
    fn take(&mut self, block: &PcapBlockOwned<'_>) -> Result<bool, CaptureFileError> {
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                let nanoseconds = header.is_nanosecond_precision();
                self.interfaces = vec![CapturedInterface {
                    // The upper bits say whether frames end with a checksum.
                    link_type: header.network.0 as u16,
                    resolution: if nanoseconds {
                        1_000_000_000
                    } else {
                        1_000_000
                    },
                    offset_s: 0,
                }];
                Ok(false)
            }
            PcapBlockOwned::Legacy(packet) => {
                let resolution = self.interface(0)?.resolution;
                let units = u64::from(packet.ts_sec) * resolution + u64::from(packet.ts_usec);
                self.packet(0, Some(units), packet.origlen, packet.data)
            }
            PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                self.interfaces.clear();
                Ok(false)
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                self.interfaces.push(CapturedInterface {
                    link_type: interface.linktype.0 as u16,
                    resolution: interface.ts_resolution().unwrap_or(1_000_000).max(1),
                    offset_s: interface.ts_offset(),
                });
                Ok(false)
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let units = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                let captured = packet.data.get(..packet.caplen as usize);
                let data = captured.unwrap_or(packet.data);
                self.packet(packet.if_id as usize, Some(units), packet.origlen, data)
            }
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                let captured = packet.data.get(..packet.origlen as usize);
                let data = captured.unwrap_or(packet.data);
                self.packet(0, None, packet.origlen, data)
            }
            PcapBlockOwned::NG(_) => Ok(false),
        }
    }

    fn interface(&self, index: usize) -> Result<&CapturedInterface, CaptureFileError> {
        let found = self.interfaces.get(index);
        found.ok_or_else(|| {
            CaptureFileError::Damaged(format!("a packet of interface {index}, which is not there"))
        })
    }

    fn packet(
        &mut self,
        interface: usize,
        units: Option<u64>,
        len: u32,
        data: &[u8],
    ) -> Result<bool, CaptureFileError> {
        let interface = self.interface(interface)?;
        let link_type = interface.link_type;
        self.at_ns = units.map(|units| interface.nanoseconds(units));
        self.link_type = link_type;
        self.len = len;
        self.bytes.clear();
        self.bytes.extend_from_slice(data);
        Ok(true)
    }
}

impl CapturedInterface {
    /// Converts a timestamp to nanoseconds since 1970.
    fn nanoseconds(&self, units: u64) -> u64 {
        let ns = u128::from(units) * 1_000_000_000 / u128::from(self.resolution);
        let offset = i128::from(self.offset_s) * 1_000_000_000;
        let sum = i128::try_from(ns)
            .unwrap_or(i128::MAX)
            .saturating_add(offset);
        u64::try_from(sum.max(0)).unwrap_or(u64::MAX)
    }
}
