//! Recipes as people write them, and plans as they will run.
//!
//! ```text
//! recipe.toml --tree--> nodes with places --(--set)--> Recipe --(facts from data and model)--> Plan
//! ```
//!
//! A [`Recipe`] is what was written, checked: unknown keys, wrong types, absurd values and keys
//! without effect are errors, all reported together, each with line and column. A [`Plan`] is what
//! will run, with no option left open; its hash identifies everything that affects the result.
//! Every key is declared once, in `keys.rs`; the reference manual comes from there.
//!
//! Left out: reading data, models or catalogues. What this crate must know of them is given by its
//! caller ([`Catalogue`], [`Facts`]).

mod keys;
mod load;
mod plan;
mod problem;
mod recipe;
mod reference;
mod reference_keys;
mod resolve;
mod sampling_keys;
mod schema;
mod stage_types;
mod table;
mod tree;
mod work_keys;

pub use keys::{
    AlarmMode, Architecture, Baseline, DataSection, DecayShape, DistillationSection, Dtype, FileFormat,
    LoraInit, LoraSection, Mask, Method, ModelSection, NewModelSection, ObjectiveSection, OnlineSection,
    OptimizerSection, Packing, PpoSection, QuantSection, QuantType, RecipeFile, Recompute, RewardAggregation,
    RewardKl, RewardSection, RolloutSection, SECTIONS, ScaleRewards, ScheduleSection, ScheduleType, Source,
    StageSection, StoppingStrategy, TrainSection, Truncation,
};
pub use plan::{
    AnyStage, MemoryPart, Mixture, Plan, PlannedBound, PlannedComponent, PlannedConstraint, PlannedCritic,
    PlannedData, PlannedDistillation, PlannedEval, PlannedFile, PlannedLora, PlannedModel, PlannedNewModel,
    PlannedOnPolicy, PlannedOnline, PlannedPpo, PlannedQuantization, PlannedReference, PlannedReward,
    PlannedRollout, PlannedSchedule, PlannedSource, PlannedStage, PlannedTemplate, PlannedTrain, PlannedWork,
    StepSize,
};
pub use problem::{Location, Problem, RecipeError, RecipeErrors};
pub use recipe::{MODEL, OtherStage, Recipe, STAGE_PREFIX, stage_of};
pub use reference::{documented_keys, recipe_reference_markdown};
pub use reference_keys::ReferenceSection;
pub use resolve::{Facts, PlanError, SourceFacts, StageFacts, TASK_REWARD, default_intermediate_size};
pub use sampling_keys::{
    EnvironmentSection, PlannedEnvironment, PlannedServer, RewrittenTurns, ServerLogprobs, ServerSection,
};
pub use schema::{Catalogue, Component, ComponentKind, Fallback, KeyDoc, Kind, Params, SectionDoc};
pub use stage_types::{
    Credit, Product, RolloutDefaults, RowKind, STAGE_TYPE_NAMES, STAGE_TYPES, StageType, WORK_TYPES,
    WorkType, product_of, title_of,
};
pub use work_keys::{
    CurateSection, EvalSection, ExportFormat, ExportSection, FeedbackSection, FeedbackTask, GateAgainst,
    GateRule, GateSection, MergeMethod, MergeSection, RowForm, UnreadableRows,
};
