//! The fragments of the brief, as printed, each merged into a complete pipeline, between real databases.

use super::*;

/// A place whose two databases are the datastores of the fragments.
fn ends(name: &str) -> (TestDb, TestDb, Place) {
    let (from, to) = (database(&format!("{name}_from")), database(&format!("{name}_to")));
    let place = Place::new(&[("source_db", postgres(&from)), ("dest_db", postgres(&to))]);
    (from, to, place)
}

fn rows_of(db: &TestDb, table: &str) -> String {
    db.psql(&format!(
        "SELECT string_agg(t::text, ';' ORDER BY t::text) FROM {table} t"
    ))
}

const USERS: &str = "CREATE TABLE users(id int PRIMARY KEY, name text, updated_at timestamp NOT NULL DEFAULT now());
    INSERT INTO users SELECT i, 'user ' || i, now() - interval '1 hour' - interval '1 minute' * i FROM generate_series(1, 1200) i";
const USERS_CHANGE: &str =
    "UPDATE users SET name = 'renamed', updated_at = now() WHERE id % 100 = 0; DELETE FROM users WHERE id = 7;
    INSERT INTO users VALUES (5000, 'new', now())";
const OF_USERS: &str =
    "source: {datastore: source_db, table: users}\ndestination: {datastore: dest_db, table: users}\n";

#[test]
fn hash_algorithms() {
    let (from, to, place) = ends("fragment_hash");
    from.psql(USERS);
    let fragment = include_str!("../config/brief/fragments/hash_algorithms.yaml");
    place.write("p.yaml", &format!("{OF_USERS}{fragment}"));
    place.json(&["run", "p.yaml"], 0);
    from.psql(USERS_CHANGE);
    let second = place.json(&["run", "p.yaml"], 0);
    assert_eq!(
        (&second["inserted"], &second["updated"], &second["deleted"]),
        (&1.into(), &12.into(), &1.into()),
        "{second}"
    );
    assert_eq!(rows_of(&from, "users"), rows_of(&to, "users"));
}

#[test]
fn resume_options() {
    let (from, to, place) = ends("fragment_resume");
    from.psql(USERS);
    let fragment = include_str!("../config/brief/fragments/resume_options.yaml");
    place.write("p.yaml", &format!("{OF_USERS}{fragment}"));
    place.json(&["run", "p.yaml"], 0);
    from.psql(&USERS_CHANGE.replace("DELETE FROM users WHERE id = 7;", ""));
    place.until(&["run", "p.yaml"], || rows_of(&to, "users"), &rows_of(&from, "users"));
}

#[test]
fn memory_issues() {
    let fragment = include_str!("../config/brief/fragments/memory_issues.yaml");
    let of_strategy: String = fragment.lines().map(|line| format!("    {line}\n")).collect();
    for said in [
        format!("{OF_USERS}{fragment}strategies: [{{name: s, type: full}}]\n"),
        format!("{OF_USERS}strategies:\n  - name: s\n    type: full\n{of_strategy}"),
    ] {
        let (from, to, place) = ends("fragment_memory");
        from.psql(USERS);
        place.write("p.yaml", &said);
        let run = place.json(&["run", "p.yaml"], 0);
        assert_eq!(run["inserted"], 1200, "{run}");
        assert_eq!(rows_of(&from, "users"), rows_of(&to, "users"));
    }
}

#[test]
fn audit_columns() {
    let (from, to, place) = ends("fragment_audit");
    from.psql(
        "CREATE TABLE products(product_id int PRIMARY KEY, name text, price numeric(10,2), category text, created_at timestamp,
             created_by text, last_viewed_at timestamp, view_count int);
         INSERT INTO products SELECT i, 'p' || i, i, 'c', now(), 'me', now(), 0 FROM generate_series(1, 300) i",
    );
    let fragment = include_str!("../config/brief/fragments/audit_columns.yaml");
    place.write(
        "p.yaml",
        &format!(
            "source: {{datastore: source_db, table: products}}\ndestination: {{datastore: dest_db, table: products}}\n{fragment}\n\
             strategies: [{{name: hash, type: hash}}]\n"
        ),
    );
    place.json(&["run", "p.yaml"], 0);
    assert_eq!(rows_of(&from, "products"), rows_of(&to, "products"));
    // Views alone cause no write; a price does, and takes the views along.
    from.psql("UPDATE products SET view_count = view_count + 1, last_viewed_at = now(), created_by = 'you'");
    let idle = place.json(&["run", "p.yaml"], 0);
    assert_eq!((&idle["updated"], &idle["inserted"]), (&0.into(), &0.into()), "{idle}");
    from.psql("UPDATE products SET price = price + 1 WHERE product_id = 9");
    let changed = place.json(&["run", "p.yaml"], 0);
    assert_eq!(changed["updated"], 1, "{changed}");
    let nine = "(SELECT * FROM products WHERE product_id = 9)";
    assert_eq!(rows_of(&from, nine), rows_of(&to, nine));
}

#[test]
fn column_level() {
    let (from, to, place) = ends("fragment_columns");
    from.psql(
        "CREATE TABLE users(user_id int PRIMARY KEY, name text, email text, last_login timestamp);
         INSERT INTO users SELECT i, 'n' || i, 'e' || i, now() FROM generate_series(1, 300) i",
    );
    let fragment = include_str!("../config/brief/fragments/column_level.yaml");
    let source = "- name: \"source_backend\"\n    datastore_name: source_db\n    table: users";
    let fragment = fragment.replace("- name: \"source_backend\"", source);
    let columns = ["user_id", "name", "email", "last_login"]
        .map(|c| format!("      - name: {c}\n"))
        .concat();
    place.write(
        "p.yaml",
        &format!(
            "{fragment}  - name: destination_backend\n    datastore_name: dest_db\n    table: users_copy\n    columns:\n{columns}      \
             - {{name: checksum, data_type: varchar, hash_key: true}}\nstrategies: [{{name: hash, type: hash}}]\n"
        ),
    );
    place.json(&["run", "p.yaml"], 0);
    let copied = "(SELECT user_id, name, email, last_login FROM users_copy)";
    assert_eq!(rows_of(&from, "users"), rows_of(&to, copied));
    assert_eq!(to.psql("SELECT count(DISTINCT checksum) FROM users_copy").trim(), "300");
    from.psql("UPDATE users SET last_login = now() + interval '1 day'");
    let idle = place.json(&["run", "p.yaml"], 0);
    assert_eq!(idle["updated"], 0, "{idle}");
    let before = to.psql("SELECT checksum FROM users_copy WHERE user_id = 5");
    from.psql("UPDATE users SET email = 'other' WHERE user_id = 5; DELETE FROM users WHERE user_id = 6");
    let changed = place.json(&["run", "p.yaml"], 0);
    assert_eq!(
        (&changed["updated"], &changed["deleted"]),
        (&1.into(), &1.into()),
        "{changed}"
    );
    let five = "SELECT checksum FROM users_copy WHERE user_id = 5 AND email = 'other'";
    assert_ne!(to.psql(five), before);
    assert_ne!(to.psql(five).trim(), "");
}

#[test]
fn nested_aggregates() {
    let db = database("fragment_nested");
    db.psql(
        "CREATE TABLE orders(order_id int PRIMARY KEY, user_id int NOT NULL, amount numeric(10,2), discount numeric(10,2),
             order_date timestamp NOT NULL, updated_at timestamp NOT NULL DEFAULT now());
         INSERT INTO orders SELECT i, i % 60, i, 1, timestamp '2024-01-29' + interval '1 hour' * i, now() - interval '1 hour'
             FROM generate_series(1, 150) i",
    );
    let text = include_str!("../config/brief/user_daily_orders_aggregate.yaml");
    let (before, rest) = text.split_once("strategies:").expect("strategies");
    let (_, after) = rest.split_once("backends:").expect("backends");
    let fragment = include_str!("../config/brief/fragments/nested_aggregates.yaml");
    let place = Place::new(&[("local_postgres", postgres(&db))]);
    place.write("p.yaml", &format!("{before}{fragment}\nbackends:{after}"));
    place.json(&["run", "p.yaml"], 0);
    let differ = "WITH wanted AS (SELECT user_id, order_date::date AS date, sum(amount) AS amount, sum(discount) AS discount,
            count(*)::int AS num_orders, max(updated_at) AS last_updated_at FROM orders GROUP BY 1, 2),
        found AS (SELECT user_id, date, amount, discount, num_orders, last_updated_at FROM analytics.user_daily_orders_aggregate)
        SELECT count(*) FROM ((TABLE wanted EXCEPT TABLE found) UNION ALL (TABLE found EXCEPT TABLE wanted)) d";
    assert_eq!(db.psql(differ).trim(), "0");
    db.psql(
        "UPDATE orders SET amount = amount + 1 WHERE order_id % 50 = 0; DELETE FROM orders WHERE order_id = 77;
         UPDATE orders SET user_id = 2000 WHERE order_id = 78",
    );
    place.json(&["run", "p.yaml"], 0);
    assert_eq!(db.psql(differ).trim(), "0");
}
