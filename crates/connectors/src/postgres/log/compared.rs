//! In which columns both ends of a followed table are to be equal by now, for those who compare them.

use super::super::catalog;
use super::Drift;
use super::capture::{follows_all, position_of};
use super::membership::{self, Absent};
use super::position::LogPosition;
use super::shape::{Followed, Shape};
use super::slot::{self, Publication};
use super::source::LogSource;
use synctool_core::backfill::BackfillPosition;
use synctool_core::error::Result;
use synctool_core::plan::Plan;
use synctool_core::progress::Position;
use synctool_core::schema::TableId;

/// A column's names: at the source, and at the destination.
pub type Names = (String, String);

impl LogSource {
    /// The columns of each table of a plan as they are now: those of the plan by the names that they have by now, without
    /// those that the policy let go, and those that came since, whether the log has shown them or not. None of a table
    /// that is left out of the log.
    pub async fn columns(&self, plan: &Plan, position: Option<&Position>) -> Result<Vec<Vec<Names>>> {
        let stored = position_of(plan, position.cloned());
        let stored = stored.as_ref().map(BackfillPosition::parse).transpose()?;
        let Some(log) = stored.and_then(|p| p.log) else {
            let planned = plan.tables.iter().map(|t| {
                let columns = t.read.columns.iter();
                columns.map(|c| (c.source.clone(), c.column.name.clone())).collect()
            });
            return Ok(planned.collect());
        };
        let log = LogPosition::parse(&log)?;
        let (schema, drift) = (&self.database().config().schema, self.options().drift);
        let connection = self.database().connect().await?;
        let publication = slot::as_it_is(&connection, &self.options().publication).await?;
        let publication = publication.unwrap_or(Publication {
            tables: Vec::new(),
            via_root: true,
        });
        let names: Vec<TableId> = plan.tables.iter().map(|t| t.read.table.clone()).collect();
        let mut out = membership::absent(&connection, &self.options().publication, &names, schema).await?;
        out.retain(|(_, why)| follows_all(plan) || *why == Absent::Gone);
        let mut tables = Vec::with_capacity(plan.tables.len());
        for table in &plan.tables {
            if out.iter().any(|(out, _)| *out == table.read.table) {
                tables.push(Vec::new());
                continue;
            }
            let followed = Followed::of(plan, table);
            let shape = Shape::load(
                &connection,
                &followed,
                &log,
                true,
                (&publication, false),
                (schema, drift),
            );
            let shape = shape.await?.shape;
            let there = shape.columns.iter().filter(|c| !c.gone);
            let mut columns: Vec<Names> = there.map(|c| (c.now.clone(), c.column.name.clone())).collect();
            let described = catalog::describe(&connection, &table.read.table, schema).await?;
            let listed = publication.tables.iter().find(|p| p.table == described.table);
            let listed = listed.and_then(|p| p.columns.as_deref());
            for column in described.schema.columns.iter().filter(|_| drift != Drift::Discard) {
                // Before 18 the list of published columns has generated ones, and the log has not.
                let may = !column.generated || connection.version() >= 180_000;
                let comes = listed.map_or(!column.generated, |l| may && l.contains(&column.name));
                let known = |(now, name): &Names| *now == column.name || *name == column.name;
                if comes && !columns.iter().any(known) {
                    columns.push((column.name.clone(), column.name.clone()));
                }
            }
            tables.push(columns);
        }
        connection.recycle();
        Ok(tables)
    }
}
