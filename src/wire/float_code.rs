//! The floating-point codes of queries: small numbers as they are, larger ones as mantissa and
//! exponent (RFC 9776 sections 4.1.1 and 4.1.7, RFC 9777 sections 5.1.3 and 5.1.9).

/// Largest value of an 8-bit code: maximum response codes of IGMPv3, in tenths of a second, and
/// query interval codes, in seconds.
pub const LARGEST_8: u32 = 0x1f << 10;
/// Largest value of a 16-bit code: maximum response codes of MLDv2, in milliseconds.
pub const LARGEST_16: u32 = 0x1fff << 10;

/// The value of an 8-bit code.
pub fn value_8(code: u8) -> u32 {
    let code = u32::from(code);
    if code < 0x80 {
        return code;
    }
    (code & 0x0f | 0x10) << ((code >> 4 & 7) + 3)
}

/// The value of a 16-bit code.
pub fn value_16(code: u16) -> u32 {
    let code = u32::from(code);
    if code < 0x8000 {
        return code;
    }
    (code & 0x0fff | 0x1000) << ((code >> 12 & 7) + 3)
}

/// The 8-bit code of the largest value there is a code for that is not above `value`.
pub fn code_8(value: u32) -> u8 {
    code(value.min(LARGEST_8), 4) as u8
}

/// The 16-bit code of the largest value there is a code for that is not above `value`.
pub fn code_16(value: u32) -> u16 {
    code(value.min(LARGEST_16), 12) as u16
}

/// The code with a mantissa of `bits` bits; `value` is within its range.
fn code(value: u32, bits: u32) -> u32 {
    let plain = 1 << (bits + 3);
    if value < plain {
        return value;
    }
    // The hidden bit of the mantissa is the highest of the value.
    let shift = value.ilog2() - bits;
    let mantissa = value >> shift & ((1 << bits) - 1);
    plain | (shift - 3) << bits | mantissa
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_its_value() {
        for code in 0..=u8::MAX {
            assert_eq!(code_8(value_8(code)), code);
        }
        for code in 0..=u16::MAX {
            assert_eq!(code_16(value_16(code)), code);
        }
        assert_eq!(value_8(u8::MAX), LARGEST_8);
        assert_eq!(value_16(u16::MAX), LARGEST_16);
    }

    #[test]
    fn values_between_codes_are_rounded_down() {
        for value in 0..40_000 {
            let got = value_8(code_8(value));
            assert!(got <= value);
            let next = code_8(value).checked_add(1).map(value_8);
            assert!(next.is_none_or(|n| n > value), "{value}");
        }
        for value in (0..9_000_000).step_by(97) {
            let got = value_16(code_16(value));
            assert!(got <= value);
            let next = code_16(value).checked_add(1).map(value_16);
            assert!(next.is_none_or(|n| n > value), "{value}");
        }
    }

    #[test]
    fn codes_worked_out_by_hand() {
        // 0x8b: exponent 0, mantissa 11: (11 + 16) << 3.
        assert_eq!(
            (value_8(0x7f), value_8(0x80), value_8(0x8b)),
            (127, 128, 216)
        );
        assert_eq!(value_8(0xff), 31_744);
        // 0x8765: exponent 0, mantissa 0x765.
        assert_eq!(value_16(0x8765), 0x1765 << 3);
        assert_eq!(value_16(0xffff), 8_387_584);
    }
}
