//! CSV records, bytes in and bytes out, by RFC 4180. Written here because NULL and the empty text differ only by
//! quotes, which CSV libraries hide.
//!
//! Taken as the RFC leaves it open: a record ends with LF, CRLF or CR; a quote inside an unquoted field is itself; a
//! byte order mark at the start is skipped; an empty line is skipped where a record has several fields.

use memchr::{memchr, memchr3};
use std::io::BufRead;
use synctool_core::error::{Error, Result, code};

/// One record: the bytes of its fields without their quotes.
#[derive(Debug, Default)]
pub(super) struct Record {
    data: Vec<u8>,
    fields: Vec<FieldEnd>,
}

#[derive(Debug, Clone, Copy)]
struct FieldEnd {
    end: usize,
    quoted: bool,
}

impl Record {
    /// How many fields it has.
    pub(super) fn len(&self) -> usize {
        self.fields.len()
    }

    /// The bytes of all fields.
    pub(super) fn bytes(&self) -> usize {
        self.data.len()
    }

    /// A field's bytes, and whether it was quoted.
    pub(super) fn field(&self, i: usize) -> (&[u8], bool) {
        let start = if i == 0 { 0 } else { self.fields[i - 1].end };
        (&self.data[start..self.fields[i].end], self.fields[i].quoted)
    }

    fn clear(&mut self) {
        self.data.clear();
        self.fields.clear();
    }

    fn end_field(&mut self, quoted: bool) {
        self.fields.push(FieldEnd {
            end: self.data.len(),
            quoted,
        });
    }

    /// A line with nothing on it.
    fn is_blank(&self) -> bool {
        self.fields.len() == 1 && self.data.is_empty() && !self.fields[0].quoted
    }
}

/// Reads records one after the other.
pub(super) struct Records<R> {
    input: R,
    delimiter: u8,
    quote: u8,
    max: usize,
    /// Bytes read so far, and the line (from 1) where the next record begins.
    offset: u64,
    line: u64,
}

/// What ended with a field.
#[derive(PartialEq, Eq)]
enum End {
    /// Only the field: another follows.
    Field,
    /// The record, by a line end or the end of the input.
    Record,
}

impl<R: BufRead> Records<R> {
    /// Records of at most `max` bytes, where `input` begins `offset` bytes and `line - 1` lines into a file.
    pub(super) fn new(input: R, delimiter: char, quote: char, max: usize, (offset, line): (u64, u64)) -> Self {
        Records {
            input,
            delimiter: delimiter as u8,
            quote: quote as u8,
            max,
            offset,
            line,
        }
    }

    /// Where the next record begins: bytes and line.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.offset, self.line)
    }

    /// Skips a byte order mark; one of UTF-16 is refused.
    pub(super) fn skip_mark(&mut self) -> Result<()> {
        let head = self.input.fill_buf().map_err(read_error)?;
        if head.starts_with(b"\xef\xbb\xbf") {
            self.consume(3);
        } else if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
            return Err(malformed("it is UTF-16, not UTF-8").hint("convert it: iconv -f UTF-16 -t UTF-8"));
        }
        Ok(())
    }

    /// The next record; `false` at the end. With `fields` given, lines with nothing on them are skipped unless a
    /// record has just one field.
    pub(super) fn next(&mut self, record: &mut Record, fields: Option<usize>) -> Result<bool> {
        loop {
            record.clear();
            if self.peek()?.is_none() {
                return Ok(false);
            }
            let began = self.line;
            while self.field(record, began)? == End::Field {}
            if !record.is_blank() || fields == Some(1) {
                return Ok(true);
            }
        }
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        Ok(self.input.fill_buf().map_err(read_error)?.first().copied())
    }

    fn consume(&mut self, bytes: usize) {
        self.input.consume(bytes);
        self.offset += bytes as u64;
    }

    fn field(&mut self, record: &mut Record, began: u64) -> Result<End> {
        let quoted = self.peek()? == Some(self.quote);
        if quoted {
            self.consume(1);
            self.quoted(record, began)?;
        }
        loop {
            let buffer = self.input.fill_buf().map_err(read_error)?;
            let Some(first) = buffer.first().copied() else {
                record.end_field(quoted);
                return Ok(End::Record);
            };
            if first == self.delimiter {
                record.end_field(quoted);
                self.consume(1);
                return Ok(End::Field);
            }
            if first == b'\n' || first == b'\r' {
                record.end_field(quoted);
                self.consume(1);
                if first == b'\r' && self.peek()? == Some(b'\n') {
                    self.consume(1);
                }
                self.line += 1;
                return Ok(End::Record);
            }
            if quoted {
                return Err(malformed(format!(
                    "line {}: text after the closing quote of a field",
                    self.line
                )));
            }
            let plain = memchr3(self.delimiter, b'\n', b'\r', buffer).unwrap_or(buffer.len());
            record.data.extend_from_slice(&buffer[..plain]);
            self.consume(plain);
            self.check_size(record, began)?;
        }
    }

    /// The rest of a quoted field up to and with its closing quote.
    fn quoted(&mut self, record: &mut Record, began: u64) -> Result<()> {
        loop {
            let buffer = self.input.fill_buf().map_err(read_error)?;
            if buffer.is_empty() {
                return Err(malformed(format!(
                    "the record that begins on line {began} has a quote that is never closed"
                )));
            }
            let end = memchr(self.quote, buffer);
            let text = &buffer[..end.unwrap_or(buffer.len())];
            self.line += memchr::memchr_iter(b'\n', text).count() as u64;
            record.data.extend_from_slice(text);
            let text = text.len();
            self.consume(text);
            self.check_size(record, began)?;
            if end.is_some() {
                self.consume(1);
                if self.peek()? != Some(self.quote) {
                    return Ok(());
                }
                record.data.push(self.quote);
                self.consume(1);
            }
        }
    }

    fn check_size(&self, record: &Record, began: u64) -> Result<()> {
        if record.data.len() <= self.max {
            return Ok(());
        }
        Err(Error::new(
            code::ROW_TOO_LARGE,
            format!(
                "the record that begins on line {began} is larger than {} bytes",
                self.max
            ),
        )
        .hint("raise max_row_bytes, or look for a quote that is not closed"))
    }
}

fn read_error(e: std::io::Error) -> Error {
    // Decompression errors come as InvalidData and the like; the file's name is added by who opened it.
    match e.kind() {
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidInput => {
            malformed("its compressed data are damaged").caused_by(e)
        }
        _ => Error::new(code::FILE, format!("reading failed: {e}")).caused_by(e),
    }
}

pub(super) fn malformed(why: impl Into<String>) -> Error {
    Error::new(code::FILE_MALFORMED, why)
}

/// Writes fields so that [`Records`] gives them back.
#[derive(Debug, Clone)]
pub(super) struct FieldWriter {
    delimiter: u8,
    quote: u8,
    null: String,
}

impl FieldWriter {
    pub(super) fn new(delimiter: char, quote: char, null: Option<&str>) -> Self {
        FieldWriter {
            delimiter: delimiter as u8,
            quote: quote as u8,
            null: null.unwrap_or_default().to_string(),
        }
    }

    /// Appends what stands between two fields.
    pub(super) fn delimit(&self, out: &mut Vec<u8>) {
        out.push(self.delimiter);
    }

    /// Appends NULL.
    pub(super) fn null(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.null.as_bytes());
    }

    /// Appends a text, quoted where leaving the quotes out would change it, for us or for a reader that trims.
    pub(super) fn text(&self, out: &mut Vec<u8>, text: &str) {
        let bytes = text.as_bytes();
        let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_whitespace);
        let plain = memchr3(self.delimiter, b'\n', b'\r', bytes).is_none()
            && memchr(self.quote, bytes).is_none()
            && !edge(bytes.first())
            && !edge(bytes.last())
            && text != self.null
            && !text.starts_with('\u{feff}');
        if plain {
            out.extend_from_slice(bytes);
            return;
        }
        out.push(self.quote);
        let mut rest = bytes;
        while let Some(at) = memchr(self.quote, rest) {
            out.extend_from_slice(&rest[..=at]);
            out.push(self.quote);
            rest = &rest[at + 1..];
        }
        out.extend_from_slice(rest);
        out.push(self.quote);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    /// Fields as text, with `~` before quoted ones. The tiny buffer makes every field cross its edge.
    fn parse(input: &[u8], fields: usize) -> Result<Vec<Vec<String>>> {
        let mut out = Vec::new();
        for buffer in [1, 3, 4096] {
            let mut records = Records::new(BufReader::with_capacity(buffer, input), ',', '"', 1 << 20, (0, 1));
            if buffer > 3 {
                records.skip_mark()?;
            }
            let mut record = Record::default();
            let mut all = Vec::new();
            while records.next(&mut record, Some(fields))? {
                all.push(
                    (0..record.len())
                        .map(|i| {
                            let (b, q) = record.field(i);
                            format!("{}{}", if q { "~" } else { "" }, String::from_utf8_lossy(b))
                        })
                        .collect::<Vec<_>>(),
                );
            }
            assert_eq!(records.place().0, input.len() as u64);
            if out.is_empty() || buffer > 3 {
                out = all;
            } else {
                assert_eq!(out, all);
            }
        }
        Ok(out)
    }

    #[test]
    fn the_rfc_is_read_to_the_letter() {
        let rows = parse(b"a,\"b\"\"c\",\r\n\"x\ny\",\"\", d\r\"\r\n,\",5\" tall,z", 3).unwrap();
        assert_eq!(
            rows,
            [
                vec!["a", "~b\"c", ""],
                vec!["~x\ny", "~", " d"],
                vec!["~\r\n,", "5\" tall", "z"]
            ]
        );
    }

    #[test]
    fn marks_and_blank_lines() {
        assert_eq!(parse(b"\xef\xbb\xbf", 2).unwrap(), Vec::<Vec<String>>::new());
        assert_eq!(parse(b"\n1,2\n\n\r\n3,4\n", 2).unwrap(), [["1", "2"], ["3", "4"]]);
        assert_eq!(parse(b"\n\"\"\n", 1).unwrap(), [[""], ["~"]]);
        assert_eq!(parse(b"1,\n,", 2).unwrap(), [["1", ""], ["", ""]]);
        assert_eq!(parse(b"", 1).unwrap(), Vec::<Vec<String>>::new());
    }

    #[test]
    fn what_is_broken_is_named_by_line_and_not_shown() {
        for (input, says) in [
            (&b"a,b\n1,\"secret\n\nmore"[..], "line 2"),
            (b"a\n\"x\ny\"secret\n", "line 3"),
            (b"\xff\xfea\0", "UTF-16"),
        ] {
            let e = parse(input, 2).unwrap_err().to_string();
            assert!(e.contains(says) && !e.contains("secret"), "{e}");
        }
    }

    #[test]
    fn a_giant_record_is_refused_while_it_is_read() {
        let input = format!("a,\"{}", "x".repeat(5000));
        let mut records = Records::new(BufReader::with_capacity(64, input.as_bytes()), ',', '"', 1000, (0, 1));
        let e = records.next(&mut Record::default(), None).unwrap_err();
        assert_eq!(e.code(), code::ROW_TOO_LARGE);
        assert!(records.place().0 < 1200, "it read on");
    }
}
