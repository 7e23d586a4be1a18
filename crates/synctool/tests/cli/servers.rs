//! PostgreSQL at either end, and what goes wrong there.

use crate::{Home, SECRET};
use std::time::Duration;
use synctool_testkit::{PgVersion, Postgres, psql_url, wait_for};

const ITEMS: &str = "
    CREATE TABLE items(id bigint PRIMARY KEY, name text NOT NULL, price double precision, note text);
    INSERT INTO items SELECT i, 'item ' || i, i / 8.0, CASE WHEN i % 3 = 0 THEN 'naïve 🎈' END FROM generate_series(1, 5000) i;";

#[test]
fn postgres_to_postgres_and_to_sqlite() {
    let server = Postgres::shared(PgVersion::V15);
    let (from, to) = (server.database("cli_from"), server.database("cli_to"));
    from.psql(ITEMS);
    let home = Home::new();
    let copy = ["copy", &from.url(), "items", &to.url(), "shop.items"];
    let (code, summary) = home.json(&copy);
    assert_eq!((code, summary["inserted"].as_u64()), (0, Some(5000)), "{summary}");
    let sum = "SELECT count(*), sum(hashtext(t::text)) FROM";
    assert_eq!(
        from.psql(&format!("{sum} items t")),
        to.psql(&format!("{sum} shop.items t"))
    );

    from.psql("UPDATE items SET note = 'x' WHERE id <= 10; DELETE FROM items WHERE id = 11");
    let (code, summary) = home.json(&[&copy[..], &["--full-mode", "upsert"]].concat());
    assert_eq!(code, 0, "{summary}");
    let counts = ["updated", "deleted", "unchanged"].map(|k| summary[k].as_u64());
    assert_eq!(counts, [10, 1, 4989].map(Some));

    home.run(&["copy", &from.url(), "public.items", "sqlite:to.db", "items"])
        .ok();
    assert_eq!(home.rows("to.db").len(), 4999);
    let (_, columns) = home.json(&["conns", "discover", &from.url(), "items"]);
    assert_eq!(columns[0]["type"], "bigint");
    home.run(&["doctor", &from.url()]).ok();
    home.run(&["init", &from.url(), "items", "sqlite:to.db", "copy", "--dir", "init"])
        .ok();
    home.run(&["run", "init/items.yaml"]).ok();
}

#[test]
fn a_wrong_password_names_the_user_and_not_the_password() {
    let server = Postgres::builder(PgVersion::V15).password("right").start();
    let home = Home::new();
    let url = server.admin_url().replace("right", SECRET);
    assert!(url.contains(SECRET), "the URL holds the password");
    let ran = home.run(&["copy", &url, "items", "sqlite:to.db"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("ST-AUT-001") && ran.stderr.contains("next:"),
        "{}",
        ran.stderr
    );
    home.run(&["doctor", &url]).fails(1, &[]);
    home.run(&["conns", "test", &url]).fails(1, &["ST-AUT-001"]);
    home.no_file_tells(&[]);
}

#[test]
fn nobody_listens() {
    let home = Home::new();
    home.items("from.db", 5);
    let url = "postgresql://u@127.0.0.1:1/d";
    home.run(&["copy", "sqlite:from.db", "items", url, "items"])
        .fails(5, &["127.0.0.1:1", "ST-NET-001"]);
    let (code, error) = home.json(&["conns", "test", url]);
    assert_eq!(
        (code, error[0]["error"]["code"].as_str()),
        (5, Some("ST-NET-001")),
        "{error}"
    );
}

#[test]
fn a_table_a_database_and_a_right_that_are_missing() {
    let server = Postgres::shared(PgVersion::V15);
    let from = server.database("cli_missing");
    from.psql(ITEMS);
    let home = Home::new();
    home.run(&["copy", &from.url(), "itms", "sqlite:to.db"])
        .fails(2, &["itms", "items", "ST-CFG-010"]);
    let wrong = from.url().replace(from.name(), "no_such_database");
    home.run(&["copy", &wrong, "items", "sqlite:to.db"])
        .fails(2, &["no_such_database", "ST-CFG-012"]);
    let role = format!("{}_poor", from.name());
    from.psql(&format!("CREATE ROLE {role} LOGIN"));
    let ran = home.run(&["copy", &from.url_as(&role), "items", "sqlite:to.db"]);
    let next = ran.stderr.contains("GRANT");
    from.psql(&format!("DROP ROLE {role}"));
    assert!(ran.code != 0 && next, "the grant is not named: {}", ran.stderr);
}

#[test]
fn the_brief_s_quick_start_runs_as_printed() {
    let server = Postgres::shared(PgVersion::V15);
    let db = server.database("cli_brief");
    db.psql(
        "CREATE TABLE users(id int PRIMARY KEY, name text, email varchar(200), updated_at timestamptz);
         INSERT INTO users SELECT i, 'n' || i, i || '@example.org', now() FROM generate_series(1, 100) i",
    );
    let home = Home::new();
    let store = |name: &str| {
        format!(
            "  {name}:\n    type: 'postgres'\n    url: {}\n",
            serde_json::Value::from(db.url())
        )
    };
    home.write(
        "datastores.yaml",
        &format!("datastores:\n{}{}", store("source_db"), store("dest_db")),
    );
    home.write(
        "pipelines/my_first_pipeline.yaml",
        include_str!("../config/brief/my_first_pipeline.yaml"),
    );
    let ran = home.run(&["run", "pipelines/my_first_pipeline.yaml"]).ok();
    assert!(!ran.stderr.contains("not in this version"), "{}", ran.stderr);
    assert_eq!(db.psql("SELECT count(*) FROM users_copy"), "100");
    let types = "SELECT string_agg(data_type, ',' ORDER BY ordinal_position) FROM information_schema.columns WHERE table_name = 'users_copy'";
    assert_eq!(db.psql(types), "integer,text,text,timestamp with time zone");
}

/// Both blocks of the Quick Start as they are printed, with the role, the password and the databases that they name; but for
/// the port, which is any here.
#[test]
fn the_brief_s_datastores_run_as_printed() {
    let server = Postgres::builder(PgVersion::V15).password("of the superuser").start();
    server.psql(
        "CREATE ROLE your_user LOGIN PASSWORD 'your_password';
         GRANT pg_read_all_stats TO your_user;
         CREATE DATABASE source_database OWNER your_user;
         CREATE DATABASE dest_database OWNER your_user;",
    );
    let port = server.port();
    let sql = |database: &str, sql: &str| {
        let url = format!("postgres://your_user:your_password@127.0.0.1:{port}/{database}");
        psql_url(&url, sql).expect(sql)
    };
    sql(
        "source_database",
        "CREATE TABLE users(id int PRIMARY KEY, name text, email text, updated_at timestamptz);
         INSERT INTO users SELECT i, 'n' || i, i || '@example.org', now() - interval '1 hour' FROM generate_series(1, 100) i",
    );
    let printed = include_str!("../config/brief/datastores.yaml");
    let stores = printed.replace("port: 5432", &format!("port: {port}"));
    let home = Home::new();
    home.write("datastores.yaml", &stores.replace("your_password", "another"))
        .write(
            "pipelines/my_first_pipeline.yaml",
            include_str!("../config/brief/my_first_pipeline.yaml"),
        );
    let run = ["run", "pipelines/my_first_pipeline.yaml"];
    home.run(&run).fails(1, &["ST-AUT-001"]);
    home.write("datastores.yaml", &stores).run(&run).ok();
    let sum = "SELECT md5(string_agg(concat_ws(',', id, name, email, updated_at), ';' ORDER BY id)) FROM";
    let (from, to) = (format!("{sum} users"), format!("{sum} users_copy"));
    assert_eq!(sql("dest_database", &to), sql("source_database", &from));
    sql(
        "source_database",
        "UPDATE users SET name = 'renamed', updated_at = now() WHERE id = 7;
         INSERT INTO users VALUES (101, 'new', NULL, now())",
    );
    // What was stamped just now settles when its margin has passed.
    wait_for("the changes", Duration::from_secs(30), || {
        home.run(&run).ok();
        sql("dest_database", &to) == sql("source_database", &from)
    });
}
