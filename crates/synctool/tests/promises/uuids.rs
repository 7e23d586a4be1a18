//! Texts of uuids: 32 digits, or 36 characters with dashes.

use super::matrix::{End, folder};
use super::*;

const ONE: &str = "0b6cd1f4-92e5-4b1e-8f5a-0123456789ab";

fn digits(uuid: &str) -> String {
    uuid.replace('-', "")
}

fn uuid(i: u32) -> String {
    format!("{i:08x}{}", &ONE[8..])
}

/// From uuids and from texts in either form and any case, into every engine, by every strategy; a change is seen by its
/// key, also where the text is the key.
#[test]
fn uuids_become_texts_with_and_without_dashes() {
    for to in [
        End::Postgres(database("uuid_texts_to")),
        End::Maria(MariaDb::shared().database("uuid_texts_to")),
        End::Sqlite(folder()),
    ] {
        let db = database("uuid_texts_from");
        let place = Place::new(&[("from", postgres(&db)), ("to", to.entry())]);
        let rows: Vec<String> = (1..=40)
            .map(|i| {
                format!(
                    "('{}', '{}', '{}', {i}, now() - interval '1 hour')",
                    uuid(i),
                    digits(&uuid(i)).to_uppercase(),
                    uuid(i)
                )
            })
            .collect();
        db.psql(&format!(
            "CREATE TABLE items(id uuid PRIMARY KEY, bare text, dashed varchar(36), n int, at timestamptz);
             INSERT INTO items VALUES {}",
            rows.join(", ")
        ));
        place.write(
            "p.yaml",
            "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: copies}\nkey: [id]\ncolumns:\n  \
             - {source: id, data_type: uuid_text}\n  - {source: id, dest: id_dashed, data_type: uuid_text_dash}\n  \
             - {source: bare, data_type: uuid_text}\n  - {source: bare, dest: bare_dashed, data_type: uuid_text_dash}\n  \
             - {source: dashed, dest: dashed_bare, data_type: uuid_text}\n  - n\n  - at\n  - {source: null, dest: made, data_type: uuid_text}\n\
             transform: [{compute: {name: made, expression: dashed, data_type: uuid_text}}]\nstrategies:\n  \
             - {name: delta, type: delta, column: at, margin: 1ms}\n  - {name: hash, type: hash}\n  - {name: full, type: full, full_mode: upsert}\n",
        );
        let columns = ["n", "id", "id_dashed", "bare", "bare_dashed", "dashed_bare", "made"];
        let wanted = |these: &mut dyn Iterator<Item = u32>| {
            let row = |i: u32| {
                let (dashed, bare) = (uuid(i), digits(&uuid(i)));
                [
                    i.to_string(),
                    bare.clone(),
                    dashed.clone(),
                    bare.clone(),
                    dashed,
                    bare.clone(),
                    bare,
                ]
                .join(" ")
            };
            these.map(row).collect::<Vec<_>>().join("\n")
        };
        place.json(&["run", "p.yaml"], 0);
        assert_eq!(to.lines("copies", &columns), wanted(&mut (1..=40)));
        place.json(&["verify", "p.yaml"], 0);
        db.psql("DELETE FROM items WHERE n <= 3");
        for strategy in ["hash", "full"] {
            place.json(&["run", "p.yaml", "--strategy", strategy], 0);
            assert_eq!(to.lines("copies", &columns), wanted(&mut (4..=40)), "{strategy}");
        }
        db.psql(&format!(
            "INSERT INTO items VALUES ('{}', '{}', '{}', 41, now())",
            uuid(41),
            uuid(41),
            digits(&uuid(41))
        ));
        place.until(
            &["run", "p.yaml", "--strategy", "delta"],
            || to.lines("copies", &columns),
            &wanted(&mut (4..=41)),
        );
        place.json(&["verify", "p.yaml"], 0);
    }
}

/// The types of the destination are those of the original.
#[test]
fn the_columns_are_as_wide_as_the_texts() {
    let db = database("uuid_text_types");
    db.psql(&format!(
        "CREATE TABLE items(id int PRIMARY KEY, u uuid); INSERT INTO items VALUES (1, '{ONE}')"
    ));
    let place = here(&db);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: copies}\ncolumns:\n  - id\n  \
         - {source: u, data_type: uuid_text}\n  - {source: u, dest: d, data_type: uuid_text_dash}\nstrategies: [{type: full}]\n",
    );
    place.json(&["run", "p.yaml"], 0);
    let widths = "SELECT string_agg((atttypmod - 4)::text, ',' ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = 'copies'::regclass AND attname IN ('u', 'd')";
    assert_eq!(db.psql(widths).trim(), "32,36");
}

/// A text that is no uuid is a row that is put aside.
#[test]
fn what_is_no_uuid_is_rejected() {
    let db = database("uuid_text_rejects");
    db.psql(&format!(
        "CREATE TABLE items(id int PRIMARY KEY, u text); INSERT INTO items VALUES (1, '{ONE}'), (2, 'no uuid'), (3, '{}0'), (4, NULL)", digits(ONE)
    ));
    let place = here(&db);
    for (cast, columns) in [
        ("", "[id, {source: u, data_type: uuid_text}]"),
        ("", "[id, {source: u, data_type: uuid_text_dash}]"),
        ("transform: [{cast: {u: uuid_text}}]\n", "[id, u]"),
        ("transform: [{cast: {u: uuid_text_dash}}]\n", "[id, u]"),
    ] {
        db.psql("DROP TABLE IF EXISTS copies; DROP SCHEMA IF EXISTS synctool CASCADE");
        let pipeline = |limit: u32| {
            format!(
                "name: p\nsource: {{datastore: from, table: items}}\ndestination: {{datastore: to, table: copies}}\nkey: [id]\n\
                 columns: {columns}\n{cast}write: {{reject_limit: {limit}}}\nstrategies: [{{type: full}}]\n"
            )
        };
        place.write("p.yaml", &pipeline(1));
        let failed = place.synctool(&["run", "p.yaml"]);
        let told = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(
            !failed.status.success() && told.contains("reject") && !told.contains("no uuid"),
            "{told}"
        );
        place.write("p.yaml", &pipeline(2));
        place.json(&["run", "p.yaml", "--restart"], 0);
        let wanted = match columns.contains("dash") || cast.contains("dash") {
            true => ONE.to_owned(),
            false => digits(ONE),
        };
        assert_eq!(
            db.psql("SELECT string_agg(concat_ws(' ', id, u), ',' ORDER BY id) FROM copies")
                .trim(),
            format!("1 {wanted},4"),
            "{columns} {cast}"
        );
        let reasons = db.psql("SELECT string_agg(DISTINCT reason || ' ' || column_name, ',') FROM synctool.rejects");
        assert_eq!(reasons.trim(), "bad_cast u", "{columns} {cast}");
    }
}

/// The original made CHAR(32) and CHAR(36): such tables are filled and compared as they are.
#[test]
fn columns_of_the_original_are_taken_as_they_are() {
    for to in [
        End::Postgres(database("uuid_chars_to")),
        End::Maria(MariaDb::shared().database("uuid_chars_to")),
    ] {
        let db = database("uuid_chars_from");
        db.psql(&format!(
            "CREATE TABLE items(id int PRIMARY KEY, u uuid); INSERT INTO items VALUES (1, '{ONE}'), (2, '{}')",
            uuid(2)
        ));
        to.change("CREATE TABLE copies(id int PRIMARY KEY, u char(32), d char(36))");
        let place = Place::new(&[("from", postgres(&db)), ("to", to.entry())]);
        place.write(
            "p.yaml",
            "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: copies}\ncolumns:\n  - id\n  \
             - {source: u, data_type: uuid_text}\n  - {source: u, dest: d, data_type: uuid_text_dash}\n\
             strategies: [{name: full, type: full, full_mode: upsert}, {name: hash, type: hash}]\n",
        );
        let wanted = format!("1 {} {ONE}\n2 {} {}", digits(ONE), digits(&uuid(2)), uuid(2));
        for strategy in ["full", "hash"] {
            place.json(&["run", "p.yaml", "--strategy", strategy], 0);
            assert_eq!(to.lines("copies", &["id", "u", "d"]), wanted, "{strategy}");
            place.json(&["verify", "p.yaml"], 0);
            to.change("DELETE FROM copies WHERE id = 2");
        }
    }
}
