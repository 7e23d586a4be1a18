//! `${NAME}`, `${NAME:default}` and `${file:/path}` inside text; `$${` stands for `${` itself.

use std::path::Path;

use super::error::ConfigError;
use super::secret::is_secret_key;
use super::text::{Kind, Node, Pos, Text};
use synctool_core::error::io_reason;

/// Where the values of variables come from.
pub(super) struct Vars<'a> {
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    /// Folder from which a relative `${file:…}` is looked up: that of the configuration file.
    pub(super) folder: &'a Path,
}

/// A name for a variable that is called after something.
pub(super) fn name_after(what: &str) -> String {
    let fit = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_ascii_uppercase(),
        false => '_',
    };
    let name: String = what.chars().map(fit).collect();
    match name.starts_with(|c: char| c.is_ascii_digit()) {
        true => format!("_{name}"),
        false => name,
    }
}

impl Vars<'_> {
    /// Puts values in all over the tree and marks what is secret.
    pub(super) fn expand(&self, node: &mut Node, text: &Text, errors: &mut Vec<ConfigError>) {
        self.walk(node, text, false, errors);
    }

    fn walk(&self, node: &mut Node, text: &Text, secret: bool, errors: &mut Vec<ConfigError>) {
        node.secret |= secret;
        let pos = node.pos;
        match &mut node.kind {
            Kind::Null => {}
            Kind::Scalar { text: scalar, .. } => {
                if !scalar.contains("${") {
                    return;
                }
                let before = errors.len();
                let mut done = Insertion {
                    vars: self,
                    text,
                    pos,
                    inserted: Vec::new(),
                    secret: false,
                    errors,
                    searched: 0,
                };
                let expanded = done.expand(scalar, 0);
                let (inserted, secret) = (done.inserted, done.secret);
                node.written = Some(std::mem::replace(scalar, expanded));
                node.inserted = inserted;
                node.secret |= secret;
                node.broken = errors.len() > before;
            }
            Kind::List(items) => items.iter_mut().for_each(|item| self.walk(item, text, secret, errors)),
            Kind::Map(entries) => {
                for entry in entries {
                    let below = secret || is_secret_key(&entry.key);
                    self.walk(&mut entry.value, text, below, errors);
                }
            }
        }
    }
}

/// The work on one scalar.
struct Insertion<'a, 'e> {
    vars: &'a Vars<'a>,
    text: &'a Text,
    pos: Pos,
    inserted: Vec<String>,
    secret: bool,
    errors: &'e mut Vec<ConfigError>,
    /// How much of the source, from the scalar's start, was searched for the place of a variable.
    searched: usize,
}

impl Insertion<'_, '_> {
    fn expand(&mut self, scalar: &str, depth: usize) -> String {
        let mut out = String::with_capacity(scalar.len());
        let mut rest = scalar;
        while let Some(at) = rest.find("${") {
            if rest[..at].ends_with('$') {
                // `$${`: one dollar fewer, and no variable.
                out.push_str(&rest[..at - 1]);
                out.push_str("${");
                self.locate("${");
                rest = &rest[at + 2..];
                continue;
            }
            out.push_str(&rest[..at]);
            let body = &rest[at + 2..];
            let pos = self.locate("${");
            let Some(end) = closing(body) else {
                let error = self.text.error(pos, "a ${ without its }");
                self.errors.push(error.with_help(
                    "write ${NAME}, and put it in quotes inside { } or [ ]; for a dollar and a brace as such write $${",
                ));
                return out;
            };
            self.variable(&body[..end], pos, depth, &mut out);
            rest = &body[end + 1..];
        }
        out.push_str(rest);
        out
    }

    fn variable(&mut self, body: &str, pos: Pos, depth: usize, out: &mut String) {
        if let Some(path) = body.strip_prefix("file:") {
            self.secret = true;
            self.inserted.push(format!("file {path}"));
            match std::fs::read_to_string(self.vars.folder.join(path)) {
                // Secrets files commonly end in a line break that is not part of the secret.
                Ok(content) => out.push_str(content.trim_end_matches(['\n', '\r'])),
                Err(error) => self.errors.push(self.text.error(
                    pos,
                    format!("cannot read the file of ${{file:{path}}}: {}", io_reason(&error)),
                )),
            }
            return;
        }
        let (name, default) = match body.split_once(':') {
            Some((name, default)) => (name, Some(default)),
            None => (body, None),
        };
        let first_ok = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !first_ok || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            let error = self.text.error(pos, "not a variable: a name is letters, digits and _");
            self.errors.push(error.with_help(
                "write ${NAME}, ${NAME:default} or ${file:/path}; for a dollar and a brace as such write $${",
            ));
            return;
        }
        if let Some(value) = (self.vars.env)(name) {
            self.inserted.push(format!("env {name}"));
            self.secret |= is_secret_key(name);
            out.push_str(&value);
        } else if let Some(default) = default {
            self.inserted.push(format!("default of ${{{name}}}"));
            // Defaults may name further variables; the depth is that of the braces, so it ends.
            let value = if depth < 8 {
                self.expand(default, depth + 1)
            } else {
                default.to_owned()
            };
            out.push_str(&value);
        } else {
            let error = self.text.error(pos, format!("the variable {name} is not set"));
            self.errors.push(error.with_help(format!(
                "set it in the environment (.env files are not read), or write ${{{name}:default}}"
            )));
        }
    }

    /// The place of the next `needle` in the source of this scalar. Text and source differ by quotes, escapes and line
    /// folding, but the variables stand in the same order in both.
    fn locate(&mut self, needle: &str) -> Pos {
        let source = self.text.content.get(self.pos.byte..).unwrap_or_default();
        let Some(found) = source
            .get(self.searched..)
            .and_then(|s| s.find(needle))
            .map(|at| at + self.searched)
        else {
            return self.pos;
        };
        self.searched = found + needle.len();
        let before = &source[..found];
        match before.rfind('\n') {
            Some(line) => Pos {
                line: self.pos.line + before.matches('\n').count() as u32,
                column: before[line + 1..].chars().count() as u32 + 1,
                byte: self.pos.byte + found,
            },
            None => Pos {
                line: self.pos.line,
                column: self.pos.column + before.chars().count() as u32,
                byte: self.pos.byte + found,
            },
        }
    }
}

/// Where the brace closes that was opened before `body`.
fn closing(body: &str) -> Option<usize> {
    let mut open = 0usize;
    for (i, c) in body.char_indices() {
        match c {
            '{' => open += 1,
            '}' if open == 0 => return Some(i),
            '}' => open -= 1,
            _ => {}
        }
    }
    None
}
