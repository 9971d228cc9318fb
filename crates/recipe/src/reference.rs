//! The reference manual of recipes, written from the declarations in `keys.rs`.

use crate::keys::SECTIONS;
use crate::schema::{ComponentKind, Fallback, KeyDoc, Kind, SectionDoc};
use crate::stage_types::{STAGE_TYPES, WORK_TYPES};

/// Every key of every section, in the order of the manual.
pub fn documented_keys() -> impl Iterator<Item = &'static KeyDoc> {
    SECTIONS.iter().flat_map(|section| section.keys)
}

/// The content of `docs/generated/recipe.md`.
pub fn recipe_reference_markdown() -> String {
    let mut text = String::from(
        "# Recipes\n\n\
         <!-- Written by `UPDATE=1 cargo test -p pt-recipe`; edit crates/recipe/src/keys.rs instead. -->\n\n\
         A recipe is a TOML file: a model and one or more stages. Unknown keys, wrong types, values out of\n\
         range and keys without effect are errors, reported all together with line and column. Any key can\n\
         be changed from the command line: `--set stage.0.train.steps=50`, or with the stage's name,\n\
         `--set stage.sft.train.steps=50`. `posttrain plan RECIPE` shows what every default became.\n\n\
         The shortest recipe:\n\n\
         ```toml\n",
    );
    text += MINIMAL;
    text += "```\n\nStages that train:\n\n";
    for kind in STAGE_TYPES {
        text += &format!("- `{}`: {}.\n", kind.name, kind.doc);
    }
    text += "\nStages that train nothing:\n\n";
    for kind in WORK_TYPES {
        text += &format!("- `{}`: {}.\n", kind.name, kind.doc);
    }
    SECTIONS.iter().for_each(|section| text += &section_markdown(section));
    text
}

/// The shortest recipe that runs.
pub(crate) const MINIMAL: &str = "[model]\nbase = \"models/base\"\n\n[[stage]]\ntype = \"sft\"\n\
                                  data.train = [\"data/train.jsonl\"]\n";

fn section_markdown(section: &SectionDoc) -> String {
    let title =
        if section.path.is_empty() { "Top of the file".to_owned() } else { format!("`{}`", section.header) };
    let mut text = format!("\n## {title}\n\n{}\n\n", section.doc.trim());
    text += "| key | value | default | meaning |\n| --- | --- | --- | --- |\n";
    for key in section.keys {
        text += &format!(
            "| `{}` | {} | {} | {} |\n",
            key.name(),
            escape(&accepts(&key.kind)),
            escape(&default(key)),
            escape(key.doc)
        );
    }
    text
}

fn accepts(kind: &Kind) -> String {
    match kind {
        Kind::String => "string".to_owned(),
        Kind::Bool => "`true`, `false`".to_owned(),
        Kind::Int { min, max } => format!("integer, {} to {}", whole(*min), whole(*max)),
        Kind::Float { min, max } => format!("number, {} to {}", short(*min), short(*max)),
        Kind::Choice(names) => names.iter().map(|name| format!("`{name:?}`")).collect::<Vec<_>>().join(", "),
        Kind::Component(ComponentKind::Objective) => "`posttrain list objectives`".to_owned(),
        Kind::Component(ComponentKind::Optimizer) => "`posttrain list optimizers`".to_owned(),
        Kind::Component(ComponentKind::Layout) => "`posttrain list layouts`".to_owned(),
        Kind::Component(ComponentKind::Environment) => "`posttrain list environments`".to_owned(),
        Kind::Component(ComponentKind::Verifier) => "`posttrain list verifiers`".to_owned(),
        Kind::Strings => "string or list of strings".to_owned(),
        Kind::Floats => "list of numbers".to_owned(),
        Kind::StringTable => "table of strings".to_owned(),
        Kind::Sources => "source or list of sources".to_owned(),
    }
}

fn default(key: &KeyDoc) -> String {
    match key.default {
        Fallback::Required { example } => format!("**required**, as in `{example}`"),
        Fallback::Value(value) => format!("`{value}`"),
        Fallback::Derived { rule, .. } => rule.to_owned(),
    }
}

/// Powers of ten from a million on as such, other whole numbers digit by digit.
fn whole(value: u64) -> String {
    let zeros = value.to_string().trim_start_matches('1').len();
    let is_power = zeros >= 6 && value == 10u64.saturating_pow(zeros as u32);
    if is_power { format!("1e{zeros}") } else { value.to_string() }
}

/// Numbers of everyday size as they are, others in scientific notation.
fn short(value: f64) -> String {
    let everyday = value == 0.0 || (1e-2..1e5).contains(&value.abs());
    if everyday { format!("{value}") } else { format!("{value:e}") }
}

fn escape(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_reference_in_the_repository_is_this_one() {
        let path = pt_core::testdata::workspace_root().join("docs/generated/recipe.md");
        let expected = recipe_reference_markdown();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &expected).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == expected,
            "docs/generated/recipe.md is stale; run `UPDATE=1 cargo test -p pt-recipe`"
        );
    }

    #[test]
    fn keys_are_named_once_and_say_what_they_do_in_a_sentence() {
        let mut paths = BTreeSet::new();
        for key in documented_keys() {
            assert!(paths.insert(key.path()), "{} is declared twice", key.path());
            let whole = key.doc.ends_with('.') || key.doc.ends_with(".)");
            assert!(
                whole && key.doc.starts_with(|c: char| !c.is_ascii_lowercase()),
                "{}: {}",
                key.path(),
                key.doc
            );
            assert!(!key.name().starts_with("r#"));
        }
        assert!(SECTIONS.iter().all(|section| section.keys.iter().all(|key| key.section == section.path)));
    }
}
