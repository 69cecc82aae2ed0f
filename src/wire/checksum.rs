//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use std::net::IpAddr;

/// Adds `bytes` to the one's complement sum `sum` and returns the new sum, not yet folded.
///
/// An odd last byte counts as the high half of a 16-bit word (RFC 1071 section 4.1).
pub fn add(mut sum: u64, bytes: &[u8]) -> u64 {
    // Summing 32-bit words is faster and gives the same result: the one's complement sum does not
    // depend on the word size once the carries are folded (RFC 1071 section 2 (B) and (C)).
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

/// Folds the carries of a sum into its low 16 bits.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Returns the checksum of `bytes`. It is zero for a header with a valid checksum field.
pub fn compute(bytes: &[u8]) -> u16 {
    !fold(add(0, bytes))
}

/// Returns the checksum after one 16-bit word changed from `old` to `new` (RFC 1624 equation 3).
pub fn update_word(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u64::from(!checksum) + u64::from(!old) + u64::from(new))
}

/// Returns the sum of the pseudo-header: RFC 768 for IPv4, RFC 8200 section 8.1 for IPv6.
///
/// `length` is the number of bytes after the IP header. Addresses of different IP versions add
/// nothing to the sum.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: u32) -> u64 {
    let sum = match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => add(add(0, &s.octets()), &d.octets()),
        (IpAddr::V6(s), IpAddr::V6(d)) => add(add(0, &s.octets()), &d.octets()),
        // Unreachable: callers read both addresses from one header.
        _ => 0,
    };
    sum + u64::from(protocol) + u64::from(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_1071_section_3_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(add(0, &bytes)), 0xddf2);
        assert_eq!(compute(&bytes), !0xddf2);
    }

    /// RFC 1071 section 4.1: an odd last byte is the high half of a word.
    #[test]
    fn odd_last_byte_is_padded_with_zero() {
        let sum = add(0x1234, &[0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07]);
        let padded = [0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x00];
        assert_eq!(fold(sum), fold(add(0x1234, &padded)));
        assert_eq!(fold(add(0x1234, &[0x07])), 0x1934);
    }

    #[test]
    fn pseudo_header_contains_all_fields() {
        let sum = |s: &str, d: &str| {
            let (source, destination) = (s.parse().unwrap(), d.parse().unwrap());
            fold(pseudo_header(source, destination, 17, 0x0100))
        };
        let expected = 0x0a00 + 0x0001 + 0xe101 + 0x0203 + 0x0111;
        assert_eq!(sum("10.0.0.1", "225.1.2.3"), expected);
        let expected = fold(0xfe80 + 0x0001 + 0xff02 + 0x0002 + 0x0111);
        assert_eq!(sum("fe80::1", "ff02::2"), expected);
    }

    #[test]
    fn rfc_1624_section_4_example() {
        // Equation 2 yields 0xffff here; equation 3 yields the correct 0x0000.
        assert_eq!(update_word(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    proptest! {
        #[test]
        fn updated_checksum_equals_recomputed_checksum(
            mut words in proptest::collection::vec(any::<u16>(), 2..40),
            at in any::<prop::sample::Index>(),
            new in any::<u16>(),
        ) {
            // An all-zero header is the only one for which 0x0000 and 0xffff differ. Real headers
            // are never all zero.
            words[0] |= 0x4500;
            let bytes = |w: &[u16]| w.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>();
            let at = 1 + at.index(words.len() - 1);
            let before = compute(&bytes(&words));
            let updated = update_word(before, words[at], new);
            words[at] = new;
            prop_assert_eq!(updated, compute(&bytes(&words)));
        }

        #[test]
        fn sum_is_independent_of_even_split_point(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
        ) {
            let split = at.index(bytes.len() + 1) & !1;
            let (a, b) = bytes.split_at(split);
            prop_assert_eq!(fold(add(add(0, a), b)), fold(add(0, &bytes)));
        }
    }
}
