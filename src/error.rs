//! The one error type. Its variants are the exit codes a user sees; its text is the one sentence he reads.

use std::fmt::Display;

/// What went wrong, by who has to act on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line, recipe, target profile, model file or data is not usable as given: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The conversion itself failed: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// Ctrl-C or a termination signal: exit code 130.
    #[error("interrupted; nothing was written")]
    Interrupted,
}

/// `Result` with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of what the user handed in (exit code 2).
    pub fn usage(message: impl Display) -> Self {
        Error::Usage(message.to_string())
    }

    /// A failed conversion (exit code 1).
    pub fn failed(message: impl Display) -> Self {
        Error::Failed(message.to_string())
    }

    /// The same error with `place: ` before its text: a file, a node, a step.
    pub fn at(self, place: impl Display) -> Self {
        match self {
            Error::Usage(m) => Error::Usage(format!("{place}: {m}")),
            Error::Failed(m) => Error::Failed(format!("{place}: {m}")),
            Error::Interrupted => Error::Interrupted,
        }
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Failed(_) => 1,
            Error::Interrupted => 130,
        }
    }
}

/// `.at(place)` on a `Result`.
pub trait At<T> {
    /// Puts `place: ` before the error's text; `place` is only evaluated on error.
    fn at<D: Display>(self, place: impl FnOnce() -> D) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at<D: Display>(self, place: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| e.at(place()))
    }
}
