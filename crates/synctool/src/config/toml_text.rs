//! TOML text → the same tree of nodes as YAML. The only part that knows the TOML parser.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::text::{Entry, Kind, Node, Pos, Text};

/// Reads a file; a mistake of syntax gives `None`. Whether a number stands in quotes makes no difference.
pub(super) fn parse(text: &Text, errors: &mut Vec<ConfigError>) -> Option<Node> {
    let (table, mistakes) = DeTable::parse_recoverable(&text.content);
    for mistake in &mistakes {
        let at = place(text, mistake.span().map_or(0, |span| span.start));
        let message = format!(
            "not valid TOML: {}",
            mistake.message().lines().next().unwrap_or_default()
        );
        let line = text.content.lines().nth(at.line.saturating_sub(1) as usize);
        let value = line.and_then(|line| Some(line.split_once('=')?.1.trim()));
        let bare = value.is_some_and(|v| !v.is_empty() && !v.starts_with(['"', '\'', '[', '{']));
        let error = text.error(at, message);
        errors.push(match bare {
            true => error.with_help("text stands in quotes: PG_HOST = \"127.0.0.1\""),
            false => error,
        });
    }
    if !mistakes.is_empty() {
        return None;
    }
    let pos = place(text, 0);
    Some(Node::new(Kind::Map(entries(text, table.get_ref())), pos))
}

fn entries(text: &Text, table: &DeTable<'_>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            key_pos: place(text, key.span().start),
            value: value_node(text, value),
        })
        .collect();
    // In the order of the file, so that mistakes are told from top to bottom.
    entries.sort_by_key(|entry| entry.key_pos.byte);
    entries
}

fn value_node(text: &Text, value: &Spanned<DeValue<'_>>) -> Node {
    let scalar = |text: String| Kind::Scalar { text, plain: true };
    let kind = match value.get_ref() {
        DeValue::String(text) => scalar(text.to_string()),
        DeValue::Integer(number) => scalar(number.to_string().replace('_', "")),
        DeValue::Float(number) => scalar(number.to_string().replace('_', "")),
        DeValue::Boolean(truth) => scalar(truth.to_string()),
        DeValue::Datetime(moment) => scalar(moment.to_string()),
        DeValue::Array(items) => Kind::List(items.iter().map(|item| value_node(text, item)).collect()),
        DeValue::Table(table) => Kind::Map(entries(text, table)),
    };
    Node::new(kind, place(text, value.span().start))
}

fn place(text: &Text, byte: usize) -> Pos {
    let before = text.content.get(..byte).unwrap_or(&text.content);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Pos {
        line: u32::try_from(before.matches('\n').count()).map_or(u32::MAX, |n| n.saturating_add(1)),
        column: u32::try_from(before[line_start..].chars().count()).map_or(u32::MAX, |n| n.saturating_add(1)),
        byte,
    }
}
