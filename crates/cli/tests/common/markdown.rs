//! The fenced blocks of a Markdown page, with the remarks for tests that stand above them.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

/// A fenced block: its first line (1-based), what stands after the fence, its text, and the HTML comments directly above
/// the fence (with nothing but empty lines between).
pub struct Block {
    pub line: usize,
    pub info: String,
    pub text: String,
    pub remarks: Vec<String>,
}

impl Block {
    /// What stands after `KEY:` in a remark.
    pub fn remark(&self, key: &str) -> Option<&str> {
        self.remarks.iter().find_map(|remark| Some(remark.strip_prefix(key)?.strip_prefix(':')?.trim()))
    }
}

/// The blocks of `page`, also those that are indented in a list.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut indent, mut remarks) = (None, Vec::new());
    for (i, line) in page.lines().enumerate() {
        let trimmed = line.trim_start();
        match (trimmed.strip_prefix("```"), indent) {
            (Some(_), Some(_)) => indent = None,
            (Some(info), None) => {
                indent = Some(line.len() - trimmed.len());
                let (info, remarks) = (info.trim().to_owned(), std::mem::take(&mut remarks));
                blocks.push(Block { line: i + 2, info, text: String::new(), remarks });
            }
            (None, Some(indent)) => {
                let block = blocks.last_mut().expect("an open block was pushed");
                let blank = line.len() - trimmed.len();
                block.text.push_str(&line[indent.min(blank)..]);
                block.text.push('\n');
            }
            (None, None) => match trimmed.strip_prefix("<!--").and_then(|rest| rest.strip_suffix("-->")) {
                Some(remark) => remarks.push(remark.trim().to_owned()),
                None if trimmed.is_empty() => {}
                None => remarks.clear(),
            },
        }
    }
    assert!(indent.is_none(), "a fence is not closed");
    blocks
}
