//! What can be wrong with a data file.

use std::path::{Path, PathBuf};

/// A data file that cannot be read or written; whoever knows the place says it.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The system refused.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The file as a whole is not what it should be.
    #[error("{}: {what}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        what: String,
    },
    /// One array of an archive, or one file of a folder.
    #[error("{}: {member:?}: {what}", .path.display())]
    Member {
        /// The file.
        path: PathBuf,
        /// The array.
        member: String,
        /// What was found and what was expected.
        what: String,
    },
    /// One cell of a table.
    #[error("{}:{line}: column {column:?}: {what}", .path.display())]
    Cell {
        /// The file.
        path: PathBuf,
        /// The line, from 1, the header included.
        line: u64,
        /// The column's name.
        column: String,
        /// What was found and what was expected.
        what: String,
    },
    /// Data and model do not fit together.
    #[error("input {input:?}: {what}")]
    Input {
        /// The model's input.
        input: String,
        /// What was found and what was expected.
        what: String,
    },
    /// An output that the file cannot hold.
    #[error("output {output:?}: {what}")]
    Output {
        /// The model's output.
        output: String,
        /// What was found and what was expected.
        what: String,
    },
    /// A binding that cannot be read.
    #[error("{0}")]
    Bind(String),
}

impl DataError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DataError + '_ {
        move |error| DataError::Io { path: path.into(), error }
    }

    pub(crate) fn file(path: &Path, what: impl ToString) -> DataError {
        DataError::File { path: path.into(), what: what.to_string() }
    }

    pub(crate) fn member(path: &Path, member: &str, what: impl ToString) -> DataError {
        DataError::Member { path: path.into(), member: member.into(), what: what.to_string() }
    }
}
