//! Answers to requests that fail.

use std::borrow::Cow;

use actix_web::error::{InternalError, QueryPayloadError};
use actix_web::http::header::ContentType;
use actix_web::http::{Method, StatusCode};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use serde_json::json;

use super::site::Site;
use crate::api;
use crate::api::openapi::api_paths;
use crate::frontend::query::QueryError;
use crate::model::escape::{EscapeStyle, escape};

/// Returns an answer of the API that says what is wrong.
pub fn error_answer(status: StatusCode, error: &str) -> HttpResponse {
    let answer = json!({ "version": api::VERSION, "error": error });
    HttpResponse::build(status)
        .content_type(ContentType::json())
        .body(escaped(answer.to_string()))
}

/// Returns the answer of a part that is busy or restarts: 503.
pub fn unavailable(error: &str) -> HttpResponse {
    error_answer(StatusCode::SERVICE_UNAVAILABLE, error)
}

/// Returns the answer if the data have no encoding: 500.
pub fn not_encoded() -> HttpResponse {
    error_answer(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the reply could not be encoded; the log says why at level debug",
    )
}

/// Returns the answer to a query that failed.
pub fn failed(error: &QueryError) -> HttpResponse {
    match error {
        QueryError::NoAnswer(_) => unavailable(&error.to_string()),
        QueryError::Refused(why) => error_answer(StatusCode::BAD_REQUEST, why),
    }
}

/// The most bytes of a query that an answer repeats.
const MAX_SHOWN_QUERY: usize = 200;

/// Answers a request with missing, unknown or invalid query parameters.
pub fn invalid_parameters(error: QueryPayloadError, request: &HttpRequest) -> actix_web::Error {
    let mut why = match &error {
        QueryPayloadError::Deserialize(why) => why.to_string(),
        _ => error.to_string(),
    };
    // The error of a value does not name its parameter.
    let query = request.query_string();
    if !why.contains('`') && query.len() <= MAX_SHOWN_QUERY {
        why += &format!(" in ?{query}");
    }
    let answer = error_answer(StatusCode::BAD_REQUEST, &why);
    InternalError::from_response(error, answer).into()
}

/// Returns JSON that a terminal can show, for instance by curl.
pub fn escaped(json: String) -> String {
    match escape(&json, EscapeStyle::Json) {
        Cow::Borrowed(_) => json,
        Cow::Owned(escaped) => escaped,
    }
}

/// Answers all requests to the API if it is turned off.
pub async fn api_is_off() -> HttpResponse {
    error_answer(
        StatusCode::NOT_FOUND,
        "the API is turned off by api = false in [http] of the settings",
    )
}

/// Answers requests for other paths.
pub async fn not_found(site: Data<Site>) -> HttpResponse {
    not_found_because(&site, "")
}

/// Answers requests for other paths, and with other methods than GET.
pub async fn not_served(site: Data<Site>, method: Method) -> HttpResponse {
    match method {
        Method::GET => not_found_because(&site, ""),
        _ => not_found_because(&site, "only GET is served; "),
    }
}

fn not_found_because(site: &Site, why: &str) -> HttpResponse {
    let api = match site.api {
        true => " / ".to_string() + &api_paths().join(" "),
        false => String::new(),
    };
    HttpResponse::NotFound()
        .content_type(ContentType::plaintext())
        .body(format!("{why}there are /metrics /healthz /readyz{api}\n"))
}

#[cfg(test)]
mod tests {
    use actix_web::body::MessageBody;
    use actix_web::test::TestRequest;
    use actix_web::web::Query;

    use super::*;
    use crate::api::FlowQuery;

    #[test]
    fn answer_to_an_invalid_value_names_the_parameter() {
        for (query, error) in [
            ("limit=-1", "invalid digit found in string in ?limit=-1"),
            ("limt=1", "unknown field `limt`, expected"),
        ] {
            let invalid = Query::<FlowQuery>::from_query(query).unwrap_err();
            let request = TestRequest::with_uri(&format!("/flows?{query}")).to_http_request();
            let response = invalid_parameters(invalid, &request).error_response();
            let body = response.into_body().try_into_bytes().unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let text = body["error"].as_str().unwrap();
            assert!(text.starts_with(error), "{text}");
        }
    }

    /// The answers with 500 and 503, which the test of the OpenAPI document cannot cause.
    #[test]
    fn error_answers_have_version_and_error() {
        for response in [unavailable("a\u{202e}b"), not_encoded()] {
            let body = response.into_body().try_into_bytes().unwrap();
            assert!(body.is_ascii(), "{body:?}");
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let keys: Vec<_> = body.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["error", "version"]);
        }
    }
}
