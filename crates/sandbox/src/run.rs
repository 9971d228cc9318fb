//! Running a job to its end, under watch.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::launch::{self, Failure, Process};
use crate::plan::{Layers, Setting, describe, plan};
use crate::{Capabilities, Job, Limits, Outcome, SandboxError, Status};

pub use crate::session::Session;

/// Time between two looks at a job's memory and disk.
const TICK: Duration = Duration::from_millis(25);

/// A place to run untrusted programs in. It can be shared by threads, and what a job gets does not depend on other jobs.
#[derive(Debug)]
pub struct Sandbox {
    pub(crate) limits: Limits,
    pub(crate) layers: Layers,
    capabilities: Capabilities,
}

/// A started job.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) process: Process,
    /// Its work folder on the host, where it has one; removed with this.
    folder: Option<tempfile::TempDir>,
    is_tree_bound: bool,
    is_waited_for: bool,
}

/// Our ends of a program's first three descriptors.
pub(crate) struct Ends {
    pub(crate) stdin: Option<File>,
    pub(crate) stdout: File,
    pub(crate) stderr: Option<File>,
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> SandboxError {
    move |source| SandboxError::Io { what, source }
}

impl Sandbox {
    /// Finds out which layers work here.
    ///
    /// # Errors
    /// [`SandboxError::Unsupported`] where the required ones do not and [`Limits::allow_unisolated`] is not set.
    pub fn new(limits: Limits) -> Result<Sandbox, SandboxError> {
        let (layers, capabilities) = Layers::examine();
        if !capabilities.is_isolated() && !limits.allow_unisolated {
            return Err(SandboxError::Unsupported { missing: capabilities.missing.join("; ") });
        }
        Ok(Sandbox { limits, layers, capabilities })
    }

    /// What would be in force, for people.
    pub fn examine() -> Capabilities {
        Layers::examine().1
    }

    /// The same without namespaces, as on machines that allow none.
    ///
    /// # Errors
    /// As [`Sandbox::new`].
    #[doc(hidden)]
    pub fn without_namespaces(limits: Limits) -> Result<Sandbox, SandboxError> {
        let mut sandbox = Sandbox::new(limits)?;
        sandbox.layers.namespaces = false;
        sandbox.layers.user_namespace = false;
        let all = &mut sandbox.capabilities;
        (all.mount_namespace, all.pid_namespace, all.network_namespace) = (false, false, false);
        all.user_namespace = false;
        all.missing.push("namespaces: not wanted".to_owned());
        if !all.is_isolated() {
            return Err(SandboxError::Unsupported { missing: all.missing.join("; ") });
        }
        Ok(sandbox)
    }

    /// What is in force.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// What jobs may use.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Runs a job until it ends or a limit ends it. No process of it is left afterwards.
    ///
    /// # Errors
    /// A job that cannot be meant, a program that cannot be started, or a failure of the machine (no more processes, ...).
    /// Whatever the program does is an [`Outcome`].
    pub fn run(&self, job: &Job) -> Result<Outcome, SandboxError> {
        let start = Instant::now();
        let (mut started, ends) = self.start(job, false)?;
        let mut watch = Watch {
            stdin: job.stdin.as_slice(),
            ends: [Some(ends.stdout), ends.stderr],
            kept: [Vec::new(), Vec::new()],
            room: self.limits.output_bytes,
            is_truncated: false,
        };
        let verdict = watch.until_end(&started, ends.stdin, start + self.limits.wall, &self.limits);
        let (wait_status, usage) = started.end().map_err(io_error("waiting for a program"))?;
        watch.drain();
        let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
        let cpu = time(usage.ru_utime) + time(usage.ru_stime);
        let status = verdict.unwrap_or_else(|| self.status(wait_status, cpu, watch.is_truncated));
        let [stdout, stderr] = watch.kept;
        Ok(Outcome {
            status,
            stdout,
            stderr,
            is_truncated: watch.is_truncated,
            wall: start.elapsed(),
            cpu,
            peak_bytes: usage.ru_maxrss as u64 * 1024,
        })
    }

    /// How a program that was not stopped ended.
    fn status(&self, wait_status: i32, cpu: Duration, is_truncated: bool) -> Status {
        if is_truncated {
            return Status::OutputLimit;
        }
        if libc::WIFEXITED(wait_status) {
            return Status::Exited(libc::WEXITSTATUS(wait_status));
        }
        match libc::WTERMSIG(wait_status) {
            // The kernel holds the limit against a count of ticks, and reports a precise time; the two can differ much.
            libc::SIGKILL | libc::SIGXCPU if cpu * 2 >= self.limits.cpu => Status::TimedOut,
            signal => Status::Signalled(signal),
        }
    }

    /// Starts it with pipes.
    pub(crate) fn start(&self, job: &Job, is_session: bool) -> Result<(Started, Ends), SandboxError> {
        let piped = io_error("making a pipe");
        let null = |write: bool| -> io::Result<OwnedFd> {
            let file = File::options().read(!write).write(write).open("/dev/null")?;
            launch::above_standard(file.into())
        };
        let ours = |end: OwnedFd| -> io::Result<File> {
            launch::set_nonblocking(&end)?;
            Ok(File::from(end))
        };
        let (stdin, stdin_end) = match is_session || !job.stdin.is_empty() {
            true => {
                let (read, write) = launch::pipe().map_err(&piped)?;
                (read, Some(ours(write).map_err(&piped)?))
            }
            false => (null(false).map_err(&piped)?, None),
        };
        let (stdout_end, stdout) = launch::pipe().map_err(&piped)?;
        let (stderr_end, stderr) = match is_session {
            true => (None, null(true).map_err(&piped)?),
            false => {
                let (read, write) = launch::pipe().map_err(&piped)?;
                (Some(ours(read).map_err(&piped)?), write)
            }
        };
        let folder = match self.layers.namespaces {
            true => None,
            false => Some(tempfile::tempdir().map_err(io_error("making a temporary folder"))?),
        };
        let setting = Setting {
            layers: &self.layers,
            limits: &self.limits,
            folder: folder.as_ref().map(tempfile::TempDir::path),
            standard: [stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()],
            is_session,
        };
        let launch = plan(job, &setting)?;
        let process = launch::start(&launch).map_err(|failure| {
            let Failure { step, at_exec, error: source } = failure;
            if at_exec {
                return SandboxError::Program {
                    program: launch.program.to_string_lossy().into_owned(),
                    source,
                };
            }
            let step = step.and_then(|i| launch.steps.get(i));
            SandboxError::Confine { step: step.map_or("starting a process".to_owned(), describe), source }
        })?;
        let is_tree_bound = self.layers.namespaces;
        let started = Started { process, folder, is_tree_bound, is_waited_for: false };
        let stdout = ours(stdout_end).map_err(&piped)?;
        Ok((started, Ends { stdin: stdin_end, stdout, stderr: stderr_end }))
    }
}

impl Started {
    /// Kills what is left and waits.
    pub(crate) fn end(&mut self) -> io::Result<(i32, libc::rusage)> {
        launch::kill(&self.process);
        if !self.is_tree_bound {
            // The first process is dead or dying but not waited for, so that its number, the group's, is still its own.
            launch::kill_group(&self.process);
        }
        self.is_waited_for = true;
        let end = launch::wait(&self.process);
        if !self.is_tree_bound {
            self.await_group();
        }
        end
    }

    /// Orphans of a killed group die soon, but have somebody else for parent, who may be slow to bury them.
    fn await_group(&self) {
        for _ in 0..10_000 {
            if !launch::has_group(&self.process) || !has_living(self.process.pid) {
                return;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// What its limits on memory and disk say at this moment.
    pub(crate) fn excess(&self, limits: &Limits) -> Option<Status> {
        let (members, bytes) = resident(self.process.pid, !self.is_tree_bound);
        // The cheap sum counts shared pages again and again; the dear one is asked for only then.
        let is_over = |bytes: u64| bytes > limits.memory_bytes;
        if is_over(bytes) && is_over(members.iter().map(proportional_bytes).sum()) {
            return Some(Status::MemoryLimit);
        }
        let folder = self.folder.as_ref()?;
        let mut n_left = 100_000;
        (disk_bytes(folder.path(), &mut n_left) > limits.disk_bytes || n_left == 0)
            .then_some(Status::DiskLimit)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if !self.is_waited_for {
            let _ = self.end();
        }
    }
}

/// What passes between us and the program.
struct Watch<'a> {
    stdin: &'a [u8],
    ends: [Option<File>; 2],
    kept: [Vec<u8>; 2],
    room: usize,
    is_truncated: bool,
}

impl Watch<'_> {
    /// Passes data on until the first process ended (`None`) or a limit is reached.
    fn until_end(
        &mut self,
        started: &Started,
        mut stdin: Option<File>,
        deadline: Instant,
        limits: &Limits,
    ) -> Option<Status> {
        let mut next_look = Instant::now() + TICK;
        loop {
            let now = Instant::now();
            if now >= deadline {
                return Some(Status::TimedOut);
            }
            if now >= next_look {
                next_look = now + TICK;
                if let Some(status) = started.excess(limits) {
                    return Some(status);
                }
            }
            if self.is_truncated {
                return Some(Status::OutputLimit);
            }
            let number = |file: &Option<File>| file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
            let fds = [
                (started.process.pidfd.as_raw_fd(), libc::POLLIN),
                (number(&self.ends[0]), libc::POLLIN),
                (number(&self.ends[1]), libc::POLLIN),
                (number(&stdin), libc::POLLOUT),
            ];
            let pause = next_look.min(deadline).saturating_duration_since(now);
            let ready = launch::poll(&fds, pause.as_millis() as i32 + 1);
            for i in 0..2 {
                if ready[i + 1] != 0 {
                    self.read(i);
                }
            }
            if ready[0] != 0 {
                return None;
            }
            if ready[3] != 0 {
                let file = stdin.as_mut().expect("polled");
                match file.write(self.stdin) {
                    Ok(n) => self.stdin = &self.stdin[n..],
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    // It reads no more.
                    Err(_) => self.stdin = &[],
                }
                if self.stdin.is_empty() {
                    stdin = None;
                }
            }
        }
    }

    /// Reads what is there; whether there may be more.
    fn read(&mut self, i: usize) -> bool {
        let Some(file) = &mut self.ends[i] else { return false };
        let mut buffer = [0; 1 << 16];
        match file.read(&mut buffer) {
            Ok(0) => self.ends[i] = None,
            Ok(n) => {
                let kept = n.min(self.room);
                self.kept[i].extend_from_slice(&buffer[..kept]);
                self.room -= kept;
                self.is_truncated |= kept < n;
                return true;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.ends[i] = None,
        }
        false
    }

    /// What was still in the pipes when the last process was gone.
    fn drain(&mut self) {
        for i in 0..2 {
            while !self.is_truncated && self.read(i) {}
        }
    }
}

/// Parent, group, state, and resident pages of a process.
fn stat(pid: i32) -> Option<(i32, i32, u8, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |i: usize| fields.get(i).and_then(|field| field.parse::<i64>().ok()).unwrap_or(0);
    let state = fields.first().and_then(|field| field.bytes().next()).unwrap_or(b'?');
    Some((number(1) as i32, number(2) as i32, state, number(21).max(0) as u64))
}

/// All processes there are.
fn pids() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Whether the group has a process that is neither dead nor buried.
fn has_living(group: i32) -> bool {
    let living =
        |pid| stat(pid).is_some_and(|(_, of, state, _)| of == group && !matches!(state, b'Z' | b'X'));
    pids().into_iter().any(living)
}

/// The process and its descendants (and its group, if `with_group`) with the memory they hold, shared pages counted for each.
fn resident(root: i32, with_group: bool) -> (Vec<(i32, u64)>, u64) {
    let mut all: Vec<(i32, i32, u64)> = Vec::new();
    let mut members = HashSet::from([root]);
    for pid in pids() {
        let Some((parent, group, _, pages)) = stat(pid) else { continue };
        if with_group && group == root {
            members.insert(pid);
        }
        all.push((pid, parent, pages));
    }
    loop {
        let n = members.len();
        for (pid, parent, _) in &all {
            if members.contains(parent) {
                members.insert(*pid);
            }
        }
        if members.len() == n {
            break;
        }
    }
    let page = page_bytes();
    let all = all.into_iter().filter(|(pid, ..)| members.contains(pid));
    let all: Vec<(i32, u64)> = all.map(|(pid, _, pages)| (pid, pages * page)).collect();
    let sum = all.iter().map(|(_, bytes)| bytes).sum();
    (all, sum)
}

/// Memory of a process where a page that n processes share counts 1/n for each; what it holds where that is not told.
fn proportional_bytes((pid, resident): &(i32, u64)) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map_or(*resident, |kib| kib * 1024)
}

fn page_bytes() -> u64 {
    // SAFETY: no pointers.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

/// Space the files below take; looks at `n_left` entries at most.
fn disk_bytes(folder: &Path, n_left: &mut usize) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let mut sum = 0;
    for entry in entries.flatten() {
        if *n_left == 0 {
            break;
        }
        *n_left -= 1;
        // Does not follow links.
        let Ok(data) = entry.metadata() else { continue };
        sum += data.blocks() * 512;
        if data.is_dir() {
            sum += disk_bytes(&entry.path(), n_left);
        }
    }
    sum
}

/// How many processes the user has.
pub(crate) fn processes_of(uid: u32) -> u64 {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    let mine = |entry: &std::fs::DirEntry| {
        let is_process = entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        is_process && entry.metadata().is_ok_and(|data| data.uid() == uid)
    };
    // Threads count as processes here.
    let threads = |entry: std::fs::DirEntry| {
        std::fs::read_dir(entry.path().join("task")).map_or(1, |tasks| tasks.count() as u64)
    };
    entries.flatten().filter(mine).map(threads).sum()
}
