//! Frames built and parsed independently of the program under test.

use std::net::{IpAddr, SocketAddr};

/// A builder for an Ethernet frame with a UDP packet.
#[derive(Debug, Clone)]
pub struct Udp {
    src: SocketAddr,
    dst: SocketAddr,
    ttl: u8,
    tos: u8,
    df: bool,
    id: u16,
    options: Vec<u8>,
    zero_checksum: bool,
    payload: Vec<u8>,
}

impl Udp {
    /// Creates a packet from `src` to `dst`, both `address:port`, with TTL 16.
    #[track_caller]
    pub fn new(src: &str, dst: &str, payload: impl AsRef<[u8]>) -> Self {
        let parse = |s: &str| s.parse().unwrap_or_else(|e| panic!("{s}: {e}"));
        Self {
            src: parse(src),
            dst: parse(dst),
            ttl: 16,
            tos: 0,
            df: false,
            id: 0x1234,
            options: Vec::new(),
            zero_checksum: false,
            payload: payload.as_ref().to_vec(),
        }
    }

    /// Sets the TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the type of service or traffic class.
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// Sets "do not fragment" (IPv4).
    pub fn df(mut self) -> Self {
        self.df = true;
        self
    }

    /// Sets the identification (IPv4).
    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    /// Sets the IPv4 options, a multiple of four bytes.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// Omits the UDP checksum (IPv4).
    pub fn zero_checksum(mut self) -> Self {
        self.zero_checksum = true;
        self
    }

    /// Builds the frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut udp = Vec::with_capacity(8 + self.payload.len());
        udp.extend(self.src.port().to_be_bytes());
        udp.extend(self.dst.port().to_be_bytes());
        udp.extend((8 + self.payload.len() as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(&self.payload);
        if !self.zero_checksum {
            let sum = match transport_sum(self.src.ip(), self.dst.ip(), 17, &udp) {
                0 => 0xffff,
                sum => sum,
            };
            udp[6..8].copy_from_slice(&sum.to_be_bytes());
        }
        let ip = match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4(
                &Ipv4 {
                    tos: self.tos,
                    id: self.id,
                    flags_offset: if self.df { 0x4000 } else { 0 },
                    ttl: self.ttl,
                    protocol: 17,
                    src: src.octets(),
                    dst: dst.octets(),
                    options: self.options.clone(),
                },
                &udp,
            ),
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut ip = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
                ip.extend((udp.len() as u16).to_be_bytes());
                ip.extend([17, self.ttl]);
                ip.extend(src.octets());
                ip.extend(dst.octets());
                ip.extend(&udp);
                ip
            }
            _ => panic!("mixed families"),
        };
        ethernet(self.dst.ip(), &ip)
    }
}

/// IPv4 header fields.
#[derive(Debug, Clone, Default)]
pub struct Ipv4 {
    /// Type of service.
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset, as on the wire.
    pub flags_offset: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol number.
    pub protocol: u8,
    /// Source.
    pub src: [u8; 4],
    /// Destination.
    pub dst: [u8; 4],
    /// Options.
    pub options: Vec<u8>,
}

/// Builds an IPv4 packet with a valid header checksum.
pub fn ipv4(h: &Ipv4, payload: &[u8]) -> Vec<u8> {
    let ihl = 20 + h.options.len();
    assert_eq!(ihl % 4, 0);
    let mut ip = vec![0x40 | (ihl / 4) as u8, h.tos];
    ip.extend(((ihl + payload.len()) as u16).to_be_bytes());
    ip.extend(h.id.to_be_bytes());
    ip.extend(h.flags_offset.to_be_bytes());
    ip.extend([h.ttl, h.protocol, 0, 0]);
    ip.extend(h.src);
    ip.extend(h.dst);
    ip.extend(&h.options);
    fix_ipv4_checksum(&mut ip);
    ip.extend(payload);
    ip
}

/// Writes the header checksum of the IPv4 packet at the start of `ip`.
pub fn fix_ipv4_checksum(ip: &mut [u8]) {
    let ihl = usize::from(ip[0] & 0xf) * 4;
    ip[10..12].copy_from_slice(&[0, 0]);
    let sum = !fold(sum(&ip[..ihl]));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Builds the frame that carries `ip` to `group`, from a locally administered address.
pub fn ethernet(group: IpAddr, ip: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + ip.len());
    match group {
        IpAddr::V4(a) => {
            let o = a.octets();
            frame.extend([0x01, 0x00, 0x5e, o[1] & 0x7f, o[2], o[3]]);
        }
        IpAddr::V6(a) => {
            let o = a.octets();
            frame.extend([0x33, 0x33, o[12], o[13], o[14], o[15]]);
        }
    }
    frame.extend([0x02, 0, 0, 0, 0, 0x0a]);
    frame.extend(if group.is_ipv4() {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    });
    frame.extend(ip);
    frame
}

/// Returns `frame` with an 802.1Q tag added.
pub fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    out.extend([0x81, 0x00]);
    out.extend(tci.to_be_bytes());
    out.extend(&frame[12..]);
    out
}

fn sum(bytes: &[u8]) -> u32 {
    let pairs = bytes.chunks(2);
    pairs
        .map(|p| u32::from(p[0]) << 8 | p.get(1).map_or(0, |b| u32::from(*b)))
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Returns the checksum over the pseudo-header and `data`; it is zero if `data` contains a valid
/// checksum.
pub fn transport_sum(src: IpAddr, dst: IpAddr, protocol: u8, data: &[u8]) -> u16 {
    let addr = |a: IpAddr| match a {
        IpAddr::V4(a) => sum(&a.octets()),
        IpAddr::V6(a) => sum(&a.octets()),
    };
    !fold(addr(src) + addr(dst) + u32::from(protocol) + data.len() as u32 + sum(data))
}

/// An IP packet parsed from a captured frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IpPacket {
    /// Ethernet destination and source.
    pub eth: ([u8; 6], [u8; 6]),
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Protocol, or the next header of the IPv6 header.
    pub protocol: u8,
    /// Whether the IPv4 header checksum is valid; always true for IPv6.
    pub header_ok: bool,
    /// Identification (IPv4).
    pub id: u16,
    /// Whether more fragments follow (IPv4).
    pub more: bool,
    /// Fragment offset in bytes (IPv4).
    pub offset: usize,
    /// The IP packet without padding.
    pub ip: Vec<u8>,
    /// Length of the IP header, in bytes.
    pub header: usize,
    /// Number of bytes after the IP packet.
    pub padding: usize,
}

impl IpPacket {
    /// Parses a frame; returns `None` for other protocols and truncated packets.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let eth = (
            frame.get(..6)?.try_into().ok()?,
            frame.get(6..12)?.try_into().ok()?,
        );
        let ip = frame.get(14..)?;
        let be = |at: usize| Some(u16::from_be_bytes(ip.get(at..at + 2)?.try_into().ok()?));
        match (ethertype(frame)?, ip.first()? >> 4) {
            (0x0800, 4) => {
                let total = usize::from(be(2)?);
                let header = usize::from(ip[0] & 0xf) * 4;
                let flags = be(6)?;
                let addr =
                    |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
                Some(Self {
                    eth,
                    src: addr(12)?,
                    dst: addr(16)?,
                    ttl: ip[8],
                    tos: ip[1],
                    protocol: ip[9],
                    header_ok: fold(sum(ip.get(..header)?)) == 0xffff,
                    id: be(4)?,
                    more: flags & 0x2000 != 0,
                    offset: usize::from(flags & 0x1fff) * 8,
                    ip: ip.get(..total)?.to_vec(),
                    header,
                    padding: ip.len() - total,
                })
            }
            (0x86dd, 6) => {
                let total = 40 + usize::from(be(4)?);
                let addr = |at: usize| {
                    Some(IpAddr::from(
                        <[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?,
                    ))
                };
                Some(Self {
                    eth,
                    src: addr(8)?,
                    dst: addr(24)?,
                    ttl: *ip.get(7)?,
                    tos: ip[0] << 4 | ip[1] >> 4,
                    protocol: ip[6],
                    header_ok: true,
                    id: 0,
                    more: false,
                    offset: 0,
                    ip: ip.get(..total)?.to_vec(),
                    header: 40,
                    padding: ip.len() - total,
                })
            }
            _ => None,
        }
    }

    /// Returns the bytes after the IP header.
    pub fn body(&self) -> &[u8] {
        &self.ip[self.header..]
    }

    /// Returns the UDP payload.
    pub fn payload(&self) -> &[u8] {
        &self.body()[8..]
    }

    /// Returns the UDP checksum field.
    pub fn udp_checksum(&self) -> u16 {
        u16::from_be_bytes([self.body()[6], self.body()[7]])
    }

    /// Returns whether the UDP checksum is present and valid.
    pub fn udp_ok(&self) -> bool {
        self.udp_checksum() != 0 && transport_sum(self.src, self.dst, 17, self.body()) == 0
    }

    /// Returns the packet with TTL and IPv4 header checksum zeroed: the bytes that forwarding must
    /// not change.
    pub fn without_ttl_and_checksum(&self) -> Vec<u8> {
        let mut ip = self.ip.clone();
        if ip[0] >> 4 == 4 {
            (ip[8], ip[10], ip[11]) = (0, 0, 0);
        } else {
            ip[7] = 0;
        }
        ip
    }
}

fn ethertype(frame: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?))
}
