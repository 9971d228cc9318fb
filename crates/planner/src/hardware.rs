//! What steps run on: named devices from a table that users can edit, or this machine as measured.

use serde::{Deserialize, Serialize};

use crate::error::{PlannerError, Result};

/// The table that is built in.
pub const TABLE: &str = include_str!("hardware.toml");

/// One kind of device. Fields and units are explained at the head of [`TABLE`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Other names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Memory, GiB.
    pub memory_gib: f64,
    /// Memory bandwidth, GB/s.
    pub bandwidth_gbs: f64,
    /// Matrix products on bf16 operands, TFLOP/s.
    pub tflops_bf16: f64,
    /// Matrix products on f32 operands, TFLOP/s.
    pub tflops_f32: f64,
    /// Devices joined by the fast link.
    #[serde(default = "one")]
    pub per_node: usize,
    /// The fast link, GB/s per device and direction.
    #[serde(default = "slow_link")]
    pub link_gbs: f64,
    /// Between nodes, GB/s per device and direction.
    #[serde(default = "slow_network")]
    pub network_gbs: f64,
    /// Latency of a message over the link, microseconds.
    #[serde(default = "link_us")]
    pub link_us: f64,
    /// Latency of a message between nodes, microseconds.
    #[serde(default = "network_us")]
    pub network_us: f64,
    /// Share of the matrix peak that whole steps reach.
    pub efficiency: f64,
    /// Share of the bandwidth that decoding reaches.
    #[serde(default = "decode_efficiency")]
    pub decode_efficiency: f64,
    /// What driver and libraries take, GiB.
    #[serde(default = "overhead_gib")]
    pub overhead_gib: f64,
    /// US dollars per device and hour; an example to edit.
    #[serde(default)]
    pub price_per_hour: f64,
    /// Where the figures are from.
    #[serde(default)]
    pub source: String,
    /// Whether it is this machine, whose steps were measured part by part; see [`crate::time`].
    #[serde(skip)]
    pub is_this: bool,
}

fn one() -> usize {
    1
}
fn slow_link() -> f64 {
    25.0
}
fn slow_network() -> f64 {
    1.2
}
fn link_us() -> f64 {
    5.0
}
fn network_us() -> f64 {
    15.0
}
fn decode_efficiency() -> f64 {
    0.7
}
fn overhead_gib() -> f64 {
    1.0
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    hardware: Vec<Device>,
}

/// Devices and how many of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hardware {
    /// The kind.
    pub device: Device,
    /// How many.
    pub n: usize,
}

/// This machine's figures, as its caller measured them.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Memory that may be taken, bytes.
    pub memory_bytes: u64,
    /// Matrix products in f32, GFLOP/s.
    pub gflops_f32: f64,
    /// Matrix products in bf16, GFLOP/s.
    pub gflops_bf16: f64,
    /// Memory bandwidth, GB/s.
    pub bandwidth_gbs: f64,
}

impl Device {
    /// This machine.
    pub fn this(measured: Measured) -> Device {
        Device {
            name: "this machine".to_owned(),
            aliases: Vec::new(),
            memory_gib: measured.memory_bytes as f64 / GIB,
            bandwidth_gbs: measured.bandwidth_gbs,
            tflops_bf16: measured.gflops_bf16 / 1e3,
            tflops_f32: measured.gflops_f32 / 1e3,
            per_node: 1,
            link_gbs: slow_link(),
            network_gbs: slow_network(),
            link_us: link_us(),
            network_us: network_us(),
            efficiency: crate::time::CPU_MATRIX_EFFICIENCY,
            decode_efficiency: crate::time::CPU_DECODE_EFFICIENCY,
            overhead_gib: 0.1,
            price_per_hour: 0.0,
            source: "measured".to_owned(),
            is_this: true,
        }
    }

    /// Bytes that a step may use.
    pub fn usable_bytes(&self) -> u64 {
        ((self.memory_gib - self.overhead_gib).max(0.0) * GIB) as u64
    }

    fn answers_to(&self, name: &str) -> bool {
        std::iter::once(&self.name).chain(&self.aliases).any(|own| own.eq_ignore_ascii_case(name))
    }

    fn check(&self) -> std::result::Result<(), String> {
        let positive = [
            ("memory_gib", self.memory_gib),
            ("bandwidth_gbs", self.bandwidth_gbs),
            ("tflops_bf16", self.tflops_bf16),
            ("tflops_f32", self.tflops_f32),
            ("per_node", self.per_node as f64),
            ("link_gbs", self.link_gbs),
            ("network_gbs", self.network_gbs),
        ];
        if let Some((key, value)) = positive.iter().find(|(_, value)| !(*value > 0.0 && value.is_finite())) {
            return Err(format!("hardware `{}`: `{key}` is {value}, expected more than 0", self.name));
        }
        let shares = [("efficiency", self.efficiency), ("decode_efficiency", self.decode_efficiency)];
        if let Some((key, value)) = shares.iter().find(|(_, value)| !(*value > 0.0 && *value <= 1.0)) {
            return Err(format!("hardware `{}`: `{key}` is {value}, expected a share in (0, 1]", self.name));
        }
        let least = [
            ("link_us", self.link_us),
            ("network_us", self.network_us),
            ("overhead_gib", self.overhead_gib),
            ("price_per_hour", self.price_per_hour),
        ];
        match least.iter().find(|(_, value)| !(*value >= 0.0 && value.is_finite())) {
            Some((key, value)) => {
                Err(format!("hardware `{}`: `{key}` is {value}, expected 0 or more", self.name))
            }
            None => Ok(()),
        }
    }
}

pub(crate) const GIB: f64 = (1u64 << 30) as f64;

/// The built-in devices, with those of a user's table in front or in their place.
///
/// # Errors
/// [`PlannerError::HardwareTable`].
pub fn devices(user: Option<(&str, &str)>) -> Result<Vec<Device>> {
    let mut all = parse("the built-in hardware table", TABLE)?;
    if let Some((file, text)) = user {
        for device in parse(file, text)? {
            all.retain(|known| !known.answers_to(&device.name));
            all.push(device);
        }
    }
    Ok(all)
}

fn parse(file: &str, text: &str) -> Result<Vec<Device>> {
    let wrong = |problem: String| PlannerError::HardwareTable { file: file.to_owned(), problem };
    let table: Table = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
    table.hardware.iter().try_for_each(|device| device.check().map_err(wrong))?;
    Ok(table.hardware)
}

/// `NAME`, or `NAMExN` for N of them; `this` is not among them, since its caller measures it.
///
/// # Errors
/// [`PlannerError::UnknownHardware`] with the nearest name, [`PlannerError::Number`] for a count of 0.
pub fn find(asked: &str, devices: &[Device]) -> Result<Hardware> {
    // A whole name first: `RTX4090` is no 4090 times `RT`.
    let named = |name: &str| devices.iter().find(|device| device.answers_to(name)).cloned();
    if let Some(device) = named(asked.trim()) {
        return Ok(Hardware { device, n: 1 });
    }
    let (name, n) = split_count(asked);
    let Some(device) = named(name) else {
        let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        let hint = crate::shapes::hint(name, &names);
        return Err(PlannerError::UnknownHardware { name: name.to_owned(), hint });
    };
    check_count(n)?;
    Ok(Hardware { device, n })
}

/// `this`, or `thisxN`: how many, if this machine is meant.
///
/// # Errors
/// [`PlannerError::Number`]: there is one of it.
pub fn is_this(asked: &str) -> Result<bool> {
    let (name, n) = split_count(asked);
    if !["this", "cpu", "this-machine"].iter().any(|own| own.eq_ignore_ascii_case(name)) {
        return Ok(false);
    }
    match n {
        1 => Ok(true),
        n => Err(PlannerError::Number {
            what: "the number of this machine",
            found: n.to_string(),
            expected: "1: there is no other that was measured".to_owned(),
        }),
    }
}

fn check_count(n: usize) -> Result<()> {
    const MOST: usize = 1 << 17;
    match n {
        1..=MOST => Ok(()),
        n => Err(PlannerError::Number {
            what: "the number of devices",
            found: n.to_string(),
            expected: format!("1 to {MOST}"),
        }),
    }
}

fn split_count(asked: &str) -> (&str, usize) {
    let asked = asked.trim();
    let split = asked.rsplit_once(['x', 'X']).filter(|(name, _)| !name.is_empty());
    match split.and_then(|(name, n)| Some((name.trim(), n.trim().parse().ok()?))) {
        Some((name, n)) => (name, n),
        None => (asked, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_counts() {
        let devices = devices(None).unwrap();
        let check = |asked: &str, name: &str, n: usize| {
            let found = find(asked, &devices).unwrap_or_else(|error| panic!("{asked}: {error}"));
            assert_eq!((found.device.name.as_str(), found.n), (name, n), "{asked}");
        };
        check("H100", "H100", 1);
        check("h100x8", "H100", 8);
        check("A100", "A100-80GB", 1);
        check("a100-40 x 4", "A100-40GB", 4);
        check("RTX4090", "RTX-4090", 1);
        check("rtx4090x2", "RTX-4090", 2);
        check("MI300X", "MI300X", 1);
        check("MI300Xx8", "MI300X", 8);
        let refuse = |asked: &str, part: &str| {
            let message = find(asked, &devices).unwrap_err().to_string();
            assert!(message.contains(part), "{asked}: {message}");
        };
        refuse("H10O", "did you mean `H100`");
        refuse("H101x8", "did you mean `H100`");
        refuse("H100x0", "expected 1 to");
        assert!(is_this("this").unwrap() && is_this("CPU").unwrap() && !is_this("H100").unwrap());
        assert!(is_this("thisx2").is_err());
    }

    #[test]
    fn a_users_table_replaces_and_adds() {
        let own = |name: &str, extra: &str| {
            format!(
                "[[hardware]]\nname = \"{name}\"\nmemory_gib = 10\nbandwidth_gbs = 100\ntflops_bf16 = 1\ntflops_f32 = 1\n\
                 efficiency = 0.5\n{extra}"
            )
        };
        let n = devices(None).unwrap().len();
        let more = devices(Some(("mine", &own("TPU", "")))).unwrap();
        assert_eq!(more.len(), n + 1);
        let same = devices(Some(("mine", &own("H100", "price_per_hour = 9")))).unwrap();
        assert_eq!((same.len(), find("H100", &same).unwrap().device.price_per_hour), (n, 9.0));
        let refuse = |text: &str, part: &str| {
            let message = devices(Some(("mine.toml", text))).unwrap_err().to_string();
            assert!(message.contains("mine.toml") && message.contains(part), "{message}");
        };
        refuse(&own("X", "colour = 3"), "colour");
        refuse(&own("X", "price_per_hour = -1"), "price_per_hour");
        refuse(&own("X", "link_gbs = 0"), "link_gbs");
        refuse("[[hardware]]\nname = \"X\"", "memory_gib");
    }
}
