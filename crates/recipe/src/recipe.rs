//! A recipe as it is carried out: the stages that can be planned at once, and those that read what others make.

use std::path::Path;

use crate::keys::{ModelSection, RecipeFile, Source, StageSection};
use crate::load::stage_names;
use crate::problem::{Location, RecipeErrors};
use crate::schema::{Catalogue, FromTable, Reader};
use crate::stage_types::{Product, WorkType, product_of};
use crate::tree::{Node, NodeValue};

/// What a stage begins with that begins with the recipe's own model.
pub const MODEL: &str = "model";
/// What comes before the name of an earlier stage, where that is named.
pub const STAGE_PREFIX: &str = "stage:";

/// A recipe, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// What the run is called.
    pub name: Option<String>,
    /// Every random draw follows from it.
    pub seed: u64,
    /// What the first stage begins with.
    pub model: ModelSection,
    /// The stages that train on what is there before the run begins, in order.
    pub stage: Vec<StageSection>,
    /// Their places among all stages, from 1.
    pub numbers: Vec<u32>,
    /// The other stages, in order.
    pub others: Vec<OtherStage>,
}

/// A stage that trains nothing, or that reads what an earlier one makes (beside the model it begins with) and is planned when
/// that is there.
#[derive(Clone, Debug)]
pub struct OtherStage {
    /// Its place among all stages, from 1.
    pub number: u32,
    /// As written, `stage:NAME` included; what it begins with or measures is written out.
    pub section: StageSection,
    /// What it reads: names of stages, and [`MODEL`].
    pub reads: Vec<String>,
    node: Node,
}

/// As written, wherever it stands in the file.
impl PartialEq for OtherStage {
    fn eq(&self, other: &OtherStage) -> bool {
        (self.number, &self.section, &self.reads) == (other.number, &other.section, &other.reads)
    }
}

/// A place where a stage names another.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    /// The key, as in `stage.1.data.train.0.source`.
    pub path: String,
    pub at: Location,
    /// `stage:NAME` or `stage:NAME/PART`.
    pub value: String,
}

impl Reference {
    /// The stage's name.
    pub fn stage(&self) -> &str {
        stage_of(&self.value).expect("a reference begins with `stage:`")
    }

    /// Whether rows are named, not a model.
    pub fn is_of_rows(&self) -> bool {
        let last = self.path.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
        ["source", "sources", "train", "eval", "ptx"].iter().any(|key| last.ends_with(&format!(".{key}")))
    }
}

/// The stage that `text` names as `stage:NAME` or `stage:NAME/PART`.
pub fn stage_of(text: &str) -> Option<&str> {
    let rest = text.strip_prefix(STAGE_PREFIX)?;
    Some(rest.split_once('/').map_or(rest, |(name, _)| name))
}

/// Every text under `node` that names a stage.
pub(crate) fn references_in(node: &Node, path: &str) -> Vec<Reference> {
    let join = |key: &dyn std::fmt::Display| format!("{path}.{key}");
    match &node.value {
        NodeValue::String(text) if text.starts_with(STAGE_PREFIX) => {
            vec![Reference { path: path.to_owned(), at: node.at.clone(), value: text.clone() }]
        }
        NodeValue::List(items) => {
            items.iter().enumerate().flat_map(|(i, item)| references_in(item, &join(&i))).collect()
        }
        NodeValue::Table(table) => {
            table.0.iter().flat_map(|(key, _, item)| references_in(item, &join(key))).collect()
        }
        _ => Vec::new(),
    }
}

fn replace_references(node: &mut Node, with: &dyn Fn(&str) -> String) {
    match &mut node.value {
        NodeValue::String(text) if text.starts_with(STAGE_PREFIX) => *text = with(text),
        NodeValue::List(items) => items.iter_mut().for_each(|item| replace_references(item, with)),
        NodeValue::Table(table) => {
            table.0.iter_mut().for_each(|(.., item)| replace_references(item, with));
        }
        _ => {}
    }
}

impl OtherStage {
    /// Every `stage:NAME` and `stage:NAME/PART` in it, as written.
    pub fn references(&self) -> Vec<String> {
        references_in(&self.node, "").into_iter().map(|reference| reference.value).collect()
    }
}

impl Recipe {
    /// Sorts the stages of a file that was checked; `root` is what it was read from.
    pub(crate) fn of_file(file: RecipeFile, root: &Node) -> Recipe {
        let RecipeFile { name, seed, model, stage } = file;
        let (mut at_once, mut numbers, mut others) = (Vec::new(), Vec::new(), Vec::new());
        let names = stage_names(&stage);
        let kinds: Vec<String> = stage.iter().map(|stage| stage.r#type.clone()).collect();
        for (i, mut section) in stage.into_iter().enumerate() {
            let makers = names[..i].iter().zip(&kinds).filter(|(_, kind)| product_of(kind) == Product::Model);
            let earlier: Vec<String> = makers.map(|(name, _)| format!("{STAGE_PREFIX}{name}")).collect();
            name_models(&mut section, &earlier, model.base.is_some());
            let node = root.find(&format!("stage.{i}")).expect("it was read from there").clone();
            let reads = reads_of(&section, &node);
            let number = i as u32 + 1;
            if WorkType::named(&section.r#type).is_none() && reads.len() == 1 {
                at_once.push(section);
                numbers.push(number);
            } else {
                others.push(OtherStage { number, section, reads, node });
            }
        }
        Recipe { name, seed, model, stage: at_once, numbers, others }
    }

    /// The recipe of one stage that trains, now that what it reads is there: `with` gives the path for `stage:NAME`.
    ///
    /// # Errors
    /// What is wrong with the stage then.
    pub fn of_stage(
        &self,
        stage: &OtherStage,
        with: &dyn Fn(&str) -> String,
        catalogue: &Catalogue,
    ) -> Result<Recipe, RecipeErrors> {
        let mut node = stage.node.clone();
        replace_references(&mut node, with);
        let mut reader = Reader { catalogue, problems: Vec::new(), inside: node.at.clone() };
        let path = format!("stage.{}", stage.number - 1);
        let section = StageSection::from_table(&mut reader, &path, Some(&node));
        let (Some(mut section), true) = (section, reader.problems.is_empty()) else {
            return Err(RecipeErrors { file: Path::new("recipe").to_owned(), problems: reader.problems });
        };
        section.name.clone_from(&stage.section.name);
        section.base.clone_from(&stage.section.base);
        let (stage, numbers) = (vec![section], vec![stage.number]);
        Ok(Recipe { stage, numbers, others: Vec::new(), ..self.clone() })
    }

    /// All stages in order, with their places.
    pub fn all_stages(&self) -> Vec<(u32, &StageSection)> {
        let at_once = self.numbers.iter().copied().zip(&self.stage);
        let mut all: Vec<_> =
            at_once.chain(self.others.iter().map(|other| (other.number, &other.section))).collect();
        all.sort_by_key(|(number, _)| *number);
        all
    }
}

/// Writes out which models a stage begins with or looks at, where it does not say: of `earlier`, those that stages before it made.
fn name_models(section: &mut StageSection, earlier: &[String], has_base: bool) {
    let last = || earlier.last().cloned().unwrap_or_else(|| MODEL.to_owned());
    let Some(work) = WorkType::named(&section.r#type) else {
        section.base.get_or_insert_with(last);
        return;
    };
    if work.sections.contains(&"eval") {
        let base = (has_base || earlier.is_empty()).then(|| MODEL.to_owned());
        section.eval.models.get_or_insert_with(|| base.into_iter().chain(earlier.iter().cloned()).collect());
    }
    if work.sections.contains(&"export") {
        section.export.model.get_or_insert_with(last);
    }
}

impl StageSection {
    /// Every model that the stage names beside its rewards' and its teacher's, as written.
    pub fn named_models(&self) -> Vec<&str> {
        let lists = [&self.eval.models, &self.merge.models, &self.feedback.respond];
        let single =
            [&self.base, &self.eval.against, &self.merge.base, &self.export.model, &self.feedback.model];
        let lists = lists.into_iter().flatten().flatten();
        single.into_iter().flatten().chain(lists).map(String::as_str).collect()
    }

    /// Every source of rows that the stage names.
    pub fn named_sources(&self) -> Vec<&Source> {
        let optional = [&self.data.eval, &self.ppo.ptx, &self.curate.sources, &self.feedback.sources];
        self.data.train.iter().chain(optional.into_iter().flatten().flatten()).collect()
    }
}

/// What a stage reads: names of stages and [`MODEL`], each once. What it begins with is the first, where it trains.
fn reads_of(section: &StageSection, node: &Node) -> Vec<String> {
    let named = section.named_models().into_iter().map(str::to_owned);
    let referred = references_in(node, "").into_iter().map(|reference| reference.value);
    let mut reads: Vec<String> = Vec::new();
    for text in named.chain(referred) {
        let name = stage_of(&text).map(str::to_owned).or_else(|| (text == MODEL).then(|| MODEL.to_owned()));
        if let Some(name) = name.filter(|name| !reads.contains(name)) {
            reads.push(name);
        }
    }
    reads
}
