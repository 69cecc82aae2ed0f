//! Synchronous requests about links and queueing disciplines (`rtnetlink(7)`).

use std::io::{self, Read, Write};

use socket2::{Domain, Protocol, Socket, Type};

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// The flag of a request for all objects.
pub(super) const DUMP: u16 = 0x300;

/// Sends a request of type `kind` and returns the answers, without their headers.
///
/// # Errors
/// The kernel refuses the request, or its answer is malformed.
pub(super) fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let domain = Domain::from(libc::AF_NETLINK);
    let mut socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    let mut request = Vec::with_capacity(HEADER + body.len());
    request.extend(((HEADER + body.len()) as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((REQUEST | ACKNOWLEDGE | flags).to_ne_bytes());
    // The sequence number, and the port of the sender.
    request.extend([0; 8]);
    request.extend(body);
    socket.write_all(&request)?;
    let mut buffer = vec![0u8; 64 << 10];
    let mut answers = Vec::new();
    loop {
        let len = socket.read(&mut buffer)?;
        let mut messages = &buffer[..len];
        while let Some(len) = messages.first_chunk() {
            let len = u32::from_ne_bytes(*len) as usize;
            let message = messages.get(..len).filter(|m| m.len() >= HEADER);
            let message = message.ok_or(io::ErrorKind::InvalidData)?;
            let body = &message[HEADER..];
            match read_u16(message, 4) {
                Some(DONE) => return Ok(answers),
                Some(ERROR) => {
                    let code = body.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
                    return match i32::from_ne_bytes(*code) {
                        0 => Ok(answers),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                _ => answers.push(body.to_vec()),
            }
            messages = messages.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

pub(super) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Returns the value of the first attribute of type `kind`.
pub(super) fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    const TYPE_MASK: u16 = 0x3fff;
    loop {
        let len = usize::from(read_u16(bytes, 0)?);
        let value = bytes.get(4..len)?;
        if read_u16(bytes, 2)? & TYPE_MASK == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_search_stops_at_invalid_length() {
        let bytes = [5, 0, 1, 0, 9, 0, 0, 0, 8, 0, 6, 0, b'n', b'o', b'q', 0];
        assert_eq!(attribute(&bytes, 1), Some(&[9][..]));
        assert_eq!(attribute(&bytes, 6), Some(&b"noq\0"[..]));
        assert_eq!(attribute(&bytes, 7), None);
        assert_eq!(attribute(&[200, 0, 6, 0, 1], 6), None);
        assert_eq!(attribute(&[0, 0, 1, 0], 6), None);
        assert_eq!(attribute(&[], 6), None);
    }
}
