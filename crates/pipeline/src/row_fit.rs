//! Which objectives the rows of a type of stage are made for.

use pt_recipe::{Credit, RowKind, StageSection};

use crate::error::{PipelineError, Result};

/// Objectives on rows of this kind; none where the stage itself decides what its samples are.
fn objectives(kind: RowKind) -> Option<(&'static str, &'static [&'static str])> {
    match kind {
        RowKind::Text => Some(("texts and completions", &["cross_entropy", "dft"])),
        RowKind::Pairs => {
            Some(("a chosen and a rejected reply", &["dpo", "orpo", "cpo", "simpo", "alphapo", "tpo"]))
        }
        RowKind::ScoredPairs => Some(("a chosen and a rejected reply, scored", &["reward"])),
        RowKind::Labelled => Some(("replies that are good or bad", &["kto", "apo_zero_unpaired", "bco"])),
        RowKind::Steps => Some(("solutions in labelled steps", &["prm"])),
        RowKind::Prompts => None,
    }
}

/// Refuses an objective that is not on the rows of its stage.
///
/// # Errors
/// [`PipelineError::RowsDoNotFit`].
pub(crate) fn check_rows_fit(stage: &StageSection) -> Result<()> {
    let objective = stage.objective_type();
    if stage.credit() == Some(Credit::Divergence) || objective == WITH_TEACHER {
        return check_teacher_fits(stage, objective);
    }
    match objectives(stage.stage_type().rows) {
        Some((rows, fitting)) if !fitting.contains(&objective) => Err(PipelineError::RowsDoNotFit {
            stage: stage.r#type.clone(),
            objective: objective.to_owned(),
            rows,
            fitting: fitting.join(", "),
        }),
        _ => Ok(()),
    }
}

/// The objective that compares with a teacher's distribution.
const WITH_TEACHER: &str = "gkd";

/// A stage has a teacher to be compared with if and only if its objective compares with one.
fn check_teacher_fits(stage: &StageSection, objective: &str) -> Result<()> {
    if stage.credit() == Some(Credit::Divergence) && objective == WITH_TEACHER {
        return Ok(());
    }
    let has_teacher = stage.credit() == Some(Credit::Divergence);
    Err(PipelineError::RowsDoNotFit {
        stage: stage.r#type.clone(),
        objective: objective.to_owned(),
        rows: if has_teacher { "divergences from a teacher" } else { "nothing of a teacher" },
        fitting: if has_teacher { WITH_TEACHER } else { stage.stage_type().objective }.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_type_fits_its_own_objective_and_every_name_is_an_objective() {
        for stage in pt_recipe::STAGE_TYPES {
            let Some((_, fitting)) = objectives(stage.rows) else { continue };
            if stage.objective == WITH_TEACHER {
                continue;
            }
            assert!(fitting.contains(&stage.objective), "{}", stage.name);
            for name in fitting {
                assert!(pt_objectives::OBJECTIVES.iter().any(|info| info.name == *name), "{name}");
            }
        }
    }
}
