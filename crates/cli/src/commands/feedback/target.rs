//! What is written beside the rows, and where.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use pt_core::atomic_file;
use pt_data::Columns;
use pt_feedback::Page;
use serde::Serialize;

use super::print;
use crate::ui;

/// What is written beside the rows, and where.
#[derive(clap::Args)]
#[command(next_help_heading = "Output")]
pub(super) struct Target {
    /// Where the rows go, as JSON lines; OUT.excluded.jsonl, OUT.report.json and OUT.report.md come beside it
    #[arg(long, value_name = "FILE")]
    pub(super) out: String,
}

impl Target {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.out == "-" {
            bail!("--out must be a file: excluded rows, the report and kept answers come beside it");
        }
        ui::check_target(&self.out)
    }

    pub(super) fn beside(&self, what: &str) -> PathBuf {
        let base = self.out.strip_suffix(".jsonl").unwrap_or(&self.out);
        PathBuf::from(format!("{base}.{what}"))
    }

    pub(super) fn write_rows(&self, rows: &[Columns], excluded: &[Columns]) -> anyhow::Result<()> {
        let write = |name: &str, rows: &[Columns]| {
            ui::write_json_lines(name, |out| rows.iter().try_for_each(|row| out.write(row)))
        };
        write(&self.out, rows)?;
        write(&self.beside("excluded.jsonl").display().to_string(), excluded)
    }

    pub(super) fn write_report(&self, report: &impl Serialize, page: &Page) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(report)? + "\n";
        write(&self.beside("report.json"), &json)?;
        write(&self.beside("report.md"), &page.markdown())?;
        print(&page.text())
    }
}

pub(super) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    atomic_file::write(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
