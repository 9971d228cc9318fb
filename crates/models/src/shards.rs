//! Finding a directory's weight files: one, or shards with an index.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{ModelError, Result};
use crate::file::WeightFile;
use crate::options::parse_object;

/// Opens `model.safetensors`, or all the shards its index names, which must hold what the index says.
pub(crate) fn open_files(dir: &Path) -> Result<Vec<WeightFile>> {
    let single = dir.join("model.safetensors");
    if single.exists() {
        return Ok(vec![WeightFile::open(&single)?]);
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        return Err(ModelError::NoWeights { dir: dir.to_owned(), hint: weights_hint(dir) });
    }
    let files = shards(&index)?.iter().map(|path| WeightFile::open(path)).collect::<Result<Vec<_>>>()?;
    check_index(&index, &files)?;
    Ok(files)
}

fn read_weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let bad = |problem: String| ModelError::BadFile { file: index.to_owned(), problem };
    let text = std::fs::read_to_string(index).map_err(ModelError::io(index, "reading"))?;
    let map = parse_object(&index.display().to_string(), &text)?;
    let list = map.get("weight_map").and_then(Value::as_object);
    let list = list
        .ok_or_else(|| bad("`weight_map` is missing; expected an object of file names by tensor".into()))?;
    list.iter()
        .map(|(tensor, file)| match file.as_str().filter(|file| !file.contains(['/', '\\'])) {
            Some(file) => Ok((tensor.clone(), file.to_owned())),
            None => Err(bad(format!(
                "`weight_map` gives {file} for `{tensor}`; expected a file name in this folder"
            ))),
        })
        .collect()
}

fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let dir = index.parent().unwrap_or(Path::new("."));
    let mut names: Vec<String> = read_weight_map(index)?.into_values().collect();
    names.sort();
    names.dedup();
    let paths: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).collect();
    match paths.iter().find(|path| !path.exists()) {
        None => Ok(paths),
        Some(path) => {
            let problem =
                format!("the index names {}, which is not there; download the missing shard", path.display());
            Err(ModelError::BadFile { file: index.to_owned(), problem })
        }
    }
}

/// Each tensor must be in the file the index names.
fn check_index(index: &Path, files: &[WeightFile]) -> Result<()> {
    for (tensor, name) in read_weight_map(index)? {
        let file = files.iter().find(|file| file.path.file_name().is_some_and(|n| n == name.as_str()));
        if file.is_none_or(|file| file.info(&tensor).is_none()) {
            let problem =
                format!("the index says that `{tensor}` is in {name}, but it is not; download both again");
            return Err(ModelError::BadFile { file: index.to_owned(), problem });
        }
    }
    Ok(())
}

fn weights_hint(dir: &Path) -> String {
    let names: Vec<String> = std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    let has = |end: &str| names.iter().any(|name| name.ends_with(end));
    let hint = if names.iter().any(|name| name == "adapter_model.safetensors") {
        "it holds an adapter: give its base model as the model, and this folder as the adapter"
    } else if has(".bin") || has(".pt") || has(".pth") {
        "it holds PyTorch pickles, which can run code and are not read; convert them to safetensors first \
         (model.save_pretrained of transformers does)"
    } else if has(".gguf") {
        "it holds GGUF files, which are not read; use the original Hugging Face model"
    } else {
        "give the folder of a Hugging Face model"
    };
    format!(": {hint}")
}
