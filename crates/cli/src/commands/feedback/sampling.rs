//! How texts are drawn from who answers.

/// How texts are drawn.
#[derive(clap::Args)]
pub(super) struct Sampling {
    /// Keys the model's draws, and where principles are drawn, these
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// Divides the logits; 0 takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    pub(super) temperature: f64,
    /// Most tokens of an answer, or of a reply, critique or revision
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(super) max_new_tokens: u32,
    /// Keep texts that were cut at the token limit
    #[arg(long)]
    pub(super) keep_truncated: bool,
}
