//! 802.1Q tags inside a captured frame. The kernel already strips the outermost tag.

use super::WireError;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of an 802.1Q customer tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

/// Returns the VLAN ID: the low 12 bits of the tag control information (802.1Q section 9.6).
pub fn vlan_id(tag_control: u16) -> u16 {
    tag_control & 0x0fff
}

/// Skips the VLAN tags at the start of `bytes`. `ethertype` is the EtherType that announces the
/// content of `bytes`.
///
/// Returns the EtherType after the last tag and the length of all tags in bytes.
///
/// # Errors
/// [`WireError::Truncated`] if a tag is incomplete.
pub fn skip_tags(mut ethertype: u16, bytes: &[u8]) -> Result<(u16, usize), WireError> {
    let mut at = 0;
    while matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN) {
        let tag = bytes.get(at..at + 4).ok_or(WireError::Truncated {
            needed: at + 4,
            got: bytes.len(),
        })?;
        ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        at += 4;
    }
    Ok((ethertype, at))
}

/// Returns the VLAN ID of the tag at the start of `bytes`, or `None` if `ethertype` announces no
/// tag.
pub fn outer_tag(ethertype: u16, bytes: &[u8]) -> Option<u16> {
    let tagged = matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN);
    let control = bytes.first_chunk::<2>().filter(|_| tagged)?;
    Some(vlan_id(u16::from_be_bytes(*control)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_skipped_and_truncated_tags_rejected() {
        assert_eq!(skip_tags(ETHERTYPE_IPV4, &[]), Ok((ETHERTYPE_IPV4, 0)));
        let two = [0x00, 0x0a, 0x81, 0x00, 0x20, 0x14, 0x86, 0xdd];
        assert_eq!(
            skip_tags(ETHERTYPE_SERVICE_VLAN, &two),
            Ok((ETHERTYPE_IPV6, 8))
        );
        assert!(skip_tags(ETHERTYPE_SERVICE_VLAN, &two[..6]).is_err());
        assert_eq!(vlan_id(0xa00a), 10);
    }
}
