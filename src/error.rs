//! The one error type: what was wrong, where, what was expected and found, and what would help.

use std::fmt;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong; callers branch on this, people read the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A spec that no LSTM can have: no layers, a zero size, layers that do not fit together.
    InvalidSpec,
    /// Weights that disagree with the spec or contain NaN or infinity.
    InvalidWeights,
    /// A batch that disagrees with the spec: shape, lengths, initial state, NaN or infinity.
    InvalidInput,
    /// A file that cannot be read: missing, truncated, not of the format it claims.
    InvalidFile,
    /// A legal request that this build or device does not compute.
    Unsupported,
    /// No adapter matches the requested device.
    DeviceNotFound,
    /// A limit of the adapter or the memory budget is too small; the message names both sides.
    DeviceLimit,
    /// The device ran out of memory.
    OutOfMemory,
    /// The device was lost (removed, reset, driver crash); open a new engine.
    DeviceLost,
    /// The device returned wrong numbers or an error that this crate did not expect.
    DeviceFault,
}

/// The error of this crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// An error of `kind`; `message` names the offender, the expected and the found value.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The kind, for branching.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether something was too large for a device, which another device may take.
    #[cfg(feature = "gpu")]
    pub(crate) fn is_for_size(&self) -> bool {
        matches!(self.kind, ErrorKind::DeviceLimit | ErrorKind::OutOfMemory)
    }

    /// The same error with `context` in front, separated by a colon.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Self {
        Self { kind: self.kind, message: format!("{context}: {}", self.message) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// `return Err(...)` with a kind and a format string.
macro_rules! bail {
    ($kind:ident, $($arg:tt)*) => {
        return Err($crate::error::Error::new($crate::error::ErrorKind::$kind, format!($($arg)*)))
    };
}
pub(crate) use bail;
