//! Programs that stay and answer requests.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::run::Started;
use crate::{Exchange, Job, Limits, Sandbox, SandboxError, Status, launch};

/// Time between two looks at the program's memory and disk.
const TICK: Duration = Duration::from_millis(25);

/// A long-lived program in the sandbox. It reads requests from its standard input and writes answers to its standard output,
/// each as a length (4 bytes, little-endian) and that many bytes. It must end when its input ends; dropping the session
/// kills it. Its standard error goes nowhere. No limit on CPU time is set: the program sets what it needs.
#[derive(Debug)]
pub struct Session {
    started: Started,
    stdin: File,
    stdout: File,
    limits: Limits,
    is_closed: bool,
}

impl Sandbox {
    /// Starts a program that stays.
    ///
    /// # Errors
    /// As [`Sandbox::run`].
    pub fn spawn(&self, job: &Job) -> Result<Session, SandboxError> {
        let (started, ends) = self.start(job, true)?;
        let stdin = ends.stdin.expect("a session has an input");
        Ok(Session { started, stdin, stdout: ends.stdout, limits: self.limits.clone(), is_closed: false })
    }
}

impl Session {
    /// Sends a request and waits for its answer. After anything but an answer the session is over.
    pub fn exchange(&mut self, request: &[u8], timeout: Duration) -> Exchange {
        if self.is_closed {
            return Exchange::Closed;
        }
        let exchange = self.try_exchange(request, Instant::now() + timeout);
        if !matches!(exchange, Exchange::Answer(_)) {
            self.is_closed = true;
            let _ = self.started.end();
        }
        exchange
    }

    fn try_exchange(&mut self, request: &[u8], deadline: Instant) -> Exchange {
        let Ok(length) = u32::try_from(request.len()) else { return Exchange::Closed };
        let mut out = length.to_le_bytes().to_vec();
        out.extend_from_slice(request);
        let (mut out, mut answer) = (out.as_slice(), Vec::new());
        let mut next_look = Instant::now() + TICK;
        loop {
            let now = Instant::now();
            if now >= deadline {
                return Exchange::TimedOut;
            }
            if now >= next_look {
                next_look = now + TICK;
                match self.started.excess(&self.limits) {
                    Some(Status::MemoryLimit) => return Exchange::MemoryLimit,
                    Some(_) => return Exchange::OutputLimit,
                    None => {}
                }
            }
            let to_write = if out.is_empty() { -1 } else { self.stdin.as_raw_fd() };
            let fds = [(self.stdout.as_raw_fd(), libc::POLLIN), (to_write, libc::POLLOUT)];
            let pause = next_look.min(deadline).saturating_duration_since(now);
            let ready = launch::poll(&fds, pause.as_millis() as i32 + 1);
            if ready[1] != 0 {
                match self.stdin.write(out) {
                    Ok(n) => out = &out[n..],
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Exchange::Closed,
                }
            }
            if ready[0] != 0 && !read_some(&mut self.stdout, &mut answer) {
                return Exchange::Closed;
            }
            let Some(head) = answer.first_chunk::<4>() else { continue };
            let length = u32::from_le_bytes(*head) as usize;
            if length > self.limits.output_bytes {
                return Exchange::OutputLimit;
            }
            if answer.len() >= 4 + length {
                // More than was asked for is no answer.
                let is_exact = answer.len() == 4 + length && out.is_empty();
                return if is_exact { Exchange::Answer(answer.split_off(4)) } else { Exchange::Closed };
            }
        }
    }
}

/// Whether the stream is still open.
fn read_some(file: &mut File, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 1 << 14];
    match file.read(&mut buffer) {
        Ok(0) => false,
        Ok(n) => {
            into.extend_from_slice(&buffer[..n]);
            true
        }
        Err(e) => e.kind() == io::ErrorKind::WouldBlock,
    }
}
