//! Who answers: a model of this machine, or a server.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use pt_client::{Client, ClientOptions, Price};
use pt_feedback::{Chat, LocalChat, ServerChat};

use crate::Context;
use crate::commands::generate::stop_tokens;
use crate::commands::score::parse_positive;
use crate::loading::{DtypeName, ModelArgs, TextArgs};

/// Who answers.
#[derive(clap::Args)]
#[command(next_help_heading = "Who answers")]
pub(super) struct Who {
    /// A model of this machine: a Hugging Face folder or a name on the hub
    #[arg(long, value_name = "MODEL", conflicts_with = "server")]
    model: Option<String>,
    /// A folder with a PEFT adapter for the model
    #[arg(long, value_name = "DIR", requires = "model")]
    adapter: Option<PathBuf>,
    /// Storage type of the model's weights [default: that of the files]
    #[arg(long, value_enum, value_name = "TYPE")]
    dtype: Option<DtypeName>,
    /// An OpenAI-compatible server, as http://127.0.0.1:8000/v1
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The server's name of the model [default: its only one]
    #[arg(long, value_name = "NAME", requires = "server")]
    server_model: Option<String>,
    /// A file with the key of --server; no other server is sent it
    #[arg(long, value_name = "FILE", requires = "server")]
    api_key_file: Option<PathBuf>,
    /// Requests at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = parse_positive)]
    parallel: usize,
    /// Most requests per minute [default: no limit]
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<f64>,
    /// Seconds to wait for an answer
    #[arg(long, value_name = "S", default_value_t = 300.0)]
    timeout: f64,
    /// Attempts after the first, where an answer may still come
    #[arg(long, value_name = "N", default_value_t = 5)]
    retries: u32,
    /// Prices of a million prompt and completion tokens, as 0.5,1.5
    #[arg(long, value_name = "P,C", value_parser = parse_price, default_value = "0,0")]
    price: Price,
    /// Where answers are kept, so that a run that was stopped goes on [default: OUT.calls]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
}

fn parse_price(text: &str) -> Result<Price, String> {
    let number =
        |text: &str| text.trim().parse::<f64>().ok().filter(|price| price.is_finite() && *price >= 0.0);
    let both =
        text.split_once(',').and_then(|(prompt, completion)| Some((number(prompt)?, number(completion)?)));
    let (prompt_per_million, completion_per_million) = both.ok_or("expected two prices, as 0.5,1.5")?;
    Ok(Price { prompt_per_million, completion_per_million })
}

impl Who {
    /// The judge, or the one who revises.
    pub(super) fn chat(&self, out: &str, context: &Context) -> anyhow::Result<Box<dyn Chat>> {
        let cache = self.cache_dir(out);
        match (&self.model, &self.server) {
            (Some(model), None) => Ok(Box::new(self.local(model, self.adapter.clone(), cache, context)?)),
            (None, Some(server)) => Ok(Box::new(self.remote(server, self.server_model.as_deref(), cache)?)),
            _ => bail!("name who answers: --model DIR for a model of this machine, or --server URL"),
        }
    }

    /// `URL#MODEL` is a server's model, everything else one of this machine.
    pub(super) fn other(&self, name: &str, out: &str, context: &Context) -> anyhow::Result<Box<dyn Chat>> {
        let cache = self.cache_dir(out);
        if name.starts_with("http://") || name.starts_with("https://") {
            let (url, model) = name.split_once('#').map_or((name, None), |(url, model)| (url, Some(model)));
            return Ok(Box::new(self.remote(url, model, cache)?));
        }
        Ok(Box::new(self.local(name, None, cache, context)?))
    }

    fn cache_dir(&self, out: &str) -> Option<PathBuf> {
        self.cache.clone().or_else(|| (out != "-").then(|| PathBuf::from(format!("{out}.calls"))))
    }

    fn remote(
        &self,
        url: &str,
        model: Option<&str>,
        cache_dir: Option<PathBuf>,
    ) -> anyhow::Result<ServerChat> {
        let mut options = ClientOptions::new(url);
        let key_file = self.api_key_file.as_deref().filter(|_| self.is_server(url));
        options.api_key = key_file.map(pt_feedback::read_key).transpose()?;
        options.http.timeout_s = self.timeout;
        options.retry.max_retries = self.retries;
        options.requests_per_minute = self.requests_per_minute;
        options.cache_dir = cache_dir;
        let client = Client::new(options).context("--server, or an option of it, cannot be used")?;
        Ok(ServerChat::new(client, model, self.parallel, self.price)?)
    }

    /// Whether this is the server whose key was given.
    fn is_server(&self, url: &str) -> bool {
        self.server.as_deref().is_some_and(|server| server.trim_end_matches('/') == url.trim_end_matches('/'))
    }

    fn local(
        &self,
        model: &str,
        adapter: Option<PathBuf>,
        cache_dir: Option<PathBuf>,
        context: &Context,
    ) -> anyhow::Result<LocalChat> {
        let args = ModelArgs {
            model: model.to_owned(),
            revision: "main".to_owned(),
            adapter: adapter.clone(),
            dtype: self.dtype,
        };
        let mut loaded = args.load(&self.text, &context.environment)?;
        let stop_token_ids = stop_tokens(&loaded);
        let Some(template) = loaded.template.take() else {
            bail!("{model} has no chat template, and its answers need one; name a file with --template");
        };
        let path = args.locate(&context.environment)?;
        let folders: Vec<&Path> = [Some(path.as_path()), adapter.as_deref()].into_iter().flatten().collect();
        let name = Path::new(model)
            .file_name()
            .map_or_else(|| model.to_owned(), |n| n.to_string_lossy().into_owned());
        Ok(LocalChat {
            name,
            identity: pt_feedback::identity_of(&folders)?,
            model: loaded.model,
            dtype: loaded.dtype,
            tokenizer: loaded.tokenizer,
            template,
            stop_token_ids,
            cache_dir,
        })
    }
}
