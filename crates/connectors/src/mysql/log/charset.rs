//! Texts of the log come in their column's own character set; here they become UTF-8, as the server would hand them out.

use super::super::client::{Session, number, text};
use std::collections::HashMap;
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};

/// How bytes of a character set are read.
#[derive(Debug, Clone)]
pub(super) enum Charset {
    /// They are bytes, and no text.
    Binary,
    /// They are UTF-8 already.
    Utf8,
    /// One character per byte.
    Single(Arc<[String]>),
    Utf16,
    Utf16Le,
    Utf32,
}

impl Charset {
    /// Adds a text in UTF-8.
    pub(super) fn write(&self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut put = |c: char| out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        match self {
            Charset::Binary | Charset::Utf8 => out.extend_from_slice(bytes),
            Charset::Single(table) => {
                for b in bytes {
                    out.extend_from_slice(table[usize::from(*b)].as_bytes());
                }
            }
            Charset::Utf16 | Charset::Utf16Le => {
                let big = matches!(self, Charset::Utf16);
                let units = bytes.chunks_exact(2).map(|b| match big {
                    true => u16::from_be_bytes([b[0], b[1]]),
                    false => u16::from_le_bytes([b[0], b[1]]),
                });
                char::decode_utf16(units).for_each(|c| put(c.unwrap_or('?')));
            }
            Charset::Utf32 => bytes
                .chunks_exact(4)
                .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
                .for_each(|c| put(char::from_u32(c).unwrap_or('?'))),
        }
    }
}

/// The character sets of a server.
#[derive(Debug, Default)]
pub(super) struct Charsets {
    /// Collation → character set.
    names: HashMap<u16, String>,
    read: HashMap<String, Charset>,
}

impl Charsets {
    pub(super) async fn load(session: &mut Session) -> Result<Charsets> {
        const WHAT: &str = "reading the server's character sets";
        let newer = session
            .rows(
                "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATION_CHARACTER_SET_APPLICABILITY",
                WHAT,
            )
            .await;
        let rows = match newer {
            Err(e) if e.code() == code::COLUMN_MISSING => {
                session
                    .rows("SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATIONS", WHAT)
                    .await?
            }
            other => other?,
        };
        let names = rows
            .iter()
            .filter_map(|r| Some((number(r, 0) as u16, text(r, 1)?)))
            .collect();
        Ok(Charsets {
            names,
            read: HashMap::new(),
        })
    }

    /// The character set of a collation.
    pub(super) fn name(&self, collation: u16) -> Option<&str> {
        self.names.get(&collation).map(String::as_str)
    }

    /// How a character set is read.
    pub(super) async fn reader(&mut self, session: &mut Session, name: &str) -> Result<Charset> {
        Ok(match name {
            "binary" => Charset::Binary,
            "utf8" | "utf8mb3" | "utf8mb4" | "ascii" => Charset::Utf8,
            "ucs2" | "utf16" => Charset::Utf16,
            "utf16le" => Charset::Utf16Le,
            "utf32" => Charset::Utf32,
            name => match self.read.get(name) {
                Some(known) => known.clone(),
                None => {
                    let read = single(session, name).await?;
                    self.read.insert(name.into(), read.clone());
                    read
                }
            },
        })
    }
}

/// Asks the server what each byte of a character set is.
async fn single(session: &mut Session, name: &str) -> Result<Charset> {
    let unsupported = || {
        Error::new(
            code::TYPE_UNSUPPORTED,
            format!("texts in the character set {name} are not read from the log"),
        )
        .hint("ALTER TABLE … CONVERT TO CHARACTER SET utf8mb4, or leave the table out")
    };
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(unsupported());
    }
    let what = "reading a character set";
    let width = session
        .row(
            &format!("SELECT MAX(MAXLEN) FROM information_schema.CHARACTER_SETS WHERE CHARACTER_SET_NAME = '{name}'"),
            what,
        )
        .await?;
    if number(&width, 0) != 1 {
        return Err(unsupported());
    }
    let all: Vec<u8> = (0..=255).collect();
    let bytes = super::super::sql::hex_literal(&all);
    let row = session
        .row(
            &format!("SELECT CONVERT(CONVERT({bytes} USING {name}) USING utf8mb4)"),
            what,
        )
        .await?;
    let table: Vec<String> = text(&row, 0).unwrap_or_default().chars().map(String::from).collect();
    match table.len() {
        256 => Ok(Charset::Single(table.into())),
        _ => Err(unsupported()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_become_utf8() {
        let read = |charset: Charset, bytes: &[u8]| {
            let mut out = Vec::new();
            charset.write(bytes, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(read(Charset::Utf16, &[0, 0x41, 0xd8, 0x3d, 0xde, 0]), "A😀");
        assert_eq!(read(Charset::Utf16Le, &[0x41, 0, 0xe9, 0]), "Aé");
        assert_eq!(read(Charset::Utf32, &[0, 1, 0xf6, 0]), "😀");
        assert_eq!(read(Charset::Utf16, &[0xd8, 0]), "?");
    }
}
