//! Every pipeline of `examples/configs`, run as it stands: what it writes is what its description says.

use super::*;
use std::path::Path;

const CONFIGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/configs");

/// The examples in a folder of their own, and the variables that their datastores name set to a database.
fn examples(db: &TestDb) -> Place {
    let mut place = Place::new(&[]);
    copy(Path::new(CONFIGS), &place.path().join("configs"));
    point_to(&mut place, "PG", db);
    place.env("REDIS_URL", Redis::shared().url());
    place
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the folder");
    for entry in std::fs::read_dir(from).expect("the examples").flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(std::fs::copy(&path, &target).expect("copied")),
        }
    }
}

/// Sets `PREFIXHOST` and its fellows.
fn point_to(place: &mut Place, prefix: &str, db: &TestDb) {
    let url = db.url();
    let (server, database) = url
        .strip_prefix("postgres://postgres@")
        .and_then(|rest| rest.split_once('/'))
        .expect("a url");
    let (host, port) = server.rsplit_once(':').expect("a port");
    place
        .env(&format!("{prefix}HOST"), host)
        .env(&format!("{prefix}PORT"), port)
        .env(&format!("{prefix}DATABASE"), database);
}

#[test]
fn every_example_is_run_here() {
    let text = include_str!("examples.rs");
    let mut count = 0;
    for folder in ["", "pipelines"] {
        for entry in std::fs::read_dir(Path::new(CONFIGS).join(folder))
            .expect("the examples")
            .flatten()
        {
            let name = entry.file_name().into_string().expect("a name");
            if !name.ends_with(".yaml") || name == "datastores.yaml" {
                continue;
            }
            let path = if folder.is_empty() {
                name
            } else {
                format!("{folder}/{name}")
            };
            assert!(
                text.contains(&format!("\"configs/{path}\"")),
                "no test here runs {path}"
            );
            count += 1;
        }
    }
    assert!(count > 10, "{count} examples");
}

const USERS: &str = "CREATE TABLE users(id int PRIMARY KEY, first_name text, last_name text, status text,
        updated_at timestamp NOT NULL DEFAULT now());
    CREATE TABLE user_profiles(user_id int PRIMARY KEY, email text);
    INSERT INTO users SELECT i, 'first' || i, 'last' || i, CASE WHEN i % 3 = 0 THEN 'idle' ELSE 'active' END,
        now() - interval '1 hour' FROM generate_series(1, 300) i;
    INSERT INTO user_profiles SELECT i, 'user' || i || '@x.io' FROM generate_series(1, 300) i WHERE i % 5 <> 0";

#[test]
fn rows_with_columns_of_another_table() {
    let db = database("example_rows");
    db.psql(USERS);
    let place = examples(&db);
    let file = "configs/pipelines/postgres_postgres.yaml";
    let first = place.json(&["run", file], 0);
    assert_eq!(first["inserted"], 300, "{first}");
    let source = "SELECT md5(string_agg(concat_ws('|', u.id, u.updated_at, u.first_name || ' ' || u.last_name,
        coalesce(p.email, '-'), u.status), ',' ORDER BY u.id)) FROM users u LEFT JOIN user_profiles p ON u.id = p.user_id";
    let copy =
        "SELECT md5(string_agg(concat_ws('|', user_id, source_updated_at, name, coalesce(email, '-'), status), ','
        ORDER BY user_id)) FROM public_copy.user_profile";
    assert_eq!(db.psql(copy), db.psql(source));
    // The checksum is the hash of the documented form of the row.
    let wrong = "SELECT count(*) FROM public_copy.user_profile WHERE checksum IS DISTINCT FROM md5(user_id || ','
        || coalesce(octet_length(email) || ':' || email, '~') || octet_length(name) || ':' || name
        || (extract(epoch FROM source_updated_at) * 1000000)::bigint || ',' || octet_length(status) || ':' || status)";
    assert_eq!(db.psql(wrong).trim(), "0");
    db.psql(
        "UPDATE users SET last_name = 'changed', updated_at = now() WHERE id = 7;
         INSERT INTO users VALUES (301, 'new', 'comer', 'active')",
    );
    place.until(
        &["run", file, "--strategy", "delta"],
        || db.psql(copy),
        db.psql(source).trim(),
    );
    assert_eq!(db.psql(wrong).trim(), "0", "the checksum follows the row");
    // What no delta sees, the hash strategy does.
    db.psql("DELETE FROM users WHERE id = 9; UPDATE user_profiles SET email = 'moved@x.io' WHERE user_id = 11");
    let mended = place.json(&["run", file, "--strategy", "hash"], 0);
    assert_eq!(
        (&mended["deleted"], &mended["updated"]),
        (&1.into(), &1.into()),
        "{mended}"
    );
    assert_eq!(db.psql(copy), db.psql(source));
    assert_eq!(db.psql(wrong).trim(), "0");
    place.json(&["verify", file], 0);
    place.json(&["run", file, "--strategy", "full"], 0);
    assert_eq!(db.psql(copy), db.psql(source));
}

#[test]
fn rows_joined_on_the_way() {
    let db = database("example_join");
    db.psql(
        "CREATE TABLE users(id int PRIMARY KEY, first_name text, last_name text);
         INSERT INTO users VALUES (1, 'Ada', 'Byron'), (2, 'Alan', 'Turing');
         CREATE TABLE products(id int PRIMARY KEY, name text);
         INSERT INTO products VALUES (10, 'lamp'), (11, 'desk');
         CREATE TABLE product_prices(product_id int, price numeric(10,2), starts_at timestamp, ends_at timestamp);
         INSERT INTO product_prices VALUES (10, 5, '2024-01-01', '2024-02-01'), (10, 6, '2024-02-01', NULL), (11, 70, '2024-01-01', NULL);
         CREATE TABLE orders(id int PRIMARY KEY, order_date timestamp NOT NULL, user_id int, product_id int,
             amount numeric(15,2), deleted boolean NOT NULL DEFAULT false, updated_at timestamp NOT NULL DEFAULT now());
         INSERT INTO orders(id, order_date, user_id, product_id, amount, deleted, updated_at) VALUES
             (1, '2024-01-15', 1, 10, 50, false, now() - interval '1 hour'),
             (2, '2024-02-01', 2, 10, 60, false, now() - interval '1 hour'),
             (3, '2024-01-20', 9, 11, 70, false, now() - interval '1 hour'),
             (4, '2024-01-20', 1, 99, 80, false, now() - interval '1 hour'),
             (5, '2024-01-20', 1, 11, 90, true, now() - interval '1 hour')",
    );
    let place = examples(&db);
    let file = "configs/pipelines/postgres_postgres_join.yaml";
    place.json(&["run", file, "--strategy", "delta"], 0);
    let rows = || {
        db.psql(
            "SELECT string_agg(concat_ws(' ', order_id, coalesce(user_name, '-'), product_name, list_price, amount), ', ' ORDER BY order_id)
             FROM public_copy.orders_enriched",
        )
    };
    // Without a user the order stays (left), without a product it does not (inner); the price is that of the day.
    assert_eq!(
        rows().trim(),
        "1 Ada Byron lamp 5.00 50.00, 2 Alan Turing lamp 6.00 60.00, 3 - desk 70.00 70.00"
    );
    // md5_sum_hash: the first 32 bits as a number; the user's own hash is that of its two names.
    let kept = db.psql(
        "SELECT count(*) FROM public_copy.orders_enriched WHERE order_hash BETWEEN 0 AND 4294967295
           AND user_hash IS NOT DISTINCT FROM (SELECT md5(octet_length(first_name) || ':' || first_name || octet_length(last_name)
             || ':' || last_name) FROM users WHERE id = user_id)",
    );
    assert_eq!(kept.trim(), "3");
    db.psql("UPDATE orders SET deleted = true, updated_at = now() WHERE id = 1");
    place.until(
        &["run", file, "--strategy", "delta"],
        rows,
        "2 Alan Turing lamp 6.00 60.00, 3 - desk 70.00 70.00",
    );
    let count = "return #redis.call('keys', 'synctool:orders:user:*')";
    let cached = Redis::shared().command(&["EVAL", count, "0"]);
    assert_ne!(cached, "0", "the users are cached in Redis");
}

const SALES: &str = "CREATE TABLE orders(order_id int PRIMARY KEY, user_id int NOT NULL, amount numeric(12,2),
        order_date timestamp NOT NULL, updated_at timestamp NOT NULL DEFAULT now());
    INSERT INTO orders SELECT i, i % 17, i, timestamp '2024-01-01' + interval '1 hour' * (i % 700), now() - interval '1 hour'
        FROM generate_series(1, 2000) i";

fn aggregate_example(file: &str, table: &str) {
    let db = database("example_groups");
    db.psql(SALES);
    let place = examples(&db);
    let wanted = || {
        db.psql(
            "SELECT md5(string_agg(concat_ws('|', user_id, date, n, amount, last), ',' ORDER BY user_id, date)) FROM
             (SELECT user_id, order_date::date AS date, count(*) n, sum(amount) amount, max(updated_at) last FROM orders GROUP BY 1, 2) g",
        )
    };
    let found = || {
        db.psql(&format!(
            "SELECT md5(string_agg(concat_ws('|', user_id, date, num_orders, amount, last_updated_at), ',' ORDER BY user_id, date))
             FROM analytics.{table}"
        ))
    };
    place.json(&["run", file, "--strategy", "delta"], 0);
    assert_eq!(found(), wanted());
    let hashed = db.psql(&format!(
        "SELECT count(*) FILTER (WHERE checksum_int IS NULL OR checksum_int NOT BETWEEN 0 AND 4294967295) FROM analytics.{table}"
    ));
    assert_eq!(hashed.trim(), "0", "each group has its hash");
    db.psql(
        "UPDATE orders SET amount = amount + 1, updated_at = now() WHERE order_id % 100 = 1;
         UPDATE orders SET user_id = 3, updated_at = now() WHERE order_id % 100 = 2;
         INSERT INTO orders VALUES (5000, 99, 1, '2024-05-05')",
    );
    place.until(&["run", file, "--strategy", "delta"], found, wanted().trim());
    // Every order of two groups goes: the nightly comparison sees it.
    db.psql("DELETE FROM orders WHERE user_id = 99 OR order_id < 20");
    place.json(&["run", file, "--strategy", "hash"], 0);
    assert_eq!(found(), wanted());
    // The full run up to a day mends what lies before it and leaves later days alone.
    db.psql(
        "INSERT INTO orders VALUES (5001, 98, 1, '2025-10-05'); INSERT INTO orders VALUES (5002, 3, 1, '2025-10-05')",
    );
    place.until(&["run", file, "--strategy", "delta"], found, wanted().trim());
    db.psql("UPDATE orders SET amount = 0 WHERE order_id % 100 = 30");
    place.json(&["run", file, "--strategy", "full_till_date"], 0);
    assert_eq!(found(), wanted());
}

#[test]
fn groups_in_windows_of_a_month() {
    aggregate_example(
        "configs/pipelines/postgres_postgres_aggregate_bounded.yaml",
        "user_daily_orders_bounded",
    );
}

#[test]
fn groups_compared_month_by_month() {
    aggregate_example(
        "configs/pipelines/postgres_postgres_aggregate_nested.yaml",
        "user_daily_orders_nested",
    );
}

#[test]
fn rows_with_a_checksum() {
    let db = database("example_checksum");
    db.psql(
        "CREATE TABLE users(id int PRIMARY KEY, first_name varchar(50), last_name varchar(50), status varchar(20), last_login timestamp);
         INSERT INTO users SELECT i, 'f' || i, 'l' || i, 'new', now() FROM generate_series(1, 1000) i;",
    );
    let place = examples(&db);
    let file = "configs/pipelines/postgres_postgres_md5sum.yaml";
    let first = place.json(&["run", file], 0);
    assert_eq!(first["inserted"], 1000, "{first}");
    let wrong = "SELECT count(*) FROM public_copy.user_checksums WHERE checksum_int IS DISTINCT FROM
        ('x' || left(md5(user_id || ',' || octet_length(name) || ':' || name || octet_length(status) || ':' || status), 8))::bit(32)::bigint";
    let negative = "SELECT count(*) FROM public_copy.user_checksums WHERE checksum_int < 0";
    let as_unsigned = wrong.replace("::bit(32)::bigint", "::bit(32)::bigint & 4294967295");
    assert_eq!((db.psql(&as_unsigned).trim(), db.psql(negative).trim()), ("0", "0"));
    // A login counts for nothing, a status does, and then the row is written whole.
    db.psql("UPDATE users SET last_login = now() + interval '1 day'; UPDATE users SET status = 'old' WHERE id <= 3");
    let second = place.json(&["run", file], 0);
    assert_eq!(
        (&second["updated"], &second["read"]),
        (&3.into(), &3.into()),
        "{second}"
    );
    assert_eq!(db.psql(&as_unsigned).trim(), "0");
    let late = db.psql("SELECT count(*) FROM public_copy.user_checksums WHERE last_login > now() + interval '1 hour'");
    assert_eq!(late.trim(), "3", "rows that are written are written whole");
}

/// The lake is read by copying it back: every row of the files, as a table.
fn users_in_files(file: &str, db: &TestDb, place: &Place) {
    let wanted = || {
        db.psql(
            "SELECT string_agg(concat_ws('|', u.id, u.updated_at, p.age, coalesce('abc' || p.user_segment, '-'), coalesce(p.country, '-')), ','
             ORDER BY u.id) FROM users u LEFT JOIN user_profiles p ON u.id = p.user_id WHERE u.status = 'active'",
        )
    };
    let found = || {
        db.psql("DROP TABLE IF EXISTS back");
        let copied = place.synctool(&[
            "copy",
            "parquet:configs/lake",
            "users",
            &db.url(),
            "public.back",
            "--key",
            "user_id",
        ]);
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        db.psql(
            "SELECT string_agg(concat_ws('|', user_id, last_modified_at, user_age_str, coalesce(segment, '-'), coalesce(country, '-')), ','
             ORDER BY user_id) FROM back",
        )
    };
    let first = place.json(&["run", file], 0);
    assert_eq!(first["inserted"], 200, "{first}");
    assert_eq!(found(), wanted());
    db.psql(
        "UPDATE users SET status = 'idle', updated_at = now() WHERE id = 1; UPDATE user_profiles SET country = 'changed' WHERE user_id = 2;
         UPDATE users SET updated_at = now() WHERE id = 2; UPDATE users SET status = 'active', updated_at = now() WHERE id = 3;
         INSERT INTO users VALUES (301, 'active')",
    );
    place.until(&["run", file], found, wanted().trim());
}

#[test]
fn a_delta_into_files() {
    let db = database("example_files_delta");
    db.psql(PROFILED);
    let mut place = examples(&db);
    point_to(&mut place, "SOURCE_", &db);
    users_in_files("configs/postgres_to_files_delta_sync.yaml", &db, &place);
}

#[test]
fn a_comparison_with_files() {
    let db = database("example_files_hash");
    db.psql(PROFILED);
    let mut place = examples(&db);
    point_to(&mut place, "SOURCE_", &db);
    let file = "configs/postgres_to_files_hash_sync.yaml";
    users_in_files(file, &db, &place);
    // What no delta would see.
    db.psql("DELETE FROM users WHERE id = 4");
    let mended = place.json(&["run", file], 0);
    assert_eq!(
        (&mended["deleted"], &mended["updated"]),
        (&1.into(), &0.into()),
        "{mended}"
    );
    place.json(&["verify", file], 0);
}

const PROFILED: &str = "CREATE TABLE users(id int PRIMARY KEY, status text, updated_at timestamp NOT NULL DEFAULT now());
    CREATE TABLE user_profiles(user_id int PRIMARY KEY, age int, user_segment text, country text);
    INSERT INTO users SELECT i, CASE WHEN i % 3 = 0 THEN 'idle' ELSE 'active' END, now() - interval '1 hour' FROM generate_series(1, 300) i;
    INSERT INTO user_profiles SELECT i, 20 + i % 50, 'segment ' || i % 4, 'country ' || i % 7 FROM generate_series(1, 300) i WHERE i % 5 <> 0";

#[test]
fn what_needs_an_object_store_or_starrocks_says_so() {
    let db = database("example_later");
    let place = examples(&db);
    for file in [
        "configs/postgres_to_s3_delta_sync.yaml",
        "configs/postgres_to_s3_hash_sync.yaml",
        "configs/pipelines/postgres_starrocks.yaml",
    ] {
        let refused = place.synctool(&["run", file]);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{file}: {told}");
        assert!(told.contains("not in this version yet"), "{file}: {told}");
    }
}

#[test]
fn most_of_what_the_current_form_can_say() {
    let (from, to, profiles) = (
        database("example_all_from"),
        database("example_all_to"),
        database("example_all_prof"),
    );
    from.psql(
        "CREATE TABLE customers(id int PRIMARY KEY, name varchar(100), updated_at timestamptz NOT NULL);
         CREATE TABLE orders(id int PRIMARY KEY, order_date timestamptz NOT NULL, total numeric(10,2), customer_id int, region text,
             viewed_at timestamptz, updated_at timestamptz NOT NULL, deleted_at timestamptz);
         INSERT INTO customers SELECT i, 'name ' || i, now() - interval '1 hour' FROM generate_series(1, 10) i;
         INSERT INTO orders SELECT i, now() - interval '1 day' * (i % 20), i * 10, i % 11, CASE WHEN i % 4 = 0 THEN 'asia' ELSE 'eu' END,
             now(), now() - interval '1 hour', CASE WHEN i % 10 = 1 THEN now() END FROM generate_series(1, 200) i",
    );
    profiles.psql(
        "CREATE TABLE customer_segments(customer_id int PRIMARY KEY, segment text, score int);
         INSERT INTO customer_segments SELECT i, 'segment ' || i % 3, i FROM generate_series(1, 8) i",
    );
    let mut place = examples(&from);
    point_to(&mut place, "SOURCE_", &from);
    point_to(&mut place, "DEST_", &to);
    point_to(&mut place, "PROFILE_", &profiles);
    let file = "configs/enhanced_pipeline_example.yaml";
    let wanted = || {
        from.psql(
            "SELECT string_agg(concat_ws('|', o.id, o.total, round(o.total * 1.19, 2), coalesce(c.name, '-'),
               CASE WHEN c.id <= 8 THEN 'segment ' || c.id % 3 ELSE '-' END), ',' ORDER BY o.id)
             FROM orders o LEFT JOIN customers c ON o.customer_id = c.id
             WHERE o.total > 0 AND o.region IN ('eu', 'us') AND o.deleted_at IS NULL",
        )
    };
    let found = || {
        to.psql(
            "SELECT string_agg(concat_ws('|', order_id, total, total_with_tax, coalesce(customer_name, '-'),
               coalesce(customer_segment, '-')), ',' ORDER BY order_id) FROM analytics.orders_enriched",
        )
    };
    place.json(&["run", file, "--strategy", "incremental"], 0);
    assert_eq!(found(), wanted());
    let kept = to
        .psql("SELECT count(*) FROM analytics.orders_enriched WHERE checksum !~ '^[0-9a-f]{32}$' OR checksum IS NULL");
    assert_eq!(kept.trim(), "0");
    // A customer's new name, a deleted order and a changed one: the delta sees all three.
    from.psql(
        "UPDATE customers SET name = 'renamed', updated_at = now() WHERE id = 3;
         UPDATE orders SET deleted_at = now(), updated_at = now() WHERE id = 2;
         UPDATE orders SET total = 5, updated_at = now() WHERE id = 5",
    );
    place.until(&["run", file, "--strategy", "incremental"], found, wanted().trim());
    assert!(found().contains("renamed"), "joined tables are followed");
    place.json(&["run", file, "--strategy", "nightly"], 0);
    assert_eq!(
        found(),
        wanted(),
        "the comparison does not bring back what the tombstone took"
    );
    place.json(&["run", file, "--strategy", "weekly"], 0);
    assert_eq!(found(), wanted(), "neither does a full run");
}

#[test]
fn the_first_generation_with_stages() {
    let (from, to, profiles) = (
        database("example_g1_from"),
        database("example_g1_to"),
        database("example_g1_prof"),
    );
    from.psql(
        "CREATE TABLE users(id int PRIMARY KEY, name text, status text, created_at timestamp);
         INSERT INTO users SELECT i, 'name ' || i, CASE i % 3 WHEN 0 THEN 'A' WHEN 1 THEN 'I' ELSE 'X' END, '2024-01-01'
             FROM generate_series(1, 2500) i",
    );
    profiles.psql(
        "CREATE TABLE user_profiles(user_id int PRIMARY KEY, department text, role text);
         INSERT INTO user_profiles SELECT i, 'department ' || i % 4, 'role ' || i % 2 FROM generate_series(1, 2000) i",
    );
    let mut place = examples(&from);
    point_to(&mut place, "SOURCE_", &from);
    point_to(&mut place, "DEST_", &to);
    point_to(&mut place, "PROFILE_", &profiles);
    let file = "configs/pipeline_example.yaml";
    let first = place.json(&["run", file, "--strategy", "full_pipeline"], 0);
    assert_eq!(first["inserted"], 2500, "{first}");
    let counts = to.psql(
        "SELECT count(*) FILTER (WHERE status = 'active'), count(*) FILTER (WHERE status = 'inactive'), count(*) FILTER (WHERE status = 'X'),
           count(user_department), count(*) FILTER (WHERE user_role = 'role ' || user_id % 2) FROM users_copy",
    );
    assert_eq!(counts.trim(), "833|834|833|2000|2000");
    // The stages stand below the full strategy alone, so the other one compares the source's own letters.
    from.psql("UPDATE users SET name = 'changed' WHERE id IN (1, 2500); DELETE FROM users WHERE id = 3");
    let mended = place.json(&["run", file, "--strategy", "hash_pipeline"], 0);
    assert_eq!(
        (&mended["updated"], &mended["deleted"], &mended["inserted"]),
        (&1666.into(), &1.into(), &0.into()),
        "{mended}"
    );
    let again = place.json(&["run", file, "--strategy", "hash_pipeline"], 0);
    assert_eq!(again["read"], 0, "{again}");
    place.json(&["run", file, "--strategy", "full_pipeline"], 0);
    let mapped = "SELECT count(*) FILTER (WHERE status IN ('active', 'inactive')), count(*) FILTER (WHERE full_name = 'changed'), count(*) FROM users_copy";
    assert_eq!(to.psql(mapped).trim(), "1666|2|2499");
}

#[test]
fn uuids_and_columns_of_no_table() {
    let db = database("example_uuid");
    db.psql(
        "CREATE TABLE orders(id int PRIMARY KEY, user_uuid uuid NOT NULL, txn_id uuid, qty numeric(10,3), updated_at timestamp);
         INSERT INTO orders SELECT i, md5(i::text)::uuid, md5('t' || i)::uuid, i / 8.0, '2024-01-01' FROM generate_series(1, 60) i",
    );
    let place = examples(&db);
    let file = "configs/uuid_virtual_example.yaml";
    let first = place.json(&["run", file], 0);
    assert_eq!(first["inserted"], 60, "{first}");
    let source =
        "SELECT md5(string_agg(concat_ws('|', id, user_uuid, txn_id, qty, updated_at), ',' ORDER BY id)) FROM orders";
    let copy = "SELECT md5(string_agg(concat_ws('|', id, user_uuid, transaction_id, quantity, updated_at), ',' ORDER BY id)) FROM analytics.orders_uuid";
    assert_eq!(db.psql(copy), db.psql(source));
    let columns = "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'analytics.orders_uuid'::regclass AND attnum > 0";
    assert_eq!(
        db.psql(columns).trim(),
        "id user_uuid transaction_id quantity updated_at",
        "a virtual column is in no table"
    );
    db.psql("DELETE FROM orders WHERE id = 5; UPDATE orders SET qty = 1 WHERE id = 6");
    let mended = place.json(&["run", file], 0);
    assert_eq!(
        (&mended["deleted"], &mended["updated"]),
        (&1.into(), &1.into()),
        "{mended}"
    );
    assert_eq!(db.psql(copy), db.psql(source));
}

#[test]
fn a_schedule_and_its_strategies() {
    let db = database("example_schedule");
    db.psql(USERS);
    let place = examples(&db);
    let file = "configs/scheduled_postgres_sync.yaml";
    let source = "SELECT md5(string_agg(concat_ws('|', u.id, u.updated_at, coalesce(p.email, '-'), u.first_name || ' ' || u.last_name), ','
        ORDER BY u.id)) FROM users u LEFT JOIN user_profiles p ON u.id = p.user_id";
    let copy = "SELECT md5(string_agg(concat_ws('|', user_id, source_updated_at, coalesce(email, '-'), name), ',' ORDER BY user_id))
        FROM public_copy.user_schedule";
    place.json(&["run", file], 0);
    assert_eq!(db.psql(copy), db.psql(source));
    let unhashed = "SELECT count(*) FROM public_copy.user_schedule WHERE checksum IS NULL";
    assert_eq!(db.psql(unhashed).trim(), "0");
    db.psql("UPDATE users SET first_name = 'changed', updated_at = now() WHERE id < 5");
    place.until(
        &["run", file, "--strategy", "delta"],
        || db.psql(copy),
        db.psql(source).trim(),
    );
    db.psql("DELETE FROM users WHERE id = 300");
    place.json(&["run", file, "--strategy", "hash"], 0);
    assert_eq!(db.psql(copy), db.psql(source));
}

/// Joins, filters, enrichment through Redis, a lambda: the brief's complete configuration, as printed.
#[test]
fn the_brief_s_advanced_pipeline_runs_as_printed() {
    let (from, to, analytics) = (
        database("advanced_from"),
        database("advanced_to"),
        database("advanced_dims"),
    );
    from.psql(
        "CREATE TABLE customers(id int PRIMARY KEY, name text);
         INSERT INTO customers VALUES (1, 'Ada'), (2, 'Alan'), (3, 'Grace');
         CREATE TABLE orders(id int PRIMARY KEY, order_date timestamp, total numeric(10,2), customer_id int, status text,
             updated_at timestamp NOT NULL DEFAULT now());
         INSERT INTO orders VALUES (1, '2024-01-15', 100.00, 1, 'active', now() - interval '1 hour'),
             (2, '2024-01-16', 19.99, 2, 'active', now() - interval '1 hour'), (3, '2024-01-17', 5.00, 3, 'done', now() - interval '1 hour'),
             (4, '2024-01-18', 8.00, 9, 'active', now() - interval '1 hour')",
    );
    analytics.psql(
        "CREATE TABLE customer_segments(customer_id int PRIMARY KEY, segment text, score numeric(5,1));
         INSERT INTO customer_segments VALUES (1, 'gold', 9.5), (2, 'silver', 3)",
    );
    let place = Place::new(&[
        ("source_db", postgres(&from)),
        ("dest_db", postgres(&to)),
        ("analytics_db", postgres(&analytics)),
    ]);
    place.write(
        "synctool.yaml",
        &format!("redis: {{url: \"{}\"}}\n", Redis::shared().url()),
    );
    place.write(
        "advanced.yaml",
        include_str!("../config/brief/advanced_sync_pipeline.yaml"),
    );
    let rows = || {
        to.psql(
            "SELECT string_agg(concat_ws(' ', order_id, order_date::date, total_amount, coalesce(customer_name, '-'),
               coalesce(customer_segment, '-'), coalesce(customer_score::text, '-'), total_with_tax), ', ' ORDER BY order_id)
             FROM analytics.orders_enriched",
        )
    };
    place.json(&["run", "advanced.yaml"], 0);
    assert_eq!(
        rows().trim(),
        "1 2024-01-15 100.00 Ada gold 9.5 110.00, 2 2024-01-16 19.99 Alan silver 3.0 21.99, 4 2024-01-18 8.00 - - - 8.80"
    );
    from.psql(
        "UPDATE orders SET total = 200, updated_at = now() WHERE id = 1;
         UPDATE orders SET status = 'done', updated_at = now() WHERE id = 2;
         UPDATE orders SET status = 'active', updated_at = now() WHERE id = 3",
    );
    let wanted =
        "1 2024-01-15 200.00 Ada gold 9.5 220.00, 3 2024-01-17 5.00 Grace - - 5.50, 4 2024-01-18 8.00 - - - 8.80";
    place.until(&["run", "advanced.yaml", "--strategy", "delta_sync"], rows, wanted);
    to.psql("UPDATE analytics.orders_enriched SET total_with_tax = 0 WHERE order_id = 1; DELETE FROM analytics.orders_enriched WHERE order_id = 3");
    place.json(&["verify", "advanced.yaml"], 3);
    let mended = place.json(&["run", "advanced.yaml", "--strategy", "hash_sync"], 0);
    assert_eq!(
        (&mended["inserted"], &mended["updated"]),
        (&1.into(), &1.into()),
        "{mended}"
    );
    assert_eq!(rows().trim(), wanted);
    place.json(&["run", "advanced.yaml", "--strategy", "full_sync"], 0);
    assert_eq!(rows().trim(), wanted);
    place.json(&["verify", "advanced.yaml"], 0);
}
