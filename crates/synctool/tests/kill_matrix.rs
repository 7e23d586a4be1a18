//! The whole program, killed with -9 (and stopped, and continued as a zombie) at every failpoint of a full sync, into
//! PostgreSQL and into SQLite. The next run must end with equal tables: rows are compared, not counts.

use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::process::Command;
use synctool_testkit::kill::{Action, Failpoint, KillRun, spread};
use synctool_testkit::{PgVersion, Postgres, TestDb, is_soak};
use tempfile::TempDir;

/// Kills per test, at least; four such tests make more than the two hundred that are promised.
fn kills() -> usize {
    if is_soak() { 1000 } else { 55 }
}

const ROWS: &str = "
    CREATE TABLE items(id bigint PRIMARY KEY, qty int, price numeric(12,2), note text, at timestamptz NOT NULL, blob bytea);
    INSERT INTO items SELECT i * 7, CASE WHEN i % 5 = 0 THEN NULL ELSE i END,
        CASE WHEN i % 11 = 0 THEN 'NaN' ELSE (i / 8.0)::numeric(12,2) END,
        CASE WHEN i % 3 = 0 THEN NULL WHEN i % 31 = 0 THEN '' ELSE E'näme\\t' || i END,
        timestamptz '2024-01-01 00:00:00.000001+00' + i * interval '1 minute',
        CASE WHEN i % 4 = 0 THEN decode(md5(i::text), 'hex') END
    FROM generate_series(1, 1200) i;";

const READ: &str = "SELECT coalesce(string_agg(concat_ws('|', id, coalesce(qty::text, '-'), coalesce(price::text, '-'),
    coalesce(note, '-'), at, coalesce(encode(blob, 'hex'), '-')), E'\\n' ORDER BY id), '') FROM";

/// A source database, a place for state, and a destination.
struct Stage {
    source: TestDb,
    place: TempDir,
    destination: End,
}

enum End {
    Postgres(TestDb),
    Sqlite(PathBuf),
}

impl Stage {
    fn new(version: PgVersion, sqlite: bool) -> Stage {
        let server = Postgres::shared(version);
        let source = server.database_from("kill", &server.template("kill_matrix", ROWS));
        let place = tempfile::tempdir().expect("a folder");
        let destination = match sqlite {
            true => End::Sqlite(place.path().join("copy.db")),
            false => End::Postgres(server.database("kill_to")),
        };
        let stage = Stage {
            source,
            place,
            destination,
        };
        let to = match &stage.destination {
            End::Postgres(db) => format!("{{type: postgres, connection: {{url: \"{}\"}}}}", db.url()),
            End::Sqlite(path) => format!("{{type: sqlite, connection: {{path: \"{}\"}}}}", path.display()),
        };
        let table = if sqlite { "items" } else { "public.items" };
        let pipeline = format!(
            "name: kill\ndatastores:\n  from: {{type: postgres, connection: {{url: \"{}\"}}}}\n  to: {to}\n\
             source: {{datastore: from, table: public.items}}\ndestination: {{datastore: to, table: {table}}}\n\
             partitioning: {{column: id, step: 500}}\nstrategies: [{{name: full, type: full, verify: hash}}]\n",
            stage.source.url()
        );
        std::fs::write(stage.place.path().join("kill.yaml"), pipeline).expect("written");
        stage
    }

    fn command(&self, data: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_synctool"));
        command
            .current_dir(self.place.path())
            .args(["run", "kill.yaml", "--output", "json", "--workers", "2"]);
        command.args(["--data-dir", data]);
        command
    }

    fn run(&self) -> KillRun {
        KillRun::new(&self.command("data"))
    }

    /// Makes everything as it was before the first run.
    fn reset(&self) {
        match &self.destination {
            End::Postgres(db) => {
                drop(db.psql("DROP TABLE IF EXISTS public.items; DROP SCHEMA IF EXISTS synctool CASCADE;"))
            }
            End::Sqlite(path) => {
                for suffix in ["", "-wal", "-shm", "-journal"] {
                    let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
                }
            }
        }
        for data in ["data", "other"] {
            let _ = std::fs::remove_dir_all(self.place.path().join(data));
        }
    }

    fn wanted(&self) -> String {
        self.source.psql(&format!("{READ} public.items"))
    }

    /// The destination's rows in the same form.
    fn found(&self) -> String {
        match &self.destination {
            End::Postgres(db) => db.psql(&format!("{READ} public.items")),
            End::Sqlite(path) => sqlite_rows(path),
        }
    }

    fn check(&self, case: &str) {
        let (wanted, found) = (self.wanted(), self.found());
        assert!(wanted.lines().count() == 1200, "the source is not what it should be");
        let different = wanted.trim().lines().zip(found.trim().lines()).find(|(w, f)| w != f);
        assert!(
            wanted.trim() == found.trim(),
            "{case}: the tables differ, first in {different:?}"
        );
        let left = match &self.destination {
            End::Postgres(db) => db.psql("SELECT count(*) FROM pg_tables WHERE tablename LIKE '\\_synctool\\_load%'"),
            End::Sqlite(path) => {
                let sql = "SELECT count(*) FROM sqlite_master WHERE name LIKE '\\_synctool\\_load%' ESCAPE '\\'";
                let count: i64 = Connection::open(path)
                    .expect("opens")
                    .query_row(sql, [], |r| r.get(0))
                    .expect("counts");
                count.to_string()
            }
        };
        assert_eq!(left.trim(), "0", "{case}: load tables are left");
    }
}

fn sqlite_rows(path: &Path) -> String {
    let connection = Connection::open(path).expect("the copy opens");
    let mut statement = connection
        .prepare("SELECT id, qty, price, note, at, CASE WHEN blob IS NULL THEN NULL ELSE lower(hex(blob)) END FROM items ORDER BY id")
        .expect("the copy is there");
    let cell = |row: &rusqlite::Row<'_>, i: usize| -> String {
        match row.get_ref(i).expect("a cell") {
            rusqlite::types::ValueRef::Null => "-".into(),
            rusqlite::types::ValueRef::Integer(n) => n.to_string(),
            rusqlite::types::ValueRef::Real(x) => x.to_string(),
            // SQLite's own date functions want the minutes of an offset.
            rusqlite::types::ValueRef::Text(t) if i == 4 => String::from_utf8_lossy(t).replace("+00:00", "+00"),
            rusqlite::types::ValueRef::Text(t) | rusqlite::types::ValueRef::Blob(t) => {
                String::from_utf8_lossy(t).into()
            }
        }
    };
    let rows = statement.query_map([], |row| Ok((0..6).map(|i| cell(row, i)).collect::<Vec<_>>().join("|")));
    rows.expect("readable")
        .map(|r| r.expect("a row"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Every kind of failpoint, and spread over the run; `part` takes every other one.
fn points(stage: &Stage, part: usize) -> Vec<Failpoint> {
    let all = stage.run().failpoints_reached();
    stage.check("undisturbed");
    assert!(all.len() > 100, "a full sync passes only {} failpoints", all.len());
    let mine: Vec<Failpoint> = all
        .into_iter()
        .enumerate()
        .filter(|(i, _)| i % 2 == part)
        .map(|(_, p)| p)
        .collect();
    // As few passes of each failpoint as make so many kills.
    let chosen = (2..=kills())
        .map(|most| spread(&mine, most))
        .find(|chosen| chosen.len() >= kills());
    chosen.unwrap_or(mine)
}

fn killed_everywhere(version: PgVersion, sqlite: bool, part: usize) {
    let stage = Stage::new(version, sqlite);
    let points = points(&stage, part);
    let mut killed = 0;
    for point in &points {
        stage.reset();
        let outcome = stage.run().accident(point, Action::Kill).run();
        killed += usize::from(outcome.killed);
        assert!(outcome.killed || outcome.code == Some(0), "{point}: {}", outcome.stderr);
        let again = stage.run().run();
        assert!(
            again.code == Some(0),
            "killed at {point}, the next run failed: {}",
            again.stderr
        );
        stage.check(&format!("killed at {point}"));
    }
    // Workers race, so a late pass of a failpoint may not come in every run.
    assert!(
        killed * 10 >= points.len() * 9,
        "only {killed} of {} kills struck",
        points.len()
    );
}

#[test]
fn into_postgres_first_half() {
    killed_everywhere(PgVersion::V15, false, 0);
}

#[test]
fn into_postgres_second_half() {
    killed_everywhere(PgVersion::V18, false, 1);
}

#[test]
fn into_sqlite_first_half() {
    killed_everywhere(PgVersion::V15, true, 0);
}

#[test]
fn into_sqlite_second_half() {
    killed_everywhere(PgVersion::V18, true, 1);
}

/// A writer that was stopped, lost its work to another process, and goes on: it must not do harm.
#[test]
fn a_zombie_does_no_harm() {
    let stage = Stage::new(PgVersion::V15, false);
    let names = [
        "engine.planned",
        "sink.recover.after",
        "sink.write",
        "engine.commit.before",
        "sink.commit.before",
        "seal.after",
        "publish.before",
    ];
    for name in names {
        stage.reset();
        let point = Failpoint {
            name: name.into(),
            nth: if name.starts_with("sink.") { 5 } else { 1 },
        };
        let mut zombie = stage.run().accident(&point, Action::Stop).start();
        zombie.wait_stopped();
        // Another host: its own state, the same pipeline, the same destination.
        let heir = KillRun::new(&stage.command("other")).run();
        assert!(
            heir.code == Some(0),
            "stopped at {point}, the heir failed: {}",
            heir.stderr
        );
        stage.check(&format!("zombie stopped at {point}"));
        zombie.resume();
        zombie.wait();
        stage.check(&format!("zombie continued at {point}"));
    }
}
