//! What the catalog says of the tables that the log describes, and of partitions that it says nothing of.

use super::super::super::client::Connection;
use super::super::pgoutput::{Message, Relation};
use super::super::shape::{Look, Reshaped, Shape, look, of_all};
use super::super::{identity, membership};
use super::{Entry, LogReader, Watermarks};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use synctool_core::change::{Event, SchemaChange};
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{SchemaDifference, TableId};
use tokio::time::Instant;

/// A table of the log that was looked up.
pub(super) struct Looked {
    pub(super) oid: u32,
    entry: Entry,
    found: Found,
}

/// What a look at the catalog says of a table.
#[derive(Default)]
pub(super) struct Found {
    /// Which of the followed ones it is about.
    pub(super) index: Option<usize>,
    pub(super) reshaped: Option<Reshaped>,
    /// Why it is to be read anew, if it is.
    pub(super) anew: Option<&'static str>,
}

impl LogReader {
    /// Takes what was found of a table: from here on its rows have this shape.
    pub(super) fn adopt(&mut self, looked: Looked) {
        self.settle(looked.found);
        let shapes = self.world.shapes.all();
        self.root = match &looked.entry {
            Entry::Table { index, .. } if shapes[*index].oid == looked.oid && shapes[*index].ways.by_root => {
                Some(*index)
            }
            _ => None,
        };
        self.relations.insert(looked.oid, looked.entry);
    }

    /// Takes what the catalog says of a followed table.
    pub(super) fn settle(&mut self, found: Found) {
        let Some(index) = found.index else { return };
        let mut difference = found.anew.map(|_| SchemaDifference::default());
        if let Some(reshaped) = found.reshaped {
            if reshaped.shape.partitioned {
                self.parts_at.get_or_insert_with(Instant::now);
            }
            self.position.keep(&reshaped.shape);
            self.world.shapes.set(index, reshaped.shape);
            self.builders[index] = None;
            difference = reshaped.difference.or(difference);
        }
        let Some(difference) = difference else { return };
        let table = self.world.shapes.all()[index].table.clone();
        if let Some(why) = found.anew {
            tracing::warn!(%table, "{why}: the table is read anew");
            let mut remade = self.world.remade.lock().expect("nothing panics while holding it");
            remade.push(TableId::clone(&table));
        }
        self.begin();
        self.out.push_back(Event::Schema(SchemaChange { table, difference }));
    }

    /// The catalog as it is after what is read now was written.
    async fn look(&mut self, connection: &Connection, oid: u32) -> Result<Arc<Look>> {
        let known = |l: &&Arc<Look>| l.oid == oid || l.parts.has(oid);
        if let Some(known) = self.looks.values().find(known) {
            return Ok(known.clone());
        }
        let followed: Vec<u32> = self.world.shapes.all().iter().map(|s| s.oid).collect();
        let found = Arc::new(look(connection, oid, &followed).await?);
        self.looks.insert(found.oid, found.clone());
        Ok(found)
    }

    pub(super) async fn look_up(&mut self, message: &[u8]) -> Result<Looked> {
        let Ok(Message::Relation(relation)) = Message::parse(message) else {
            return Err(Error::bug("only tables are looked up"));
        };
        let options = &self.world.options;
        let mut looked = Looked {
            oid: relation.oid,
            entry: Entry::Other,
            found: Found::default(),
        };
        if matches!(options.watermarks, Watermarks::Table)
            && (relation.schema, relation.name) == (options.control_schema.as_str(), options.watermark_table.as_str())
        {
            looked.entry = Entry::Marks;
            return Ok(looked);
        }
        let connection = self.world.database.connect().await?;
        let now = self.look(&connection, relation.oid).await?;
        let shapes = self.world.shapes.all();
        let default = &self.world.database.config().schema;
        let is_named =
            |t: &TableId| t.name == relation.name && t.schema.as_deref().unwrap_or(default) == relation.schema;
        let found = &mut looked.found;
        let mut index = shapes.iter().position(|s| s.oid == now.oid);
        if let (None, Some(root)) = (index, self.root) {
            // The catalog is ahead: what the log brings of it goes again.
            let shape = &shapes[root];
            found.index = Some(root);
            found.anew = Some("a partition of it went that had rows in the log");
            comparable(shape, found.anew)?;
            connection.recycle();
            return Ok(looked);
        }
        if index.is_none() {
            index = shapes.iter().position(|s| is_named(&s.table));
            found.anew = index.map(|_| "it was made again");
        }
        let Some(index) = index else {
            connection.recycle();
            return Ok(looked);
        };
        found.index = Some(index);
        let mut shape = shapes[index].clone();
        if found.anew.is_some() {
            let mut again = (*shape).clone();
            again.oid = relation.oid;
            again.files.clear();
            (again.partitioned, again.parts) = (now.partitioned, now.parts.clone());
            again.columns.iter_mut().for_each(|c| c.number = 0);
            shape = Arc::new(again);
            found.reshaped = Some(Reshaped {
                shape: shape.clone(),
                difference: None,
                anew: None,
            });
        }
        if let Some(reshaped) = shape.follow(&connection, &relation, &now).await? {
            shape = reshaped.shape.clone();
            if found.anew.is_none() {
                comparable(&shape, reshaped.anew)?;
            }
            let fills = "a column came with values that no row of the log brings";
            comparable(&shape, reshaped.fills().then_some(fills))?;
            found.anew = found.anew.or(reshaped.anew);
            found.reshaped = Some(reshaped);
        }
        identity::check_followed_on(&connection, (&*shape.table, shape.oid), &shape.key_now()).await?;
        connection.recycle();
        check_identity(
            &shape.table,
            &shape
                .key
                .iter()
                .map(|k| shape.columns[*k].source.as_str())
                .collect::<Vec<_>>(),
            &relation,
        )?;
        if self.binary && (!shape.is_binary() || shape.has_narrower(&relation)) {
            self.world.as_text.store(true, Ordering::Relaxed);
            return Err(Error::new(
                code::CONFLICT,
                format!(
                    "{} has a column now whose values only come as text: the log is read again as text",
                    shape.table
                ),
            ));
        }
        looked.entry = Entry::Table {
            index,
            places: Arc::new(shape.places(&relation)),
            partitions: (relation.oid != shape.oid).then(|| now.leaves.clone()),
        };
        Ok(looked)
    }

    /// Whether it is time to look at the partitions of tables.
    pub(super) fn looks_at_parts(&self) -> bool {
        self.tx.is_none() && self.parts_at.is_some_and(|at| at <= Instant::now())
    }

    /// Compares the partitions of tables with what they were: those that went, and those that came with rows, may not be
    /// told by any row. Cancel safe.
    pub(super) async fn look_at_parts(&mut self) -> Result<()> {
        let shapes = self.world.shapes.all();
        let oids: Vec<u32> = shapes.iter().filter(|s| s.partitioned).map(|s| s.oid).collect();
        let looked: Result<_> = async {
            let connection = self.world.database.connect().await?;
            let now = of_all(&connection, &oids).await?;
            connection.recycle();
            Ok(now)
        }
        .await;
        self.parts_at = Some(Instant::now() + self.world.options.status_interval);
        let mut now = match looked {
            // The log itself may well go on meanwhile.
            Err(e) if e.kind().is_transient() => return Ok(()),
            looked => looked?,
        };
        self.close()?;
        let before = self.out.len();
        for (index, shape) in shapes.iter().enumerate() {
            let parts = now.remove(&shape.oid);
            let reshaped = parts.map(|parts| shape.parted_anew(parts)).transpose()?.flatten();
            let Some(reshaped) = reshaped else { continue };
            comparable(shape, reshaped.anew)?;
            self.settle(Found {
                index: Some(index),
                anew: reshaped.anew,
                reshaped: Some(reshaped),
            });
        }
        if self.out.len() > before {
            self.boundary(None);
        }
        Ok(())
    }
}

/// Refuses to read a table anew that cannot be compared.
pub(super) fn comparable(shape: &Shape, why: Option<&str>) -> Result<()> {
    match why {
        Some(why) if shape.key.is_empty() => Err(membership::not_comparable(&shape.table, why)),
        _ => Ok(()),
    }
}

/// Refuses a table whose old rows do not bring the key.
fn check_identity(table: &TableId, key: &[&str], relation: &Relation<'_>) -> Result<()> {
    let marked: Vec<&str> = relation.columns.iter().filter(|c| c.key).map(|c| c.name).collect();
    if marked.is_empty() || key.iter().all(|k| marked.contains(k)) {
        return Ok(());
    }
    Err(Error::new(
        code::LOG_SETUP,
        format!(
            "the replica identity of {table} is ({}), and its rows are found by ({}): a changed key would not be seen",
            marked.join(", "),
            key.join(", ")
        ),
    )
    .hint(format!(
        "ALTER TABLE {table} REPLICA IDENTITY DEFAULT; or make the plan anew"
    )))
}
