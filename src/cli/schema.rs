//! `mcastor schema`: prints the JSON schema of the settings, or the OpenAPI document.

use std::process::ExitCode;

use super::exit::fail;
use super::output::print;
use crate::api::openapi::openapi_text;

/// Prints the schema of the settings, or with `openapi` the OpenAPI document.
pub fn run(openapi: bool) -> ExitCode {
    if !openapi {
        return print(format!("{:#}\n", crate::settings::json_schema()).as_bytes());
    }
    match openapi_text() {
        Ok(text) => print(text.as_bytes()),
        Err(e) => fail(&format_args!(
            "cannot write the OpenAPI document as JSON: {e}"
        )),
    }
}
