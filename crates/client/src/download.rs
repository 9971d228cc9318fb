//! Downloading a file: resumed where it was interrupted, checked, and there whole or not at all.
//!
//! What has come so far lies in `NAME.incomplete` beside the file. An attempt that breaks off is followed by one that asks
//! for the rest, and so does the next call. What is whole is checked, then renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ring::digest;
use ureq::Body;
use ureq::http::Response;

use crate::clock::Clock;
use crate::error::{ClientError, Result, Trouble};
use crate::http::{Http, header, status_trouble};
use crate::retry::RetryPolicy;

/// Bytes between two calls of a watcher, at least.
const PROGRESS_BYTES: u64 = 1 << 20;

/// What a file's content is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-256, hexadecimal.
    Sha256(String),
    /// The name git gives it: SHA-1 of `blob LENGTH\0` and the content, hexadecimal.
    GitBlob(String),
}

/// A file to be downloaded.
#[derive(Clone, Debug)]
pub struct Download<'a> {
    /// Where it is.
    pub url: &'a str,
    /// Where it goes.
    pub path: &'a Path,
    /// Sent as a bearer token, not to other hosts that one is redirected to.
    pub token: Option<&'a str>,
    /// Go on with what an interrupted download left.
    pub resume: bool,
    /// What must come.
    pub expected: Option<Checksum>,
    /// How long it must be, if known.
    pub n_bytes: Option<u64>,
}

/// Downloads files.
pub struct Downloader<'a> {
    http: &'a Http,
    retry: &'a RetryPolicy,
    clock: &'a dyn Clock,
}

/// Downloads one file with default connections. `watch` is told how many bytes are there, and of how many if that is
/// known.
///
/// # Errors
/// [`ClientError::Request`] if it cannot be had, [`ClientError::Content`] if it is not what was announced,
/// [`ClientError::Io`] if it cannot be written.
pub fn download(
    what: &Download,
    http: &crate::HttpOptions,
    retry: &RetryPolicy,
    clock: &dyn Clock,
    watch: &mut dyn FnMut(u64, Option<u64>),
) -> Result<()> {
    Downloader::new(&Http::for_downloads(http)?, retry, clock).run(what, watch)
}

impl<'a> Downloader<'a> {
    pub(crate) fn new(http: &'a Http, retry: &'a RetryPolicy, clock: &'a dyn Clock) -> Downloader<'a> {
        Downloader { http, retry, clock }
    }

    pub(crate) fn run(&self, what: &Download, watch: &mut dyn FnMut(u64, Option<u64>)) -> Result<()> {
        let partial = beside(what.path, "incomplete");
        let etag_file = beside(what.path, "incomplete.etag");
        if let Some(folder) = what.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(ClientError::io("make the folder", folder))?;
        }
        if !what.resume {
            remove(&partial)?;
        }
        self.fetch(what, &partial, &etag_file, watch)?;
        remove(&etag_file)?;
        self.check(what, &partial)?;
        fs::rename(&partial, what.path).map_err(ClientError::io("rename the download to", what.path))
    }

    /// As many attempts as it takes while each brings something, as many as the policy allows while none does.
    fn fetch(
        &self,
        what: &Download,
        partial: &Path,
        etag_file: &Path,
        watch: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<()> {
        let request = u64::from_str_radix(&pt_core::hash::of_bytes(what.url.as_bytes())[..16], 16)
            .expect("a hash is hexadecimal");
        let (mut n_attempts, mut n_fruitless) = (0, 0);
        loop {
            n_attempts += 1;
            let before = length(partial);
            let trouble = match self.attempt(what, partial, etag_file, watch)? {
                Ok(()) => return Ok(()),
                Err(trouble) => trouble,
            };
            n_fruitless = if length(partial) > before { 1 } else { n_fruitless + 1 };
            match self.retry.delay_s(&trouble, n_fruitless, request) {
                Some(delay_s) => self.clock.sleep(delay_s),
                None => {
                    return Err(ClientError::Request { url: what.url.to_owned(), n_attempts, trouble });
                }
            }
        }
    }

    /// One exchange. The outer error is ours (the disk), the inner one that of the connection.
    fn attempt(
        &self,
        what: &Download,
        partial: &Path,
        etag_file: &Path,
        watch: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<std::result::Result<(), Trouble>> {
        let mut have = length(partial);
        let etag = fs::read_to_string(etag_file).ok().filter(|_| what.expected.is_none());
        // Without a checksum, only the server can say whether the rest belongs to what is here.
        if have > 0 && what.expected.is_none() && etag.is_none() {
            remove(partial)?;
            have = 0;
        }
        if have > 0 && what.n_bytes == Some(have) {
            return Ok(Ok(()));
        }
        let range = format!("bytes={have}-");
        let mut headers = vec![("Accept-Encoding", "identity")];
        if have > 0 {
            headers.push(("Range", &range));
            headers.extend(etag.as_deref().map(|etag| ("If-Range", etag)));
        }
        let response = match self.http.open(what.url, what.token, &headers) {
            Ok(response) => response,
            Err(trouble) => return Ok(Err(trouble)),
        };
        let status = response.status().as_u16();
        match status {
            206 if starts_at(&response, have) => {}
            200 => have = 0,
            // The rest of what we have is not to be had: begin again.
            206 | 416 => {
                remove(partial)?;
                let reason = format!("the server cannot continue at byte {have}");
                return Ok(Err(Trouble::Dropped { reason }));
            }
            _ => {
                return Ok(Err(match self.http.receive(response) {
                    Ok(answer) => status_trouble(status, &answer.headers, &answer.body, self.clock),
                    Err(trouble) => trouble,
                }));
            }
        }
        if what.expected.is_none() {
            match header(response.headers(), "etag").filter(|etag| !etag.starts_with("W/")) {
                Some(etag) => fs::write(etag_file, etag).map_err(ClientError::io("write", etag_file))?,
                None => remove(etag_file)?,
            }
        }
        self.receive(response, have, partial, watch)
    }

    fn receive(
        &self,
        response: Response<Body>,
        have: u64,
        partial: &Path,
        watch: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<std::result::Result<(), Trouble>> {
        let coming = header(response.headers(), "content-length").and_then(|n| n.parse::<u64>().ok());
        let total = coming.map(|n| n + have);
        let mut options = OpenOptions::new();
        options.create(true).write(true).append(have > 0).truncate(have == 0);
        let mut file = options.open(partial).map_err(ClientError::io("open", partial))?;
        let mut reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        let (mut done, mut shown) = (have, have);
        let mut buffer = vec![0; 1 << 18];
        watch(done, total);
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    file.write_all(&buffer[..n]).map_err(ClientError::io("write", partial))?;
                    done += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Err(self.http.io_trouble(&error))),
            }
            if done - shown >= PROGRESS_BYTES {
                watch(done, total);
                shown = done;
            }
        }
        if let Some(total) = total.filter(|total| *total != done) {
            let reason = format!("{done} of {total} bytes came");
            return Ok(Err(Trouble::Dropped { reason }));
        }
        file.sync_all().map_err(ClientError::io("write", partial))?;
        watch(done, total);
        Ok(Ok(()))
    }

    fn check(&self, what: &Download, partial: &Path) -> Result<()> {
        let found_bytes = length(partial);
        let wrong = |what_is_wrong, found: String, expected: String| {
            remove(partial)?;
            Err(ClientError::Content { url: what.url.to_owned(), what: what_is_wrong, found, expected })
        };
        if let Some(expected) = what.n_bytes.filter(|n| *n != found_bytes) {
            return wrong("length", found_bytes.to_string(), expected.to_string());
        }
        let (kind, algorithm, prefix, expected) = match &what.expected {
            None => return Ok(()),
            Some(Checksum::Sha256(sum)) => ("sha256", &digest::SHA256, String::new(), sum),
            Some(Checksum::GitBlob(sum)) => {
                let prefix = format!("blob {found_bytes}\0");
                ("git blob sha1", &digest::SHA1_FOR_LEGACY_USE_ONLY, prefix, sum)
            }
        };
        let found =
            digest_of(partial, algorithm, prefix.as_bytes()).map_err(ClientError::io("read", partial))?;
        if found == expected.to_ascii_lowercase() { Ok(()) } else { wrong(kind, found, expected.clone()) }
    }
}

/// Whether a partial answer begins where it should.
fn starts_at(response: &Response<Body>, have: u64) -> bool {
    let range = header(response.headers(), "content-range").unwrap_or("");
    range
        .strip_prefix("bytes ")
        .and_then(|range| range.split_once('-'))
        .is_some_and(|(from, _)| from.trim().parse() == Ok(have))
}

fn digest_of(path: &Path, algorithm: &'static digest::Algorithm, prefix: &[u8]) -> io::Result<String> {
    let mut context = digest::Context::new(algorithm);
    context.update(prefix);
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        context.update(&buffer[..n]);
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ClientError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    let name = path.file_name().map_or_else(|| "download".into(), |name| name.to_string_lossy());
    path.with_file_name(format!("{name}.{extension}"))
}
