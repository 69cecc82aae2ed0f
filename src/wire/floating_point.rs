//! The floating-point format of the Max Resp Code and QQIC fields of IGMPv3 and MLDv2 queries
//! (RFC 9776 sections 4.1.1 and 4.1.7, RFC 9777 sections 5.1.3 and 5.1.9).
//!
//! A code with a clear top bit is the value itself. A code with a set top bit holds a 3-bit
//! exponent and a 4-bit (8-bit codes) or 12-bit (16-bit codes) mantissa with a hidden top bit:
//! the value is `(mantissa | hidden bit) << (exponent + 3)`.

/// The largest value of an 8-bit code: the Max Resp Code of IGMPv3 (in 100 ms) and the QQIC of
/// both protocols (in seconds).
pub const MAX_VALUE_8: u32 = 0x1f << 10;
/// The largest value of a 16-bit code: the Maximum Response Code of MLDv2 (in ms).
pub const MAX_VALUE_16: u32 = 0x1fff << 10;

/// Decodes an 8-bit code.
pub fn decode_8(code: u8) -> u32 {
    let code = u32::from(code);
    if code < 0x80 {
        return code;
    }
    (code & 0x0f | 0x10) << ((code >> 4 & 7) + 3)
}

/// Decodes a 16-bit code.
pub fn decode_16(code: u16) -> u32 {
    let code = u32::from(code);
    if code < 0x8000 {
        return code;
    }
    (code & 0x0fff | 0x1000) << ((code >> 12 & 7) + 3)
}

/// Encodes `value` as an 8-bit code. Rounds down to the next value that has a code.
pub fn encode_8(value: u32) -> u8 {
    encode(value.min(MAX_VALUE_8), 4) as u8
}

/// Encodes `value` as a 16-bit code. Rounds down to the next value that has a code.
pub fn encode_16(value: u32) -> u16 {
    encode(value.min(MAX_VALUE_16), 12) as u16
}

/// Encodes `value` with a mantissa of `mantissa_bits` bits. `value` must be in range.
fn encode(value: u32, mantissa_bits: u32) -> u32 {
    let top_bit = 1 << (mantissa_bits + 3);
    if value < top_bit {
        return value;
    }
    // The hidden bit of the mantissa is the highest set bit of the value.
    let shift = value.ilog2() - mantissa_bits;
    let mantissa = value >> shift & ((1 << mantissa_bits) - 1);
    top_bit | (shift - 3) << mantissa_bits | mantissa
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_round_trips() {
        for code in 0..=u8::MAX {
            assert_eq!(encode_8(decode_8(code)), code);
        }
        for code in 0..=u16::MAX {
            assert_eq!(encode_16(decode_16(code)), code);
        }
        assert_eq!(decode_8(u8::MAX), MAX_VALUE_8);
        assert_eq!(decode_16(u16::MAX), MAX_VALUE_16);
    }

    #[test]
    fn unrepresentable_values_are_rounded_down() {
        for value in 0..40_000 {
            let got = decode_8(encode_8(value));
            assert!(got <= value);
            let next = encode_8(value).checked_add(1).map(decode_8);
            assert!(next.is_none_or(|n| n > value), "{value}");
        }
        for value in (0..9_000_000).step_by(97) {
            let got = decode_16(encode_16(value));
            assert!(got <= value);
            let next = encode_16(value).checked_add(1).map(decode_16);
            assert!(next.is_none_or(|n| n > value), "{value}");
        }
    }

    #[test]
    fn codes_match_hand_computed_values() {
        // 0x8b: exponent 0, mantissa 11: (11 + 16) << 3.
        assert_eq!(
            (decode_8(0x7f), decode_8(0x80), decode_8(0x8b)),
            (127, 128, 216)
        );
        assert_eq!(decode_8(0xff), 31_744);
        // 0x8765: exponent 0, mantissa 0x765.
        assert_eq!(decode_16(0x8765), 0x1765 << 3);
        assert_eq!(decode_16(0xffff), 8_387_584);
    }
}
