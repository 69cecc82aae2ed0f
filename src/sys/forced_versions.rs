//! The versions of IGMP and MLD that the administrator of this machine forces by sysctl.

use crate::model::IfName;

/// The forced versions of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ForcedVersions {
    /// `net.ipv4.conf.*.force_igmp_version`: 1, 2 or 3.
    pub igmp: Option<u8>,
    /// `net.ipv6.conf.*.force_mld_version`: 1 or 2.
    pub mld: Option<u8>,
}

/// Returns the forced versions of an interface, as the kernel applies them to its own memberships.
/// An unreadable file counts as no forced version.
pub fn forced_versions(name: &IfName) -> ForcedVersions {
    let read = |family: &str, scope: &str, key: &str| {
        let path = format!("/proc/sys/net/{family}/conf/{scope}/{key}");
        let text = std::fs::read_to_string(path).ok()?;
        text.trim()
            .parse::<u8>()
            .ok()
            .filter(|version| *version > 0)
    };
    let forced = |family, key| {
        let all = read(family, "all", key);
        all.or_else(|| read(family, name.as_str(), key))
    };
    ForcedVersions {
        igmp: forced("ipv4", "force_igmp_version").filter(|version| *version <= 3),
        mld: forced("ipv6", "force_mld_version").filter(|version| *version <= 2),
    }
}
