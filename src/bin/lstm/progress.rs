//! A progress bar on stderr for what takes longer than a second, if stderr is a terminal.

use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const PATIENCE: Duration = Duration::from_secs(1);
const UNITS: u64 = 1000;

/// Runs `work`, which may report the finished fraction, 0 to 1. Before the first report only the elapsed time
/// shows. The bar is gone when `work` returns.
pub(crate) fn with_bar<T>(label: &'static str, quiet: bool, work: impl FnOnce(&(dyn Fn(f64) + Sync)) -> T) -> T {
    if quiet || !std::io::stderr().is_terminal() {
        return work(&|_| ());
    }
    let bar = ProgressBar::with_draw_target(Some(UNITS), ProgressDrawTarget::hidden());
    let style = |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_message(label);
    bar.set_style(style("{spinner} {msg} {elapsed}"));
    let report = |fraction: f64| {
        if bar.position() == 0 && fraction > 0.0 {
            bar.set_style(style("{msg} {bar:40} {percent} %, {eta} left"));
        }
        bar.set_position((fraction * UNITS as f64) as u64);
    };
    let (done, wait) = mpsc::channel::<()>();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            let wait = wait;
            if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                bar.set_draw_target(ProgressDrawTarget::stderr());
                bar.enable_steady_tick(Duration::from_millis(200));
            }
        });
        let result = work(&report);
        drop(done);
        result
    });
    bar.finish_and_clear();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_comes_through() {
        let result = with_bar("working", true, |report| {
            report(0.5);
            report(1.0);
            7
        });
        assert_eq!(result, 7);
    }
}
