//! The figures in README.md and in the headers of recipes: each is named in `bench/figures.toml`, and measured again.
//!
//! The quick tests check that no figure is left out, and that each is where the table says. The measurement takes the recipes
//! at full size, some twenty minutes on two cores:
//!
//! ```sh
//! cargo test --release -p posttrain --test figures -- --ignored --nocapture
//! ```
#![allow(clippy::print_stdout, reason = "the table of figures is what the measurement is for")]

#[path = "common/program.rs"]
mod program;
#[path = "common/reduced.rs"]
mod reduced;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use program::command;
use pt_core::testdata::workspace_root;
use reduced::strings;
use serde::Deserialize;
use serde_json::Value;

const TABLE: &str = "bench/figures.toml";
/// What makes a number of these pages a figure, when it follows; so does a decimal point inside.
const UNITS: &[&str] =
    &["%", "s", "min", "GB", "MB", "GiB", "tokens/s", "points", "times", "minutes", "seconds", "GFLOP/s"];
/// What claims call significant.
const SIGNIFICANT: f64 = 0.05;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    claim: Vec<Claim>,
    given: Vec<Given>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    page: String,
    text: String,
    recipe: String,
    #[serde(default)]
    seeds: Vec<u64>,
    file: String,
    values: Vec<String>,
    because: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    page: String,
    text: String,
    reason: String,
}

fn table() -> Table {
    let text = fs::read_to_string(workspace_root().join(TABLE)).unwrap();
    toml::from_str(&text).unwrap_or_else(|error| panic!("{TABLE}: {error}"))
}

/// The pages with figures, by name, as one line of words each.
fn pages() -> BTreeMap<String, String> {
    let root = workspace_root();
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let mut pages = BTreeMap::from([("README.md".to_owned(), prose(&read("README.md")))]);
    for entry in fs::read_dir(root.join("recipes")).unwrap() {
        let name = format!("recipes/{}", entry.unwrap().file_name().to_string_lossy());
        let header: Vec<String> =
            read(&name).lines().map_while(|line| Some(line.strip_prefix('#')?.to_owned())).collect();
        pages.insert(name, one_line(&header.join("\n")));
    }
    pages
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A Markdown page without commands, recipes, code spans and the targets of links.
fn prose(page: &str) -> String {
    let (mut text, mut fence) = (String::new(), None);
    for line in page.lines() {
        match (line.strip_prefix("```"), fence) {
            (Some(_), Some(_)) => fence = None,
            (Some(info), None) => fence = Some(info),
            (None, None) => text = text + &without_code(line) + "\n",
            (None, Some("text")) => text = text + line + "\n",
            (None, Some(_)) => {}
        }
    }
    one_line(&text)
}

fn without_code(line: &str) -> String {
    let outside: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
    let mut pieces = outside.split("](");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |text, piece| text + "]" + piece.split_once(')').map_or("", |(_, rest)| rest))
}

/// The number at the beginning of `text`, and its length.
fn number(text: &str) -> Option<(f64, usize)> {
    let is_part = |(at, c): (usize, char)| {
        c.is_ascii_digit() || "+-.e".contains(c) || (c == ',' && is_thousands(&text[at + 1..]))
    };
    let end = text.char_indices().find(|part| !is_part(*part)).map_or(text.len(), |(at, _)| at);
    (1..=end).rev().find_map(|end| {
        let digits = text.get(..end)?.trim_end_matches('.');
        Some((digits.replace(',', "").parse().ok()?, digits.len()))
    })
}

/// Whether three digits follow, and no fourth: what stands behind the comma of `1,500`.
fn is_thousands(text: &str) -> bool {
    text.chars().take_while(char::is_ascii_digit).count() == 3
}

/// Where a template stands in a page, and the numbers there.
#[derive(Debug)]
struct Place {
    start: usize,
    end: usize,
    numbers: Vec<f64>,
}

/// The only place of `template` in `page`.
fn place(page: &str, template: &str) -> Result<Place, String> {
    let template = one_line(template);
    let pieces: Vec<&str> = template.split("{}").collect();
    let starts = (0..page.len()).filter(|start| page.is_char_boundary(*start));
    let mut found: Vec<Place> = starts.filter_map(|start| place_at(page, start, &pieces)).collect();
    // A template that begins with a number is found again inside that number.
    found.dedup_by(|later, earlier| later.end == earlier.end);
    match found.len() {
        1 => Ok(found.remove(0)),
        n => Err(format!("`{template}` stands there {n} times, expected once")),
    }
}

fn place_at(page: &str, start: usize, pieces: &[&str]) -> Option<Place> {
    let (mut at, mut numbers) = (start, Vec::new());
    for (i, piece) in pieces.iter().enumerate() {
        if i > 0 {
            let (value, length) = number(&page[at..])?;
            numbers.push(value);
            at += length;
        }
        at += page[at..].starts_with(piece).then_some(piece.len())?;
    }
    Some(Place { start, end: at, numbers })
}

/// The numbers of a page that are figures, with their places.
fn figures(page: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut before = ' ';
    let mut skip = 0;
    for (at, c) in page.char_indices() {
        let begins =
            at >= skip && c.is_ascii_digit() && !(before.is_alphanumeric() || "_-.=@:/".contains(before));
        before = c;
        let Some((_, length)) = begins.then(|| number(&page[at..])).flatten() else { continue };
        skip = at + length;
        let rest = page[skip..].trim_start();
        let unit = rest.split([' ', ',', '.', ';', ':', ')', '|']).next().unwrap_or_default();
        if UNITS.contains(&unit) || page[at..skip].contains('.') {
            found.push((at, &page[at..skip]));
        }
    }
    found
}

#[test]
fn every_figure_is_in_the_table() {
    let (table, pages) = (table(), pages());
    let claims = table.claim.iter().map(|claim| (&claim.page, &claim.text));
    let named: Vec<_> = claims.chain(table.given.iter().map(|given| (&given.page, &given.text))).collect();
    let mut problems = Vec::new();
    let mut covered: BTreeMap<&String, Vec<Place>> = BTreeMap::new();
    for (page, text) in named {
        let content = pages.get(page).unwrap_or_else(|| panic!("{TABLE}: there is no page {page}"));
        match place(content, text) {
            Ok(place) => covered.entry(page).or_default().push(place),
            Err(problem) => problems.push(format!("{page}: {problem}")),
        }
    }
    let mut n_figures = 0;
    for (name, page) in &pages {
        for (at, figure) in figures(page) {
            n_figures += 1;
            if !covered
                .get(name)
                .is_some_and(|places| places.iter().any(|place| (place.start..place.end).contains(&at)))
            {
                let around: String =
                    page[..at].chars().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect();
                let after: String = page[at..].chars().take(40).collect();
                problems.push(format!("{name}: {figure} in `{around}{after}` is not in {TABLE}"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(n_figures > 30, "{n_figures} figures found");
}

#[test]
fn the_table_can_be_carried_out() {
    let (table, root, pages) = (table(), workspace_root(), pages());
    for claim in &table.claim {
        assert!(
            root.join(format!("recipes/{}.toml", claim.recipe)).is_file(),
            "no recipe `{}`",
            claim.recipe
        );
        let numbers = place(&pages[&claim.page], &claim.text).map_or(0, |place| place.numbers.len());
        assert_eq!(numbers, claim.values.len(), "{}: {}", claim.page, claim.text);
        assert!(claim.because.len() > 10, "{}", claim.text);
        assert!(claim.values.iter().all(|value| Wanted::read(value, claim).within >= 0.0), "{}", claim.text);
    }
    assert!(table.given.iter().all(|given| given.reason.len() > 10));
}

#[test]
fn numbers_and_figures_are_found() {
    let page = "It took 3 min 5 s with SmolLM2-135M, r=16 and 4.5 GB; 12 rows gave 1.5e-7, +2.0 points.";
    let found: Vec<&str> = figures(page).into_iter().map(|(_, figure)| figure).collect();
    assert_eq!(found, ["3", "5", "4.5", "1.5e-7", "2.0"]);
    assert_eq!(place(page, "gave {}, {} points").unwrap().numbers, [1.5e-7, 2.0]);
    assert_eq!(
        place("of 1,500 rows, 12, 3 left", "of {} rows, {}, {} left").unwrap().numbers,
        [1500.0, 12.0, 3.0]
    );
    assert!(place(page, "{} min {} s").is_ok() && place(page, "{} rows took").is_err());
}

/// What is measured, of which run.
enum Measure {
    Value { file: String, pointer: String, seed: Option<u64> },
    OverSeeds { pointer: String, is_mean: bool },
    Metric { pointer: String, of: Lines },
    Probability { pointer: String },
    Low,
    High,
}

/// Which lines of metrics.jsonl, of those that have a metric.
#[derive(Clone, Copy)]
enum Lines {
    MeanOfFirst(usize),
    MeanOfLast(usize),
    Greatest,
}

/// A measure, what it is multiplied by, and how far it may be from what is claimed.
struct Wanted {
    measure: Measure,
    factor: f64,
    within: f64,
}

impl Wanted {
    /// Reads `WHAT * FACTOR +- WITHIN`, the last two where they are not 1 and 0.
    fn read(text: &str, claim: &Claim) -> Wanted {
        let after = |text: &str, mark: &str, default: f64| match text.split_once(mark) {
            Some((before, number)) => {
                (before.to_owned(), number.parse().unwrap_or_else(|_| panic!("{TABLE}: `{text}`")))
            }
            None => (text.to_owned(), default),
        };
        let (rest, within) = after(text, " +- ", 0.0);
        let (what, factor) = after(&rest, " * ", 1.0);
        Wanted { measure: Measure::read(&what, claim), factor, within }
    }
}

impl Measure {
    fn read(what: &str, claim: &Claim) -> Measure {
        let (head, pointer) = what.split_at(what.find('/').unwrap_or(what.len()));
        let value = |file: &str, pointer: &str, seed| Measure::Value {
            file: file.to_owned(),
            pointer: pointer.to_owned(),
            seed,
        };
        match head.trim() {
            "low" => Measure::Low,
            "high" => Measure::High,
            "mean" => Measure::OverSeeds { pointer: pointer.to_owned(), is_mean: true },
            "spread" => Measure::OverSeeds { pointer: pointer.to_owned(), is_mean: false },
            "p" => Measure::Probability { pointer: pointer.to_owned() },
            "" => value(&claim.file, pointer, None),
            "max" => Measure::Metric { pointer: pointer.to_owned(), of: Lines::Greatest },
            head if let Some(n) = head.strip_prefix("first ") => Measure::Metric {
                pointer: pointer.to_owned(),
                of: Lines::MeanOfFirst(n.trim().parse().unwrap()),
            },
            head if let Some(n) = head.strip_prefix("last ") => Measure::Metric {
                pointer: pointer.to_owned(),
                of: Lines::MeanOfLast(n.trim().parse().unwrap()),
            },
            head => match (head.strip_prefix("seed "), what.split_once(' ')) {
                (Some(seed), _) => value(&claim.file, pointer, Some(seed.trim().parse().unwrap())),
                (None, Some((file, pointer))) => value(file, pointer, None),
                (None, None) => panic!("{TABLE}: `{what}` is no value"),
            },
        }
    }
}

/// The runs, kept from one call to the next.
struct Runs {
    dir: PathBuf,
    /// Those that this call has seen to their end.
    done: RefCell<BTreeSet<PathBuf>>,
}

impl Runs {
    /// A folder from which recipes find what they find from the repository: `../shared`, and each other's `runs/`.
    fn new() -> Runs {
        let root = workspace_root().canonicalize().unwrap();
        let figures =
            std::env::var_os("FIGURES_RUNS").map_or_else(|| root.join("target/figures"), PathBuf::from);
        fs::create_dir_all(figures.join("work")).unwrap();
        let shared = root.join("../shared");
        #[cfg(unix)]
        if shared.is_dir() && !figures.join("shared").exists() {
            std::os::unix::fs::symlink(shared, figures.join("shared")).unwrap();
        }
        Runs { dir: figures.join("work"), done: RefCell::default() }
    }

    /// The folder of the run of `recipe`, which is carried out unless it is there.
    fn of(&self, recipe: &str, seed: Option<u64>) -> PathBuf {
        let out = seed.map_or_else(|| format!("runs/{recipe}"), |seed| format!("runs/{recipe}-{seed}"));
        if self.done.borrow().contains(&self.dir.join(&out)) {
            return self.dir.join(out);
        }
        let path = workspace_root().canonicalize().unwrap().join(format!("recipes/{recipe}.toml"));
        for needed in strings(&fs::read_to_string(&path).unwrap()) {
            if let Some(needed) = needed.strip_prefix("runs/").and_then(|rest| rest.split('/').next()) {
                self.of(needed, None);
            }
        }
        let seeded = seed.map(|seed| format!("seed={seed}"));
        let mut args = vec!["run", path.to_str().unwrap(), "--out", &out, "--resume"];
        seeded.iter().for_each(|set| args.extend(["--set", set]));
        println!("posttrain {}", args.join(" "));
        let status = command(&self.dir, &args).status().unwrap();
        let folder = self.dir.join(&out);
        assert!(status.success(), "{recipe} failed; if its plan has changed, remove {}", folder.display());
        self.done.borrow_mut().insert(folder.clone());
        folder
    }

    /// A metric over lines of `metrics.jsonl`.
    fn metric(&self, claim: &Claim, pointer: &str, of: Lines) -> f64 {
        let path = self.of(&claim.recipe, claim.seeds.first().copied()).join(&claim.file);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let values: Vec<f64> = lines.filter_map(|line| line.pointer(pointer)?.as_f64()).collect();
        assert!(!values.is_empty(), "{}: no line has {pointer}", path.display());
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        match of {
            Lines::MeanOfFirst(n) => mean(&values[..n]),
            Lines::MeanOfLast(n) => mean(&values[values.len() - n..]),
            Lines::Greatest => values.iter().copied().fold(f64::MIN, f64::max),
        }
    }

    fn value(&self, claim: &Claim, file: &str, pointer: &str, seed: Option<u64>) -> f64 {
        let seed = seed.or(claim.seeds.first().copied());
        let path = self.of(&claim.recipe, seed).join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let value: Value = serde_json::from_str(&text).unwrap();
        let found = value.pointer(pointer).and_then(Value::as_f64);
        found.unwrap_or_else(|| panic!("{}: there is no number at {pointer}", path.display()))
    }
}

/// A figure, and what became of it.
struct Row {
    claimed: f64,
    measured: f64,
    allowed: [f64; 2],
}

impl Row {
    fn holds(&self) -> bool {
        (self.allowed[0]..=self.allowed[1]).contains(&self.measured)
    }
}

fn over_seeds(runs: &Runs, claim: &Claim, pointer: &str, is_mean: bool) -> f64 {
    let values: Vec<f64> =
        claim.seeds.iter().map(|seed| runs.value(claim, &claim.file, pointer, Some(*seed))).collect();
    if is_mean {
        return values.iter().sum::<f64>() / values.len() as f64;
    }
    values.iter().copied().fold(f64::MIN, f64::max) - values.iter().copied().fold(f64::MAX, f64::min)
}

/// Measures a claim's figures again. Its intervals belong to the value before them.
fn measure(runs: &Runs, claim: &Claim, page: &str) -> Vec<Row> {
    let claimed = place(page, &claim.text).unwrap_or_else(|problem| panic!("{problem}")).numbers;
    let mut rows: Vec<Row> = Vec::new();
    for (value, claimed) in claim.values.iter().zip(claimed) {
        let wanted = Wanted::read(value, claim);
        let mut allowed = [claimed - wanted.within, claimed + wanted.within];
        let measured = match wanted.measure {
            Measure::Low => {
                rows.last_mut().unwrap().allowed[0] = claimed;
                continue;
            }
            Measure::High => {
                rows.last_mut().unwrap().allowed[1] = claimed;
                continue;
            }
            Measure::Probability { pointer } => {
                allowed = if claimed < SIGNIFICANT { [0.0, SIGNIFICANT] } else { [SIGNIFICANT, 1.0] };
                runs.value(claim, &claim.file, &pointer, None)
            }
            Measure::Metric { pointer, of } => runs.metric(claim, &pointer, of),
            Measure::OverSeeds { pointer, is_mean } => over_seeds(runs, claim, &pointer, is_mean),
            Measure::Value { file, pointer, seed } => runs.value(claim, &file, &pointer, seed),
        };
        rows.push(Row { claimed, measured: wanted.factor * measured, allowed });
    }
    rows
}

#[test]
#[ignore = "runs recipes at full size; see the top of the file"]
fn every_claimed_figure_is_measured_again() {
    let (table, pages, runs) = (table(), pages(), Runs::new());
    let only = std::env::var("FIGURES").unwrap_or_default();
    let mut lines = Vec::new();
    let mut n_wrong = 0;
    for claim in table.claim.iter().filter(|claim| claim.recipe.contains(&only)) {
        let here = place(&pages[&claim.page], &claim.text).unwrap_or_else(|problem| panic!("{problem}"));
        lines.push(format!("\n{}: {}", claim.page, &pages[&claim.page][here.start..here.end]));
        for row in measure(&runs, claim, &pages[&claim.page]) {
            n_wrong += usize::from(!row.holds());
            let verdict = if row.holds() { "holds" } else { "IS NOT SO" };
            let [low, high] = row.allowed;
            lines.push(format!(
                "  {:>10.4} claimed, {:>10.4} measured, {low:.4} to {high:.4} allowed: {verdict}",
                row.claimed, row.measured
            ));
        }
    }
    println!("{}", lines.join("\n"));
    for given in table.given.iter().filter(|_| only.is_empty()) {
        println!("not measured here, {}: {}: {}", given.page, given.text, given.reason);
    }
    assert!(!lines.is_empty(), "no claim is about `{only}`");
    assert_eq!(n_wrong, 0, "figures that are not within their intervals");
}
