//! The keys of stages that train nothing, and of evaluation, declared as those in `keys.rs` are.

use crate::keys::Source;
use crate::schema::Fallback::{Derived, Value};
use crate::schema::Kind::{Bool, Choice, Float, Floats, Int, Sources, String as Text, Strings};
use crate::schema::{choice, section};

choice! {
    /// The columns that curated rows are written in.
    RowForm {
        /// Those they came with.
        AsRead = "as_read",
        /// The standard ones of their kind.
        Canonical = "canonical",
        /// Conversations.
        Messages = "messages",
    }
}

choice! {
    /// What happens to rows that cannot be read.
    UnreadableRows {
        /// The first one ends the stage.
        Error = "error",
        /// They are counted and go to the dropped rows.
        Drop = "drop",
    }
}

choice! {
    /// What a model that gives feedback does.
    FeedbackTask {
        /// Criticises and revises replies: rows for sft.
        Revise = "revise",
        /// Judges pairs of replies: rows for dpo and reward models.
        Judge = "judge",
        /// Revises replies, then judges each revision against the first reply: pairs.
        Both = "both",
    }
}

choice! {
    /// When a loss fails a gate.
    GateRule {
        /// The measured loss is above the bound.
        Point = "point",
        /// The same, and its 95 % interval excludes 0.
        Significant = "significant",
        /// The 95 % interval reaches beyond the bound.
        Possible = "possible",
    }
}

choice! {
    /// What an evaluated model is compared with by a gate.
    GateAgainst {
        /// The model before it in the list.
        Previous = "previous",
        /// The first model of the list.
        First = "first",
    }
}

choice! {
    /// How models become one.
    MergeMethod {
        /// The weighted mean.
        Linear = "linear",
        /// Between two models along the great circle.
        Slerp = "slerp",
        /// Differences from `base`, trimmed, signs elected (Yadav et al. 2023).
        Ties = "ties",
        /// Differences from `base`, elements dropped at random (Yu et al. 2024).
        Dare = "dare",
    }
}

choice! {
    /// What a model is written as.
    ExportFormat {
        /// A Hugging Face folder.
        Safetensors = "safetensors",
        /// One file for llama.cpp.
        Gguf = "gguf",
        /// The same, with a Modelfile.
        Ollama = "ollama",
        /// A Hugging Face folder with linear layers in 4-bit NormalFloat.
        Nf4 = "nf4",
        /// A Hugging Face folder with linear layers in 8 bits.
        Int8 = "int8",
    }
}

section! {
    /// What is measured. A stage that trains measures `tasks` before and after; an `eval` stage measures `tasks` and `benchmarks` on `models`.
    EvalSection at "stage.eval" as "[stage.eval]"
    keys {
        tasks: Option<Vec<String>>, Strings, Derived { rule: "for a stage that trains, the generated sources among `eval`, or else among `train` with fresh problems", example: "[\"generated:arithmetic\"]" }, "[\"generated:sort\"]",
            "Generated tasks, as `generated:NAME?key=value&...`, of which `n` problems are measured.";
        n: u64, Int { min: 1, max: 10_000_000 }, Value("200"), "50",
            "Problems of each task.";
        max_new_tokens: Option<u64>, Int { min: 1, max: 1_000_000 }, Derived { rule: "256; for an eval stage, the benchmark's own", example: "256" }, "32",
            "Most tokens of an answer.";
        temperature: f64, Float { min: 0.0, max: 100.0 }, Value("0.0"), "0.7",
            "0 takes the likeliest token.";
        benchmarks: Option<Vec<String>>, Strings, Derived { rule: "none; an eval stage needs these or `tasks`", example: "[\"perplexity?data=held-out.txt\"]" }, "[\"generated:sum?level=2&n=50\"]",
            "Benchmarks of an eval stage, with their options, as `posttrain eval --list` shows them.";
        models: Option<Vec<String>>, Strings, Derived { rule: "the base, unless it is made from nothing, and every model that an earlier stage made", example: "[\"model\", \"stage:sft\"]" }, "[\"stage:sft\"]",
            "What an eval stage measures, in order: `stage:NAME`, `model` (the one the recipe begins with), a folder, or a name on the hub.";
        data_dir: Option<String>, Text, Derived { rule: "none; benchmarks' data are in the hub cache, or named by the option `data`", example: "\"data/benchmarks\"" }, "\"benchmarks\"",
            "A folder with the benchmarks' files.";
        limit: Option<u64>, Int { min: 1, max: 10_000_000 }, Derived { rule: "all", example: "500" }, "5",
            "Most questions of each benchmark, taken evenly from its categories.";
        few_shot: Option<u64>, Int { min: 0, max: 1000 }, Derived { rule: "the benchmark's own", example: "5" }, "2",
            "Worked examples before each question of a benchmark.";
        chat: Option<bool>, Bool, Derived { rule: "`true` for `tasks` where the model has a chat template; `false` for `benchmarks`", example: "true" }, "false",
            "Whether an eval stage asks through the chat template.";
        samples: u64, Int { min: 1, max: 10_000 }, Value("1"), "2",
            "Replies to each question of an eval stage, for pass@k and majority votes; give a `temperature` with more than one.";
        top_p: f64, Float { min: 1e-6, max: 1.0 }, Value("1.0"), "0.9",
            "Only the most probable tokens that together reach this probability, in an eval stage.";
        judge: Option<String>, Text, Derived { rule: "none; mt_bench and win_rate need it", example: "\"http://127.0.0.1:8000/v1\"" }, "\"http://127.0.0.1:9000/v1\"",
            "The address of a server whose model judges (OpenAI protocol).";
        judge_model: Option<String>, Text, Derived { rule: "the server's first", example: "\"judge\"" }, "\"other\"",
            "Which of the server's models.";
        judge_key_file: Option<String>, Text, Derived { rule: "none", example: "\"key.txt\"" }, "\"other-key.txt\"",
            "A file with the server's key.";
        against: Option<String>, Text, Derived { rule: "none; win_rate needs it", example: "\"stage:sft\"" }, "\"model\"",
            "The model that win_rate compares with, in the words of `models`.";
    }
    sections { }
}

section! {
    /// When an eval stage fails the run: a model lost more than is allowed. Without `max_loss` nothing fails.
    GateSection at "stage.gate" as "[stage.gate]"
    keys {
        max_loss: Option<f64>, Float { min: 0.0, max: 1e6 }, Derived { rule: "none: there is no gate", example: "0.02" }, "0.5",
            "Most that may be lost: of a share, in its points (0.02 is two questions in a hundred); of a perplexity, relative.";
        against: GateAgainst, Choice(GateAgainst::NAMES), Value("\"previous\""), "\"first\"",
            "What each model is held against: the one before it in `eval.models`, or the first.";
        fail_on: GateRule, Choice(GateRule::NAMES), Value("\"point\""), "\"significant\"",
            "What fails: the measured loss above the bound (`point`), that and a 95 % interval that excludes 0 (`significant`), or an interval that reaches beyond the bound (`possible`).";
        per_category: bool, Bool, Value("false"), "true",
            "Whether every category of a benchmark is held to it as well.";
    }
    sections { }
}

section! {
    /// A curation: rows through steps, in their order. What is kept is `stage:NAME` to later stages; what was dropped, why, and a data card lie in the stage's folder.
    CurateSection at "stage.curate" as "[stage.curate]"
    keys {
        sources: Option<Vec<Source>>, Sources, Derived { rule: "those of `file`; one of the two is needed", example: "[\"data/raw.jsonl\"]" }, "[\"generated:letters?level=1&n=20\"]",
            "What is read, in the form of `data.train`.";
        steps: Option<Vec<String>>, Strings, Derived { rule: "none, or those of `file`", example: "[\"exact_duplicates\"]" }, "[\"near_duplicates:threshold=0.8\"]",
            "Steps as `NAME` or `NAME:key=value,key=value`, values as in TOML; `posttrain data curate --help` lists them.";
        file: Option<String>, Text, Derived { rule: "none", example: "\"curation.toml\"" }, "\"other.toml\"",
            "A curation file, whose inputs, steps and blueprint are used; what it says of outputs is not.";
        rows: Option<RowForm>, Choice(RowForm::NAMES), Derived { rule: "`as_read`, or what `file` says", example: "\"as_read\"" }, "\"messages\"",
            "The columns rows are written in: those they came with, the standard ones of their kind, or conversations.";
        unreadable: Option<UnreadableRows>, Choice(UnreadableRows::NAMES), Derived { rule: "`error`, or what `file` says", example: "\"error\"" }, "\"drop\"",
            "Whether the first row that cannot be read ends the stage, or such rows are dropped and counted.";
    }
    sections { }
}

section! {
    /// Feedback of a model by the principles of a constitution. Its rows are `stage:NAME` to later stages.
    FeedbackSection at "stage.feedback" as "[stage.feedback]"
    keys {
        task: FeedbackTask, Choice(FeedbackTask::NAMES), Value("\"revise\""), "\"both\"",
            "`revise` criticises and revises replies (rows for sft); `judge` judges pairs (rows for dpo); `both` revises, then judges each revision against the first reply (rows for dpo).";
        sources: Option<Vec<Source>>, Sources, Derived { rule: "none; a feedback stage needs it", example: "[\"data/prompts.jsonl\"]" }, "[\"generated:letters?level=1&n=8\"]",
            "Prompts, with or without replies, for `revise` and `both`; pairs for `judge`.";
        model: Option<String>, Text, Derived { rule: "none; one of `model` and `server` is needed", example: "\"stage:sft\"" }, "\"model\"",
            "Who answers: `stage:NAME`, `model` (the one the recipe begins with), a folder, or a name on the hub.";
        server: Option<String>, Text, Derived { rule: "none", example: "\"http://127.0.0.1:8000/v1\"" }, "\"http://127.0.0.1:9000/v1\"",
            "The address of a server that answers in place of `model` (OpenAI protocol).";
        server_model: Option<String>, Text, Derived { rule: "the server's only one", example: "\"judge\"" }, "\"other\"",
            "Which of the server's models.";
        api_key_file: Option<String>, Text, Derived { rule: "none", example: "\"key.txt\"" }, "\"other-key.txt\"",
            "A file with the server's key.";
        parallel: u64, Int { min: 1, max: 1024 }, Value("8"), "4",
            "Requests to a server at a time.";
        constitution: Option<String>, Text, Derived { rule: "the built-in one, see `posttrain feedback constitution`", example: "\"constitution.toml\"" }, "\"other.toml\"",
            "A file with principles.";
        rounds: u64, Int { min: 1, max: 100 }, Value("1"), "2",
            "Critiques and revisions of each reply.";
        temperature: Option<f64>, Float { min: 0.0, max: 100.0 }, Derived { rule: "0.7 for revisions, 0 for a judge", example: "0.7" }, "0.5",
            "Divides the logits; 0 takes the most probable token.";
        max_new_tokens: Option<u64>, Int { min: 1, max: 1_000_000 }, Derived { rule: "512 for revisions, 16 for a judge's choice", example: "512" }, "64",
            "Most tokens of an answer.";
        keep_truncated: bool, Bool, Value("false"), "true",
            "Whether revisions that were cut at the token limit are used.";
        votes: u64, Int { min: 1, max: 1000 }, Value("1"), "2",
            "How often a pair is judged by each principle, for `judge`; more than once needs a `temperature` above 0, where votes differ.";
        swap: bool, Bool, Value("true"), "false",
            "Whether each pair is judged in both orders.";
        principles: u64, Int { min: 0, max: 1000 }, Value("1"), "0",
            "Principles drawn for each pair; 0 is all.";
        tie_margin: f64, Float { min: 0.0, max: 0.5 }, Value("0.0"), "0.2",
            "A pair whose probability is this near to one half is a tie, and left out.";
        respond: Option<Vec<String>>, Strings, Derived { rule: "none: `judge` reads pairs", example: "[\"stage:sft\"]" }, "[\"model\"]",
            "For `judge`: one or two models, in the words of `model`, whose replies to the prompts of `sources` are judged: two replies of one, or one of each.";
        respond_temperature: f64, Float { min: 0.0, max: 100.0 }, Value("1.0"), "0.7",
            "Divides the logits of `respond` models.";
        respond_max_new_tokens: u64, Int { min: 1, max: 1_000_000 }, Value("256"), "64",
            "Most tokens of a reply of `respond` models.";
    }
    sections { }
}

section! {
    /// Several models made into one, which later stages begin with.
    MergeSection at "stage.merge" as "[stage.merge]"
    keys {
        models: Option<Vec<String>>, Strings, Derived { rule: "none; a merge stage needs it", example: "[\"model\", \"stage:sft\"]" }, "[\"stage:sft\"]",
            "The models: `stage:NAME`, `model` (the one the recipe begins with), folders, or names on the hub. Of one model with an adapter, the adapter is folded in.";
        method: MergeMethod, Choice(MergeMethod::NAMES), Value("\"linear\""), "\"slerp\"",
            "The weighted mean (`linear`), the great circle between two (`slerp`), or differences from `base` (`ties`, `dare`).";
        weights: Option<Vec<f64>>, Floats, Derived { rule: "equal ones", example: "[0.5, 0.5]" }, "[0.25, 0.75]",
            "One for each model; they are divided by their sum.";
        base: Option<String>, Text, Derived { rule: "none; ties and dare need it", example: "\"model\"" }, "\"stage:sft\"",
            "The model that all came from, in the words of `models`.";
        density: f64, Float { min: 1e-6, max: 1.0 }, Value("0.5"), "0.2",
            "Share of each difference that is kept (ties, dare).";
        scale: f64, Float { min: -1e3, max: 1e3 }, Value("1.0"), "0.5",
            "Factor on the fused difference (ties, dare).";
    }
    sections { }
}

section! {
    /// A model for other programs. It is read again and held against its source; if it differs by more than is allowed, the run fails.
    ExportSection at "stage.export" as "[stage.export]"
    keys {
        model: Option<String>, Text, Derived { rule: "the last one made", example: "\"stage:sft\"" }, "\"model\"",
            "Which model: `stage:NAME`, `model` (the one the recipe begins with), a folder, or a name on the hub.";
        format: ExportFormat, Choice(ExportFormat::NAMES), Value("\"safetensors\""), "\"gguf\"",
            "A Hugging Face folder, plain or with linear layers in nf4 or int8; one gguf file; or that with a Modelfile for ollama.";
        quant: Option<String>, Text, Derived { rule: "`f16`", example: "\"q8_0\"" }, "\"q4_k_m\"",
            "How a gguf file is stored: f32, f16, bf16, q8_0, q4_0, q4_k_m.";
        shard_mb: u64, Int { min: 1, max: 1_000_000 }, Value("5000"), "2000",
            "Largest size of one file of a Hugging Face folder, in MB.";
        prove_on: Option<String>, Text, Derived { rule: "a short text", example: "\"held-out.txt\"" }, "\"other.txt\"",
            "A text file that the export and its source are compared on.";
        max_divergence: Option<f64>, Float { min: 0.0, max: 1e3 }, Derived { rule: "by format", example: "0.05" }, "0.5",
            "Mean divergence per token to let pass, in nats.";
    }
    sections { }
}

/// The keys of `[stage.eval]` that stages that train read, too.
const OF_STAGES_THAT_TRAIN: &[&str] = &["tasks", "n", "max_new_tokens", "temperature"];

/// Whether only eval stages read the key at `path`, as in `stage.eval.models`.
pub(crate) fn is_of_eval_stages(path: &str) -> bool {
    path.strip_prefix("stage.eval.").is_some_and(|key| !OF_STAGES_THAT_TRAIN.contains(&key))
}

/// Whether only stages that train nothing read the key at `path`.
pub(crate) fn is_of_works(path: &str) -> bool {
    let is_section =
        |name: &&str| path.strip_prefix("stage.").is_some_and(|rest| rest.starts_with(&format!("{name}.")));
    is_of_eval_stages(path) || SECTIONS_OF_WORKS.iter().any(is_section)
}

/// The sections that only stages that train nothing read.
pub(crate) const SECTIONS_OF_WORKS: &[&str] = &["gate", "curate", "feedback", "merge", "export"];
