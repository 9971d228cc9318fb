//! A plan as aligned text.

use crate::hardware::GIB;
use crate::layout::LayoutEstimate;
use crate::plan::{HardwarePlan, MethodPlan, Plan, StagePlan};

/// Bytes in GiB, or MiB where that is less than a tenth.
pub fn bytes(n: u64) -> String {
    let gib = n as f64 / GIB;
    if n == 0 {
        "0".to_owned()
    } else if gib < 0.1 {
        format!("{:.1} MiB", gib * 1024.0)
    } else {
        format!("{gib:.2} GiB")
    }
}

/// Seconds in the unit that people would use.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "-".to_owned(),
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6000.0 => format!("{:.1} min", s / 60.0),
        s if s < 48.0 * 3600.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

/// A number with its magnitude: `135M`, `7.62B`.
pub fn magnitude(n: f64) -> String {
    match n {
        n if !n.is_finite() => "-".to_owned(),
        n if n >= 1e12 => format!("{:.2}T", n / 1e12),
        n if n >= 1e9 => format!("{:.2}B", n / 1e9),
        n if n >= 1e6 => format!("{:.1}M", n / 1e6),
        n if n >= 1e4 => format!("{:.1}k", n / 1e3),
        n => format!("{n:.0}"),
    }
}

/// Rows of cells as columns; the first is left-aligned, the others right-aligned.
pub fn grid(rows: &[Vec<String>]) -> String {
    let n = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |i: usize| rows.iter().filter_map(|row| row.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..n).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            let padding = " ".repeat(widths[i] - cell.chars().count());
            line += &if i == 0 { format!("  {cell}{padding}") } else { format!("  {padding}{cell}") };
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// The whole plan.
pub fn text(plan: &Plan) -> String {
    let dtype = if plan.dtype == crate::Storage::F32 { "f32" } else { "bf16" };
    let mut out = format!(
        "{} ({}): {} parameters, {} tokens in sequences of {}, {dtype}, {}\n",
        plan.model,
        plan.model_type,
        magnitude(plan.parameters as f64),
        magnitude(plan.tokens as f64),
        plan.sequence,
        plan.optimizer
    );
    for hardware in &plan.hardware {
        out += &hardware_text(hardware, plan);
    }
    out
}

fn hardware_text(plan: &HardwarePlan, whole: &Plan) -> String {
    let device = &plan.hardware.device;
    let count = if plan.hardware.n > 1 { format!("{} x ", plan.hardware.n) } else { String::new() };
    let price = match device.price_per_hour {
        0.0 => String::new(),
        price => format!(", {:.2} $/h (an example: edit it)", price * plan.hardware.n as f64),
    };
    let mut out = format!(
        "\n{count}{}: {:.1} GiB, {} TFLOP/s bf16, {:.0} GB/s{price}; steps of {} tokens\n",
        device.name,
        device.memory_gib,
        if device.tflops_bf16 < 10.0 {
            format!("{:.3}", device.tflops_bf16)
        } else {
            format!("{:.0}", device.tflops_bf16)
        },
        device.bandwidth_gbs,
        magnitude(plan.step_tokens as f64)
    );
    out += &memory_text(plan, whole);
    out += &stages_text(plan);
    for method in plan.methods.iter().filter(|method| !method.layouts.is_empty()) {
        out += &layouts_text(method);
    }
    let largest = plan.largest.iter().map(|largest| match largest.model {
        Some(model) => {
            format!("{} {model} ({})", largest.method.name(), magnitude(largest.parameters as f64))
        }
        None => format!("{} none", largest.method.name()),
    });
    out += &format!("  largest known model that fits: {}\n", largest.collect::<Vec<_>>().join(", "));
    out += &match plan.recommended {
        Some(method) => format!("  recommended: {}\n", method.name()),
        None => "  recommended: none of these\n".to_owned(),
    };
    for reason in &plan.reasons {
        out += &format!("    - {reason}\n");
    }
    out
}

fn memory_text(plan: &HardwarePlan, whole: &Plan) -> String {
    let mut rows = vec![row(&["memory of a device"])];
    rows[0].extend(plan.methods.iter().map(|method| method.method.name().to_owned()));
    let mut add = |name: &str, cell: &dyn Fn(&MethodPlan) -> String| {
        let mut cells = vec![name.to_owned()];
        cells.extend(plan.methods.iter().map(cell));
        rows.push(cells);
    };
    add("trainable parameters", &|m| magnitude(m.trainable as f64));
    let known = |m: &MethodPlan, n: u64| {
        if m.fits || m.layouts.is_empty() && m.memory.weights > 0 { bytes(n) } else { "-".to_owned() }
    };
    add("weights", &|m| known(m, m.memory.weights));
    add("gradients", &|m| known(m, m.memory.gradients));
    add("optimizer state", &|m| known(m, m.memory.optimizer_state));
    add("activations", &|m| known(m, m.memory.activations));
    add("chunks of logits", &|m| known(m, m.memory.logits));
    add("peak", &|m| format!("{}{}", bytes(m.peak_bytes), if m.fits { "" } else { " !" }));
    add("blocks run again", &|m| if m.recompute { "yes" } else { "no" }.to_owned());
    let rollouts = format!("cache of {} rollouts", whole.rollout.concurrent);
    add(&rollouts, &|m| bytes(m.rollout.cache));
    grid(&rows)
}

fn stages_text(plan: &HardwarePlan) -> String {
    let mut rows = vec![row(&[
        "stage",
        "steps",
        "tokens/s",
        "training",
        "reference",
        "sampling",
        "time",
        "cost",
        "peak",
    ])];
    let part = |seconds: f64| if seconds == 0.0 { "-".to_owned() } else { duration(seconds) };
    for method in &plan.methods {
        for stage in &method.stages {
            let StagePlan { training_seconds, reference_seconds, sampling_seconds, .. } = *stage;
            let cost = if stage.cost > 0.0 && stage.cost.is_finite() {
                format!("{:.2} $", stage.cost)
            } else {
                "-".to_owned()
            };
            rows.push(vec![
                format!("{} {}", stage.kind, method.method.name()),
                stage.steps.to_string(),
                magnitude(stage.tokens_per_second),
                part(training_seconds),
                part(reference_seconds),
                part(sampling_seconds),
                duration(stage.seconds),
                cost,
                format!("{}{}", bytes(stage.peak_bytes), if stage.fits { "" } else { " !" }),
            ]);
        }
    }
    grid(&rows)
}

fn layouts_text(method: &MethodPlan) -> String {
    let name = format!("layouts, {}", method.method.name());
    let mut rows = vec![row(&[
        &name, "zero", "micro", "again", "memory", "step", "compute", "tensor", "pipe", "data", "bubble",
        "MFU",
    ])];
    for estimate in &method.layouts {
        let LayoutEstimate { layout, .. } = estimate;
        rows.push(vec![
            format!("data {} tensor {} pipeline {}", layout.data, layout.tensor, layout.pipeline),
            layout.zero.to_string(),
            format!("{} x {}", layout.micro_batches, layout.micro_sequences),
            if layout.recompute { "yes" } else { "no" }.to_owned(),
            bytes(estimate.memory.total()),
            duration(estimate.step_seconds),
            duration(estimate.compute_seconds),
            duration(estimate.tensor_seconds),
            duration(estimate.pipeline_seconds),
            duration(estimate.exposed_seconds),
            format!("{:.0} %", 100.0 * estimate.bubble),
            format!("{:.0} %", 100.0 * estimate.mfu),
        ]);
    }
    let mut out = grid(&rows);
    if let Some(best) = method.layouts.first() {
        for reason in &best.reasons {
            out += &format!("    - {reason}\n");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let rows = [row(&["a", "bb", "c"]), row(&["long", "x", "yyy"])];
        assert_eq!(grid(&rows), "  a     bb    c\n  long   x  yyy\n");
    }

    #[test]
    fn units() {
        assert_eq!(bytes(1 << 30), "1.00 GiB");
        assert_eq!(bytes(3 << 20), "3.0 MiB");
        assert_eq!(bytes(0), "0");
        assert_eq!(
            [duration(3.0), duration(600.0), duration(7200.0 * 10.0)],
            ["3.0 s", "10.0 min", "20.0 h"]
        );
        assert_eq!([magnitude(7.62e9), magnitude(1.35e8), magnitude(12.0)], ["7.62B", "135.0M", "12"]);
    }
}
