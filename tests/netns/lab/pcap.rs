//! Capture files in the classic pcap format, for exchange with scapy and tcpdump.

use std::path::Path;

/// Writes Ethernet frames to a file.
pub fn write<'a>(path: &Path, frames: impl IntoIterator<Item = &'a [u8]>) {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 262_144, 1] {
        file.extend(word.to_ne_bytes());
    }
    for frame in frames {
        for word in [0, 0, frame.len() as u32, frame.len() as u32] {
            file.extend(word.to_ne_bytes());
        }
        file.extend(frame);
    }
    std::fs::write(path, file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Reads the frames of a file in native byte order; a truncated last record is ignored.
#[track_caller]
pub fn read(path: &Path) -> Vec<Vec<u8>> {
    let file = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut frames = Vec::new();
    let mut rest = file.get(24..).unwrap_or_default();
    while let Some(len) = rest.get(8..12) {
        let len = u32::from_ne_bytes(len.try_into().expect("four bytes")) as usize;
        let Some(frame) = rest.get(16..16 + len) else {
            break;
        };
        frames.push(frame.to_vec());
        rest = &rest[16 + len..];
    }
    frames
}
