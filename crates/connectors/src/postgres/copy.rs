//! The frame of a COPY binary stream: header, tuples, trailer. Bytes in, whole tuples out.

use super::types::COPY_HEADER;
use synctool_core::error::{Error, Result, code};

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Header,
    Tuples,
    End,
}

/// Finds whole tuples in a stream that arrives in pieces.
#[derive(Debug)]
pub struct Frame {
    at: At,
    fields: i16,
}

/// What [`Frame::next`] found at the beginning of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A tuple of so many bytes.
    Tuple(usize),
    /// So many bytes of frame; go on behind them.
    Skip(usize),
    /// Not enough bytes yet.
    More,
}

/// Where the bytes of a field are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    start: u32,
    /// Negative for NULL.
    length: i32,
}

impl Span {
    /// The field of the bytes it was found in; `None` is NULL.
    #[inline]
    pub fn of(self, bytes: &[u8]) -> Option<&[u8]> {
        let length = usize::try_from(self.length).ok()?;
        let start = self.start as usize;
        Some(&bytes[start..start + length])
    }
}

fn broken(why: &str) -> Error {
    Error::new(
        code::VALUE_MALFORMED,
        format!("the COPY stream of the server is broken: {why}"),
    )
}

impl Frame {
    /// A stream of tuples with so many fields each.
    pub fn new(fields: usize) -> Self {
        Frame {
            at: At::Header,
            fields: fields as i16,
        }
    }

    /// Tuples alone, as they pass undecoded; their number of fields is taken from the first.
    pub fn bare(tuples: &[u8]) -> Self {
        Frame {
            at: At::Tuples,
            fields: tuples.first_chunk().map_or(0, |b| i16::from_be_bytes(*b)),
        }
    }

    /// Whether the trailer was seen: the server had nothing more to send.
    pub fn ended(&self) -> bool {
        self.at == At::End
    }

    /// Looks at the beginning of the bytes not yet consumed.
    pub fn next(&mut self, bytes: &[u8]) -> Result<Found> {
        self.next_at(bytes, 0, |_| ())
    }

    /// Looks at the bytes from `at` on, and tells where the fields of the tuple are. Of one that has not come whole it
    /// tells those that are certain.
    #[inline]
    pub fn next_at(&mut self, all: &[u8], at: usize, mut field: impl FnMut(Span)) -> Result<Found> {
        let bytes = &all[at..];
        match self.at {
            At::Tuples => {}
            At::Header => return self.header(bytes),
            At::End if bytes.is_empty() => return Ok(Found::More),
            At::End => return Err(broken("bytes after the trailer")),
        }
        let Some(count) = bytes.first_chunk().map(|b| i16::from_be_bytes(*b)) else {
            return Ok(Found::More);
        };
        if count == -1 {
            self.at = At::End;
            return Ok(Found::Skip(2));
        }
        if count != self.fields {
            return Err(broken("a tuple has another number of fields"));
        }
        let mut end = 2;
        for _ in 0..count {
            let Some(length) = bytes.get(end..).and_then(|b| b.first_chunk()) else {
                return Ok(Found::More);
            };
            let length = i32::from_be_bytes(*length);
            end += 4;
            field(Span {
                start: (at + end) as u32,
                length,
            });
            end += match length {
                -1 => 0,
                n if n >= 0 => n as usize,
                _ => return Err(broken("a field has a negative length")),
            };
        }
        Ok(if end <= bytes.len() {
            Found::Tuple(end)
        } else {
            Found::More
        })
    }

    fn header(&mut self, bytes: &[u8]) -> Result<Found> {
        if bytes.len() < COPY_HEADER.len() {
            return Ok(Found::More);
        }
        if bytes[..11] != COPY_HEADER[..11] {
            return Err(broken("it has no COPY signature"));
        }
        // The low half of the flags may be ignored, the high half must be understood.
        if bytes[11..13] != [0, 0] {
            return Err(broken("it has a flag of a newer format"));
        }
        let extension = u32::from_be_bytes([bytes[15], bytes[16], bytes[17], bytes[18]]) as usize;
        let end = COPY_HEADER.len() + extension;
        if bytes.len() < end {
            return Ok(Found::More);
        }
        self.at = At::Tuples;
        Ok(Found::Skip(end))
    }
}

/// The fields of one whole tuple.
pub fn fields(tuple: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = tuple.get(2..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, behind) = rest.split_first_chunk()?;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            rest = behind;
            return Some(None);
        };
        let (field, behind) = behind.split_at_checked(length)?;
        rest = behind;
        Some(Some(field))
    })
}

/// Calls `each` with every tuple of bare tuples.
pub fn each_tuple(tuples: &[u8], mut each: impl FnMut(&[u8])) -> Result<u64> {
    let mut frame = Frame::bare(tuples);
    let mut rest = tuples;
    let mut rows = 0;
    while !rest.is_empty() {
        match frame.next(rest)? {
            Found::Tuple(end) => {
                each(&rest[..end]);
                rest = &rest[end..];
                rows += 1;
            }
            Found::Skip(_) | Found::More => return Err(broken("a chunk of raw rows does not end with a whole row")),
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(rows: &[Vec<Option<Vec<u8>>>], fields: usize) -> Vec<u8> {
        let mut out = COPY_HEADER.to_vec();
        for row in rows {
            out.extend((fields as i16).to_be_bytes());
            for field in row {
                match field {
                    None => out.extend((-1i32).to_be_bytes()),
                    Some(f) => {
                        out.extend((f.len() as i32).to_be_bytes());
                        out.extend(f);
                    }
                }
            }
        }
        out.extend([0xff, 0xff]);
        out
    }

    proptest! {
        /// Wherever the stream is cut into pieces, the same tuples come out.
        #[test]
        fn pieces_do_not_matter(
            rows in prop::collection::vec(prop::collection::vec(any::<Option<Vec<u8>>>(), 3), 0..10),
            piece in 1usize..40,
        ) {
            let bytes = stream(&rows, 3);
            let mut frame = Frame::new(3);
            let (mut have, mut out) = (Vec::new(), Vec::new());
            for part in bytes.chunks(piece) {
                have.extend_from_slice(part);
                loop {
                    let mut spans = Vec::new();
                    match frame.next_at(&have, 0, |s| spans.push(s)).unwrap() {
                        Found::More => break,
                        Found::Skip(n) => { have.drain(..n); }
                        Found::Tuple(n) => {
                            out.push(spans.iter().map(|s| s.of(&have).map(<[u8]>::to_vec)).collect::<Vec<_>>());
                            have.drain(..n);
                        }
                    }
                }
            }
            prop_assert!(frame.ended() && have.is_empty());
            prop_assert_eq!(out, rows);
        }

        #[test]
        fn rubbish_never_panics(bytes in any::<Vec<u8>>()) {
            let _ = Frame::new(3).next(&bytes);
            let _ = each_tuple(&bytes, |_| {});
        }
    }

    #[test]
    fn a_broken_stream_is_an_error() {
        let good = stream(&[vec![None]], 1);
        let mut frame = Frame::new(2);
        assert_eq!(frame.next(&good).unwrap(), Found::Skip(19));
        assert!(frame.next(&good[19..]).is_err(), "another number of fields");
        assert!(Frame::new(1).next(b"COPYPG\n\xff\r\n\0\0\0\0\0\0\0\0\0").is_err());
        assert!(each_tuple(&good[19..], |_| {}).is_err(), "a trailer is no tuple");
        assert_eq!(each_tuple(&good[19..good.len() - 2], |_| {}).unwrap(), 1);
    }
}
