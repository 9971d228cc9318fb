//! Progress on standard error; silent where that is no terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts rows, with a rate of tokens beside it.
pub(crate) struct Progress {
    bar: ProgressBar,
    start: Instant,
    n_tokens: u64,
}

impl Progress {
    /// A bar for `n_rows` rows. It is drawn only on a terminal.
    pub(crate) fn rows(n_rows: usize) -> Progress {
        let bar = ProgressBar::new(n_rows as u64);
        let template = "{bar:28} {human_pos} of {human_len} rows, {msg}, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is constant and right"));
        bar.enable_steady_tick(Duration::from_millis(250));
        Progress { bar, start: Instant::now(), n_tokens: 0 }
    }

    /// So many rows and tokens more are done.
    pub(crate) fn advance(&mut self, n_rows: usize, n_tokens: usize) {
        self.n_tokens += n_tokens as u64;
        self.bar.inc(n_rows as u64);
        let rate = self.n_tokens as f64 / self.seconds().max(1e-9);
        self.bar.set_message(format!("{rate:.0} tokens/s"));
    }

    /// Seconds since the bar was made.
    pub(crate) fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Tokens so far.
    pub(crate) fn n_tokens(&self) -> usize {
        self.n_tokens as usize
    }

    /// Removes the bar.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    /// An error message must not be written over the bar.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
