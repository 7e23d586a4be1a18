//! Deltas over joins: rows that lose their partner, and groups of joined rows.

use super::beside::ago;
use super::matrix::{End, folder};
use super::*;

const TABLES: &str = "CREATE TABLE customers(id int PRIMARY KEY, region text NOT NULL, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
    CREATE TABLE orders(id int PRIMARY KEY, customer_id int, v int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
    INSERT INTO customers(id, region) SELECT i, 'r' || i % 5 FROM generate_series(1, 40) i;
    INSERT INTO orders(id, customer_id, v) SELECT i, i % 45, i FROM generate_series(1, 600) i";

const FROM: &str = "  datastore: from\n  table: public.orders\n  alias: o\n";

/// The row's own cursor tells that it changed, and no longer has what the join wants.
#[test]
fn a_row_that_loses_its_partner_leaves() {
    for (how, filter) in [
        ("inner", ""),
        ("inner", "  filters: [o.v > 3]\n"),
        ("right", ""),
        ("left", ""),
    ] {
        let (from, to) = (database("partner_from"), database("partner_to"));
        from.psql(TABLES);
        // A right join shows partners without an order, which have no key.
        from.psql("DELETE FROM customers WHERE id NOT IN (SELECT customer_id FROM orders WHERE v > 3)");
        let place = Place::new(&[("from", postgres(&from)), ("to", postgres(&to))]);
        place.write(
            "p.yaml",
            &format!(
                "name: p\nsource:\n{FROM}  joins: [{{table: customers, alias: c, on: o.customer_id = c.id, type: {how}}}]\n{filter}\
                 destination: {{datastore: to, table: public.copies}}\nkey: [id]\ncolumns:\n  - {{source: o.id, dest: id}}\n  \
                 - {{source: o.v, dest: v}}\n  - {{source: c.region, dest: region}}\n\
                 strategies: [{{name: delta, type: delta, column: o.updated_at, margin: 1ms}}]\n"
            ),
        );
        let condition = match filter.is_empty() {
            true => "",
            false => "WHERE o.v > 3",
        };
        let rows =
            |from: &str| format!("SELECT md5(string_agg(concat_ws(' ', id, v, region), ',' ORDER BY id)) FROM {from}");
        let wanted = || {
            from.psql(&rows(&format!(
                "(SELECT o.id, o.v, c.region FROM orders o {how} JOIN customers c ON o.customer_id = c.id {condition}) j"
            )))
        };
        let found = || to.psql(&rows("copies"));
        place.json(&["run", "p.yaml"], 0);
        assert_eq!(found(), wanted(), "{how} {filter}");
        from.psql(
            "UPDATE orders SET customer_id = 44, updated_at = now() WHERE id IN (1, 2, 50); UPDATE orders SET customer_id = NULL, updated_at = now() WHERE id = 3;
             UPDATE orders SET customer_id = 7, updated_at = now() WHERE customer_id IN (0, 41); UPDATE orders SET v = v + 1, updated_at = now() WHERE id = 100;
             INSERT INTO orders VALUES (5000, 44, 5, now()), (5001, 3, 5, now())",
        );
        place.until(&["run", "p.yaml"], found, wanted().trim());
    }
}

struct Groups {
    from: End,
    to: End,
    place: Place,
    query: String,
}

const COLUMNS: &[&str] = &["g", "n", "total"];

impl Groups {
    fn follow(&self, what: &str, change: &str) {
        if !change.is_empty() {
            self.from.change(change);
        }
        let wanted = self.from.lines(&self.query, COLUMNS);
        synctool_testkit::wait_for(what, std::time::Duration::from_secs(30), || {
            self.place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
            let found = self.to.lines("totals", COLUMNS);
            match found == wanted {
                true => Ok(()),
                false => Err(format!("{what}: found {found}, wanted {wanted}")),
            }
        });
    }
}

/// Customers, their orders, and the items of these.
fn tables(end: &End) {
    let (text, stamp) = match end {
        End::Postgres(_) => ("text", "timestamptz"),
        End::Maria(_) => ("varchar(20)", "timestamp(6)"),
        _ => ("text", "timestamp"),
    };
    let at = ago(end, 60);
    let rows = |n: u32, row: &dyn Fn(u32) -> String| {
        let rows: Vec<String> = (1..=n).map(|i| format!("({i}, {}, {at})", row(i))).collect();
        rows.join(", ")
    };
    end.change(&format!(
        "CREATE TABLE customers(id int PRIMARY KEY, region {text} NOT NULL, updated_at {stamp} NOT NULL);
         CREATE TABLE orders(id int PRIMARY KEY, customer_id int, v int NOT NULL, updated_at {stamp} NOT NULL);
         CREATE TABLE items(id int PRIMARY KEY, order_id int NOT NULL, product int NOT NULL, qty int NOT NULL, updated_at {stamp} NOT NULL);
         INSERT INTO customers VALUES {};
         INSERT INTO orders VALUES {};
         INSERT INTO items VALUES {}",
        rows(40, &|i| format!("'r{}'", i % 5)),
        rows(600, &|i| format!("{}, {i}", i % 45)),
        rows(1500, &|i| format!("{}, {}, {}", i % 700, i % 23, i % 7 + 1)),
    ));
}

fn sources(name: &str) -> [End; 3] {
    [
        End::Postgres(database(name)),
        End::Maria(MariaDb::shared().database(name)),
        End::Sqlite(folder()),
    ]
}

fn groups(from: End, join: &str, group: &str, sum: &str, cursors: &str) -> Groups {
    tables(&from);
    let to = End::Postgres(database("joined_to"));
    let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
    let (table, rest) = join.split_once(' ').expect("a table and the rest");
    let (alias, on) = rest.split_once(" ON ").expect("a condition");
    place.write(
        "p.yaml",
        &format!(
            "name: p\nsource:\n  datastore: from\n  table: orders\n  alias: o\n  joins: [{{table: {table}, alias: {alias}, on: {on}, type: inner}}]\n\
             destination: {{datastore: to, table: totals}}\nsync_type: aggregate\ngroup_by: [g]\ncolumns:\n  \
             - {{source: {group}, dest: g}}\n  - {{dest: n, expr: count(*)}}\n  - {{dest: total, expr: sum({sum})}}\nstrategies:\n  \
             - {{name: delta, type: delta, column: o.updated_at, margin: 1ms, deletes: anti_join, cursor_tables: [{cursors}]}}\n  \
             - {{name: hash, type: hash}}\n"
        ),
    );
    Groups {
        from,
        to,
        place,
        query: format!(
            "(SELECT {group} AS g, count(*) AS n, sum({sum}) AS total FROM orders o JOIN {table} {alias} ON {on} GROUP BY {group}) q"
        ),
    }
}

/// Each order has one customer: it moves with its own changes, with its customer's, and out of all groups.
#[test]
fn groups_of_a_partner_follow_both_ends() {
    for from in sources("regions_from") {
        let g = groups(
            from,
            "customers c ON o.customer_id = c.id",
            "c.region",
            "o.v",
            "{table: c, column: updated_at}",
        );
        g.follow("the first run", "");
        g.follow(
        "orders that move to another customer, to none and to one",
        "UPDATE orders SET customer_id = 1, updated_at = NOW WHERE id < 30; UPDATE orders SET customer_id = 44, updated_at = NOW WHERE id = 77;
         UPDATE orders SET customer_id = 2, updated_at = NOW WHERE customer_id = 43",
    );
        g.follow(
            "customers that move to another region",
            "UPDATE customers SET region = 'r9', updated_at = NOW WHERE id IN (3, 8)",
        );
        g.follow(
            "a customer that comes, and takes orders along",
            "INSERT INTO customers VALUES (44, 'r7', NOW)",
        );
        g.follow(
            "orders that are gone, with all of a group",
            "DELETE FROM orders WHERE id % 10 = 1; DELETE FROM orders WHERE customer_id IN (3, 8)",
        );
        g.follow(
            "orders that moved before",
            "UPDATE orders SET customer_id = 5, updated_at = NOW WHERE id < 30 OR id = 77",
        );
        let idle = g.place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
        assert_eq!((&idle["read"], &idle["updated"]), (&0.into(), &0.into()), "{idle}");
        let mended = g.place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
        let written = ["inserted", "updated", "deleted"].map(|k| mended[k].as_u64());
        assert_eq!(written, [Some(0); 3], "{mended}");
    }
}

/// Each order has several items, and so is in several groups.
#[test]
fn groups_of_several_partners_follow_the_row() {
    for from in sources("products_from") {
        let g = groups(
            from,
            "items l ON l.order_id = o.id",
            "l.product",
            "l.qty",
            "{table: l, column: updated_at}",
        );
        g.follow("the first run", "");
        g.follow(
        "lines that change and come",
        "UPDATE items SET qty = qty + 1, updated_at = NOW WHERE id % 50 = 1; UPDATE items SET product = 40, updated_at = NOW WHERE id % 50 = 2;
         INSERT INTO items VALUES (9000, 5, 41, 1, NOW)",
    );
        g.follow(
            "lines that go with a change of their order",
            "DELETE FROM items WHERE order_id % 20 = 3; UPDATE orders SET updated_at = NOW WHERE id % 20 = 3",
        );
        g.follow(
        "lines that move between orders which both change",
        "UPDATE items SET order_id = 12, product = 42 WHERE order_id = 11; UPDATE orders SET updated_at = NOW WHERE id IN (11, 12)",
    );
        g.follow("orders that are gone", "DELETE FROM orders WHERE id % 7 = 2");
        g.from.change("DELETE FROM items WHERE product = 5");
        let told = g.place.json(&["plan", "p.yaml", "--strategy", "delta"], 0).to_string();
        assert!(
            told.contains("a row of l that was deleted"),
            "what it does not see: {told}"
        );
        g.place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
        g.follow("nothing more", "");
    }
}

#[test]
fn a_plan_says_which_tables_of_a_join_it_does_not_follow() {
    let from = End::Postgres(database("unfollowed_from"));
    let g = groups(from, "customers c ON o.customer_id = c.id", "c.region", "o.v", "");
    g.follow("the first run", "");
    let told = g.place.json(&["plan", "p.yaml", "--strategy", "delta"], 0).to_string();
    assert!(told.contains("changes of c alone are not seen"), "{told}");
    assert!(!told.contains("the source has no key"), "{told}");
}

/// What a delta does not see is said: a joined table without a cursor, rows that come later than their stamp.
#[test]
fn a_delta_says_what_it_does_not_see() {
    let db = database("unseen");
    db.psql(
        "CREATE TABLE customers(id int PRIMARY KEY, name text);
         CREATE TABLE orders(id int PRIMARY KEY, customer_id int, updated_at timestamptz NOT NULL DEFAULT now());",
    );
    let place = here(&db);
    let file = |more: &str| {
        format!(
            "name: p\nsource: {{datastore: from, table: public.orders, alias: o, joins: [{{table: public.customers, alias: c, on: c.id = o.customer_id}}]}}\n\
             destination: {{datastore: to, table: public.copies}}\nkey: [id]\ncolumns: [{{source: o.id, dest: id}}, {{source: c.name, dest: name}}, {{source: o.updated_at, dest: updated_at}}]\n\
             strategies:\n  - {{name: delta, type: delta, column: updated_at, stamped_by: app, lag: 1m}}\n{more}"
        )
    };
    place.write("p.yaml", &file(""));
    let told = place.json(&["plan", "p.yaml", "--strategy", "delta"], 0).to_string();
    for part in ["changes of c alone are not seen", "the application stamps the rows"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    place.write("p.yaml", &file("  - {name: hash, type: hash}\n"));
    let told = place.json(&["plan", "p.yaml", "--strategy", "delta"], 0).to_string();
    assert!(!told.contains("the application stamps the rows"), "{told}");
}
