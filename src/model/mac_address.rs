//! Addresses of the link layer.

use std::fmt;

/// A 48-bit address of the link layer (IEEE 802). Addresses are ordered like their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Returns the address in `bytes`; `None` if it does not have six bytes, or all are zero, as on
    /// links without addresses.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let address: [u8; 6] = bytes.try_into().ok()?;
        (address != [0; 6]).then_some(Self(address))
    }

    /// Returns the address as a number below 2^48.
    pub fn to_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// Returns the address with this number; its upper 16 bits are ignored. `None` for zero.
    pub fn from_u64(number: u64) -> Option<Self> {
        Self::from_slice(&number.to_be_bytes()[2..])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses_are_equivalent() {
        let address = MacAddress([2, 0, 0, 0xa, 0xb, 0xff]);
        assert_eq!(MacAddress::from_u64(address.to_u64()), Some(address));
        assert_eq!(address.to_string(), "02:00:00:0a:0b:ff");
        assert_eq!(MacAddress::from_slice(&[0; 6]), None);
        assert_eq!(MacAddress::from_slice(&[1; 8]), None);
        assert!(MacAddress([1, 9, 9, 9, 9, 9]) < address);
    }
}
