//! Damage of every kind is found; a whole checkpoint is always there.

use super::*;
use pt_core::rng::Stream;

fn keep(keep_last: usize) -> Retention {
    Retention { keep_last, best: None }
}

fn state(step: u64) -> CheckpointState {
    CheckpointState {
        step,
        plan_hash: "plan-a".into(),
        seed: 7,
        data: serde_json::json!({"epoch": 1, "row": step * 3}),
        counters: BTreeMap::from([("num_tokens".to_owned(), step * 1000)]),
        metrics: BTreeMap::from([("eval_loss".to_owned(), 1.0 / (step as f64 + 0.1))]),
        extra: serde_json::json!({"scale": 0.1, "third": 1.0 / 3.0, "tiny": 5e-324}),
    }
}

fn tensors(step: u64) -> Vec<TensorEntry<'static>> {
    let mut draws = Stream::new(step, "tensors").at(0);
    let values: Vec<f32> = (0..300).map(|_| draws.normal() as f32).collect();
    vec![
        TensorEntry::f32("model.w", &[30, 10], &values),
        TensorEntry::f32("adam.m.w", &[300], &values),
        TensorEntry::new("codes", crate::DtypeTag::U8, &[4], vec![step as u8; 4]),
    ]
}

fn store_with(dir: &Path, steps: &[u64]) -> CheckpointStore {
    let store = CheckpointStore::open(dir, keep(9)).unwrap();
    for &step in steps {
        store.save(&state(step), tensors(step)).unwrap();
    }
    store
}

fn assert_whole(checkpoint: &Checkpoint, step: u64) {
    assert_eq!(checkpoint.state, state(step));
    assert_eq!(checkpoint.tensors.len(), 3);
    for entry in tensors(step) {
        assert_eq!(checkpoint.tensors[&entry.name].bytes, *entry.bytes, "{}", entry.name);
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_saved_comes_back_and_the_newest_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), &[1, 200, 1_000_001]);
    assert_eq!(store.steps().unwrap(), [1, 200, 1_000_001]);
    let found = store.latest_valid().unwrap();
    assert!(found.skipped.is_empty());
    let mut checkpoint = found.checkpoint.unwrap();
    assert_whole(&checkpoint, 1_000_001);
    assert_eq!(checkpoint.take("codes").unwrap().shape, [4]);
    assert!(checkpoint.take("codes").unwrap_err().to_string().contains("`codes`"));
    assert!(checkpoint.expect_plan("plan-a").is_ok());
    assert!(checkpoint.expect_plan("plan-b").unwrap_err().to_string().contains("undo the change"));
}

#[test]
fn an_empty_folder_has_no_checkpoint_and_that_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(&dir.path().join("new/checkpoints"), keep(1)).unwrap();
    assert!(store.latest_valid().unwrap().checkpoint.is_none());
}

#[test]
fn the_newest_and_the_best_stay() {
    // (lower is better) value at steps 1..=6; keep_last; what stays
    let cases: [(&[f64], usize, &[u64]); 4] = [
        (&[5.0, 1.0, 4.0, 3.0, 2.0, 2.0], 2, &[2, 5, 6]),
        (&[5.0, 4.0, 3.0, 2.0, 1.0, 1.0], 1, &[5, 6]),
        (&[6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 0, &[6]),
        (&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3, &[1, 4, 5, 6]),
    ];
    for (values, keep_last, expected) in cases {
        for higher_is_better in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let best = Some(BestBy { metric: "m".into(), higher_is_better });
            let store = CheckpointStore::open(dir.path(), Retention { keep_last, best }).unwrap();
            for (i, value) in values.iter().enumerate() {
                let value = if higher_is_better { -value } else { *value };
                let metrics = BTreeMap::from([("m".to_owned(), value)]);
                let state = CheckpointState { metrics, ..state(i as u64 + 1) };
                store.save(&state, []).unwrap();
            }
            assert_eq!(store.steps().unwrap(), expected, "{values:?}");
            assert_eq!(names_in(dir.path()).len(), expected.len());
        }
    }
}

#[test]
fn only_what_beats_the_best_kept_would_be_best() {
    let check = |best: Option<&str>, saved: &[f64], key: &str, value: f64, expected: bool| {
        let dir = tempfile::tempdir().unwrap();
        let best = best.map(|metric| BestBy { metric: metric.into(), higher_is_better: false });
        let store = CheckpointStore::open(dir.path(), Retention { keep_last: 9, best }).unwrap();
        for (i, value) in saved.iter().enumerate() {
            let metrics = BTreeMap::from([("m".to_owned(), *value)]);
            store.save(&CheckpointState { metrics, ..state(i as u64 + 1) }, []).unwrap();
        }
        let metrics = BTreeMap::from([(key.to_owned(), value)]);
        assert_eq!(store.would_be_best(&metrics).unwrap(), expected, "{saved:?} {key} {value}");
    };
    check(Some("m"), &[], "m", 5.0, true);
    check(Some("m"), &[3.0, 4.0], "m", 2.9, true);
    check(Some("m"), &[3.0, 4.0], "m", 3.0, false);
    check(Some("m"), &[3.0, 4.0], "m", 3.5, false);
    check(Some("m"), &[], "m", f64::NAN, false);
    check(Some("m"), &[3.0], "other", 1.0, false);
    check(None, &[3.0], "m", 1.0, false);
}

#[test]
fn a_resume_discards_what_it_will_write_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), &[1, 2, 3, 4]);
    store.discard_after(2).unwrap();
    assert_eq!(store.steps().unwrap(), [1, 2]);
    store.save(&state(2), tensors(2)).unwrap();
    assert_whole(&store.latest_valid().unwrap().checkpoint.unwrap(), 2);
    assert_eq!(names_in(dir.path()), ["step-000001", "step-000002"]);
}

/// Seeded fuzz: truncations, bit flips, deletions, appended and overwritten bytes.
#[test]
fn random_damage_is_always_found_and_the_previous_checkpoint_used() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), &[1, 2]);
    let stream = Stream::new(11, "damage");
    for round in 0..600 {
        let mut draws = stream.at(round);
        let name = *draws.pick(&[TENSORS_FILE, STATE_FILE]);
        let path = store.path_of(2).join(name);
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        let kind = draws.below(5);
        match kind {
            0 => damaged.truncate(draws.below(whole.len())),
            1 => damaged[draws.below(whole.len())] ^= 1 << draws.below(8),
            2 => damaged.extend((0..=draws.below(9)).map(|i| i as u8)),
            3 => {
                let at = draws.below(whole.len());
                damaged[at..].fill(0);
            }
            _ => damaged.clear(),
        }
        if damaged == whole {
            continue; // zeros written over zeros
        }
        fs::write(&path, &damaged).unwrap();
        let found = store.latest_valid().unwrap();
        assert_whole(&found.checkpoint.unwrap(), 1);
        let [RunError::Corrupt { path: named, .. }] = &found.skipped[..] else {
            panic!("round {round} kind {kind}: {:?}", found.skipped)
        };
        assert_eq!(*named, path, "round {round} kind {kind}");
        fs::write(&path, &whole).unwrap();
    }
    assert_whole(&store.latest_valid().unwrap().checkpoint.unwrap(), 2);
}

#[test]
fn every_single_bit_of_the_state_counts() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), &[1]);
    let path = store.path_of(1).join(STATE_FILE);
    let whole = fs::read(&path).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(unseal(&path, &damaged).is_err_and(|e| e.is_corruption()), "bit {bit}");
    }
}

#[test]
fn missing_files_are_named_and_all_damaged_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), &[1, 2]);
    fs::remove_file(store.path_of(2).join(STATE_FILE)).unwrap();
    fs::remove_file(store.path_of(1).join(TENSORS_FILE)).unwrap();
    let message = store.latest_valid().unwrap_err().to_string();
    for part in
        ["no valid checkpoint", "step-000002/state.json", "step-000001/tensors.safetensors", "missing"]
    {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_newer_format_is_refused_and_not_taken_for_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with(dir.path(), &[1, 2]);
    let newer = serde_json::json!({"format_version": 2, "something": "else"});
    let rest = format!("\",\n\"body\":{newer}}}\n");
    let text = format!("{SEAL}{}{rest}", pt_core::hash::of_bytes(rest.as_bytes()));
    fs::write(store.path_of(2).join(STATE_FILE), text).unwrap();
    let message = store.latest_valid().unwrap_err().to_string();
    assert!(message.contains("format 2") && message.contains("reads up to 1"), "{message}");
}

/// The folder as `kill -9` leaves it after each step of saving step 2 over {1} or over {1, 2}.
#[test]
fn a_kill_at_any_moment_leaves_a_whole_checkpoint() {
    type Moment = (&'static str, fn(&Path), u64);
    let moments: [Moment; 8] = [
        ("before anything", |_| {}, 1),
        ("temporary folder made", |d| fs::create_dir(d.join(".step-000002.partial")).unwrap(), 1),
        ("half the tensors", |d| partial(d, 0.5, false), 1),
        ("tensors, no state", |d| partial(d, 1.0, false), 1),
        ("all written, not renamed", |d| partial(d, 1.0, true), 1),
        (
            "older one of the same step moved aside",
            |d| {
                store_with(d, &[2]);
                fs::rename(d.join("step-000002"), d.join(".step-000002.old.partial")).unwrap();
                partial(d, 1.0, true);
            },
            2,
        ),
        (
            "renamed, older one half deleted",
            |d| {
                store_with(d, &[2]);
                fs::create_dir(d.join(".step-000002.old.partial")).unwrap();
                fs::write(d.join(".step-000002.old.partial").join(STATE_FILE), "{").unwrap();
            },
            2,
        ),
        (
            "pruned one half deleted",
            |d| {
                store_with(d, &[2]);
                fs::create_dir(d.join(".step-000000.gone.partial")).unwrap();
            },
            2,
        ),
    ];
    for (moment, kill, expected) in moments {
        let dir = tempfile::tempdir().unwrap();
        store_with(dir.path(), &[1]);
        kill(dir.path());
        let store = CheckpointStore::open(dir.path(), keep(9)).unwrap();
        let found = store.latest_valid().unwrap();
        assert!(found.skipped.is_empty(), "{moment}: {:?}", found.skipped);
        assert_whole(&found.checkpoint.unwrap(), expected);
        assert!(names_in(dir.path()).iter().all(|n| n.starts_with("step-")), "{moment}");
        store.save(&state(3), tensors(3)).unwrap();
        assert_whole(&store.latest_valid().unwrap().checkpoint.unwrap(), 3);
    }
}

/// A `.step-000002.partial` with a share of the tensors' bytes, with or without the state.
fn partial(dir: &Path, share: f64, with_state: bool) {
    let elsewhere = tempfile::tempdir().unwrap();
    let source = store_with(elsewhere.path(), &[2]).path_of(2);
    let target = dir.join(".step-000002.partial");
    fs::create_dir(&target).unwrap();
    let bytes = fs::read(source.join(TENSORS_FILE)).unwrap();
    fs::write(target.join(TENSORS_FILE), &bytes[..(bytes.len() as f64 * share) as usize]).unwrap();
    if with_state {
        fs::copy(source.join(STATE_FILE), target.join(STATE_FILE)).unwrap();
    }
}

#[test]
fn an_unwritable_place_is_an_error_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let message =
        CheckpointStore::open(&dir.path().join("file/checkpoints"), keep(1)).unwrap_err().to_string();
    assert!(message.contains("could not create") && message.contains("file/checkpoints"), "{message}");
    let store = store_with(&dir.path().join("c"), &[1]);
    fs::remove_dir_all(&store.dir).unwrap();
    fs::write(&store.dir, "in the way").unwrap();
    let message = store.save(&state(2), tensors(2)).unwrap_err().to_string();
    assert!(message.contains("step-000002"), "{message}");
}

const KILLED: &str = "PT_RUN_TEST_KILLED";

/// A real `kill -9`, at twenty moments, of a process that does nothing but save: what it leaves always
/// holds a whole checkpoint at least as new as the last one it reported.
#[cfg(unix)]
#[test]
fn a_killed_writer_leaves_every_checkpoint_it_reported() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    if let Ok(dir) = std::env::var(KILLED) {
        save_for_ever(Path::new(&dir));
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("checkpoints");
    let mut last_found = 0;
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "checkpoint::tests::a_killed_writer_leaves_every_checkpoint_it_reported",
                "--nocapture",
            ])
            .env(KILLED, &dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut saved = lines.filter_map(|line| line.unwrap().split("saved ").nth(1)?.parse::<u64>().ok());
        let reported = saved.nth(round % 3).expect("the writer saves until it is killed");
        // Work of a random length, so that the kill meets the writer at different moments.
        pt_core::hash::of_bytes(&vec![0; Stream::new(1, "kill").at(round as u64).below(3_000_000)]);
        child.kill().unwrap();
        child.wait().unwrap();
        let found = CheckpointStore::open(&dir, keep(1)).unwrap().latest_valid().unwrap();
        assert!(found.skipped.is_empty(), "round {round}: {:?}", found.skipped);
        let checkpoint = found.checkpoint.unwrap();
        let step = checkpoint.state.step;
        assert!(step >= reported && reported > last_found, "round {round}: {step}, {reported}, {last_found}");
        assert_whole(&checkpoint, step);
        last_found = step;
    }
}

/// Saves every step twice: publishing over an older folder has a moment of its own.
fn save_for_ever(dir: &Path) -> ! {
    let store = CheckpointStore::open(dir, keep(1)).unwrap();
    let first = store.steps().unwrap().last().map_or(1, |last| last + 1);
    for step in first.. {
        for _ in 0..2 {
            store.save(&state(step), tensors(step)).unwrap();
        }
        io::Write::write_all(&mut io::stdout(), format!("saved {step}\n").as_bytes()).unwrap();
    }
    unreachable!("steps do not run out");
}

const CHILD: &str = "PT_RUN_TEST_FULL_DISK";

/// The write fails part-way, as on a full disk: the shell limits the file size of a copy of this test.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_checkpoint_and_nothing_half_written() {
    if let Ok(dir) = std::env::var(CHILD) {
        let store = CheckpointStore::open(Path::new(&dir), keep(9)).unwrap();
        let big = TensorEntry::new("big", crate::DtypeTag::U8, &[1 << 20], vec![1; 1 << 20]);
        let error = store.save(&state(2), [big]).unwrap_err();
        fs::write(Path::new(&dir).join("message"), error.to_string()).unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    store_with(dir.path(), &[1]);
    let name = "checkpoint::tests::a_full_disk_leaves_the_old_checkpoint_and_nothing_half_written";
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" --exact \"$1\""])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let message = fs::read_to_string(dir.path().join("message")).unwrap();
    assert!(
        message.contains("could not write") && message.contains("step-000002/tensors.safetensors"),
        "{message}"
    );
    assert_eq!(names_in(dir.path()), ["message", "step-000001"]);
    let store = CheckpointStore::open(dir.path(), keep(9)).unwrap();
    assert_whole(&store.latest_valid().unwrap().checkpoint.unwrap(), 1);
}
