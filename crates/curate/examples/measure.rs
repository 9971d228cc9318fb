//! How fast a curation is, and how much memory it takes, on rows made here.
//!
//! ```sh
//! cargo run -p pt-curate --example measure -- 1000000 exact_duplicates near_duplicates
//! ```
//!
//! Rows have a prompt of 15 and a completion of 80 words; one in ten is a copy of an earlier row with one word changed.
#![allow(clippy::print_stdout, reason = "it is what the program is for")]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::time::Instant;

use pt_core::rng::Stream;
use pt_curate::{Curation, Given, run};

use process::{peak_rss_bytes, rss_bytes};

fn words(key: u64, n: usize) -> Vec<String> {
    let mut draws = Stream::new(5, "words").at(key);
    // The square makes some words common.
    (0..n).map(|_| format!("w{}", (draws.uniform().powi(2) * 50_000.0) as u32)).collect()
}

#[path = "../../../bench/process.rs"]
mod process;

const MIB: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let n: u64 = args.next().ok_or("measure N STEP...")?.parse()?;
    let steps: Vec<String> = args.map(|name| format!("[[step]]\ntype = {name:?}\n")).collect();
    let dir = std::env::temp_dir().join(format!("measure-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let mut file = BufWriter::new(File::create(dir.join("rows.jsonl"))?);
    for i in 0..n {
        let is_copy = i % 10 == 9 && i > 10;
        let mut all = words(if is_copy { i / 2 / 10 * 10 } else { i }, 95);
        if is_copy {
            all[50] = format!("changed{i}");
        }
        writeln!(
            file,
            r#"{{"prompt": "{}", "completion": "{}"}}"#,
            all[..15].join(" "),
            all[15..].join(" ")
        )?;
    }
    file.into_inner()?.sync_all()?;
    let path = dir.display();
    let text = format!(
        "out = \"{path}/out.jsonl.zst\"\n[[input]]\nsource = \"{path}/rows.jsonl\"\n{}",
        steps.concat()
    );
    let before = rss_bytes() / MIB;
    let start = Instant::now();
    let report = run(&Curation::parse(&text, "measure")?, &Given::default(), &mut |_| {})?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{n} rows, {} kept: {seconds:.1} s, {:.0} rows/s", report.n_kept, n as f64 / seconds);
    println!("memory: {before} MiB before, {} MiB at most", peak_rss_bytes() / MIB);
    fs::remove_dir_all(&dir)?;
    Ok(())
}
