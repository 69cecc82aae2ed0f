//! Writes packets to a pcapng file, with comments (draft-ietf-opsawg-pcapng).

use std::io::{self, Write};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;

/// Written in the byte order of this machine, by which readers recognise the byte order.
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

/// The packet begins with an IPv4 or IPv6 header.
const LINKTYPE_RAW: u16 = 101;

const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
const OPTION_INTERFACE_NAME: u16 = 2;
const OPTION_TIME_RESOLUTION: u16 = 9;

/// Timestamps count nanoseconds: the exponent of ten.
const NANOSECONDS: u8 = 9;

/// A packet to write.
#[derive(Debug, Clone, Copy)]
pub struct PcapPacket<'a> {
    /// The interface that received it.
    pub interface: &'a str,
    /// Nanoseconds since 1970 (UTC).
    pub received_ns: u64,
    /// The packet from the IP header on, or its beginning.
    pub bytes: &'a [u8],
    /// Its full length in bytes.
    pub len: u32,
    /// What a reader shows beside it; nothing if it is empty.
    pub comment: &'a str,
}

/// A pcapng file with one section. Interfaces are added when their first packet is written.
pub struct PcapngWriter<W> {
    file: W,
    interfaces: Vec<String>,
}

impl<W: Write> PcapngWriter<W> {
    /// Writes the beginning of the file, with a comment on the whole unless it is empty.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(file: W, comment: &str) -> io::Result<Self> {
        let mut writer = Self {
            file,
            interfaces: Vec::new(),
        };
        let mut body = Vec::new();
        body.extend(BYTE_ORDER_MAGIC.to_ne_bytes());
        // Version 1.0, and a section of unknown length.
        body.extend(1_u16.to_ne_bytes());
        body.extend(0_u16.to_ne_bytes());
        body.extend(u64::MAX.to_ne_bytes());
        push_comment(&mut body, comment);
        writer.block(SECTION_HEADER, &body)?;
        Ok(writer)
    }

    /// Writes a packet.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&mut self, packet: PcapPacket<'_>) -> io::Result<()> {
        let mut known = self.interfaces.iter();
        let known = known.position(|name| name == packet.interface);
        let interface = match known {
            Some(number) => number,
            None => self.add_interface(packet.interface)?,
        };
        let mut body = Vec::with_capacity(packet.bytes.len() + 128);
        for field in [
            interface as u32,
            (packet.received_ns >> 32) as u32,
            packet.received_ns as u32,
            packet.bytes.len() as u32,
            packet.len,
        ] {
            body.extend(field.to_ne_bytes());
        }
        push_padded(&mut body, packet.bytes);
        push_comment(&mut body, packet.comment);
        self.block(ENHANCED_PACKET, &body)
    }

    /// Returns the file.
    pub fn file(&mut self) -> &mut W {
        &mut self.file
    }

    fn add_interface(&mut self, name: &str) -> io::Result<usize> {
        let mut body = Vec::new();
        body.extend(LINKTYPE_RAW.to_ne_bytes());
        body.extend(0_u16.to_ne_bytes());
        // No limit of the packet length.
        body.extend(0_u32.to_ne_bytes());
        push_option(&mut body, OPTION_INTERFACE_NAME, name.as_bytes());
        push_option(&mut body, OPTION_TIME_RESOLUTION, &[NANOSECONDS]);
        push_option(&mut body, OPTION_END, &[]);
        self.block(INTERFACE_DESCRIPTION, &body)?;
        self.interfaces.push(name.to_owned());
        Ok(self.interfaces.len() - 1)
    }

    /// Writes a block: type, length, body, and the length again.
    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let len = (body.len() as u32 + 12).to_ne_bytes();
        self.file.write_all(&kind.to_ne_bytes())?;
        self.file.write_all(&len)?;
        self.file.write_all(body)?;
        self.file.write_all(&len)
    }
}

/// Appends the options of a block: the comment, if there is one.
fn push_comment(body: &mut Vec<u8>, comment: &str) {
    if !comment.is_empty() {
        push_option(body, OPTION_COMMENT, comment.as_bytes());
        push_option(body, OPTION_END, &[]);
    }
}

/// Appends an option. A longer value than an option can hold is shortened.
fn push_option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(u16::MAX.into())];
    body.extend(code.to_ne_bytes());
    body.extend((value.len() as u16).to_ne_bytes());
    push_padded(body, value);
}

/// Appends bytes, and zeros up to a multiple of four bytes.
fn push_padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend_from_slice(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
}
