//! From a job and what the machine allows to the steps of its launch.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::launch::{Launch, Step, attempt, effective_gid, effective_uid};
use crate::{Capabilities, Job, Limits, SandboxError, landlock, seccomp};

/// Where the program works when its root is its own. No host has this folder, so no readable path lies below it.
const WORK: &str = "/pt_job";
/// Any folder that is always there: the new root lies over it until it becomes the root.
const OVER: &str = "/usr";
/// What programs need of the host, where it exists.
const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/nix/store",
];
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/urandom"];
/// Where programs named without a path are.
const PATH: &[&str] = &["/usr/local/bin", "/usr/bin", "/bin"];
/// Users of jobs begin here: far above all that systems give out.
const FIRST_USER: u32 = 0x6000_0000;
/// Whoever the user inside a user namespace is there.
const INNER_USER: u32 = 1000;

const NAMESPACES: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// Which layers this machine has.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    /// Own mounts, processes and network.
    pub(crate) namespaces: bool,
    /// A user namespace is needed for them.
    pub(crate) user_namespace: bool,
    /// Root becomes somebody else.
    pub(crate) other_user: bool,
    pub(crate) seccomp: bool,
    pub(crate) landlock: u32,
}

impl Layers {
    /// Tries what works, strongest first.
    pub(crate) fn examine() -> (Layers, Capabilities) {
        let mut missing = Vec::new();
        let mut works = |what: &str, namespaces: i32, steps: Vec<Step>| {
            let names: Vec<String> = steps.iter().map(describe).collect();
            let Err(failure) = attempt(namespaces, steps) else { return true };
            let at = failure.step.and_then(|i| names.get(i)).map_or("starting a process", String::as_str);
            missing.push(format!("{what}: {at}: {}", failure.error));
            false
        };
        let is_root = effective_uid() == 0;
        let other_user = is_root && works("another user", 0, vec![Step::User { uid: next_user() }]);
        let root = |user_namespace| {
            let mut steps = Vec::new();
            if user_namespace {
                steps.push(map_ids());
            }
            new_root(&mut steps, &[], 1 << 20, 0);
            steps
        };
        let plain = is_root && works("namespaces", NAMESPACES, root(false));
        let filter = seccomp::filter(seccomp::Locks::default());
        let seccomp = works("seccomp", 0, vec![Step::NoNewPrivileges, Step::Seccomp { filter }]);
        let abi = landlock::abi();
        let landlock = match abi {
            0 => 0,
            abi => {
                let step = Step::Landlock { ruleset: landlock::ruleset(abi), beneath: Vec::new() };
                if works("Landlock", 0, vec![Step::NoNewPrivileges, step]) { abi } else { 0 }
            }
        };
        // Root stays root in a user namespace of its own making, where no limit on processes holds for it; another user held by
        // Landlock is the stronger of the two.
        let is_enough = plain || other_user && landlock >= 3;
        let user_namespace =
            !is_enough && works("user namespace", NAMESPACES | libc::CLONE_NEWUSER, root(true));
        let other_user = other_user && !user_namespace;
        if abi == 0 {
            missing.push("Landlock: not in this kernel, or not enabled".to_owned());
        }
        let namespaces = plain || user_namespace;
        let layers = Layers { namespaces, user_namespace, other_user, seccomp, landlock };
        if namespaces {
            // That it took a user namespace is no lack.
            missing.retain(|line| !line.starts_with("namespaces"));
        }
        let capabilities = Capabilities {
            mount_namespace: namespaces,
            pid_namespace: namespaces,
            network_namespace: namespaces,
            user_namespace,
            other_user,
            seccomp,
            landlock,
            missing,
        };
        (layers, capabilities)
    }
}

/// A step's name, without what it holds.
pub(crate) fn describe(step: &Step) -> String {
    match step {
        Step::CopyTree { source, .. } => format!("CopyTree {}", source.to_string_lossy()),
        Step::File { path, .. } => format!("File {}", path.to_string_lossy()),
        Step::Folder { path } | Step::PlaceTree { path, .. } | Step::Go { path } => {
            format!("{} {}", debug_name(step), path.to_string_lossy())
        }
        Step::Limit { resource, value } => format!("Limit {resource} = {value}"),
        other => debug_name(other),
    }
}

fn debug_name(step: &Step) -> String {
    let text = format!("{step:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

/// A user nobody else is: of this process, and of this job among its last thousand.
fn next_user() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed) & 0x3ff;
    FIRST_USER | ((std::process::id() & 0x3_ffff) << 10) | n
}

fn map_ids() -> Step {
    let line = |id: u32| text(format!("{INNER_USER} {id} 1"));
    Step::MapIds { uid: line(effective_uid()), gid: line(effective_gid()) }
}

/// Texts of ours, which have no zero byte.
fn text(text: impl Into<Vec<u8>>) -> CString {
    CString::new(text).expect("no zero byte in a text of ours")
}

fn path_text(path: &Path) -> CString {
    text(path.as_os_str().as_bytes())
}

/// Mounts, then leaves, everything the program is to see. `readable` was checked to be absolute.
fn new_root(steps: &mut Vec<Step>, readable: &[PathBuf], disk_bytes: u64, owner: u32) {
    steps.push(Step::PrivateMounts);
    let mut trees: Vec<(PathBuf, bool)> = Vec::new();
    let mut links = Vec::new();
    for path in SYSTEM.iter().map(PathBuf::from) {
        match path.symlink_metadata() {
            Ok(data) if data.is_symlink() => {
                links.extend(path.read_link().ok().map(|target| (target, path.clone())));
            }
            Ok(_) => trees.push((path, false)),
            Err(_) => {}
        }
    }
    for path in readable {
        // What lies below something that is there already needs no mount.
        let is_there = path.exists() && !trees.iter().any(|(tree, _)| path.starts_with(tree));
        if is_there && !links.iter().any(|(_, link)| path.starts_with(link)) {
            trees.push((path.clone(), false));
        }
    }
    trees.extend(DEVICES.iter().map(PathBuf::from).filter(|path| path.exists()).map(|path| (path, true)));
    for (slot, (path, device)) in trees.iter().enumerate() {
        steps.push(Step::CopyTree { slot, source: path_text(path), device: *device });
    }
    let options = text(format!("size={disk_bytes},nr_inodes=8192,mode=755"));
    steps.push(Step::Root { over: text(OVER), options });
    let mut made = BTreeSet::new();
    let mut folders = |steps: &mut Vec<Step>, path: &Path| {
        let mut so_far = PathBuf::new();
        for part in path.components().filter(|part| matches!(part, Component::Normal(_))) {
            so_far.push(part);
            if made.insert(so_far.clone()) {
                steps.push(Step::Folder { path: path_text(&so_far) });
            }
        }
    };
    for (slot, (path, _)) in trees.iter().enumerate() {
        let inside = path.strip_prefix("/").expect("checked to be absolute");
        if path.is_dir() {
            folders(steps, inside);
        } else {
            folders(steps, inside.parent().unwrap_or(Path::new("")));
            steps.push(Step::Empty { path: path_text(inside) });
        }
        steps.push(Step::PlaceTree { slot, path: path_text(inside) });
    }
    for (target, path) in links {
        let path = path_text(path.strip_prefix("/").expect("absolute"));
        steps.push(Step::Link { target: path_text(&target), path });
    }
    let work = &WORK[1..];
    steps.push(Step::Folder { path: text(work) });
    // Programs that know no TMPDIR work in their folder too, except where a readable path takes the name.
    if !made.contains(Path::new("tmp")) {
        steps.push(Step::Link { target: text(work), path: text("tmp") });
    }
    if owner != 0 {
        steps.push(Step::Give { path: text(work), uid: owner });
    }
    steps.push(Step::Pivot);
}

/// What the planner needs besides the job.
pub(crate) struct Setting<'a> {
    pub(crate) layers: &'a Layers,
    pub(crate) limits: &'a Limits,
    /// Its work folder on the host, where it has no root of its own.
    pub(crate) folder: Option<&'a Path>,
    /// Its descriptors 0, 1 and 2.
    pub(crate) standard: [RawFd; 3],
    /// Whether it is long-lived: no limit on CPU time, and it outlives the thread that started it.
    pub(crate) is_session: bool,
}

fn wrong(field: &'static str, value: impl AsRef<OsStr>, problem: &'static str) -> SandboxError {
    SandboxError::Job { field, value: value.as_ref().to_string_lossy().into_owned(), problem }
}

fn given(field: &'static str, value: impl AsRef<OsStr>) -> Result<CString, SandboxError> {
    let value = value.as_ref();
    CString::new(value.as_bytes()).map_err(|_| wrong(field, value, "a text with a zero byte"))
}

fn program(job: &Job) -> Result<PathBuf, SandboxError> {
    let name = &job.program;
    if name.is_absolute() {
        return Ok(name.clone());
    }
    let found = PATH.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
    let is_name = name.components().count() == 1;
    found.filter(|_| is_name).ok_or_else(|| {
        wrong("program", name, "neither an absolute path nor found in /usr/local/bin, /usr/bin or /bin")
    })
}

/// The steps and the program of a job.
pub(crate) fn plan(job: &Job, setting: &Setting<'_>) -> Result<Launch, SandboxError> {
    let Setting { layers, limits, .. } = setting;
    let program = program(job)?;
    for path in &job.readable {
        let is_plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
        if !is_plain || path == Path::new("/") {
            return Err(wrong("readable path", path, "not an absolute path below `/` without `..`"));
        }
        if path.starts_with(WORK) {
            return Err(wrong("readable path", path, "below the job's own folder, which is empty at first"));
        }
    }
    let user = layers.other_user.then(next_user);
    let work = setting.folder.unwrap_or(Path::new(WORK));
    let mut steps = Vec::new();
    let mut namespaces = 0;
    if layers.namespaces {
        namespaces = NAMESPACES;
        if layers.user_namespace {
            namespaces |= libc::CLONE_NEWUSER;
            steps.push(map_ids());
        }
        new_root(&mut steps, &job.readable, limits.disk_bytes, user.unwrap_or(0));
    } else if let Some(uid) = user {
        steps.push(Step::Give { path: path_text(work), uid });
    }
    for (to, from) in setting.standard.into_iter().enumerate() {
        steps.push(Step::Descriptor { from, to: to as RawFd });
    }
    steps.extend([Step::CloseOthers, Step::Group]);
    limit(&mut steps, setting);
    steps.extend(user.map(|uid| Step::User { uid }));
    if !setting.is_session {
        steps.push(Step::DieWithParent);
    }
    steps.push(Step::Go { path: path_text(work) });
    files(&mut steps, job)?;
    confine(&mut steps, job, setting, work);
    steps.push(Step::Signals);
    let mut args = vec![given("program", &program)?];
    for arg in &job.args {
        args.push(given("argument", arg)?);
    }
    let home = work.to_string_lossy();
    let mut env = vec![format!("PATH={}", PATH.join(":")), format!("HOME={home}"), format!("TMPDIR={home}")];
    env.push("LANG=C.UTF-8".to_owned());
    env.extend(job.env.iter().map(|(name, value)| format!("{name}={value}")));
    let env = env.iter().map(|line| given("environment", line)).collect::<Result<_, _>>()?;
    Ok(Launch { namespaces, steps, program: given("program", &program)?, args, env })
}

fn limit(steps: &mut Vec<Step>, setting: &Setting<'_>) {
    let limits = setting.limits;
    let mut set = |resource, value| steps.push(Step::Limit { resource, value });
    set(libc::RLIMIT_CORE, 0);
    set(libc::RLIMIT_DATA, limits.memory_bytes);
    if let Some(bytes) = limits.address_bytes {
        set(libc::RLIMIT_AS, bytes);
    }
    set(libc::RLIMIT_FSIZE, limits.disk_bytes);
    set(libc::RLIMIT_NOFILE, limits.open_files);
    set(libc::RLIMIT_MEMLOCK, 0);
    set(libc::RLIMIT_MSGQUEUE, 0);
    if !setting.is_session {
        set(libc::RLIMIT_CPU, limits.cpu.as_secs() + u64::from(limits.cpu.subsec_nanos() > 0));
    }
    // Counted per user; a user namespace of our own counts its own.
    let others = match setting.layers.other_user || setting.layers.user_namespace {
        true => 0,
        false => crate::run::processes_of(effective_uid()),
    };
    set(libc::RLIMIT_NPROC, limits.processes + others);
}

fn files(steps: &mut Vec<Step>, job: &Job) -> Result<(), SandboxError> {
    let mut made = BTreeSet::new();
    for (path, bytes) in &job.files {
        let is_inside = path.components().all(|part| matches!(part, Component::Normal(_)));
        if !is_inside || path.as_os_str().is_empty() {
            return Err(wrong("file", path, "not a relative path without `..`"));
        }
        let parents: Vec<&Path> = path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        for parent in parents.into_iter().rev() {
            if made.insert(parent.to_owned()) {
                steps.push(Step::Folder { path: given("file", parent)? });
            }
        }
        steps.push(Step::File { path: given("file", path)?, bytes: bytes.clone() });
    }
    Ok(())
}

fn confine(steps: &mut Vec<Step>, job: &Job, setting: &Setting<'_>, work: &Path) {
    let layers = setting.layers;
    steps.push(Step::NoNewPrivileges);
    let abi = layers.landlock;
    if abi > 0 {
        let mut beneath = vec![(path_text(work), landlock::all_files(abi))];
        let mut readable = |path: &Path| {
            let rights = if path.is_dir() { landlock::READ } else { landlock::READ_ONE };
            beneath.push((path_text(path), rights));
        };
        if layers.namespaces {
            readable(Path::new("/"));
        } else {
            SYSTEM
                .iter()
                .map(Path::new)
                .chain(job.readable.iter().map(PathBuf::as_path))
                .for_each(&mut readable);
        }
        beneath.extend(DEVICES.iter().map(|path| (text(*path), landlock::DEVICE)));
        steps.push(Step::Landlock { ruleset: landlock::ruleset(abi), beneath });
    }
    if layers.seccomp {
        // What a user may do to his own things, and a job must not.
        let is_caller = !layers.namespaces && !layers.other_user;
        let locks = seccomp::Locks {
            group: !layers.namespaces,
            times: !layers.namespaces,
            signals: is_caller && abi < 6,
            metadata: is_caller,
        };
        steps.push(Step::Seccomp { filter: seccomp::filter(locks) });
    }
}
