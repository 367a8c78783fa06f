//! How a binary ends: one line on stderr and an exit code; and how it prints without panicking on a closed pipe.

use std::fmt;
use std::io::{ErrorKind as IoErrorKind, Write};
use std::process::ExitCode;

use wgpu_lstm::ErrorKind;

/// What ended a run before its good end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A failed check or bad data: exit code 1.
    Data(String),
    /// The command line asks for something that does not exist here: exit code 2, as for a mistyped option.
    Usage(String),
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// The same failure with `context` in front.
    pub(crate) fn context(self, context: impl fmt::Display) -> Self {
        match self {
            Failure::Data(message) => Failure::Data(format!("{context}: {message}")),
            Failure::Usage(message) => Failure::Usage(format!("{context}: {message}")),
        }
    }
}

impl fmt::Display for Failure {
    /// One line, whatever the message was made of.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::Data(message) | Failure::Usage(message)) = self;
        let mut lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
        f.write_str(lines.next().unwrap_or("failed"))?;
        lines.try_for_each(|line| write!(f, " {line}"))
    }
}

impl From<wgpu_lstm::Error> for Failure {
    fn from(error: wgpu_lstm::Error) -> Self {
        match error.kind() {
            ErrorKind::DeviceNotFound => Failure::Usage(error.to_string()),
            _ => Failure::Data(error.to_string()),
        }
    }
}

/// `return Err(Failure::Data(...))` with a format string.
macro_rules! fail {
    ($($arg:tt)*) => {
        return Err($crate::common::failure::Failure::Data(format!($($arg)*)))
    };
}
pub(crate) use fail;

/// Prints a line on stdout.
macro_rules! say {
    ($($arg:tt)*) => {
        $crate::common::failure::print_line(format_args!($($arg)*))
    };
}
pub(crate) use say;

/// Prints a line on stdout. A reader that has gone away (`lstm devices | head -1`) is no failure.
pub(crate) fn print_line(line: fmt::Arguments<'_>) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != IoErrorKind::BrokenPipe => fail!("stdout: cannot be written: {e}"),
        _ => Ok(()),
    }
}

/// Runs `body`, reports its failure as one line and returns the exit code.
pub(crate) fn run(program: &'static str, body: impl FnOnce() -> Result<()>) -> ExitCode {
    // What no line of this program foresaw still ends in one line.
    std::panic::set_hook(Box::new(move |info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let message = text.or(payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        let place = info.location().map_or(String::new(), |l| format!(" at {}:{}", l.file(), l.line()));
        let _ = writeln!(std::io::stderr(), "{program}: internal error, please report it: {message}{place}");
    }));
    match body() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "{program}: {failure}");
            ExitCode::from(if matches!(failure, Failure::Usage(_)) { 2 } else { 1 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::Data("validation error:\n\n  buffer too small\n".into()).context("gpu:0");
        assert_eq!(failure.to_string(), "gpu:0: validation error: buffer too small");
        assert_eq!(Failure::Data(String::new()).to_string(), "failed");
    }
}
