//! What goes to stdout and stderr.

use std::io::{self, Write};

/// Stdout takes nothing more.
#[derive(Debug, thiserror::Error)]
#[error("stdout")]
pub(super) struct Stdout(#[from] io::Error);

impl Stdout {
    /// Whether the reader has left, who needs to be told nothing.
    pub(super) fn closed(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Prints rows in columns; numbers in `right` stand right-aligned.
pub(super) fn table(head: &[&str], right: &[usize], rows: &[Vec<String>]) -> Result<(), Stdout> {
    let width = |s: &str| s.chars().count();
    let mut widths: Vec<usize> = head.iter().map(|h| width(h)).collect();
    for row in rows {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(width(cell));
        }
    }
    let mut out = io::stdout().lock();
    let mut line = |cells: Vec<&str>| -> io::Result<()> {
        let mut text = String::new();
        for (i, cell) in cells.iter().enumerate() {
            let pad = " ".repeat(widths[i] - width(cell));
            if right.contains(&i) {
                text.push_str(&pad);
                text.push_str(cell);
            } else {
                text.push_str(cell);
                text.push_str(&pad);
            }
            text.push_str("  ");
        }
        writeln!(out, "{}", text.trim_end())
    };
    line(head.to_vec())?;
    Ok(rows.iter().try_for_each(|r| line(r.iter().map(String::as_str).collect()))?)
}

/// Prints a line to stdout.
pub(super) fn line(text: impl std::fmt::Display) -> Result<(), Stdout> {
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// Prints a line to stderr. One that cannot be printed is lost: nobody reads it, and the exit code stands.
pub(super) fn note(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
