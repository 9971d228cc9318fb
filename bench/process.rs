//! What a benchmark says of its own process. Examples take this file in by its path.
#![allow(dead_code, reason = "each benchmark uses its own part of this file")]

/// The middle of some readings, the upper of two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Processor time of this process so far, where Linux tells: user and system ticks of a hundredth of a second.
pub fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.map(|t| t.parse::<f64>().unwrap_or(0.0)).sum::<f64>() / 100.0
}

/// The most memory the process has held, where Linux tells; otherwise 0.
pub fn peak_rss_bytes() -> u64 {
    of_status("VmHWM:")
}

/// The memory the process holds now, where Linux tells; otherwise 0.
pub fn rss_bytes() -> u64 {
    of_status("VmRSS:")
}

fn of_status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}
