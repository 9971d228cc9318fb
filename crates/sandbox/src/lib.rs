//! Runs untrusted programs where they can do no harm.
//!
//! [`Sandbox::new`] finds out what this kernel allows and refuses where that is not enough; [`Sandbox::run`] runs one
//! [`Job`] to its end; [`Sandbox::spawn`] starts a [`Session`], a long-lived program that answers requests.
//!
//! # Layers
//!
//! | layer | what it does | where it is missing |
//! | --- | --- | --- |
//! | mount namespace | the program sees `/usr` and the like read-only, an empty `/pt_job` of limited size, which is also its `/tmp` unless a readable path is below that, no `/proc`, `/sys`, `/home` | Landlock holds it to the same paths; the work folder is on the host's disk, and watched |
//! | PID namespace | it sees only its own processes, and all die with the first | it cannot leave its process group, which is killed |
//! | network, IPC, UTS namespaces | no interface, no shared memory of others | seccomp |
//! | seccomp | no sockets, `ptrace`, mounts, keys, shared memory, `bpf`, `io_uring`, nothing newer than Linux 6.10 | refused |
//! | Landlock | files, TCP, signals once more | fine where mounts are apart, else refused |
//! | another user | as root: a user that owns nothing and is no other job's | the caller's own user (in a user namespace where allowed) |
//! | limits | CPU time, memory, file size, processes, open files, core dumps | always there |
//! | watching | wall time, output, memory of all processes together, disk | always there |
//!
//! **Required**: seccomp, and either namespaces or Landlock of version 3 (Linux 6.2). Otherwise [`SandboxError::Unsupported`],
//! unless [`Limits::allow_unisolated`] says that the caller takes the risk.
//!
//! # What it does not stop
//!
//! - Flaws of the kernel in calls that are allowed, and of the processor (speculation, timing).
//! - Reading what every user may read under `/usr`, `/bin`, `/lib` and the paths a job lists as readable.
//! - Learning about the machine: its load, clock, kernel version, number of processors.
//! - Using all processors for as long as the limits allow: other jobs become slower. CPU time counts for each process.
//! - Memory: each process is held to [`Limits::memory_bytes`], and their sum is looked at every
//!   few milliseconds, not continuously (no control group is used). Between two looks it can be more.
//! - Without namespaces and as the caller's own user: learning names and metadata of files outside (`stat`), which Landlock does
//!   not refuse; changing modes, owners and times is refused by seccomp, in the work folder too.
//! - Without namespaces: the host's `/usr` and such are the same, the work folder is on a real disk, and the limit on processes
//!   counts all processes of the user.
//!
//! The program is the first process of its PID namespace: signals it sends to itself without having a handler do nothing, as
//! for any `init` (`abort` still ends it, by `SIGSEGV`), and orphans are not waited for.
//!
//! [`Sandbox::spawn`]: Sandbox::spawn

#![cfg_attr(
    target_os = "linux",
    allow(unsafe_code, reason = "namespaces, seccomp and Landlock are reached by system calls alone")
)]

use std::path::PathBuf;
use std::time::Duration;

#[cfg(target_os = "linux")]
mod landlock;
#[cfg(target_os = "linux")]
mod launch;
#[cfg(target_os = "linux")]
mod plan;
#[cfg(target_os = "linux")]
mod run;
#[cfg(not(target_os = "linux"))]
#[path = "elsewhere.rs"]
mod run;
#[cfg(target_os = "linux")]
mod seccomp;
#[cfg(target_os = "linux")]
mod session;

pub use run::{Sandbox, Session};

/// What a job may use. Sizes in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Time on the clock.
    pub wall: Duration,
    /// CPU time of each process, in whole seconds (rounded up).
    pub cpu: Duration,
    /// Data of each process, and what all of them hold together.
    pub memory_bytes: u64,
    /// Addresses of each process, mapped memory included; `None` for programs that reserve much more than they use (node).
    pub address_bytes: Option<u64>,
    /// Standard output and standard error together.
    pub output_bytes: usize,
    /// All files it writes.
    pub disk_bytes: u64,
    /// Processes and threads at one time.
    pub processes: u64,
    /// Open files of each process.
    pub open_files: u64,
    /// Runs even where the required layers are missing. What is missing then protects nothing.
    pub allow_unisolated: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            wall: Duration::from_secs(10),
            cpu: Duration::from_secs(10),
            memory_bytes: 512 << 20,
            address_bytes: Some(2 << 30),
            output_bytes: 1 << 20,
            disk_bytes: 64 << 20,
            processes: 32,
            open_files: 128,
            allow_unisolated: false,
        }
    }
}

/// A program to run. It starts in an empty folder it may write, with an environment of `PATH`, `HOME`, `TMPDIR`, `LANG` and
/// what is listed here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Job {
    /// An absolute path, or a name to look for in `/usr/local/bin`, `/usr/bin` and `/bin`.
    pub program: PathBuf,
    /// What comes after the program's name.
    pub args: Vec<String>,
    /// What it reads.
    pub stdin: Vec<u8>,
    /// Files in its folder: a relative path without `..`, and content.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// More variables of its environment.
    pub env: Vec<(String, String)>,
    /// More files and folders of the host it may read and run; absolute paths.
    pub readable: Vec<PathBuf>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal, which was not ours.
    Signalled(i32),
    /// It used up its time, on the clock or the processor.
    TimedOut,
    /// It wrote more than it may.
    OutputLimit,
    /// Its processes together held more memory than they may. (A single allocation beyond the limit fails within the program.)
    MemoryLimit,
    /// Its files took more than they may. (Where its folder is a file system of its own, writing fails within the program.)
    DiskLimit,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Status::Exited(code) => write!(f, "exited with {code}"),
            Status::Signalled(signal) => write!(f, "ended by signal {signal}"),
            Status::TimedOut => f.write_str("out of time"),
            Status::OutputLimit => f.write_str("wrote too much"),
            Status::MemoryLimit => f.write_str("out of memory"),
            Status::DiskLimit => f.write_str("filled its disk"),
        }
    }
}

/// What came of a job. When this is returned, no process of the job is left.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// What it wrote to standard output, up to the limit.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error, up to the limit.
    pub stderr: Vec<u8>,
    /// Whether it wrote more than was kept.
    pub is_truncated: bool,
    /// Time on the clock.
    pub wall: Duration,
    /// CPU time of its first process and the children that one waited for.
    pub cpu: Duration,
    /// The most memory its first process, or a child that one waited for, held at one time.
    pub peak_bytes: u64,
}

impl Outcome {
    /// Whether it exited with 0.
    pub fn is_success(&self) -> bool {
        self.status == Status::Exited(0)
    }
}

/// What answered a request to a [`Session`].
#[derive(Clone, Debug, PartialEq)]
pub enum Exchange {
    /// The program's answer.
    Answer(Vec<u8>),
    /// No answer within the time; the program was killed.
    TimedOut,
    /// Its processes held too much memory; the program was killed.
    MemoryLimit,
    /// The answer was longer than the limit on output; the program was killed.
    OutputLimit,
    /// The program ended or broke off.
    Closed,
}

/// What is in force on this machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Capabilities {
    /// A root folder of its own.
    pub mount_namespace: bool,
    /// Processes of its own.
    pub pid_namespace: bool,
    /// No network interface, besides the refusal of sockets.
    pub network_namespace: bool,
    /// A user namespace gives the right to make the others.
    pub user_namespace: bool,
    /// Runs as a user that owns nothing.
    pub other_user: bool,
    /// The filter of system calls.
    pub seccomp: bool,
    /// Version of Landlock, 0 for none.
    pub landlock: u32,
    /// What is not there, and why, one line each.
    pub missing: Vec<String>,
}

impl Capabilities {
    /// Whether untrusted code may run: seccomp, and namespaces or Landlock of version 3.
    pub fn is_isolated(&self) -> bool {
        self.seccomp && (self.mount_namespace && self.pid_namespace || self.landlock >= 3)
    }

    /// One line per layer: its name, and what is in force.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let yes = |is: bool, text: &str| if is { text.to_owned() } else { format!("not {text}") };
        vec![
            ("files", yes(self.mount_namespace, "in a root of its own")),
            ("processes", yes(self.pid_namespace, "in a PID namespace of its own")),
            (
                "network",
                format!("no sockets, {}", yes(self.network_namespace, "in a namespace without interfaces")),
            ),
            ("user", yes(self.other_user || self.user_namespace, "the user who calls")),
            ("seccomp", yes(self.seccomp, "in force")),
            (
                "Landlock",
                if self.landlock > 0 { format!("version {}", self.landlock) } else { "none".into() },
            ),
        ]
    }
}

/// Why a sandbox cannot be had, or a job not be started.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// This machine cannot isolate.
    #[error(
        "untrusted programs cannot be isolated here: {missing}; required are seccomp and either namespaces or Landlock \
         version 3 (Linux 6.2); use a machine or container that allows them, or allow running without isolation explicitly"
    )]
    Unsupported {
        /// What is missing.
        missing: String,
    },
    /// A job that cannot be meant.
    #[error("the job's {field} `{value}` is {problem}")]
    Job {
        /// Which part of it.
        field: &'static str,
        /// What was found.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The program could not be executed inside the sandbox.
    #[error("`{program}` cannot be run inside the sandbox ({source}); is it below a readable path?")]
    Program {
        /// The program.
        program: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A layer that worked when the sandbox was made failed now.
    #[error("confining a program failed at {step} ({source})")]
    Confine {
        /// What was being done.
        step: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The caller's side failed.
    #[error("{what} failed ({source})")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}
