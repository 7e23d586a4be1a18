//! YAML text → a tree of nodes that know their place. The only part that knows the YAML parser.
//!
//! A tree of our own, and not typed deserialisation straight from the text, because every mistake of a file is to be
//! reported (not the first alone), because variables are put in before types are looked at, and because a scalar's
//! spelling counts (`password: 007` is text of three characters).

use std::collections::HashMap;
use std::sync::Arc;

use serde_saphyr::granit_parser::{self as yaml, Event, Marker, Parser, ScalarStyle};

use super::error::ConfigError;

/// A node of the document.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) pos: Pos,
    /// What variables put into this scalar.
    pub(super) inserted: Vec<String>,
    /// The scalar before they did.
    pub(super) written: Option<String>,
    /// Not to be shown.
    pub(super) secret: bool,
    /// A variable could not be put in: what stands here is not what was meant.
    pub(super) broken: bool,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Null,
    /// The text as spelt; `plain` means without quotes, so that it may stand for a number or a truth value.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One `key: value`.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_pos: Pos,
    pub(super) value: Node,
}

/// A place in the text: line and column from 1, the latter in characters; bytes from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Pos {
    pub(super) line: u32,
    pub(super) column: u32,
    pub(super) byte: usize,
}

impl Node {
    pub(super) fn new(kind: Kind, pos: Pos) -> Self {
        Self {
            kind,
            pos,
            inserted: Vec::new(),
            written: None,
            secret: false,
            broken: false,
        }
    }

    /// The value below a key of a mapping.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.value),
            _ => None,
        }
    }

    /// Whether a variable is missing here or anywhere below.
    pub(super) fn has_broken(&self) -> bool {
        self.broken
            || match &self.kind {
                Kind::List(items) => items.iter().any(Node::has_broken),
                Kind::Map(entries) => entries.iter().any(|e| e.value.has_broken()),
                _ => false,
            }
    }

    /// The node in words, without its content.
    pub(super) fn describe(&self) -> &'static str {
        match &self.kind {
            Kind::Null => "nothing",
            Kind::Scalar { plain: false, .. } => "quoted text",
            Kind::Scalar { text, .. } if is_bool(text).is_some() => "true or false",
            Kind::Scalar { text, .. } if text.parse::<f64>().is_ok() => "a number",
            Kind::Scalar { .. } => "text",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a mapping",
        }
    }
}

/// The truth values of YAML 1.2.
pub(super) fn is_bool(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// A key for a message: up to the first character that no key has, since `password:secret` without its space is a key.
pub(super) fn printable_key(key: &str) -> String {
    let end = key
        .find(|c: char| !c.is_alphanumeric() && !"_-.".contains(c))
        .unwrap_or(key.len());
    if end == key.len() {
        key.to_owned()
    } else {
        format!("{}…", &key[..end])
    }
}

/// A file that was read: its name and its text, for messages.
#[derive(Debug, Clone)]
pub(super) struct Text {
    pub(super) file: Arc<str>,
    pub(super) content: Arc<str>,
}

impl Text {
    pub(super) fn new(file: impl Into<Arc<str>>, content: &str) -> Self {
        // A byte order mark is not part of the text, and would shift the first line's columns.
        Self {
            file: file.into(),
            content: content.strip_prefix('\u{feff}').unwrap_or(content).into(),
        }
    }

    pub(super) fn error(&self, pos: Pos, message: impl Into<String>) -> ConfigError {
        ConfigError {
            file: self.file.to_string(),
            line: pos.line,
            column: pos.column,
            message: message.into(),
            help: None,
        }
    }
}

/// More than any configuration needs; a bomb of aliases or brackets ends here.
const MAX_BYTES: usize = 8 << 20;
const MAX_NODES: usize = 200_000;
const MAX_DEPTH: usize = 48;

/// Reads one document. Mistakes after which reading can go on (a repeated key) are pushed to `errors`; a mistake of
/// syntax ends it and gives `None`.
pub(super) fn parse(text: &Text, errors: &mut Vec<ConfigError>) -> Option<Node> {
    if text.content.len() > MAX_BYTES {
        errors.push(ConfigError::in_file(
            &*text.file,
            format!("the file is larger than {} MiB", MAX_BYTES >> 20),
        ));
        return None;
    }
    let options = yaml::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let parser = Parser::new_from_str_with_options(&text.content, options);
    let mut builder = Builder {
        events: parser,
        text,
        errors,
        anchors: HashMap::new(),
        nodes: 0,
    };
    match builder.document() {
        Ok(node) => Some(node),
        Err(error) => {
            errors.push(error);
            None
        }
    }
}

struct Builder<'a, I> {
    events: I,
    text: &'a Text,
    errors: &'a mut Vec<ConfigError>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
}

impl<'a, 'i, I> Builder<'a, I>
where
    I: Iterator<Item = Result<(Event<'i>, yaml::Span), yaml::ScanError>>,
{
    fn next(&mut self) -> Result<(Event<'i>, Pos), ConfigError> {
        match self.events.next() {
            Some(Ok((event, span))) => Ok((event, place(&span.start))),
            Some(Err(error)) => {
                let message = format!("not valid YAML: {}", error.info().lines().next().unwrap_or_default());
                let error = self.text.error(place(error.marker()), message);
                let line = self
                    .text
                    .content
                    .lines()
                    .nth((error.line as usize).saturating_sub(1))
                    .unwrap_or_default();
                let before: String = line.chars().take(error.column as usize).collect();
                Err(if before.trim_start_matches(' ').starts_with('\t') {
                    error.with_help("indent with spaces, not tabs")
                } else if line.contains("${") && line.contains(['{', '[']) {
                    error.with_help("inside { } and [ ] a ${…} needs quotes")
                } else if error.message.contains("mapping values") {
                    error.with_help("look at the indentation here and in the line above")
                } else {
                    error
                })
            }
            None => Ok((Event::StreamEnd, Pos::default())),
        }
    }

    fn document(&mut self) -> Result<Node, ConfigError> {
        let mut root = None;
        loop {
            let (event, pos) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                event => {
                    let node = self.node(event, pos, 0)?;
                    if root.is_some() {
                        return Err(self.text.error(pos, "a second document in one file").with_help(
                            "one file holds one document: remove the --- line, or move the rest to a file of its own",
                        ));
                    }
                    root = Some(node);
                }
            }
        }
        match root {
            Some(Node { kind: Kind::Null, .. }) | None => {
                Err(ConfigError::in_file(&*self.text.file, "the file is empty"))
            }
            Some(node) => Ok(node),
        }
    }

    fn node(&mut self, event: Event<'i>, pos: Pos, depth: usize) -> Result<Node, ConfigError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(self
                .text
                .error(pos, format!("more than {MAX_NODES} values, aliases included")));
        }
        // The parser's two limits are counted apart, so that both together may reach twice the depth.
        if depth > MAX_DEPTH {
            return Err(self.text.error(pos, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let anchor = event.anchor_id();
        let node = match event {
            Event::Scalar(text, style, _, tag) => {
                let forced_text = tag.is_some_and(|tag| tag.to_string().ends_with("str"));
                let plain = matches!(style, ScalarStyle::Plain) && !forced_text;
                let kind = match text.as_ref() {
                    "" | "~" | "null" | "Null" | "NULL" if plain => Kind::Null,
                    _ => Kind::Scalar {
                        text: text.into_owned(),
                        plain,
                    },
                };
                Node::new(kind, pos)
            }
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, pos) => items.push(self.node(event, pos, depth + 1)?),
                    }
                }
                Node::new(Kind::List(items), pos)
            }
            Event::MappingStart(..) => Node::new(Kind::Map(self.mapping(depth)?), pos),
            Event::Alias(id) => {
                let Some((node, size)) = self.anchors.get(&id) else {
                    return Err(self.text.error(pos, "an alias to a value that contains it"));
                };
                self.nodes += size;
                if self.nodes > MAX_NODES {
                    return Err(self
                        .text
                        .error(pos, format!("more than {MAX_NODES} values, aliases included")));
                }
                node.clone()
            }
            _ => return Err(self.text.error(pos, "not valid YAML: a value was expected")),
        };
        if let Some(id) = anchor {
            let size = count(&node);
            self.anchors.insert(id, (node.clone(), size));
        }
        Ok(node)
    }

    fn mapping(&mut self, depth: usize) -> Result<Vec<Entry>, ConfigError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged: Vec<Entry> = Vec::new();
        loop {
            let (event, key_pos) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let key_node = self.node(event, key_pos, depth + 1)?;
            let (event, pos) = self.next()?;
            let value = self.node(event, pos, depth + 1)?;
            match key_node.kind {
                Kind::Scalar { text, plain: true } if text == "<<" => match value.kind {
                    Kind::Map(more) => merged.extend(more),
                    Kind::List(maps) => {
                        for map in maps {
                            if let Kind::Map(more) = map.kind {
                                merged.extend(more);
                            }
                        }
                    }
                    _ => self
                        .errors
                        .push(self.text.error(value.pos, "<< must name a mapping to merge")),
                },
                Kind::Scalar { text: key, .. } => match entries.iter().find(|e| e.key == key) {
                    Some(first) => {
                        let message = format!("duplicate key \"{}\"", printable_key(&key));
                        let help = format!("it stands first in line {}", first.key_pos.line);
                        self.errors.push(self.text.error(key_pos, message).with_help(help));
                    }
                    None => entries.push(Entry { key, key_pos, value }),
                },
                _ => self.errors.push(self.text.error(key_pos, "a key must be a word")),
            }
        }
        // What is written in the mapping itself wins over what is merged; of the merged, the first.
        for entry in merged {
            if !entries.iter().any(|e| e.key == entry.key) {
                entries.push(entry);
            }
        }
        Ok(entries)
    }
}

fn count(node: &Node) -> usize {
    1 + match &node.kind {
        Kind::List(items) => items.iter().map(count).sum(),
        Kind::Map(entries) => entries.iter().map(|e| count(&e.value)).sum::<usize>(),
        _ => 0,
    }
}

fn place(marker: &Marker) -> Pos {
    Pos {
        line: u32::try_from(marker.line()).unwrap_or(u32::MAX),
        column: u32::try_from(marker.col()).unwrap_or(u32::MAX).saturating_add(1),
        byte: marker.byte_offset().unwrap_or_default(),
    }
}
