//! MPEG-TS (ISO 13818-1): what TR 101 290 measures with first priority, transport errors,
//! scrambling, and the jitter of the program clock reference (PCR).

use super::pcr::{Pcr, PcrMeter};
use crate::api::streams::TsView;

/// Length of an MPEG-TS packet in bytes.
pub const PACKET_LEN: usize = 188;

/// The first byte of each packet.
pub const SYNC_BYTE: u8 = 0x47;

const NULL_PID: u16 = 0x1fff;
const PAT_PID: u16 = 0;
const PAT_TABLE: u8 = 0x00;
const PMT_TABLE: u8 = 0x02;

/// TR 101 290 1.3 and 1.5: the longest time between two tables.
const TABLE_NS: u64 = 500_000_000;

/// TR 101 290 1.6: the longest time without a PID, which the user chooses.
const PID_NS: u64 = 5_000_000_000;

/// How often it is checked whether something is missing.
const CHECK_NS: u64 = 100_000_000;

/// The most PIDs that are followed. A stream with more is rare, and the rest is counted.
const MAX_PIDS: usize = 64;

/// The most programs whose PMT is followed.
const MAX_PROGRAMS: usize = 32;

/// Notices when something does not arrive in time. Counts each such time once.
#[derive(Debug, Clone, Copy)]
struct Timer {
    seen_ns: u64,
    is_late: bool,
}

impl Timer {
    fn new(now_ns: u64) -> Self {
        Self {
            seen_ns: now_ns,
            is_late: false,
        }
    }

    /// Returns whether the time has just passed.
    fn has_become_late(&mut self, limit_ns: u64, now_ns: u64) -> bool {
        let was_late = self.is_late;
        self.is_late = now_ns.saturating_sub(self.seen_ns) > limit_ns;
        self.is_late && !was_late
    }
}

/// What is known of a PID.
#[derive(Debug, Clone, Copy)]
struct PidState {
    pid: u16,
    counter: u8,
    was_duplicate: bool,
    has_arrived: bool,
    /// The position of the program whose PMT names the PID.
    program: Option<u8>,
    timer: Timer,
}

/// A program of the PAT.
#[derive(Debug, Clone, Copy)]
struct Program {
    pmt_pid: u16,
    has_pmt: bool,
    timer: Timer,
}

/// Follows a transport stream.
#[derive(Debug, Clone, Default)]
pub struct Ts {
    counts: TsView,
    pids: Vec<PidState>,
    programs: Vec<Program>,
    pat: Option<Timer>,
    checked_ns: u64,
    pcr: PcrMeter,
}

/// The fields of a packet header.
struct Header {
    pid: u16,
    starts_unit: bool,
    has_payload: bool,
    counter: u8,
    /// The adaptation field, without its length.
    adaptation: Option<usize>,
    payload: usize,
}

impl Header {
    fn parse(packet: &[u8; PACKET_LEN]) -> Self {
        let control = packet[3] >> 4 & 3;
        let adaptation_len = usize::from(packet[4]);
        let (has_adaptation, has_payload) = (control & 2 != 0, control & 1 != 0);
        Self {
            pid: u16::from_be_bytes([packet[1] & 0x1f, packet[2]]),
            starts_unit: packet[1] & 0x40 != 0,
            has_payload,
            counter: packet[3] & 0xf,
            adaptation: (has_adaptation && adaptation_len > 0).then_some(5),
            payload: match has_adaptation {
                true => 5 + adaptation_len,
                false => 4,
            },
        }
    }
}

impl Ts {
    /// Adds the packets in a datagram. Returns how many were lost before, by the continuity
    /// counters.
    pub fn add(&mut self, bytes: &[u8], now_ns: u64) -> u64 {
        let lost_before = self.counts.lost;
        let pat = self.pat.get_or_insert(Timer::new(now_ns));
        if pat.has_become_late(TABLE_NS, now_ns) {
            self.counts.pat_errors += 1;
        }
        if now_ns.saturating_sub(self.checked_ns) >= CHECK_NS {
            self.checked_ns = now_ns;
            self.check_times(now_ns);
        }
        let mut packets = bytes.chunks_exact(PACKET_LEN);
        for packet in &mut packets {
            match packet.first_chunk::<PACKET_LEN>() {
                Some(packet) if packet[0] == SYNC_BYTE => self.add_packet(packet, now_ns),
                _ => self.counts.sync_errors += 1,
            }
        }
        self.counts.sync_errors += u64::from(!packets.remainder().is_empty());
        self.counts.lost - lost_before
    }

    fn check_times(&mut self, now_ns: u64) {
        for program in &mut self.programs {
            let is_late = program.timer.has_become_late(TABLE_NS, now_ns);
            self.counts.pmt_errors += u64::from(is_late);
        }
        for pid in &mut self.pids {
            if pid.program.is_some() && pid.timer.has_become_late(PID_NS, now_ns) {
                self.counts.pid_errors += 1;
            }
        }
    }

    fn add_packet(&mut self, packet: &[u8; PACKET_LEN], now_ns: u64) {
        self.counts.packets += 1;
        let header = Header::parse(packet);
        if packet[1] & 0x80 != 0 {
            // The other fields may be wrong too.
            self.counts.transport_errors += 1;
            return;
        }
        let is_scrambled = packet[3] >> 6 != 0;
        self.counts.scrambled += u64::from(is_scrambled);
        let flags = header.adaptation.and_then(|at| packet.get(at)).copied();
        let flags = flags.unwrap_or_default();
        let is_discontinuous = flags & 0x80 != 0;
        if header.pid != NULL_PID {
            self.check_continuity(&header, is_discontinuous, now_ns);
        }
        if flags & 0x10 != 0
            && let Some(pcr) = packet.get(6..).and_then(Pcr::read)
        {
            let position = self.counts.packets * PACKET_LEN as u64;
            (self.pcr).add(header.pid, pcr, is_discontinuous, position, now_ns);
        }
        self.read_table(packet, &header, is_scrambled, now_ns);
    }

    /// Returns the state of a PID; `None` if too many others are followed.
    fn pid(&mut self, pid: u16, now_ns: u64) -> Option<&mut PidState> {
        let known = self.pids.iter().position(|state| state.pid == pid);
        let position = match known {
            Some(position) => position,
            None if self.pids.len() >= MAX_PIDS => return None,
            None => {
                self.pids.push(PidState {
                    pid,
                    counter: 0,
                    was_duplicate: false,
                    has_arrived: false,
                    program: None,
                    timer: Timer::new(now_ns),
                });
                self.pids.len() - 1
            }
        };
        self.pids.get_mut(position)
    }

    /// Checks the continuity counter (ISO 13818-1 section 2.4.3.3): it counts packets with payload,
    /// and such a packet may be sent twice.
    fn check_continuity(&mut self, header: &Header, is_discontinuous: bool, now_ns: u64) {
        let Some(state) = self.pid(header.pid, now_ns) else {
            self.counts.pids_left_out += 1;
            return;
        };
        state.timer.seen_ns = now_ns;
        let before = *state;
        state.counter = header.counter;
        state.has_arrived = true;
        state.was_duplicate = false;
        if !before.has_arrived || is_discontinuous {
            return;
        }
        let expected = match header.has_payload {
            true => (before.counter + 1) & 0xf,
            false => before.counter,
        };
        if header.counter == expected {
            return;
        }
        if header.has_payload && header.counter == before.counter && !before.was_duplicate {
            state.was_duplicate = true;
            return;
        }
        self.counts.continuity_errors += 1;
        let lost = header.counter.wrapping_sub(expected) & 0xf;
        self.counts.lost += u64::from(lost);
    }

    /// Reads the PAT or a PMT, if a section of it starts in the packet.
    fn read_table(
        &mut self,
        packet: &[u8; PACKET_LEN],
        header: &Header,
        is_scrambled: bool,
        now_ns: u64,
    ) {
        let is_pat = header.pid == PAT_PID;
        let program = self.programs.iter().position(|p| p.pmt_pid == header.pid);
        if !is_pat && program.is_none() {
            return;
        }
        if is_scrambled {
            match is_pat {
                true => self.counts.pat_errors += 1,
                false => self.counts.pmt_errors += 1,
            }
            return;
        }
        if !header.starts_unit || !header.has_payload {
            return;
        }
        let Some(section) = section(packet, header.payload) else {
            return;
        };
        match (section.first(), program) {
            (Some(&PAT_TABLE), _) if is_pat => {
                self.pat = Some(Timer::new(now_ns));
                self.counts.programs = self.read_pat(section, now_ns);
            }
            (Some(_), _) if is_pat => self.counts.pat_errors += 1,
            (Some(&PMT_TABLE), Some(position)) => {
                if let Some(program) = self.programs.get_mut(position) {
                    program.timer = Timer::new(now_ns);
                    program.has_pmt = true;
                }
                self.read_pmt(section, position as u8, now_ns);
            }
            _ => {}
        }
    }

    /// Reads the programs. Returns their number.
    fn read_pat(&mut self, section: &[u8], now_ns: u64) -> u64 {
        let mut count = 0;
        let entries = section.get(8..).unwrap_or_default().chunks_exact(4);
        for entry in entries {
            // Program 0 names the network information table.
            if entry[..2] == [0, 0] {
                continue;
            }
            let pmt_pid = u16::from_be_bytes([entry[2] & 0x1f, entry[3]]);
            let known = self.programs.iter().position(|p| p.pmt_pid == pmt_pid);
            let position = known.unwrap_or(self.programs.len());
            if known.is_none() && self.programs.len() < MAX_PROGRAMS {
                self.programs.push(Program {
                    pmt_pid,
                    has_pmt: false,
                    timer: Timer::new(now_ns),
                });
            }
            // Those that the PAT names come first.
            if position < self.programs.len() && (count as usize) <= position {
                self.programs.swap(count as usize, position);
                count += 1;
            }
        }
        if self.programs.len() > count as usize {
            self.programs.truncate(count as usize);
            self.pids.iter_mut().for_each(|pid| pid.program = None);
        }
        count
    }

    /// Reads the PIDs of a program.
    fn read_pmt(&mut self, section: &[u8], program: u8, now_ns: u64) {
        let known = self.pids.iter_mut();
        let own = known.filter(|pid| pid.program == Some(program));
        own.for_each(|pid| pid.program = None);
        let info_len = |at: usize| {
            let bytes = section.get(at..)?.first_chunk::<2>()?;
            Some(usize::from(u16::from_be_bytes([bytes[0] & 0xf, bytes[1]])))
        };
        let Some(mut at) = info_len(10).map(|len| 12 + len) else {
            return;
        };
        while let Some(entry) = section.get(at..).and_then(|rest| rest.first_chunk::<5>()) {
            let pid = u16::from_be_bytes([entry[1] & 0x1f, entry[2]]);
            if let Some(state) = self.pid(pid, now_ns) {
                state.program = Some(program);
            }
            at += 5 + info_len(at + 3).unwrap_or_default();
        }
    }

    /// Returns the number of faults, besides packets that are missing.
    pub fn faults(&self) -> u64 {
        let TsView {
            sync_errors,
            pat_errors,
            pmt_errors,
            pid_errors,
            transport_errors,
            ..
        } = self.counts;
        sync_errors + pat_errors + pmt_errors + pid_errors + transport_errors
    }

    /// Returns the media rate by the PCR, in bytes per second.
    pub fn media_rate(&self) -> Option<f64> {
        self.pcr.media_rate()
    }

    /// Returns what was counted.
    pub fn view(&self, now_ns: u64) -> TsView {
        let is_recent = |timer: &Timer| now_ns.saturating_sub(timer.seen_ns) <= TABLE_NS;
        let has_programs = !self.programs.is_empty();
        let mut programs = self.programs.iter();
        let pids = self.pids.iter().filter(|pid| pid.program.is_some());
        let has_pat = self.counts.programs > 0 || has_programs;
        let (jitter_us, interval_ms) = self.pcr.view().unzip();
        TsView {
            pat_present: has_pat && self.pat.as_ref().is_some_and(is_recent),
            pmt_present: has_programs && programs.all(|p| p.has_pmt && is_recent(&p.timer)),
            pids: pids.count() as u64,
            pcr_jitter_us: jitter_us,
            pcr_interval_ms: interval_ms,
            ..self.counts.clone()
        }
    }
}

/// Returns the section that starts in a packet, without its checksum: as much of it as is in this
/// packet. `None` if there is none, or its checksum is wrong.
fn section(packet: &[u8; PACKET_LEN], payload: usize) -> Option<&[u8]> {
    let payload = packet.get(payload..)?;
    let pointer = usize::from(*payload.first()?);
    let section = payload.get(1 + pointer..)?;
    let header: &[u8; 3] = section.first_chunk()?;
    let len = 3 + usize::from(u16::from_be_bytes([header[1] & 0xf, header[2]]));
    let Some(whole) = section.get(..len) else {
        return Some(section);
    };
    (crc32(whole) == 0).then(|| &whole[..len.saturating_sub(4)])
}

/// Returns the checksum of ISO 13818-1 annex A. It is 0 for a section that ends in its checksum.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte) << 24;
        for _ in 0..8 {
            let carry = crc & 0x8000_0000 != 0;
            crc = crc << 1 ^ if carry { 0x04c1_1db7 } else { 0 };
        }
    }
    crc
}

#[cfg(test)]
mod tests;
