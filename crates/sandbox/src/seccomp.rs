//! The system-call filter: a list of refusals, as a classic BPF program.
//!
//! What is not listed is allowed, except that numbers newer than this list are refused with `ENOSYS`: what a future kernel
//! adds is not reachable until somebody has read what it does.

use libc::{c_long, sock_filter};

/// The newest system call this list was written for (`mseal`, Linux 6.10).
const NEWEST: u32 = 462;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_KILL: u32 = 0x8000_0000;
const RET_ERRNO: u32 = 0x0005_0000;

const NR: u32 = 0;
const ARCH_AT: u32 = 4;
/// Offset of the low half of argument `i` in `seccomp_data`, on little-endian machines.
const fn arg(i: u32) -> u32 {
    16 + 8 * i
}

const NEW_NAMESPACES: u32 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u32;

/// Refused with `EPERM` whatever the arguments.
const REFUSED: &[c_long] = &[
    // Other processes' memory and descriptors.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    // Network, and sockets of the file system. What remains is a connected pair, without addresses (`sendto` below).
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    // Large and young parts of the kernel that no test program needs.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Keys and shared memory outlive a process, and memory files are counted by no limit.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_personality,
    // Priorities of other processes.
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setattr,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_mbind,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
];

/// Refused where no PID namespace holds the process tree together: who cannot leave the group dies with it.
const LEAVES_THE_GROUP: &[c_long] = &[libc::SYS_setsid, libc::SYS_setpgid];

/// Refused where nothing else keeps signals from reaching the caller's own processes.
const SIGNALS: &[c_long] = &[
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_send_signal,
];

/// Refused where the user is the caller and files are the host's: Landlock does not cover them.
const METADATA: &[c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
];

/// Refused where files are the host's, whoever the user is: a file that everybody may write has times that everybody may set.
const TIMES: &[c_long] = &[
    libc::SYS_utimensat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
];

/// What is refused where other layers are missing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Locks {
    /// The program and its children stay in one process group.
    pub(crate) group: bool,
    /// They send no signals.
    pub(crate) signals: bool,
    /// They change no mode, owner or extended attribute.
    pub(crate) metadata: bool,
    /// They set no file's times.
    pub(crate) times: bool,
}

fn op(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | libc::BPF_K | code) as u16, jt, jf, k }
}

fn load(at: u32) -> sock_filter {
    op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at)
}

fn ret(what: u32) -> sock_filter {
    op(libc::BPF_RET | libc::BPF_K, what)
}

/// How an argument decides.
#[derive(Clone, Copy)]
enum When {
    /// Allowed only if both halves of the argument are this small number.
    Only(u32),
    /// Refused if any of these bits is set.
    AnyBit(u32),
    /// Refused if the argument is this.
    Is(u32),
}

/// A call whose argument decides.
fn decide(program: &mut Vec<sock_filter>, nr: c_long, i: u32, when: When) {
    let refused = ret(RET_ERRNO | libc::EPERM as u32);
    let body = match when {
        When::Only(value) => vec![
            load(arg(i)),
            jump(libc::BPF_JEQ, value, 0, 3),
            load(arg(i) + 4),
            jump(libc::BPF_JEQ, 0, 0, 1),
            ret(RET_ALLOW),
            refused,
        ],
        When::AnyBit(bits) => {
            vec![load(arg(i)), jump(libc::BPF_JSET, bits, 0, 1), refused, ret(RET_ALLOW)]
        }
        // The number is loaded again, so that several rules for one call follow each other.
        When::Is(value) => vec![load(arg(i)), jump(libc::BPF_JEQ, value, 0, 1), refused, load(NR)],
    };
    program.push(jump(libc::BPF_JEQ, nr as u32, 0, body.len() as u8));
    program.extend(body);
}

/// The filter.
pub(crate) fn filter(locks: Locks) -> Vec<sock_filter> {
    let mut program = vec![load(ARCH_AT), jump(libc::BPF_JEQ, ARCH, 1, 0), ret(RET_KILL), load(NR)];
    // Also refuses the x32 interface, whose numbers begin at 2^30.
    program.push(jump(libc::BPF_JGT, NEWEST, 0, 1));
    program.push(ret(RET_ERRNO | libc::ENOSYS as u32));
    let mut refuse = |nr: c_long, errno: i32| {
        program.push(jump(libc::BPF_JEQ, nr as u32, 0, 1));
        program.push(ret(RET_ERRNO | errno as u32));
    };
    // Its flags lie in memory, where a filter cannot look; C libraries fall back to `clone`.
    refuse(libc::SYS_clone3, libc::ENOSYS);
    REFUSED.iter().for_each(|nr| refuse(*nr, libc::EPERM));
    let groups = [
        (locks.group, LEAVES_THE_GROUP),
        (locks.signals, SIGNALS),
        (locks.metadata, METADATA),
        (locks.times, TIMES),
    ];
    for (_, group) in groups.into_iter().filter(|(is_locked, _)| *is_locked) {
        group.iter().for_each(|nr| refuse(*nr, libc::EPERM));
    }
    decide(&mut program, libc::SYS_clone, 0, When::AnyBit(NEW_NAMESPACES));
    decide(&mut program, libc::SYS_socketpair, 0, When::Only(libc::AF_UNIX as u32));
    decide(&mut program, libc::SYS_sendto, 4, When::Only(0));
    decide(&mut program, libc::SYS_prlimit64, 0, When::Only(0));
    decide(&mut program, libc::SYS_sched_setaffinity, 0, When::Only(0));
    // Typing into a terminal, should one ever be reachable.
    decide(&mut program, libc::SYS_ioctl, 1, When::Is(libc::TIOCSTI as u32));
    decide(&mut program, libc::SYS_ioctl, 1, When::Is(libc::TIOCLINUX as u32));
    program.push(ret(RET_ALLOW));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program on a call, as the kernel would.
    fn run(program: &[sock_filter], nr: c_long, args: [u64; 6]) -> u32 {
        let word = |at: u32| match at {
            NR => nr as u32,
            ARCH_AT => ARCH,
            at => (args[(at as usize - 16) / 8] >> (8 * ((at - 16) % 8))) as u32,
        };
        let (mut pc, mut a) = (0usize, 0u32);
        loop {
            let i = program[pc];
            pc += 1;
            let code = u32::from(i.code);
            let taken = match code & 0xf0 {
                _ if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    a = word(i.k);
                    continue;
                }
                _ if code == libc::BPF_RET | libc::BPF_K => return i.k,
                libc::BPF_JEQ => a == i.k,
                libc::BPF_JGT => a > i.k,
                libc::BPF_JSET => a & i.k != 0,
                other => panic!("code {other}"),
            };
            pc += usize::from(if taken { i.jt } else { i.jf });
        }
    }

    #[test]
    fn calls_are_refused_by_number_and_by_argument() {
        let program = filter(Locks::default());
        assert!(program.len() < 4096, "the kernel's limit; {} instructions", program.len());
        let none = [0; 6];
        let check = |nr, args, expected: Option<i32>| {
            let want = expected.map_or(RET_ALLOW, |errno| RET_ERRNO | errno as u32);
            assert_eq!(run(&program, nr, args), want, "call {nr} {args:?}");
        };
        let first = |value: u64| [value, 0, 0, 0, 0, 0];
        check(libc::SYS_read, none, None);
        check(libc::SYS_socket, none, Some(libc::EPERM));
        check(libc::SYS_clone3, none, Some(libc::ENOSYS));
        check(libc::SYS_clone, first(libc::SIGCHLD as u64), None);
        check(libc::SYS_clone, first(libc::CLONE_NEWUSER as u64), Some(libc::EPERM));
        check(libc::SYS_socketpair, first(libc::AF_UNIX as u64), None);
        check(libc::SYS_socketpair, first(libc::AF_INET as u64), Some(libc::EPERM));
        check(libc::SYS_sendto, none, None);
        check(libc::SYS_sendto, [0, 0, 0, 0, 1 << 40, 0], Some(libc::EPERM));
        check(libc::SYS_prlimit64, none, None);
        check(libc::SYS_prlimit64, first(1), Some(libc::EPERM));
        check(libc::SYS_ioctl, none, None);
        check(libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0, 0, 0], Some(libc::EPERM));
        check(libc::SYS_ioctl, [0, libc::TIOCLINUX, 0, 0, 0, 0], Some(libc::EPERM));
        check(libc::SYS_setsid, none, None);
        check(463, none, Some(libc::ENOSYS));
        check(0x4000_0001, none, Some(libc::ENOSYS));
        let locked = filter(Locks { group: true, signals: true, metadata: true, times: true });
        for nr in LEAVES_THE_GROUP.iter().chain(SIGNALS).chain(METADATA).chain(TIMES) {
            assert_eq!(run(&locked, *nr, none), RET_ERRNO | libc::EPERM as u32, "call {nr}");
        }
    }
}
