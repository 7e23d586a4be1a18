//! Whatever the log's bytes are, reading them gives values or an error: they never end the program, and what is made of
//! them is not larger than what a row of that length can hold.

use super::cells::Cell;
use super::charset::Charset;
use super::dump::{Said, said};
use super::logged::{self, LoggedColumn};
use super::rows::{Image, image};
use super::shape::Layout;
use super::statements::{Effect, effects};
use mysql_async::binlog::events::{Event, EventData, FormatDescriptionEvent, TableMapEvent};
use mysql_async::binlog::{BinlogVersion, EventType};
use mysql_async::consts::ColumnType as Wire;
use proptest::prelude::*;

/// No value of a few bytes prints longer than this: all members of a set.
const LONGEST: usize = 1 << 15;

const KINDS: [Wire; 24] = [
    Wire::MYSQL_TYPE_TINY,
    Wire::MYSQL_TYPE_SHORT,
    Wire::MYSQL_TYPE_INT24,
    Wire::MYSQL_TYPE_LONG,
    Wire::MYSQL_TYPE_LONGLONG,
    Wire::MYSQL_TYPE_FLOAT,
    Wire::MYSQL_TYPE_DOUBLE,
    Wire::MYSQL_TYPE_YEAR,
    Wire::MYSQL_TYPE_NEWDATE,
    Wire::MYSQL_TYPE_DATE,
    Wire::MYSQL_TYPE_TIME2,
    Wire::MYSQL_TYPE_DATETIME2,
    Wire::MYSQL_TYPE_TIMESTAMP2,
    Wire::MYSQL_TYPE_NEWDECIMAL,
    Wire::MYSQL_TYPE_BIT,
    Wire::MYSQL_TYPE_ENUM,
    Wire::MYSQL_TYPE_SET,
    Wire::MYSQL_TYPE_STRING,
    Wire::MYSQL_TYPE_VARCHAR,
    Wire::MYSQL_TYPE_VAR_STRING,
    Wire::MYSQL_TYPE_BLOB,
    Wire::MYSQL_TYPE_GEOMETRY,
    Wire::MYSQL_TYPE_JSON,
    Wire::MYSQL_TYPE_NULL,
];

const DECLARED: [&str; 10] = [
    "int(11)",
    "bigint(20) unsigned zerofill",
    "decimal(65,30) zerofill",
    "binary(16)",
    "uuid",
    "inet4",
    "inet6",
    "enum('a','b')",
    "set('a','b','c')",
    "varchar(20)",
];

fn charset(which: usize) -> Charset {
    let single: Vec<String> = (0..=255u8).map(|b| char::from(b).to_string()).collect();
    [
        Charset::Binary,
        Charset::Utf8,
        Charset::Single(single.into()),
        Charset::Utf16,
        Charset::Utf16Le,
        Charset::Utf32,
    ][which]
        .clone()
}

/// Takes rows out of bytes until nothing more can be taken, and prints every value.
fn read_rows(layout: &Layout, present: &[bool], bytes: &[u8]) {
    let width = layout.places.iter().flatten().count();
    let (mut rest, mut rows) = (bytes, 0);
    while !rest.is_empty() && rows < 100 {
        let before = rest.len();
        let image: Image<'_> = match image(layout, width, present, &mut rest) {
            Ok(image) => image,
            Err(_) => return,
        };
        rows += 1;
        for (at, value) in image.into_iter().flatten().flatten() {
            let mut out = Vec::new();
            let printed = layout.cells[at].print(value, &mut out);
            assert!(printed.is_err() || out.len() <= LONGEST + 4 * value.len());
        }
        if rest.len() == before {
            return;
        }
    }
}

/// An event as it comes, after its header was made right.
fn event(kind: u8, data: &[u8]) -> Option<Event> {
    let mut bytes = 1_700_000_000u32.to_le_bytes().to_vec();
    bytes.push(kind);
    bytes.extend(1u32.to_le_bytes());
    bytes.extend((19 + data.len() as u32).to_le_bytes());
    bytes.extend(4u32.to_le_bytes());
    bytes.extend(0u16.to_le_bytes());
    bytes.extend(data);
    Event::read(&FormatDescriptionEvent::new(BinlogVersion::Version4), &bytes[..]).ok()
}

/// The description of a table with columns of every kind, and with all that the server may say of them.
fn description() -> Vec<u8> {
    let columns: [(Wire, &[u8]); 9] = [
        (Wire::MYSQL_TYPE_LONG, &[]),
        (Wire::MYSQL_TYPE_VARCHAR, &[80, 0]),
        (Wire::MYSQL_TYPE_NEWDECIMAL, &[10, 2]),
        (Wire::MYSQL_TYPE_DATETIME2, &[6]),
        (Wire::MYSQL_TYPE_TIME2, &[3]),
        (Wire::MYSQL_TYPE_BLOB, &[2]),
        (Wire::MYSQL_TYPE_BIT, &[1, 1]),
        (Wire::MYSQL_TYPE_STRING, &[0xf7, 1]),
        (Wire::MYSQL_TYPE_DOUBLE, &[8]),
    ];
    let mut data = vec![7, 0, 0, 0, 0, 0, 1, 0];
    for name in ["shop", "t"] {
        data.push(name.len() as u8);
        data.extend(name.as_bytes());
        data.push(0);
    }
    data.push(columns.len() as u8);
    data.extend(columns.iter().map(|(kind, _)| *kind as u8));
    let meta: Vec<u8> = columns.iter().flat_map(|(_, meta)| meta.iter().copied()).collect();
    data.push(meta.len() as u8);
    data.extend(meta);
    data.extend([0xff, 1]);
    let mut names = Vec::new();
    for at in 0..columns.len() {
        names.extend([2, b'c', b'0' + at as u8]);
    }
    let signs = vec![0b0100_0000];
    let collation = vec![45];
    let members = vec![2, 1, b'a', 1, b'b'];
    for (field, value) in [(1, signs), (2, collation), (4, names), (6, members)] {
        data.push(field);
        data.push(value.len() as u8);
        data.extend(value);
    }
    data
}

/// Rows of that table.
fn some_rows() -> Vec<u8> {
    let mut data = vec![7, 0, 0, 0, 0, 0, 1, 0, 9, 0xff, 1];
    for _ in 0..2 {
        data.extend([0, 0]);
        data.extend(42u32.to_le_bytes());
        data.extend([2, b'h', b'i']);
        data.extend([0x80, 0, 0, 5, 25]);
        data.extend([0x99, 0xb3, 0x04, 0x31, 0x05, 0, 0, 7]);
        data.extend([0x80, 0x10, 0x20, 0, 9]);
        data.extend([3, 0, b'a', b'b', b'c']);
        data.extend([1, 1]);
        data.push(2);
        data.extend(1.5f64.to_le_bytes());
    }
    data
}

fn layout(columns: &[LoggedColumn]) -> Layout {
    let cell = |(at, column): (usize, &LoggedColumn)| {
        let alone = column.column().and_then(|c| c.source_type);
        let declared = alone.as_deref().unwrap_or(DECLARED[at % DECLARED.len()]);
        Cell::new(column, "c", declared, charset(at % 6)).unwrap_or_else(|_| Cell::skipped(column))
    };
    let cells: Vec<Cell> = columns.iter().enumerate().map(cell).collect();
    // What is stepped over has no place.
    let mut next = 0..;
    let places = cells.iter().map(|c| if c.is_wanted() { next.next() } else { None });
    let places = places.collect();
    Layout { cells, places }
}

/// Reads everything of an event that a reader would, with the columns that were described before.
fn walk(event: &Event, described: &mut Vec<LoggedColumn>) {
    match said(event) {
        Ok(Said::Table) => {
            let Ok(table) = event.read_event::<TableMapEvent<'_>>() else {
                return;
            };
            if let Ok(columns) = logged::columns(&table) {
                assert!(columns.len() <= event.data().len());
                *described = columns;
            }
        }
        Ok(Said::Rows(_)) => {
            let Ok(Some(EventData::RowsEvent(rows))) = event.read_data() else {
                return;
            };
            if rows.num_columns() as usize != described.len() {
                return;
            }
            let layout = layout(described);
            for present in [rows.columns_before_image(), rows.columns_after_image()] {
                let present: Vec<bool> = present.into_iter().flat_map(|b| b.iter().by_vals()).collect();
                read_rows(&layout, &present, rows.rows_data());
            }
        }
        Ok(_) | Err(_) => {}
    }
}

/// Bytes with some of them changed, and cut off somewhere.
fn damaged(mut bytes: Vec<u8>, changes: &[(prop::sample::Index, u8)], cut: Option<prop::sample::Index>) -> Vec<u8> {
    for (at, value) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *value;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

#[test]
fn what_was_made_for_this_is_read() {
    let mut described = Vec::new();
    let table = event(EventType::TABLE_MAP_EVENT as u8, &description()).unwrap();
    walk(&table, &mut described);
    assert_eq!(described.len(), 9);
    assert_eq!(described[1].name.as_deref(), Some("c1"));
    let rows = event(EventType::WRITE_ROWS_EVENT_V1 as u8, &some_rows()).unwrap();
    let Ok(Some(EventData::RowsEvent(rows))) = rows.read_data() else {
        panic!("rows");
    };
    let layout = layout(&described);
    let mut data = rows.rows_data();
    for _ in 0..2 {
        image(&layout, 9, &[true; 9], &mut data).unwrap();
    }
    assert!(data.is_empty(), "{} bytes are left", data.len());
}

#[test]
fn what_may_change_rows_is_not_passed_over() {
    // LOAD DATA as a statement: who, how long, how the database is called; the file, and where the statement names it.
    let sql = "LOAD DATA INFILE 'x' INTO TABLE `t` (`a`)";
    let mut load = vec![0u8; 8];
    load.push(4);
    load.extend([0; 17]);
    load.extend(b"shop\0");
    load.extend(sql.as_bytes());
    let load = event(EventType::EXECUTE_LOAD_QUERY_EVENT as u8, &load).unwrap();
    let Ok(Said::Statement {
        effects,
        sql: found,
        schema,
    }) = said(&load)
    else {
        panic!("a statement");
    };
    assert_eq!(
        (effects, found.as_str(), schema.as_str()),
        (vec![Effect::Rows], sql, "shop")
    );
    let is_quiet = |kind: u8| matches!(said(&event(kind, &[0; 8]).unwrap()), Ok(Said::Other));
    for kind in [3, 5, 9, 13, 14, 17, 160, 161, 163] {
        assert!(is_quiet(kind), "{kind}");
    }
    // LOAD DATA of old servers, rows in parts and in other forms, and what nobody knows yet.
    for kind in [6, 10, 12, 20, 39, 40, 165, 171, 172, 255] {
        assert!(!is_quiet(kind), "{kind}");
    }
}

#[test]
fn an_alter_in_two_phases_counts_when_it_is_done() {
    let is_undone = |flags: u8, more: &[u8]| {
        let mut data = vec![0; 12];
        data.push(flags);
        data.extend(more);
        data.resize(40, 0);
        match said(&event(162, &data).unwrap()) {
            Ok(Said::Begin(group)) => group.undone,
            _ => panic!("a transaction begins"),
        }
    };
    let (standalone, group_commit, prepared) = (1 | 32, 1 | 2 | 32, 64);
    assert!(!is_undone(standalone, &[]));
    assert!(
        is_undone(standalone, &[2]) && is_undone(standalone, &[8]),
        "it begins, it failed"
    );
    assert!(
        !is_undone(standalone, &[4]) && !is_undone(standalone, &[1, 2]),
        "it is done"
    );
    assert!(is_undone(group_commit, &[0, 0, 0, 0, 0, 0, 0, 0, 2]));
    assert!(!is_undone(group_commit, &[2, 2, 2, 2, 2, 2, 2, 2, 4]));
    assert!(!is_undone(prepared, &[1, 0, 0, 0, 1, 1, 2, 2]));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(2000),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn values_of_any_bytes_never_panic(
        columns in prop::collection::vec((0..KINDS.len(), any::<[u8; 2]>(), 0..DECLARED.len(), 0..6usize, any::<Option<bool>>()), 1..6),
        members in prop::option::of(prop::collection::vec(any::<Vec<u8>>(), 0..80)),
        present in prop::collection::vec(any::<bool>(), 0..8),
        bytes in any::<Vec<u8>>(),
    ) {
        let mut layout = Layout { cells: Vec::new(), places: Vec::new() };
        let mut place = 0..;
        for (kind, meta, declared, texts, unsigned) in columns {
            let column = LoggedColumn {
                name: None,
                wire: KINDS[kind],
                meta,
                unsigned,
                collation: None,
                members: members.clone().map(Into::into),
            };
            let cell = Cell::new(&column, "c", DECLARED[declared], charset(texts));
            layout.places.push(if cell.is_ok() { place.next() } else { None });
            layout.cells.push(cell.unwrap_or_else(|_| Cell::skipped(&column)));
        }
        read_rows(&layout, &present, &bytes);
        read_rows(&layout, &vec![true; layout.cells.len()], &bytes);
    }

    #[test]
    fn events_of_any_bytes_never_panic(kind in any::<u8>(), known in any::<bool>(), data in any::<Vec<u8>>()) {
        let kinds = [2, 4, 18, 19, 23, 24, 25, 30, 31, 32, 162];
        let kind = if known { kinds[usize::from(kind) % kinds.len()] } else { kind };
        let mut described = Vec::new();
        if let Some(table) = event(EventType::TABLE_MAP_EVENT as u8, &description()) {
            walk(&table, &mut described);
        }
        if let Some(event) = event(kind, &data) {
            walk(&event, &mut described);
        }
    }

    #[test]
    fn damaged_descriptions_and_rows_never_panic(
        table in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        rows in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        cuts in any::<[Option<prop::sample::Index>; 2]>(),
        update in any::<bool>(),
    ) {
        let mut described = Vec::new();
        let table = damaged(description(), &table, cuts[0]);
        if let Some(table) = event(EventType::TABLE_MAP_EVENT as u8, &table) {
            walk(&table, &mut described);
        }
        let kind = if update { EventType::UPDATE_ROWS_EVENT_V1 } else { EventType::WRITE_ROWS_EVENT_V1 };
        if let Some(rows) = event(kind as u8, &damaged(some_rows(), &rows, cuts[1])) {
            walk(&rows, &mut described);
        }
    }

    #[test]
    fn statements_of_any_text_never_panic(
        words in prop::collection::vec(prop_oneof![
            "ALTER TABLE|CHANGE|RENAME|COLUMN|TO|DROP|ADD|SET STATEMENT|FOR|TRUNCATE|CREATE|REFERENCES|FOREIGN|ON DELETE CASCADE",
            "[`'\"(),./*!#\\-]{1,3}",
            "\\PC{0,6}",
        ], 0..12)
    ) {
        let text = words.join(" ");
        prop_assert!(effects(&text).len() <= text.len() + 2);
    }
}
