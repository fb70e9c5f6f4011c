//! The two streams: results to stdout, everything else to stderr. A reader that went away (`requant inspect … | head`) is no error.

use crate::error::{Error, Result};
use std::io::{ErrorKind, IsTerminal, Write};

/// Writes results to stdout, with a line end behind them.
pub fn results(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(end.as_bytes())).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::failed(format!("stdout cannot be written: {e}"))),
        _ => Ok(()),
    }
}

/// A value as JSON, to stdout.
pub fn json(value: &impl serde::Serialize) -> Result<()> {
    results(&serde_json::to_string_pretty(value).map_err(Error::failed)?)
}

/// One line to stderr.
pub fn remark(line: &str) {
    // Nobody is left to tell if stderr is gone.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// `error: …` to stderr, the word in red where the terminal may show it.
pub fn error(error: &Error) {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || !std::io::stderr().is_terminal();
    let word = if plain { "error:" } else { "\x1b[1;31merror:\x1b[0m" };
    remark(&format!("{word} {error}"));
}

/// Rows as columns, two spaces between them; a column whose header ends in `>` is set flush right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let titles: Vec<&str> = header.iter().map(|h| h.trim_end_matches('>')).collect();
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).chain([titles[c].chars().count()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells.iter().enumerate().map(|(c, cell)| match header[c].ends_with('>') {
            true => format!("{cell:>w$}", w = widths[c]),
            false => format!("{cell:<w$}", w = widths[c]),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
    };
    let mut text = if titles.iter().all(|t| t.is_empty()) { String::new() } else { line(titles) };
    text.extend(rows.iter().map(|r| line(r.iter().map(String::as_str).collect())));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_string(), "10".to_string()], vec!["bcd".to_string(), "9".to_string()]];
        assert_eq!(table(&["op", "n>"], &rows), "op    n\na    10\nbcd   9\n");
        assert_eq!(table(&["", ">"], &rows), "a    10\nbcd   9\n");
    }
}
