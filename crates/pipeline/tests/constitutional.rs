//! `recipes/constitutional-ai.sh` with a program in place of posttrain that only notes how it is called.

mod common;

use std::path::Path;
use std::process::Command;

use common::tempdir;

/// Notes its arguments; a run leaves what a stage leaves, `KIND` being `model` or `adapter`.
const PROGRAM: &str = r#"#!/bin/sh
echo "$@" >> "$CALLS"
[ "$1 $2" = "feedback constitution" ] && exit
case "$1" in
    run) name=$(basename "$2" .toml); stage="$4/stages/01-$name"; mkdir -p "$stage/$KIND"; : > "$stage/outcome.json" ;;
    merge) mkdir "$7"; echo "merged" ;;
esac
"#;

fn calls(dir: &Path, kind: &str) -> String {
    let program = dir.join("posttrain");
    std::fs::write(&program, PROGRAM).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (log, script) =
        (dir.join("calls"), pt_core::testdata::workspace_root().join("recipes/constitutional-ai.sh"));
    let _ = std::fs::remove_file(&log);
    let status = Command::new("sh")
        .arg(script)
        .args(["chat", "prompts.jsonl", "http://localhost:1/v1", "cai"])
        .current_dir(dir)
        .envs([("CALLS", log.as_os_str()), ("KIND", kind.as_ref()), ("POSTTRAIN", program.as_os_str())])
        .status();
    assert!(status.unwrap().success());
    std::fs::read_to_string(log).unwrap().replace(&format!("{}/", dir.canonicalize().unwrap().display()), "")
}

#[test]
fn an_adapter_is_merged_before_it_replies() {
    for (kind, tuned) in [("model", "cai/sft/stages/01-sft/model"), ("adapter", "cai/sft-merged")] {
        let dir = tempdir();
        let first = calls(dir.path(), kind);
        assert!(first.contains(&format!("--respond {tuned} ")), "{kind}: {first}");
        assert_eq!(
            first.contains("merge --model chat --adapter cai/sft/stages/01-sft/adapter --out cai/sft-merged"),
            kind == "adapter",
            "{first}"
        );
        let base = std::fs::read_to_string(dir.path().join("cai/dpo.toml")).unwrap();
        assert!(base.contains(&format!("{tuned}\"")), "{kind}: {base}");
        // Called again, nothing is trained or merged again.
        let again = calls(dir.path(), kind);
        assert!(
            !again.lines().any(|line| line.starts_with("run") || line.starts_with("merge")),
            "{kind}: {again}"
        );
    }
}
