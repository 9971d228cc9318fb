//! What untrusted programs try, each with and without namespaces. Every test proves from outside that it did not work: a file
//! that is not there, a listener nobody called, a victim that lives, no process left.
//!
//! The shell versions always run; those in Python say loudly that they are skipped where there is no `/usr/bin/python3`.

#![cfg(target_os = "linux")]
#![allow(clippy::print_stderr, reason = "skips are loud")]

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pt_sandbox::{Exchange, Job, Limits, Outcome, Sandbox, SandboxError, Status};

const PYTHON: &str = "/usr/bin/python3";
const SECRET: &str = "the-host's-secret";

fn limits() -> Limits {
    Limits {
        wall: Duration::from_millis(800),
        cpu: Duration::from_secs(1),
        memory_bytes: 64 << 20,
        address_bytes: Some(256 << 20),
        output_bytes: 64 << 10,
        disk_bytes: 8 << 20,
        processes: 16,
        ..Limits::default()
    }
}

/// Enough time for what is expected to end by itself, on a machine that does other things too.
fn patient() -> Limits {
    Limits { wall: Duration::from_secs(60), cpu: Duration::from_secs(20), ..limits() }
}

fn sandboxes(limits: &Limits) -> Vec<(&'static str, Sandbox)> {
    let full = Sandbox::new(limits.clone()).unwrap_or_else(|e| panic!("{e}"));
    if !full.capabilities().mount_namespace {
        eprintln!("SKIPPED: no namespaces on this machine: {:?}", full.capabilities().missing);
    }
    let mut all = vec![("all layers", full)];
    match Sandbox::without_namespaces(limits.clone()) {
        Ok(sandbox) => all.push(("no namespaces", sandbox)),
        Err(e) => eprintln!("SKIPPED: attacks without namespaces: {e}"),
    }
    all
}

/// The host's side of an attack.
struct Host {
    dir: tempfile::TempDir,
    victim: Child,
    token: String,
}

impl Host {
    /// A folder everybody may write, with a secret everybody may read, so that permissions alone protect nothing; and a process.
    fn new() -> Host {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(dir.path().join("secret"), SECRET).unwrap();
        fs::set_permissions(dir.path().join("secret"), fs::Permissions::from_mode(0o666)).unwrap();
        let victim = Command::new("/bin/sleep").arg("600").spawn().unwrap();
        let token = format!("attack-{}-{}.", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Host { dir, victim, token }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Arguments of every attack: the folder, the test's process, the victim, a text that marks its processes.
    fn args(&self) -> Vec<String> {
        let dir = self.dir.path().display().to_string();
        vec![dir, std::process::id().to_string(), self.victim.id().to_string(), self.token.clone()]
    }

    /// Processes whose command line has the mark.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        let lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
        lines.filter(|line| line.contains(&self.token)).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let alive = matches!(self.victim.try_wait(), Ok(None));
        let _ = self.victim.kill();
        let _ = self.victim.wait();
        assert!(alive || std::thread::panicking(), "the victim was killed");
    }
}

#[derive(Clone, Copy, PartialEq)]
enum In {
    Shell,
    Python,
}

fn job(language: In, script: &str, args: Vec<String>) -> Option<Job> {
    let (program, mut all) = match language {
        In::Shell => ("/bin/sh", vec!["-c".to_owned(), script.to_owned(), "sh".to_owned()]),
        In::Python if !Path::new(PYTHON).exists() => {
            eprintln!("SKIPPED: no {PYTHON}, so an attack in Python was not tried");
            return None;
        }
        In::Python => (PYTHON, ["-I", "-S", "-c", script].map(str::to_owned).to_vec()),
    };
    all.extend(args);
    Some(Job { program: program.into(), args: all, ..Job::default() })
}

/// Runs the script in every sandbox, then looks at its outcome and at the host. In all cases nothing of it is left.
fn attack(limits: &Limits, language: In, script: &str, check: impl Fn(&Outcome, &Host)) {
    for (name, sandbox) in sandboxes(limits) {
        let host = Host::new();
        let Some(job) = job(language, script, host.args()) else { return };
        let outcome = sandbox.run(&job).unwrap_or_else(|e| panic!("{name}: {e}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
        eprintln!("{name}: {:?}\n{}{}", outcome.status, text(&outcome.stdout), text(&outcome.stderr));
        check(&outcome, &host);
        assert_eq!(host.left(), Vec::<String>::new(), "{name}: processes are left");
        let names: Vec<String> = fs::read_dir(host.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| !name.ends_with(".socket"))
            .collect();
        assert_eq!(names, ["secret"], "{name}: the host's folder changed");
        assert_eq!(fs::read_to_string(host.path("secret")).unwrap(), SECRET, "{name}: the secret changed");
        let all = [outcome.stdout.as_slice(), outcome.stderr.as_slice()].concat();
        assert!(!text(&all).contains(SECRET), "{name}: the secret was read");
    }
}

fn stdout(outcome: &Outcome) -> String {
    String::from_utf8(outcome.stdout.clone()).unwrap().trim().to_owned()
}

#[test]
fn an_honest_program_runs() {
    for (name, sandbox) in sandboxes(&patient()) {
        let script = "cat; cat in/a; echo $X $1 >&2; echo y > z && cat z; exit 3";
        let mut job = job(In::Shell, script, vec!["arg".to_owned()]).unwrap();
        job.stdin = b"stdin ".to_vec();
        job.files = vec![("in/a".into(), b"file ".to_vec()), ("in/b".into(), Vec::new())];
        job.env = vec![("X".to_owned(), "env".to_owned())];
        let outcome = sandbox.run(&job).unwrap();
        assert_eq!(outcome.status, Status::Exited(3), "{name}: {outcome:?}");
        assert_eq!(
            (stdout(&outcome).as_str(), outcome.stderr.as_slice()),
            ("stdin file y", b"env arg\n".as_slice())
        );
        let big = vec![b'x'; 50_000];
        let job = Job { program: "cat".into(), stdin: big.clone(), ..Job::default() };
        assert_eq!(sandbox.run(&job).unwrap().stdout, big, "{name}");
    }
}

#[test]
fn jobs_that_cannot_be_meant_are_refused() {
    let sandbox = Sandbox::new(limits()).unwrap();
    let ok = || Job { program: "/bin/true".into(), ..Job::default() };
    let jobs = [
        Job { program: "no-such-program".into(), ..ok() },
        Job { program: "../bin/true".into(), ..ok() },
        Job { args: vec!["a\0b".to_owned()], ..ok() },
        Job { files: vec![("/etc/passwd".into(), Vec::new())], ..ok() },
        Job { files: vec![("../x".into(), Vec::new())], ..ok() },
        Job { files: vec![("".into(), Vec::new())], ..ok() },
        Job { readable: vec!["/".into()], ..ok() },
        Job { readable: vec!["/usr/../root".into()], ..ok() },
        Job { readable: vec!["relative".into()], ..ok() },
    ];
    for job in jobs {
        assert!(matches!(sandbox.run(&job), Err(SandboxError::Job { .. })), "{job:?}");
    }
    let absent = Job { program: "/no/such/program".into(), ..Job::default() };
    assert!(matches!(sandbox.run(&absent), Err(SandboxError::Program { .. })));
}

#[test]
fn fork_bomb() {
    attack(
        &limits(),
        In::Shell,
        "f() { f \"$@\" & f \"$@\" & }; f \"$@\"; while :; do :; done",
        |outcome, _| {
            assert!(!outcome.is_success());
        },
    );
    let script = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass";
    attack(&limits(), In::Python, script, |outcome, _| assert_eq!(outcome.status, Status::TimedOut));
}

#[test]
fn memory_bomb() {
    let limits = Limits { wall: Duration::from_secs(20), cpu: Duration::from_secs(20), ..limits() };
    let small = |outcome: &Outcome, _: &Host| {
        assert!(!outcome.is_success());
        assert!(outcome.peak_bytes <= 128 << 20, "{}", outcome.peak_bytes);
    };
    attack(&limits, In::Shell, "x=0123456789abcdef; while :; do x=$x$x; done", small);
    attack(&limits, In::Python, "x = bytearray(10**12)", |outcome, _| {
        assert_eq!(outcome.status, Status::Exited(1));
        assert!(String::from_utf8_lossy(&outcome.stderr).contains("MemoryError"));
    });
    // Each process stays below its own limit; together they do not.
    let script = "import os, time\nfor _ in range(8):\n  if os.fork() == 0: break\nx = b'x' * (20 << 20)\ntime.sleep(60)";
    attack(&limits, In::Python, script, |outcome, _| assert_eq!(outcome.status, Status::MemoryLimit));
    let shared = "import mmap, time\nm = mmap.mmap(-1, 150 << 20)\nfor i in range(0, len(m), 4096): m[i] = 1\ntime.sleep(60)";
    attack(&limits, In::Python, shared, |outcome, _| assert_eq!(outcome.status, Status::MemoryLimit));
}

#[test]
fn filling_the_disk() {
    let script =
        "i=0; while [ $i -lt 1000 ] && head -c 3000000 /dev/zero > f$i; do i=$((i+1)); done; echo $i";
    attack(&patient(), In::Shell, script, |outcome, _| match outcome.status {
        Status::DiskLimit => {}
        _ => assert_eq!(stdout(outcome), "2", "two files of 3 MB fit in 8 MiB"),
    });
    // One file longer than the limit.
    let script = "head -c 100000000 /dev/zero > f; wc -c < f";
    attack(&patient(), In::Shell, script, |outcome, _| {
        assert!(outcome.status == Status::DiskLimit || stdout(outcome).parse::<u64>().unwrap() <= 8 << 20);
    });
}

#[test]
fn reading_home_and_environment() {
    let script = "cat $1/secret; ls $1 /root /home /etc/shadow; cat /proc/$2/environ /proc/self/environ; env; echo ~; id -u";
    attack(&patient(), In::Shell, script, |outcome, _| {
        let text = stdout(outcome);
        // Cargo sets variables of this name for the test.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some() && !text.contains("CARGO"), "{text}");
        assert!(!text.contains("secret") && !text.contains("/root") && !text.contains("/home"), "{text}");
        assert_ne!(text.lines().last(), Some("0"), "not root");
    });
    let script = "import os\nprint(sorted(os.environ))\nfor fd in range(3, 2000):\n  try: os.fstat(fd); print('open', fd)\n  except OSError: pass";
    let leak = leaking_file();
    attack(&patient(), In::Python, script, |outcome, _| {
        assert_eq!(stdout(outcome), "['HOME', 'LANG', 'PATH', 'TMPDIR']");
    });
    drop(leak);
}

/// A file of ours that survives `exec`.
#[allow(unsafe_code, reason = "the standard library opens no such file")]
fn leaking_file() -> fs::File {
    let file = fs::File::open("/etc/hostname").or_else(|_| fs::File::open("/dev/null")).unwrap();
    // SAFETY: the descriptor is open, and no pointer is passed.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) }, 0);
    file
}

#[test]
fn writing_outside() {
    let script = "echo x > $1/new; echo x >> $1/secret; mkdir $1/d; rm -rf $1/secret; mv $1/secret $1/s; ln $1/secret l; \
                  true > $1/secret; echo x > /usr/x; echo x > /x; touch /usr/bin/env; chmod 777 $1; echo x > /dev/sda; echo end";
    attack(&patient(), In::Shell, script, |outcome, _| {
        assert_eq!(stdout(outcome), "end");
        assert!(
            !Path::new("/usr/x").exists() && !Path::new("/x").exists() && !Path::new("/dev/sda").is_file()
        );
    });
    let script = "import os, sys\nfor f in (os.truncate, lambda p, n: os.chmod(p, n), lambda p, n: os.utime(p)):\n  try: f(sys.argv[1] + '/secret', 0); print('done')\n  except OSError: print('refused')";
    attack(&patient(), In::Python, script, |outcome, host| {
        assert_eq!(stdout(outcome), "refused\nrefused\nrefused");
        assert_eq!(host.path("secret").metadata().unwrap().permissions().mode() & 0o777, 0o666);
    });
}

#[test]
fn links_and_proc() {
    let script = "ln -s $1/secret a; cat a; echo x > a; ln -s / r; cat r$1/secret; cat /proc/self/root$1/secret; \
                  cat /proc/1/root$1/secret; cat /proc/$2/root$1/secret; cat /proc/$2/cwd/Cargo.toml; cd /proc/$2/cwd && pwd; \
                  cat ../../../../../..$1/secret; echo x > /proc/sys/kernel/core_pattern; mkdir m && mount -t proc p m; \
                  chroot /; unshare -Ur true && echo namespace; echo end";
    attack(&patient(), In::Shell, script, |outcome, _| assert_eq!(stdout(outcome), "end"));
}

#[test]
fn network() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    tcp.set_nonblocking(true).unwrap();
    let port = tcp.local_addr().unwrap().port();
    let script = "
import os, socket, sys
dir, port = sys.argv[1], int(sys.argv[-1])
def attempt(what, f):
    try: f(); print('done', what)
    except OSError: pass
attempt('tcp', lambda: socket.create_connection(('127.0.0.1', port), 1))
attempt('tcp6', lambda: socket.create_connection(('::1', port), 1))
attempt('listen', lambda: socket.create_server(('127.0.0.1', 0)))
attempt('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', port)))
attempt('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt('dns', lambda: socket.getaddrinfo('example.com', 80))
attempt('unix', lambda: socket.socket(socket.AF_UNIX).connect(dir + '/l.socket'))
attempt('netlink', lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt('vsock', lambda: socket.socket(40, socket.SOCK_STREAM))
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
attempt('sendto', lambda: a.sendto(b'x', dir + '/d.socket'))
attempt('sendmsg', lambda: a.sendmsg([b'x'], [], 0, dir + '/d.socket'))
attempt('connect', lambda: a.connect(dir + '/d.socket'))
a.send(b'pair'); print(b.recv(9).decode())
";
    for (name, sandbox) in sandboxes(&patient()) {
        let host = Host::new();
        let unix = UnixListener::bind(host.path("l.socket")).unwrap();
        let datagrams = UnixDatagram::bind(host.path("d.socket")).unwrap();
        for path in ["l.socket", "d.socket"] {
            fs::set_permissions(host.path(path), fs::Permissions::from_mode(0o777)).unwrap();
        }
        unix.set_nonblocking(true).unwrap();
        datagrams.set_nonblocking(true).unwrap();
        let mut args = host.args();
        args.push(port.to_string());
        let bash = "exec 3<>/dev/tcp/127.0.0.1/${@: -1} && echo done";
        let tries = [
            (In::Shell, "command -v bash >/dev/null || exit 0; bash -c \"$0\" bash \"$@\"; echo pair"),
            (In::Python, script),
        ];
        for (language, script) in tries {
            let Some(mut job) = job(language, script, args.clone()) else { continue };
            if language == In::Shell {
                job.args[2] = bash.to_owned();
            }
            let outcome = sandbox.run(&job).unwrap();
            assert_eq!(stdout(&outcome), "pair", "{name}: {}", String::from_utf8_lossy(&outcome.stderr));
        }
        assert!(tcp.accept().is_err() && unix.accept().is_err(), "{name}: somebody called");
        assert!(datagrams.recv(&mut [0; 8]).is_err(), "{name}: somebody wrote");
    }
}

#[test]
fn other_processes() {
    // The victim and the test live; signal 0 only asks whether one might.
    let script = "kill -9 $3 && echo killed; kill -0 $2 && echo may; kill -0 $3 && echo may; kill -STOP $3 && echo stopped; \
                  cat /proc/$2/maps && echo maps; cat /proc/$3/mem && echo mem; cat /proc/$3/cmdline && echo command; \
                  renice 19 $3 && echo nice; echo end";
    attack(&patient(), In::Shell, script, |outcome, host| {
        assert_eq!(stdout(outcome), "end");
        let stat = fs::read_to_string(format!("/proc/{}/stat", host.victim.id())).unwrap();
        assert!(stat.contains(") S "), "the victim sleeps, neither stopped nor traced: {stat}");
    });
    let script = "
import ctypes, os, platform, sys
libc = ctypes.CDLL(None, use_errno=True)
for pid in map(int, sys.argv[2:4]):
    for request in (16, 0x4206):  # attach, seize
        if libc.ptrace(request, pid, None, None) == 0: print('traced', request)
    buffer = ctypes.create_string_buffer(64)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 64)
    if libc.process_vm_readv(pid, vector, 1, vector, 1, 0) >= 0: print('read')
    if libc.prlimit(pid, 7, None, vector) == 0: print('limits')
if platform.machine() == 'x86_64':
    # memfd_create bpf perf_event_open userfaultfd io_uring_setup add_key shmget memfd_secret clone3 unshare setns
    calls = {319: 1, 321: 0, 298: 0, 323: 0, 425: 1, 248: 0, 29: 0, 447: 0, 435: 0, 272: 0x10000000, 308: 0, 463: 0, 0x40000000 + 39: 0}
    for call, argument in calls.items():
        if libc.syscall(call, argument, 4096, 0o1600, 0, 0) != -1: print('call', call)
        elif ctypes.get_errno() not in (1, 38): print('errno', call, ctypes.get_errno())
if libc.prctl(39, 0, 0, 0, 0) != 1: print('new privileges')
print('end')
";
    attack(&patient(), In::Python, script, |outcome, _| assert_eq!(stdout(outcome), "end"));
}

#[test]
fn setuid_programs() {
    let script = "for p in /bin/su /bin/mount /bin/umount /usr/bin/passwd /usr/bin/sudo; do [ -u $p ] && echo found >&2; done; \
                  su root -c 'id -u'; sudo -n id -u; cp /bin/sh s; chmod 4755 s; ./s -p -c 'id -u'";
    attack(&patient(), In::Shell, script, |outcome, _| {
        let text = stdout(outcome);
        assert!(!text.lines().any(|line| line == "0"), "became root: {text}");
    });
    let script = "import os\nfor f in (os.setuid, os.setgid, lambda i: os.setgroups([i])):\n  try: f(0); print('done')\n  except OSError: pass\nprint(0 in os.getresuid(), os.getgroups())";
    attack(&patient(), In::Python, script, |outcome, _| {
        let text = stdout(outcome);
        assert!(text.starts_with("False"), "{text}");
    });
}

#[test]
fn output_floods() {
    let flood = |outcome: &Outcome, _: &Host| {
        assert_eq!(outcome.status, Status::OutputLimit);
        assert!(outcome.is_truncated && outcome.stdout.len() + outcome.stderr.len() == 64 << 10);
    };
    attack(&patient(), In::Shell, "while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done", flood);
    attack(&patient(), In::Shell, "cat /dev/zero >&2", flood);
    // Ends before anybody looks: more than a pipe holds in any case.
    attack(&patient(), In::Shell, "head -c 200000 /dev/zero", flood);
}

#[test]
fn orphans() {
    let script = "for i in 1 2 3; do (setsid sh -c 'trap \"\" TERM HUP; sleep 30; echo x > $1/late' sh \"$@\" &) ; (sh -c 'sleep 30' sh \"$@\" &) ; done; exit 0";
    attack(&patient(), In::Shell, script, |outcome, _| assert_eq!(outcome.status, Status::Exited(0)));
    let script = "
import os, sys, time
if os.fork() == 0:
    try: os.setsid()
    except OSError: pass
    try: os.setpgid(0, 0)
    except OSError: pass
    if os.fork() == 0:
        os.close(0); os.close(1); os.close(2)
        time.sleep(30)
        open(sys.argv[1] + '/late', 'w')
    os._exit(0)
os.wait()
";
    attack(&patient(), In::Python, script, |outcome, _| assert_eq!(outcome.status, Status::Exited(0)));
}

#[test]
fn waiting_for_ever() {
    let out_of_time = |outcome: &Outcome, _: &Host| assert_eq!(outcome.status, Status::TimedOut);
    let short = Limits { wall: Duration::from_millis(200), ..limits() };
    for script in [
        "sleep 100",
        "trap '' TERM INT HUP; while :; do sleep 1; done",
        "exec >&- 2>&-; sleep 100",
        "while :; do :; done",
    ] {
        attack(&short, In::Shell, script, out_of_time);
    }
    // The processor's time, not the clock's.
    let spin = Limits { wall: Duration::from_secs(60), ..limits() };
    attack(&spin, In::Shell, "while :; do :; done", out_of_time);
}

#[test]
fn jobs_do_not_see_each_other() {
    for (name, sandbox) in sandboxes(&patient()) {
        let run = |script: &str| stdout(&sandbox.run(&job(In::Shell, script, Vec::new()).unwrap()).unwrap());
        assert_eq!(run("echo x > left; echo x > /tmp/left; ls"), "left", "{name}");
        assert_eq!(run("ls"), "", "{name}");
        // From many threads at once.
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|i| scope.spawn(move || (i, run(&format!("echo {i} > f; cat f"))))).collect();
            for thread in threads {
                let (i, text) = thread.join().unwrap();
                assert_eq!(text, i.to_string(), "{name}");
            }
        });
    }
}

#[test]
fn readable_paths_may_lie_anywhere() {
    for (name, sandbox) in sandboxes(&patient()) {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let file = folder.path().join("given");
        fs::write(&file, "given").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        let mut paths = vec![folder.path().to_owned(), file.clone()];
        // The checkout itself, if it lies where a job's own folder might.
        paths.push(PathBuf::from(env!("CARGO_MANIFEST_DIR")));
        for path in paths {
            let script = "cat $1; echo x >> $1; echo x > $1.new; echo x > own; cat own";
            let mut job = job(In::Shell, script, vec![file.display().to_string()]).unwrap();
            job.readable = vec![path.clone()];
            let outcome = sandbox.run(&job).unwrap_or_else(|e| panic!("{name}: {}: {e}", path.display()));
            let expected = if file.starts_with(&path) { "givenx" } else { "x" };
            assert_eq!(stdout(&outcome), expected, "{name}: {}", path.display());
            assert_eq!(fs::read_to_string(&file).unwrap(), "given", "{name}: it was changed");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{name}: something is beside it");
        }
    }
}

#[test]
fn sessions_answer_and_end() {
    // Echoes requests; misbehaves on demand.
    let script = "
import sys, time
i, o = sys.stdin.buffer, sys.stdout.buffer
while True:
    head = i.read(4)
    if not head: break
    body = i.read(int.from_bytes(head, 'little'))
    if body == b'sleep': time.sleep(60)
    if body == b'die': sys.exit(0)
    if body == b'lie': head = b'\\xff\\xff\\xff\\x7f'
    if body == b'chatter': body += b'x' * 9
    if body == b'eat': x = [b'x' * (1 << 20) for _ in range(50)]; y = bytearray(30 << 20); time.sleep(60)
    o.write(head + body); o.flush()
";
    for (name, sandbox) in sandboxes(&Limits { memory_bytes: 40 << 20, ..patient() }) {
        let host = Host::new();
        let Some(job) = job(In::Python, script, host.args()) else { return };
        let long = Duration::from_secs(60);
        let ends: [(&[u8], Duration, Option<Exchange>); 5] = [
            (b"sleep", Duration::from_millis(100), Some(Exchange::TimedOut)),
            (b"die", long, Some(Exchange::Closed)),
            (b"lie", long, Some(Exchange::OutputLimit)),
            (b"chatter", long, None),
            (b"eat", long, None),
        ];
        for (request, timeout, expected) in ends {
            let mut session = sandbox.spawn(&job).unwrap();
            for honest in [b"".as_slice(), b"hello", &[7; 30_000]] {
                assert_eq!(session.exchange(honest, long), Exchange::Answer(honest.to_vec()), "{name}");
            }
            let exchange = session.exchange(request, timeout);
            match expected {
                Some(expected) => assert_eq!(exchange, expected, "{name}"),
                None if request == b"eat" => {
                    assert!(matches!(exchange, Exchange::MemoryLimit | Exchange::Closed), "{exchange:?}")
                }
                // The surplus may arrive with the answer or later; either way it is never taken for the next answer.
                None => {
                    let next = session.exchange(b"next", long);
                    assert!(
                        !matches!(next, Exchange::Answer(ref body) if body != b"next"),
                        "{name}: {exchange:?}, {next:?}"
                    );
                }
            }
            drop(session);
            assert_eq!(host.left(), Vec::<String>::new(), "{name}");
        }
    }
}
