//! Python's text methods. Places count characters.

use super::numbers::{Outcome, RANGE};

/// What Python's `strip()` takes for blank.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

pub(super) fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let taken = |c: char| chars.map_or_else(|| is_blank(c), |set| set.contains(c));
    let text = if left { text.trim_start_matches(taken) } else { text };
    if right { text.trim_end_matches(taken) } else { text }
}

pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            capital(c, &mut out);
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

pub(super) fn capitalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    if let Some(first) = chars.next() {
        capital(first, &mut out);
    }
    out.push_str(&chars.as_str().to_lowercase());
    out
}

/// A letter that becomes several (ß) has only the first of them large.
fn capital(c: char, out: &mut String) {
    let mut upper = c.to_uppercase();
    out.extend(upper.next());
    out.extend(upper.flat_map(char::to_lowercase));
}

pub(super) fn zfill(text: &str, width: i64) -> String {
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    let (sign, rest) = match text.strip_prefix(['+', '-']) {
        Some(rest) => text.split_at(text.len() - rest.len()),
        None => ("", text),
    };
    format!("{sign}{}{rest}", "0".repeat(missing))
}

/// `text.split(separator)[index]`.
pub(super) fn split_at(text: &str, separator: Option<&str>, index: i64) -> Outcome<String> {
    let parts: Vec<&str> = match separator {
        Some("") => return Err("empty_separator"),
        Some(s) => text.split(s).collect(),
        None => text.split(is_blank).filter(|p| !p.is_empty()).collect(),
    };
    let at = if index < 0 { parts.len() as i64 + index } else { index };
    usize::try_from(at)
        .ok()
        .and_then(|at| parts.get(at))
        .map(ToString::to_string)
        .ok_or(RANGE)
}

/// `text[index]`.
pub(super) fn char_at(text: &str, index: i64) -> Outcome<String> {
    let at = if index < 0 {
        text.chars().count() as i64 + index
    } else {
        index
    };
    let c = usize::try_from(at).ok().and_then(|at| text.chars().nth(at));
    c.map(String::from).ok_or(RANGE)
}

/// `text[from:to]`.
pub(super) fn slice(text: &str, from: Option<i64>, to: Option<i64>) -> String {
    let length = text.chars().count() as i64;
    let place = |at: i64| {
        if at < 0 {
            (length.saturating_add(at)).max(0)
        } else {
            at.min(length)
        }
    };
    let (from, to) = (from.map_or(0, place), to.map_or(length, place));
    text.chars()
        .skip(from as usize)
        .take((to - from).max(0) as usize)
        .collect()
}
