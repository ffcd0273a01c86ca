//! The JSON schema of the host's file.

use crate::file::File;

/// The schema, as text that ends with a line feed.
pub fn schema() -> String {
    let schema = schemars::schema_for!(File);
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema is a JSON value already");
    text.push('\n');
    text
}
