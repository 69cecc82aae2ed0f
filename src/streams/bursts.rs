//! Bursts and gaps of losses (RFC 3611 section 4.7.2).
//!
//! A burst starts and ends with a lost packet, and contains no [`GMIN`] packets in a row that
//! arrived. All else are gaps. A single loss between [`GMIN`] packets that arrived on each side
//! belongs to a gap.

use crate::api::streams::BurstView;

/// The number of packets in a row that end a burst: the default of the RFC.
const GMIN: u64 = 16;

/// Classifies the packets of a stream, which are added in the order of their numbers.
#[derive(Debug, Clone, Default)]
pub struct Bursts {
    /// Losses since the last [`GMIN`] packets that arrived in a row.
    losses: u64,
    /// Packets from the first to the last of these losses.
    length: u64,
    /// Packets that arrived since the last loss.
    since_loss: u64,
    /// Packets lost in a row at present.
    in_a_row: u64,
    longest_loss: u64,
    bursts: u64,
    burst_packets: u64,
    burst_losses: u64,
    gap_packets: u64,
    gap_losses: u64,
}

impl Bursts {
    /// Adds the next packet.
    pub fn add(&mut self, arrived: bool) {
        if !arrived {
            self.in_a_row += 1;
            self.longest_loss = self.longest_loss.max(self.in_a_row);
            match self.losses {
                // The packets before belong to a gap.
                0 => (self.gap_packets, self.length) = (self.gap_packets + self.since_loss, 1),
                _ => self.length += self.since_loss + 1,
            }
            self.losses += 1;
            self.since_loss = 0;
            return;
        }
        self.in_a_row = 0;
        self.since_loss += 1;
        if self.since_loss == GMIN {
            self.end_losses();
        }
    }

    /// Adds `packets` that were lost in a row.
    pub fn add_lost(&mut self, packets: u64) {
        let Some(rest) = packets.checked_sub(1) else {
            return;
        };
        self.add(false);
        self.losses += rest;
        self.length += rest;
        self.in_a_row += rest;
        self.longest_loss = self.longest_loss.max(self.in_a_row);
    }

    /// Sorts the losses before [`GMIN`] packets that arrived in a row into a burst or a gap.
    fn end_losses(&mut self) {
        match self.losses {
            0 => {}
            1 => {
                self.gap_packets += 1;
                self.gap_losses += 1;
            }
            losses => {
                self.bursts += 1;
                self.burst_packets += self.length;
                self.burst_losses += losses;
            }
        }
        (self.losses, self.length) = (0, 0);
    }

    /// Returns the metrics, as if the stream ended now.
    pub fn view(&self) -> BurstView {
        let mut all = self.clone();
        all.end_losses();
        all.gap_packets += all.since_loss;
        let ppm = |losses: u64, packets: u64| losses * 1_000_000 / packets.max(1);
        // There is a gap before and after each burst.
        let gaps = all.bursts + 1;
        BurstView {
            bursts: all.bursts,
            burst_density_ppm: ppm(all.burst_losses, all.burst_packets),
            gap_density_ppm: ppm(all.gap_losses, all.gap_packets),
            burst_packets: all.burst_packets / all.bursts.max(1),
            gap_packets: all.gap_packets / gaps,
            longest_loss: all.longest_loss,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counters of the algorithm in RFC 3611 appendix A.2, from which burst and gap densities
    /// are computed.
    #[derive(Default)]
    struct RfcCounters {
        pkt: u64,
        lost: u64,
        c11: u64,
        c13: u64,
        c14: u64,
        c22: u64,
        c23: u64,
        c33: u64,
    }

    impl RfcCounters {
        fn add(&mut self, arrived: bool) {
            if arrived {
                self.pkt += 1;
                return;
            }
            if self.pkt >= GMIN {
                match self.lost {
                    1 => self.c14 += 1,
                    _ => self.c13 += 1,
                }
                self.lost = 1;
                self.c11 += self.pkt;
            } else {
                self.lost += 1;
                match self.pkt {
                    0 => self.c33 += 1,
                    pkt => {
                        self.c23 += 1;
                        self.c22 += pkt - 1;
                    }
                }
            }
            self.pkt = 0;
        }

        fn burst_density(&self) -> f64 {
            let (c31, c32) = (self.c13 as f64, self.c23 as f64);
            let (c22, c23, c33) = (self.c22 as f64, self.c23 as f64, self.c33 as f64);
            let p32 = c32 / (c31 + c32 + c33);
            let p23 = match c22 + c23 < 1.0 {
                true => 1.0,
                false => 1.0 - c22 / (c22 + c23),
            };
            p23 / (p23 + p32)
        }
    }

    /// 100 packets of which 30 to 34 are lost, except 32; a single loss at 70.
    fn losses(n: u64) -> bool {
        matches!(n, 30 | 31 | 33 | 34 | 70)
    }

    #[test]
    fn single_loss_is_part_of_a_gap() {
        let mut bursts = Bursts::default();
        (0..100).for_each(|n| bursts.add(!losses(n)));
        let expected = BurstView {
            bursts: 1,
            burst_density_ppm: 800_000,
            gap_density_ppm: 1_000_000 / 95,
            burst_packets: 5,
            gap_packets: 95 / 2,
            longest_loss: 2,
        };
        assert_eq!(bursts.view(), expected);
    }

    #[test]
    fn fifteen_packets_do_not_end_a_burst_and_sixteen_do() {
        for (between, expected) in [(15, (1, 17)), (16, (0, 0))] {
            let mut bursts = Bursts::default();
            bursts.add(false);
            (0..between).for_each(|_| bursts.add(true));
            bursts.add(false);
            (0..40).for_each(|_| bursts.add(true));
            let view = bursts.view();
            assert_eq!((view.bursts, view.burst_packets), expected);
        }
    }

    #[test]
    fn burst_density_equals_that_of_rfc_3611() {
        let (mut bursts, mut rfc) = (Bursts::default(), RfcCounters::default());
        // A loss rate of 30 % within bursts of 200 packets, by a fixed sequence.
        let mut random = 12345u32;
        for n in 0..10_000u64 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let lost = n % 1000 >= 800 && random >> 24 < 77;
            bursts.add(!lost);
            rfc.add(!lost);
        }
        let density = bursts.view().burst_density_ppm as f64 / 1e6;
        assert!(
            (density - rfc.burst_density()).abs() < 0.02,
            "{density} {}",
            rfc.burst_density()
        );
    }

    #[test]
    fn many_losses_at_once_are_those_of_one_at_a_time() {
        let (mut one, mut many) = (Bursts::default(), Bursts::default());
        (0..20).for_each(|_| (one.add(true), many.add(true)).1);
        (0..700).for_each(|_| one.add(false));
        many.add_lost(700);
        many.add_lost(0);
        assert_eq!((one.view(), one.view().longest_loss), (many.view(), 700));
    }
}
