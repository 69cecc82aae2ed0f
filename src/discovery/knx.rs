//! Search requests of KNXnet/IP (ISO 22510), which hold the address for the answer.

use std::net::SocketAddrV4;

/// `SEARCH_REQUEST` and `SEARCH_REQUEST_EXTENDED`.
const SEARCH: [[u8; 2]; 2] = [[0x02, 0x01], [0x02, 0x0b]];
/// Length of the host protocol address information of IPv4 UDP.
const HPAI_LEN: usize = 8;
/// Length of the KNXnet/IP header.
const HEADER_LEN: usize = 6;

/// Returns whether a message is a search request.
pub fn is_search(payload: &[u8]) -> bool {
    endpoint(payload).is_some()
}

/// Returns the address for the answer to a search request.
fn endpoint(payload: &[u8]) -> Option<&[u8; 6]> {
    let header: &[u8; HEADER_LEN] = payload.first_chunk()?;
    let [0x06, 0x10, high, low, ..] = *header else {
        return None;
    };
    let hpai = payload.get(HEADER_LEN..HEADER_LEN + HPAI_LEN)?;
    let ([8, 1], endpoint) = hpai.split_at(2) else {
        return None;
    };
    SEARCH
        .contains(&[high, low])
        .then(|| endpoint.first_chunk())?
}

/// Returns a search request with another address for the answer.
pub fn with_endpoint(payload: &[u8], endpoint: SocketAddrV4) -> Vec<u8> {
    let mut request = payload.to_vec();
    let at = HEADER_LEN + 2;
    if let Some(field) = request.get_mut(at..at + 6).filter(|_| is_search(payload)) {
        let [a, b, c, d] = endpoint.ip().octets();
        let [high, low] = endpoint.port().to_be_bytes();
        field.copy_from_slice(&[a, b, c, d, high, low]);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_requests_get_another_endpoint() {
        let search = [6, 0x10, 2, 1, 0, 14, 8, 1, 192, 168, 1, 9, 0x0e, 0x57];
        assert!(is_search(&search));
        let changed = with_endpoint(&search, "10.0.0.1:61440".parse().unwrap());
        assert_eq!(changed, [6, 0x10, 2, 1, 0, 14, 8, 1, 10, 0, 0, 1, 0xf0, 0]);
        let routing = [6, 0x10, 5, 0x30, 0, 14, 8, 1, 192, 168, 1, 9, 0x0e, 0x57];
        assert!(!is_search(&routing));
        assert_eq!(
            with_endpoint(&routing, "10.0.0.1:1".parse().unwrap()),
            routing
        );
        (0..search.len()).for_each(|len| assert!(!is_search(&search[..len])));
    }
}
