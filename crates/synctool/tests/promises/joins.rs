//! Deltas over joins: rows that lose their partner, and groups of joined rows.

use super::*;

const TABLES: &str = "CREATE TABLE customers(id int PRIMARY KEY, region text NOT NULL, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
    CREATE TABLE orders(id int PRIMARY KEY, customer_id int, v int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
    CREATE TABLE lines(id int PRIMARY KEY, order_id int NOT NULL, product int NOT NULL, qty int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
    INSERT INTO customers(id, region) SELECT i, 'r' || i % 5 FROM generate_series(1, 40) i;
    INSERT INTO orders(id, customer_id, v) SELECT i, i % 45, i FROM generate_series(1, 600) i;
    INSERT INTO lines(id, order_id, product, qty) SELECT i, i % 700, i % 23, i % 7 + 1 FROM generate_series(1, 1500) i";

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

struct Groups<'a> {
    from: &'a TestDb,
    to: &'a TestDb,
    place: Place,
    query: String,
}

impl Groups<'_> {
    fn wanted(&self) -> String {
        let query = &self.query;
        self.from.psql(&format!(
            "SELECT string_agg(concat_ws(' ', g, n, total), ', ' ORDER BY g) FROM ({query}) q"
        ))
    }

    fn follow(&self, what: &str, change: &str) {
        self.from.psql(change);
        let found = || {
            self.to
                .psql("SELECT string_agg(concat_ws(' ', g, n, total), ', ' ORDER BY g) FROM totals")
        };
        synctool_testkit::wait_for(what, std::time::Duration::from_secs(30), || {
            self.place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
            match found() == self.wanted() {
                true => Ok(()),
                false => Err(format!("{what}: found {}, wanted {}", found(), self.wanted())),
            }
        });
    }
}

fn groups<'a>(from: &'a TestDb, to: &'a TestDb, join: &str, group: &str, sum: &str, cursors: &str) -> Groups<'a> {
    from.psql(TABLES);
    let place = Place::new(&[("from", postgres(from)), ("to", postgres(to))]);
    let (table, rest) = join.split_once(' ').expect("a table and the rest");
    let (alias, on) = rest.split_once(" ON ").expect("a condition");
    place.write(
        "p.yaml",
        &format!(
            "name: p\nsource:\n{FROM}  joins: [{{table: {table}, alias: {alias}, on: {on}, type: inner}}]\n\
             destination: {{datastore: to, table: public.totals}}\nsync_type: aggregate\ngroup_by: [g]\ncolumns:\n  \
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
            "SELECT {group} AS g, count(*) AS n, sum({sum}) AS total FROM orders o JOIN {table} {alias} ON {on} GROUP BY 1"
        ),
    }
}

/// Each order has one customer: it moves with its own changes, with its customer's, and out of all groups.
#[test]
fn groups_of_a_partner_follow_both_ends() {
    let (from, to) = (database("regions_from"), database("regions_to"));
    let g = groups(
        &from,
        &to,
        "customers c ON o.customer_id = c.id",
        "c.region",
        "o.v",
        "{table: c, column: updated_at}",
    );
    g.follow("the first run", "SELECT 1");
    g.follow(
        "orders that move to another customer, to none and to one",
        "UPDATE orders SET customer_id = 1, updated_at = now() WHERE id < 30; UPDATE orders SET customer_id = 44, updated_at = now() WHERE id = 77;
         UPDATE orders SET customer_id = 2, updated_at = now() WHERE customer_id = 43",
    );
    g.follow(
        "customers that move to another region",
        "UPDATE customers SET region = 'r9', updated_at = now() WHERE id IN (3, 8)",
    );
    g.follow(
        "a customer that comes, and takes orders along",
        "INSERT INTO customers VALUES (44, 'r7', now())",
    );
    g.follow(
        "orders that are gone, with all of a group",
        "DELETE FROM orders WHERE id % 10 = 1; DELETE FROM orders WHERE customer_id IN (3, 8)",
    );
    g.follow(
        "orders that moved before",
        "UPDATE orders SET customer_id = 5, updated_at = now() WHERE id < 30 OR id = 77",
    );
    let idle = g.place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
    assert_eq!((&idle["read"], &idle["updated"]), (&0.into(), &0.into()), "{idle}");
    let mended = g.place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    let written = ["inserted", "updated", "deleted"].map(|k| mended[k].as_u64());
    assert_eq!(written, [Some(0); 3], "{mended}");
}

/// Each order has several lines, and so is in several groups.
#[test]
fn groups_of_several_partners_follow_the_row() {
    let (from, to) = (database("products_from"), database("products_to"));
    let g = groups(
        &from,
        &to,
        "lines l ON l.order_id = o.id",
        "l.product",
        "l.qty",
        "{table: l, column: updated_at}",
    );
    g.follow("the first run", "SELECT 1");
    g.follow(
        "lines that change and come",
        "UPDATE lines SET qty = qty + 1, updated_at = now() WHERE id % 50 = 1; UPDATE lines SET product = 40, updated_at = now() WHERE id % 50 = 2;
         INSERT INTO lines VALUES (9000, 5, 41, 1, now())",
    );
    g.follow(
        "lines that go with a change of their order",
        "DELETE FROM lines WHERE order_id % 20 = 3; UPDATE orders SET updated_at = now() WHERE id % 20 = 3",
    );
    g.follow(
        "lines that move between orders which both change",
        "UPDATE lines SET order_id = 12, product = 42 WHERE order_id = 11; UPDATE orders SET updated_at = now() WHERE id IN (11, 12)",
    );
    g.follow("orders that are gone", "DELETE FROM orders WHERE id % 7 = 2");
    g.from.psql("DELETE FROM lines WHERE product = 5");
    let told = g.place.json(&["plan", "p.yaml", "--strategy", "delta"], 0).to_string();
    assert!(
        told.contains("a row of l that was deleted"),
        "what it does not see: {told}"
    );
    g.place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    g.follow("nothing more", "SELECT 1");
}

#[test]
fn a_plan_says_which_tables_of_a_join_it_does_not_follow() {
    let (from, to) = (database("unfollowed_from"), database("unfollowed_to"));
    let g = groups(&from, &to, "customers c ON o.customer_id = c.id", "c.region", "o.v", "");
    g.follow("the first run", "SELECT 1");
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
