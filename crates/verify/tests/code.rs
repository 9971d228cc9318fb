//! The code verifier on real problems, and when many answers are judged at once.

#![allow(clippy::print_stderr, reason = "the rate is worth reading")]

use std::path::Path;
use std::time::Instant;

use pt_verify::{Question, Verdict, Verifier, build};
use serde_json::{Map, Value, json};

fn verifier(options: &str) -> Box<dyn Verifier> {
    build("code", &options.parse().unwrap()).unwrap()
}

fn question<'a>(reply: &'a str, row: &'a Map<String, Value>) -> Question<'a> {
    Question { prompt: "", reply, gold: None, row, is_truncated: false }
}

fn rows(path: &Path) -> Vec<Map<String, Value>> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Each `every`-th problem of MBPP: its own solution passes, one that returns something else does not.
fn check_mbpp(every: usize) {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let rows: Vec<_> = rows(&data.join("mbpp/mbpp.jsonl")).into_iter().step_by(every).collect();
    let code = verifier("timeout_s = 20.0");
    let solution = |row: &Map<String, Value>| row["code"].as_str().unwrap().to_owned();
    let good: Vec<String> = rows.iter().map(&solution).collect();
    // Every function returns a value that no test expects.
    let spoil = "\nfor _name, _value in list(globals().items()):\n    if callable(_value) and getattr(_value, '__module__', '') \
                 == __name__:\n        globals()[_name] = lambda *a, **k: 'spoiled'\n";
    let bad: Vec<String> = rows.iter().map(|row| solution(row) + spoil).collect();
    let judge = |replies: &[String]| -> Vec<Verdict> {
        let questions: Vec<_> = replies.iter().zip(&rows).map(|(reply, row)| question(reply, row)).collect();
        code.verify_all(&questions)
    };
    let start = Instant::now();
    let (good, bad) = (judge(&good), judge(&bad));
    let rate = 2.0 * rows.len() as f64 / start.elapsed().as_secs_f64();
    eprintln!(
        "{} problems twice: {rate:.0} verdicts/s on {} threads",
        rows.len(),
        rayon::current_num_threads()
    );
    let mut wrong = Vec::new();
    for ((row, good), bad) in rows.iter().zip(&good).zip(&bad) {
        if good.score != Some(1.0) || bad.score != Some(0.0) {
            wrong.push(format!("{}: {} / {}", row["task_id"], good.reason, bad.reason));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn solutions_of_mbpp_pass_and_spoiled_ones_fail() {
    check_mbpp(8);
}

#[test]
#[ignore = "all 474 problems take some seconds; the sample above runs always"]
fn all_solutions_of_mbpp_pass_and_spoiled_ones_fail() {
    check_mbpp(1);
}

#[test]
fn samples_of_human_eval_get_their_published_verdicts() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let folder = data.join("humaneval-example");
    let problem = rows(&folder.join("example_problem.jsonl")).remove(0);
    let code = verifier("timeout_s = 1.0");
    let scores: Vec<_> = rows(&folder.join("example_samples.jsonl"))
        .iter()
        .map(|sample| code.verify(&question(sample["completion"].as_str().unwrap(), &problem)).score)
        .collect();
    let published = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0].map(Some);
    assert_eq!(scores, published);
}

#[test]
fn answers_do_not_depend_on_their_company() {
    let row = json!({"test_list": ["assert f(1) == 2", "assert f(2) == 3"]});
    let row = row.as_object().unwrap();
    let attacks = [
        "import os\nopen('left.py', 'w').write('x')\nos._exit(0)",
        "import os\nif os.fork() == 0:\n    while True: pass",
        "import os, signal\nos.kill(-1, signal.SIGKILL)",
        "import builtins, json\njson.dumps = json.loads = builtins.compile = None",
        "import os\nfor n in range(1000): os.makedirs('a/' * 100 + str(n), exist_ok=True)",
    ];
    let good = [
        "def f(x):\n    return x + 1",
        "import os\nassert os.listdir('.') == []\ndef f(x):\n    return 1 + x",
    ];
    let replies: Vec<&str> = attacks.iter().flat_map(|attack| [*attack, good[0], good[1]]).collect();
    let questions: Vec<_> = replies.iter().map(|reply| question(reply, row)).collect();
    let verdicts = verifier("timeout_s = 20.0").verify_all(&questions);
    for (reply, verdict) in replies.iter().zip(verdicts) {
        let expected = if good.contains(reply) { 1.0 } else { 0.0 };
        assert_eq!(verdict.score, Some(expected), "{reply}\n{verdict:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_interpreter_that_cannot_judge_is_a_skip() {
    use std::os::unix::fs::PermissionsExt;
    let folder = std::env::temp_dir().join(format!("pt-verify-python-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let row = json!({"test_list": ["assert f(1) == 2"]});
    let check = |name: &str, script: &str, expected: &str| {
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let verdict = verifier(&format!("python = '{}'", path.display()))
            .verify(&question("def f(x):\n    return x + 1", row.as_object().unwrap()));
        assert!(verdict.score.is_none() && verdict.reason.contains(expected), "{name}: {verdict:?}");
    };
    check("old", "echo it is Python 3.8 >&2; exit 1", "version 3.9 or later: it is Python 3.8");
    check("other", "echo /bin/true; echo /usr; echo /usr", "fails a trivial test in the sandbox");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn verdicts_say_which_test_failed_and_why() {
    let row = json!({"test_list": ["assert f(1) == 2", "assert f(2) == 3", "assert f('a') == 'a'"]});
    let verdict = verifier("")
        .verify(&question("def f(x):\n    return 2 if x == 1 else x / 0", row.as_object().unwrap()));
    assert!(verdict.score.is_some_and(|score| (score - 1.0 / 3.0).abs() < 1e-9), "{verdict:?}");
    assert_eq!(verdict.reason, "1 of 3 tests passed; assert f(2) == 3: ZeroDivisionError: division by zero");
    let parts: Vec<_> = verdict.parts.iter().map(|part| (part.name.as_str(), part.score)).collect();
    assert_eq!(parts, [("assert f(1) == 2", 1.0), ("assert f(2) == 3", 0.0), ("assert f('a') == 'a'", 0.0)]);
}
