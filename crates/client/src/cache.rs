//! Answers kept on disk, so that a run of many requests that was stopped goes on where it was.
//!
//! A file per request, `ab/abcdef....json` under the folder, named by the hash of address and body; it holds both request
//! and answer, to be read by anyone. Files appear whole or not at all. A request that is to be *drawn* again must differ,
//! by its seed for example: the same request is the same answer.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use crate::error::{ClientError, Result};

/// A folder of answers.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    /// Two threads must not write the same file at once.
    writing: Mutex<()>,
}

impl Cache {
    /// The cache in `dir`, which is made when first written to.
    pub fn new(dir: impl Into<PathBuf>) -> Cache {
        Cache { dir: dir.into(), writing: Mutex::new(()) }
    }

    /// The name of a request.
    pub fn key(url: &str, body: &Map<String, Value>) -> String {
        let body = serde_json::to_vec(body).expect("JSON with names that are text can be written");
        pt_core::hash::of_parts([url.as_bytes(), &body])
    }

    /// The answer under `key`, if it is there and whole.
    ///
    /// # Errors
    /// If a file is there and cannot be read. One that is no JSON is as good as absent.
    pub fn get(&self, key: &str) -> Result<Option<Value>> {
        let path = self.path(key);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ClientError::io("read", path)(error)),
        };
        let entry: Option<Value> = serde_json::from_slice(&bytes).ok();
        Ok(entry.and_then(|mut entry| Some(entry.get_mut("response")?.take())))
    }

    /// Keeps an answer.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put(&self, key: &str, request: &Map<String, Value>, response: &Value) -> Result<()> {
        let path = self.path(key);
        let folder = path.parent().unwrap_or(Path::new("."));
        let entry = json!({ "request": request, "response": response }).to_string();
        let _guard = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all(folder).map_err(ClientError::io("make the folder", folder))?;
        pt_core::atomic_file::write(&path, entry.as_bytes()).map_err(ClientError::io("write", &path))
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(&key[..2]).join(format!("{key}.json"))
    }
}
