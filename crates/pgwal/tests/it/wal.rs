//! The log of a server as one piece of memory.

use std::fs;
use std::path::PathBuf;
use synctool_pgwal::{Decoder, Identity, Lsn, Record, SegmentName};
use synctool_testkit::Postgres;

/// Consecutive whole segments.
pub struct Wal {
    pub identity: Identity,
    pub start: Lsn,
    pub bytes: Vec<u8>,
    pub directory: PathBuf,
    /// The names of the first and the last segment.
    pub names: (String, String),
}

impl Wal {
    /// Everything the server wrote so far, its last segment ended by a switch.
    pub fn of(server: &Postgres) -> Wal {
        // A switch at the start of a segment does nothing: there must be something in it.
        let last = server.psql("SELECT pg_create_restore_point('end'); SELECT pg_walfile_name(pg_switch_wal())");
        let last = last.lines().last().unwrap().to_owned();
        let directory = server.data_directory().join("pg_wal");
        let entries = fs::read_dir(&directory)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries
            .filter(|n| SegmentName::parse(n).is_some() && *n <= last)
            .collect();
        names.sort();
        assert_eq!(names.last(), Some(&last));
        let mut bytes = Vec::new();
        for name in &names {
            bytes.extend(fs::read(directory.join(name)).unwrap());
        }
        let start = Lsn(u64::from_le_bytes(bytes[8..16].try_into().unwrap()));
        let (identity, _) = Identity::read(start, &bytes).unwrap();
        let size = identity.segment_size;
        assert_eq!(SegmentName::parse(&names[0]).unwrap().start(size), Some(start));
        assert_eq!(
            bytes.len() as u64,
            names.len() as u64 * size.bytes(),
            "a segment is missing"
        );
        Wal {
            identity,
            start,
            bytes,
            directory,
            names: (names.swap_remove(0), last),
        }
    }

    /// The address after its last byte.
    pub fn end(&self) -> Lsn {
        Lsn(self.start.0 + self.bytes.len() as u64)
    }

    /// Every record, handed over in pieces of so many bytes.
    pub fn each(&self, piece: usize, mut each: impl FnMut(&Record<'_>)) -> Decoder {
        let mut decoder = Decoder::seek(self.identity, self.start);
        let mut at = self.start;
        for piece in self.bytes.chunks(piece) {
            let mut feed = decoder.feed(at, piece).unwrap();
            while let Some(record) = feed.next().unwrap() {
                each(&record);
            }
            at = Lsn(at.0 + piece.len() as u64);
        }
        decoder
    }
}
