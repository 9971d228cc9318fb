//! Writing a tokenizer as part of a Hugging Face model directory.

use std::path::Path;

use super::Tokenizer;
use crate::error::TextError;

impl Tokenizer {
    /// Writes `tokenizer.json` and `tokenizer_config.json` (with the chat templates) into `dir`, which
    /// must exist; transformers' `AutoTokenizer` loads them. The same tokenizer writes the same bytes.
    ///
    /// # Errors
    /// [`TextError::Io`].
    pub fn save(&self, dir: &Path) -> Result<(), TextError> {
        let files = [("tokenizer.json", &self.json), ("tokenizer_config.json", &self.config.to_json())];
        for (name, json) in files {
            let path = dir.join(name);
            let mut bytes = serde_json::to_vec_pretty(json).expect("a JSON value can always be written");
            bytes.push(b'\n');
            pt_core::atomic_file::write(&path, &bytes).map_err(|source| TextError::Io { path, source })?;
        }
        Ok(())
    }
}
