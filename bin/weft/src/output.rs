//! How the command line looks: aligned tables, progress steps, colours only on terminals. No content lives here.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

#[derive(Clone, Copy)]
pub enum Colour {
    Green,
    Red,
    Yellow,
    Dim,
    Bold,
}

/// `text` in a colour if stdout is a terminal and NO_COLOR (no-color.org) is not set.
pub fn paint(colour: Colour, text: impl Display) -> String {
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || !std::io::stdout().is_terminal()
    {
        return text.to_string();
    }
    let code = match colour {
        Colour::Green => 32,
        Colour::Red => 31,
        Colour::Yellow => 33,
        Colour::Dim => 2,
        Colour::Bold => 1,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Columns as kubectl prints them: upper-case headings, three spaces between.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| heading.to_string()).collect()] }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| visible(cell)).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - visible(cell) + 3));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Characters that take a column: escape sequences do not.
fn visible(text: &str) -> usize {
    let mut count = 0;
    let mut escape = false;
    for c in text.chars() {
        match (escape, c) {
            (false, '\x1b') => escape = true,
            (true, 'm') => escape = false,
            (true, _) => {}
            (false, _) => count += 1,
        }
    }
    count
}

/// Steps of something that takes a while, each with the time it took.
pub struct Progress {
    started: Instant,
    step: Option<(String, Instant)>,
}

impl Progress {
    pub fn start() -> Self {
        Self { started: Instant::now(), step: None }
    }

    pub fn step(&mut self, text: impl Into<String>) {
        self.finish_step();
        let text = text.into();
        if std::io::stderr().is_terminal() {
            eprint!("  … {text}");
            std::io::stderr().flush().ok();
        }
        self.step = Some((text, Instant::now()));
    }

    /// Adds to the running step's line on a terminal (`12 of 14 pods ready`).
    pub fn detail(&self, detail: impl Display) {
        if let Some((text, _)) = self.step.as_ref().filter(|_| std::io::stderr().is_terminal()) {
            eprint!("\r\x1b[2K  … {text}: {detail}");
            std::io::stderr().flush().ok();
        }
    }

    pub fn finish_step(&mut self) {
        if let Some((text, since)) = self.step.take() {
            let clear = if std::io::stderr().is_terminal() { "\r\x1b[2K" } else { "" };
            eprintln!("{clear}  {} {text} {}", mark(true), paint(Colour::Dim, seconds(since.elapsed())));
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

pub fn mark(good: bool) -> String {
    if good { paint(Colour::Green, "✓") } else { paint(Colour::Red, "✗") }
}

pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_ignore_escapes() {
        let mut table = Table::new(&["NAME", "IP"]);
        table.row(["a".to_owned(), "10.0.0.1".to_owned()]);
        table.row(["\x1b[32mlonger\x1b[0m".to_owned(), "-".to_owned()]);
        assert_eq!(table.to_string(), "NAME     IP\na        10.0.0.1\n\x1b[32mlonger\x1b[0m   -\n");
    }
}
