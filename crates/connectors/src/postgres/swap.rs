//! Swapping a loaded table into the place of an existing one without losing what belongs to it.
//!
//! A view depends on a table's oid, so a rename alone would leave it on the old one. Everything that hangs on the old
//! table is therefore written down as statements from the catalog, and made again on the new one: indexes, constraints
//! and defaults before the swap ([`seal`]), owner, grants, comments, sequences, statistics and views in its transaction
//! ([`swap`]). What cannot be made again is an obstacle, said by name ([`obstacles`]).

use super::client::{Connection, map_error};
use super::ddl::{derived_name, quoted};
use super::destination::Target;
use super::merge::{Mapping, columns_of, oid_of};
use super::publish::{free_name, load_key_name, lock};
use super::sql::{ident, idents};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::Applied;
use synctool_core::schema::{TableId, TableSchema};
use tokio_postgres::types::ToSql;
use tokio_postgres::{GenericClient, Transaction};

/// Views that depend on a table, through other views too; those that others depend on first.
const VIEWS: &str = "
WITH RECURSIVE found (oid, level) AS (
  SELECT r.ev_class, 1 FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
  WHERE d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
    AND d.refobjid = $1::oid AND r.ev_class <> $1::oid
  UNION
  SELECT r.ev_class, f.level + 1 FROM found f
  JOIN pg_catalog.pg_depend d ON d.refobjid = f.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass
    AND d.classid = 'pg_catalog.pg_rewrite'::regclass
  JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
  WHERE r.ev_class <> f.oid AND f.level < 100)
SELECT oid, max(level) AS level FROM found GROUP BY oid ORDER BY level, oid";

/// One sentence per thing that a swap of table $1 (with its views $2) would lose.
const OBSTACLES: &str = "
SELECT 'it is a ' || CASE c.relkind WHEN 'p' THEN 'partitioned table' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
  WHEN 'f' THEN 'foreign table' ELSE 'relation of kind ' || c.relkind::text END FROM pg_catalog.pg_class c WHERE c.oid = $1::oid AND c.relkind <> 'r'
UNION ALL SELECT 'it is a partition' FROM pg_catalog.pg_class WHERE oid = $1::oid AND relispartition
UNION ALL SELECT 'it is unlogged' FROM pg_catalog.pg_class WHERE oid = $1::oid AND relpersistence <> 'p'
UNION ALL SELECT 'it is a typed table' FROM pg_catalog.pg_class WHERE oid = $1::oid AND reloftype <> 0
UNION ALL SELECT 'its replica identity is not the default' FROM pg_catalog.pg_class WHERE oid = $1::oid AND relreplident <> 'd'
UNION ALL SELECT 'row level security is on' FROM pg_catalog.pg_class WHERE oid = $1::oid AND (relrowsecurity OR relforcerowsecurity)
UNION ALL SELECT 'it belongs to role ' || pg_catalog.pg_get_userbyid(relowner) || ', which we are not a member of'
  FROM pg_catalog.pg_class WHERE oid = ANY ($2::oid[] || $1::oid) AND NOT pg_catalog.pg_has_role(relowner, 'USAGE')
UNION ALL SELECT 'it inherits from ' || inhparent::regclass FROM pg_catalog.pg_inherits WHERE inhrelid = $1::oid
UNION ALL SELECT inhrelid::regclass || ' inherits from it' FROM pg_catalog.pg_inherits WHERE inhparent = $1::oid
UNION ALL SELECT 'policy ' || polname FROM pg_catalog.pg_policy WHERE polrelid = $1::oid
UNION ALL SELECT 'trigger ' || tgname || CASE WHEN tgrelid = $1::oid THEN '' ELSE ' on ' || tgrelid::regclass END
  FROM pg_catalog.pg_trigger WHERE tgrelid = ANY ($2::oid[] || $1::oid) AND NOT tgisinternal
UNION ALL SELECT 'rule ' || rulename || CASE WHEN ev_class = $1::oid THEN '' ELSE ' on ' || ev_class::regclass END
  FROM pg_catalog.pg_rewrite WHERE ev_class = ANY ($2::oid[] || $1::oid) AND rulename <> '_RETURN'
UNION ALL SELECT 'foreign key ' || conname || ' of ' || conrelid::regclass || ' refers to it'
  FROM pg_catalog.pg_constraint WHERE confrelid = $1::oid AND contype = 'f'
UNION ALL SELECT 'publication ' || p.pubname FROM pg_catalog.pg_publication_rel r
  JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = $1::oid
UNION ALL SELECT 'security label of ' || provider FROM pg_catalog.pg_seclabel
  WHERE classoid = 'pg_catalog.pg_class'::regclass AND objoid = ANY ($2::oid[] || $1::oid)
UNION ALL SELECT 'it belongs to ' || pg_catalog.pg_describe_object(refclassid, refobjid, 0) FROM pg_catalog.pg_depend
  WHERE classid = 'pg_catalog.pg_class'::regclass AND objid = ANY ($2::oid[] || $1::oid) AND deptype = 'e'
UNION ALL SELECT 'index ' || indexrelid::regclass || ' is not valid' FROM pg_catalog.pg_index WHERE indrelid = $1::oid AND NOT indisvalid
UNION ALL SELECT 'statistics target of index ' || attrelid::regclass FROM pg_catalog.pg_attribute a
  JOIN pg_catalog.pg_index i ON i.indexrelid = a.attrelid WHERE i.indrelid = $1::oid AND a.attstattarget > 0
UNION ALL SELECT 'materialized view ' || oid::regclass FROM pg_catalog.pg_class WHERE oid = ANY ($2::oid[]) AND relkind = 'm'
UNION ALL SELECT 'relation ' || oid::regclass || ' depends on it' FROM pg_catalog.pg_class WHERE oid = ANY ($2::oid[]) AND relkind NOT IN ('v', 'm')
UNION ALL SELECT DISTINCT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) || ' depends on it' FROM pg_catalog.pg_depend d
  WHERE (d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = ANY ($2::oid[] || $1::oid)
     OR d.refclassid = 'pg_catalog.pg_type'::regclass AND d.refobjid IN
       (SELECT unnest(ARRAY[oid, typarray]) FROM pg_catalog.pg_type WHERE typrelid = ANY ($2::oid[] || $1::oid)))
  AND NOT (d.classid = 'pg_catalog.pg_rewrite'::regclass
    AND d.objid IN (SELECT oid FROM pg_catalog.pg_rewrite WHERE ev_class = ANY ($2::oid[] || $1::oid)))
  AND NOT (d.classid = 'pg_catalog.pg_constraint'::regclass
    AND d.objid IN (SELECT oid FROM pg_catalog.pg_constraint WHERE conrelid = $1::oid OR contype = 'f'))
  AND NOT (d.classid = 'pg_catalog.pg_attrdef'::regclass
    AND d.objid IN (SELECT oid FROM pg_catalog.pg_attrdef WHERE adrelid = ANY ($2::oid[] || $1::oid)))
  AND NOT (d.classid IN ('pg_catalog.pg_class'::regclass, 'pg_catalog.pg_type'::regclass) AND d.deptype IN ('a', 'i'))
  AND d.classid NOT IN ('pg_catalog.pg_trigger'::regclass, 'pg_catalog.pg_policy'::regclass,
    'pg_catalog.pg_statistic_ext'::regclass, 'pg_catalog.pg_publication_rel'::regclass)";

/// Grants of table or view $1 as statements on $2; whoever has default privileges loses them first.
const GRANTS: &str = "
SELECT pg_catalog.format('REVOKE ALL ON %s FROM %s', $2::text, g.who) FROM (
  SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END AS who
  FROM pg_catalog.pg_class n, pg_catalog.aclexplode(n.relacl) a, pg_catalog.pg_class o
  WHERE n.oid = $3 AND o.oid = $1::oid AND (o.relacl IS NOT NULL OR a.grantee <> o.relowner)
  UNION SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END
  FROM pg_catalog.pg_default_acl x, pg_catalog.aclexplode(x.defaclacl) a, pg_catalog.pg_class o
  WHERE x.defaclobjtype = 'r' AND o.oid = $1::oid AND a.grantee <> o.relowner
  UNION SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(o.relowner)) FROM pg_catalog.pg_class o
  WHERE o.oid = $1::oid AND o.relacl IS NOT NULL) g
UNION ALL
SELECT pg_catalog.format('GRANT %s ON %s TO %s%s', a.privilege_type, $2,
  CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END,
  CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
  FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a WHERE c.oid = $1::oid
UNION ALL
SELECT pg_catalog.format('GRANT %s (%I) ON %s TO %s%s', a.privilege_type, t.attname, $2,
  CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END,
  CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
  FROM pg_catalog.pg_attribute t, pg_catalog.aclexplode(t.attacl) a WHERE t.attrelid = $1::oid AND NOT t.attisdropped";

/// Comments of table or view $1 and its columns, as statements on $2; `$3` is TABLE or VIEW.
const COMMENTS: &str = "
SELECT pg_catalog.format('COMMENT ON %s %s IS %L', $3::text, $2::text, description) FROM pg_catalog.pg_description
  WHERE objoid = $1::oid AND classoid = 'pg_catalog.pg_class'::regclass AND objsubid = 0
UNION ALL
SELECT pg_catalog.format('COMMENT ON COLUMN %s.%I IS %L', $2, a.attname, d.description) FROM pg_catalog.pg_description d
  JOIN pg_catalog.pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid
  WHERE d.objoid = $1::oid AND d.classoid = 'pg_catalog.pg_class'::regclass AND d.objsubid > 0";

/// Column settings of table $1 as statements on $2.
const COLUMN_SETTINGS: &str = "
SELECT pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %s', $2::text, a.attname, pg_catalog.pg_get_expr(d.adbin, d.adrelid))
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  WHERE a.attrelid = $1::oid AND a.attgenerated = '' AND NOT a.attisdropped
UNION ALL
SELECT pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I SET STORAGE %s', $2, a.attname,
    CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END)
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attstorage <> t.typstorage
UNION ALL
SELECT pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS %s', $2, a.attname, a.attstattarget)
  FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attstattarget >= 0
UNION ALL
SELECT pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I SET (%s)', $2, a.attname, pg_catalog.array_to_string(a.attoptions, ', '))
  FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attoptions IS NOT NULL";

/// The same for compression, which PostgreSQL 14 brought.
const COLUMN_COMPRESSION: &str = "
SELECT pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I SET COMPRESSION %s', $2::text, a.attname,
    CASE a.attcompression WHEN 'l' THEN 'lz4' ELSE 'pglz' END)
  FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attcompression <> ''";

/// Runs a query that makes statements.
async fn statements(
    client: &impl GenericClient,
    query: &str,
    args: &[&(dyn ToSql + Sync)],
    what: &str,
) -> Result<Vec<String>> {
    let rows = client.query(query, args).await.map_err(|e| map_error(e, what))?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

async fn views(client: &impl GenericClient, oid: u32) -> Result<Vec<u32>> {
    let rows = client
        .query(VIEWS, &[&oid])
        .await
        .map_err(|e| map_error(e, "looking for views that depend on the table"))?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// Why the table cannot be swapped without losing something.
pub(super) async fn obstacles(
    client: &Connection,
    table: &TableId,
    wanted: &TableSchema,
    types: &[String],
) -> Result<Vec<String>> {
    match oid_of(&**client, table).await? {
        Some((oid, _)) => obstacles_of(&**client, oid, wanted, types).await,
        None => Ok(vec![format!("{table} does not exist")]),
    }
}

async fn obstacles_of(
    client: &impl GenericClient,
    oid: u32,
    wanted: &TableSchema,
    types: &[String],
) -> Result<Vec<String>> {
    let views = views(client, oid).await?;
    let mut found = statements(client, OBSTACLES, &[&oid, &views], "looking for what a swap would lose").await?;
    for there in columns_of(client, oid).await? {
        match wanted.index_of(&there.name) {
            None => found.push(format!("column {} is not among the columns written", there.name)),
            Some(_) if there.generated => found.push(format!("column {} is generated", there.name)),
            Some(i) if types[i] != there.type_name => found.push(format!(
                "column {} is {} here and would become {}",
                there.name, there.type_name, types[i]
            )),
            Some(_) => {}
        }
    }
    found.sort();
    Ok(found)
}

/// The statements that make the load table of a swap: the existing table's columns in their order, with collations,
/// identities and NOT NULL, then new ones.
pub(super) async fn create_load(client: &impl GenericClient, target: &Target, oid: u32) -> Result<Vec<String>> {
    let rows = client
        .query(
            "SELECT a.attname::text, \
               CASE WHEN a.attcollation <> t.typcollation AND a.attcollation <> 0 \
                 THEN (SELECT pg_catalog.format(' COLLATE %I.%I', n.nspname, c.collname) FROM pg_catalog.pg_collation c \
                   JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = a.attcollation) ELSE '' END, \
               CASE WHEN a.attidentity = '' THEN '' ELSE (SELECT pg_catalog.format( \
                   ' GENERATED %s AS IDENTITY (START WITH %s INCREMENT BY %s MINVALUE %s MAXVALUE %s CACHE %s%s)', \
                   CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, \
                   s.seqcache, CASE WHEN s.seqcycle THEN ' CYCLE' ELSE '' END) \
                 FROM pg_catalog.pg_sequence s WHERE s.seqrelid = \
                   pg_catalog.pg_get_serial_sequence(pg_catalog.format('%I.%I', n.nspname, r.relname), a.attname)::regclass) END, \
               a.attnotnull, \
               (SELECT c.conname::text FROM pg_catalog.pg_constraint c WHERE c.conrelid = a.attrelid AND c.contype = 'n' \
                 AND c.conkey = ARRAY[a.attnum]) \
             FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
             JOIN pg_catalog.pg_class r ON r.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace \
             WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            &[&oid],
        )
        .await
        .map_err(|e| map_error(e, "reading the table's columns"))?;
    let mut columns = Vec::new();
    let mut there = Vec::new();
    for row in &rows {
        let name: String = row.get(0);
        let Some(i) = target.schema.index_of(&name) else {
            continue;
        };
        let (collation, identity): (&str, &str) = (row.get(1), row.get(2));
        let mut text = format!("{} {}{collation}{identity}", ident(&name), target.types[i]);
        if row.get(3) {
            let constraint = row
                .get::<_, Option<String>>(4)
                .map_or(String::new(), |n| format!(" CONSTRAINT {}", ident(&n)));
            text.push_str(&format!("{constraint} NOT NULL"));
        }
        columns.push(text);
        there.push(name);
    }
    for (c, ty) in target.schema.columns.iter().zip(&target.types) {
        if !there.contains(&c.name) {
            let not_null = if c.nullable { "" } else { " NOT NULL" };
            columns.push(format!("{} {ty}{not_null}", ident(&c.name)));
        }
    }
    let place = client
        .query_one(
            "SELECT coalesce(' USING ' || pg_catalog.quote_ident(NULLIF(a.amname, 'heap')), ''), \
             coalesce(' TABLESPACE ' || pg_catalog.quote_ident(s.spcname), '') \
             FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_am a ON a.oid = c.relam \
             LEFT JOIN pg_catalog.pg_tablespace s ON s.oid = c.reltablespace WHERE c.oid = $1::oid",
            &[&oid],
        )
        .await
        .map_err(|e| map_error(e, "reading the table's storage"))?;
    let fillfactor = client
        .query_one(
            "SELECT coalesce((SELECT ', ' || o FROM pg_catalog.unnest((SELECT reloptions FROM pg_catalog.pg_class WHERE oid = $1::oid)) o \
             WHERE o LIKE 'fillfactor=%'), '')",
            &[&oid],
        )
        .await
        .map_err(|e| map_error(e, "reading the table's options"))?;
    Ok(vec![format!(
        "CREATE TABLE {} ({}){} WITH (autovacuum_enabled = false{}){}",
        quoted(&target.load),
        columns.join(", "),
        place.get::<_, &str>(0),
        fillfactor.get::<_, &str>(0),
        place.get::<_, &str>(1)
    )])
}

/// An index of the old table and how it is made on the new one.
struct Index {
    name: String,
    /// Its name on the load table until the swap.
    beside: String,
    make: Vec<String>,
    constraint: bool,
    clustered: bool,
}

async fn indexes(client: &impl GenericClient, target: &Target, oid: u32) -> Result<Vec<Index>> {
    let rows = client
        .query(
            "SELECT x.oid, x.relname::text, pg_catalog.pg_get_indexdef(x.oid), \
               pg_catalog.format('CREATE %sINDEX %I ON %I.%I ', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, \
                 x.relname, n.nspname, t.relname), \
               s.spcname::text, c.contype, pg_catalog.pg_get_constraintdef(c.oid), \
               CASE WHEN NOT c.condeferrable THEN '' WHEN c.condeferred THEN ' DEFERRABLE INITIALLY DEFERRED' ELSE ' DEFERRABLE' END, \
               a.amname = 'btree', i.indisclustered \
             FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid \
             JOIN pg_catalog.pg_class t ON t.oid = i.indrelid JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace \
             JOIN pg_catalog.pg_am a ON a.oid = x.relam \
             LEFT JOIN pg_catalog.pg_tablespace s ON s.oid = x.reltablespace \
             LEFT JOIN pg_catalog.pg_constraint c ON c.conindid = x.oid AND c.conrelid = i.indrelid AND c.contype IN ('p', 'u', 'x') \
             WHERE i.indrelid = $1::oid ORDER BY i.indisprimary DESC, x.oid",
            &[&oid],
        )
        .await
        .map_err(|e| map_error(e, "reading the table's indexes"))?;
    let load = quoted(&target.load);
    rows.iter()
        .map(|r| {
            let name: String = r.get(1);
            let beside = derived_name(&target.load.name, &format!("_i{}", r.get::<_, u32>(0)));
            let quoted_beside = ident(&beside);
            let (definition, prefix): (&str, &str) = (r.get(2), r.get(3));
            let kind: Option<i8> = r.get(5);
            let btree: bool = r.get(8);
            let mut make = vec![format!(
                "SET LOCAL default_tablespace = {}",
                r.get::<_, Option<&str>>(4).map_or("''".into(), ident)
            )];
            match kind.map(|k| k as u8) {
                // An exclusion or a key WITHOUT OVERLAPS cannot be made from an index.
                Some(_) if !btree => make.push(format!(
                    "ALTER TABLE {load} ADD CONSTRAINT {quoted_beside} {}",
                    r.get::<_, &str>(6)
                )),
                kind => {
                    let rest = definition.strip_prefix(prefix).ok_or_else(|| {
                        Error::new(
                            code::SWAP_REFUSED,
                            format!("the definition of index {name} cannot be used for a swap"),
                        )
                    })?;
                    let unique = if prefix.starts_with("CREATE UNIQUE") {
                        "UNIQUE "
                    } else {
                        ""
                    };
                    make.push(format!("CREATE {unique}INDEX {quoted_beside} ON {load} {rest}"));
                    if let Some(k) = kind {
                        let kind = if k == b'p' { "PRIMARY KEY" } else { "UNIQUE" };
                        make.push(format!(
                            "ALTER TABLE {load} ADD CONSTRAINT {quoted_beside} {kind} USING INDEX {quoted_beside}{}",
                            r.get::<_, &str>(7)
                        ));
                    }
                }
            }
            Ok(Index {
                name,
                beside,
                make,
                constraint: kind.is_some(),
                clustered: r.get(9),
            })
        })
        .collect()
}

/// Checks and foreign keys of the old table: name, and the statements that add them to the load table.
async fn constraints(client: &impl GenericClient, target: &Target, oid: u32) -> Result<Vec<(String, Vec<String>)>> {
    let rows = client
        .query(
            "SELECT conname::text, contype = 'f' AND convalidated, pg_catalog.pg_get_constraintdef(oid) \
             FROM pg_catalog.pg_constraint WHERE conrelid = $1::oid AND contype IN ('c', 'f') ORDER BY oid",
            &[&oid],
        )
        .await
        .map_err(|e| map_error(e, "reading the table's constraints"))?;
    let load = quoted(&target.load);
    Ok(rows
        .iter()
        .map(|r| {
            let (name, validate): (String, bool) = (r.get(0), r.get(1));
            let definition: &str = r.get(2);
            let quoted_name = ident(&name);
            let mut make = vec![format!(
                "ALTER TABLE {load} ADD CONSTRAINT {quoted_name} {definition}{}",
                if validate { " NOT VALID" } else { "" }
            )];
            if validate {
                make.push(format!("ALTER TABLE {load} VALIDATE CONSTRAINT {quoted_name}"));
            }
            (name, make)
        })
        .collect())
}

/// Builds on the load table what the old one has: indexes, constraints, defaults, column settings. Repeatable.
pub(super) async fn seal(tx: &Transaction<'_>, target: &Target, load: u32, version: u32) -> Result<()> {
    let Some((oid, _)) = oid_of(tx, &target.table).await? else {
        return Err(Error::new(code::TABLE_MISSING, format!("{} is gone", target.table)));
    };
    let there = statements(
        tx,
        "SELECT conname::text FROM pg_catalog.pg_constraint WHERE conrelid = $1::oid \
         UNION SELECT x.relname::text FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = $1::oid",
        &[&load],
        "reading the load table's constraints",
    )
    .await?;
    let mut run = Vec::new();
    for index in indexes(tx, target, oid).await? {
        if !there.contains(&index.beside) {
            run.extend(index.make);
        }
    }
    for (name, make) in constraints(tx, target, oid).await? {
        if !there.contains(&name) {
            run.extend(make);
        }
    }
    let load_name = quoted(&target.load);
    run.extend(
        statements(
            tx,
            COLUMN_SETTINGS,
            &[&oid, &load_name],
            "reading the columns' settings",
        )
        .await?,
    );
    if version >= 140_000 {
        run.extend(
            statements(
                tx,
                COLUMN_COMPRESSION,
                &[&oid, &load_name],
                "reading the columns' settings",
            )
            .await?,
        );
    }
    execute(tx, &run, "building indexes and constraints").await
}

async fn execute(tx: &Transaction<'_>, run: &[String], what: &str) -> Result<()> {
    for statement in run {
        tx.batch_execute(statement).await.map_err(|e| map_error(e, what))?;
    }
    Ok(())
}

/// How many rows a swap replaces, adds and takes away, by key where there is one. The guard against mass deletes needs
/// it, not only the report: as many rows with other keys are another table.
pub(super) async fn account(tx: &Transaction<'_>, target: &Target, rows: u64, attempts: u32) -> Result<Applied> {
    let (table, load) = (quoted(&target.table), quoted(&target.load));
    let fail = |e| map_error(e, "counting rows");
    lock(tx, &table, "SHARE ROW EXCLUSIVE", attempts).await?;
    let before = tx
        .query_one(&format!("SELECT pg_catalog.count(*) FROM {table}"), &[])
        .await
        .map_err(fail)?
        .get::<_, i64>(0) as u64;
    let common = if target.schema.key.is_empty() {
        before.min(rows)
    } else {
        let (oid, _) = oid_of(tx, &target.table)
            .await?
            .ok_or_else(|| Error::new(code::TABLE_MISSING, format!("{} is gone", target.table)))?;
        let mapping = Mapping::new(
            &target.table,
            &target.schema,
            &target.types,
            &columns_of(tx, oid).await?,
        );
        match mapping {
            Ok(m) => tx
                .query_one(&m.count_common(&table, &load), &[])
                .await
                .map_err(fail)?
                .get::<_, i64>(0) as u64,
            // A column that the old table does not have: then its rows are compared by nothing.
            Err(_) => before.min(rows),
        }
    };
    Ok(Applied::swapped(before, before.saturating_sub(common), rows))
}

/// Puts the load table in the place of the old one, with everything that hung on it.
pub(super) async fn swap(tx: &Transaction<'_>, target: &Target, version: u32, attempts: u32) -> Result<()> {
    let (table, load) = (quoted(&target.table), quoted(&target.load));
    lock(tx, &load, "ACCESS EXCLUSIVE", attempts).await?;
    lock(tx, &table, "ACCESS EXCLUSIVE", attempts).await?;
    let (Some((old, _)), Some((new, _))) = (oid_of(tx, &target.table).await?, oid_of(tx, &target.load).await?) else {
        return Err(Error::new(code::TABLE_MISSING, format!("{} is gone", target.table)));
    };
    let found = obstacles_of(tx, old, &target.schema, &target.types).await?;
    if !found.is_empty() {
        return Err(Error::new(
            code::SWAP_REFUSED,
            format!(
                "{} cannot be swapped without losing something: {}",
                target.table,
                found.join("; ")
            ),
        )
        .hint("use full_mode: upsert, or remove what is named"));
    }
    // What was added to the old table since it was sealed.
    seal(tx, target, new, version).await?;
    let indexes = indexes(tx, target, old).await?;
    let (before, after) = tokio::try_join!(before_drop(tx, target, old), after_drop(tx, target, old, new, &indexes))?;
    execute(tx, &before, "moving sequences and views").await?;
    execute(tx, &[format!("DROP TABLE {table}")], "dropping the old table").await?;
    execute(tx, &after, "giving the loaded table what belongs to the old one").await?;
    let key = ident(&load_key_name(target));
    let own_key = tx
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = $1::oid AND conname = $2)",
            &[&new, &load_key_name(target)],
        )
        .await
        .map_err(|e| map_error(e, "looking for the key"))?;
    if own_key.get(0) {
        let schema = target.table.schema.as_deref().unwrap_or_default();
        let name = free_name(tx, schema, &derived_name(&target.table.name, "_pkey")).await?;
        execute(
            tx,
            &[format!(
                "ALTER TABLE {table} RENAME CONSTRAINT {key} TO {}",
                ident(&name)
            )],
            "naming the key",
        )
        .await?;
    }
    Ok(())
}

/// Statements that must run while the old table is there: the new one gets its owner, then its sequences; views go.
async fn before_drop(tx: &Transaction<'_>, target: &Target, old: u32) -> Result<Vec<String>> {
    let mut run = statements(
        tx,
        "SELECT pg_catalog.format('ALTER TABLE %s OWNER TO %I', $2::text, pg_catalog.pg_get_userbyid(relowner)) \
         FROM pg_catalog.pg_class WHERE oid = $1::oid AND pg_catalog.pg_get_userbyid(relowner) <> current_user \
         UNION ALL SELECT pg_catalog.format('ALTER SEQUENCE %I.%I OWNED BY %s.%I', n.nspname, s.relname, $2::text, a.attname) \
         FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
         JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
         WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass \
         AND d.refobjid = $1::oid AND d.deptype = 'a'",
        &[&old, &quoted(&target.load)],
        "reading the table's sequences",
    )
    .await?;
    let mut views = views(tx, old).await?;
    views.reverse();
    run.extend(
        statements(
            tx,
            "SELECT pg_catalog.format('DROP VIEW %I.%I', n.nspname, c.relname) FROM pg_catalog.unnest($1::oid[]) WITH ORDINALITY v (oid, i) \
             JOIN pg_catalog.pg_class c ON c.oid = v.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace ORDER BY v.i",
            &[&views],
            "reading the views",
        )
        .await?,
    );
    Ok(run)
}

/// Statements that run once the old table is gone; all text is read while it is there.
async fn after_drop(
    tx: &Transaction<'_>,
    target: &Target,
    old: u32,
    new: u32,
    indexes: &[Index],
) -> Result<Vec<String>> {
    let (table, load) = (quoted(&target.table), quoted(&target.load));
    let schema = target.table.schema.as_deref().unwrap_or_default();
    let mut run = vec![
        format!("ALTER TABLE {load} RENAME TO {}", ident(&target.table.name)),
        format!("ALTER TABLE {table} RESET (autovacuum_enabled)"),
        format!("COMMENT ON TABLE {table} IS NULL"),
    ];
    for index in indexes {
        let (from, to) = (ident(&index.beside), ident(&index.name));
        run.push(if index.constraint {
            format!("ALTER TABLE {table} RENAME CONSTRAINT {from} TO {to}")
        } else {
            format!("ALTER INDEX {}.{from} RENAME TO {to}", ident(schema))
        });
        if index.clustered {
            run.push(format!("ALTER TABLE {table} CLUSTER ON {to}"));
        }
    }
    run.extend(identities(tx, target, old).await?);
    for (query, what) in [
        (
            "SELECT pg_catalog.format('ALTER TABLE %s SET (%s)', $2::text, pg_catalog.array_to_string(reloptions, ', ')) \
             FROM pg_catalog.pg_class WHERE oid = $1::oid AND reloptions IS NOT NULL \
             UNION ALL SELECT pg_catalog.format('ALTER TABLE %s SET (%s)', $2, (SELECT pg_catalog.string_agg('toast.' || o, ', ') \
               FROM pg_catalog.unnest(t.reloptions) o)) \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid WHERE c.oid = $1::oid AND t.reloptions IS NOT NULL",
            "reading the table's options",
        ),
        (
            "SELECT pg_catalog.format('COMMENT ON CONSTRAINT %I ON %s IS %L', c.conname, $2::text, d.description) \
             FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_description d ON d.objoid = c.oid \
             AND d.classoid = 'pg_catalog.pg_constraint'::regclass WHERE c.conrelid = $1::oid",
            "reading comments",
        ),
        (
            "SELECT pg_catalog.format('COMMENT ON INDEX %I.%I IS %L', n.nspname, x.relname, d.description) \
             FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid \
             JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace JOIN pg_catalog.pg_description d ON d.objoid = x.oid \
             AND d.classoid = 'pg_catalog.pg_class'::regclass WHERE i.indrelid = $1::oid AND $2::text <> ''",
            "reading comments",
        ),
        (
            "SELECT pg_catalog.pg_get_statisticsobjdef(oid) FROM pg_catalog.pg_statistic_ext WHERE stxrelid = $1::oid AND $2::text <> ''",
            "reading extended statistics",
        ),
        (
            "SELECT pg_catalog.format('COMMENT ON STATISTICS %I.%I IS %L', n.nspname, s.stxname, d.description) \
             FROM pg_catalog.pg_statistic_ext s JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace \
             JOIN pg_catalog.pg_description d ON d.objoid = s.oid AND d.classoid = 'pg_catalog.pg_statistic_ext'::regclass \
             WHERE s.stxrelid = $1::oid AND $2::text <> ''",
            "reading comments",
        ),
    ] {
        run.extend(statements(tx, query, &[&old, &table], what).await?);
    }
    run.extend(statements(tx, COMMENTS, &[&old, &table, &"TABLE"], "reading comments").await?);
    run.extend(statements(tx, GRANTS, &[&old, &table, &new], "reading grants").await?);
    for view in views(tx, old).await? {
        run.extend(view_again(tx, view).await?);
    }
    Ok(run)
}

/// Identities get their sequences' names back; those and serials go on behind the largest value there is.
async fn identities(tx: &Transaction<'_>, target: &Target, old: u32) -> Result<Vec<String>> {
    let fail = |e| map_error(e, "reading the table's sequences");
    let rows = tx
        .query(
            "SELECT a.attname::text, s.relname::text, pg_catalog.format('%I.%I', n.nspname, s.relname), d.deptype = 'i', q.seqincrement \
             FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
             JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace JOIN pg_catalog.pg_sequence q ON q.seqrelid = s.oid \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
             WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass \
             AND d.refobjid = $1::oid AND d.deptype IN ('a', 'i')",
            &[&old],
        )
        .await
        .map_err(fail)?;
    let mut run = Vec::new();
    for row in rows {
        let (column, name, sequence): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let (identity, increment): (bool, i64) = (row.get(3), row.get(4));
        let stand = tx
            .query_one(
                &format!(
                    "SELECT s.last_value, s.is_called, (SELECT {m}(l.{c})::bigint FROM {load} AS l) FROM {sequence} AS s",
                    m = if increment > 0 { "max" } else { "min" },
                    c = ident(&column),
                    load = quoted(&target.load)
                ),
                &[],
            )
            .await
            .map_err(fail)?;
        let (last, called, furthest): (i64, bool, Option<i64>) = (stand.get(0), stand.get(1), stand.get(2));
        let beyond = furthest.filter(|f| if increment > 0 { *f >= last } else { *f <= last });
        let (value, called) = beyond.map_or((last, called), |f| (f, true));
        if identity {
            let new: String = tx
                .query_one(
                    "SELECT pg_catalog.pg_get_serial_sequence($1, $2)",
                    &[&quoted(&target.load), &column],
                )
                .await
                .map_err(fail)?
                .get(0);
            run.push(format!("ALTER SEQUENCE {new} RENAME TO {}", ident(&name)));
        }
        if identity || beyond.is_some() {
            run.push(format!(
                "SELECT pg_catalog.setval({}::regclass, {value}, {called})",
                super::sql::literal(&sequence)?
            ));
        }
    }
    Ok(run)
}

/// The statements that make a view again, with its owner, grants, defaults and comments.
async fn view_again(tx: &Transaction<'_>, view: u32) -> Result<Vec<String>> {
    let row = tx
        .query_one(
            "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), \
             coalesce(' WITH (' || pg_catalog.array_to_string(c.reloptions, ', ') || ')', ''), \
             pg_catalog.rtrim(pg_catalog.pg_get_viewdef(c.oid), ';'), \
             CASE WHEN pg_catalog.pg_get_userbyid(c.relowner) <> current_user \
               THEN pg_catalog.format('ALTER VIEW %I.%I OWNER TO %I', n.nspname, c.relname, pg_catalog.pg_get_userbyid(c.relowner)) END \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::oid",
            &[&view],
        )
        .await
        .map_err(|e| map_error(e, "reading a view"))?;
    let name: String = row.get(0);
    let (options, definition): (&str, &str) = (row.get(1), row.get(2));
    let columns = statements(
        tx,
        "SELECT attname::text FROM pg_catalog.pg_attribute WHERE attrelid = $1::oid AND attnum > 0 ORDER BY attnum",
        &[&view],
        "reading a view's columns",
    )
    .await?;
    let mut run = vec![format!(
        "CREATE VIEW {name} ({}){options} AS {definition}",
        idents(&columns)
    )];
    run.extend(row.get::<_, Option<String>>(3));
    run.extend(
        statements(
            tx,
            "SELECT pg_catalog.format('ALTER VIEW %s ALTER COLUMN %I SET DEFAULT %s', $2::text, a.attname, \
             pg_catalog.pg_get_expr(d.adbin, d.adrelid)) FROM pg_catalog.pg_attribute a \
             JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum WHERE a.attrelid = $1::oid",
            &[&view, &name],
            "reading a view's defaults",
        )
        .await?,
    );
    run.extend(statements(tx, COMMENTS, &[&view, &name, &"VIEW"], "reading comments").await?);
    run.extend(statements(tx, GRANTS, &[&view, &name, &view], "reading grants").await?);
    Ok(run)
}

/// What the swap would run, each with its lock.
pub(super) async fn preview(client: &Connection, target: &Target, oid: u32) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for index in indexes(&**client, target, oid).await? {
        let make = index.make.into_iter().filter(|s| !s.starts_with("SET LOCAL"));
        out.extend(make.map(|s| format!("{s}  -- seal; locks only the load table")));
    }
    for (_, make) in constraints(&**client, target, oid).await? {
        out.extend(
            make.into_iter()
                .map(|s| format!("{s}  -- seal; locks only the load table and what it refers to")),
        );
    }
    let table = quoted(&target.table);
    let views = views(&**client, oid).await?;
    out.push(format!(
        "LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE  -- publish; everybody waits until the commit"
    ));
    if !views.is_empty() {
        out.push(format!(
            "-- {} views that depend on {table} are dropped and made again in this transaction",
            views.len()
        ));
    }
    out.push(format!("DROP TABLE {table}  -- publish"));
    out.push(format!(
        "ALTER TABLE {} RENAME TO {}  -- publish; owner, grants, comments, sequences and index names follow",
        quoted(&target.load),
        ident(&target.table.name)
    ));
    Ok(out)
}
