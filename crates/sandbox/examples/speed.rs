//! Runs per second of trivial programs: `cargo run --release -p pt-sandbox --example speed [SECONDS]`.

#![allow(clippy::print_stdout, reason = "an example")]

use std::time::{Duration, Instant};

use pt_sandbox::{Job, Limits, Sandbox};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seconds: u64 = std::env::args().nth(1).map_or(Ok(2), |arg| arg.parse())?;
    let full = Sandbox::new(Limits::default())?;
    println!("{:#?}", full.capabilities());
    let python = ["-I", "-S", "-c", "pass"].as_slice();
    let jobs = [("/bin/true", [].as_slice()), ("/bin/sh", &["-c", ":"]), ("/usr/bin/python3", python)];
    for (what, sandbox) in
        [("all layers", full), ("no namespaces", Sandbox::without_namespaces(Limits::default())?)]
    {
        for (program, args) in jobs {
            if !std::path::Path::new(program).exists() {
                println!("{what}: {program} is not here");
                continue;
            }
            let args = args.iter().map(|arg| (*arg).to_owned()).collect();
            let job = Job { program: program.into(), args, ..Job::default() };
            let start = Instant::now();
            let mut n = 0;
            while start.elapsed() < Duration::from_secs(seconds) {
                let outcome = sandbox.run(&job)?;
                assert!(outcome.is_success(), "{outcome:?}");
                n += 1;
            }
            let rate = f64::from(n) / start.elapsed().as_secs_f64();
            println!("{what}: {program}: {rate:.0} runs/s, one after another");
        }
    }
    Ok(())
}
