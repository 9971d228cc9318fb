//! Plain text (TRL language modelling, standard; Axolotl `completion`; mlx-lm `text`).

use super::Layout;
use super::fields::is_text;
use crate::record::{Body, Content};

/// See the module.
pub(crate) const LAYOUT: Layout = Layout {
    name: "text",
    summary: "plain text to continue (TRL language modelling, mlx-lm text, Axolotl completion)",
    columns: &["text"],
    optional: &[],
    example: r#"{"text": "The sky is blue."}"#,
    fits: |row| is_text(row, "text"),
    convert: |fields| Ok(vec![Body::LanguageModel(Content::Text(fields.take_string("text")?))]),
};
