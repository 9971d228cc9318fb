//! Models and datasets from the Hugging Face hub, into the cache that its own tools use.
//!
//! ```text
//! CACHE/models--OWNER--NAME/refs/main                the commit that a branch is at
//!                          /blobs/ETAG               a file's content, named by its SHA-256 (LFS) or git SHA-1
//!                          /snapshots/COMMIT/NAME -> ../../blobs/ETAG
//! ```
//!
//! Files and their checksums come from one request (`/api/models/OWNER/NAME/revision/REVISION?blobs=true`). Each blob is
//! resumed where an earlier attempt broke off, checked and renamed; the snapshot's folder appears when all its files are
//! there, and the branch's file after it. A lock per blob keeps two programs from downloading the same file; it is the one
//! that `huggingface_hub` takes.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::clock::{Clock, SystemClock};
use crate::download::{Checksum, Download, Downloader};
use crate::error::{ClientError, Result, Trouble, excerpt};
use crate::http::{Http, HttpOptions};
use crate::retry::RetryPolicy;

/// Where the hub is when nothing else is said.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// What kind of repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model.
    Model,
    /// A dataset.
    Dataset,
}

impl Kind {
    /// `model` or `dataset`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Dataset => "dataset",
        }
    }

    /// Before the name, in addresses of files.
    fn prefix(self) -> &'static str {
        match self {
            Kind::Model => "",
            Kind::Dataset => "datasets/",
        }
    }
}

/// How the hub is spoken to.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// [`DEFAULT_ENDPOINT`], or a mirror.
    pub endpoint: String,
    /// For repositories that are not public.
    pub token: Option<String>,
    /// `$HF_HOME/hub`.
    pub cache_dir: PathBuf,
    /// Time limits and proxy.
    pub http: HttpOptions,
    /// When to try again.
    pub retry: RetryPolicy,
}

impl HubOptions {
    /// The public hub, without a token; silence of a minute counts as failure.
    pub fn new(cache_dir: impl Into<PathBuf>) -> HubOptions {
        HubOptions {
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            token: None,
            cache_dir: cache_dir.into(),
            http: HttpOptions { timeout_s: 60.0, proxy: None },
            retry: RetryPolicy::default(),
        }
    }
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub path: String,
    /// Its length.
    pub n_bytes: u64,
    /// What its content is known by; its blob in the cache is named so.
    pub checksum: Checksum,
}

impl RemoteFile {
    fn etag(&self) -> &str {
        match &self.checksum {
            Checksum::Sha256(sum) | Checksum::GitBlob(sum) => sum,
        }
    }
}

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// Model or dataset.
    pub kind: Kind,
    /// `owner/name`.
    pub name: String,
    /// The commit that the revision is.
    pub commit: String,
    /// All its files.
    pub files: Vec<RemoteFile>,
}

/// What a download tells of itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// What will be downloaded, before it is.
    Begins {
        /// Of what.
        repository: &'a Repository,
        /// The files that are not there yet.
        files: &'a [&'a RemoteFile],
        /// Their length together.
        n_bytes: u64,
        /// From where.
        endpoint: &'a str,
    },
    /// How far one file is.
    Progress {
        /// The file.
        file: &'a RemoteFile,
        /// Bytes of it that are there.
        n_done: u64,
    },
    /// One file is there and is what it should be: told once of each that was not.
    FileDone {
        /// The file.
        file: &'a RemoteFile,
    },
    /// All is there.
    Done {
        /// The snapshot's folder.
        folder: &'a Path,
    },
}

/// The hub, with its cache.
pub struct Hub {
    options: HubOptions,
    api: Http,
    files: Http,
    clock: Arc<dyn Clock>,
}

impl Hub {
    /// A hub that nothing was asked of yet.
    ///
    /// # Errors
    /// [`ClientError::Option`].
    pub fn new(options: HubOptions) -> Result<Hub> {
        Hub::with_clock(options, Arc::new(SystemClock::default()))
    }

    /// As [`Hub::new`], with another clock.
    ///
    /// # Errors
    /// [`ClientError::Option`].
    pub fn with_clock(mut options: HubOptions, clock: Arc<dyn Clock>) -> Result<Hub> {
        options.retry.check()?;
        options.endpoint = options.endpoint.trim_end_matches('/').to_owned();
        if !options.endpoint.starts_with("http://") && !options.endpoint.starts_with("https://") {
            let expected = "an address as https://huggingface.co";
            return Err(ClientError::Option { name: "endpoint", value: options.endpoint, expected });
        }
        let (api, files) = (Http::new(&options.http)?, Http::for_downloads(&options.http)?);
        Ok(Hub { options, api, files, clock })
    }

    /// Asks for a repository's commit and files.
    ///
    /// # Errors
    /// [`ClientError::HubName`], [`ClientError::HubAbsent`], [`ClientError::Request`].
    pub fn repository(&self, kind: Kind, name: &str, revision: &str) -> Result<Repository> {
        check_name(name)?;
        let endpoint = &self.options.endpoint;
        let url =
            format!("{endpoint}/api/{}s/{name}/revision/{}?blobs=true", kind.name(), quoted(revision, false));
        let outcome = self.options.retry.run(&*self.clock, &url, 0, &mut |_| {}, &mut || {
            let json = self.api.get(&url, self.options.token.as_deref())?.json(&*self.clock)?;
            listing(&json)
        });
        let (commit, files) = outcome.map_err(|error| match error {
            ClientError::Request {
                trouble: Trouble::Status { status: 401 | 403 | 404, message, .. },
                ..
            } => ClientError::HubAbsent {
                endpoint: endpoint.clone(),
                kind: kind.name(),
                name: name.to_owned(),
                revision: revision.to_owned(),
                reason: message,
            },
            other => other,
        })?;
        Ok(Repository { kind, name: name.to_owned(), commit, files })
    }

    /// The files of a model that this program reads, in the cache; what is there already is not downloaded again.
    ///
    /// # Errors
    /// As [`Hub::repository`], [`ClientError::HubFiles`], and those of downloading.
    pub fn model(&self, name: &str, revision: &str, watch: &mut dyn FnMut(Event)) -> Result<PathBuf> {
        let repository = self.repository(Kind::Model, name, revision)?;
        self.fetch(&repository, revision, &model_files(&repository)?, watch)
    }

    /// The files of a repository that a tokenizer and its template are read from, in the cache; it needs no weights.
    ///
    /// # Errors
    /// As [`Hub::model`].
    pub fn tokenizer(&self, name: &str, revision: &str, watch: &mut dyn FnMut(Event)) -> Result<PathBuf> {
        let repository = self.repository(Kind::Model, name, revision)?;
        self.fetch(&repository, revision, &tokenizer_files(&repository)?, watch)
    }

    /// The data files of a dataset, in the cache.
    ///
    /// # Errors
    /// As [`Hub::model`].
    pub fn dataset(&self, name: &str, revision: &str, watch: &mut dyn FnMut(Event)) -> Result<PathBuf> {
        let repository = self.repository(Kind::Dataset, name, revision)?;
        self.fetch(&repository, revision, &dataset_files(&repository)?, watch)
    }

    /// Brings `files` of a repository into the cache and gives the snapshot's folder.
    ///
    /// # Errors
    /// Those of downloading and of the file system.
    pub fn fetch(
        &self,
        repository: &Repository,
        revision: &str,
        files: &[&RemoteFile],
        watch: &mut dyn FnMut(Event),
    ) -> Result<PathBuf> {
        let folder_name = format!("{}s--{}", repository.kind.name(), repository.name.replace('/', "--"));
        let root = self.options.cache_dir.join(&folder_name);
        let blobs = root.join("blobs");
        let missing: Vec<&RemoteFile> =
            files.iter().copied().filter(|file| !blobs.join(file.etag()).exists()).collect();
        if !missing.is_empty() {
            let n_bytes = missing.iter().map(|file| file.n_bytes).sum();
            let endpoint = &self.options.endpoint;
            watch(Event::Begins { repository, files: &missing, n_bytes, endpoint });
        }
        for file in missing {
            let lock = self
                .options
                .cache_dir
                .join(".locks")
                .join(&folder_name)
                .join(format!("{}.lock", file.etag()));
            let _lock = locked(&lock)?;
            self.fetch_blob(repository, file, &blobs.join(file.etag()), watch)?;
            watch(Event::FileDone { file });
        }
        let folder = publish_snapshot(&root, &repository.commit, files)?;
        if revision != repository.commit {
            write_ref(&root, revision, &repository.commit)?;
        }
        watch(Event::Done { folder: &folder });
        Ok(folder)
    }

    fn fetch_blob(
        &self,
        repository: &Repository,
        file: &RemoteFile,
        blob: &Path,
        watch: &mut dyn FnMut(Event),
    ) -> Result<()> {
        // Another program may have brought it while we waited for the lock.
        if blob.exists() {
            return Ok(());
        }
        let Repository { kind, name, commit, .. } = repository;
        let path = quoted(&file.path, true);
        let url = format!("{}/{}{name}/resolve/{commit}/{path}", self.options.endpoint, kind.prefix());
        let download = Download {
            url: &url,
            path: blob,
            token: self.options.token.as_deref(),
            resume: true,
            expected: Some(file.checksum.clone()),
            n_bytes: Some(file.n_bytes),
        };
        let downloader = Downloader::new(&self.files, &self.options.retry, &*self.clock);
        downloader.run(&download, &mut |n_done, _| watch(Event::Progress { file, n_done }))
    }
}

/// The files of a model that this program reads: configuration, tokenizer, template, and one set of safetensors (or of an
/// adapter).
///
/// # Errors
/// [`ClientError::HubFiles`] where there are no safetensors.
pub fn model_files(repository: &Repository) -> Result<Vec<&RemoteFile>> {
    let has = |name: &str| at_root(repository).any(|file| file.path == name);
    let is_weights = |name: &str| {
        name == "adapter_model.safetensors"
            || if has(INDEX) {
                name.starts_with("model-") && name.ends_with(".safetensors")
            } else {
                name == "model.safetensors"
            }
    };
    if !at_root(repository).any(|file| is_weights(&file.path)) {
        return Err(lacks(repository, "weights as model.safetensors, alone or in shards"));
    }
    Ok(at_root(repository).filter(|file| is_text(&file.path) || is_weights(&file.path)).collect())
}

/// The files of a repository that a tokenizer, its settings and its template are read from.
///
/// # Errors
/// [`ClientError::HubFiles`] where there is no tokenizer.json.
pub fn tokenizer_files(repository: &Repository) -> Result<Vec<&RemoteFile>> {
    if !at_root(repository).any(|file| file.path == TOKENIZER) {
        return Err(lacks(repository, "a tokenizer as tokenizer.json"));
    }
    Ok(at_root(repository).filter(|file| is_text(&file.path) && file.path != INDEX).collect())
}

/// Whether a folder of the cache holds a model's weights, all of them: other programs leave snapshots in which some are
/// missing, for they download only what was asked for.
pub fn has_weights(snapshot: &Path) -> bool {
    let index = || -> Option<Vec<String>> {
        let index: serde_json::Value = serde_json::from_slice(&fs::read(snapshot.join(INDEX)).ok()?).ok()?;
        let files = index.get("weight_map")?.as_object()?.values();
        files.map(|file| file.as_str().map(str::to_owned)).collect()
    };
    let alone = ["model.safetensors", "adapter_model.safetensors"];
    alone.iter().any(|file| snapshot.join(file).exists())
        || index().is_some_and(|files| files.iter().all(|file| snapshot.join(file).exists()))
}

/// Whether a folder of the cache holds a tokenizer.
pub fn has_tokenizer(snapshot: &Path) -> bool {
    snapshot.join(TOKENIZER).exists()
}

const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";

fn at_root(repository: &Repository) -> impl Iterator<Item = &RemoteFile> {
    repository.files.iter().filter(|file| !file.path.contains('/'))
}

fn is_text(name: &str) -> bool {
    const TEXTS: [&str; 4] = ["json", "txt", "model", "jinja"];
    name.rsplit_once('.').is_some_and(|(_, extension)| TEXTS.contains(&extension))
}

/// The data files of a dataset, and its card.
///
/// # Errors
/// [`ClientError::HubFiles`] where there are none of a format this program reads.
pub fn dataset_files(repository: &Repository) -> Result<Vec<&RemoteFile>> {
    const DATA: [&str; 8] = ["jsonl", "ndjson", "json", "parquet", "pq", "csv", "tsv", "txt"];
    let is_data = |file: &RemoteFile| {
        let name = file.path.rsplit('/').next().unwrap_or(&file.path);
        let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
        let extension = plain.rsplit_once('.').map_or("", |(_, extension)| extension);
        !name.starts_with('.') && DATA.contains(&extension)
    };
    if !repository.files.iter().any(&is_data) {
        return Err(lacks(repository, "data as jsonl, json, parquet, csv, tsv or txt"));
    }
    Ok(repository.files.iter().filter(|file| is_data(file) || file.path == "README.md").collect())
}

fn lacks(repository: &Repository, needed: &'static str) -> ClientError {
    const SHOWN: usize = 8;
    let names: Vec<&str> = repository.files.iter().map(|file| file.path.as_str()).collect();
    let found = match names.len() {
        0 => "no files at all".to_owned(),
        n if n > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
        _ => names.join(", "),
    };
    ClientError::HubFiles { kind: repository.kind.name(), name: repository.name.clone(), needed, found }
}

/// Whether a name can be one of the hub's; a path, for example, cannot.
pub fn is_name(name: &str) -> bool {
    let part = |part: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && part.len() <= 96 && part.chars().all(legal) && !part.starts_with(['.', '-'])
    };
    name.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

fn check_name(name: &str) -> Result<()> {
    if is_name(name) { Ok(()) } else { Err(ClientError::HubName { name: name.to_owned() }) }
}

#[derive(Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default, rename = "blobId")]
    blob_id: Option<String>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

/// Commit and files of a repository's description. Nothing in it may lead out of the cache's folder.
fn listing(json: &serde_json::Value) -> std::result::Result<(String, Vec<RemoteFile>), Trouble> {
    let shape = |reason: String| Trouble::Shape { reason, excerpt: excerpt(json.to_string().as_bytes()) };
    let listing =
        Listing::deserialize(json).map_err(|error| shape(format!("describes no repository: {error}")))?;
    if !is_hex(&listing.sha) {
        return Err(shape(format!("its commit is `{}`, which is none", listing.sha)));
    }
    let file = |sibling: Sibling| {
        let path = sibling.rfilename;
        let inside = Path::new(&path).components().all(|part| matches!(part, Component::Normal(_)));
        if path.is_empty() || !inside || path.contains('\\') {
            return Err(shape(format!("its file `{path}` would lie outside its folder")));
        }
        let (checksum, n_bytes) = match (sibling.lfs, sibling.blob_id, sibling.size) {
            (Some(lfs), _, _) => (Checksum::Sha256(lfs.sha256), lfs.size),
            (None, Some(blob), Some(size)) => (Checksum::GitBlob(blob), size),
            _ => return Err(shape(format!("its file `{path}` has no checksum or size (`blobs=true`)"))),
        };
        let file = RemoteFile { path, n_bytes, checksum };
        if is_hex(file.etag()) {
            Ok(file)
        } else {
            Err(shape(format!("the checksum of `{}` is none", file.path)))
        }
    };
    Ok((listing.sha, listing.siblings.into_iter().map(file).collect::<std::result::Result<_, _>>()?))
}

fn is_hex(text: &str) -> bool {
    (40..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Percent-encoded for a path; with `keep_slashes`, as several parts of one.
fn quoted(text: &str, keep_slashes: bool) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b) || (keep_slashes && b == b'/');
    text.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Waits for the lock and holds it while the file lives.
fn locked(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(ClientError::io("make the folder", folder))?;
    }
    let file = File::create(path).map_err(ClientError::io("make the lock", path))?;
    file.lock().map_err(ClientError::io("lock", path))?;
    Ok(file)
}

/// A folder of links to blobs. A new one appears with all of them; one that is there gets those it lacks.
fn publish_snapshot(root: &Path, commit: &str, files: &[&RemoteFile]) -> Result<PathBuf> {
    let snapshots = root.join("snapshots");
    let folder = snapshots.join(commit);
    let link_all = |folder: &Path| files.iter().try_for_each(|file| link(root, folder, file));
    let outcome = if folder.is_dir() {
        link_all(&folder)
    } else {
        fs::create_dir_all(&snapshots).and_then(|()| pt_core::atomic_file::publish_dir(&folder, link_all))
    };
    outcome.map_err(ClientError::io("link the files of", &folder))?;
    Ok(folder)
}

fn link(root: &Path, folder: &Path, file: &RemoteFile) -> io::Result<()> {
    let path = folder.join(&file.path);
    if fs::metadata(&path).is_ok() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // A link that leads nowhere is in the way.
    let _ = fs::remove_file(&path);
    let up = "../".repeat(2 + file.path.matches('/').count());
    link_or_copy(
        &PathBuf::from(format!("{up}blobs/{}", file.etag())),
        &root.join("blobs").join(file.etag()),
        &path,
    )
}

#[cfg(unix)]
fn link_or_copy(relative: &Path, _blob: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, path)
}

#[cfg(not(unix))]
fn link_or_copy(_relative: &Path, blob: &Path, path: &Path) -> io::Result<()> {
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(|_| ()))
}

fn write_ref(root: &Path, revision: &str, commit: &str) -> Result<()> {
    let inside = Path::new(revision).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside {
        let expected = "a branch, tag or commit";
        return Err(ClientError::Option { name: "revision", value: revision.to_owned(), expected });
    }
    let path = root.join("refs").join(revision);
    let folder = path.parent().unwrap_or(root);
    fs::create_dir_all(folder).map_err(ClientError::io("make the folder", folder))?;
    pt_core::atomic_file::write(&path, commit.as_bytes()).map_err(ClientError::io("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub() {
        let cases = [
            ("HuggingFaceTB/SmolLM2-135M", true),
            ("a/b.c_d", true),
            ("gpt2", false),
            ("../models", false),
            ("a/../b", false),
            ("./model", false),
            ("a/b/c", false),
            ("/etc/passwd", false),
            ("a/b?x=1", false),
        ];
        for (name, expected) in cases {
            assert_eq!(is_name(name), expected, "{name}");
        }
    }

    #[test]
    fn a_model_is_one_set_of_safetensors_and_what_reads_as_text() {
        let check = |names: &[&str], expected: Option<&[&str]>| {
            let files = names.iter().map(|name| RemoteFile {
                path: (*name).to_owned(),
                n_bytes: 1,
                checksum: Checksum::GitBlob("0".repeat(40)),
            });
            let (name, commit) = ("a/b".to_owned(), "0".repeat(40));
            let repository = Repository { kind: Kind::Model, name, commit, files: files.collect() };
            let found = model_files(&repository).ok();
            let found = found.map(|files| files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>());
            assert_eq!(found.as_deref(), expected, "{names:?}");
        };
        check(
            &[
                "config.json",
                "model.safetensors",
                "pytorch_model.bin",
                "onnx/model.onnx",
                "README.md",
                "tf.h5",
            ],
            Some(&["config.json", "model.safetensors"]),
        );
        check(
            &["model.safetensors.index.json", "model-00001-of-00002.safetensors", "consolidated.safetensors"],
            Some(&["model.safetensors.index.json", "model-00001-of-00002.safetensors"]),
        );
        check(
            &["adapter_config.json", "adapter_model.safetensors"],
            Some(&["adapter_config.json", "adapter_model.safetensors"]),
        );
        check(&["config.json", "pytorch_model.bin"], None);
    }
}
