//! Verdicts per second of the code verifier: `cargo run --release -p pt-verify --example code_speed [SECONDS [THREADS]]`.

#![allow(clippy::print_stdout, reason = "an example")]

use std::time::{Duration, Instant};

use pt_verify::{Question, build};
use serde_json::json;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().map_or(Ok(3), |arg| arg.parse())?;
    let n_threads: usize = args.next().map_or(Ok(1), |arg| arg.parse())?;
    let asserts = json!({"test_list": ["assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 4"]});
    let case = json!({"tests": [{"input": "1", "output": "2"}]});
    for (what, reply, row) in [
        ("three asserts", "def f(x):\n    return x + 1", asserts),
        ("one case of input and output", "print(int(input()) + 1)", case),
    ] {
        let code = build("code", &toml::Table::new())?;
        let row = row.as_object().ok_or("an object")?;
        let question = Question { prompt: "", reply, gold: None, row, is_truncated: false };
        let run = || {
            let verdict = code.verify(&question);
            assert!(verdict.is_pass(), "{verdict:?}");
        };
        run();
        let start = Instant::now();
        let count = || {
            let mut n = 0u32;
            while start.elapsed() < Duration::from_secs(seconds) {
                run();
                n += 1;
            }
            n
        };
        let n: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        let rate = f64::from(n) / start.elapsed().as_secs_f64();
        println!("{what}: {rate:.0} verdicts/s on {n_threads} thread(s)");
    }
    Ok(())
}
