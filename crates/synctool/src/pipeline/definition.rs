//! Whether what the destination remembers is about the pipeline as it is written now.
//!
//! A watermark says that every row below it has been written: with the columns, filters and expressions of then, into the
//! table of then. So the destination remembers beside it what the pipeline meant. Where it means something else now, or
//! its table is empty, nothing of that counts, and the ends are compared or loaded once. Beside each watermark stands what
//! the delta meant that moved it: for one of other stages or deletes, or stamped by another clock, it does not count.

use crate::config::{Pipeline, Strategy};
use std::collections::BTreeMap;
use synctool_core::error::Result;
use synctool_core::schema::TableId;
use synctool_core::sink::Destination;
use synctool_core::strategy::{aggregate, delta};

/// The name under which the destination remembers what the pipeline meant.
pub(super) const DEFINITION: &str = "definition";
/// What stands there where only a part of the rows was loaded into an empty table.
pub(super) const PARTIAL: &str = "partial";

/// The name under which the destination remembers what the delta meant that moved a watermark.
pub(super) fn meant_by(watermark: &str) -> String {
    format!("meant:{watermark}")
}

/// The name under which the destination remembers where the first window began that led to a watermark; nothing stands
/// there if it was at the first row. An older version does not say it.
pub(super) fn begun_at(watermark: &str) -> String {
    format!("begun:{watermark}")
}

/// Puts beside each watermark that a strategy moves what it means by it, unless that is said already.
pub(super) fn put_meaning(remember: &mut BTreeMap<String, String>, pipeline: &Pipeline, strategy: &Strategy) {
    let marks = remember.keys().filter(|name| name.starts_with(delta::WATERMARK));
    for name in marks.map(|name| meant_by(name)).collect::<Vec<_>>() {
        remember.entry(name).or_insert_with(|| pipeline.delta_hash(strategy));
    }
}

/// What the rows of a pipeline's table depend on, as 32 hexadecimal digits: both tables, columns, key, filters and
/// stages; not which strategies write them, nor when.
pub(super) fn of(pipeline: &Pipeline) -> String {
    pipeline.content_hash()
}

/// What a destination knows of a pipeline.
pub(super) struct Known {
    /// Whether its table has no rows, or is not there.
    pub(super) empty: bool,
    /// Everything that it remembers.
    pub(super) all: BTreeMap<String, String>,
    /// What of that still counts.
    pub(super) counts: BTreeMap<String, String>,
    /// Why the rest does not.
    pub(super) doubt: Option<&'static str>,
}

impl Known {
    /// Without the watermarks that were moved by a delta which meant other rows than this strategy does: what that one left
    /// out, or left there, would stay so. An older version does not say what it meant.
    pub(super) fn for_strategy(mut self, pipeline: &Pipeline, strategy: &Strategy) -> Known {
        let meant = pipeline.delta_hash(strategy);
        let all = &self.all;
        let of_another = |name: &String| {
            name.starts_with(delta::WATERMARK) && all.get(&meant_by(name)).is_some_and(|then| *then != meant)
        };
        if self.counts.keys().any(of_another) {
            self.counts
                .retain(|name, _| !of_another(name) && name != aggregate::KEY_MAP);
            self.doubt = Some("the watermark was moved by a delta that meant other rows, so that does not count");
        }
        self
    }
}

/// Looks at a destination's table and what is remembered beside it.
pub(super) async fn known(destination: &dyn Destination, pipeline: &Pipeline, table: &TableId) -> Result<Known> {
    let empty = is_empty(destination, table).await?;
    let all = destination.remembered(pipeline.name.as_str()).await?;
    let (counts, doubt) = trusted(pipeline, all.clone(), empty);
    Ok(Known {
        empty,
        all,
        counts,
        doubt,
    })
}

/// Whether a table has no rows, or is not there.
pub(super) async fn is_empty(destination: &dyn Destination, table: &TableId) -> Result<bool> {
    Ok(match destination.describe(table).await? {
        None => true,
        Some(_) => destination.is_empty(table).await?,
    })
}

/// What still counts of what the destination remembers, and why the rest does not.
fn trusted(
    pipeline: &Pipeline,
    mut remembered: BTreeMap<String, String>,
    empty: bool,
) -> (BTreeMap<String, String>, Option<&'static str>) {
    let is_mark = |name: &String| name.starts_with(delta::WATERMARK);
    if !remembered.keys().any(is_mark) {
        return (remembered, None);
    }
    let why = match remembered.get(DEFINITION) {
        _ if empty => "the destination is empty, so the watermark of earlier runs counts no more",
        Some(then) if then == PARTIAL => {
            "only a part of the rows was loaded into the empty destination, so the watermark of earlier runs counts no more"
        }
        Some(then) if *then != of(pipeline) => {
            "the pipeline means something else than when the watermark was written, so that counts no more"
        }
        _ => return (remembered, None),
    };
    remembered.retain(|name, _| !is_mark(name) && name != aggregate::KEY_MAP);
    (remembered, Some(why))
}
