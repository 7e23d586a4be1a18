//! The proof that both sides are equal: the hashes of blocks of rows that every pipeline compares by, made by both
//! servers at the same place of production's log.

use super::super::journal::{self, Entry};
use super::super::sql;
use super::super::tables::{self, Found, Table};
use super::DataSync;
use super::apply::State;
use crate::postgres::source::PostgresSource;
use crate::postgres::{Connection, Postgres, PostgresConfig};
use serde::Serialize;
use std::collections::BTreeMap;
use synctool_core::blocks::{Block, BlockHashes, Blocks, Field, HashRequest, RowForm};
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{ReadColumn, ReadSpec, Slice};
use synctool_core::query::Filter;
use synctool_core::schema::TableId;
use synctool_pgwal::Lsn;

/// Rows of a block, about.
const BLOCK_ROWS: u64 = 4096;
/// Rows of differing blocks that are compared one by one, at most.
const LOOKED_AT: u64 = 100_000;

/// A table of both sides, compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// The table.
    pub table: String,
    /// Whether they hold the same rows.
    pub equal: bool,
    /// Rows in production at the stored place.
    pub production_rows: Option<u64>,
    /// Rows here.
    pub local_rows: Option<u64>,
    /// Keys whose rows differ; None if they are too many to look at each.
    pub different_rows: Option<u64>,
    /// Why it was not compared.
    pub skipped: Option<String>,
}

/// One side of a comparison.
struct Side {
    source: PostgresSource,
    request: HashRequest,
}

impl Side {
    /// A table's columns as this side has them, in the order of the names given.
    async fn of(address: PostgresConfig, table: &Table, names: &[&str], blocks: u32) -> Result<Side> {
        let source = Postgres::open(address)?.live_source();
        let id = TableId::new(&table.name.0, &table.name.1);
        let described = source.described(&id).await?.schema;
        let columns = names.iter().map(|name| {
            let column = described.columns.iter().find(|c| c.name == *name);
            let column = column.ok_or_else(|| Error::bug("a column that fits and is not there"))?;
            Ok(ReadColumn::plain(*name, column.clone()))
        });
        let mut read = ReadSpec::of(id, columns.collect::<Result<_>>()?);
        let fields = |wanted: &[&str]| -> Vec<Field> {
            let place = |name: &&str| names.iter().position(|n| n == name);
            let field = |place: usize| Field {
                place,
                ty: read.columns[place].column.ty.clone(),
            };
            wanted.iter().filter_map(place).map(field).collect()
        };
        let (compared, key) = (fields(names), fields(&table.identity()));
        read.filters = vec![Filter::Sql(sql::only(&table.name.0, &table.name.1)?)];
        let request = HashRequest {
            read,
            compared,
            key,
            slice: Slice::All,
            form: RowForm::Canonical,
            blocks: Blocks::Spread { count: blocks },
        };
        Ok(Side { source, request })
    }

    /// The server's own hash of these columns, if it has one.
    fn fast(&self) -> Option<String> {
        let fields = self.request.key.iter().chain(&self.request.compared);
        let places: Vec<usize> = fields.map(|f| f.place).collect();
        self.source.fast_form(&self.request.read, &places)
    }

    async fn blocks(&self) -> Result<BTreeMap<i64, Block>> {
        self.source.blocks(&self.request).await
    }

    /// Adds every row of some blocks to an account.
    async fn count(
        &self,
        blocks: &[i64],
        each: i64,
        rows: &mut BTreeMap<(Vec<Option<String>>, u128), i64>,
    ) -> Result<()> {
        for row in self.source.rows(&self.request, blocks).await? {
            *rows.entry((row.key, row.hash)).or_default() += each;
        }
        Ok(())
    }
}

impl DataSync {
    /// Compares every selected table with the scratch server at the stored place.
    pub async fn verify(&mut self) -> Result<(Lsn, Vec<Compared>)> {
        if self.planned.is_some() || !self.standing {
            self.step().await?;
        }
        let Some(at) = self.applied.filter(|_| self.planned.is_none() && self.standing) else {
            return Err(Error::new(
                code::REFUSED,
                "there is no place yet at which both sides could be compared",
            )
            .hint("run synctool datasync run-once; synctool datasync status says what is missing"));
        };
        self.replay.stand(at).await?;
        let session = self.replay.session().await?;
        let (there, here) = self.find(&session).await?;
        Ok((at, self.compare(&session, &there, &here, at).await?))
    }

    pub(super) async fn compare(
        &self,
        session: &Connection,
        there: &Found,
        here: &Found,
        at: Lsn,
    ) -> Result<Vec<Compared>> {
        let known = self.known().await?;
        let mut all = Vec::new();
        for (name, table) in &there.tables {
            let mut one = Compared {
                table: table.display(),
                ..Compared::default()
            };
            match known.get(name) {
                Some(k) if k.state == State::Synced => {}
                Some(k) => one.skipped = Some(k.why.clone().unwrap_or_else(|| "not copied yet".into())),
                None => one.skipped = Some("not copied yet".into()),
            }
            if one.skipped.is_none()
                && let Err(e) = table.fits(here.tables.get(name))
            {
                one.skipped = Some(e.message().to_owned());
            }
            if one.skipped.is_none() && tables::is_blocked(session, table).await? {
                one.skipped = Some("locked in production at this place".into());
            }
            if one.skipped.is_none() {
                self.compare_one(session, table, &mut one).await?;
            }
            all.push(one);
        }
        for (table, trouble) in tables::misparted(&self.local, there, here).await?.values() {
            all.push(Compared {
                table: table.display(),
                skipped: Some(trouble.message().to_owned()),
                ..Compared::default()
            });
        }
        let different: Vec<&str> = all
            .iter()
            .filter(|c| !c.equal && c.skipped.is_none())
            .map(|c| c.table.as_str())
            .collect();
        let entry = match different.is_empty() {
            true => Entry::new(
                "info",
                "verified",
                format!("{} tables are equal", all.iter().filter(|c| c.equal).count()),
            ),
            false => Entry::new(
                "warn",
                "verified",
                format!("these tables differ: {}", different.join(", ")),
            ),
        };
        journal::log(&self.local, &entry.to(at)).await?;
        Ok(all)
    }

    async fn compare_one(&self, session: &Connection, table: &Table, one: &mut Compared) -> Result<()> {
        let names = table.stored();
        if names.is_empty() {
            // Rows without columns differ only in their number.
            let count = format!("SELECT count(*) FROM ONLY {}", sql::table(&table.name.0, &table.name.1));
            let what = format!("comparing {}", table.display());
            let theirs = session
                .query_one(&count, &[])
                .await
                .map_err(|e| session.error(e, &what))?;
            let ours = self
                .local
                .query_one(&count, &[])
                .await
                .map_err(|e| self.local.error(e, &what))?;
            let number = |row: &tokio_postgres::Row| u64::try_from(row.get::<_, i64>(0)).ok();
            (one.production_rows, one.local_rows) = (number(&theirs), number(&ours));
            one.equal = one.production_rows == one.local_rows;
            one.different_rows = one.equal.then_some(0);
            return Ok(());
        }
        let rows = tables::estimated_rows(session, table).await?;
        let count = u32::try_from((rows / BLOCK_ROWS).clamp(16, 65_536)).unwrap_or(65_536);
        let address = self.replay.scratch.address(&self.config.replay.database);
        let mut theirs = Side::of(address, table, &names, count).await?;
        let mut ours = Side::of(self.config.local.clone(), table, &names, count).await?;
        // Servers that hash records alike need not write each row out.
        if let Some(signature) = theirs.fast().filter(|theirs| ours.fast().as_ref() == Some(theirs)) {
            theirs.request.form = RowForm::Fast(signature.clone());
            ours.request.form = RowForm::Fast(signature);
        }
        let (there, here) = tokio::join!(theirs.blocks(), ours.blocks());
        let (there, here) = (there?, here?);
        let total = |blocks: &BTreeMap<i64, Block>| blocks.values().map(|b| b.rows).sum::<u64>();
        (one.production_rows, one.local_rows) = (Some(total(&there)), Some(total(&here)));
        let mut differing: Vec<i64> = there.keys().chain(here.keys()).copied().collect();
        differing.sort_unstable();
        differing.dedup();
        differing.retain(|block| there.get(block) != here.get(block));
        one.equal = differing.is_empty();
        one.different_rows = Some(0);
        if one.equal {
            return Ok(());
        }
        let of = |side: &BTreeMap<i64, Block>| {
            differing
                .iter()
                .filter_map(|b| side.get(b))
                .map(|b| b.rows)
                .sum::<u64>()
        };
        if of(&there).max(of(&here)) > LOOKED_AT {
            one.different_rows = None;
            return Ok(());
        }
        let mut rows = BTreeMap::new();
        theirs.count(&differing, 1, &mut rows).await?;
        ours.count(&differing, -1, &mut rows).await?;
        let mut keys: Vec<_> = rows.iter().filter(|(_, n)| **n != 0).map(|((key, _), _)| key).collect();
        keys.dedup();
        one.different_rows = Some(keys.len() as u64);
        Ok(())
    }
}
