//! `posttrain chat`: a conversation on the terminal, or line by line through a pipe.

use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context as _, bail};
use pt_rollout::{FinishReason, Request, SamplingParams};
use pt_text::template::Message;
use pt_text::{Conversation, DecodeStream, MaskPolicy, Masker, Origin};

use crate::Context;
use crate::commands::generate::{SamplingArgs, content_key, stop_tokens};
use crate::loading::{Loaded, ModelArgs, TextArgs};
use crate::ui::{self, Style};

/// Exit status of a program that Ctrl-C ended (128 + SIGINT).
const INTERRUPTED: i32 = 130;

const HELP: &str = "\
Write a line, read the reply as it comes. `/reset` forgets the conversation, `/exit` or Ctrl-D ends it, Ctrl-C stops \
the current reply. Through a pipe, each line is a turn and only the replies are printed.

With --raw there is no conversation: each line is continued as plain text, for models without a chat template.

Examples:
  posttrain chat --model models/chat
  posttrain chat --model models/chat --adapter runs/sft/stages/01-sft/adapter --system 'Answer in one sentence.' --temperature 0
  printf 'Hello\\nWho are you?\\n' | posttrain chat --model models/chat
  posttrain chat --model stories260K.bin --raw";

/// Options of `chat`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// A system message at the start of the conversation
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Continue each line as plain text, without a chat template
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    text: TextArgs,
}

/// A conversation going on.
struct Chat<'a> {
    loaded: &'a Loaded,
    params: SamplingParams,
    system: Option<&'a str>,
    raw: bool,
    messages: Vec<Message>,
    interrupt: Interrupt,
    style: Style,
}

/// What Ctrl-C does: stops a reply that is being written, otherwise ends the program.
#[derive(Clone, Default)]
struct Interrupt(Arc<AtomicU8>);

impl Interrupt {
    const IDLE: u8 = 0;
    const REPLYING: u8 = 1;
    const STOP: u8 = 2;

    #[allow(
        clippy::exit,
        reason = "reading a line cannot be broken off, so the handler itself ends the program"
    )]
    fn install() -> anyhow::Result<Interrupt> {
        let interrupt = Interrupt::default();
        let state = interrupt.0.clone();
        ctrlc::set_handler(move || {
            let stops = state
                .compare_exchange(Self::REPLYING, Self::STOP, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok();
            if !stops {
                std::process::exit(INTERRUPTED);
            }
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(interrupt)
    }

    fn begin(&self) {
        self.0.store(Self::REPLYING, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst) == Self::STOP
    }

    /// Whether the reply was stopped.
    fn end(&self) -> bool {
        self.0.swap(Self::IDLE, Ordering::SeqCst) == Self::STOP
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let loaded = args.model.load(&args.text, &context.environment)?;
    if !args.raw && loaded.template.is_none() {
        bail!(
            "{} has no chat template, so it cannot be talked with: continue plain text with `posttrain chat --raw` or \
             `posttrain generate`, or give a template with --template",
            args.model.model
        );
    }
    let terminal = io::stdin().is_terminal();
    let mut chat = Chat {
        params: args.sampling.params(1, stop_tokens(&loaded)),
        loaded: &loaded,
        system: args.system.as_deref(),
        raw: args.raw,
        messages: Vec::new(),
        interrupt: Interrupt::install()?,
        style: context.style,
    };
    chat.reset();
    if terminal {
        ui::note(
            &context
                .style
                .dim("/reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops a reply"),
        );
    }
    chat.talk(terminal)
}

impl Chat<'_> {
    fn talk(&mut self, terminal: bool) -> anyhow::Result<()> {
        let mut lines = io::stdin().lock().lines();
        loop {
            if terminal {
                let mut out = io::stdout().lock();
                write!(out, "{} ", self.style.name(if self.raw { "text>" } else { "you>" }))?;
                out.flush()?;
            }
            let Some(line) = lines.next() else { break };
            let line = line.context("cannot read standard input as UTF-8 text")?;
            match line.trim_end() {
                "" => {}
                "/exit" | "/quit" => return Ok(()),
                "/reset" => self.reset(),
                command if command.starts_with('/') && terminal => {
                    ui::note(
                        "commands are /reset and /exit; begin with a space to send a line that starts with /",
                    );
                }
                _ => self.turn(&line)?,
            }
        }
        if terminal {
            writeln!(io::stdout().lock())?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.messages = self.system.map(|text| message("system", text)).into_iter().collect();
    }

    /// Answers one line. A turn that cannot be answered is taken back, and the conversation goes on.
    fn turn(&mut self, line: &str) -> anyhow::Result<()> {
        let n_before = self.messages.len();
        self.messages.push(message("user", line.trim()));
        match self.prompt_ids(line) {
            Ok(prompt_ids) => {
                let reply = self.reply(prompt_ids)?;
                self.messages.push(message("assistant", &reply));
                Ok(())
            }
            Err(error) if io::stdin().is_terminal() => {
                ui::note(&ui::describe(&error, self.style));
                self.messages.truncate(n_before);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn prompt_ids(&self, line: &str) -> anyhow::Result<Vec<u32>> {
        let masker =
            Masker::new(&self.loaded.tokenizer, self.loaded.template.as_ref(), MaskPolicy::default());
        let ids = if self.raw {
            masker.prompt_text(&Origin::new("standard input", 0), line)?.token_ids
        } else {
            let row = Conversation { messages: &self.messages, ..Conversation::default() };
            masker.prompt(&Origin::new("the conversation", 0), &row)?.token_ids
        };
        let context = self.loaded.model.config.max_positions;
        if ids.len() >= context {
            bail!(
                "the conversation has {} tokens by now, and the model was made for {context}; start again with /reset",
                ids.len()
            );
        }
        Ok(ids)
    }

    /// Streams a reply to standard output and returns it.
    fn reply(&self, prompt_ids: Vec<u32>) -> anyhow::Result<String> {
        let mut decode = self.loaded.tokenizer.decode_stream(true);
        for &id in &prompt_ids {
            decode.push(id)?;
        }
        let mut writer =
            Writer { decode, stop: &self.params.stop_token_ids, text: String::new(), failure: None };
        let request = Request { key: content_key(&prompt_ids), prompt_ids };
        self.interrupt.begin();
        let model = &self.loaded.model;
        let outcome = pt_rollout::stream(model, self.loaded.dtype, &request, &self.params, &mut |token| {
            let written = writer.token(token);
            if written.is_break() || self.interrupt.is_set() { ControlFlow::Break(()) } else { written }
        });
        let stopped = self.interrupt.end();
        let sample = outcome?;
        let text = writer.finish()?;
        let cut = sample.is_some_and(|sample| sample.finish_reason == FinishReason::Length);
        let mark = if stopped {
            " [stopped]"
        } else if cut {
            " [--max-new-tokens reached]"
        } else {
            ""
        };
        let mark = if io::stdout().is_terminal() { self.style.dim(mark) } else { String::new() };
        let mut out = io::stdout().lock();
        writeln!(out, "{mark}")?;
        out.flush()?;
        Ok(text)
    }
}

/// Writes tokens as they come.
struct Writer<'a> {
    decode: DecodeStream<'a>,
    stop: &'a [u32],
    text: String,
    failure: Option<anyhow::Error>,
}

impl Writer<'_> {
    fn token(&mut self, token: u32) -> ControlFlow<()> {
        if self.stop.contains(&token) {
            return ControlFlow::Continue(());
        }
        let written = self.decode.push(token).map_err(anyhow::Error::from).and_then(|piece| self.put(&piece));
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failure = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn put(&mut self, piece: &str) -> anyhow::Result<()> {
        self.text += piece;
        let mut out = io::stdout().lock();
        out.write_all(piece.as_bytes())?;
        Ok(out.flush()?)
    }

    fn finish(mut self) -> anyhow::Result<String> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let rest = self.decode.finish()?;
        self.put(&rest)?;
        Ok(self.text)
    }
}

fn message(role: &str, content: &str) -> Message {
    Message::from_iter([("role".to_owned(), role.into()), ("content".to_owned(), content.into())])
}
