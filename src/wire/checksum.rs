//! The Internet checksum: RFC 1071, and its incremental update by RFC 1624.

use std::net::IpAddr;

/// One's complement sum of `bytes` on top of `sum`, not yet folded. An odd last byte counts
/// as the high half of a word (RFC 1071 section 4.1).
pub fn add(mut sum: u64, bytes: &[u8]) -> u64 {
    // Wide words first: the one's complement sum does not depend on the word size, as long
    // as the carries are folded back in the end (RFC 1071 section 2 (B) and (C)).
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_be_bytes(*word));
    }
    let (pairs, odd) = rest.as_chunks::<2>();
    for pair in pairs {
        sum += u64::from(u16::from_be_bytes(*pair));
    }
    if let [last] = odd {
        sum += u64::from(u16::from_be_bytes([*last, 0]));
    }
    sum
}

/// Folds a sum to 16 bits.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of `bytes`: zero over a header that carries its own right checksum.
pub fn of(bytes: &[u8]) -> u16 {
    !fold(add(0, bytes))
}

/// The checksum after one 16-bit word changed from `old` to `new` (RFC 1624 equation 3).
pub fn replaced(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u64::from(!checksum) + u64::from(!old) + u64::from(new))
}

/// The sum of the pseudo-header: RFC 768 for IPv4, RFC 8200 section 8.1 for IPv6.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: u32) -> u64 {
    let sum = match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => add(add(0, &s.octets()), &d.octets()),
        (IpAddr::V6(s), IpAddr::V6(d)) => add(add(0, &s.octets()), &d.octets()),
        // Callers read both addresses from one header.
        _ => 0,
    };
    sum + u64::from(protocol) + u64::from(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071_section_3() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(add(0, &bytes)), 0xddf2);
        assert_eq!(of(&bytes), !0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624_section_4() {
        // Where equation 2 gave 0xffff, equation 3 gives the right 0x0000.
        assert_eq!(replaced(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    proptest! {
        #[test]
        fn an_updated_checksum_is_the_one_computed_afresh(
            mut words in proptest::collection::vec(any::<u16>(), 2..40),
            at in any::<prop::sample::Index>(),
            new in any::<u16>(),
        ) {
            // Real headers are never all zero, the one case where the two zeros differ.
            words[0] |= 0x4500;
            let bytes = |w: &[u16]| w.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>();
            let at = 1 + at.index(words.len() - 1);
            let before = of(&bytes(&words));
            let updated = replaced(before, words[at], new);
            words[at] = new;
            prop_assert_eq!(updated, of(&bytes(&words)));
        }

        #[test]
        fn sums_do_not_depend_on_where_even_bytes_are_cut(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
        ) {
            let cut = at.index(bytes.len() + 1) & !1;
            let (a, b) = bytes.split_at(cut);
            prop_assert_eq!(fold(add(add(0, a), b)), fold(add(0, &bytes)));
        }
    }
}
