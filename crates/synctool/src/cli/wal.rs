//! `synctool wal …`: looks into segments of PostgreSQL's log.

use super::args::{Format, Globals, WalCommand, WalRange};
use super::out::{self, Reply};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use synctool_connectors::walarchive::archive::{Listing, Part};
use synctool_connectors::walarchive::names::Kind;
use synctool_core::error::{Error, Result, code};
use synctool_pgwal::{
    self as pgwal, Decoder, Fork, Identity, Lsn, Meaning, Parts, Record, RelFile, Rmgr, SegmentName, Stats, Touch,
    Touched,
};

/// `synctool wal …`.
pub(super) async fn wal(command: WalCommand, globals: &Globals) -> Result<Reply> {
    let globals = globals.clone();
    let work = move || match command {
        WalCommand::Stats { range, by_kind } => stats(&range, by_kind, &globals),
        WalCommand::Dump {
            range,
            relation,
            xid,
            rmgr,
            limit,
        } => {
            let filter = Filter {
                relation: relation.as_deref().map(Relation::parse).transpose()?,
                rmgr: rmgr.as_deref().map(resource_manager).transpose()?,
                xid,
            };
            dump(&range, &filter, limit.unwrap_or(u64::MAX), &globals)
        }
    };
    // Reading and unpacking would hold up everything else.
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::bug("reading the log stopped").caused_by(e))?
}

fn resource_manager(name: &str) -> Result<Rmgr> {
    Rmgr::named(name).ok_or_else(|| {
        Error::new(code::CONFIG_INVALID, format!("there is no resource manager {name}"))
            .hint("synctool wal stats shows their names, such as Heap or Transaction")
    })
}

/// A file, by its number or by all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Relation {
    file: u32,
    place: Option<(u32, u32)>,
}

impl Relation {
    fn parse(text: &str) -> Result<Self> {
        let numbers: Option<Vec<u32>> = text.split('/').map(|n| n.parse().ok()).collect();
        match numbers.as_deref() {
            Some([file]) => Ok(Relation {
                file: *file,
                place: None,
            }),
            Some([tablespace, database, file]) => Ok(Relation {
                file: *file,
                place: Some((*tablespace, *database)),
            }),
            _ => Err(
                Error::new(code::CONFIG_INVALID, format!("{text} is no relation's file")).hint(
                    "write 16384 or 1663/5/16384: SELECT pg_relation_filenode('t') and pg_relation_filepath('t') say it",
                ),
            ),
        }
    }

    fn is(&self, file: &RelFile) -> bool {
        self.file == file.file
            && self
                .place
                .is_none_or(|(t, d)| t == file.tablespace && d == file.database)
    }
}

#[derive(Debug, Default)]
struct Filter {
    relation: Option<Relation>,
    rmgr: Option<Rmgr>,
    xid: Option<u32>,
}

impl Filter {
    fn takes(&self, record: &Record<'_>, parts: &Parts, meaning: &Meaning) -> bool {
        self.rmgr.is_none_or(|rmgr| rmgr == record.rmgr())
            && self.xid.is_none_or(|xid| record.xid() == xid || concerns(meaning, xid))
            && self.relation.is_none_or(|relation| {
                parts.blocks().iter().any(|block| relation.is(&block.relation))
                    || files(meaning).iter().any(|file| relation.is(file))
            })
    }
}

fn concerns(meaning: &Meaning, xid: u32) -> bool {
    match meaning {
        Meaning::Commit(end) | Meaning::Abort(end) => end.xid == xid || end.subtransactions.contains(&xid),
        Meaning::Prepare(prepared) => prepared.xid == xid || prepared.subtransactions.contains(&xid),
        Meaning::Assignment { top, subtransactions } => *top == xid || subtransactions.contains(&xid),
        _ => false,
    }
}

fn files(meaning: &Meaning) -> &[RelFile] {
    match meaning {
        Meaning::Commit(end) | Meaning::Abort(end) => &end.dropped,
        Meaning::FileCreated(file, _) | Meaning::FileTruncated(file, _) => std::slice::from_ref(file),
        _ => &[],
    }
}

/// The segment files that the arguments mean, in the order of the log.
fn segments(paths: &[PathBuf]) -> Result<Vec<(Option<SegmentName>, PathBuf)>> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            let listing = Listing::of(path)?;
            let several = listing.segments.into_iter().chain(listing.partial);
            // Of several files for one segment any is as good: they are only looked at.
            found.extend(several.filter_map(|(name, files)| Some((Some(name), files.into_iter().next()?))));
            continue;
        }
        let name = path.file_name().and_then(|n| n.to_str()).and_then(Kind::of);
        let name = match name {
            Some(Kind::Segment(name) | Kind::Partial(name)) => Some(name),
            _ => None,
        };
        found.push((name, path.clone()));
    }
    found.sort();
    // A whole segment makes its own beginning superfluous.
    found.dedup_by(|b, a| a.0.is_some() && a.0 == b.0);
    match found.is_empty() {
        true => Err(Error::new(code::FILE, "there are no WAL segments")
            .hint("name segment files, or a directory that holds some: pg_wal or an archive")),
        false => Ok(found),
    }
}

/// What was read, whatever was done with it.
struct Walk {
    segments: usize,
    identity: Option<Identity>,
    start: Option<Lsn>,
    end: Lsn,
    notes: Vec<String>,
}

/// Hands over every record of the range. `each` says whether to go on.
fn walk(range: &WalRange, mut each: impl FnMut(&Record<'_>) -> Result<bool>) -> Result<Walk> {
    let (from, to) = (range.from.unwrap_or(Lsn(0)), range.to.unwrap_or(Lsn(u64::MAX)));
    let mut walk = Walk {
        segments: 0,
        identity: None,
        start: None,
        end: Lsn(0),
        notes: Vec::new(),
    };
    let files = segments(&range.paths)?;
    // The next piece is read while this one is looked into.
    let (send, read) = mpsc::sync_channel(1);
    let (give_back, spare) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || read_ahead(files, &send, &spare));
        let mut decoder: Option<Decoder> = None;
        for piece in read {
            let Piece {
                path,
                identity,
                start,
                at,
                bytes,
            } = piece?;
            let end = Lsn(start.0.saturating_add(identity.segment_size.bytes()));
            if end <= from || start >= to {
                continue;
            }
            if at == start {
                walk.segments += 1;
                walk.identity = Some(identity);
                let follows = decoder
                    .as_ref()
                    .is_some_and(|d| d.needs() == start && *d.identity() == identity);
                if !follows {
                    if decoder.is_some() {
                        let note = format!("{} does not follow what was read before", path.display());
                        walk.notes.push(note);
                    }
                    decoder = Some(Decoder::seek(identity, start));
                }
            }
            // Where the log ended within a file, the rest of it means nothing.
            let Some(current) = &mut decoder else { continue };
            match records(current, at, &bytes, from, to, &mut walk, &mut each) {
                Ok(true) => {}
                Ok(false) => break,
                Err(Stopped::Log(pgwal::Error::EndOfLog { at })) => {
                    walk.notes.push(format!("the log ends at {at} in {}", path.display()));
                    decoder = None;
                }
                Err(Stopped::Log(error)) => {
                    let what = format!("{} cannot be read further: {error}", path.display());
                    return Err(Error::new(code::WAL_DAMAGED, what)
                        .at("file", path.display().to_string())
                        .hint("copy the file again from where it was written"));
                }
                Err(Stopped::Us(error)) => return Err(error),
            }
            // Its memory serves another one; the reader may be done already.
            let _ = give_back.send(bytes);
        }
        Ok(())
    })?;
    Ok(walk)
}

/// A part of a segment.
struct Piece {
    path: Arc<Path>,
    identity: Identity,
    /// Where the segment begins.
    start: Lsn,
    at: Lsn,
    bytes: Vec<u8>,
}

/// Reads segments piece by piece, until that fails or nobody wants more.
fn read_ahead(
    files: Vec<(Option<SegmentName>, PathBuf)>,
    send: &mpsc::SyncSender<Result<Piece>>,
    spare: &mpsc::Receiver<Vec<u8>>,
) {
    let mut memory = Vec::new();
    for (_, path) in files {
        match read_file(&path, send, spare, &mut memory) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return drop(send.send(Err(error))),
        }
    }
}

/// Says whether somebody wants more.
fn read_file(
    path: &Path,
    send: &mpsc::SyncSender<Result<Piece>>,
    spare: &mpsc::Receiver<Vec<u8>>,
    memory: &mut Vec<u8>,
) -> Result<bool> {
    let mut part = Part::open(path)?;
    let path: Arc<Path> = path.into();
    while let Some(at) = part.next(memory)? {
        let piece = Piece {
            path: path.clone(),
            identity: part.identity,
            start: part.start,
            at,
            bytes: std::mem::replace(memory, spare.try_recv().unwrap_or_default()),
        };
        if send.send(Ok(piece)).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

enum Stopped {
    Log(pgwal::Error),
    Us(Error),
}

fn records(
    decoder: &mut Decoder,
    at: Lsn,
    bytes: &[u8],
    from: Lsn,
    to: Lsn,
    walk: &mut Walk,
    each: &mut impl FnMut(&Record<'_>) -> Result<bool>,
) -> Result<bool, Stopped> {
    let mut feed = decoder.feed(at, bytes).map_err(Stopped::Log)?;
    while let Some(record) = feed.next().map_err(Stopped::Log)? {
        if record.lsn() >= to {
            return Ok(false);
        }
        if record.lsn() >= from {
            walk.start.get_or_insert(record.lsn());
            walk.end = record.end();
            if !each(&record).map_err(Stopped::Us)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn malformed(error: pgwal::Error) -> Error {
    Error::new(code::FILE_MALFORMED, error.to_string()).hint(
        "please report it: the record's checksum is right, so this version of PostgreSQL writes something unknown",
    )
}

fn stats(range: &WalRange, by_kind: bool, globals: &Globals) -> Result<Reply> {
    let mut stats = Stats::default();
    let walk = walk(range, |record| stats.count(record).map(|()| true).map_err(malformed))?;
    walk.notes.iter().for_each(|note| globals.note(note));
    let total = stats.total();
    let percent = |n: u64, of: u64| match of {
        0 => String::from("-"),
        of => format!("{:.2}", n as f64 * 100.0 / of as f64),
    };
    let row = |name: String, count: pgwal::Count| {
        vec![
            name,
            out::number(count.records),
            percent(count.records, total.records),
            out::number(count.bytes),
            out::number(count.image_bytes),
            percent(count.bytes + count.image_bytes, total.bytes + total.image_bytes),
        ]
    };
    let mut rows: Vec<Vec<String>> = match by_kind {
        true => stats
            .kinds()
            .map(|(rmgr, kind, count)| row(format!("{rmgr}/{kind}"), count))
            .collect(),
        false => stats
            .rmgrs()
            .iter()
            .map(|(rmgr, count)| row(rmgr.to_string(), *count))
            .collect(),
    };
    rows.push(row("Total".into(), total));
    let table = out::table(&["rmgr", "records", "%", "bytes", "image bytes", "% of bytes"], rows);
    let one = |count: pgwal::Count| json!({ "records": count.records, "bytes": count.bytes, "image_bytes": count.image_bytes });
    let rmgrs: Vec<Value> = stats
        .rmgrs()
        .iter()
        .map(|(rmgr, count)| {
            let kinds = stats.kinds().filter(|(r, _, _)| r == rmgr);
            let kinds: serde_json::Map<_, _> = kinds.map(|(_, kind, count)| (kind.to_owned(), one(count))).collect();
            let mut item = one(*count);
            item["rmgr"] = rmgr.to_string().into();
            item["kinds"] = kinds.into();
            item
        })
        .collect();
    let identity = walk.identity.map(|i| {
        json!({ "major": i.major.number(), "system_id": i.system.to_string(), "segment_size": i.segment_size.bytes() })
    });
    let json = json!({
        "segments": walk.segments, "server": identity, "from": walk.start.map(|l| l.to_string()), "to": walk.end.to_string(),
        "total": one(total), "rmgrs": rmgrs, "notes": walk.notes,
    });
    let server = walk.identity.map_or_else(String::new, |i| {
        format!(
            "PostgreSQL {}, system id {}, {} from {} to {}\n\n",
            i.major,
            i.system,
            out::count(walk.segments, "segment"),
            walk.start.unwrap_or_default(),
            walk.end
        )
    });
    Ok(Reply::new(json, format!("{server}{table}")))
}

fn dump(range: &WalRange, filter: &Filter, limit: u64, globals: &Globals) -> Result<Reply> {
    let mut parts = Parts::default();
    let mut touches = Vec::new();
    let mut printed = 0;
    let mut items = Vec::new();
    let mut stdout = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    let format = globals.output;
    let walk = walk(range, |record| {
        if printed == limit {
            return Ok(false);
        }
        record.parse(&mut parts).map_err(malformed)?;
        let meaning = Meaning::of(record, &mut parts, &mut touches).map_err(malformed)?;
        if !filter.takes(record, &parts, &meaning) {
            return Ok(true);
        }
        printed += 1;
        // One line after the other: a log may be larger than memory. A reader that went away ends it.
        let written = match format {
            Format::Text => writeln!(stdout, "{}", line(record, &parts, &meaning, &touches)),
            Format::Ndjson => writeln!(stdout, "{}", item(record, &parts, &meaning, &touches)),
            Format::Json => {
                items.push(item(record, &parts, &meaning, &touches));
                Ok(())
            }
        };
        Ok(written.is_ok())
    });
    let _ = stdout.flush();
    drop(stdout);
    let walk = walk?;
    walk.notes.iter().for_each(|note| globals.note(note));
    Ok(Reply::new(items.into(), ""))
}

fn line(record: &Record<'_>, parts: &Parts, meaning: &Meaning, touches: &[Touch]) -> String {
    let mut line = format!(
        "{}  {:17} {:22} tx {:>10}  len {:>6}",
        record.lsn(),
        record.rmgr(),
        record.kind(),
        record.xid(),
        record.bytes().len()
    );
    let what = describe(meaning, touches);
    if !what.is_empty() {
        let _ = write!(line, "  {what}");
    }
    for block in parts.blocks() {
        let _ = write!(line, "  [{} {}", block.relation, block.number);
        if block.fork != Fork::MAIN {
            let _ = write!(line, " {}", block.fork.name());
        }
        if let Some(image) = block.image {
            let _ = write!(line, " image {}", image.compression.unwrap_or("plain"));
        }
        line.push(']');
    }
    line
}

fn word(what: Touched) -> &'static str {
    match what {
        Touched::Inserted => "inserted",
        Touched::Updated => "updated",
        Touched::Replaced => "replaced",
        Touched::Deleted => "deleted",
        Touched::Withdrawn => "withdrawn",
    }
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
}

/// What a record does, in words.
fn describe(meaning: &Meaning, touches: &[Touch]) -> String {
    let rows = |touches: &[Touch]| {
        let each = touches
            .iter()
            .map(|t| format!("{} ({},{})", word(t.what), t.block, t.offset));
        each.collect::<Vec<_>>().join(" ")
    };
    match meaning {
        Meaning::Rows(_) => rows(touches),
        Meaning::InPlace(_, touch) => rows(&[*touch]),
        Meaning::Truncated(tables) => format!("tables {}", list(&tables.relations)),
        Meaning::Commit(end) | Meaning::Abort(end) => {
            let mut text = format!("{} at {}", end.xid, end.at);
            if !end.subtransactions.is_empty() {
                let _ = write!(text, " with {}", list(&end.subtransactions));
            }
            if let Some(gid) = &end.gid {
                let _ = write!(text, " prepared as {gid:?}");
            }
            if !end.dropped.is_empty() {
                let _ = write!(text, " drops {}", list(&end.dropped));
            }
            text
        }
        Meaning::Prepare(prepared) => format!("{} as {:?} at {}", prepared.xid, prepared.gid, prepared.at),
        Meaning::Assignment { top, subtransactions } => format!("{} to {top}", list(subtransactions)),
        Meaning::Running(running) => {
            let open = match running.xids.is_empty() {
                true => "none".into(),
                false => list(&running.xids),
            };
            format!("open {open}, next {}, oldest {}", running.next, running.oldest)
        }
        Meaning::Checkpoint { redo, timeline, .. } => format!("redo {redo}, timeline {timeline}"),
        Meaning::EndOfRecovery { timeline, previous } => format!("timeline {timeline} after {previous}"),
        Meaning::Parameters(p) => format!(
            "wal_level {}, max_connections {}, max_worker_processes {}, max_wal_senders {}, max_prepared_transactions {}, max_locks_per_transaction {}",
            p.wal_level.map_or("unknown", |level| level.name()),
            p.max_connections,
            p.max_worker_processes,
            p.max_wal_senders,
            p.max_prepared_transactions,
            p.max_locks_per_transaction
        ),
        Meaning::BackupEnd(start) => format!("of the backup that began at {start}"),
        Meaning::RestorePoint(at, name) => format!("{name:?} at {at}"),
        Meaning::Overwritten(lsn) => format!("gives up record {lsn}"),
        Meaning::FileCreated(file, fork) => format!("file {file} {}", fork.name()),
        Meaning::FileTruncated(file, blocks) => format!("file {file} to {blocks} blocks"),
        Meaning::DatabaseCreated(database) | Meaning::DatabaseDropped(database) => format!("database {database}"),
        Meaning::TablespaceCreated(place) => format!("tablespace in {place}"),
        Meaning::Switch | Meaning::Other => String::new(),
    }
}

fn item(record: &Record<'_>, parts: &Parts, meaning: &Meaning, touches: &[Touch]) -> Value {
    let blocks = parts.blocks().iter().map(|block| {
        let image = block
            .image
            .map(|i| json!({ "bytes": i.length, "compression": i.compression, "applied": i.applied }));
        json!({
            "id": block.id, "relation": block.relation.to_string(), "fork": block.fork.name(), "block": block.number,
            "image": image,
        })
    });
    let rows = touches
        .iter()
        .map(|t| json!({ "block": t.block, "offset": t.offset, "what": word(t.what) }));
    let mut item = json!({
        "lsn": record.lsn().to_string(), "end": record.end().to_string(), "prev": record.previous().to_string(),
        "rmgr": record.rmgr().to_string(), "kind": record.kind(), "xid": record.xid(), "bytes": record.bytes().len(),
        "image_bytes": parts.image_bytes(), "blocks": blocks.collect::<Vec<_>>(), "rows": rows.collect::<Vec<_>>(),
        "text": describe(meaning, touches),
    });
    if let Meaning::Commit(end) | Meaning::Abort(end) = meaning {
        item["transaction"] = json!({
            "xid": end.xid, "at": end.at.to_string(), "subtransactions": end.subtransactions, "prepared": end.prepared,
            "gid": end.gid, "dropped": end.dropped.iter().map(RelFile::to_string).collect::<Vec<_>>(),
        });
    }
    item
}

/// For clap.
pub(super) fn lsn(text: &str) -> Result<Lsn, String> {
    text.parse().map_err(|e: pgwal::Error| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_numbers() {
        let file = RelFile {
            tablespace: 1663,
            database: 5,
            file: 16384,
        };
        assert!(Relation::parse("16384").unwrap().is(&file));
        assert!(Relation::parse("1663/5/16384").unwrap().is(&file));
        assert!(!Relation::parse("1663/6/16384").unwrap().is(&file));
        for bad in ["", "t", "1/2", "1/2/3/4", "-1"] {
            assert!(Relation::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_folder_without_segments_says_so() {
        let error = segments(&[std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")]).unwrap_err();
        assert_eq!(error.code(), code::FILE);
    }
}
