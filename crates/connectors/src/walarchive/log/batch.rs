//! One batch: what the rows were, kept before the gate opens, and what is handed out behind it.

use super::super::batch::Batch;
use super::super::follow::Waiting;
use super::super::replay::{Replay, by_address};
use super::super::sql;
use super::super::tables::{self, Name, Table};
use super::super::touched::{Address, Walk};
use super::chunks::Rows;
use super::kept::{self, Kept, KeptTable, Writer};
use super::position::LogPosition;
use super::shape::{Shape, Shapes};
use super::world::{Place, deaf_because, reached};
use crate::postgres::log::capture::Initial;
use crate::postgres::log::shape::travelling;
use crate::postgres::{Connection, catalog};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::schema::{Column, TableId};
use synctool_core::text;
use synctool_pgwal::{RelFile, SegmentName};

/// Addresses in one statement.
const CHUNK: usize = 5_000;

/// What a look at the archive brought.
pub(super) enum Step {
    /// A batch: the scratch server stands behind it.
    Batch(Box<Difference>),
    /// Nothing new.
    Idle(Idle),
}

/// What a look at the archive saw that brought nothing.
pub(super) struct Idle {
    pub(super) why: Waiting,
    /// The segment that is awaited.
    pub(super) awaited: SegmentName,
    /// What the command said that did not bring it.
    pub(super) said: Option<String>,
}

impl Step {
    fn idle(replay: &Replay, why: Waiting) -> Step {
        Step::Idle(Idle {
            why,
            awaited: replay.follower.awaited(),
            said: replay.follower.said().map(str::to_owned),
        })
    }
}

/// What is to be handed out of a batch.
pub(super) struct Difference {
    /// Where the destination stands once it has this.
    pub(super) position: LogPosition,
    pub(super) jobs: VecDeque<Job>,
}

/// A part of it; each is done before the next.
pub(super) enum Job {
    /// The table has columns that are new.
    Reshaped(Arc<Shape>, Vec<Column>),
    /// Rows as they were, of which those that are not there any more go; or all, where `all`.
    Gone {
        shape: Arc<Shape>,
        all: bool,
        at: u64,
        left: u64,
    },
    /// Rows at these addresses come.
    Rows {
        shape: Arc<Shape>,
        part: Name,
        walk: Walk<'static>,
        at: Vec<Address>,
    },
    /// All rows of a part come, from this block on.
    Part {
        shape: Arc<Shape>,
        part: Name,
        block: u32,
        end: u32,
    },
    /// The table is emptied: all its rows come behind.
    Emptied(Arc<Shape>),
}

/// The followed tables at the scratch server's place, with the tables that hold their rows.
struct Tables {
    found: tables::Found,
    files: BTreeMap<Name, RelFile>,
}

impl Tables {
    async fn read(session: &Connection, shapes: &[Arc<Shape>]) -> Result<Tables> {
        let selected = shapes.iter().map(|s| s.table.to_string()).collect();
        let names = shapes.iter().map(|s| s.name.clone()).collect();
        Ok(Tables {
            found: tables::find_named(session, selected, names).await?,
            files: tables::files(session).await?,
        })
    }

    /// The tables that hold the rows of a followed one; refuses what has no log of its rows.
    fn parts(&self, shape: &Shape) -> Result<Vec<&Table>> {
        parts(&self.found, &shape.table)
    }
}

/// The tables that hold the rows of a followed one.
pub(super) fn parts<'a>(found: &'a tables::Found, table: &TableId) -> Result<Vec<&'a Table>> {
    let name = table.to_string();
    if !found.names.contains_key(&name) {
        return Err(Error::new(
            code::TABLE_MISSING,
            format!("there is no table {table} in production any more"),
        )
        .at("table", name)
        .hint("leave it out of the pipeline"));
    }
    let parts: Vec<&Table> = found.tables.values().filter(|t| t.selected == name).collect();
    for part in &parts {
        let Some((why, next)) = part.refused() else { continue };
        return Err(Error::new(code::UNSUPPORTED, format!("table {} {why}", part.display()))
            .at("table", name)
            .hint(next));
    }
    Ok(parts)
}

/// Whether rows are in partitions.
pub(super) fn is_parted(parts: &[&Table], name: &Name) -> bool {
    !matches!(parts, [one] if one.name == *name)
}

/// How the tables that hold the rows are made.
fn made(parts: &[&Table]) -> String {
    let each: BTreeSet<String> = parts.iter().map(|t| t.shape()).collect();
    each.into_iter().collect::<Vec<_>>().join("\n")
}

/// Brings the scratch server over the next batch, or over the one that was begun.
pub(super) async fn step(rows: &Rows, shapes: &Shapes, position: &LogPosition, begun: Option<Kept>) -> Result<Step> {
    let world = &rows.world;
    let mut held = world.replay.lock().await;
    let replay = held
        .as_mut()
        .ok_or_else(|| Error::new(code::INTERRUPTED, "the scratch server was stopped"))?;
    let shapes = shapes.all();
    let owner = world.owner()?;
    let (mut batch, mut kept) = match begun {
        Some(kept) => {
            world.is(Place::Moving);
            reached(replay.take_up_to(kept.to).await?)?;
            (replay.scan.finish(), kept)
        }
        None if replay.passing.is_some() => match world.pass_over(replay, owner, position.at).await? {
            Ok(beyond) => beyond,
            Err(why) => return Ok(Step::idle(replay, why)),
        },
        None => {
            let batch = match replay.take_next(position.at).await? {
                Ok(batch) => batch,
                Err(why) => return Ok(Step::idle(replay, why)),
            };
            world.is(Place::Moving);
            // The gate is still shut: the scratch server stands at the old place.
            replay.stand(batch.from).await?;
            let kept = keep(rows, replay, &shapes, position, &batch).await?;
            failpoint("archive.kept")?;
            (batch, kept)
        }
    };
    let names: Vec<Name> = shapes.iter().map(|s| s.name.clone()).collect();
    while let Err(deaf) = replay.arrive(batch.to, batch.parameters.as_ref(), &names).await? {
        tracing::warn!(at = %batch.to, "{}; every table is read whole behind it", deaf_because(&deaf));
        replay.scan.resume(batch);
        (batch, kept) = match world.pass_over(replay, owner, position.at).await? {
            Ok(beyond) => beyond,
            Err(why) => return Ok(Step::idle(replay, why)),
        };
    }
    failpoint("archive.replayed")?;
    let difference = difference(rows, &shapes, position, batch, &kept).await?;
    replay.tidy()?;
    replay.taken.clear();
    world.is(Place::Standing(difference.position.at));
    Ok(Step::Batch(Box::new(difference)))
}

/// Brings to the disk what the rows of a batch were.
async fn keep(
    rows: &Rows,
    replay: &Replay,
    shapes: &[Arc<Shape>],
    position: &LogPosition,
    batch: &Batch,
) -> Result<Kept> {
    let session = rows.session().await?;
    let there = Tables::read(&session, shapes).await?;
    let directory = rows.world.directory();
    let mut writer = Writer::create(&directory)?;
    let mut all = Vec::new();
    for shape in shapes {
        let parts = there.parts(shape)?;
        let fragile = session.query_one(sql::FRAGILE, &[&shape.name.0, &shape.name.1]).await;
        let fragile = fragile.map_err(|e| session.error(e, "reading a table's indexes"))?;
        let numbered = |t: &&Table| Some((t.name.clone(), kept::numbers(*there.files.get(&t.name)?)));
        let mut table = KeptTable {
            table: TableId::clone(&shape.table),
            shape: made(&parts),
            parts: parts.iter().filter_map(numbered).collect(),
            whole: position.owed.contains(&shape.table.to_string()),
            fragile: fragile.get(0),
            at: writer.at(),
            rows: 0,
        };
        for part in &parts {
            if table.whole {
                break;
            }
            let Some(changes) = there.files.get(&part.name).and_then(|file| batch.files.get(file)) else {
                continue;
            };
            let mut walk = changes.addresses.walk()?;
            let identity = shape.identity();
            loop {
                let at = walk.next(rows.widths.rows(&shape.table, CHUNK))?;
                if at.is_empty() {
                    break;
                }
                let from = at_addresses(&part.name, &at);
                by_address(&session, true).await?;
                let read = rows.read(&session, shape, Some(&identity), &from).await?;
                by_address(&session, false).await?;
                let Some(found) = read else {
                    // Production holds a lock on it. Without what it was it is read whole.
                    table.whole = true;
                    break;
                };
                for row in 0..found.num_rows() {
                    let cells = found.columns().iter().map(|c| text::cell(c.as_ref(), row));
                    writer.put(&cells.collect::<Result<_>>()?)?;
                    table.rows += 1;
                }
            }
        }
        all.push(table);
    }
    session.recycle();
    writer.finish()?;
    let kept = Kept {
        owner: rows.world.owner()?.into(),
        from: batch.from,
        to: batch.to,
        timeline: replay.follower.timeline(),
        restart: batch.restart,
        log: Some(batch.log),
        tables: all,
    };
    failpoint("archive.before_kept")?;
    kept.store(&directory)?;
    Ok(kept)
}

/// What stands behind FROM for the rows at addresses.
pub(super) fn at_addresses(part: &Name, at: &[Address]) -> String {
    format!(
        "ONLY {} WHERE ctid = ANY ({})",
        sql::table(&part.0, &part.1),
        sql::addresses(at)
    )
}

/// What is to be handed out, now that the scratch server stands behind the batch.
async fn difference(
    rows: &Rows,
    shapes: &[Arc<Shape>],
    before: &LogPosition,
    mut batch: Batch,
    kept: &Kept,
) -> Result<Difference> {
    let session = rows.session().await?;
    let there = Tables::read(&session, shapes).await?;
    let mut position = LogPosition {
        timeline: kept.timeline,
        at: batch.to,
        restart: batch.restart,
        committed_at: batch.last_commit.map(|at| at.unix_micros()).or(before.committed_at),
        owed: BTreeSet::new(),
        ..before.clone()
    };
    let mut jobs = VecDeque::new();
    for shape in shapes {
        let parts = there.parts(shape)?;
        let was = kept.tables.iter().find(|t| t.table == *shape.table);
        let name = shape.table.to_string();
        let changed = was.is_none_or(|was| was.shape != made(&parts));
        let parted = is_parted(&parts, &shape.name);
        let mut shape = shape.clone();
        if changed || parted != shape.parted {
            let mut next = Shape::clone(&shape);
            next.parted = parted;
            let new = reshape(&session, &mut next).await?;
            shape = Arc::new(next);
            if !new.is_empty() {
                position.added.insert(name.clone(), shape.added());
            }
            jobs.push_back(Job::Reshaped(shape.clone(), new));
        }
        let lost = |was: &KeptTable| was.parts.iter().any(|(name, _)| !parts.iter().any(|p| p.name == *name));
        let rewritten = |was: &KeptTable| {
            let mut known = parts.iter().filter_map(|p| Some((was.file(&p.name)?, p)));
            known.any(|(file, p)| there.files.get(&p.name) != Some(&file))
        };
        // Old rows may look different now though nothing touched them.
        let whole = match was {
            _ if changed => true,
            Some(was) => was.whole || lost(was) || rewritten(was),
            None => true,
        };
        let touched = |part: &&Table| {
            let file = was.and_then(|was| was.file(&part.name));
            file.is_none_or(|file| batch.files.contains_key(&file))
        };
        if !whole && was.is_none_or(|was| was.rows == 0) && !parts.iter().any(touched) {
            continue;
        }
        if is_locked(&session, &parts).await? {
            tracing::warn!(table = name, place = %batch.to, "production holds a lock on a table at this place: it is read whole behind it");
            position.owed.insert(name);
            continue;
        }
        if whole {
            jobs.push_back(Job::Emptied(shape.clone()));
        }
        if let Some(was) = was.filter(|was| !whole && was.rows > 0) {
            jobs.push_back(Job::Gone {
                shape: shape.clone(),
                all: was.fragile || shape.key.is_empty(),
                at: was.at,
                left: was.rows,
            });
        }
        for part in &parts {
            let file = was.and_then(|was| was.file(&part.name)).filter(|_| !whole);
            let Some(file) = file else {
                jobs.push_back(of_part(&session, shape.clone(), part.name.clone()).await?);
                continue;
            };
            if let Some(changes) = batch.files.remove(&file) {
                jobs.push_back(Job::Rows {
                    shape: shape.clone(),
                    part: part.name.clone(),
                    walk: changes.addresses.into_walk()?,
                    at: Vec::new(),
                });
            }
        }
    }
    session.recycle();
    Ok(Difference { position, jobs })
}

/// Whether production holds a lock on one of these that is not over at the scratch server's place.
async fn is_locked(session: &Connection, parts: &[&Table]) -> Result<bool> {
    for part in parts {
        if tables::is_blocked(session, part).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// All rows of tables that cannot be read in chunks, for a destination that has none of them yet.
pub(super) async fn first(rows: &Rows, shapes: &[(Arc<Shape>, Initial)], position: &LogPosition) -> Result<Difference> {
    let session = rows.session().await?;
    let mut jobs = VecDeque::new();
    let wanted = shapes
        .iter()
        .filter(|(s, initial)| s.key.is_empty() && *initial != Initial::Skip);
    let wanted: Vec<&(Arc<Shape>, Initial)> = wanted.collect();
    let all: Vec<Arc<Shape>> = wanted.iter().map(|(shape, _)| shape.clone()).collect();
    let there = Tables::read(&session, &all).await?;
    let mut position = position.clone();
    for (shape, initial) in wanted {
        let parts = there.parts(shape)?;
        if is_locked(&session, &parts).await? {
            position.owed.insert(shape.table.to_string());
            continue;
        }
        if *initial == Initial::Resync {
            jobs.push_back(Job::Emptied(shape.clone()));
        }
        for part in parts {
            jobs.push_back(of_part(&session, shape.clone(), part.name.clone()).await?);
        }
    }
    session.recycle();
    Ok(Difference { position, jobs })
}

/// Reading a whole part.
async fn of_part(session: &Connection, shape: Arc<Shape>, part: Name) -> Result<Job> {
    let row = session.query_one(sql::BLOCKS, &[&part.0, &part.1]).await;
    let row = row.map_err(|e| session.error(e, &format!("reading {}", shape.table)))?;
    Ok(Job::Part {
        shape,
        part,
        block: 0,
        end: u32::try_from(row.get::<_, i64>(0)).unwrap_or(u32::MAX),
    })
}

/// Fits a shape to the table as it is now; gives the columns that are new. Only these are followed.
async fn reshape(session: &Connection, shape: &mut Shape) -> Result<Vec<Column>> {
    let table = TableId::new(&shape.name.0, &shape.name.1);
    let now = catalog::describe(session, &table, &shape.name.0).await?.schema;
    let refused = |what: String| {
        Err(Error::new(code::SCHEMA_MISMATCH, format!("{what} in production: only added columns are followed"))
            .at("table", table.to_string())
            .hint("change the destination table as production's was changed, then run once with --restart: it is compared and made equal"))
    };
    for column in &shape.read.columns {
        let Some(found) = now.column(&column.source) else {
            return refused(format!("column {} of {table} is gone", column.source));
        };
        if let (Some(was), Some(is)) = (&column.column.source_type, &found.source_type)
            && was != is
        {
            return refused(format!("column {} of {table} is {is} and was {was}", column.source));
        }
    }
    let sources: Vec<&str> = shape.read.columns.iter().map(|c| c.source.as_str()).collect();
    let is_new = |c: &&Column| !sources.contains(&c.name.as_str()) && !shape.others.contains(&c.name);
    let (computed, new): (Vec<&Column>, Vec<&Column>) = now.columns.iter().filter(is_new).partition(|c| c.generated);
    let computed: Vec<String> = computed.into_iter().map(|c| c.name.clone()).collect();
    let new: Vec<Column> = new.into_iter().map(|c| travelling(c.clone())).collect();
    shape.others.extend(computed);
    shape.add(&new);
    Ok(new)
}
