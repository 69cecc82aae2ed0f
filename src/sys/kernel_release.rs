//! The release of the running kernel.

/// Returns the release of the running kernel, such as `6.1.0-13-amd64`; empty if it is unknown.
pub fn release() -> String {
    let system = nix::sys::utsname::uname().ok();
    let release = system.as_ref().and_then(|system| system.release().to_str());
    release.unwrap_or_default().into()
}

/// Returns the first two numbers of a release.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_that_of_the_release() {
        assert_eq!(version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(version("5.10-rc1"), Some((5, 10)));
        assert_eq!(version(""), None);
        assert!(version(&release()).is_some());
    }
}
