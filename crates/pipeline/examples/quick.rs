//! Scratch.
#![allow(clippy::print_stdout, missing_docs)]
use pt_pipeline::*;
use pt_train::*;
struct W(std::time::Instant);
impl Watcher for W {
    fn step(&mut self, n: u64, s: &StepStats, _: &pt_engine::Profile, e: f64) {
        if n % 20 == 0 || n < 4 {
            println!(
                "{:6.1}s step {n} loss {:.4} gn {:.2} lr {:.2e} {:.0} tok/s",
                self.0.elapsed().as_secs_f64(),
                s.loss,
                s.grad_norm,
                s.learning_rate,
                s.n_tokens as f64 / e
            );
        }
    }
    fn eval(&mut self, n: u64, s: &EvalStats) {
        println!("eval {n} {:.4} {:?}", s.loss, s.metrics);
    }
    fn saved(&mut self, n: u64) {
        println!("saved {n}");
    }
}
impl Watch for W {
    fn stage_begun(&mut self, s: &pt_recipe::PlannedStage, n: u64, f: f64) {
        println!("stage {} at {n}, {f:.2e} flops/token", s.name);
    }
    fn measuring(&mut self, s: &pt_recipe::PlannedStage, w: &'static str) {
        println!("measuring {} {w} {:?}", s.name, self.0.elapsed());
    }
    fn stage_ended(&mut self, s: &pt_recipe::PlannedStage, r: &StageReport) {
        println!("ended {} {r:#?} {:?}", s.name, self.0.elapsed());
    }
    fn note(&mut self, m: &str) {
        println!("note {m}");
    }
}
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let sets: Vec<String> = args[2..].to_vec();
    let recipe = load_recipe(std::path::Path::new(&args[0]), &sets).unwrap_or_else(|e| panic!("{e}"));
    let s = Surroundings { hf_home: None, cache_dir: None };
    let start = std::time::Instant::now();
    let prepared = prepare(recipe, &s).unwrap_or_else(|e| panic!("{e}"));
    println!("{}\n{:?}", prepared.plan.to_table(), start.elapsed());
    let stop = std::sync::atomic::AtomicBool::new(false);
    let out = RunOptions { out: args[1].clone().into(), resume: false };
    run(prepared, &out, &s, &mut W(std::time::Instant::now()), &stop).unwrap_or_else(|e| panic!("{e}"));
    println!("{:?}", start.elapsed());
}
