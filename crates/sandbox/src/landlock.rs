//! Landlock: what a process may do with files, TCP and signals, as far as the kernel knows how to refuse it.

use libc::c_long;

/// What a rule is about: a folder and everything below, or one file.
pub(crate) const RULE_PATH_BENEATH: u32 = 1;

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;

/// Reading and running.
pub(crate) const READ: u64 = EXECUTE | READ_FILE | READ_DIR;
/// Reading and writing a device.
pub(crate) const DEVICE: u64 = READ_FILE | WRITE_FILE;
/// Running one program.
pub(crate) const READ_ONE: u64 = EXECUTE | READ_FILE;

/// `struct landlock_ruleset_attr`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
pub(crate) struct PathBeneath {
    pub(crate) allowed_access: u64,
    pub(crate) parent_fd: i32,
}

/// The version of the kernel's Landlock; 0 where there is none.
pub(crate) fn abi() -> u32 {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the kernel reads no memory.
    let abi = unsafe {
        let nothing = std::ptr::null::<u8>();
        libc::syscall(libc::SYS_landlock_create_ruleset as c_long, nothing, 0usize, VERSION)
    };
    abi.max(0) as u32
}

/// All rights on files this version knows.
pub(crate) fn all_files(abi: u32) -> u64 {
    let n_rights = match abi {
        0 | 1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    let all = (1 << n_rights) - 1;
    debug_assert!(
        all & EXECUTE != 0 && (abi < 3 || all & TRUNCATE != 0) && (abi < 5 || all & IOCTL_DEV != 0)
    );
    all
}

/// Everything this version can refuse: files, TCP (from 4), signals and abstract sockets (from 6).
pub(crate) fn ruleset(abi: u32) -> Ruleset {
    Ruleset {
        handled_access_fs: all_files(abi),
        handled_access_net: if abi >= 4 { 0b11 } else { 0 },
        scoped: if abi >= 6 { 0b11 } else { 0 },
    }
}
