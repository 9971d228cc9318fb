//! Constitutional AI from the command line, both stages, with a judge that answers by rules; and judges that misbehave.

mod common;

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use common::judge::{Act, JudgeServer, between, by_rules, by_rules_then_length, say};
use common::{Fixture, Outcome, command, json_lines};
use serde_json::{Value, json};

const CONSTITUTION: &str = "\
name = \"manners\"
[[principle]]
id = \"polite\"
text = \"The reply says please.\"
category = \"form\"
weight = 2
[[principle]]
id = \"kind\"
text = \"The reply insults nobody.\"
category = \"content\"
";

fn prompts(n: usize) -> String {
    (0..n)
        .map(|i| {
            json!({ "prompt": [{ "role": "user", "content": format!("one two {i}") }] }).to_string() + "\n"
        })
        .collect()
}

/// Pairs with the polite reply first.
fn pairs(n: usize) -> String {
    let pair = |i: usize| {
        let (good, bad) = (format!("go {i} please"), format!("go {i} stupid {}", "very ".repeat(i % 3)));
        json!({ "prompt": format!("where {i}"), "chosen": good, "rejected": bad }).to_string() + "\n"
    };
    (0..n).map(pair).collect()
}

fn feedback(fixture: &Fixture, server: &JudgeServer, args: &[&str]) -> Outcome {
    let server = ["--server", &server.url, "--retries", "0", "--parallel", "2"];
    fixture.run(&[&["feedback"], args, &server].concat())
}

fn json_of(fixture: &Fixture, name: &str) -> Value {
    serde_json::from_str(&fixture.read(name)).unwrap()
}

#[test]
fn both_stages_end_to_end() {
    let fixture = Fixture::new();
    let server = JudgeServer::start(|_, text| by_rules(text));
    fixture.write("constitution.toml", CONSTITUTION);
    fixture.write("prompts.jsonl", &prompts(12));
    let args = "revise --constitution constitution.toml --data prompts.jsonl --rounds 2 --price 1,2 --pairs pairs.jsonl --out revised.jsonl";
    let outcome = feedback(&fixture, &server, &args.split(' ').collect::<Vec<_>>()).ok();
    assert!(
        outcome.stdout.contains("polite") && outcome.stdout.contains("12 kept of 12"),
        "{}",
        outcome.stdout
    );
    let rows = json_lines(&fixture.read("revised.jsonl"));
    assert_eq!(rows.len(), 12);
    for row in &rows {
        assert_eq!(row["messages"][1], json!({ "role": "assistant", "content": "you are dear please" }));
        assert_eq!(row["initial"], "you are stupid");
        let drawn: Vec<&str> = (0..2).map(|i| row["chain"][i]["principle"].as_str().unwrap()).collect();
        assert_ne!(drawn[0], drawn[1], "no principle comes twice before all have come");
    }
    let report = json_of(&fixture, "revised.report.json");
    assert_eq!(report["calls"]["n_calls"], 12 * 5);
    let tokens = |key: &str| report["calls"][key].as_f64().unwrap();
    let cost = (tokens("prompt_tokens") + 2.0 * tokens("completion_tokens")) / 1e6;
    assert!((report["cost"].as_f64().unwrap() - cost).abs() < 1e-12 && cost > 0.0);
    assert!(report["principles"].as_array().unwrap().iter().all(|by| by["n_drawn"] == 12));
    assert!(fixture.read("revised.report.md").contains("| polite | form |"));
    assert_eq!(json_lines(&fixture.read("pairs.jsonl")).len(), 12);

    let sft = "seed = 1\nname = \"sft\"\n[model]\nbase = \"model\"\n[[stage]]\ntype = \"sft\"\n\
               data.train = [\"revised.jsonl\"]\ntrain.steps = 3\noptimizer.learning_rate = 1e-3\n";
    fixture.write("sft.toml", sft);
    fixture.run(&["run", "sft.toml", "--out", "sft"]).ok();
    let model = folder_with(&fixture, "sft", "model");

    // The replies of a model of three steps are noise: nothing to choose by these rules, so the rule is length here.
    let by_length = JudgeServer::start(|_, text| {
        let length = |tag: &str| between(text, tag).chars().count();
        say(if length("reply-A") > length("reply-B") { "A" } else { "B" })
    });
    let args = format!(
        "judge --constitution constitution.toml --prompts prompts.jsonl --respond {model} --respond-max-new-tokens 12 \
         --principles 2 --out judged.jsonl"
    );
    feedback(&fixture, &by_length, &args.split_whitespace().collect::<Vec<_>>()).ok();
    let report = json_of(&fixture, "judged.report.json");
    let (n_kept, n_rows) = (report["n_kept"].as_u64().unwrap(), report["n_rows"].as_u64().unwrap());
    let n_excluded: u64 = report["excluded"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!((n_rows, n_kept + n_excluded), (12, 12));
    assert!(n_kept >= 2, "{report}");
    for row in json_lines(&fixture.read("judged.jsonl")) {
        let length = |key: &str| row[key][0]["content"].as_str().unwrap().chars().count();
        assert!(length("chosen") > length("rejected"), "{row}");
    }

    let dpo = format!(
        "seed = 1\nname = \"dpo\"\n[model]\nbase = \"{model}\"\n[[stage]]\ntype = \"dpo\"\n\
         data.train = [\"judged.jsonl\"]\ntrain.steps = 2\noptimizer.learning_rate = 1e-4\n"
    );
    fixture.write("dpo.toml", &dpo);
    fixture.run(&["run", "dpo.toml", "--out", "dpo"]).ok();
    folder_with(&fixture, "dpo", "model");
}

/// The folder `name` of the first stage of a run.
fn folder_with(fixture: &Fixture, run: &str, name: &str) -> String {
    let stages = fixture.path().join(run).join("stages");
    let stage = std::fs::read_dir(stages).unwrap().next().unwrap().unwrap().path();
    let folder = stage.join(name);
    assert!(folder.is_dir(), "{} is not there", folder.display());
    folder.display().to_string()
}

#[test]
fn a_good_judge_is_measured_as_one_and_a_biased_one_as_biased() {
    type Expectation<'a> = (&'a str, fn(&str) -> Act, &'a [(&'a str, f64)]);
    let fixture = Fixture::new();
    fixture.write("pairs.jsonl", &pairs(24));
    let cases: &[Expectation<'_>] = &[
        // (0.9 + 0.8) / 2 is right each time: off by 0.15.
        (
            "good",
            by_rules,
            &[("accuracy", 1.0), ("consistency", 1.0), ("position_bias", 0.0), ("ece", 0.15), ("kappa", 1.0)],
        ),
        ("place", |_| say("A"), &[("accuracy", 0.5), ("consistency", 0.0), ("position_bias", 0.5)]),
        (
            "length",
            |text| {
                let length = |tag: &str| between(text, tag).chars().count();
                say(if length("reply-A") > length("reply-B") { "A" } else { "B" })
            },
            &[("position_bias", 0.0)],
        ),
    ];
    for (name, rule, expected) in cases {
        let server = JudgeServer::start(|_, text| rule(text));
        let args = format!("judge --data pairs.jsonl --labels --out {name}.jsonl");
        let outcome = feedback(&fixture, &server, &args.split(' ').collect::<Vec<_>>());
        assert_eq!(outcome.code == 0, *name != "place", "{name}: {outcome:?}");
        let figures = json_of(&fixture, &format!("{name}.report.json"))["overall"].clone();
        for (figure, expected) in *expected {
            let found = figures[figure]["value"].as_f64().or(figures[figure].as_f64());
            let found = found.unwrap_or_else(|| panic!("{name}: no {figure} in {figures}"));
            assert!((found - expected).abs() < 1e-9, "{name}: {figure} is {found}, expected {expected}");
        }
        let length_bias = figures["length_bias"].as_f64();
        assert!(*name != "length" || length_bias.unwrap() > 0.3, "{name}: {length_bias:?}");
    }
    let report = json_of(&fixture, "place.report.json");
    assert_eq!(report["excluded"], json!({ "inconsistent": 24 }));
    let first = &json_lines(&fixture.read("good.jsonl"))[0];
    assert!((first["soft_label"].as_f64().unwrap() - 0.85).abs() < 1e-9, "{first}");
}

#[test]
fn nonsense_failures_and_bad_pairs_are_counted_with_their_reasons() {
    let fixture = Fixture::new();
    let extra = [
        json!({ "prompt": "q", "chosen": "same", "rejected": "same" }),
        json!({ "prompt": "q", "chosen": "x", "rejected": " " }),
        json!({ "prompt": "tie", "chosen": "go left", "rejected": "go right" }),
        json!({ "prompt": "nonsense", "chosen": "go up please", "rejected": "go down" }),
        json!({ "prompt": "hang", "chosen": "go in please", "rejected": "go out" }),
    ];
    let extra: String = extra.iter().map(|row| row.to_string() + "\n").collect();
    fixture.write("pairs.jsonl", &(pairs(4) + &extra));
    let server = JudgeServer::start(|_, text| match between(text, "conversation") {
        "user: nonsense" => say("A good reply is like a banana."),
        "user: hang" => Act::Hang,
        "user: where 3" => Act::Status(500),
        _ => by_rules(text),
    });
    let args = "judge --data pairs.jsonl --timeout 0.3 --votes 2 --temperature 1 --out judged.jsonl";
    feedback(&fixture, &server, &args.split(' ').collect::<Vec<_>>()).ok();
    let report = json_of(&fixture, "judged.report.json");
    let expected = json!({ "empty_reply": 1, "equal_replies": 1, "failed": 2, "no_verdict": 1, "tie": 1 });
    assert_eq!((&report["excluded"], &report["n_kept"]), (&expected, &json!(3)));
    assert_eq!(report["overall"]["n_abstained"], 4);
    assert_eq!(report["calls"]["n_failed"], 8);
    let excluded = fixture.read("judged.excluded.jsonl");
    for part in ["like a banana", "no answer within 0.3 s", "told to refuse", "equal_replies", "empty_reply"]
    {
        assert!(excluded.contains(part), "`{part}` is not in\n{excluded}");
    }
    assert_eq!(json_lines(&excluded).len(), 6);

    let dead = JudgeServer::start(|_, _| Act::Status(503));
    let outcome = feedback(&fixture, &dead, &["judge", "--data", "pairs.jsonl", "--out", "dead.jsonl"]);
    assert_eq!(outcome.code, 1);
    assert!(
        outcome.stderr.contains("calls of `rules` failed; the first: the server answered 503"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_chain_that_breaks_keeps_its_last_whole_revision() {
    let fixture = Fixture::new();
    fixture.write("constitution.toml", CONSTITUTION);
    fixture.write("prompts.jsonl", &prompts(3));
    // Row 0 has no reply, row 1 breaks in the second round, row 2 gets an empty revision in the first.
    let server = JudgeServer::start(|_, text| match text {
        "one two 0" => Act::Status(500),
        text if !text.contains("Critique") && !text.contains("Revision") => by_rules(text),
        text if between(text, "conversation").ends_with('2') && text.contains("Revision request") => {
            say("  ")
        }
        text if text.contains("Critique request") && text.contains("dear please") => Act::Status(500),
        _ => by_rules(text),
    });
    let args = "revise --constitution constitution.toml --data prompts.jsonl --rounds 2 --out r.jsonl";
    feedback(&fixture, &server, &args.split(' ').collect::<Vec<_>>()).ok();
    let rows = json_lines(&fixture.read("r.jsonl"));
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["chain"].as_array().unwrap().len(), 1);
    assert_eq!((&rows[0]["failure"]["part"], &rows[0]["failure"]["round"]), (&json!("critique"), &json!(2)));
    let report = json_of(&fixture, "r.report.json");
    assert_eq!(report["excluded"], json!({ "initial_failed": 1, "revision_empty": 1 }));
    assert_eq!(report["n_cut_short"], 1);
}

#[test]
fn a_killed_run_goes_on_and_ends_in_the_same_bytes() {
    let fixture = Fixture::new();
    fixture.write("constitution.toml", CONSTITUTION);
    fixture.write("prompts.jsonl", &prompts(10));
    let (reached, wait) = mpsc::channel();
    let (reached, awake) = (Mutex::new(reached), Arc::new(AtomicBool::new(false)));
    let is_awake = awake.clone();
    // Each answer is another, as those of a model at a temperature: only kept answers can give the same bytes.
    let server = JudgeServer::start(move |n, text| {
        if n >= 17 && !is_awake.load(Ordering::SeqCst) {
            // The second of two requests may come after the test has gone on.
            let _ = reached.lock().unwrap().send(());
            return Act::Hang;
        }
        match by_rules(text) {
            Act::Say(text, None) => Act::Say(format!("{text} {n}"), None),
            act => act,
        }
    });
    let args = "feedback revise --constitution constitution.toml --data prompts.jsonl --rounds 1 --parallel 2 --out r.jsonl";
    let args: Vec<&str> = args.split(' ').chain(["--server", &server.url]).collect();
    let mut child =
        command(fixture.path(), &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait.recv().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    awake.store(true, Ordering::SeqCst);
    assert!(!fixture.path().join("r.jsonl").exists(), "no half of an output");
    let n_before = server.n_asked();

    fixture.run(&args).ok();
    // Those that hung are asked again, and no others: ten replies, critiques and revisions each.
    let n_lost = server.n_asked() - 30;
    assert!((1..=2).contains(&n_lost), "{n_before} before, {} in all", server.n_asked());
    let names = ["r.jsonl", "r.report.json", "r.report.md", "r.excluded.jsonl"];
    let first = names.map(|name| fixture.read(name));
    fixture.run(&args).ok();
    assert_eq!(first, names.map(|name| fixture.read(name)));
    assert_eq!(server.n_asked(), 30 + n_lost, "all is kept");
}

#[test]
fn a_model_of_this_machine_judges_and_repeats_itself() {
    let fixture = Fixture::new();
    fixture.write("short.toml", "[[principle]]\nid = \"a\"\ntext = \"b\"\n");
    fixture.write("p.jsonl", &prompts(2));
    let args = "feedback revise --constitution short.toml --model model --data p.jsonl --max-new-tokens 4 --out r.jsonl";
    let args: Vec<&str> = args.split(' ').collect();
    // The tiny model's context cannot hold the critique's wording: every chain breaks, with that reason.
    let outcome = fixture.run(&args);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("no row was kept"), "{}", outcome.stderr);
    let excluded = json_lines(&fixture.read("r.excluded.jsonl"));
    assert_eq!(excluded.len(), 2);
    for row in &excluded {
        assert_eq!(row["excluded"], "critique_failed");
        assert!(row["failure"]["reason"].as_str().unwrap().contains("the model was made for 256"), "{row}");
        assert!(!row["initial"].as_str().unwrap().is_empty());
    }
    let before = fixture.read("r.excluded.jsonl");
    fixture.run(&args);
    assert_eq!(fixture.read("r.excluded.jsonl"), before);
}

#[test]
fn only_an_audited_judge_is_a_reward() {
    let fixture = Fixture::new();
    fixture.write("pairs.jsonl", &pairs(60));
    let server = JudgeServer::start(|_, text| by_rules(text));
    let good = feedback(
        &fixture,
        &server,
        &["audit", "--data", "pairs.jsonl", "--rubric", "The reply is polite.", "--out", "good.json"],
    );
    let shown = good.ok().stdout;
    assert!(shown.contains("passed"));
    // Two greedy answers are one: no consistency is claimed.
    assert!(shown.contains("not measured: at temperature 0"), "{shown}");
    let audit = json_of(&fixture, "good.json");
    let drawn = json!({ "max_tokens": 512, "temperature": 0.0, "votes": 1 });
    assert_eq!((&audit["subject"]["drawn"], &audit["figures"]["consistency"]), (&drawn, &Value::Null));
    let deaf = JudgeServer::start(|_, _| say("5"));
    let args = ["audit", "--data", "pairs.jsonl", "--rubric", "The reply is polite.", "--out", "bad.json"];
    let outcome = feedback(&fixture, &deaf, &args);
    assert_eq!(outcome.code, 1);
    assert!(
        outcome.stderr.contains("did not pass") && outcome.stderr.contains("accuracy"),
        "{}",
        outcome.stderr
    );

    let refusals = [
        ("", Some("a judge that nobody audited is no reward")),
        ("audit = \"bad.json\"", Some("did not pass")),
        ("audit = \"good.json\"\nrubric = \"The reply is short.\"", Some("another rubric")),
        ("audit = \"good.json\"\nmodel = \"other\"", Some("it is of the model `rules`")),
        ("audit = \"gone.json\"", Some("gone.json")),
        ("audit = \"good.json\"\nunaudited = true", Some("contradict each other")),
        ("audit = \"good.json\"\nmax_tokens = 16", Some("drawn with max_tokens 512")),
        ("audit = \"good.json\"\ntemperature = 1.0", Some("temperature 1")),
        ("unaudited = true", None),
        ("audit = \"good.json\"", None),
        ("audit = \"good.json\"\nvotes = 3", None),
    ];
    for (options, expected) in refusals {
        let options = options.replace("audit = \"", &format!("audit = \"{}/", fixture.path().display()));
        let mut table: toml::Table = toml::from_str(&options).unwrap();
        for (key, value) in [("url", &*server.url), ("model", "rules"), ("rubric", "The reply is polite.")] {
            table.entry(key).or_insert(value.into());
        }
        match (pt_feedback::build_llm_judge(&table), expected) {
            (Ok(verifier), None) => {
                let row = serde_json::Map::new();
                let question = |reply| pt_verify::Question {
                    prompt: "where",
                    reply,
                    gold: None,
                    row: &row,
                    is_truncated: false,
                };
                let questions = ["go please", "go", "", "go stupid"].map(question);
                let scores: Vec<Option<f64>> =
                    verifier.verify_all(&questions).iter().map(|verdict| verdict.score).collect();
                let expected = [7.0 / 9.0, 4.0 / 9.0, 0.0, 1.0 / 9.0].map(Some);
                assert_eq!(scores, expected);
            }
            (Err(error), Some(part)) => {
                assert!(error.to_string().contains(part), "{options}: `{error}` lacks `{part}`");
            }
            (outcome, _) => panic!("{options}: {outcome:?}"),
        }
    }

    let scored = |i: usize| {
        let (chosen, rejected) = (format!("good {i}"), format!("bad {i}"));
        json!({ "prompt": "q", "chosen": chosen, "rejected": rejected, "score_chosen": 1.5, "score_rejected": -1 })
    };
    fixture.write("scored.jsonl", &(0..60).map(|i| scored(i).to_string() + "\n").collect::<String>());
    fixture
        .run(&[
            "feedback",
            "audit",
            "--scores",
            "rm",
            "--data",
            "scored.jsonl",
            "--max-length-bias",
            "1",
            "--out",
            "rm.json",
        ])
        .ok();
    let audit = json_of(&fixture, "rm.json");
    assert_eq!(
        (&audit["subject"]["kind"], &audit["figures"]["accuracy"]["value"]),
        (&json!("scorer"), &json!(1.0))
    );
}

#[test]
fn a_key_goes_to_its_server_and_to_no_other() {
    let fixture = Fixture::new();
    fixture.write("prompts.jsonl", &prompts(4));
    fixture.write("key.txt", "secret\n");
    let judge = JudgeServer::start(|_, text| by_rules_then_length(text));
    let other = JudgeServer::start(|n, _| say(&"x".repeat(n + 1)));
    for (respond, out) in [(&other.url, "other.jsonl"), (&judge.url, "own.jsonl")] {
        let respond = format!("{respond}#rules");
        let args =
            ["judge", "--prompts", "prompts.jsonl", "--respond", &respond, "--api-key-file", "key.txt"];
        // Whether there is a preference depends on the order of the replies; what is tested is who was sent the key.
        feedback(&fixture, &judge, &[&args[..], &["--out", out]].concat());
    }
    assert!(other.n_asked() > 0, "the other server was asked");
    assert_eq!(*other.keys.lock().unwrap(), Vec::<String>::new());
    let keys = judge.keys.lock().unwrap();
    assert!(keys.len() >= judge.n_asked() && keys.iter().all(|key| key == "Bearer secret"), "{keys:?}");
}

#[test]
fn the_built_in_constitution_can_be_printed_and_used() {
    let fixture = Fixture::new();
    let text = fixture.run(&["feedback", "constitution"]).ok().stdout;
    fixture.write("mine.toml", &text.replace("id = \"harm\"", "id = \"law\""));
    fixture.write("pairs.jsonl", &pairs(1));
    let args = [
        "feedback",
        "judge",
        "--constitution",
        "mine.toml",
        "--data",
        "pairs.jsonl",
        "--model",
        "model",
        "--out",
        "x.jsonl",
    ];
    let outcome = fixture.run(&args);
    assert!(
        outcome.stderr.contains("two principles have the id `law`") && outcome.stderr.contains("mine.toml:"),
        "{}",
        outcome.stderr
    );
}
