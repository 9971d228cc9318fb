//! Samples from a server: the same weights give a ratio of 1, older ones a measured difference; what a connection loses is asked for
//! again or counted, and a round is never lost for it.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use common::*;
use pt_engine::Dtype;
use pt_rl::RolloutRecord;
use pt_rollout::EngineOptions;
use pt_serve::{EngineBackend, Server, ServerOptions, TextSide};
use pt_text::Tokenizer;

fn recipe_for(url: &str, more: &str) -> String {
    let server = format!("server.model = \"base\"\nserver.url = \"{url}\"\n");
    let eval = "eval.n = 1\neval.max_new_tokens = 1\n";
    format!("{}{}{server}{eval}{more}{A_OR_E}", on_base(), grpo_on("letters", 3))
}

/// `posttrain serve` over the base model.
fn serve() -> Server {
    let tokenizer = Tokenizer::from_dir(base_model()).unwrap();
    let template = tokenizer.chat_template(None).unwrap();
    let text = TextSide {
        stop_token_ids: pt_pipeline::stop_token_ids(&tokenizer, Some(&template)),
        template: Some(template),
        context: 256,
        vocabulary: tokenizer.vocab_size(),
        tokenizer: Arc::new(tokenizer),
    };
    let engine = |commands| {
        let model = pt_pipeline::model::load_model(base_model(), Some(Dtype::F32)).unwrap();
        let mut backend = EngineBackend::new(&model, EngineOptions::new(Dtype::F32));
        pt_serve::backend::run(&mut backend, commands);
    };
    Server::start("127.0.0.1", 0, ServerOptions::new("base"), text, engine).unwrap()
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}/v1")
}

fn values(run: &Path, key: &str) -> Vec<f64> {
    metric(run, "01-grpo", key).into_iter().map(|(_, value)| value).collect()
}

fn rollouts(run: &Path) -> Vec<RolloutRecord> {
    rollouts_of(run, "01-grpo").concat()
}

const F32: &str = "model.dtype=f32";

#[test]
fn the_same_weights_have_a_ratio_of_one_and_older_ones_a_measured_difference() {
    let server = serve();
    let dir = tempdir();
    let out = dir.path().join("run");
    let told = dir.path().join("told");
    let reload = format!(
        "server.reload_every = 2\nserver.reload_command = [\"sh\", \"-c\", \"ls $0 >> {}\", \"{{path}}\"]\n",
        told.display()
    );
    let text = recipe_for(&url(server.address()), &reload);
    let plan = prepared(&text, &[F32]).plan;
    let correction = &plan.stages[0].objective.params["importance_sampling_correction"];
    assert_eq!(correction, "sequence_mask", "the correction is on where a server samples");
    finish(&text, &[F32], &out);
    let difference = values(&out, "sampling/sampling_logp_difference/max");
    assert_eq!(difference[0], 0.0, "the same weights by the same kernels");
    // A round whose groups have no signal leaves the weights as they are.
    assert!(difference[1..].iter().any(|difference| *difference > 0.0), "{difference:?}");
    assert_eq!(values(&out, "sampling/importance_sampling_ratio/mean")[0], 1.0);
    assert_eq!(values(&out, "server/staleness"), [0.0, 1.0, 0.0]);
    assert_eq!(values(&out, "server/lost"), [0.0; 3]);
    assert_eq!(values(&out, "server/dropped"), [0.0; 3]);
    let told = std::fs::read_to_string(told).unwrap();
    assert_eq!(told.matches("model.safetensors").count(), 2, "{told}");
    let records = rollouts(&out);
    assert_eq!(records.len(), 3 * 3 * 4);
    for record in &records {
        assert_eq!(record.logprobs.len(), record.sampler_logprobs.len());
        let is_same = record.logprobs == record.sampler_logprobs;
        assert!(is_same || difference[record.step as usize] > 0.0, "{record:?}");
    }
    server.stop_handle().stop();
    server.wait().unwrap();
}

#[test]
fn conversations_go_through_a_server_too() {
    let server = serve();
    let dir = tempdir();
    let out = dir.path().join("run");
    let text =
        recipe_for(&url(server.address()), "environment.type = \"guess\"\nenvironment.max_turns = 3\n")
            .replace("generated:letters", "generated:guess")
            .replace("train.steps = 3", "train.steps = 1");
    finish(&text, &[F32], &out);
    assert_eq!(values(&out, "sampling/sampling_logp_difference/max"), [0.0]);
    assert!(values(&out, "turns/mean")[0] > 1.0);
    server.stop_handle().stop();
    server.wait().unwrap();
}

#[test]
fn a_reload_that_hangs_ends_the_run_with_every_step_saved() {
    let server = serve();
    let dir = tempdir();
    let text = |name: &str, hangs_at: &str| {
        let told = dir.path().join(name);
        let script = format!(
            "echo $0 >> {0}; test $(wc -l < {0}) -ne {hangs_at} || {{ echo no answer >&2; sleep 600; }}",
            told.display()
        );
        let reload = format!(
            "server.reload_every = 2\nserver.reload_timeout_s = 0.5\n\
             server.reload_command = [\"sh\", \"-c\", \"{script}\", \"{{path}}\"]\n"
        );
        recipe_for(&url(server.address()), &reload).replace("train.steps = 3", "train.steps = 5")
    };
    let n_told = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap().lines().count();
    let whole = dir.path().join("whole");
    finish(&text("told-whole", "0"), &[F32], &whole);
    assert_eq!(n_told("told-whole"), 3);
    let (out, hanging) = (dir.path().join("run"), text("told", "2"));
    let mut seen = Seen::default();
    let Err(error) = go(&hanging, &[F32], &out, &mut seen) else { panic!("the second reload hangs") };
    let error = error.to_string();
    for part in ["0.5 s", "no answer", "server.reload_timeout_s", "resume"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(seen.saved, [("grpo".to_owned(), 2)], "the rounds before it are saved");
    go(&hanging, &[F32], &out, &mut Seen::default()).unwrap();
    // Once more than without the interruption, in which the server's weights stayed those of the base.
    assert_eq!(n_told("told"), 4);
    assert_eq!(values(&out, "server/staleness"), [0.0, 1.0, 0.0, 1.0, 0.0]);
    let model = |run: &Path| std::fs::read(run.join("stages/01-grpo/model/model.safetensors")).unwrap();
    assert!(model(&out) == model(&whole), "the same as without the interruption");
    server.stop_handle().stop();
    server.wait().unwrap();
}

/// Drops every other connection, passes the rest on.
fn flaky(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (i, client) in listener.incoming().enumerate() {
            let Ok(client) = client else { return };
            if i % 2 == 0 {
                // The request was sent, and no answer comes.
                let _ = client.shutdown(Shutdown::Both);
                continue;
            }
            let Ok(server) = TcpStream::connect(to) else { return };
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server.try_clone().unwrap(), client.try_clone().unwrap()),
            ] {
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(n @ 1..) = from.read(&mut buffer) {
                        if to.write_all(&buffer[..n]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    address
}

#[test]
fn connections_that_are_dropped_lose_no_round() {
    let server = serve();
    let address = flaky(server.address());
    for (retries, max_lost) in [(8, 0.0), (0, 1.0)] {
        let dir = tempdir();
        let out = dir.path().join("run");
        // With no second attempt, a request in two is lost; what comes trains.
        let more = format!("server.max_retries = {retries}\nserver.parallel = 1\n");
        let text = recipe_for(&url(address), &more).replace("train.steps = 3", "train.steps = 1");
        finish(&text, &[F32], &out);
        let lost = values(&out, "server/lost")[0];
        assert!(lost <= max_lost, "{retries} retries: {lost}");
        let n = rollouts(&out).len();
        assert_eq!(n, ((1.0 - lost) * 12.0).round() as usize);
        assert!(n > 0);
    }
    server.stop_handle().stop();
    server.wait().unwrap();
}

#[test]
fn what_a_server_cannot_do_is_refused_before_or_said() {
    let text = recipe_for("http://127.0.0.1:1/v1", "");
    let check = |changes: &[&str], message: &str| {
        let found = refusal(&text, changes);
        assert!(found.contains(message), "{changes:?}: {found}");
    };
    check(&["stage.0.rollout.temperature=0.7"], "another temperature than 1");
    check(&["stage.0.server.reload_command=[\"sh\"]"], "does not say where the weights are");
    check(
        &["stage.0.server.reload_url=http://127.0.0.1:1/x", "stage.0.server.reload_body={path}"],
        "not JSON",
    );
    check(&["stage.0.server.key_file=/no/such/key"], "/no/such/key");
    check(&["stage.0.type=xpo", "stage.0.rollout.n=2"], "the server has not");
    // Nobody listens: what is saved is unharmed.
    let dir = tempdir();
    let retries = ["stage.0.server.max_retries=0", F32];
    let Err(error) = go(&text, &retries, &dir.path().join("run"), &mut Seen::default()) else {
        panic!("nobody listens there")
    };
    let error = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ");
    assert!(error.contains("gave no sample that can be trained on"), "{error}");
}
