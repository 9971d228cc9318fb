//! Starting a process that is confined before its first instruction.
//!
//! The caller has many threads and much memory. A plain `fork` would copy the page tables of that memory for every run,
//! and between `fork` and `exec` a child of a threaded process may do next to nothing. So the child is made by
//! `clone(CLONE_VM | CLONE_VFORK)` with a stack of its own, as `posix_spawn` does: the calling thread waits until `exec`,
//! and the child carries out a list of [`Step`]s that was written down before, each one raw system call without
//! allocation, locks or panics. Two traps: the C library's `setuid` family changes all threads of the process whose
//! memory it runs in, so only raw calls are used; and a change of user makes the shared memory, hence the caller,
//! undumpable, which [`start`] undoes.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libc::{SYS_chdir, SYS_close, SYS_dup3, c_long, sock_filter};

use crate::landlock::{self, PathBeneath, Ruleset};

/// How many mounts can be open between their copy and their place.
const N_SLOTS: usize = 64;
const STACK_BYTES: usize = 128 * 1024;
const GUARD_BYTES: usize = 16 * 1024;

/// One thing the child does before the program.
#[derive(Debug)]
pub(crate) enum Step {
    /// Maps this user and group (`"1000 501 1"`) in a new user namespace.
    MapIds { uid: CString, gid: CString },
    /// Nothing that is mounted here shows elsewhere.
    PrivateMounts,
    /// Copies what is mounted at the path, read-only (unless a device) and without setuid; kept in a slot.
    CopyTree { slot: usize, source: CString, device: bool },
    /// A new file system of the given options over a folder, and going there.
    Root { over: CString, options: CString },
    /// A folder.
    Folder { path: CString },
    /// A symbolic link.
    Link { target: CString, path: CString },
    /// An empty file to mount over.
    Empty { path: CString },
    /// Puts the copy in a slot in its place.
    PlaceTree { slot: usize, path: CString },
    /// The present folder becomes the root, and the old root is gone.
    Pivot,
    /// Gives a path to a user.
    Give { path: CString, uid: u32 },
    /// The descriptor becomes the program's descriptor of that number.
    Descriptor { from: RawFd, to: RawFd },
    /// Closes all but the first three.
    CloseOthers,
    /// A process group of its own. (A session of its own would cost more than all other steps together: the scheduler makes a
    /// group for each.)
    Group,
    /// Both the soft and the hard limit.
    Limit { resource: u32, value: u64 },
    /// Another user and group, no other groups, no capabilities.
    User { uid: u32 },
    /// Dies with the thread that started it.
    DieWithParent,
    /// Where it works.
    Go { path: CString },
    /// A file with its content; parents exist.
    File { path: CString, bytes: Vec<u8> },
    /// No privileges through `exec`.
    NoNewPrivileges,
    /// Landlock.
    Landlock { ruleset: Ruleset, beneath: Vec<(CString, u64)> },
    /// The filter of system calls.
    Seccomp { filter: Vec<sock_filter> },
    /// Default actions, nothing blocked.
    Signals,
}

/// A program with its steps.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) namespaces: c_int,
    pub(crate) steps: Vec<Step>,
    pub(crate) program: CString,
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
}

/// A started process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: libc::pid_t,
    pub(crate) pidfd: OwnedFd,
}

/// What went wrong before the program began: the step, or none when it was starting the process or the program itself.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) step: Option<usize>,
    pub(crate) at_exec: bool,
    pub(crate) error: io::Error,
}

/// What parent and child share; the child writes the failure.
struct Shared<'a> {
    steps: &'a [Step],
    program: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    failed_step: usize,
    errno: c_int,
}

fn errno() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// A raw system call; `Err` holds `errno`.
macro_rules! call {
    ($nr:expr $(, $arg:expr)*) => {{
        // SAFETY: every pointer passed below comes from a `CString`, slice or local that outlives the call, with its
        // true length, and the kernel only reads it or writes within it.
        let result = unsafe { libc::syscall($nr as c_long $(, $arg as c_long)*) };
        if result < 0 { Err(errno()) } else { Ok(result) }
    }};
}

const NULL: *const c_char = ptr::null();
const CWD: c_int = libc::AT_FDCWD;

impl Step {
    /// Runs in the child. Must not allocate, lock or panic.
    fn carry_out(&self, slots: &mut [RawFd; N_SLOTS]) -> Result<(), c_int> {
        match self {
            Step::MapIds { uid, gid } => {
                write_file(c"/proc/self/setgroups", b"deny", libc::O_WRONLY)?;
                write_file(c"/proc/self/uid_map", uid.to_bytes(), libc::O_WRONLY)?;
                write_file(c"/proc/self/gid_map", gid.to_bytes(), libc::O_WRONLY)?;
            }
            Step::PrivateMounts => {
                let flags = libc::MS_REC | libc::MS_PRIVATE;
                call!(libc::SYS_mount, NULL, c"/".as_ptr(), NULL, flags, NULL)?;
            }
            Step::CopyTree { slot, source, device } => {
                let flags = libc::OPEN_TREE_CLONE | libc::AT_RECURSIVE as u32 | libc::OPEN_TREE_CLOEXEC;
                let fd = call!(libc::SYS_open_tree, CWD, source.as_ptr(), flags)? as RawFd;
                let readonly = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV;
                let attr_set =
                    if *device { libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC } else { readonly };
                let attr = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 };
                let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
                let size = size_of::<libc::mount_attr>();
                call!(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw const attr, size)?;
                *slots.get_mut(*slot).ok_or(libc::ENFILE)? = fd;
            }
            Step::Root { over, options } => {
                let (kind, flags) = (c"tmpfs".as_ptr(), libc::MS_NOSUID | libc::MS_NODEV);
                call!(libc::SYS_mount, kind, over.as_ptr(), kind, flags, options.as_ptr())?;
                call!(SYS_chdir, over.as_ptr())?;
            }
            Step::Folder { path } => {
                call!(libc::SYS_mkdirat, CWD, path.as_ptr(), 0o755)?;
            }
            Step::Link { target, path } => {
                call!(libc::SYS_symlinkat, target.as_ptr(), CWD, path.as_ptr())?;
            }
            Step::Empty { path } => write_file(path, b"", libc::O_WRONLY | libc::O_CREAT)?,
            Step::PlaceTree { slot, path } => {
                let fd = *slots.get(*slot).ok_or(libc::ENFILE)?;
                let flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
                call!(libc::SYS_move_mount, fd, c"".as_ptr(), CWD, path.as_ptr(), flags)?;
                call!(SYS_close, fd)?;
            }
            Step::Pivot => {
                call!(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr())?;
                call!(libc::SYS_umount2, c".".as_ptr(), libc::MNT_DETACH)?;
                call!(SYS_chdir, c"/".as_ptr())?;
            }
            Step::Give { path, uid } => {
                call!(libc::SYS_fchownat, CWD, path.as_ptr(), *uid, *uid, 0)?;
            }
            Step::Descriptor { from, to } => {
                call!(SYS_dup3, *from, *to, 0)?;
            }
            Step::CloseOthers => {
                call!(libc::SYS_close_range, 3u32, u32::MAX, 0u32)?;
            }
            Step::Group => {
                call!(libc::SYS_setpgid, 0, 0)?;
            }
            Step::Limit { resource, value } => {
                let limit = libc::rlimit64 { rlim_cur: *value, rlim_max: *value };
                call!(libc::SYS_prlimit64, 0, *resource, &raw const limit, NULL)?;
            }
            Step::User { uid } => {
                call!(libc::SYS_setgroups, 0, NULL)?;
                call!(libc::SYS_setresgid, *uid, *uid, *uid)?;
                call!(libc::SYS_setresuid, *uid, *uid, *uid)?;
            }
            Step::DieWithParent => {
                call!(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0)?;
            }
            Step::Go { path } => {
                call!(SYS_chdir, path.as_ptr())?;
            }
            Step::File { path, bytes } => {
                write_file(path, bytes, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL)?;
            }
            Step::NoNewPrivileges => {
                call!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)?;
            }
            Step::Landlock { ruleset, beneath } => restrict(ruleset, beneath)?,
            Step::Seccomp { filter } => {
                let program =
                    libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
                call!(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)?;
            }
            Step::Signals => reset_signals(),
        }
        Ok(())
    }
}

fn write_file(path: &CStr, bytes: &[u8], flags: c_int) -> Result<(), c_int> {
    let fd = call!(libc::SYS_openat, CWD, path.as_ptr(), flags | libc::O_CLOEXEC, 0o644)? as RawFd;
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = call!(libc::SYS_write, fd, rest.as_ptr(), rest.len())? as usize;
        rest = rest.get(n..).unwrap_or_default();
    }
    call!(SYS_close, fd).map(drop)
}

fn restrict(ruleset: &Ruleset, beneath: &[(CString, u64)]) -> Result<(), c_int> {
    let size = size_of::<Ruleset>();
    let rules = call!(libc::SYS_landlock_create_ruleset, ptr::from_ref(ruleset), size, 0)? as RawFd;
    for (path, allowed) in beneath {
        let flags = libc::O_PATH | libc::O_CLOEXEC;
        let Ok(fd) = call!(libc::SYS_openat, CWD, path.as_ptr(), flags) else { continue };
        let rule = PathBeneath { allowed_access: *allowed, parent_fd: fd as c_int };
        let kind = landlock::RULE_PATH_BENEATH;
        call!(libc::SYS_landlock_add_rule, rules, kind, &raw const rule, 0)?;
        call!(SYS_close, fd)?;
    }
    call!(libc::SYS_landlock_restrict_self, rules, 0)?;
    call!(SYS_close, rules).map(drop)
}

/// As the kernel lays it out, which is not as the C library does.
#[repr(C)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

fn reset_signals() {
    let default = KernelAction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
    for signal in 1..=64 {
        // SIGKILL and SIGSTOP refuse, which is right.
        let _ = call!(libc::SYS_rt_sigaction, signal, &raw const default, NULL, 8usize);
    }
    set_mask(0);
}

/// Sets which signals are blocked, and returns which were.
fn set_mask(mask: u64) -> u64 {
    let mut old = 0u64;
    let how = libc::SIG_SETMASK;
    let _ = call!(libc::SYS_rt_sigprocmask, how, &raw const mask, &raw mut old, 8usize);
    old
}

extern "C" fn child(shared: *mut c_void) -> c_int {
    // SAFETY: `start` passes a `Shared` that lives on its stack until `exec` or `_exit`, and does not touch it meanwhile:
    // its thread is suspended by `CLONE_VFORK`.
    let shared = unsafe { &mut *shared.cast::<Shared<'_>>() };
    let mut slots = [-1; N_SLOTS];
    let mut outcome = Ok(());
    for (i, step) in shared.steps.iter().enumerate() {
        shared.failed_step = i;
        outcome = step.carry_out(&mut slots);
        if outcome.is_err() {
            break;
        }
    }
    if outcome.is_ok() {
        shared.failed_step = shared.steps.len();
        outcome = call!(libc::SYS_execve, shared.program, shared.argv, shared.envp).map(drop);
    }
    shared.errno = outcome.err().unwrap_or(0);
    let _ = call!(libc::SYS_exit_group, 127);
    127
}

/// Memory for the child's stack, with a guard below.
struct Stack(*mut c_void);

impl Stack {
    fn new() -> io::Result<Stack> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: a new anonymous mapping of ours.
        let base = unsafe {
            libc::mmap(ptr::null_mut(), STACK_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Stack(base);
        // SAFETY: the lower end of the mapping just made.
        match unsafe { libc::mprotect(base, GUARD_BYTES, libc::PROT_NONE) } {
            0 => Ok(stack),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; the child that used it has its own memory or is gone.
        unsafe { libc::munmap(self.0, STACK_BYTES) };
    }
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([NULL]).collect()
}

/// Starts the program. Returns after its `exec` succeeded, or with what failed.
pub(crate) fn start(launch: &Launch) -> Result<Process, Failure> {
    let failed = |error| Failure { step: None, at_exec: false, error };
    let stack = Stack::new().map_err(failed)?;
    let (argv, envp) = (pointers(&launch.args), pointers(&launch.env));
    let mut shared = Shared {
        steps: &launch.steps,
        program: launch.program.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        failed_step: 0,
        errno: 0,
    };
    // SAFETY: no pointers.
    let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) };
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD | launch.namespaces;
    // Handlers of ours must not run in the child, which shares our memory.
    let mask = set_mask(u64::MAX);
    // SAFETY: `child` only reads `shared` and what it points to, which outlive the call (this thread waits for `exec`), does
    // raw system calls, and runs on a stack of its own, whose top is aligned. The kernel writes one descriptor to `pidfd`.
    let pid = unsafe {
        let top = stack.0.cast::<u8>().add(STACK_BYTES).cast::<c_void>();
        libc::clone(child, top, flags, (&raw mut shared).cast(), &raw mut pidfd)
    };
    let error = io::Error::last_os_error();
    set_mask(mask);
    if dumpable == 1 {
        // SAFETY: no pointers.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    }
    if pid < 0 {
        return Err(failed(error));
    }
    // SAFETY: the kernel made this descriptor for us, and nobody else knows it.
    let process = Process { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } };
    // The child wrote it through the pointer, before this thread went on.
    // SAFETY: `shared` is alive.
    let (code, step) = unsafe {
        (ptr::read_volatile(&raw const shared.errno), ptr::read_volatile(&raw const shared.failed_step))
    };
    if code != 0 {
        let _ = wait(&process);
        let at_exec = step == launch.steps.len();
        return Err(Failure { step: Some(step), at_exec, error: io::Error::from_raw_os_error(code) });
    }
    Ok(process)
}

/// Whether processes can be made with these namespaces and steps: one that does the steps and ends.
pub(crate) fn attempt(namespaces: c_int, steps: Vec<Step>) -> Result<(), Failure> {
    // A program that cannot exist: reaching `exec` is the proof.
    let program = c"/nonexistent".to_owned();
    match start(&Launch { namespaces, steps, program, args: Vec::new(), env: Vec::new() }) {
        Err(failure) if failure.at_exec => Ok(()),
        Err(failure) => Err(failure),
        Ok(process) => {
            kill(&process);
            let _ = wait(&process);
            Ok(())
        }
    }
}

/// Ends the process, and with it its PID namespace.
pub(crate) fn kill(process: &Process) {
    let _ = call!(libc::SYS_pidfd_send_signal, process.pidfd.as_raw_fd(), libc::SIGKILL, NULL, 0);
}

/// Ends the whole process group the process leads. To be called before [`wait`], which sets the number free.
pub(crate) fn kill_group(process: &Process) {
    let _ = call!(libc::SYS_kill, -process.pid, libc::SIGKILL);
}

/// Whether the group the process led has members.
pub(crate) fn has_group(process: &Process) -> bool {
    call!(libc::SYS_kill, -process.pid, 0).err() != Some(libc::ESRCH)
}

/// Waits for the end: the wait status and what was used, its waited-for children included.
pub(crate) fn wait(process: &Process) -> io::Result<(c_int, libc::rusage)> {
    let mut status = 0;
    // SAFETY: all zeros is a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to locals.
        match unsafe { libc::wait4(process.pid, &raw mut status, 0, &raw mut usage) } {
            -1 if errno() == libc::EINTR => {}
            -1 => return Err(io::Error::last_os_error()),
            _ => return Ok((status, usage)),
        }
    }
}

/// A pipe: the end to read, the end to write. Neither is one of the first three descriptors, and both close on `exec`.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: two descriptors are written to an array of two.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: new descriptors of ours.
    let [read, write] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    Ok((above_standard(read)?, above_standard(write)?))
}

/// The same file under a number above the standard three.
pub(crate) fn above_standard(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    // SAFETY: `fd` is open; the result is a new descriptor.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: just made.
        new => Ok(unsafe { OwnedFd::from_raw_fd(new) }),
    }
}

/// Reads and writes on it return at once.
pub(crate) fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: `fd` is open and no pointer is passed.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits until one of them is ready or the time is up; the events of each.
pub(crate) fn poll(fds: &[(RawFd, i16)], timeout_ms: i32) -> Vec<i16> {
    let mut entries: Vec<libc::pollfd> =
        fds.iter().map(|(fd, events)| libc::pollfd { fd: *fd, events: *events, revents: 0 }).collect();
    // SAFETY: a slice with its length.
    unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout_ms) };
    entries.iter().map(|entry| entry.revents).collect()
}

/// The user this process acts as.
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: always succeeds.
    unsafe { libc::geteuid() }
}

/// The group this process acts as.
pub(crate) fn effective_gid() -> u32 {
    // SAFETY: always succeeds.
    unsafe { libc::getegid() }
}
