//! The engine under pressure: however it shares, cuts, pre-empts and orders, the samples are the same bits, they are the
//! trainer's, and every block comes back.

use std::collections::BTreeMap;
use std::sync::Arc;

use pt_core::rng::Stream;
use pt_engine::{Batch, Dtype, LogprobOptions, Logprobs, SegmentTable, Tape, Weight};
use pt_models::adapter::LoraConfig;
use pt_models::{LoadOptions, Model, Quantise};
use pt_rollout::{
    BLOCK_TOKENS, Engine, EngineOptions, EngineStats, Event, FinishReason, Request, RequestId, RolloutError,
    Sample, SamplingParams, Stop, generate,
};

/// Vocabulary of all golden models.
const VOCABULARY: u64 = 112;
const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

fn load(name: &str, dtype: Dtype) -> Model {
    let dir = pt_core::testdata::workspace_root().join("golden/models").join(name);
    let options = LoadOptions { dtype: Some(dtype), ..LoadOptions::default() };
    pt_models::load(&dir, &options).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Golden models whose keys do not depend on the sequence's length, by folder name.
fn models() -> Vec<String> {
    let dir = pt_core::testdata::workspace_root().join("golden/models");
    let names = std::fs::read_dir(dir).expect("golden models are part of the repository");
    let mut names: Vec<String> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.contains("dynamic") && !name.contains("longrope"));
    names.sort();
    assert!(names.len() > 8, "{names:?}");
    names
}

/// A model with an adapter that changes what it says.
fn with_adapter(mut model: Model) -> Model {
    let config: LoraConfig = serde_json::from_str(r#"{"rank": 3, "alpha": 6.0}"#).unwrap();
    model.attach_lora(&config, 5).unwrap();
    let stream = Stream::new(8, "adapter");
    let adapters: Vec<_> = model.arch.linears().iter().filter_map(|l| l.lora.as_ref().map(|l| l.b)).collect();
    for (i, id) in adapters.into_iter().enumerate() {
        let param = model.params.get_mut(id);
        let n: usize = param.shape.iter().product();
        let values: Vec<f32> =
            (0..n as u64).map(|j| 0.1 * stream.at((i as u64) << 32 | j).normal() as f32).collect();
        param.weight = Weight::from_f32(&values);
    }
    model
}

fn tokens(stream: &Stream, key: u64, n: usize) -> Vec<u32> {
    (0..n as u64).map(|i| stream.at(key << 32 | i).below(VOCABULARY as usize) as u32).collect()
}

/// Requests that begin alike in pairs: the first `n_shared` tokens of numbers 2 i and 2 i + 1 are the same.
fn requests(lens: &[usize], n_shared: usize) -> Vec<Request> {
    let stream = Stream::new(4, "prompts");
    let request = |(r, &len): (usize, &usize)| {
        let mut prompt_ids = tokens(&stream, r as u64 / 2, len);
        let own = tokens(&stream, 100 + r as u64, len);
        let n = n_shared.min(len);
        prompt_ids[n..].copy_from_slice(&own[n..]);
        Request { prompt_ids, key: 50 + r as u64 }
    };
    lens.iter().enumerate().map(request).collect()
}

type Results = BTreeMap<(RequestId, usize), Sample>;

/// Runs an engine to its end. What the events say of a sample must be the sample.
fn drain(engine: &mut Engine<'_>) -> Results {
    let (mut results, mut seen) = (Results::new(), BTreeMap::<_, (Vec<u32>, Vec<f32>)>::new());
    let mut n_steps = 0;
    while !engine.is_idle() {
        for event in engine.step() {
            match event {
                Event::Token { request, sample, token, logprob, .. } => {
                    let seen = seen.entry((request, sample)).or_default();
                    seen.0.push(token);
                    seen.1.push(logprob);
                }
                Event::Finished { request, index, sample } => {
                    assert!(results.insert((request, index), sample).is_none(), "a sample ends once");
                }
                Event::Failed { error, .. } => panic!("{error}"),
            }
        }
        n_steps += 1;
        assert!(n_steps < 100_000, "the engine does not come to an end");
    }
    for (key, (ids, logprobs)) in seen {
        if let Some(sample) = results.get(&key) {
            // All of it, unless it began before.
            assert!(sample.token_ids.ends_with(&ids) && sample.logprobs.ends_with(&logprobs));
        }
    }
    assert_eq!(engine.stats().live_blocks, 0, "every block comes back");
    results
}

fn run(
    model: &Model,
    options: &EngineOptions<'_>,
    requests: &[Request],
    params: &SamplingParams,
) -> (Vec<Sample>, EngineStats) {
    let mut engine = Engine::new(model, options.clone());
    let params = Arc::new(params.clone());
    for request in requests {
        engine.submit(request.clone(), params.clone()).unwrap();
    }
    let results = drain(&mut engine);
    assert_eq!(results.len(), requests.len() * params.n);
    (results.into_values().collect(), engine.stats())
}

/// What the trainer makes of the samples' tokens, everything in one packed batch.
fn score(
    model: &Model,
    dtype: Dtype,
    requests: &[Request],
    samples: &[Sample],
    temperature: f32,
) -> Vec<Vec<f32>> {
    let n = samples.len() / requests.len();
    let (mut ids, mut lens, mut rows, mut targets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (i, sample) in samples.iter().enumerate() {
        let prompt = &requests[i / n].prompt_ids;
        rows.extend((0..sample.token_ids.len()).map(|j| (ids.len() + prompt.len() + j - 1) as u32));
        targets.extend(&sample.token_ids);
        ids.extend(prompt);
        ids.extend(&sample.token_ids);
        lens.push(prompt.len() + sample.token_ids.len());
    }
    let batch = Batch::new(ids, SegmentTable::sequences(&lens).unwrap());
    let mut tape = Tape::training(&model.params, &batch, dtype, None);
    let hidden = model.arch.hidden(&mut tape, false);
    let options = model.arch.logprob_options();
    let options = LogprobOptions { temperature: options.temperature * temperature, ..options };
    let scored = tape.linear_logprob(&hidden, model.arch.head(), &rows, &targets, &options);
    let mut logps = Logprobs::of(&scored).logp.into_iter();
    samples.iter().map(|sample| logps.by_ref().take(sample.token_ids.len()).collect()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A cache of so many blocks of the golden models' size; smaller than any sample, it has room for one.
fn blocks_bytes(model: &Model, dtype: Dtype, n_blocks: usize) -> usize {
    n_blocks * BLOCK_TOKENS * 2 * dtype.bytes() * model.arch.kv_widths().iter().sum::<usize>()
}

/// One way to run that must not show.
fn strained(
    model: &Model,
    dtype: Dtype,
    n_blocks: usize,
    max_prefill_tokens: usize,
) -> EngineOptions<'static> {
    EngineOptions {
        cache_bytes: blocks_bytes(model, dtype, n_blocks),
        max_prefill_tokens,
        ..EngineOptions::new(dtype)
    }
}

/// With all at ease and with few blocks and small chunks: the same bits, and the trainer's.
fn check_agreement(what: &str, dtype: Dtype, mut model: Model, trains_all: bool) {
    let requests = requests(&[35, 37, 3, 16, 33, 48], 33);
    let params = SamplingParams { n: 3, max_new_tokens: 20, temperature: 0.8, seed: 9, ..Default::default() };
    let (samples, easy) = run(&model, &EngineOptions::new(dtype), &requests, &params);
    assert_eq!(easy.preemptions, 0);
    let (again, strained) = run(&model, &strained(&model, dtype, 7, 5), &requests, &params);
    assert!(strained.preemptions > 0, "{what} {dtype:?}: {strained:?}");
    assert_eq!(again, samples, "{what} {dtype:?}: with few blocks and small chunks");
    if trains_all {
        model.train_all().unwrap();
    }
    let expected = score(&model, dtype, &requests, &samples, 0.8);
    for (sample, expected) in samples.iter().zip(&expected) {
        assert_eq!(bits(&sample.logprobs), bits(expected), "{what} {dtype:?}: the trainer's");
    }
}

#[test]
fn samples_are_the_trainers_for_every_architecture_however_they_were_computed() {
    for name in models() {
        for dtype in DTYPES {
            check_agreement(&name, dtype, load(&name, dtype), true);
        }
    }
}

#[test]
fn samples_are_the_trainers_with_adapters_and_quantised_weights() {
    for dtype in DTYPES {
        for name in ["llama", "qwen3"] {
            check_agreement("lora", dtype, with_adapter(load(name, dtype)), false);
            for how in [Quantise::Nf4 { double: true }, Quantise::Int8] {
                let mut model = load(name, dtype);
                model.quantise(how).unwrap();
                let model = with_adapter(model);
                check_agreement(&format!("{how:?}"), dtype, model, false);
            }
        }
    }
}

#[test]
fn chunks_of_every_size_give_the_same_samples() {
    let model = load("llama", Dtype::F32);
    let requests = requests(&[50, 41, 7], 16);
    let params = SamplingParams { n: 2, max_new_tokens: 5, ..Default::default() };
    let (expected, _) = run(&model, &EngineOptions::new(Dtype::F32), &requests, &params);
    for max_prefill_tokens in 1..=52 {
        let options = EngineOptions { max_prefill_tokens, ..EngineOptions::new(Dtype::F32) };
        let (samples, stats) = run(&model, &options, &requests, &params);
        assert_eq!(samples, expected, "chunks of {max_prefill_tokens}");
        assert_eq!(stats.prefilled_tokens, 82, "prompts once, what two begin with once");
        assert_eq!(stats.shared_tokens, 16 + 98, "a block between requests, prompts between samples");
    }
}

#[test]
fn sixty_four_together_are_what_each_is_alone_in_any_order() {
    let lens: Vec<usize> = (0..64).map(|i| 1 + i * 13 % 40).collect();
    let requests = requests(&lens, 17);
    let params = SamplingParams { max_new_tokens: 9, stop_token_ids: (0..6).collect(), ..Default::default() };
    for dtype in DTYPES {
        let model = load("gemma2", dtype);
        let (together, _) = run(&model, &EngineOptions::new(dtype), &requests, &params);
        for (request, expected) in requests.iter().zip(&together) {
            let (alone, _) = run(&model, &EngineOptions::new(dtype), std::slice::from_ref(request), &params);
            assert_eq!(&alone[0], expected);
        }
        let order: Vec<usize> = (0..64).map(|i| i * 29 % 64).collect();
        let shuffled: Vec<Request> = order.iter().map(|&i| requests[i].clone()).collect();
        let one_by_one = EngineOptions { max_sequences: 3, ..EngineOptions::new(dtype) };
        for (&i, sample) in order.iter().zip(run(&model, &one_by_one, &shuffled, &params).0) {
            assert_eq!(sample, together[i]);
        }
    }
}

#[test]
fn prefixes_are_found_later_until_their_blocks_are_needed() {
    let model = load("llama", Dtype::F32);
    let mut first = requests(&[33], 0).remove(0);
    let params = SamplingParams { max_new_tokens: 40, ..Default::default() };
    let check = |n_blocks, keeps_prefixes, expected| {
        let options = EngineOptions { keeps_prefixes, ..strained(&model, Dtype::F32, n_blocks, 2048) };
        let mut engine = Engine::new(&model, options);
        engine.submit(first.clone(), params.clone()).unwrap();
        let reply = drain(&mut engine).into_values().next().unwrap();
        // Its 72 computed tokens fill four blocks; the next turn of the conversation begins with them.
        let prompt_ids = [&*first.prompt_ids, &*reply.token_ids, &[5, 6, 7]].concat();
        let next = Request { prompt_ids, key: 3 };
        let before = engine.stats();
        engine.submit(next.clone(), SamplingParams { max_new_tokens: 3, ..params.clone() }).unwrap();
        let answer = drain(&mut engine).into_values().next().unwrap();
        assert_eq!(engine.stats().shared_tokens - before.shared_tokens, expected);
        let fresh = run(
            &model,
            &EngineOptions::new(Dtype::F32),
            &[next],
            &SamplingParams { max_new_tokens: 3, ..params.clone() },
        );
        assert_eq!(answer, fresh.0[0]);
    };
    check(100, true, 64);
    check(100, false, 0);
    // The oldest blocks idle longest, but a prefix outlives what continues it.
    check(5, true, 64);
    first.prompt_ids.truncate(2);
    let mut engine = Engine::new(&model, strained(&model, Dtype::F32, 3, 2048));
    let long = requests(&[33, 40, 33], 0);
    for (request, expected) in [(0, 0), (0, 32), (1, 0), (2, 0), (0, 0)] {
        let before = engine.stats().shared_tokens;
        engine.submit(long[request].clone(), SamplingParams { max_new_tokens: 1, ..params.clone() }).unwrap();
        drain(&mut engine);
        assert_eq!(engine.stats().shared_tokens - before, expected, "request {request}");
    }
}

/// The second waits for the blocks of the first, and is tried in every step until it has them.
#[test]
fn what_is_shared_counts_when_a_sample_begins_not_when_it_is_tried() {
    let model = load("llama", Dtype::F32);
    let mut engine = Engine::new(&model, strained(&model, Dtype::F32, 6, 2048));
    for (request, max_new_tokens) in requests(&[35, 90], 33).into_iter().zip([20, 1]) {
        engine.submit(request, SamplingParams { max_new_tokens, ..Default::default() }).unwrap();
    }
    assert_eq!(drain(&mut engine).len(), 2);
    let stats = engine.stats();
    assert_eq!((stats.preemptions, stats.prefilled_tokens), (0, 35 + 90 - 32));
    assert_eq!(stats.shared_tokens, 32);
}

#[test]
fn a_request_can_be_cancelled_at_any_time() {
    let model = load("qwen2", Dtype::F32);
    let requests = requests(&[20, 30, 40], 16);
    let params = SamplingParams { n: 3, max_new_tokens: 10, ..Default::default() };
    let (expected, _) = run(&model, &EngineOptions::new(Dtype::F32), &requests, &params);
    for n_blocks in [4, 100] {
        for at in 0..25 {
            let mut engine = Engine::new(&model, strained(&model, Dtype::F32, n_blocks, 8));
            let ids: Vec<RequestId> =
                requests.iter().map(|r| engine.submit(r.clone(), params.clone()).unwrap()).collect();
            let mut results = Results::new();
            for _ in 0..at {
                for event in engine.step() {
                    if let Event::Finished { request, index, sample } = event {
                        results.insert((request, index), sample);
                    }
                }
            }
            engine.cancel(ids[1]);
            assert!(!engine.cancel(ids[1]), "there is nothing left to cancel");
            results.extend(drain(&mut engine));
            for ((request, index), sample) in results {
                assert_eq!(sample, expected[3 * request.0 as usize + index], "cancelled after {at} steps");
            }
        }
    }
}

/// Text of a token: a letter; of some, nothing or half of a character.
fn text(ids: &[u32]) -> String {
    let mut bytes = Vec::new();
    for &id in ids {
        match id {
            0..10 => {}
            10..15 => bytes.push(0xc3),
            15..20 => bytes.push(0xa9),
            _ => bytes.push(b'a' + (id % 5) as u8),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn stop_strings_end_samples_wherever_they_come() {
    let model = load("llama", Dtype::F32);
    let requests = requests(&[5, 8, 17], 0);
    let stop: Vec<String> = ["ab", "é", "dd"].map(str::to_owned).to_vec();
    let params = SamplingParams { n: 8, max_new_tokens: 60, stop: stop.clone(), ..Default::default() };
    let mut options = EngineOptions::new(Dtype::F32);
    let refused = Engine::new(&model, options.clone()).submit(requests[0].clone(), params.clone());
    assert_eq!(refused, Err(RolloutError::StopNeedsText));
    options.detokenise = Some(Arc::new(text));
    let free = SamplingParams { stop: Vec::new(), ..params.clone() };
    let (whole, _) = run(&model, &options, &requests, &free);
    let (samples, _) = run(&model, &options, &requests, &params);
    let mut stopped = [0; 3];
    for (sample, whole) in samples.iter().zip(&whole) {
        let n = sample.token_ids.len();
        assert_eq!(
            (&sample.token_ids[..], &sample.logprobs[..]),
            (&whole.token_ids[..n], &whole.logprobs[..n])
        );
        let full = text(&sample.token_ids);
        let before = text(&sample.token_ids[..n - 1]);
        match sample.stop {
            Some(Stop::Text { which, n_bytes }) => {
                stopped[which] += 1;
                assert_eq!(sample.finish_reason, FinishReason::Stop);
                assert!(full[n_bytes..].starts_with(&stop[which]), "{full:?} at {n_bytes}");
                assert_eq!(sample.text.as_deref(), Some(&full[..n_bytes]));
                assert!(stop.iter().all(|s| !before.contains(&**s)), "{before:?} would have ended before");
            }
            _ => {
                assert_eq!((n, sample.finish_reason), (60, FinishReason::Length));
                assert!(stop.iter().all(|s| !full.contains(&**s)), "{full:?}");
                assert_eq!(sample.text.as_deref(), Some(&*full));
            }
        }
    }
    assert!(stopped.iter().all(|&n| n > 0), "every string stops some: {stopped:?}");
}

#[test]
fn stop_tokens_can_be_ignored_or_put_off() {
    let model = load("llama", Dtype::F32);
    let requests = requests(&[5], 0);
    let base =
        SamplingParams { n: 16, max_new_tokens: 12, stop_token_ids: (0..40).collect(), ..Default::default() };
    let samples = |params: &SamplingParams| run(&model, &EngineOptions::new(Dtype::F32), &requests, params).0;
    assert!(samples(&base).iter().any(|s| s.token_ids.len() < 3 && s.filtered_logprobs.is_none()));
    for sample in samples(&SamplingParams { min_new_tokens: 6, ..base.clone() }) {
        let (n, filtered) = (sample.token_ids.len(), sample.filtered_logprobs.unwrap());
        assert!(n >= 6 && sample.token_ids[..5].iter().all(|&id| id >= 40));
        // Hidden tokens leave their share to the others; afterwards nothing is hidden.
        assert!(filtered[..5].iter().zip(&sample.logprobs).all(|(f, l)| f > l));
        assert!(filtered[6..].iter().zip(&sample.logprobs[6..]).all(|(f, l)| (f - l).abs() < 1e-5));
    }
    for sample in samples(&SamplingParams { ignore_eos: true, ..base }) {
        assert_eq!((sample.token_ids.len(), sample.stop), (12, None));
    }
}

#[test]
fn each_request_has_its_own_parameters() {
    let model = load("qwen3", Dtype::F32);
    let base = SamplingParams { n: 2, max_new_tokens: 8, ..Default::default() };
    let kinds = [
        base.clone(),
        SamplingParams { temperature: 0.0, n: 1, ..base.clone() },
        SamplingParams { temperature: 0.5, top_k: 7, top_logprobs: 3, ..base.clone() },
        SamplingParams { temperature: 1.5, top_p: 0.7, seed: 4, ..base.clone() },
        SamplingParams { repetition_penalty: 1.3, presence_penalty: 0.2, n: 3, ..base.clone() },
        SamplingParams { logit_bias: vec![(3, 4.0)], frequency_penalty: 0.5, ..base },
    ];
    let requests = requests(&[9, 20, 20, 31, 4, 18], 16);
    let mut engine = Engine::new(&model, strained(&model, Dtype::F32, 5, 7));
    for (request, params) in requests.iter().zip(&kinds) {
        engine.submit(request.clone(), params.clone()).unwrap();
    }
    let mut together = drain(&mut engine).into_values();
    for (request, params) in requests.iter().zip(&kinds) {
        let (alone, _) = run(&model, &EngineOptions::new(Dtype::F32), std::slice::from_ref(request), params);
        let together: Vec<Sample> = together.by_ref().take(params.n).collect();
        assert_eq!(together, alone, "{params:?}");
        let scored =
            score(&model, Dtype::F32, std::slice::from_ref(request), &alone, params.scoring_temperature());
        for (sample, scored) in alone.iter().zip(scored) {
            assert_eq!(bits(&sample.logprobs), bits(&scored), "{params:?}");
            assert_eq!(sample.filtered_logprobs.is_some(), params.changes_distribution());
            assert!(sample.top_logprobs.iter().all(|top| top.len() == params.top_logprobs));
        }
    }
}

/// Random requests that come, go and are cancelled at random times under random limits: whatever ends is what it would be
/// alone.
#[test]
fn no_schedule_shows_in_the_samples() {
    let model = load("llama", Dtype::F32);
    let stream = Stream::new(21, "schedules");
    let mut n_preemptions = 0;
    for case in 0..40 {
        let mut random = stream.at(case);
        let options = EngineOptions {
            max_sequences: random.below(8) + 1,
            keeps_prefixes: random.below(2) == 0,
            ..strained(&model, Dtype::F32, random.below(8), random.below(40) + 1)
        };
        let mut engine = Engine::new(&model, options);
        let mut open = Vec::new();
        let mut done = BTreeMap::new();
        let mut submitted = BTreeMap::new();
        let mut n_steps = 0;
        while submitted.len() < 10 || !engine.is_idle() {
            if submitted.len() < 10 && random.below(3) == 0 {
                let mut prompt_ids = tokens(&stream, random.below(2) as u64, random.below(50) + 1);
                let last = prompt_ids.len() - 1;
                prompt_ids[last] = random.below(VOCABULARY as usize) as u32;
                let request = Request { prompt_ids, key: random.next_u64() };
                let params = SamplingParams {
                    n: random.below(4) + 1,
                    max_new_tokens: random.below(30) + 1,
                    stop_token_ids: vec![1, 2, 3],
                    seed: case,
                    ..Default::default()
                };
                let id = engine.submit(request.clone(), params.clone()).unwrap();
                submitted.insert(id, (request, params));
                open.push(id);
            }
            if !open.is_empty() && random.below(40) == 0 {
                let id = open.swap_remove(random.below(open.len()));
                engine.cancel(id);
                submitted
                    .insert(id, (submitted[&id].0.clone(), SamplingParams { n: 0, ..Default::default() }));
            }
            for event in engine.step() {
                if let Event::Finished { request, index, sample } = event {
                    done.insert((request, index), sample);
                }
            }
            n_steps += 1;
            assert!(n_steps < 10_000, "case {case} does not come to an end");
        }
        assert_eq!(engine.stats().live_blocks, 0, "case {case}");
        n_preemptions += engine.stats().preemptions;
        for (id, (request, params)) in submitted.iter().filter(|(_, (_, params))| params.n > 0) {
            let alone =
                generate(&model, Dtype::F32, std::slice::from_ref(request), params, &mut |_, _, _| {})
                    .unwrap();
            for (index, expected) in alone[0].iter().enumerate() {
                assert_eq!(done.get(&(*id, index)), Some(expected), "case {case}, {id:?}, sample {index}");
            }
        }
    }
    assert!(n_preemptions > 20, "{n_preemptions} pre-emptions");
}

/// Longer than the original length or not, a length-dependent model gives the same samples under pressure: angles are
/// those of the length that was known when the token was first computed.
#[test]
fn length_dependent_models_are_the_same_in_chunks_and_after_preemption() {
    let dir = pt_core::testdata::workspace_root().join("golden/models");
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = names.filter(|n| n.contains("dynamic") || n.contains("longrope")).collect();
    assert!(!names.is_empty());
    for name in names {
        let model = load(&name, Dtype::F32);
        let requests = requests(&[35, 37, 3, 16], 33);
        let params = SamplingParams { n: 2, max_new_tokens: 20, ..Default::default() };
        let (samples, stats) = run(&model, &EngineOptions::new(Dtype::F32), &requests, &params);
        assert_eq!(stats.shared_tokens, 35 + 37 + 3 + 16, "{name}: nothing between requests");
        let (again, stats) = run(&model, &strained(&model, Dtype::F32, 5, 7), &requests, &params);
        assert!(stats.preemptions > 0);
        assert_eq!(again, samples, "{name}");
    }
}

#[test]
fn damaged_weights_fail_their_samples_and_the_engine_goes_on() {
    let mut model = load("llama", Dtype::F32);
    let head = model.arch.head();
    let param = model.params.get_mut(head);
    let mut values = param.weight.to_f32();
    values[0] = f32::NAN;
    param.weight = Weight::from_f32(&values);
    let mut engine = Engine::new(&model, Dtype::F32);
    let params = SamplingParams { n: 2, ..Default::default() };
    let id = engine.submit(Request { prompt_ids: vec![5, 6], key: 0 }, params).unwrap();
    let mut failed = Vec::new();
    while !engine.is_idle() {
        failed.extend(engine.step());
    }
    let error = RolloutError::NotFinite { request: 0, n_tokens: 0 };
    let expected = |sample| Event::Failed { request: id, sample, error: error.clone() };
    assert_eq!(failed, [expected(0), expected(1)]);
    assert_eq!(engine.stats().live_blocks, 0);
}

/// A thread of a server may own an engine.
#[test]
fn an_engine_can_be_sent_to_a_thread() {
    let model = load("llama", Dtype::F32);
    let mut engine = Engine::new(&model, Dtype::F32);
    engine.submit(Request { prompt_ids: vec![5], key: 0 }, SamplingParams::default()).unwrap();
    let results = std::thread::scope(|scope| scope.spawn(move || drain(&mut engine)).join().unwrap());
    assert_eq!(results.len(), 1);
}
