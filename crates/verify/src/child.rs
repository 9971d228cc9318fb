//! A child process that is spoken to in lines, and can neither block nor flood its parent.
//!
//! Three threads own the pipes, so the caller only ever waits on a channel with a deadline. On Unix the child leads a
//! process group of its own and the whole group is killed, so grandchildren do not outlive it.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The longest line that is read, in bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Lines read ahead of the caller; a child that floods its output waits here.
const MAX_LINES_AHEAD: usize = 256;
/// How much of the end of standard error is kept for reasons.
const STDERR_TAIL_BYTES: usize = 1_000;
/// How long the end of standard error, and the exit of a child that closed its output, are waited for.
const GRACE: Duration = Duration::from_millis(200);

/// What came of waiting for a line.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    /// A line without its end.
    Line(String),
    /// A line longer than [`MAX_LINE_BYTES`].
    TooLong,
    /// The deadline passed.
    Nothing,
    /// The child closed its output, most often because it ended.
    End,
}

enum Output {
    Line(String),
    TooLong,
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct LineChild {
    child: Child,
    to_child: Option<Sender<String>>,
    from_child: Receiver<Output>,
    stderr_tail: Arc<Mutex<Vec<u8>>>,
    stderr_ended: Receiver<()>,
}

impl LineChild {
    /// Starts `program` with `arguments`.
    pub(crate) fn start(program: &str, arguments: &[String]) -> std::io::Result<LineChild> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let stdin = child.stdin.take().expect("standard input is piped");
        let stdout = child.stdout.take().expect("standard output is piped");
        let stderr = child.stderr.take().expect("standard error is piped");
        let (to_child, lines_in) = channel();
        let (lines_out, from_child) = sync_channel(MAX_LINES_AHEAD);
        let (ended, stderr_ended) = channel();
        let stderr_tail = Arc::new(Mutex::new(Vec::new()));
        let tail = Arc::clone(&stderr_tail);
        std::thread::spawn(move || write_lines(stdin, &lines_in));
        std::thread::spawn(move || read_lines(stdout, &lines_out));
        std::thread::spawn(move || {
            keep_tail(stderr, &tail);
            // Nobody listens once the child was given up.
            let _ = ended.send(());
        });
        Ok(LineChild { child, to_child: Some(to_child), from_child, stderr_tail, stderr_ended })
    }

    /// Queues a line for the child; never blocks. A child that is gone is noticed by [`LineChild::hear`].
    pub(crate) fn say(&self, line: String) {
        if let Some(to_child) = &self.to_child {
            let _ = to_child.send(line);
        }
    }

    /// The child's next line, waited for until `deadline`.
    pub(crate) fn hear(&self, deadline: Instant) -> Heard {
        match self.from_child.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Output::Line(line)) => Heard::Line(line),
            Ok(Output::TooLong) => Heard::TooLong,
            Err(RecvTimeoutError::Timeout) => Heard::Nothing,
            Err(RecvTimeoutError::Disconnected) => Heard::End,
        }
    }

    /// Ends the child; says how it ended, if it did so by itself, and the last of what it wrote to standard error.
    pub(crate) fn end(mut self) -> (Option<String>, String) {
        let status = wait_until(&mut self.child, Instant::now() + GRACE).ok().flatten();
        self.kill();
        let _ = self.stderr_ended.recv_timeout(GRACE);
        let tail = self.stderr_tail.lock().map(|tail| tail.clone()).unwrap_or_default();
        (status.map(|status| status.to_string()), String::from_utf8_lossy(&tail).trim().to_owned())
    }

    fn kill(&mut self) {
        self.to_child = None;
        kill_group(&mut self.child);
    }
}

/// Runs a program to its end, or for so long. What it writes is read and, but for the end of its standard error, forgotten; its input
/// is empty. What it leaves running in the background is left alone, unless it took too long: then all it started is killed.
///
/// # Errors
/// What went wrong, in words.
pub fn run_within(program: &str, arguments: &[String], limit: Duration) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().map_err(|error| format!("it cannot be started: {error}"))?;
    let stderr = child.stderr.take().expect("standard error is piped");
    let tail = Arc::new(Mutex::new(Vec::new()));
    let (ended, stderr_ended) = channel::<()>();
    let kept = Arc::clone(&tail);
    std::thread::spawn(move || {
        keep_tail(stderr, &kept);
        let _ = ended.send(());
    });
    let problem = match wait_until(&mut child, Instant::now() + limit) {
        Ok(Some(status)) if status.success() => return Ok(()),
        Ok(Some(status)) => status.to_string(),
        Ok(None) => {
            kill_group(&mut child);
            format!("it had not ended after {} s and was killed", limit.as_secs_f64())
        }
        Err(error) => format!("it cannot be waited for: {error}"),
    };
    let _ = stderr_ended.recv_timeout(GRACE);
    let tail = tail.lock().map(|tail| tail.clone()).unwrap_or_default();
    match String::from_utf8_lossy(&tail).trim().lines().last() {
        None => Err(problem),
        Some(last) => Err(format!("{problem}; its standard error ends: {last}")),
    }
}

/// The pause between two looks at whether a child has ended.
const LOOK: Duration = Duration::from_millis(5);

/// How a child ended; `None` if it had not by then.
fn wait_until(child: &mut Child, deadline: Instant) -> std::io::Result<Option<ExitStatus>> {
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= deadline {
            return Ok(status);
        }
        std::thread::sleep(LOOK);
    }
}

/// Kills a child with all that it started in its process group.
fn kill_group(child: &mut Child) {
    #[cfg(unix)]
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        // The group may be gone already; there is nothing else to do about it.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

impl Drop for LineChild {
    fn drop(&mut self) {
        self.kill();
    }
}

fn write_lines(mut stdin: impl Write, lines: &Receiver<String>) {
    for mut line in lines {
        line.push('\n');
        if stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

fn read_lines(stdout: impl Read, lines: &SyncSender<Output>) {
    let mut reader = BufReader::new(stdout);
    loop {
        let mut bytes = Vec::new();
        match reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let output = match bytes.last() {
            Some(b'\n') => Output::Line(String::from_utf8_lossy(&bytes).trim().to_owned()),
            _ if bytes.len() as u64 == MAX_LINE_BYTES => Output::TooLong,
            _ => Output::Line(String::from_utf8_lossy(&bytes).trim().to_owned()),
        };
        if lines.send(output).is_err() {
            return;
        }
    }
}

fn keep_tail(mut stderr: impl Read, tail: &Mutex<Vec<u8>>) {
    let mut buffer = [0u8; 4096];
    while let Ok(n_read) = stderr.read(&mut buffer) {
        let Ok(mut tail) = tail.lock() else { return };
        if n_read == 0 {
            return;
        }
        tail.extend_from_slice(&buffer[..n_read]);
        let excess = tail.len().saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..excess);
    }
}
