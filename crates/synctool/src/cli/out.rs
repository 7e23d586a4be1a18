//! What goes to stdout and stderr, and in which form. Results go to stdout; everything else goes to stderr.

use super::args::Format;
use crate::config::ConfigErrors;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use synctool_core::error::{Error, ErrorKind};

/// What a command has to say.
pub(super) struct Reply {
    /// For people.
    pub(super) text: String,
    /// For programs. An array becomes one line per item in NDJSON.
    pub(super) json: Value,
    /// The process's exit code.
    pub(super) exit: u8,
    /// What went wrong, if the reply is more than that.
    pub(super) error: Option<Error>,
}

impl Reply {
    /// All went well.
    pub(super) fn new(json: Value, text: impl Into<String>) -> Self {
        Reply {
            text: text.into(),
            json,
            exit: 0,
            error: None,
        }
    }

    /// The same with another exit code.
    pub(super) fn exit(mut self, code: u8) -> Self {
        self.exit = code;
        self
    }
}

/// Prints a reply and says what the process should exit with.
pub(super) fn print(reply: Reply, format: Format) -> u8 {
    if let Some(error) = &reply.error {
        print_error(error);
    }
    let text = match format {
        Format::Text => reply.text,
        Format::Json => format!("{:#}\n", reply.json),
        Format::Ndjson => match &reply.json {
            Value::Array(items) => items.iter().map(|item| format!("{item}\n")).collect(),
            one => format!("{one}\n"),
        },
    };
    to_stdout(&text);
    reply.exit
}

/// Prints an error that is all a command has to say.
pub(super) fn fail(error: Error, format: Format) -> u8 {
    let exit = error.kind().exit_code();
    print(
        Reply {
            text: String::new(),
            json: json!({ "status": status_of(&error), "error": error_json(&error) }),
            exit,
            error: Some(error),
        },
        format,
    )
}

/// The word for how something ended.
pub(super) fn status_of(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::Interrupted => "interrupted",
        _ => "failed",
    }
}

/// Writes to stdout; a reader that went away (`| head`) is no error.
pub(super) fn to_stdout(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes a line to stderr, above the progress view.
pub(super) fn to_stderr(line: &str) {
    super::live::above(&format!("{line}\n"));
}

/// Whether colours are wanted on stderr.
pub(super) fn color() -> bool {
    let no = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
    !no && !dumb && std::io::stderr().is_terminal()
}

fn painted(text: &str, code: &str) -> String {
    match color() {
        true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        false => text.to_owned(),
    }
}

/// `error: <sentence>`, its place, its code, and what to do next.
pub(super) fn print_error(error: &Error) {
    let label = painted("error:", "1;31");
    let mut lines = Vec::new();
    match mistakes(error) {
        Some(mistakes) => {
            for mistake in mistakes.iter() {
                let help = mistake.help.clone();
                let bare = crate::config::ConfigError {
                    help: None,
                    ..mistake.clone()
                };
                lines.push(format!("{label} {bare}"));
                lines.extend(help.map(|help| format!("  next: {help}")));
            }
            lines.push(format!("  code: {}", error.code().id));
        }
        None => {
            lines.push(format!("{label} {}", error.message()));
            let place: Vec<String> = error.context().iter().map(|(k, v)| format!("{k} {v}")).collect();
            if !place.is_empty() {
                lines.push(format!("  at:   {}", place.join(", ")));
            }
            // Causes are not printed: a server's own words may hold values.
            lines.push(format!("  code: {}", error.code().id));
            lines.extend(error.next_step().map(|next| format!("  next: {next}")));
        }
    }
    to_stderr(&lines.join("\n"));
}

fn mistakes(error: &Error) -> Option<&ConfigErrors> {
    std::error::Error::source(error)?.downcast_ref::<ConfigErrors>()
}

/// An error for programs.
pub(super) fn error_json(error: &Error) -> Value {
    let context: serde_json::Map<String, Value> = error
        .context()
        .iter()
        .map(|(k, v)| ((*k).to_owned(), v.as_str().into()))
        .collect();
    let mut json = json!({
        "code": error.code().id,
        "kind": format!("{:?}", error.kind()).to_lowercase(),
        "exit_code": error.kind().exit_code(),
        "message": error.message(),
        "context": context,
        "next": error.next_step(),
    });
    if let Some(mistakes) = mistakes(error) {
        let one = |m: &crate::config::ConfigError| json!({ "file": m.file, "line": m.line, "column": m.column, "message": m.message, "next": m.help });
        json["mistakes"] = mistakes.iter().map(one).collect();
    }
    json
}

/// A table without lines, as wide as the terminal allows.
pub(super) fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(comfy_table::presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(head.iter().map(|h| h.to_uppercase()));
    if !std::io::stdout().is_terminal() {
        // A file has no width.
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    let numeric: Vec<bool> = (0..head.len())
        .map(|i| !rows.is_empty() && rows.iter().all(|row| is_number(row.get(i).map_or("", String::as_str))))
        .collect();
    for row in rows {
        table.add_row(row);
    }
    for (i, numeric) in numeric.into_iter().enumerate() {
        if let Some(column) = table.column_mut(i) {
            column.set_padding((0, 2));
            if numeric {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

/// One row: side by side where the terminal is wide enough, else one below the other.
pub(super) fn card(head: &[&str], row: Vec<String>) -> String {
    let natural: usize = head
        .iter()
        .zip(&row)
        .map(|(h, v)| h.len().max(v.chars().count()) + 2)
        .sum();
    let width = Table::new().width().map_or(usize::MAX, usize::from);
    if natural <= width {
        return table(head, vec![row]);
    }
    let label = head.iter().map(|h| h.len()).max().unwrap_or(0);
    let lines = head.iter().zip(&row).map(|(h, v)| format!("  {h:label$}  {v}\n"));
    lines.collect()
}

fn is_number(text: &str) -> bool {
    let mut chars = text.chars();
    text == "-"
        || (chars.next().is_some_and(|c| c.is_ascii_digit())
            && text.chars().all(|c| c.is_ascii_digit() || ",.".contains(c)))
}

/// `12,345`.
pub(super) fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 partition`, `2 partitions`.
pub(super) fn count(n: usize, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {what}{plural}", number(n as u64))
}

/// `1.4 MB`.
pub(super) fn bytes(n: f64) -> String {
    match n {
        n if n >= 1e9 => format!("{:.1} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.1} MB", n / 1e6),
        n if n >= 1e3 => format!("{:.0} kB", n / 1e3),
        n => format!("{n:.0} B"),
    }
}

/// `850 ms`, `12.3 s`, `4m 05s`, `2h 03m`.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{}m {:02}s", s as u64 / 60, s as u64 % 60),
        s => format!("{}h {:02}m", s as u64 / 3600, s as u64 / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 999, 1000, 1234567].map(number), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0.85, 12.34, 245.0, 7380.0].map(duration),
            ["850 ms", "12.3 s", "4m 05s", "2h 03m"]
        );
        assert_eq!([12.0, 4200.0, 1.4e6].map(bytes), ["12 B", "4 kB", "1.4 MB"]);
    }
}
