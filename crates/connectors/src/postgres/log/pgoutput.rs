//! The messages of the plugin `pgoutput`, protocol 1: bytes in, borrowed messages out. No I/O, no allocation per row.
//!
//! Strict on purpose: a message that is not understood to its last byte is an error, because a guess would be data.

use std::fmt;

/// A place in the write-ahead log.
pub type Lsn = u64;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a message of pgoutput is malformed: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub enum Message<'a> {
    /// A transaction begins; it did commit.
    Begin {
        /// Where its commit record stands.
        commit: Lsn,
        /// When it committed, microseconds since 2000-01-01 UTC.
        committed_at: i64,
        /// Its number.
        xid: u32,
    },
    /// It ends here.
    Commit {
        /// Where its commit record stands.
        commit: Lsn,
        /// The end of that record: where the next transaction is read from.
        end: Lsn,
        /// When it committed, microseconds since 2000-01-01 UTC.
        committed_at: i64,
    },
    /// The transaction came here from another server.
    Origin {
        /// Where it committed there.
        commit: Lsn,
        /// The origin's name.
        name: &'a str,
    },
    /// What a table looks like from here on.
    Relation(Relation<'a>),
    /// What a type that is not built in is called.
    Type {
        /// Its number.
        oid: u32,
        /// Its schema; empty for `pg_catalog`.
        schema: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// A row came.
    Insert {
        /// The table's number.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row changed.
    Update {
        /// The table's number.
        relation: u32,
        /// What is known of the row before.
        old: Option<Old<'a>>,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row went.
    Delete {
        /// The table's number.
        relation: u32,
        /// What is known of it.
        old: Old<'a>,
    },
    /// Tables were emptied.
    Truncate {
        /// Their numbers.
        relations: Vec<u32>,
        /// With CASCADE.
        cascade: bool,
        /// With RESTART IDENTITY.
        restart_identity: bool,
    },
    /// Somebody wrote a message into the log.
    Message {
        /// Whether it belongs to the transaction around it.
        transactional: bool,
        /// Where it stands.
        at: Lsn,
        /// Whose it is.
        prefix: &'a str,
        /// What it says.
        content: &'a [u8],
    },
}

/// A table as the log describes it before its first row, and after each change of its shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Relation<'a> {
    /// Its number.
    pub oid: u32,
    /// Its schema; empty for `pg_catalog`.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its replica identity: `d`, `n`, `f` or `i`.
    pub identity: u8,
    /// The columns that its rows have here, in order.
    pub columns: Vec<RelationColumn<'a>>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, PartialEq)]
pub struct RelationColumn<'a> {
    /// Whether it is part of the replica identity.
    pub key: bool,
    /// Its name.
    pub name: &'a str,
    /// Its type's number.
    pub type_oid: u32,
    /// Its type's modifier.
    pub modifier: i32,
}

/// What is known of a row before its change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Old<'a> {
    /// The values of the replica identity; the others are NULL here.
    Key(Tuple<'a>),
    /// The whole row.
    Row(Tuple<'a>),
}

impl<'a> Old<'a> {
    /// Its values.
    pub fn tuple(&self) -> Tuple<'a> {
        match self {
            Old::Key(t) | Old::Row(t) => *t,
        }
    }
}

/// The values of a row, checked to be whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuple<'a> {
    count: u16,
    cells: &'a [u8],
}

/// One value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    /// NULL.
    Null,
    /// A TOAST value that the change did not touch: it is not in the log.
    Unchanged,
    /// As the type prints it.
    Text(&'a [u8]),
    /// As the type sends it.
    Binary(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// How many values it has.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Its values in order.
    pub fn cells(&self) -> Cells<'a> {
        Cells(Bytes(self.cells))
    }

    /// The bytes it takes in the log.
    pub fn size(&self) -> usize {
        self.cells.len()
    }

    fn read(b: &mut Bytes<'a>) -> Result<Self, Malformed> {
        let count = b.u16()?;
        let all = b.0;
        for _ in 0..count {
            cell(b)?;
        }
        Ok(Tuple {
            count,
            cells: &all[..all.len() - b.0.len()],
        })
    }
}

/// Goes through the values of a [`Tuple`].
#[derive(Debug, Clone)]
pub struct Cells<'a>(Bytes<'a>);

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    #[inline]
    fn next(&mut self) -> Option<Cell<'a>> {
        if self.0.0.is_empty() {
            return None;
        }
        // Checked when the tuple was read.
        cell(&mut self.0).ok()
    }
}

#[inline]
fn cell<'a>(b: &mut Bytes<'a>) -> Result<Cell<'a>, Malformed> {
    Ok(match b.u8()? {
        b'n' => Cell::Null,
        b'u' => Cell::Unchanged,
        b't' => Cell::Text(b.counted()?),
        b'b' => Cell::Binary(b.counted()?),
        _ => return Err(Malformed("a value of an unknown kind")),
    })
}

#[derive(Debug, Clone)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    #[inline]
    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("it is cut off"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.fixed::<1>().map(|b| b[0])
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.fixed().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.fixed().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.fixed().map(u64::from_be_bytes)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Malformed("it is cut off"))?;
        self.0 = rest;
        Ok(head)
    }

    #[inline]
    fn counted(&mut self) -> Result<&'a [u8], Malformed> {
        let n = usize::try_from(self.u32()? as i32).map_err(|_| Malformed("a length is negative"))?;
        self.take(n)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        let end = memchr::memchr(0, self.0).ok_or(Malformed("a name does not end"))?;
        let text = std::str::from_utf8(&self.0[..end]).map_err(|_| Malformed("a name is not UTF-8"))?;
        self.0 = &self.0[end + 1..];
        Ok(text)
    }
}

impl<'a> Message<'a> {
    /// Reads one message.
    pub fn parse(bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let mut b = Bytes(bytes);
        let message = match b.u8()? {
            b'B' => Message::Begin {
                commit: b.u64()?,
                committed_at: b.u64()? as i64,
                xid: b.u32()?,
            },
            b'C' => {
                if b.u8()? != 0 {
                    return Err(Malformed("a commit has unknown flags"));
                }
                Message::Commit {
                    commit: b.u64()?,
                    end: b.u64()?,
                    committed_at: b.u64()? as i64,
                }
            }
            b'O' => Message::Origin {
                commit: b.u64()?,
                name: b.text()?,
            },
            b'R' => Message::Relation(relation(&mut b)?),
            b'Y' => Message::Type {
                oid: b.u32()?,
                schema: b.text()?,
                name: b.text()?,
            },
            b'I' => {
                let relation = b.u32()?;
                if b.u8()? != b'N' {
                    return Err(Malformed("an insert without a row"));
                }
                Message::Insert {
                    relation,
                    new: Tuple::read(&mut b)?,
                }
            }
            b'U' => {
                let relation = b.u32()?;
                let (old, kind) = match b.u8()? {
                    b'K' => (Some(Old::Key(Tuple::read(&mut b)?)), b.u8()?),
                    b'O' => (Some(Old::Row(Tuple::read(&mut b)?)), b.u8()?),
                    other => (None, other),
                };
                if kind != b'N' {
                    return Err(Malformed("an update without a row"));
                }
                Message::Update {
                    relation,
                    old,
                    new: Tuple::read(&mut b)?,
                }
            }
            b'D' => {
                let relation = b.u32()?;
                let old = match b.u8()? {
                    b'K' => Old::Key(Tuple::read(&mut b)?),
                    b'O' => Old::Row(Tuple::read(&mut b)?),
                    _ => return Err(Malformed("a delete without an old row")),
                };
                Message::Delete { relation, old }
            }
            b'T' => {
                let count = b.u32()? as usize;
                let flags = b.u8()?;
                if flags & !3 != 0 {
                    return Err(Malformed("a truncate has unknown flags"));
                }
                let numbers = b.take(count.checked_mul(4).ok_or(Malformed("too many tables"))?)?;
                Message::Truncate {
                    relations: numbers
                        .as_chunks::<4>()
                        .0
                        .iter()
                        .map(|n| u32::from_be_bytes(*n))
                        .collect(),
                    cascade: flags & 1 != 0,
                    restart_identity: flags & 2 != 0,
                }
            }
            b'M' => {
                let flags = b.u8()?;
                if flags > 1 {
                    return Err(Malformed("a message has unknown flags"));
                }
                Message::Message {
                    transactional: flags == 1,
                    at: b.u64()?,
                    prefix: b.text()?,
                    content: b.counted()?,
                }
            }
            _ => return Err(Malformed("its kind is unknown")),
        };
        if b.0.is_empty() {
            Ok(message)
        } else {
            Err(Malformed("bytes are left over"))
        }
    }
}

fn relation<'a>(b: &mut Bytes<'a>) -> Result<Relation<'a>, Malformed> {
    let (oid, schema, name, identity) = (b.u32()?, b.text()?, b.text()?, b.u8()?);
    if !b"dnfi".contains(&identity) {
        return Err(Malformed("a replica identity is unknown"));
    }
    let count = b.u16()? as usize;
    let mut columns = Vec::with_capacity(count.min(b.0.len() / 10));
    for _ in 0..count {
        let flags = b.u8()?;
        if flags > 1 {
            return Err(Malformed("a column has unknown flags"));
        }
        columns.push(RelationColumn {
            key: flags == 1,
            name: b.text()?,
            type_oid: b.u32()?,
            modifier: b.u32()? as i32,
        });
    }
    Ok(Relation {
        oid,
        schema,
        name,
        identity,
        columns,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One of each kind, as servers send them.
    fn samples() -> Vec<Vec<u8>> {
        let tuple: &[u8] = b"\0\x04nut\0\0\0\x02hib\0\0\0\x04\0\0\0\x07";
        let join = |parts: &[&[u8]]| parts.concat();
        vec![
            join(&[
                b"B",
                &[0, 0, 0, 0, 1, 0x6b, 0x37, 0x48],
                &[0, 2, 0x9e, 0x11, 0, 0, 0, 1],
                &[0, 0, 2, 0xf1],
            ]),
            join(&[b"C\0", &[1; 8], &[2; 8], &[3; 8]]),
            join(&[b"O", &[9; 8], b"other\0"]),
            join(&[
                b"R",
                &[0, 0, 0x40, 1],
                b"public\0items\0d\0\x02",
                b"\x01id\0\0\0\0\x17\xff\xff\xff\xff\0name\0\0\0\0\x19\xff\xff\xff\xff",
            ]),
            join(&[b"Y", &[0, 0, 0x40, 9], b"public\0mood\0"]),
            join(&[b"I", &[0, 0, 0x40, 1], b"N", tuple]),
            join(&[b"U", &[0, 0, 0x40, 1], b"N", tuple]),
            join(&[b"U", &[0, 0, 0x40, 1], b"K", tuple, b"N", tuple]),
            join(&[b"U", &[0, 0, 0x40, 1], b"O", tuple, b"N", tuple]),
            join(&[b"D", &[0, 0, 0x40, 1], b"K", tuple]),
            join(&[b"T", &[0, 0, 0, 2], b"\x03", &[0, 0, 0, 1, 0, 0, 0, 2]]),
            join(&[b"M\x01", &[0, 0, 0, 0, 0, 0, 0, 5], b"p\0", &[0, 0, 0, 2], b"hi"]),
        ]
    }

    #[test]
    fn every_kind_is_read() {
        let samples = samples();
        let all: Vec<Message<'_>> = samples.iter().map(|s| Message::parse(s).unwrap()).collect();
        assert!(matches!(
            all[0],
            Message::Begin {
                commit: 0x016b_3748,
                xid: 753,
                ..
            }
        ));
        let Message::Relation(relation) = &all[3] else {
            panic!("{:?}", all[3])
        };
        assert_eq!(
            (relation.schema, relation.name, relation.identity),
            ("public", "items", b'd')
        );
        assert_eq!(
            (
                relation.columns[0].key,
                relation.columns[1].name,
                relation.columns[1].modifier
            ),
            (true, "name", -1)
        );
        let Message::Update {
            old: Some(Old::Key(old)),
            new,
            ..
        } = &all[7]
        else {
            panic!("{:?}", all[7])
        };
        let cells = [
            Cell::Null,
            Cell::Unchanged,
            Cell::Text(b"hi"),
            Cell::Binary(&[0, 0, 0, 7]),
        ];
        assert_eq!(new.cells().collect::<Vec<_>>(), cells);
        assert_eq!((old.len(), new.len(), old.cells().count()), (4, 4, 4));
        assert_eq!(
            all[10],
            Message::Truncate {
                relations: vec![1, 2],
                cascade: true,
                restart_identity: true
            }
        );
        assert_eq!(
            all[11],
            Message::Message {
                transactional: true,
                at: 5,
                prefix: "p",
                content: b"hi"
            }
        );
    }

    #[test]
    fn nothing_is_read_that_is_not_whole() {
        for sample in samples() {
            for end in 0..sample.len() {
                assert!(Message::parse(&sample[..end]).is_err(), "{} bytes of {sample:?}", end);
            }
            let longer = [&sample[..], b"\0"].concat();
            assert!(Message::parse(&longer).is_err(), "{longer:?}");
        }
        assert!(Message::parse(b"D\0\0\0\x01N\0\0").is_err());
        assert!(
            Message::parse(b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xff").is_err(),
            "a negative length"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: ProptestConfig::default().cases.max(2000),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn rubbish_never_panics(bytes in any::<Vec<u8>>()) {
            walk(&bytes);
        }

        #[test]
        fn changed_messages_never_panic(
            which in 0..12usize,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = samples()[which].clone();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            walk(&bytes);
            let end = cut.index(bytes.len());
            walk(&bytes[..end]);
        }
    }

    /// Reads everything that a reader would.
    fn walk(bytes: &[u8]) {
        match Message::parse(bytes) {
            Ok(Message::Insert { new, .. }) => assert_eq!(new.cells().count(), new.len()),
            Ok(Message::Update { old, new, .. }) => {
                assert_eq!(new.cells().count(), new.len());
                if let Some(old) = old {
                    assert_eq!(old.tuple().cells().count(), old.tuple().len());
                }
            }
            Ok(Message::Delete { old, .. }) => assert_eq!(old.tuple().cells().count(), old.tuple().len()),
            Ok(_) | Err(_) => {}
        }
    }
}
