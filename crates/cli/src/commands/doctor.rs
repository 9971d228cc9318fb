//! `posttrain doctor`: what this machine offers, measured.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use half::bf16;
use pt_kernels::gemm::{Epilogue, Operand, Output, Part, Precision, Right, Values, gemm, pack_left};
use pt_kernels::isa::{self, Isa};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::Context;
use crate::ui::{self, Style, Table};

/// Time for each of the measurements.
const BUDGET: Duration = Duration::from_millis(330);
/// Shape of the measured product, that of a small model's feed-forward layer: tokens, outputs, inputs.
const SHAPE: (usize, usize, usize) = (1024, 1536, 576);
/// Bytes read to measure the memory: more than any cache holds, or the part of what is free that is safe to take.
const MEMORY_BYTES: usize = 512 << 20;
const GIB: f64 = (1u64 << 30) as f64;

const HELP: &str = "\
Takes about a second. The figures say what to expect: a training step does about 6 operations per weight and token \
(4 with an adapter), and a single reply reads every weight once per token.

Examples:
  posttrain doctor
  posttrain doctor --threads 1
  posttrain doctor --json | jq .gflops_bf16";

/// Options of `doctor`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// As a JSON object
    #[arg(long)]
    json: bool,
}

/// What was found.
struct Report {
    version: &'static str,
    system: String,
    processor: String,
    cores: usize,
    threads: usize,
    memory: Option<Memory>,
    gflops: [f64; 2],
    gigabytes_per_s: f64,
    gpu: String,
    hub_cache: Place,
    cache: Place,
    temporary: Place,
    sandbox: pt_sandbox::Capabilities,
}

/// Bytes of main memory.
#[derive(Clone, Copy)]
struct Memory {
    total: u64,
    available: u64,
    /// What the control group allows, where that is less.
    limit: Option<u64>,
}

/// A folder and whether it can be written.
struct Place {
    path: Option<String>,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Writable,
    /// Not there, and it can be made.
    Absent,
    ReadOnly,
    Unknown,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let report = examine(context);
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report.to_json())?)?;
    } else {
        write!(out, "{}", report.to_text(context))?;
    }
    Ok(())
}

fn examine(context: &Context) -> Report {
    let memory = memory();
    let free = memory.map_or(usize::MAX, |memory| (memory.usable() / 4) as usize);
    let hub = context.environment.hf_home.as_ref().map(|home| home.join("hub"));
    let cache = context.environment.surroundings().cache_dir;
    Report {
        version: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        processor: processor(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        threads: rayon::current_num_threads(),
        memory,
        gflops: [Precision::F32, Precision::Bf16].map(gflops),
        gigabytes_per_s: gigabytes_per_s(MEMORY_BYTES.min(free)),
        gpu: gpu(),
        hub_cache: Place::of(hub.as_deref()),
        cache: Place::of(cache.as_deref()),
        temporary: Place::of(Some(&std::env::temp_dir())),
        sandbox: pt_sandbox::Sandbox::examine(),
    }
}

impl Memory {
    /// What a run can take now.
    fn usable(self) -> u64 {
        self.limit.map_or(self.available, |limit| limit.min(self.available))
    }
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    name.unwrap_or("unknown").to_owned()
}

fn memory() -> Option<Memory> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let bytes = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    };
    let group = |name: &str| {
        let text = std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let left = group("memory.max").map(|max| max.saturating_sub(group("memory.current").unwrap_or(0)));
    Some(Memory { total: bytes("MemTotal")?, available: bytes("MemAvailable")?, limit: left })
}

fn gpu() -> String {
    let driver = Path::new("/proc/driver/nvidia/version").exists();
    let found = if driver { "an NVIDIA driver is here, but " } else { "" };
    format!("{found}not used: this program is built for the CPU")
}

/// Calls `work` until the time is up, at least twice, and returns the shortest time in seconds.
fn best_seconds(mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    let (mut best, mut n) = (f64::MAX, 0);
    while n < 2 || start.elapsed() < BUDGET {
        let one = Instant::now();
        work();
        best = best.min(one.elapsed().as_secs_f64());
        n += 1;
    }
    best
}

/// Billions of additions and multiplications per second in a product of matrices.
pub(super) fn gflops(precision: Precision) -> f64 {
    let (m, n, k) = SHAPE;
    let (a, b) = (vec![0.5f32; m * k], vec![0.25f32; n * k]);
    let narrow = |values: &[f32]| values.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
    let (a16, b16) = (narrow(&a), narrow(&b));
    let (mut out, mut out16) = (vec![0.0f32; m * n], vec![bf16::ZERO; m * n]);
    let seconds = best_seconds(|| {
        let (left, right, out) = match precision {
            Precision::F32 => (Values::F32(&a), Values::F32(&b), Output::F32(&mut out, n)),
            Precision::Bf16 => (Values::Bf16(&a16), Values::Bf16(&b16), Output::Bf16(&mut out16, n)),
        };
        let left = pack_left(&Operand::k_inner(left, k), m, k, precision);
        let part = Part { a: &left, b: Right::Operand(Operand::k_inner(right, k)) };
        gemm(m, n, &[part], out, Epilogue::default(), precision);
    });
    2.0 * (m * n * k) as f64 / seconds / 1e9
}

/// Billions of bytes read per second by all threads together.
pub(super) fn gigabytes_per_s(n_bytes: usize) -> f64 {
    let values = vec![1u64; (n_bytes / 8).max(1)];
    let mut total = 0;
    let seconds = best_seconds(|| {
        total = values
            .par_chunks(1 << 17)
            .map(|chunk| chunk.iter().fold(0u64, |a, b| a.wrapping_add(*b)))
            .sum::<u64>();
    });
    assert_eq!(total as usize, values.len(), "every value was read");
    (values.len() * 8) as f64 / seconds / 1e9
}

impl Place {
    fn of(path: Option<&Path>) -> Place {
        let Some(path) = path else { return Place { path: None, state: State::Unknown } };
        // A folder that is not there can be made if the nearest one that is can be written.
        let there = path.ancestors().find(|ancestor| ancestor.is_dir());
        let state = match there {
            Some(folder) if !can_write(folder) => State::ReadOnly,
            Some(folder) if folder == path => State::Writable,
            Some(_) => State::Absent,
            None => State::Unknown,
        };
        Place { path: Some(path.display().to_string()), state }
    }

    fn to_text(&self, style: Style) -> String {
        let path = self.path.as_deref().unwrap_or("unknown: neither HF_HOME nor a home folder is known");
        let state = match self.state {
            State::Writable => style.good("writable"),
            State::Absent => style.good("not there yet, can be made"),
            State::ReadOnly => style.warning("cannot be written"),
            State::Unknown => style.warning("cannot be examined"),
        };
        format!("{path} ({state})")
    }

    fn to_json(&self) -> Value {
        json!({"path": self.path, "writable": matches!(self.state, State::Writable | State::Absent)})
    }
}

/// Tries it: permissions, quotas and read-only mounts all have their say.
fn can_write(folder: &Path) -> bool {
    let probe = folder.join(format!(".posttrain-doctor-{}", std::process::id()));
    let written = std::fs::File::options().write(true).create_new(true).open(&probe).is_ok();
    if written {
        let _ = std::fs::remove_file(&probe);
    }
    written
}

fn sandbox_verdict(found: &pt_sandbox::Capabilities, style: Style) -> String {
    match found.is_isolated() {
        true => style.good("untrusted programs (rewards that run code) are isolated"),
        false => style.warning("untrusted programs are refused: this machine cannot isolate them"),
    }
}

fn sandbox_json(found: &pt_sandbox::Capabilities) -> Value {
    json!({
        "isolated": found.is_isolated(),
        "mount_namespace": found.mount_namespace,
        "pid_namespace": found.pid_namespace,
        "network_namespace": found.network_namespace,
        "user_namespace": found.user_namespace,
        "other_user": found.other_user,
        "seccomp": found.seccomp,
        "landlock": found.landlock,
        "missing": found.missing,
    })
}

impl Report {
    fn to_text(&self, context: &Context) -> String {
        let style = context.style;
        let width = ui::screen_width(&context.environment);
        let mut table = Table::new(2);
        table.row("version", format!("posttrain {} on {}", self.version, self.system));
        table.row("processor", &self.processor);
        let names = |isas: Vec<Isa>| isas.into_iter().map(Isa::name).collect::<Vec<_>>().join(", ");
        let found = names(Isa::ALL.into_iter().filter(|isa| *isa <= isa::best()).collect());
        table.row("instructions", format!("{} in use; found: {found}", style.good(isa::current().name())));
        table.row("cores", format!("{}, computing with {}", self.cores, ui::counted(self.threads, "thread")));
        if let Some(memory) = self.memory {
            let limit = memory.limit.map_or_else(String::new, |limit| {
                format!("; this process group may take {:.1} GiB more", limit as f64 / GIB)
            });
            let [total, available] = [memory.total, memory.available].map(|bytes| bytes as f64 / GIB);
            table.row("memory", format!("{total:.1} GiB, {available:.1} GiB free{limit}"));
        }
        let [f32, bf16] = self.gflops;
        table.row("f32", format!("{f32:.0} GFLOP/s in matrix products"));
        table.row("bf16", format!("{bf16:.0} GFLOP/s in matrix products"));
        table.row("bandwidth", format!("{:.1} GB/s read from memory", self.gigabytes_per_s));
        table.row("GPU", &self.gpu);
        table.row("hub cache", self.hub_cache.to_text(style));
        table.row("token cache", self.cache.to_text(style));
        table.row("temporary", self.temporary.to_text(style));
        table.row("sandbox", sandbox_verdict(&self.sandbox, style));
        for (layer, state) in self.sandbox.rows() {
            table.row(format!("  {layer}"), state);
        }
        for missing in &self.sandbox.missing {
            table.row("  missing", missing);
        }
        let terminal = if io::stdout().is_terminal() {
            format!("{width} columns")
        } else {
            "none, output is piped".to_owned()
        };
        let colours = if style.has_colours() { "colours" } else { "no colours" };
        table.row("terminal", format!("{terminal}, {colours}"));
        let expect = format!(
            "Expect about {:.0} tokens/s when training 135 million weights in bf16, and {:.0} tokens/s for one reply of \
             such a model.",
            bf16 * 1e9 / (6.0 * 135e6),
            self.gigabytes_per_s * 1e9 / (2.0 * 135e6)
        );
        let expect: Vec<String> =
            ui::wrap(&expect, width - 2).iter().map(|line| format!("  {line}\n")).collect();
        format!("{}{}", table.render(width, style), style.dim(&expect.concat()))
    }

    fn to_json(&self) -> Value {
        let isas: Vec<&str> = Isa::ALL.into_iter().filter(|isa| *isa <= isa::best()).map(Isa::name).collect();
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| drop(map.insert(key.to_owned(), value));
        put("version", json!(self.version));
        put("system", json!(self.system));
        put("processor", json!(self.processor));
        put("isa", json!(isa::current().name()));
        put("isas", json!(isas));
        put("cores", json!(self.cores));
        put("threads", json!(self.threads));
        put("memory_bytes", json!(self.memory.map(|memory| memory.total)));
        put("memory_available_bytes", json!(self.memory.map(Memory::usable)));
        put("gflops_f32", json!(self.gflops[0]));
        put("gflops_bf16", json!(self.gflops[1]));
        put("gigabytes_per_s", json!(self.gigabytes_per_s));
        put("gpu", json!(null));
        put("hub_cache", self.hub_cache.to_json());
        put("token_cache", self.cache.to_json());
        put("temporary", self.temporary.to_json());
        put("sandbox", sandbox_json(&self.sandbox));
        Value::Object(map)
    }
}
