use pt_data::{Body, Content, Message, Origin, Record};
use pt_engine::Dtype;
use pt_recipe::{PlannedEnvironment, RewrittenTurns};
use pt_rollout::{FinishReason, Sample};
use pt_text::{ChatTemplate, Tokenizer, train_byte_bpe};
use serde_json::json;

use super::super::environment::Limits;
use super::*;

const CHATML: &str = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}\
    {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
    {% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
/// What a model is told of earlier turns is without their reasoning.
const FORGETFUL: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}\
    {{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn tokenizer() -> Tokenizer {
    let special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"];
    train_byte_bpe(["What is 12 * 12? It is 144. user assistant tool calculator"], 300, &special).unwrap()
}

/// A turn of the model, with the token that ends it.
type Said = (&'static str, Option<&'static str>);

/// A turn that never comes.
const LOST: &str = "(lost)";
/// An error in its place.
const BROKEN: &str = "(broken)";

/// Says what it is told to, turn by turn; remembers what it was asked to continue.
struct Scripted<'t> {
    tokenizer: &'t Tokenizer,
    /// Each with the token that ends it; without one it is cut, and [`LOST`] never comes.
    turns: Vec<Said>,
    asked: Vec<(usize, Vec<u32>)>,
    n_said: usize,
}

impl Policy for Scripted<'_> {
    fn submit(&mut self, ticket: usize, request: Request, params: Arc<SamplingParams>) -> Result<()> {
        assert_eq!(params.n, 1);
        self.asked.push((ticket, request.prompt_ids));
        Ok(())
    }

    fn advance(&mut self, _: bool) -> Result<Vec<Ended>> {
        let (ticket, _) = self.asked[self.n_said];
        let (text, end) = self.turns[self.n_said];
        self.n_said += 1;
        match text {
            LOST => return Ok(vec![Ended { ticket, index: 0, sample: None }]),
            BROKEN => return Err(PipelineError::NoSamples { url: String::new(), reasons: String::new() }),
            _ => {}
        }
        let mut token_ids = self.tokenizer.encode(text, false)?.ids;
        token_ids.extend(end.map(|end| self.tokenizer.token_to_id(end).unwrap()));
        let logprobs = (0..token_ids.len()).map(|i| -0.5 - i as f32).collect();
        let finish_reason = if end.is_some() { FinishReason::Stop } else { FinishReason::Length };
        let sample = Sample {
            token_ids,
            logprobs,
            filtered_logprobs: None,
            top_logprobs: Vec::new(),
            finish_reason,
            stop: None,
            text: None,
        };
        Ok(vec![Ended { ticket, index: 0, sample: Some(sample) }])
    }

    fn is_idle(&self) -> bool {
        self.n_said == self.asked.len()
    }
}

/// One sample of a scripted model in the environment `tools` or `guess`.
fn played(
    kind: &str,
    template: &str,
    planned: impl FnOnce(&mut PlannedEnvironment),
    turns: &[Said],
) -> (Drawn, Vec<Vec<u32>>) {
    played_with(None, kind, template, planned, turns)
}

/// The same with the tools of the row.
fn played_with(
    tools: Option<Vec<serde_json::Value>>,
    kind: &str,
    template: &str,
    planned: impl FnOnce(&mut PlannedEnvironment),
    turns: &[Said],
) -> (Drawn, Vec<Vec<u32>>) {
    let mut environment = PlannedEnvironment {
        r#type: kind.to_owned(),
        max_turns: 4,
        max_tokens: 400,
        rewritten_turns: RewrittenTurns::End,
        parallel: 2,
        params: json!({}),
    };
    planned(&mut environment);
    let (drawn, asked) = drawn_in(Stage::new(&environment).unwrap(), tools, template, turns);
    (drawn.unwrap().pop().unwrap(), asked)
}

/// The samples of one prompt, one of them at most, and what the model was asked to continue.
fn drawn_in(
    stage: Stage,
    tools: Option<Vec<serde_json::Value>>,
    template: &str,
    turns: &[Said],
) -> (Result<Vec<Drawn>>, Vec<Vec<u32>>) {
    let stage = Arc::new(stage);
    let tokenizer = tokenizer();
    let template = ChatTemplate::new(template).unwrap();
    let mut records = vec![Record {
        body: Body::PromptOnly { prompt: Content::Messages(vec![Message::new("user", "What is 12 * 12?")]) },
        tools,
        chat_template_kwargs: None,
        extra: serde_json::Map::from_iter([(
            "check".to_owned(),
            "{\"kind\": \"number\", \"value\": 144}".into(),
        )]),
        origin: Origin::new("rows.jsonl", 1),
    }];
    stage.prepare_rows(&mut records).unwrap();
    let scene = scene_of(&records[0]);
    let masker = Masker::new(&tokenizer, Some(&template), MaskPolicy::default());
    let row = pt_text::Conversation {
        messages: &scene.messages,
        tools: scene.tools.as_ref(),
        ..pt_text::Conversation::default()
    };
    let token_ids = masker.prompt(&scene.origin, &row).unwrap().token_ids;
    let stops = ["<|im_end|>", "<|endoftext|>"].map(|end| tokenizer.token_to_id(end).unwrap()).to_vec();
    let params = SamplingParams { stop_token_ids: stops, max_new_tokens: 200, ..SamplingParams::default() };
    let sampler = Sampler::of_params(&tokenizer, Some(&template), params, Dtype::F32).with_stage(Some(stage));
    let mut policy = Scripted { tokenizer: &tokenizer, turns: turns.to_vec(), asked: Vec::new(), n_said: 0 };
    let prompts = [Prompt { key: 7, token_ids, record: Some(&records[0]) }];
    let drawn = draw(&mut policy, &sampler, &prompts).map(|groups| groups.concat());
    (drawn, policy.asked.into_iter().map(|(_, ids)| ids).collect())
}

const END: Option<&str> = Some("<|im_end|>");
const CALL: &str =
    "<tool_call>{\"name\": \"calculator\", \"arguments\": {\"expression\": \"12*12\"}}</tool_call>";

#[test]
fn a_conversation_grows_by_its_own_tokens_and_those_of_the_template() {
    let (drawn, asked) = played("tools", CHATML, |_| {}, &[(CALL, END), ("It is 144.", END)]);
    let tokenizer = tokenizer();
    let between = "\n<|im_start|>tool\n144<|im_end|>\n<|im_start|>assistant\n";
    let text = tokenizer.decode(&drawn.token_ids, false).unwrap();
    assert_eq!(text, format!("{CALL}<|im_end|>{between}It is 144.<|im_end|>"));
    let n = |text: &str| tokenizer.encode(text, false).unwrap().ids.len();
    let expected: Vec<f32> =
        [(1.0, n(CALL) + 1), (0.0, n(between)), (1.0, n("It is 144.") + 1)].map(|(w, n)| vec![w; n]).concat();
    assert_eq!(drawn.weights, expected);
    // The second request is the first, what was sampled, and what came between, to the token.
    assert!(asked[1].starts_with(&asked[0]));
    assert_eq!(asked[1][asked[0].len()..], drawn.token_ids[..n(CALL) + 1 + n(between)]);
    assert_eq!((drawn.text.as_str(), drawn.end, drawn.is_truncated), ("It is 144.", End::Stop, false));
    let episode = drawn.episode.unwrap();
    assert_eq!((episode.n_turns, episode.n_calls, episode.n_failures), (2, 1, 0));
    let calls: Vec<&str> = episode.messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(calls, ["assistant", "tool", "assistant"]);
    assert_eq!(episode.messages[1]["tool_call_id"], episode.messages[0]["tool_calls"][0]["id"]);
    let zeros = drawn.logprobs.iter().zip(&drawn.weights).filter(|(logp, _)| **logp == 0.0);
    assert_eq!(zeros.count(), n(between));
}

#[test]
fn a_model_may_call_only_what_its_row_offers() {
    let python = json!({"type": "function", "function": {"name": "python", "parameters": {}}});
    let both = |e: &mut PlannedEnvironment| e.params = json!({"tools": ["calculator", "python"]});
    for (tools, result) in [(None, "144"), (Some(vec![python]), "Error: there is no tool `calculator`")] {
        let turns = [(CALL, END), ("It is 144.", END)];
        let (drawn, _) = played_with(tools, "tools", CHATML, both, &turns);
        let episode = drawn.episode.unwrap();
        let said = episode.messages[1]["content"].as_str().unwrap();
        assert!(said.starts_with(result), "{said}");
        assert_eq!(episode.n_failures, usize::from(result != "144"));
    }
}

#[test]
fn an_episode_ends_for_a_reason_that_is_kept() {
    let thought = ("<think>hm</think>9", END);
    type Change = fn(&mut PlannedEnvironment);
    let plain: Change = |_| {};
    /// Name, environment, template, what is planned otherwise, turns, and the end and turns expected.
    type Case = (&'static str, &'static str, &'static str, Change, Vec<Said>, End, usize);
    let cases: [Case; 7] = [
        ("answers", "tools", CHATML, plain, vec![("It is 144.", END)], End::Stop, 1),
        ("cut", "tools", CHATML, plain, vec![(CALL, None)], End::Length, 1),
        ("turns", "tools", CHATML, |e| e.max_turns = 2, vec![(CALL, END), (CALL, END)], End::MaxTurns, 2),
        ("tokens", "tools", CHATML, |e| e.max_tokens = 60, vec![(CALL, END)], End::Length, 1),
        ("another end", "tools", CHATML, plain, vec![(CALL, Some("<|endoftext|>"))], End::Rewritten, 1),
        ("rewritten", "guess", FORGETFUL, plain, vec![thought], End::Rewritten, 1),
        (
            "kept",
            "guess",
            FORGETFUL,
            |e| e.rewritten_turns = RewrittenTurns::Keep,
            vec![thought, ("144", END)],
            End::Stop,
            2,
        ),
    ];
    for (case, kind, template, planned, turns, end, n_turns) in cases {
        let (drawn, _) = played(kind, template, planned, &turns);
        let episode = drawn.episode.as_ref().unwrap();
        assert_eq!((drawn.end, episode.n_turns), (end, n_turns), "{case}");
        assert_eq!(drawn.is_truncated, end == End::Length, "{case}");
        assert_eq!(drawn.weights.len(), drawn.token_ids.len(), "{case}");
        let n: usize = episode.turns.iter().map(|turn| turn.n_tokens).sum();
        assert_eq!(n, drawn.token_ids.len(), "{case}");
    }
}

/// An environment that notes what its episodes hear, goes on for ever, and panics where it is told to.
#[derive(Debug)]
struct Noting {
    heard: Arc<Mutex<Vec<String>>>,
    panics_at: &'static str,
}

impl Noting {
    fn note(&self, what: &str) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).push(what.to_owned());
        assert_ne!(what, self.panics_at, "the board is on fire");
    }
}

impl pt_environments::Environment for Noting {
    fn name(&self) -> &'static str {
        "noting"
    }

    fn begin(&self, _: &Start<'_>) -> Box<dyn Episode + '_> {
        self.note("begin");
        Box::new(Noted(self))
    }
}

struct Noted<'e>(&'e Noting);

impl Episode for Noted<'_> {
    fn react(&mut self, turn: &Turn<'_>) -> Reaction {
        self.0.note(turn.text);
        Reaction::say("go on")
    }

    fn end(&mut self, reason: &str) -> Option<Verdict> {
        self.0.note(&format!("end {reason}"));
        None
    }
}

/// What comes of these turns in an environment that panics at `panics_at`, and what it heard.
fn noted(panics_at: &'static str, turns: &[Said]) -> (Result<Vec<Drawn>>, Vec<String>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let environment = Box::new(Noting { heard: heard.clone(), panics_at });
    let limits = Limits { max_turns: 3, max_tokens: 400, keeps_rewritten: false };
    let (drawn, _) = drawn_in(Stage { environment, limits, n_workers: 2 }, None, CHATML, turns);
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (drawn, heard)
}

#[test]
fn every_episode_that_began_hears_that_it_is_over() {
    let said = ("9", END);
    let check = |turns: &[Said], expected: &[&str], n_drawn: usize| {
        let (drawn, heard) = noted("never", turns);
        assert_eq!(heard, expected);
        assert_eq!(drawn.unwrap().len(), n_drawn, "{turns:?}");
    };
    check(&[said, said, said], &["begin", "9", "9", "9", "end max_turns"], 1);
    check(&[said, ("9", None)], &["begin", "9", "end length"], 1);
    // What is lost later than in its first turn has begun, and is no sample.
    check(&[said, (LOST, None)], &["begin", "9", "end lost"], 0);
    check(&[(LOST, None)], &[], 0);
    let (drawn, heard) = noted("never", &[said, (BROKEN, None)]);
    assert!(matches!(drawn, Err(PipelineError::NoSamples { .. })), "{drawn:?}");
    assert_eq!(heard, ["begin", "9", "end lost"], "an error ends the round, and it hears of it");
}

#[test]
fn a_panic_of_an_environment_is_an_error_that_names_it_and_the_row() {
    let said = ("9", END);
    for (panics_at, turns) in [
        ("begin", [said; 3]),
        ("9", [said; 3]),
        ("end max_turns", [said; 3]),
        ("end lost", [said, said, (LOST, None)]),
    ] {
        let (drawn, heard) = noted(panics_at, &turns);
        let error = drawn.unwrap_err();
        assert!(matches!(error, PipelineError::EnvironmentPanicked { .. }), "{panics_at}: {error}");
        let message = error.to_string();
        for part in ["rows.jsonl:1", "`noting`", "the board is on fire", "resume"] {
            assert!(message.contains(part), "{panics_at}: {message}");
        }
        assert_eq!(heard.last().map(String::as_str), Some(panics_at));
    }
}
