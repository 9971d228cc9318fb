//! Sampler and trainer agree bit for bit, for every architecture, in any company.

use std::ops::ControlFlow;
use std::path::PathBuf;

use pt_engine::{Batch, Dtype, LogprobOptions, Logprobs, SegmentTable, Tape};
use pt_models::{LoadOptions, Model};
use pt_rollout::{FinishReason, Request, RolloutError, Sample, SamplingParams, generate, stream};

/// Length from which these models turn by other angles; keys in a cache keep the ones they were stored with, so
/// agreement is promised for sequences on one side of it (see `pt_models`, `rope.rs`).
const ORIGINAL_LENGTH: usize = 10;
/// Vocabulary of all golden models.
const VOCABULARY: u32 = 112;
/// Both storage types.
const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

fn golden_dir() -> PathBuf {
    pt_core::testdata::workspace_root().join("golden/models")
}

/// Every golden model, by folder name.
fn golden_models() -> Vec<String> {
    let entries = std::fs::read_dir(golden_dir()).expect("golden models are part of the repository");
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() > 10, "{names:?}");
    names
}

fn load(name: &str, dtype: Dtype) -> Model {
    let options = LoadOptions { dtype: Some(dtype), ..LoadOptions::default() };
    pt_models::load(&golden_dir().join(name), &options).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Prompts of the given lengths, all different.
fn requests(lens: &[usize]) -> Vec<Request> {
    let token = |request: usize, i: usize| ((request * 29 + i * 17 + 5) as u32) % VOCABULARY;
    lens.iter()
        .enumerate()
        .map(|(r, &len)| Request { prompt_ids: (0..len).map(|i| token(r, i)).collect(), key: 100 + r as u64 })
        .collect()
}

fn sample(model: &Model, dtype: Dtype, requests: &[Request], params: &SamplingParams) -> Vec<Vec<Sample>> {
    generate(model, dtype, requests, params, &mut |_, _, _| {}).unwrap()
}

fn options(model: &Model, temperature: f32) -> LogprobOptions {
    let options = model.arch.logprob_options();
    LogprobOptions { temperature: options.temperature * temperature, ..options }
}

/// What the trainer makes of each sequence's tokens from `first` on, all sequences in one packed batch.
fn score(model: &Model, dtype: Dtype, sequences: &[(Vec<u32>, usize)], temperature: f32) -> Vec<Vec<f32>> {
    let lens: Vec<usize> = sequences.iter().map(|(ids, _)| ids.len()).collect();
    let tokens: Vec<u32> = sequences.iter().flat_map(|(ids, _)| ids.iter().copied()).collect();
    let (mut rows, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
    for (ids, first) in sequences {
        rows.extend((*first..ids.len()).map(|i| (start + i - 1) as u32));
        targets.extend(&ids[*first..]);
        start += ids.len();
    }
    let batch = Batch::new(tokens, SegmentTable::sequences(&lens).unwrap());
    let mut tape = Tape::training(&model.params, &batch, dtype, None);
    let hidden = model.arch.hidden(&mut tape, false);
    let scored =
        tape.linear_logprob(&hidden, model.arch.head(), &rows, &targets, &options(model, temperature));
    let mut logps = Logprobs::of(&scored).logp.into_iter();
    sequences.iter().map(|(ids, first)| logps.by_ref().take(ids.len() - first).collect()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Samples, then scores the samples with the trainer: one by one, and all packed into one batch.
fn check_agreement(name: &str, lens: &[usize], params: &SamplingParams) {
    for dtype in DTYPES {
        let mut model = load(name, dtype);
        let requests = requests(lens);
        let samples = sample(&model, dtype, &requests, params);
        model.train_all().unwrap();
        let temperature = if params.temperature > 0.0 { params.temperature } else { 1.0 };
        let (mut sequences, mut expected) = (Vec::new(), Vec::new());
        for (request, samples) in requests.iter().zip(&samples) {
            assert_eq!(samples.len(), params.n);
            for sample in samples {
                assert_eq!(sample.token_ids.len(), sample.logprobs.len());
                let ids = [&*request.prompt_ids, &*sample.token_ids].concat();
                sequences.push((ids, request.prompt_ids.len()));
                expected.push(bits(&sample.logprobs));
            }
        }
        let packed = score(&model, dtype, &sequences, temperature);
        for ((sequence, packed), expected) in sequences.iter().zip(&packed).zip(&expected) {
            let alone = score(&model, dtype, std::slice::from_ref(sequence), temperature);
            assert_eq!(&bits(packed), expected, "{name} {dtype:?}, packed: {sequence:?}");
            assert_eq!(&bits(&alone[0]), expected, "{name} {dtype:?}, alone: {sequence:?}");
        }
    }
}

fn depends_on_length(name: &str) -> bool {
    name.contains("dynamic") || name.contains("longrope")
}

#[test]
fn sampled_logprobs_are_the_trainers_in_any_batch() {
    let warm = SamplingParams { n: 2, max_new_tokens: 9, temperature: 0.7, seed: 3, ..Default::default() };
    for name in golden_models() {
        if depends_on_length(&name) {
            let params = SamplingParams { max_new_tokens: 4, ..warm.clone() };
            check_agreement(&name, &[1, 4, ORIGINAL_LENGTH - 4], &params);
        } else {
            check_agreement(&name, &[1, 4, 7, 13], &warm);
        }
        if name.contains("longrope") {
            check_agreement(&name, &[ORIGINAL_LENGTH + 1, ORIGINAL_LENGTH + 4], &warm);
        }
    }
}

#[test]
fn filters_do_not_change_the_reported_logprob() {
    for params in [
        SamplingParams { temperature: 0.0, ..Default::default() },
        SamplingParams { top_k: 5, top_p: 0.8, min_p: 0.05, temperature: 1.3, ..Default::default() },
    ] {
        check_agreement("qwen3", &[2, 6], &SamplingParams { n: 2, max_new_tokens: 6, ..params });
    }
}

#[test]
fn greedy_decoding_is_the_argmax_of_repeated_full_passes() {
    for name in golden_models().iter().filter(|name| !depends_on_length(name)) {
        for dtype in DTYPES {
            let model = load(name, dtype);
            let requests = requests(&[3, 8]);
            let params = SamplingParams { temperature: 0.0, max_new_tokens: 8, ..Default::default() };
            let samples = sample(&model, dtype, &requests, &params);
            for (request, samples) in requests.iter().zip(&samples) {
                let mut ids = request.prompt_ids.clone();
                for &token in &samples[0].token_ids {
                    assert_eq!(token, full_argmax(&model, dtype, &ids), "{name} {dtype:?} after {ids:?}");
                    ids.push(token);
                }
            }
        }
    }
}

fn full_argmax(model: &Model, dtype: Dtype, ids: &[u32]) -> u32 {
    let batch = Batch::new(ids.to_vec(), SegmentTable::sequences(&[ids.len()]).unwrap());
    let mut tape = Tape::inference(&model.params, &batch, dtype);
    let hidden = model.arch.hidden(&mut tape, false);
    let logits =
        tape.logits(&hidden, model.arch.head(), &[ids.len() as u32 - 1], &model.arch.logprob_options());
    let logits = logits.to_f32();
    let best = (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
    best as u32
}

/// More samples than are decoded at once, with different lengths, so that places are given up and taken again.
#[test]
fn a_request_does_not_notice_its_company_order_or_the_number_of_threads() {
    let lens: Vec<usize> = (0..40).map(|i| 1 + i * 7 % 19).collect();
    let all = requests(&lens);
    let params = SamplingParams {
        n: 3,
        max_new_tokens: 12,
        stop_token_ids: (0..10).collect(),
        seed: 11,
        ..Default::default()
    };
    for dtype in DTYPES {
        let model = load("llama", dtype);
        let together = sample(&model, dtype, &all, &params);
        let stopped = together.iter().flatten().filter(|s| s.finish_reason == FinishReason::Stop).count();
        assert!(stopped > 10 && stopped < 110, "{stopped} of 120 stopped");
        for i in [0, 17, 39] {
            assert_eq!(sample(&model, dtype, &all[i..=i], &params)[0], together[i], "request {i} alone");
            let one = SamplingParams { n: 1, ..params.clone() };
            assert_eq!(
                sample(&model, dtype, &all[i..=i], &one)[0][0],
                together[i][0],
                "first of request {i}"
            );
        }
        let reversed: Vec<Request> = all.iter().rev().cloned().collect();
        let mut back = sample(&model, dtype, &reversed, &params);
        back.reverse();
        assert_eq!(back, together);
        let single = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(single.install(|| sample(&model, dtype, &all, &params)), together);
    }
}

#[test]
fn samples_end_at_a_stop_token_or_at_the_limit_and_are_watched() {
    let model = load("llama", Dtype::F32);
    let requests = requests(&[3, 5]);
    let params =
        SamplingParams { n: 2, max_new_tokens: 20, stop_token_ids: (0..30).collect(), ..Default::default() };
    let mut seen = vec![vec![Vec::new(); 2]; 2];
    let samples =
        generate(&model, Dtype::F32, &requests, &params, &mut |r, s, token| seen[r][s].push(token)).unwrap();
    for (seen, sample) in seen.iter().flatten().zip(samples.iter().flatten()) {
        assert_eq!(seen, &sample.token_ids);
        let (last, before) = sample.token_ids.split_last().unwrap();
        assert!(before.iter().all(|&token| token >= 30));
        match sample.finish_reason {
            FinishReason::Stop => assert!(*last < 30),
            FinishReason::Length => assert!(*last >= 30 && sample.token_ids.len() == 20),
        }
    }
}

#[test]
fn a_stream_is_the_first_sample_and_can_be_broken_off() {
    let model = load("llama", Dtype::F32);
    let request = &requests(&[5])[0];
    let params = SamplingParams { n: 2, max_new_tokens: 9, seed: 4, ..Default::default() };
    let expected = &sample(&model, Dtype::F32, std::slice::from_ref(request), &params)[0][0];
    for stop_after in [3, 9, 100] {
        let mut seen = Vec::new();
        let streamed = stream(&model, Dtype::F32, request, &params, &mut |token| {
            seen.push(token);
            if seen.len() == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!(seen, expected.token_ids[..stop_after.min(9)]);
        assert_eq!(streamed.unwrap().as_ref(), (stop_after >= 9).then_some(expected));
    }
}

#[test]
fn other_seeds_and_keys_give_other_samples() {
    let model = load("llama", Dtype::F32);
    let params = SamplingParams { max_new_tokens: 12, ..Default::default() };
    let ids = |requests: &[Request], seed| {
        sample(&model, Dtype::F32, requests, &SamplingParams { seed, ..params.clone() })[0][0]
            .token_ids
            .clone()
    };
    let request = requests(&[4]);
    let rekeyed = vec![Request { key: 7, ..request[0].clone() }];
    assert_eq!(ids(&request, 1), ids(&request, 1));
    assert_ne!(ids(&request, 1), ids(&request, 2));
    assert_ne!(ids(&request, 1), ids(&rekeyed, 1));
}

#[test]
fn requests_that_cannot_be_sampled_are_refused() {
    let model = load("llama", Dtype::F32);
    let check = |requests: &[Request], params: &SamplingParams, expected: &RolloutError| {
        let error = generate(&model, Dtype::F32, requests, params, &mut |_, _, _| {}).unwrap_err();
        assert_eq!(&error, expected);
    };
    let good = requests(&[2]);
    let with = |prompt_ids| vec![good[0].clone(), Request { prompt_ids, key: 0 }];
    let params = SamplingParams::default();
    check(&with(vec![]), &params, &RolloutError::EmptyPrompt { request: 1 });
    let vocabulary = VOCABULARY as usize;
    check(
        &with(vec![1, VOCABULARY]),
        &params,
        &RolloutError::Vocabulary { request: 1, token: VOCABULARY, vocabulary },
    );
    let none = SamplingParams { max_new_tokens: 0, ..params };
    let expected = RolloutError::Parameter { name: "max_new_tokens", value: 0.0, expected: "at least 1" };
    check(&good, &none, &expected);
    assert_eq!(sample(&model, Dtype::F32, &[], &SamplingParams::default()), Vec::<Vec<Sample>>::new());
}
