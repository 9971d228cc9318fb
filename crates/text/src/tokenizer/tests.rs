use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::*;

fn read_json(path: PathBuf) -> Json {
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

fn ids_of(value: &Json) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| u32::try_from(v.as_u64().unwrap()).unwrap()).collect()
}

/// A directory with the files under the names that Hugging Face gives them.
fn staged(files: &[(PathBuf, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (from, to) in files {
        std::fs::copy(from, dir.path().join(to)).unwrap();
    }
    dir
}

fn check_encodings(tokenizer: &Tokenizer, rows: &Json) {
    for row in rows.as_array().unwrap() {
        let text = row["text"].as_str().unwrap();
        let encoding = tokenizer.encode(text, false).unwrap();
        assert_eq!(encoding.ids, ids_of(&row["ids"]), "{text:?}");
        let decoded = row["decoded"].as_str().unwrap();
        assert_eq!(tokenizer.decode(&encoding.ids, false).unwrap(), decoded, "{text:?}");
        check_stream(tokenizer, &encoding.ids, decoded);
        if tokenizer.encode_whole(text, false).is_ok() {
            check_offsets(text, &encoding);
        } else {
            assert!(decoded.chars().count() < text.chars().count(), "{text:?} lost nothing");
        }
    }
}

fn check_stream(tokenizer: &Tokenizer, ids: &[u32], expected: &str) {
    let mut stream = tokenizer.decode_stream(false);
    let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    text.push_str(&stream.finish().unwrap());
    assert_eq!(text, expected);
    let (text, offsets) = tokenizer.decode_with_offsets(ids).unwrap();
    assert_eq!(text, expected);
    assert!(offsets.windows(2).all(|w| w[0].end == w[1].start), "{offsets:?}");
}

/// Offsets are whole characters, in order, and leave nothing out.
fn check_offsets(text: &str, encoding: &Encoding) {
    let mut covered = 0;
    for range in &encoding.offsets {
        assert!(
            range.start <= covered && text.get(range.clone()).is_some(),
            "{text:?} {:?}",
            encoding.offsets
        );
        covered = covered.max(range.end);
    }
    assert_eq!(covered, text.len(), "{text:?} {:?}", encoding.offsets);
    let chars = encoding.char_offsets(text);
    assert_eq!(chars.last().map_or(0, |r| r.end), text.chars().count());
}

#[test]
fn the_expected_encodings_are_reproduced() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let dir = data.join("tokenizers");
    let expected = read_json(dir.join("expected_encodings.json"));
    let gpt2 = dir.join("gpt2");
    let torchtune = dir.join("torchtune-assets");
    let cases = [
        (
            "gpt2",
            staged(&[
                (gpt2.join("gpt2_vocab.json"), "vocab.json"),
                (gpt2.join("gpt2_merges.txt"), "merges.txt"),
            ]),
        ),
        ("torchtune-tiny_bpe", staged(&[(torchtune.join("tiny_bpe_tokenizer.json"), "tokenizer.json")])),
    ];
    for (name, staged) in &cases {
        check_encodings(&Tokenizer::from_dir(staged.path()).unwrap(), &expected["tokenizers"][name]);
    }
    for name in ["qwen2.5", "pythia"] {
        check_encodings(&Tokenizer::from_dir(&dir.join(name)).unwrap(), &expected["tokenizers"][name]);
    }
}

#[test]
fn a_directory_tells_its_special_tokens_and_template() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let qwen = Tokenizer::from_dir(&data.join("tokenizers/qwen2.5")).unwrap();
    assert_eq!(qwen.eos_ids(), [151_645]);
    assert_eq!(qwen.pad_id(), Some(151_643));
    assert_eq!((qwen.bos_id(), qwen.adds_bos(), qwen.vocab_size()), (None, false, 151_665));
    assert!(qwen.is_special(151_644) && !qwen.is_special(151_657));
    let message = json!({"role": "user", "content": "Hi"}).as_object().unwrap().clone();
    let template = qwen.chat_template(None).unwrap();
    assert!(
        template.render(&[message], true, &Default::default()).unwrap().ends_with("<|im_start|>assistant\n")
    );
    assert!(matches!(qwen.chat_template(Some("tool_use")), Err(TextError::NoChatTemplate { .. })));

    let pythia = Tokenizer::from_dir(&data.join("tokenizers/pythia")).unwrap();
    assert_eq!((pythia.eos_id(), pythia.pad_id(), pythia.vocab_size()), (Some(0), Some(50_277), 50_278));
}

#[test]
fn llama2c_encodes_as_its_references_say() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let tokenizer = Tokenizer::from_llama2c(&data.join("stories260K/tok512.bin")).unwrap();
    for model in ["stories260K", "llama2xs"] {
        for row in read_json(data.join(model).join("reference.json"))["encode"].as_array().unwrap() {
            let text = row["text"].as_str().unwrap();
            let encoding = tokenizer.encode(text, true).unwrap();
            assert_eq!(encoding.ids, ids_of(&row["ids"]), "{text:?}");
            assert_eq!(tokenizer.decode(&encoding.ids, true).unwrap(), text);
            check_stream(&tokenizer, &encoding.ids[1..], text);
            check_offsets(text, &encoding);
        }
    }
    assert_eq!(
        (tokenizer.bos_id(), tokenizer.eos_ids(), tokenizer.vocab_size()),
        (Some(1), [2].as_slice(), 512)
    );
}

/// llama2.c's own loop: start from characters, merge the adjacent pair with the best score until none.
fn slow_llama2c(pieces: &HashMap<String, (u32, f32)>, text: &str) -> Vec<u32> {
    let mut parts: Vec<String> = format!(" {text}").chars().map(String::from).collect();
    loop {
        let mut best: Option<(usize, f32)> = None;
        for i in 0..parts.len().saturating_sub(1) {
            let score = pieces.get(&(parts[i].clone() + &parts[i + 1])).map(|(_, score)| *score);
            if let Some(score) = score.filter(|s| best.is_none_or(|(_, b)| *s > b)) {
                best = Some((i, score));
            }
        }
        let Some((i, _)) = best else { break };
        let right = parts.remove(i + 1);
        parts[i].push_str(&right);
    }
    let bytes = |part: &String| part.bytes().map(|b| u32::from(b) + 3).collect();
    parts.iter().flat_map(|p| pieces.get(p).map_or_else(|| bytes(p), |(id, _)| vec![*id])).collect()
}

#[test]
fn llama2c_merges_agree_with_the_slow_loop_on_real_text() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let path = data.join("stories260K/tok512.bin");
    let bytes = std::fs::read(&path).unwrap();
    let mut pieces = HashMap::new();
    let (mut at, mut id) = (4, 0u32);
    while at < bytes.len() {
        let score = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let len = i32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        if id >= 259 {
            pieces.insert(String::from_utf8(bytes[at + 8..at + 8 + len].to_vec()).unwrap(), (id, score));
        }
        at += 8 + len;
        id += 1;
    }
    let tokenizer = Tokenizer::from_llama2c(&path).unwrap();
    let mut text = String::new();
    let file = std::fs::File::open(data.join("tinystories/tinystories_sample.txt.gz")).unwrap();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(file), &mut text).unwrap();
    let odd = ["aaaaaaaaaa", "ababababab", "  the  thethe", "hehehehe", "\n\n \t", "🙂é"];
    for line in text.lines().filter(|l| !l.is_empty() && !l.contains("<|")).take(200).chain(odd) {
        assert_eq!(tokenizer.encode(line, false).unwrap().ids, slow_llama2c(&pieces, line), "{line:?}");
    }
}

#[test]
fn a_character_tokenizer_refuses_what_it_does_not_know() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let tokenizer = Tokenizer::from_dir(&data.join("tinyllm-chat")).unwrap();
    assert_eq!(tokenizer.vocab_size(), 59);
    let text = "<|user|>Hello!<|bot|>Hi there!\n";
    let encoding = tokenizer.encode(text, true).unwrap();
    assert_eq!(encoding.ids.len(), text.len());
    assert_eq!(tokenizer.decode(&encoding.ids, false).unwrap(), text);
    let error = tokenizer.encode_whole("Hello é", true).unwrap_err().to_string();
    assert!(error.contains("'é'") || error.contains("\"é\""), "{error}");
}

#[test]
fn training_gives_the_published_vocabulary_and_is_deterministic() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let dir = data.join("tokenizers/bpe-train");
    let corpus = std::fs::read_to_string(dir.join("corpus.en")).unwrap();
    let train = || train_byte_bpe([corpus.as_str()], 500, &["<|endoftext|>"]).unwrap();
    let tokenizer = train();
    let merges: Vec<String> = std::fs::read_to_string(dir.join("train-bpe-reference-merges.txt"))
        .unwrap()
        .lines()
        .map(String::from)
        .collect();
    let ours: Vec<&str> =
        tokenizer.json["model"]["merges"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    assert_eq!(ours, merges);
    let names =
        |json: &Json| json.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>();
    let reference = read_json(dir.join("train-bpe-reference-vocab.json"));
    assert_eq!(names(&tokenizer.json["model"]["vocab"]), names(&reference));
    assert_eq!(train().content_hash(), tokenizer.content_hash());
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos_id()), (500, Some(0)));
    for text in ["the cat\n sat", "日本語 🙂 é", "a<|endoftext|>b", ""] {
        let encoding = tokenizer.encode(text, true).unwrap();
        check_stream(&tokenizer, &encoding.ids, text);
        check_offsets(text, &encoding);
    }
    assert!(train_byte_bpe(["x"], 256, &["<|e|>"]).is_err());
}

fn check_round_trip(tokenizer: &Tokenizer, text: &str) {
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let again = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(again.encode(text, true).unwrap(), tokenizer.encode(text, true).unwrap());
    assert_eq!(again.config(), tokenizer.config());
    assert_eq!(again.content_hash(), tokenizer.content_hash());
    let bytes = |name: &str, dir: &Path| std::fs::read(dir.join(name)).unwrap();
    let twice = tempfile::tempdir().unwrap();
    again.save(twice.path()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(bytes(name, dir.path()), bytes(name, twice.path()), "{name}");
    }
}

#[test]
fn a_saved_tokenizer_is_the_same_when_loaded() {
    let mut trained = train_byte_bpe(["low lower lowest low low"], 270, &["<|end|>", "<|user|>"]).unwrap();
    let mut config = trained.config().clone();
    config.set_chat_template("{{ messages[0].content }}");
    config.other.insert("model_max_length".into(), json!(128));
    trained = trained.with_config(config).unwrap();
    check_round_trip(&trained, "lowest<|end|>");
    check_round_trip(&Tokenizer::from_chars("abc", TokenizerConfig::default()).unwrap(), "abba");
    let Some(data) = pt_core::testdata::shared_data() else { return };
    check_round_trip(&Tokenizer::from_llama2c(&data.join("stories260K/tok512.bin")).unwrap(), "Once upon");
}

#[test]
fn a_directory_without_a_tokenizer_or_with_a_foreign_one_says_so() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Tokenizer::from_dir(dir.path()), Err(TextError::NoTokenizer { .. })));
    std::fs::write(dir.path().join("vocab.json"), "{}").unwrap();
    std::fs::write(dir.path().join("merges.txt"), "").unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"tokenizer_class": "XGLMTokenizer"}"#)
        .unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("xglmtokenizer"), "{error}");
    std::fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
    assert!(matches!(Tokenizer::from_dir(dir.path()), Err(TextError::Malformed { .. })));
}

#[test]
fn a_configured_token_must_exist() {
    let config = TokenizerConfig { eos: Some("</s>".into()), ..TokenizerConfig::default() };
    let error = Tokenizer::from_chars("abc", config).unwrap_err();
    assert!(matches!(error, TextError::UnknownToken { role: "eos_token", .. }), "{error}");
}

#[test]
fn published_configurations_give_templates_that_compile() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let mut n_templates = 0;
    for entry in std::fs::read_dir(data.join("tokenizers/tokenizer_configs")).unwrap() {
        let config = TokenizerConfig::from_json(&read_json(entry.unwrap().path()), &Json::Null);
        for (name, source) in &config.chat_templates {
            ChatTemplate::new(source).unwrap_or_else(|e| panic!("{name}: {e}"));
            n_templates += 1;
        }
    }
    assert_eq!(n_templates, 5);
}

/// Every place a model directory can say something, in one directory.
#[test]
fn every_file_beside_the_vocabulary_is_read() {
    let dir = tempfile::tempdir().unwrap();
    train_byte_bpe(["a b"], 259, &["<|end|>", "<|stop|>"]).unwrap().save(dir.path()).unwrap();
    let write = |name: &str, json: &Json| std::fs::write(dir.path().join(name), json.to_string()).unwrap();
    write(
        "tokenizer_config.json",
        &json!({
            "eos_token": {"content": "<|end|>", "special": true},
            "bos_token": null,
            "chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}],
            "added_tokens_decoder": {"259": {"content": "<|new|>", "special": true}},
        }),
    );
    write("special_tokens_map.json", &json!({"pad_token": "<|new|>", "eos_token": "<|stop|>"}));
    write("generation_config.json", &json!({"eos_token_id": [1, 0, -1]}));
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(
        (tokenizer.eos_ids(), tokenizer.pad_id(), tokenizer.bos_id()),
        ([0, 1].as_slice(), Some(259), None)
    );
    let config = tokenizer.config();
    assert_eq!(
        (config.chat_template(None).unwrap(), config.chat_template(Some("tool_use")).unwrap()),
        ("D", "T")
    );
    assert_eq!(tokenizer.encode("a<|new|>", true).unwrap().ids.last(), Some(&259));
    let error = config.chat_template(Some("tool_uze")).unwrap_err().to_string();
    assert!(error.contains("did you mean `tool_use`"), "{error}");

    std::fs::write(dir.path().join("chat_template.jinja"), "{{ strftime_now('%Y') }}").unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let template = tokenizer.chat_template_at(None, Moment::from_civil(2001, 2, 3, 0, 0, 0)).unwrap();
    assert!(template.reads_clock());
    assert_eq!(template.render(&[], false, &Default::default()).unwrap(), "2001");
}

/// A few bytes changed, to any or to such as JSON is made of, or the end cut off.
fn damaged(original: &[u8], draws: &mut pt_core::rng::Draws) -> Vec<u8> {
    const OF_JSON: &[u8] = b"{}[]\",:-0123456789truefalsn\\ ";
    let mut bytes = original.to_vec();
    for _ in 0..=draws.below(3) {
        let at = draws.below(bytes.len());
        bytes[at] =
            if draws.below(2) == 0 { draws.next_u32() as u8 } else { OF_JSON[draws.below(OF_JSON.len())] };
    }
    if draws.below(5) == 0 {
        bytes.truncate(draws.below(original.len()));
    }
    bytes
}

/// Any result will do where a tokenizer's files are damaged, and whatever it says of a text; a panic will not.
#[test]
fn damaged_files_never_panic() {
    const TEXT: &str = "the hen and the café: 12 😀\n<|end|> again";
    let folder = |tokenizer: &Tokenizer| {
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        dir
    };
    let trained = train_byte_bpe([TEXT; 3], 300, &["<|end|>"]).unwrap();
    let chars = Tokenizer::from_chars("abcdefghijklmnopqrstuvwxyz :é", TokenizerConfig::default()).unwrap();
    let stream = pt_core::rng::Stream::new(2, "damage");
    let (mut n_trials, mut n_refused) = (0, 0);
    for dir in [folder(&trained), folder(&chars)] {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for path in files {
            let original = std::fs::read(&path).unwrap();
            for _ in 0..250 {
                n_trials += 1;
                std::fs::write(&path, damaged(&original, &mut stream.at(n_trials))).unwrap();
                match Tokenizer::from_dir(dir.path()) {
                    Ok(tokenizer) => use_it(&tokenizer, TEXT),
                    Err(_) => n_refused += 1,
                }
            }
            std::fs::write(&path, original).unwrap();
        }
    }
    assert!(n_trials >= 1000 && n_refused > n_trials / 4, "{n_refused} of {n_trials} were refused");
}

/// What is asked of a tokenizer, errors passed over.
fn use_it(tokenizer: &Tokenizer, text: &str) {
    let _ = tokenizer.encode_whole(text, true);
    let (_, _, _) = (tokenizer.vocab_size(), tokenizer.bos_id(), tokenizer.eos_ids());
    let Ok(encoding) = tokenizer.encode(text, false) else { return };
    let _ = tokenizer.decode(&encoding.ids, true);
    let _ = tokenizer.decode_with_offsets(&encoding.ids);
    let mut decoded = tokenizer.decode_stream(false);
    for id in encoding.ids {
        if decoded.push(id).is_err() {
            return;
        }
    }
    let _ = decoded.finish();
}
