//! Records that end exactly where a page does.

use crate::wal::Wal;
use synctool_pgwal::{Decoder, Lsn, PAGE_SIZE};
use synctool_testkit::{PgVersion, Postgres};

fn lsn(text: &str) -> u64 {
    text.parse::<Lsn>().unwrap().0
}

/// Writes a record that ends at the next multiple of `border`; gives where it ends, as the server says it.
fn fill(server: &Postgres, border: u64) -> u64 {
    let page = PAGE_SIZE as u64;
    for _ in 0..100 {
        let at = lsn(&server.psql("SELECT pg_current_wal_insert_lsn()"));
        let end = (at / border + 1) * border;
        let headers = 24 * ((end - 1) / page - at / page);
        // The record's own header, that of its data, and what stands before the message.
        let length = match (end - at - headers).checked_sub(24 + 5 + 24 + 2) {
            Some(length) if length > 1000 => length,
            _ => 2000,
        };
        let emit = format!("SELECT pg_logical_emit_message(false, 'x', repeat('y', {length}))");
        if lsn(&server.psql(&emit)) == end {
            return end;
        }
    }
    panic!("something else is written all the time");
}

#[test]
fn a_record_that_ends_with_its_page_ends_where_the_server_says() {
    for border in [PAGE_SIZE as u64, 1 << 20] {
        let server = Postgres::builder(PgVersion::V18)
            .initdb("--wal-segsize=1")
            .setting("wal_keep_size", "1GB")
            .setting("autovacuum", "off")
            .start();
        let end = fill(&server, border);
        // The next one is not whole in the pages behind it.
        server.psql("SELECT pg_logical_emit_message(false, 'x', repeat('z', 100000))");
        let wal = Wal::of(&server);
        for pages in 0..4 {
            let until = (end - wal.start.0) as usize + pages * PAGE_SIZE;
            let mut decoder = Decoder::seek(wal.identity, wal.start);
            let mut feed = decoder.feed(wal.start, &wal.bytes[..until]).unwrap();
            while feed.next().unwrap().is_some() {}
            assert_eq!(decoder.position(), Lsn(end), "{pages} pages behind {border}");
            // Whoever begins there finds what comes.
            let mut again = Decoder::at(wal.identity, Lsn(end));
            let from = (end - wal.start.0) as usize;
            let mut feed = again.feed(Lsn(end), &wal.bytes[from..]).unwrap();
            let mut records = 0;
            while feed.next().unwrap().is_some() {
                records += 1;
            }
            assert!(records > 1);
            assert_eq!(again.position(), wal.end());
        }
    }
}
