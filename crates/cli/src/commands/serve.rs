//! `posttrain serve`: the model behind an OpenAI-compatible server.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use pt_rollout::EngineOptions;
use pt_serve::{EngineBackend, Server, ServerOptions, TextSide, backend};

use crate::Context;
use crate::commands::generate::stop_tokens;
use crate::commands::score::parse_positive;
use crate::loading::{Loaded, ModelArgs, TextArgs};
use crate::ui;

const HELP: &str = "\
Answers the OpenAI protocol: /v1/chat/completions, /v1/completions, /v1/models; and /health, /metrics. Any client of \
that protocol can be pointed at it. What a request asks for and this server cannot do is an error that names the field.

Beside OpenAI's fields, requests may have top_k, min_p, repetition_penalty, min_tokens, stop_token_ids, ignore_eos, \
return_token_ids, return_tokens_as_token_ids and chat_template_kwargs. With `echo` and `logprobs`, text completions give \
the log-probabilities of their prompt, as lm-evaluation-harness needs them.

The same prompt, parameters and seed give the same answer, whatever else is running.

Ctrl-C takes no new requests and lets running ones finish for --grace seconds; a second Ctrl-C cuts them.

Examples:
  posttrain serve --model models/chat
  posttrain serve --model models/base --adapter runs/sft/stages/01-sft/adapter --port 8080 --api-key sesame
  curl -s localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'";

/// Options of `serve`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Address to listen at; 0.0.0.0 lets other machines in
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen at; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8000)]
    port: u16,
    /// Clients must give this key; others on this machine may see it in the list of processes
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// What the model is called [default: the name of the folder or file; a name on the hub in full]
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
    /// Samples decoded at once, at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_positive)]
    max_batch: usize,
    /// Requests running or waiting, at most; further ones get status 429
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = parse_positive)]
    max_waiting: usize,
    /// Memory for keys and values, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = parse_positive)]
    cache_mib: usize,
    /// Tokens of prompt and answer together, at most [default: what the model was made for]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    max_length: Option<usize>,
    /// Seconds that running requests may go on after Ctrl-C
    #[arg(long, value_name = "N", default_value_t = 10)]
    grace: u32,
    /// Keys the draws of requests without a seed [default: the time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    text: TextArgs,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let loaded = args.model.load(&args.text, &context.environment)?;
    let stop_token_ids = stop_tokens(&loaded);
    let vocabulary = loaded.vocabulary();
    let Loaded { model, dtype, tokenizer, template } = loaded;
    let text = TextSide {
        tokenizer: Arc::new(tokenizer),
        template,
        stop_token_ids,
        context: args.max_length.unwrap_or(model.config.max_positions),
        vocabulary,
    };
    if text.template.is_none() {
        ui::note(
            "note: the model has no chat template: only /v1/completions will work (or give one with --template)",
        );
    }
    let words = text.tokenizer.clone();
    let engine_options = EngineOptions {
        max_sequences: args.max_batch,
        cache_bytes: args.cache_mib << 20,
        detokenise: Some(Arc::new(move |ids: &[u32]| words.decode(ids, true).unwrap_or_default())),
        ..EngineOptions::new(dtype)
    };
    let engine = move |commands| backend::run(&mut EngineBackend::new(&model, engine_options), commands);
    let server = Server::start(&args.host, args.port, args.options(), text, engine)?;
    let stop = server.stop_handle();
    ctrlc::set_handler(move || stop.stop()).context("cannot listen for Ctrl-C")?;
    if args.api_key.is_none() && !server.address().ip().is_loopback() {
        ui::note("note: other machines can reach this server, and it asks for no key (--api-key)");
    }
    let mut out = io::stdout().lock();
    writeln!(out, "serving {} at http://{}/v1", args.name(), server.address())?;
    out.flush()?;
    drop(out);
    Ok(server.wait()?)
}

impl Args {
    fn name(&self) -> String {
        self.served_model_name.clone().unwrap_or_else(|| served_name(&self.model.model))
    }

    fn options(&self) -> ServerOptions {
        let now =
            || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
        ServerOptions {
            api_key: self.api_key.clone(),
            max_waiting: self.max_waiting,
            grace_s: self.grace.into(),
            seed: self.seed.unwrap_or_else(now),
            ..ServerOptions::new(self.name())
        }
    }
}

/// What a model is called: a folder by its last name, a file by its own without the extension, all else as it is written.
fn served_name(given: &str) -> String {
    let path = Path::new(given);
    // A folder's name may have dots: `Qwen2.5-0.5B`.
    let last = if path.is_dir() { path.file_name() } else { path.file_stem().filter(|_| path.exists()) };
    last.map_or_else(|| given.to_owned(), |last| last.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_by_its_folder_its_file_or_its_name_on_the_hub() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("Qwen2.5-0.5B")).unwrap();
        std::fs::write(dir.path().join("stories15M.bin"), "").unwrap();
        let here = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        for (given, expected) in [
            (here("Qwen2.5-0.5B"), "Qwen2.5-0.5B"),
            (here("Qwen2.5-0.5B/"), "Qwen2.5-0.5B"),
            (here("stories15M.bin"), "stories15M"),
            ("Qwen/Qwen2.5-0.5B".to_owned(), "Qwen/Qwen2.5-0.5B"),
        ] {
            assert_eq!(served_name(&given), expected, "{given}");
        }
    }
}
