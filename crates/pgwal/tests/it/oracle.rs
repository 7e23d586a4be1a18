//! Every record as PostgreSQL's own tools see it.

use crate::load;
use crate::wal::Wal;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use synctool_pgwal::{Decoder, Fork, Lsn, Parts, Record, SegmentName, Stats};
use synctool_testkit::{PgVersion, Postgres};

/// What both sides say about a record.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Line {
    lsn: Lsn,
    previous: Lsn,
    rmgr: String,
    xid: u32,
    kind: String,
    bytes: u64,
    total: u64,
    blocks: String,
}

impl Line {
    fn ours(record: &Record<'_>, parts: &mut Parts) -> Line {
        record.parse(parts).unwrap();
        let mut blocks = String::new();
        for block in parts.blocks() {
            let fork = match block.fork {
                Fork::MAIN => String::new(),
                fork => format!("fork {} ", fork.name()),
            };
            let image = match block.image {
                None => "",
                Some(image) if image.applied => " FPW",
                Some(_) => " FPW for WAL verification",
            };
            let (rel, number) = (block.relation, block.number);
            blocks += &format!(", blkref #{}: rel {rel} {fork}blk {number}{image}", block.id);
        }
        Line {
            lsn: record.lsn(),
            previous: record.previous(),
            rmgr: record.rmgr().to_string(),
            xid: record.xid(),
            kind: record.kind().into_owned(),
            bytes: record.bytes().len() as u64 - parts.image_bytes(),
            total: record.bytes().len() as u64,
            blocks,
        }
    }

    /// A line of pg_waldump.
    fn theirs(text: &str) -> Line {
        let field = |name: &str, end: char| {
            let rest = text.split_once(name).unwrap_or_else(|| panic!("{name} in {text}")).1;
            rest.trim_start().split(end).next().unwrap().trim().to_owned()
        };
        let desc = text.split_once("desc: ").unwrap().1;
        let blocks = desc
            .find("blkref #")
            .map_or(String::new(), |at| format!(", {}", &desc[at..]));
        Line {
            lsn: field("lsn:", ',').parse().unwrap(),
            previous: field("prev ", ',').parse().unwrap(),
            rmgr: field("rmgr:", ' '),
            xid: field("tx:", ',').parse().unwrap(),
            kind: desc.split(' ').next().unwrap().to_owned(),
            bytes: field("len (rec/tot):", '/').parse().unwrap(),
            total: field("len (rec/tot):", ',')
                .split('/')
                .nth(1)
                .unwrap()
                .trim()
                .parse()
                .unwrap(),
            blocks: blocks.trim_end().to_owned(),
        }
    }
}

fn waldump(server: &Postgres, wal: &Wal, more: &[&str]) -> String {
    let mut command = Command::new(server.tool("pg_waldump"));
    let (start, end) = (wal.start.to_string(), wal.end().to_string());
    command
        .arg("-p")
        .arg(&wal.directory)
        .args(["-s", &start, "-e", &end])
        .args(more)
        // Else it looks for the size of segments in any of them, one that is made ahead and empty among them.
        .args([&wal.names.0, &wal.names.1]);
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn same(ours: &[Line], theirs: &[Line]) {
    for (our, their) in ours.iter().zip(theirs) {
        assert_eq!(our, their);
    }
    assert_eq!(ours.len(), theirs.len());
    assert!(ours.len() > 50_000, "only {} records", ours.len());
    // The load must have reached the places where majors differ.
    let kinds: BTreeSet<String> = ours.iter().map(|l| format!("{} {}", l.rmgr, l.kind)).collect();
    let rmgrs: BTreeSet<&str> = ours.iter().map(|l| l.rmgr.as_str()).collect();
    assert!(rmgrs.len() >= 19, "{rmgrs:?}");
    assert!(kinds.len() >= 75, "{} {kinds:?}", kinds.len());
    assert!(ours.iter().any(|line| line.blocks.contains("FPW")));
}

fn ours(wal: &Wal, piece: usize) -> (Vec<Line>, Stats) {
    let (mut lines, mut stats, mut parts) = (Vec::new(), Stats::default(), Parts::default());
    let decoder = wal.each(piece, |record| {
        stats.count(record).unwrap();
        lines.push(Line::ours(record, &mut parts));
    });
    assert!(decoder.at_boundary());
    assert_eq!(decoder.position(), wal.end());
    (lines, stats)
}

fn agrees_with_waldump(version: PgVersion, piece: usize, segment: u64) {
    let option = format!("--wal-segsize={segment}");
    let server = load::builder(version).initdb(&option).start();
    load::everything(&server);
    let wal = Wal::of(&server);
    assert_eq!(wal.identity.segment_size.bytes(), segment << 20);
    assert_eq!(wal.identity.major.number(), version.major());
    let (lines, stats) = ours(&wal, piece);
    let text = waldump(&server, &wal, &[]);
    let theirs: Vec<Line> = text.lines().map(Line::theirs).collect();
    same(&lines, &theirs);

    // The whole segments of the log hold the same records as the sums of pg_waldump say.
    let sums = waldump(&server, &wal, &["--stats=record"]);
    let mut expected = BTreeMap::new();
    for line in sums.lines().skip(2) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(number) = words.iter().position(|w| w.parse::<u64>().is_ok())
            && words[0] != "Total"
            && words[0].contains('/')
        {
            let numbers: Vec<u64> = words[number..].iter().filter_map(|w| w.parse().ok()).collect();
            expected.insert(words[..number].join(" "), numbers);
        }
    }
    let found: BTreeMap<String, Vec<u64>> = stats
        .kinds()
        .map(|(rmgr, kind, c)| {
            (
                format!("{rmgr}/{kind}"),
                vec![c.records, c.bytes, c.image_bytes, c.bytes + c.image_bytes],
            )
        })
        .collect();
    assert_eq!(found, expected);
    assert_eq!(stats.total().records, theirs.len() as u64);
}

#[test]
fn postgresql_15_agrees_with_its_pg_waldump() {
    agrees_with_waldump(PgVersion::V15, 8192, 16);
}

#[test]
fn postgresql_18_agrees_with_its_pg_waldump() {
    agrees_with_waldump(PgVersion::V18, 3 * 8192, 16);
}

#[test]
fn small_segments_are_read_as_well() {
    agrees_with_waldump(PgVersion::V18, 1 << 20, 1);
}

#[test]
fn large_segments_are_read_as_well() {
    agrees_with_waldump(PgVersion::V15, 5 << 20, 64);
}

fn agrees_with_walinspect(major: u8) {
    let server = load::builder(PgVersion::new(major)).start();
    load::everything(&server);
    let wal = Wal::of(&server);
    assert_eq!(wal.identity.major.number(), major);
    let (lines, _) = ours(&wal, 8192);
    server.psql("CREATE EXTENSION pg_walinspect");
    let text = server.psql(&format!(
        "SELECT start_lsn, prev_lsn, resource_manager, xid, record_type, record_length, fpi_length, block_ref
         FROM pg_get_wal_records_info('{}', '{}')",
        lines[0].lsn,
        wal.end()
    ));
    let theirs: Vec<Line> = text
        .lines()
        .map(|line| {
            let f: Vec<&str> = line.split('|').collect();
            let total: u64 = f[5].parse().unwrap();
            Line {
                lsn: f[0].parse().unwrap(),
                previous: f[1].parse().unwrap(),
                rmgr: f[2].into(),
                xid: f[3].parse().unwrap(),
                kind: f[4].into(),
                bytes: total - f[6].parse::<u64>().unwrap(),
                total,
                blocks: f[7].into(),
            }
        })
        .collect();
    // Here block references are told with more detail; their relations and blocks are compared.
    let plain = |line: &Line| {
        let mut line = line.clone();
        let blocks: Vec<String> = line
            .blocks
            .split("blkref #")
            .skip(1)
            .map(|b| {
                b.split([' ', ',', ';'])
                    .take_while(|w| !w.starts_with("FPW") && !w.starts_with("(FPW"))
                    .filter(|w| !w.is_empty() && *w != "fork" && *w != "main")
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect();
        line.blocks = blocks.join("; ");
        line
    };
    for (our, their) in lines.iter().zip(&theirs) {
        assert_eq!(plain(our), plain(their));
    }
    same(&lines, &lines);
    assert_eq!(lines.len(), theirs.len());
}

#[test]
fn postgresql_16_agrees_with_its_pg_walinspect() {
    agrees_with_walinspect(16);
}

#[test]
fn postgresql_17_agrees_with_its_pg_walinspect() {
    agrees_with_walinspect(17);
}

#[test]
fn a_decoder_can_begin_anywhere() {
    let server = load::builder(PgVersion::V18).initdb("--wal-segsize=1").start();
    load::everything(&server);
    let wal = Wal::of(&server);
    let (lines, _) = ours(&wal, 1 << 20);
    // With a record whose address is known: exactly from there on.
    for line in lines.iter().step_by(lines.len() / 40) {
        let mut decoder = Decoder::at(wal.identity, line.lsn);
        let from = (decoder.needs().0 - wal.start.0) as usize;
        let mut feed = decoder.feed(decoder.needs(), &wal.bytes[from..]).unwrap();
        assert_eq!(feed.next().unwrap().unwrap().lsn(), line.lsn);
    }
    // With a page: from the first record that starts on it or after it.
    for page in (0..wal.bytes.len()).step_by(wal.bytes.len() / 8192 / 50 * 8192) {
        // After a switch, pages are left empty.
        if wal.bytes[page..page + 2] == [0, 0] {
            continue;
        }
        let at = Lsn(wal.start.0 + page as u64);
        let mut decoder = Decoder::seek(wal.identity, at);
        let first = decoder
            .feed(at, &wal.bytes[page..])
            .unwrap()
            .next()
            .unwrap()
            .map(|r| r.lsn());
        assert_eq!(first, lines.iter().map(|l| l.lsn).find(|lsn| *lsn >= at));
    }
    let size = wal.identity.segment_size;
    let name = SegmentName::new(1, size.number(wal.start), size);
    assert_eq!(name.to_string(), wal.names.0);
}
