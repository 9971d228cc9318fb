//! The guide and README.md, done by the letter: the commands of each page run in a folder of their own, in order, with the files that
//! the page shows.
//!
//! What pages may take for granted is in [`World`]. In a page's source:
//! - a block whose first line is `# NAME` or `# NAME: ...` with a file's name, or which stands below `<!-- file: NAME -->`,
//!   is that file; it is written when its turn comes, recipes at reduced size;
//! - a block of `sh` is carried out, with `generated:` sources and limits made small;
//! - one below `<!-- not run: REASON -->` is not, and their number is asserted;
//! - one below `<!-- status N: REASON -->` must end with that exit status.
#![cfg(unix)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "says how long blocks take, and what is skipped"
)]

#[path = "common/judge.rs"]
mod judge;
#[path = "common/markdown.rs"]
mod markdown;
#[path = "common/program.rs"]
mod program;
#[path = "common/reduced.rs"]
mod reduced;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use judge::{JudgeServer, by_rules_then_length};
use markdown::{Block, blocks};
use program::{Outcome, command};
use pt_core::testdata::{shared_data, workspace_root};
use reduced::{SMALL, reduce, reduce_generated};

/// Blocks of commands that no test carries out, each with its reason beside it in the page.
const N_NOT_RUN: usize = 2;
/// The least number of blocks that are carried out: the pages are found, and their commands are.
const MIN_RUN: usize = 50;
/// The most questions or rows that `--limit` and `--samples` ask for.
const MAX_LIMIT: u64 = 4;
/// The server that pages speak of; here it is a judge that answers by rules.
const SERVER: &str = "http://127.0.0.1:8000/v1";
/// What is typed where a command waits for words.
const TYPED: &str = "What is 3 + 4?\n";

/// Makes what pages take for granted: a base and a chat model, two runs of the quickstart, and data.
const GIVEN: &str = r#"
posttrain run recipes/quickstart.toml --out runs/first
posttrain run recipes/quickstart.toml --out runs/second --set seed=8
cp -r runs/first runs/quickstart
mkdir models
cp -r runs/first/stages/01-*/model models/base
cp -r runs/first/stages/02-*/model models/chat
mkdir path path/to
cp -r models/chat path/to/SmolLM2-135M
posttrain data convert 'generated:mix?families=sum@1-3,chat@1-3&n=40&seed=1' --to messages --out data/train.jsonl
posttrain data convert 'generated:sum?level=1-3&n=12&seed=2&form=prompt_only' --to prompt_only --out data/prompts.jsonl
for i in $(seq 50); do
    echo "{\"prompt\": \"where $i\", \"chosen\": \"go $i please\", \"rejected\": \"go $i\"}" >> data/labelled.jsonl
    echo "{\"prompt\": \"q\", \"chosen\": \"good $i\", \"rejected\": \"bad $i\", \"score_chosen\": 1.5, \"score_rejected\": -1}" >> data/scored.jsonl
done
"#;

/// A folder with the given, from which every page's own folder is copied.
struct World {
    dir: tempfile::TempDir,
    server: JudgeServer,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let server = JudgeServer::start(|_, text| by_rules_then_length(text));
        copy_recipes(&dir.path().join("recipes"), &server.url);
        write_programs(&dir.path().join("bin"));
        fs::create_dir(dir.path().join("data")).unwrap();
        link_benchmarks(&dir.path().join("data"));
        shell(dir.path(), GIVEN).ok();
        World { dir, server }
    }

    fn copy(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let all = format!("{}/.", self.dir.path().display());
        assert!(Command::new("cp").arg("-a").arg(all).arg(dir.path()).status().unwrap().success());
        dir
    }
}

/// The benchmarks' files under the names that they are looked for; whether they are there.
fn link_benchmarks(to: &Path) {
    for entry in shared_data().iter().flat_map(|data| fs::read_dir(data).unwrap()) {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().replace("-example", "");
        symlink(entry.path(), to.join(name)).unwrap();
    }
}

fn copy_recipes(to: &Path, server: &str) {
    let root = workspace_root();
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(root.join("recipes")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let text = reduce(&text, &root, SMALL).replace(SERVER, server);
        fs::write(to.join(path.file_name().unwrap()), text).unwrap();
    }
}

/// `posttrain` is the program under test, `cargo run --release --` too; `cargo install` and `cargo test` are done.
fn write_programs(bin: &Path) {
    fs::create_dir(bin).unwrap();
    symlink(env!("CARGO_BIN_EXE_posttrain"), bin.join("posttrain")).unwrap();
    let cargo = "#!/bin/sh\ncase \"$*\" in\n\"install --path crates/cli\" | \"test --workspace\") exit 0;;\n\"run --release -- \"*) shift 3; exec posttrain \"$@\";;\n\
                 *) echo \"cargo $*: not for this test\" >&2; exit 64;;\nesac\n";
    fs::write(bin.join("cargo"), cargo).unwrap();
    fs::set_permissions(bin.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// Carries out `script` in `dir`, where it finds the program under test.
fn shell(dir: &Path, script: &str) -> Outcome {
    let mut shell = Command::new("sh");
    let path = std::env::var("PATH").unwrap_or_default();
    shell.args(["-eu", "-c", script]).current_dir(dir).env("PATH", format!("{}/bin:{path}", dir.display()));
    for (name, value) in command(dir, &[]).get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = shell.spawn().expect("the shell starts");
    // A command that reads nothing is no failure of the test.
    let _ = child.stdin.take().unwrap().write_all(TYPED.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Outcome {
        code: output.status.code().expect("the shell was not killed"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// The file that a block is, by its remark or its first line.
fn file_name(block: &Block) -> Option<&str> {
    let first = || {
        let name = block.text.lines().next()?.strip_prefix("# ")?.split([' ', ':']).next()?;
        let (stem, extension) = name.rsplit_once('.')?;
        (!stem.is_empty() && !extension.is_empty()).then_some(name)
    };
    if block.info == "sh" { None } else { block.remark("file").or_else(first) }
}

fn write_file(dir: &Path, name: &str, block: &Block, server: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let is_recipe = block.info == "toml" && block.text.contains("[[stage]]");
    let text = if is_recipe { reduce(&block.text, dir, SMALL) } else { block.text.clone() };
    fs::write(path, text.replace(SERVER, server)).unwrap();
}

/// The commands of a block, at a reduced size, asking the test's own server.
fn small_commands(text: &str, server: &str) -> String {
    let text = reduce_generated(text, SMALL).replace(SERVER, server);
    text.split_inclusive('\n').map(small_limits).collect()
}

/// A line with no `--limit` above what a test has time for.
fn small_limits(line: &str) -> String {
    let mut out = String::new();
    let mut is_limit = false;
    for word in line.split_inclusive(char::is_whitespace) {
        let (number, end) = word.split_at(word.trim_end().len());
        match number.parse::<u64>() {
            Ok(number) if is_limit => out = out + &number.min(MAX_LIMIT).to_string() + end,
            _ => out += word,
        }
        is_limit = ["--limit", "--samples"].contains(&number);
    }
    out
}

/// What a page makes is not given to it.
fn remove_outputs(dir: &Path, blocks: &[Block]) {
    let words =
        blocks.iter().filter(|block| block.info == "sh").flat_map(|block| block.text.split_whitespace());
    let words: Vec<&str> = words.collect();
    for pair in words.windows(2).filter(|pair| pair[0] == "--out" && !pair[1].starts_with('/')) {
        let path = dir.join(pair[1]);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        }
    }
}

/// What became of a page's blocks of commands.
#[derive(Default)]
struct Count {
    run: usize,
    not_run: Vec<String>,
    failures: Vec<String>,
}

/// The exit status that a block is said to end with.
fn expected_status(block: &Block) -> i32 {
    (1..=2).find(|code| block.remark(&format!("status {code}")).is_some()).unwrap_or(0)
}

/// What a page needs that this machine lacks.
fn lacking(page: &str) -> Option<&'static str> {
    let has_python = || Command::new("python3").arg("--version").output().is_ok();
    let needs = |what: &str| page.contains(what);
    match () {
        () if needs("--data-dir") && shared_data().is_none() => Some("../shared/data"),
        () if needs("python3") && !has_python() => Some("python3"),
        () => None,
    }
}

fn follow(page: &Path, world: &World) -> Count {
    let text = fs::read_to_string(page).unwrap();
    if let Some(missing) = lacking(&text) {
        eprintln!("\n*** SKIPPED: {} was not followed, for there is no {missing} ***\n", page.display());
        return Count::default();
    }
    let name = page.file_name().unwrap().to_string_lossy().into_owned();
    let blocks = blocks(&text);
    let dir = world.copy();
    remove_outputs(dir.path(), &blocks);
    let mut count = Count::default();
    for block in blocks {
        let place = format!("{name}:{}", block.line);
        if let Some(reason) = block.remark("not run") {
            assert!(reason.len() > 10, "{place} has no reason not to be run");
            count.not_run.push(format!("{place}: {reason}"));
        } else if let Some(file) = file_name(&block) {
            write_file(dir.path(), file, &block, &world.server.url);
        } else if block.info == "sh" {
            let began = std::time::Instant::now();
            let commands = small_commands(&block.text, &world.server.url);
            let outcome = shell(dir.path(), &commands);
            count.run += 1;
            println!("{place}: {:.1} s", began.elapsed().as_secs_f64());
            let is_whole = !outcome.stderr.contains("panicked");
            if outcome.code != expected_status(&block) || !is_whole {
                count.failures.push(format!("{place}: {outcome:#?}\n{commands}").replace("\\n", "\n"));
                break;
            }
        }
    }
    count
}

/// All pages, or those whose path has `GUIDE_PAGE` in it.
fn pages() -> Vec<PathBuf> {
    let guide = workspace_root().join("docs/guide");
    let only = std::env::var("GUIDE_PAGE").unwrap_or_default();
    let entries = fs::read_dir(guide).unwrap().map(|entry| entry.unwrap().path());
    let pages = entries.chain([workspace_root().join("README.md")]);
    let mut pages: Vec<PathBuf> = pages.filter(|path| path.to_string_lossy().contains(&only)).collect();
    pages.sort();
    pages
}

#[test]
fn every_command_of_the_guide_does_what_it_says() {
    let world = World::new();
    let queue = Mutex::new(pages());
    let total = Mutex::new(Count::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(page) = { queue.lock().unwrap().pop() } {
                    let count = follow(&page, &world);
                    let mut total = total.lock().unwrap();
                    total.run += count.run;
                    total.not_run.extend(count.not_run);
                    total.failures.extend(count.failures);
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    println!("{} blocks were run; not run:\n{}", total.run, total.not_run.join("\n"));
    assert!(total.failures.is_empty(), "{}", total.failures.join("\n\n"));
    if std::env::var_os("GUIDE_PAGE").is_some() {
        return;
    }
    assert_eq!(total.not_run.len(), N_NOT_RUN, "blocks that are not run");
    assert!(total.run >= MIN_RUN, "{} blocks were run", total.run);
}
