//! Downloads against a hub on this machine, whole, cut, resumed and wrong.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Act, Seen, Server};
use pt_client::download::{Checksum, Download, download};
use pt_client::hub::{Event, Hub, HubOptions};
use pt_client::{ClientError, HttpOptions, ManualClock, RetryPolicy};
use serde_json::json;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// `printf '{}' | git hash-object --stdin`
const CONFIG_BLOB: &str = "9e26dfeeb6e641a33dae4961196235bdb965b21b";
/// `printf '0123456789' | sha256sum`
const WEIGHTS_SHA: &str = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";
const WEIGHTS: &[u8] = b"0123456789";

/// The rest that a request asks for.
fn rest(seen: &Seen, content: &[u8]) -> Act {
    match seen.header("range") {
        None => Act::Reply(200, vec![("etag", "\"v1\"".to_owned())], content.to_vec()),
        Some(range) => {
            let from: usize =
                range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
            let of = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
            Act::Reply(
                206,
                vec![("content-range", of), ("etag", "\"v1\"".to_owned())],
                content[from..].to_vec(),
            )
        }
    }
}

fn fetch(url: &str, path: &Path, resume: bool, expected: Option<Checksum>) -> Result<(), ClientError> {
    let what = Download { url, path, token: None, resume, expected, n_bytes: None };
    let clock = ManualClock::at_unix(0.0);
    let retry = RetryPolicy { max_retries: 1, ..RetryPolicy::default() };
    download(&what, &HttpOptions::default(), &retry, &clock, &mut |_, _| {})
}

fn sha(sum: &str) -> Option<Checksum> {
    Some(Checksum::Sha256(sum.to_owned()))
}

#[test]
fn a_download_that_breaks_off_again_and_again_is_put_together() {
    // Three bytes each time: more failures than retries, but each brings something.
    let server = Server::start(|_, seen| match rest(seen, WEIGHTS) {
        Act::Reply(status, headers, body) => {
            let cut = body.len().min(3);
            Act::Cut(status, headers, body, cut)
        }
        other => other,
    });
    for expected in [sha(WEIGHTS_SHA), None] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/file");
        let before = server.seen().len();
        fetch(&server.url, &path, true, expected.clone()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), WEIGHTS);
        assert_eq!(
            std::fs::read_dir(dir.path().join("sub")).unwrap().count(),
            1,
            "nothing is left beside it"
        );
        let seen = &server.seen()[before..];
        let ranges: Vec<_> =
            seen.iter().map(|seen| seen.header("range").unwrap_or("all").to_owned()).collect();
        assert_eq!(ranges, ["all", "bytes=3-", "bytes=6-", "bytes=9-"]);
        let condition = expected.is_none().then_some("\"v1\"");
        assert_eq!(seen[1].header("if-range"), condition, "without a checksum, the etag must be the same");
    }
}

#[test]
fn what_an_earlier_program_left_is_continued_or_not() {
    let server = Server::start(|_, seen| rest(seen, WEIGHTS));
    let check = |left: &[u8], resume: bool, expected: Option<Checksum>, outcome: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(dir.path().join("file.incomplete"), left).unwrap();
        let found = match fetch(&server.url, &path, resume, expected) {
            Ok(()) => String::from_utf8(std::fs::read(&path).unwrap()).unwrap(),
            Err(error) => error.to_string(),
        };
        assert!(found.contains(outcome), "{found}");
        assert!(!dir.path().join("file.incomplete").exists());
    };
    check(b"0123", true, sha(WEIGHTS_SHA), "0123456789");
    check(b"9999", true, sha(WEIGHTS_SHA), "downloaded sha256");
    check(b"9999", false, sha(WEIGHTS_SHA), "0123456789");
    // No checksum and no etag from before: what is there cannot be trusted.
    check(b"9999", true, None, "0123456789");
}

#[test]
fn a_server_that_cannot_resume_sends_all_or_is_begun_again() {
    let whole = Server::start(|_, _| Act::Reply(200, vec![], WEIGHTS.to_vec()));
    let refuses = Server::start(|_, seen| match seen.header("range") {
        Some(_) => Act::Reply(416, vec![], vec![]),
        None => Act::Reply(200, vec![], WEIGHTS.to_vec()),
    });
    let lies = Server::start(|_, seen| match seen.header("range") {
        Some(_) => Act::Reply(206, vec![("content-range", "bytes 0-9/10".to_owned())], WEIGHTS.to_vec()),
        None => Act::Reply(200, vec![], WEIGHTS.to_vec()),
    });
    for server in [whole, refuses, lies] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(dir.path().join("file.incomplete"), b"012").unwrap();
        fetch(&server.url, &path, true, sha(WEIGHTS_SHA)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), WEIGHTS);
    }
}

#[test]
fn a_download_that_cannot_be_had_says_why_and_keeps_what_came() {
    let server = Server::start(|n, seen| match n {
        0 => Act::Cut(200, vec![], WEIGHTS.to_vec(), 4),
        _ => {
            assert_eq!(seen.header("range"), Some("bytes=4-"));
            Act::json(403, json!({ "error": "gated" }))
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let error = fetch(&server.url, &path, true, sha(WEIGHTS_SHA)).unwrap_err().to_string();
    assert!(error.contains("403") && error.contains("gated"), "{error}");
    assert_eq!(std::fs::read(dir.path().join("file.incomplete")).unwrap(), b"0123");
    assert!(!path.exists());
}

fn description() -> serde_json::Value {
    let git = |name: &str| json!({ "rfilename": name, "size": 2, "blobId": CONFIG_BLOB });
    let lfs = json!({ "sha256": WEIGHTS_SHA, "size": 10, "pointerSize": 128 });
    let weights =
        json!({ "rfilename": "model.safetensors", "size": 10, "blobId": "a".repeat(40), "lfs": lfs });
    json!({ "sha": COMMIT, "siblings": [git(".gitattributes"), git("config.json"), weights, git("onnx/model.onnx")] })
}

fn hub_of(url: &str, cache: &Path) -> Hub {
    let mut options = HubOptions::new(cache);
    (options.endpoint, options.token) = (url.to_owned(), Some("hf_secret".to_owned()));
    options.retry.max_retries = 1;
    Hub::with_clock(options, Arc::new(ManualClock::at_unix(0.0))).unwrap()
}

/// The same server under another name, as the hub's store of large files is another host.
fn other_host(seen: &Seen) -> String {
    seen.header("host").unwrap().replace("127.0.0.1", "localhost")
}

fn hub_server(act: impl Fn(&Seen) -> Option<Act> + Send + Sync + 'static) -> Server {
    Server::start(move |_, seen| {
        if let Some(act) = act(seen) {
            return act;
        }
        let resolve = format!("/owner/tiny/resolve/{COMMIT}");
        match seen.path.as_str() {
            "/api/models/owner/tiny/revision/main?blobs=true" => Act::json(200, description()),
            path if path == format!("{resolve}/config.json") => rest(seen, b"{}"),
            // As the hub does: large files lie elsewhere.
            path if path == format!("{resolve}/model.safetensors") => Act::Reply(
                302,
                vec![("location", format!("http://{}/cdn/weights", other_host(seen)))],
                vec![],
            ),
            "/cdn/weights" => rest(seen, WEIGHTS),
            _ => Act::json(404, json!({ "error": "Repository not found" })),
        }
    })
}

#[test]
fn a_model_arrives_in_the_layout_of_the_hub_s_own_tools_and_is_not_fetched_twice() {
    let dir = tempfile::tempdir().unwrap();
    let server = hub_server(|_| None);
    let hub = hub_of(&server.url, dir.path());
    let mut begun = Vec::new();
    let mut watch = |event: Event| {
        if let Event::Begins { files, n_bytes, .. } = event {
            begun.push((files.iter().map(|file| file.path.clone()).collect::<Vec<_>>(), n_bytes));
        }
    };
    let folder = hub.model("owner/tiny", "main", &mut watch).unwrap();
    let root = dir.path().join("models--owner--tiny");
    assert_eq!(folder, root.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), WEIGHTS);
    assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), b"{}");
    assert_eq!(std::fs::read(root.join("blobs").join(WEIGHTS_SHA)).unwrap(), WEIGHTS);
    #[cfg(unix)]
    assert_eq!(
        std::fs::read_link(folder.join("config.json")).unwrap(),
        Path::new("../../blobs").join(CONFIG_BLOB)
    );
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "only what this program reads");
    let seen = server.seen();
    for seen in &seen {
        let expected = (!seen.path.starts_with("/cdn")).then_some("Bearer hf_secret");
        assert_eq!(seen.header("authorization"), expected, "{}: the token is for the hub alone", seen.path);
    }
    assert_eq!(hub.model("owner/tiny", "main", &mut watch).unwrap(), folder);
    assert_eq!(server.seen().len(), seen.len() + 1, "the second time, only the description is asked for");
    assert_eq!(begun, [(vec!["config.json".to_owned(), "model.safetensors".to_owned()], 12)]);
}

#[test]
fn of_a_tokenizer_s_repository_no_weights_are_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let server = hub_server(|seen| match seen.path.as_str() {
        "/api/models/owner/tiny/revision/main?blobs=true" => {
            let mut description = description();
            description["siblings"][0]["rfilename"] = json!("tokenizer.json");
            Some(Act::json(200, description))
        }
        path if path.ends_with("/tokenizer.json") => Some(rest(seen, b"{}")),
        _ => None,
    });
    let folder = hub_of(&server.url, dir.path()).tokenizer("owner/tiny", "main", &mut |_| {}).unwrap();
    let files = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = files.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "tokenizer.json"]);

    let without = hub_server(|_| None);
    let error = hub_of(&without.url, dir.path()).tokenizer("owner/tiny", "main", &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("a tokenizer as tokenizer.json"), "{error}");
}

#[test]
fn a_model_whose_download_was_interrupted_is_not_there_until_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models--owner--tiny");
    let broken = hub_server(|seen| match (seen.path.as_str(), seen.header("range")) {
        ("/cdn/weights", None) => Some(Act::Cut(200, vec![], WEIGHTS.to_vec(), 6)),
        ("/cdn/weights", Some(_)) => Some(Act::Drop),
        _ => None,
    });
    let error = hub_of(&broken.url, dir.path()).model("owner/tiny", "main", &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("broke before"), "{error}");
    assert!(!root.join("snapshots").exists() && !root.join("refs").exists());
    let server = hub_server(|_| None);
    let folder = hub_of(&server.url, dir.path()).model("owner/tiny", "main", &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), WEIGHTS);
    let weights: Vec<_> = server.seen().into_iter().filter(|seen| seen.path == "/cdn/weights").collect();
    assert_eq!(weights.len(), 1);
    assert_eq!(weights[0].header("range"), Some("bytes=6-"));
}

/// Whether it comes now or all of it came before, only unchecked.
#[test]
fn each_file_is_told_of_once_when_it_is_there() {
    for left in [None, Some(WEIGHTS)] {
        let dir = tempfile::tempdir().unwrap();
        if let Some(left) = left {
            let blobs = dir.path().join("models--owner--tiny/blobs");
            std::fs::create_dir_all(&blobs).unwrap();
            std::fs::write(blobs.join(format!("{WEIGHTS_SHA}.incomplete")), left).unwrap();
        }
        let server = hub_server(|_| None);
        let hub = hub_of(&server.url, dir.path());
        let mut done = Vec::new();
        let mut watch = |event: Event| {
            if let Event::FileDone { file } = event {
                done.push(file.path.clone());
            }
        };
        for _ in 0..2 {
            hub.model("owner/tiny", "main", &mut watch).unwrap();
        }
        assert_eq!(done, ["config.json", "model.safetensors"]);
    }
}

#[test]
fn what_the_hub_lacks_or_gets_wrong_is_said() {
    fn check(name: &str, reply: Option<serde_json::Value>, expected: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let server = hub_server(move |_| reply.clone().map(|reply| Act::json(200, reply)));
        let error = hub_of(&server.url, dir.path()).model(name, "main", &mut |_| {}).unwrap_err().to_string();
        for part in expected {
            assert!(error.contains(part), "`{error}` lacks `{part}`");
        }
    }
    let with = |file: &str| json!({ "sha": COMMIT, "siblings": [{ "rfilename": file, "size": 2, "blobId": CONFIG_BLOB }] });
    check(
        "owner/none",
        None,
        &["no model `owner/none` at revision `main`", "Repository not found", "HF_TOKEN"],
    );
    check("tiny", None, &["`tiny` is no name on the hub"]);
    check(
        "owner/tiny",
        Some(with("pytorch_model.bin")),
        &["no weights as model.safetensors", "pytorch_model.bin"],
    );
    check("owner/tiny", Some(with("../../../x.safetensors")), &["outside its folder"]);
    check("owner/tiny", Some(with("/etc/x")), &["outside its folder"]);
    check("owner/tiny", Some(json!({ "sha": "../..", "siblings": [] })), &["its commit is `../..`"]);
    check("owner/tiny", Some(json!({ "hello": 1 })), &["describes no repository"]);
}
