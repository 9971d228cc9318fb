//! The environment variables this program reads, each with its one meaning. No other file reads any.

use std::path::PathBuf;

use pt_pipeline::Surroundings;

/// What was found in the environment. A variable that is empty counts as not set.
#[derive(Clone)]
pub(crate) struct Environment {
    /// `HF_HOME`, or the default of the Hugging Face tools: `huggingface` in the cache folder.
    pub(crate) hf_home: Option<PathBuf>,
    /// `HF_HUB_OFFLINE` is set to 1 or true, or `--offline` was given: nothing is downloaded.
    pub(crate) offline: bool,
    /// `HF_ENDPOINT`: another hub than the public one.
    pub(crate) hf_endpoint: Option<String>,
    /// `HF_TOKEN`, or what `hf auth login` left in `$HF_HOME/token`.
    pub(crate) hf_token: Option<String>,
    /// `HTTPS_PROXY`, or `https_proxy`.
    pub(crate) https_proxy: Option<String>,
    /// `XDG_CACHE_HOME`, or `.cache` in the home folder.
    pub(crate) cache_home: Option<PathBuf>,
    /// `NO_COLOR` is set (no-color.org).
    pub(crate) no_color: bool,
    /// `COLUMNS`: the width of the terminal, where that is not known.
    pub(crate) columns: Option<usize>,
}

impl Environment {
    /// Reads the environment.
    pub(crate) fn read() -> Environment {
        let get = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let home = std::env::home_dir();
        let cache_home = get("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(home?.join(".cache")));
        let hf_default = cache_home.as_ref().map(|cache| cache.join("huggingface"));
        let hf_home = get("HF_HOME").map(PathBuf::from).or(hf_default);
        let text = |name: &str| get(name).and_then(|value| value.into_string().ok());
        let stored = || std::fs::read_to_string(hf_home.as_ref()?.join("token")).ok();
        let token = text("HF_TOKEN").or_else(stored).map(|token| token.trim().to_owned());
        Environment {
            offline: text("HF_HUB_OFFLINE").is_some_and(|value| {
                ["1", "true", "TRUE", "True", "ON", "on", "YES", "yes"].contains(&&*value)
            }),
            hf_endpoint: text("HF_ENDPOINT"),
            hf_token: token.filter(|token| !token.is_empty()),
            https_proxy: text("HTTPS_PROXY").or_else(|| text("https_proxy")),
            hf_home,
            cache_home,
            no_color: get("NO_COLOR").is_some(),
            columns: get("COLUMNS").and_then(|value| value.to_str()?.parse().ok()).filter(|n| *n > 0),
        }
    }

    /// What the pipeline is told of it.
    pub(crate) fn surroundings(&self) -> Surroundings {
        Surroundings {
            hf_home: self.hf_home.clone(),
            cache_dir: self.cache_home.as_ref().map(|cache| cache.join("posttrain")),
            memory_bytes: available_memory_bytes(),
        }
    }
}

/// Memory that a program may take now without pushing others out, where the system says so.
pub(crate) fn available_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// `runs/NAME`, or `runs/NAME-2` and so on, the first that is not there.
pub(crate) fn default_run_folder(name: &str) -> PathBuf {
    let root = PathBuf::from("runs");
    let numbered = (2..).map(|n| root.join(format!("{name}-{n}")));
    std::iter::once(root.join(name))
        .chain(numbered)
        .find(|path| !path.exists())
        .expect("there are endless numbers")
}
