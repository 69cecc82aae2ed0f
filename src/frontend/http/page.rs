//! The page at `/`: files that are part of the program.

use std::io::Write;
use std::sync::LazyLock;

use actix_web::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::error_answers::not_found;
use super::site::Site;

/// Nothing from elsewhere, nothing inline, no frame around the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// A file of the page.
#[derive(Debug)]
pub struct PageFile {
    /// Where it is served.
    pub path: &'static str,
    /// Its media type.
    pub media_type: &'static str,
    /// Its bytes.
    pub bytes: &'static [u8],
    /// The same, compressed with gzip.
    pub gzip: Bytes,
    etag: String,
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

static FILES: LazyLock<Vec<PageFile>> = LazyLock::new(|| {
    let files: [(&str, &str, &[u8]); 11] = [
        ("/", HTML, include_bytes!("page/index.html")),
        ("/page/page.css", STYLE, include_bytes!("page/page.css")),
        (
            "/page/icon.svg",
            "image/svg+xml",
            include_bytes!("page/icon.svg"),
        ),
        ("/page/main.js", SCRIPT, include_bytes!("page/main.js")),
        (
            "/page/explain.js",
            SCRIPT,
            include_bytes!("page/explain.js"),
        ),
        ("/page/feed.js", SCRIPT, include_bytes!("page/feed.js")),
        ("/page/format.js", SCRIPT, include_bytes!("page/format.js")),
        ("/page/parts.js", SCRIPT, include_bytes!("page/parts.js")),
        ("/page/views.js", SCRIPT, include_bytes!("page/views.js")),
        (
            "/page/preact.js",
            SCRIPT,
            include_bytes!("page/vendor/preact-11.2.0/preact.mjs"),
        ),
        (
            "/page/htm.js",
            SCRIPT,
            include_bytes!("page/vendor/htm-3.1.1/htm.mjs"),
        ),
    ];
    let file = |(path, media_type, bytes)| PageFile {
        path,
        media_type,
        bytes,
        gzip: compressed(bytes),
        // Weak, because it is the same for both encodings.
        etag: format!("W/\"{:08x}\"", crc32fast::hash(bytes)),
    };
    files.map(file).into()
});

/// Returns the files of the page. The first call compresses them.
pub fn page_files() -> &'static [PageFile] {
    &FILES
}

/// Returns `bytes` in the format of gzip. A write to a vector does not fail.
fn compressed(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default().into()
}

/// Answers with a file of the page.
pub async fn page(request: HttpRequest, site: Data<Site>) -> HttpResponse {
    match page_files().iter().find(|file| file.path == request.path()) {
        Some(file) => answer(file, &request),
        None => not_found(site).await,
    }
}

fn answer(file: &PageFile, request: &HttpRequest) -> HttpResponse {
    let header = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let known = header(IF_NONE_MATCH).unwrap_or_default();
    if known.split(',').any(|tag| tag.trim() == file.etag) {
        return with_headers(HttpResponse::NotModified(), file).finish();
    }
    let mut response = with_headers(HttpResponse::Ok(), file);
    response.insert_header((CONTENT_TYPE, file.media_type));
    match accepts_gzip(header(ACCEPT_ENCODING).unwrap_or_default()) {
        true => response
            .insert_header((CONTENT_ENCODING, "gzip"))
            .body(file.gzip.clone()),
        false => response.body(file.bytes),
    }
}

fn with_headers(mut response: HttpResponseBuilder, file: &PageFile) -> HttpResponseBuilder {
    response
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((REFERRER_POLICY, "no-referrer"))
        .insert_header(("Cross-Origin-Resource-Policy", "same-origin"))
        // A browser asks each time whether the file has changed: an upgrade changes all of them.
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((VARY, "Accept-Encoding"))
        .insert_header((ETAG, file.etag.as_str()));
    response
}

/// Returns whether a value of `Accept-Encoding` permits gzip.
fn accepts_gzip(value: &str) -> bool {
    value.split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_gzip = parts
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let is_refused = parts.next().is_some_and(|weight| {
            weight.strip_prefix("q=").and_then(|q| q.parse().ok()) == Some(0.0)
        });
        is_gzip && !is_refused
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn compressed_files_have_the_bytes_of_their_source_and_fit_the_budget() {
        let mut total = 0;
        for file in page_files() {
            let mut bytes = Vec::new();
            GzDecoder::new(&file.gzip[..])
                .read_to_end(&mut bytes)
                .unwrap();
            assert!(bytes == file.bytes, "{}", file.path);
            total += file.gzip.len();
        }
        println!("{total} bytes");
        assert!(total < 100_000, "{total} bytes compressed");
    }

    /// No file refers to another host, and no script or style is inline.
    #[test]
    fn page_needs_nothing_from_elsewhere() {
        for file in page_files() {
            let text = std::str::from_utf8(file.bytes).unwrap();
            let is_vendored = ["/page/preact.js", "/page/htm.js"].contains(&file.path);
            // The names of namespaces of XML.
            let text = text.replace("http://www.w3.org/", "");
            let is_remote = text.contains("http://") || text.contains("https://");
            assert!(is_vendored || !is_remote, "{}", file.path);
            for forbidden in [
                "<style",
                "style=",
                "onclick=",
                "innerHTML",
                "eval(",
                "new Function",
            ] {
                let is_used = text.contains(forbidden) && !is_vendored;
                assert!(!is_used, "{}: {forbidden}", file.path);
            }
        }
    }

    #[test]
    fn gzip_is_sent_only_to_clients_that_accept_it() {
        for (value, expected) in [
            ("gzip, deflate, br", true),
            ("br;q=1.0, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("identity", false),
            ("", false),
        ] {
            assert_eq!(accepts_gzip(value), expected, "{value:?}");
        }
    }
}
