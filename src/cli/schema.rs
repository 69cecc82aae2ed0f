//! `mcastor schema`: prints the JSON schema of the settings.

/// Returns the schema as indented JSON with a final newline.
pub fn text() -> String {
    format!("{:#}\n", crate::settings::json_schema())
}
