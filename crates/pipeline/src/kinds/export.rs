//! `export`: a model for other programs, read again and held against its source.

use std::path::{Path, PathBuf};

use pt_export::{Format, PROOF_TEXT, PublishOptions, Quant, publish};
use pt_recipe::{ExportFormat, ExportSection, StageSection};

use super::{Around, Done, Planning, StageKind, Work};
use crate::error::{PipelineError, Result};
use crate::graph::shown_name;
use crate::source::planned_file;

const MB: u64 = 1_000_000;

/// The kind.
pub(super) struct Export;

impl StageKind for Export {
    fn name(&self) -> &'static str {
        "export"
    }

    fn plan(&self, section: &StageSection, around: &Around<'_>) -> Result<Planning> {
        let export = &section.export;
        quant(export)?;
        if export.quant.is_some() && !format(export).is_gguf() {
            return Err(PipelineError::Unsupported {
                what: format!("export.quant has no effect with format \"{}\"", export.format.as_str()),
                advice:
                    "remove it, or use gguf or ollama; a folder is quantised by format = \"nf4\" or \"int8\""
                        .to_owned(),
            });
        }
        let mut planning = Planning { files: around.model_files(model(export))?, ..Planning::default() };
        if let Some(path) = &export.prove_on {
            planning.files.push(planned_file(&PathBuf::from(path))?);
        }
        planning.settings = serde_json::to_value(export).expect("a section is plain JSON");
        planning.line("model", shown_name(model(export)));
        let stored =
            if format(export).is_gguf() { format!(", {}", quant(export)?.name()) } else { String::new() };
        planning.line("as", format!("{}{stored}", export.format.as_str()));
        Ok(planning)
    }

    #[expect(clippy::result_large_err, reason = "the error of a loader is pt-export's own, and made once")]
    fn run(&self, section: &StageSection, work: &mut Work<'_>) -> Result<Option<Done>> {
        let export = &section.export;
        let loaded = work.load(model(export))?;
        let text = match &export.prove_on {
            Some(path) => std::fs::read_to_string(path).map_err(PipelineError::io("read", path))?,
            None => PROOF_TEXT.to_owned(),
        };
        let name = format!("{}-{}", work.plan.name, shown_name(model(export)));
        let options = PublishOptions {
            format: format(export),
            quant: quant(export)?,
            name: name.clone(),
            max_shard_bytes: export.shard_mb * MB,
            text: &text,
            max_divergence: export.max_divergence,
        };
        let out = target(work.folder.root(), &name, format(export));
        clear(&out)?;
        let again = || match work.load(model(export)) {
            Ok(loaded) => Ok(loaded.model),
            Err(error) => Err(pt_models::ModelError::State { problem: error.to_string() }.into()),
        };
        let text_files = |folder: &Path| Ok(loaded.tokenizer.save(folder)?);
        let published = publish(&loaded.model, &loaded.tokenizer, &out, &options, &again, &text_files)
            .map_err(|error| work.problem(error))?;
        super::refuse_problems(&out, &published.proof).map_err(|error| work.problem(error))?;
        let mut lines = vec![published.proof.summary()];
        lines.extend(published.notes);
        Ok(Some(Done::new(out, lines)))
    }
}

fn model(export: &ExportSection) -> &str {
    export.model.as_deref().expect("the model was written out when the recipe was read")
}

fn format(export: &ExportSection) -> Format {
    match export.format {
        ExportFormat::Safetensors => Format::Safetensors,
        ExportFormat::Gguf => Format::Gguf,
        ExportFormat::Ollama => Format::Ollama,
        ExportFormat::Nf4 => Format::Nf4,
        ExportFormat::Int8 => Format::Int8,
    }
}

fn quant(export: &ExportSection) -> Result<Quant> {
    Ok(export.quant.as_deref().unwrap_or(Quant::F16.name()).parse()?)
}

/// Where the export goes, in the stage's folder.
fn target(folder: &Path, name: &str, format: Format) -> PathBuf {
    folder.join(if format == Format::Gguf { format!("{name}.gguf") } else { "exported".to_owned() })
}

/// Removes what an export that was interrupted left: its stage is not complete.
fn clear(out: &Path) -> Result<()> {
    let removed = if out.is_dir() { std::fs::remove_dir_all(out) } else { std::fs::remove_file(out) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(PipelineError::io("remove", out)(error))
        }
        _ => Ok(()),
    }
}
