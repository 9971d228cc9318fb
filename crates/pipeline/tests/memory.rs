//! Planned memory against what the buffers of a run hold. Alone in its program: the buffers are counted by process.

mod common;

use common::*;

/// Planned and used memory may differ by this share: blocks are rounded up to a few sizes, and a stage's largest
/// micro-batch may come after the steps that the plan looked at.
const TOLERANCE: f64 = 0.1;

#[test]
fn memory_is_planned_as_it_is_used() {
    let text = format!("{}{SFT}", on_base());
    for sets in [
        &["stage.sft.train.method=full"][..],
        &["stage.sft.train.method=lora"],
        &["stage.sft.train.method=qlora"],
        &["stage.sft.train.recompute=block"],
        &["stage.sft.train.rows_per_step=64", "stage.sft.train.tokens_per_micro_batch=1024"],
        &["stage.sft.train.rows_per_step=64", "stage.sft.train.tokens_per_micro_batch=200"],
    ] {
        let sets = &[sets, &["stage.sft.train.steps=4"]].concat();
        let dir = tempdir();
        let plan = prepared(&text, sets).plan;
        let planned: u64 = plan.stages[0].memory.iter().map(|part| part.bytes).sum();
        let (_, seen) = finish(&text, sets, dir.path());
        let used = seen.peaks[0].1 as f64;
        let off = planned as f64 / used - 1.0;
        assert!(
            off.abs() < TOLERANCE,
            "{sets:?}: {planned} bytes planned, {used} used, {:+.1} %",
            off * 100.0
        );
    }
}
