//! The documentation, held against the program: recipes parse, commands exist, paths are there, and the crates depend on
//! each other as ARCHITECTURE.md says.

#[path = "common/markdown.rs"]
mod markdown;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use markdown::blocks;
use pt_core::testdata::workspace_root;
use pt_recipe::Recipe;

/// Pages for users and contributors, and the guide's folder.
const PAGES: &[&str] = &["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "STYLE.md"];
const GUIDE: &str = "docs/guide";

/// Every page with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let root = workspace_root();
    let mut paths: Vec<PathBuf> = PAGES.iter().map(|page| root.join(page)).collect();
    let mut guide = files_below(&root.join(GUIDE), "md");
    assert!(guide.len() >= 6, "the guide has {} pages", guide.len());
    paths.append(&mut guide);
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

fn files_below(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut files_below(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn every_recipe_in_the_documentation_is_one() {
    let mut n_recipes = 0;
    for (path, text) in pages() {
        for block in blocks(&text).into_iter().filter(|block| block.info == "toml") {
            let place = format!("{}:{}", path.display(), block.line);
            if let Err(problems) =
                Recipe::parse(&block.text, Path::new(&place), &[], &pt_pipeline::catalogue())
            {
                panic!("{place}: {problems}");
            }
            n_recipes += 1;
        }
    }
    assert!(n_recipes >= 4, "{n_recipes} recipes found");
}

#[test]
fn every_recipe_in_the_repository_is_one() {
    let recipes = files_below(&workspace_root().join("recipes"), "toml");
    assert!(!recipes.is_empty());
    for path in recipes {
        pt_pipeline::load_recipe(&path, &[]).unwrap_or_else(|problems| panic!("{problems}"));
    }
}

/// The words of a shell line up to a comment, a pipe or another command; quotes hold words together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, '#') if word.is_none() => return words,
            (None, '|' | ';' | '&' | '>') => break,
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// What is given to `posttrain` on this line, if it calls it.
fn arguments(line: &str) -> Option<Vec<String>> {
    let words = words(line);
    let after = |n: usize| Some(words[n..].to_vec());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["posttrain", ..] => after(1),
        ["cargo", "run", rest @ ..] if !rest.contains(&"-p") => {
            after(words.iter().position(|word| *word == "--").map_or(words.len(), |i| i + 1))
        }
        _ => None,
    }
}

/// `--help` at the end stops the program after it has parsed everything before, and before it does anything.
fn refusal(arguments: &[String]) -> Option<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posttrain"));
    let outcome = command.args(arguments).arg("--help").output().expect("the program starts");
    (!outcome.status.success()).then(|| String::from_utf8_lossy(&outcome.stderr).into_owned())
}

#[test]
fn every_command_in_the_documentation_exists() {
    let wrong = ["run a.toml --no-such-flag", "no-such-command", "run a.toml b.toml", "list nonsense"];
    for wrong in wrong {
        assert!(
            refusal(&words(wrong)).is_some(),
            "`posttrain {wrong}` is accepted, so this test proves nothing"
        );
    }
    let mut commands = BTreeSet::new();
    for (path, text) in pages() {
        for block in blocks(&text).into_iter().filter(|block| block.info == "sh") {
            for (i, line) in block.text.lines().enumerate() {
                let Some(arguments) = arguments(line) else { continue };
                let place = format!("{}:{}", path.display(), block.line + i);
                if let Some(refusal) = refusal(&arguments) {
                    panic!("{place}: {line}\n{refusal}");
                }
                check_sets(&arguments, &place);
                commands.extend(arguments.first().cloned());
            }
        }
    }
    for command in ["run", "plan", "data", "score", "generate", "chat", "merge", "list", "doctor"] {
        assert!(commands.contains(command), "no page shows `posttrain {command}`");
    }
}

/// `--set` on a recipe of the repository must name keys it can have.
fn check_sets(arguments: &[String], place: &str) {
    let Some(recipe) = arguments.iter().find(|argument| argument.starts_with("recipes/")) else { return };
    let after_set = |pair: &[String]| (pair[0] == "--set").then(|| pair[1].clone());
    let sets: Vec<String> = arguments.windows(2).filter_map(after_set).collect();
    pt_pipeline::load_recipe(&workspace_root().join(recipe), &sets)
        .unwrap_or_else(|problems| panic!("{place}: {problems}"));
}

/// What stands between backticks and looks like a path of the repository.
fn mentioned_paths(page: &str) -> Vec<String> {
    let roots = ["crates/", "docs/", "golden/", "recipes/", "bench/", ".ci/"];
    let spans = page.split('`').skip(1).step_by(2).flat_map(str::split_whitespace);
    spans
        .map(|word| word.trim_end_matches([',', '.', ':', ';']))
        .filter(|word| roots.iter().any(|root| word.starts_with(root)))
        .filter(|word| !word.contains(['*', '{', '<']) && !word.contains("NAME"))
        .map(str::to_owned)
        .collect()
}

/// The targets of links that stay in the repository.
fn linked_paths(page: &str) -> Vec<String> {
    let targets = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://") && !target.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn every_path_in_the_documentation_is_there() {
    let root = workspace_root();
    let (mut n_paths, mut missing) = (0, Vec::new());
    for (page, text) in pages() {
        let links = linked_paths(&text).into_iter().map(|link| page.parent().unwrap().join(link));
        for path in mentioned_paths(&text).into_iter().map(|path| root.join(path)).chain(links) {
            if !path.exists() {
                missing.push(format!("{}: {} is not there", page.display(), path.display()));
            }
            n_paths += 1;
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(n_paths > 50, "{n_paths} paths found");
}

/// Crates of ours that a crate's `[dependencies]` name.
fn dependencies(manifest: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(manifest).unwrap_or_else(|e| panic!("{}: {e}", manifest.display()));
    let section =
        text.split("\n[").find_map(|section| section.strip_prefix("dependencies]\n")).unwrap_or_default();
    let name = |line: &str| Some(line.strip_prefix("pt-")?.split(['.', '=', ' ']).next()?.to_owned());
    section.lines().filter_map(name).collect()
}

#[test]
fn crates_depend_on_each_other_as_the_architecture_says() {
    let root = workspace_root();
    let page = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let blocks = blocks(&page);
    let block = blocks.iter().find(|block| block.info == "text dependencies").expect("the block is there");
    let mut said = BTreeMap::new();
    for line in block.text.lines() {
        let (left, right) = line.split_once("<-").unwrap_or_else(|| panic!("no `<-` in: {line}"));
        let (layer, name) = left.trim().split_once(' ').unwrap_or_else(|| panic!("no layer in: {line}"));
        let layer: u32 = layer.parse().unwrap_or_else(|_| panic!("no layer in: {line}"));
        let uses: BTreeSet<String> = right.split_whitespace().map(str::to_owned).collect();
        said.insert(name.trim().to_owned(), (layer, uses));
    }
    let mut folders = BTreeSet::new();
    for entry in fs::read_dir(root.join("crates")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let (layer, uses) = said.get(&name).unwrap_or_else(|| panic!("ARCHITECTURE.md forgets `{name}`"));
        assert_eq!(
            *uses,
            dependencies(&path.join("Cargo.toml")),
            "what `{name}` uses: said, and so in Cargo.toml"
        );
        for used in uses {
            let below = said[used].0;
            assert!(below < *layer, "`{name}` in layer {layer} uses `{used}` in layer {below}");
        }
        folders.insert(name);
    }
    assert_eq!(folders, said.into_keys().collect(), "crates that are there, and crates that are named");
}

/// A source file's lines before its tests, with their numbers.
fn production_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
    code.enumerate().map(|(i, line)| (i + 1, line)).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// The first production line of these crates that contains one of `words`, with its place.
fn first_use(crates: &[String], words: &[String]) -> Option<String> {
    for name in crates {
        let src = workspace_root().join("crates").join(name).join("src");
        for path in files_below(&src, "rs").into_iter().filter(|path| !path.ends_with("tests.rs")) {
            let text = fs::read_to_string(&path).unwrap();
            let found = production_lines(&text)
                .find(|(_, code)| words.iter().any(|word| code.contains(word.as_str())));
            if let Some((line, code)) = found {
                return Some(format!("{}:{line}: {}", path.display(), code.trim()));
            }
        }
    }
    None
}

#[test]
fn only_the_command_line_reads_the_environment_or_exits() {
    let words = ["std::env", "env::var", "process::exit", "io::stdin"].map(str::to_owned);
    assert!(
        first_use(&["cli".to_owned()], &words).is_some(),
        "the command line does, so the search finds nothing"
    );
    // `core` finds test data for other crates' tests, so its `testdata.rs` is outside `cfg(test)`.
    let all = fs::read_dir(workspace_root().join("crates")).unwrap();
    let all = all.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let crates: Vec<String> = all.filter(|name| name != "cli" && name != "core").collect();
    assert_eq!(first_use(&crates, &words), None, "only the command line reads its surroundings");
}

#[test]
fn the_training_loop_names_no_algorithm() {
    let objectives = pt_objectives::OBJECTIVES.iter().map(|info| info.name);
    let optimisers = pt_optim::OPTIMISERS.iter().map(|info| info.name);
    let stages = pt_recipe::STAGE_TYPES.iter().map(|stage| stage.name);
    let quoted = |name: &str| format!("\"{name}\"");
    let names = objectives.chain(optimisers).chain(stages).map(quoted);
    let words: Vec<String> = names.chain(["CrossEntropy", "AdamW", "Muon"].map(str::to_owned)).collect();
    for owner in ["objectives", "optim", "recipe"] {
        assert!(
            first_use(&[owner.to_owned()], &words).is_some(),
            "`{owner}` names them, so the search finds nothing"
        );
    }
    assert_eq!(first_use(&["train".to_owned()], &words), None, "the training loop knows no algorithm");
}
