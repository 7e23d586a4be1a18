//! Looking rows up in a datastore: by keys where it can, in a copy of the whole table where it cannot.

use super::key::KeyForm;
use super::{Key, Lookup, Row, Rows};
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use synctool_core::budget::Budget;
use synctool_core::change::Event;
use synctool_core::error::{Error, ErrorKind, Result, code};
use synctool_core::plan::{Partition, ReadColumn, ReadSpec, Slice, Work};
use synctool_core::query::{Filter, KeyList, Term};
use synctool_core::schema::{Column, TableId};
use synctool_core::source::{ReadContext, Source};
use synctool_core::text;
use tokio::sync::Mutex;

/// Keys asked for at once.
const KEYS_AT_ONCE: usize = 1000;

/// A larger dimension is not copied whole.
const MAX_ROWS: usize = 2_000_000;

/// Memory for rows on their way from the dimension.
const READ_BYTES: usize = 32 << 20;

type Copy = Arc<HashMap<Key, Rows>>;

/// A dimension in a datastore.
pub struct SourceLookup {
    source: Arc<dyn Source>,
    read: ReadSpec,
    forms: Vec<KeyForm>,
    /// How long a copy of the whole table counts as true.
    ttl: Duration,
    by_keys: AtomicBool,
    copy: Mutex<Option<(Instant, Copy)>>,
}

impl SourceLookup {
    /// Rows of a table with these key columns and fields, all of them the table's.
    pub fn new(source: Arc<dyn Source>, table: TableId, keys: &[Column], fields: &[Column], ttl: Duration) -> Self {
        let columns = keys.iter().chain(fields).map(|c| ReadColumn::plain(&c.name, c.clone()));
        SourceLookup {
            source,
            read: ReadSpec::of(table, columns.collect()),
            forms: keys.iter().map(KeyForm::of).collect(),
            ttl,
            by_keys: AtomicBool::new(true),
            copy: Mutex::new(None),
        }
    }

    /// Only rows that meet these.
    #[must_use]
    pub fn filtered(mut self, filters: Vec<Filter>) -> Self {
        self.read.filters = filters;
        self
    }

    async fn read(&self, slice: Slice, into: &mut HashMap<Key, Vec<Row>>) -> Result<()> {
        let partition = Partition::new("dimension", Work::Read(slice));
        let context = ReadContext {
            budget: Budget::new(READ_BYTES),
            batch_bytes: 1 << 20,
            ..ReadContext::default()
        };
        let mut reader = self.source.open(&self.read, &partition, None, &context).await?;
        let mut rows = 0;
        while let Some(event) = reader.next().await? {
            let batch = match event {
                Event::Rows(batch) => batch.rows,
                Event::Boundary { .. } | Event::Begin(_) | Event::Message { .. } => continue,
                _ => return Err(Error::bug("a dimension was read as something else than rows")),
            };
            rows += batch.num_rows();
            if rows > MAX_ROWS {
                return Err(Error::new(
                    code::UNSUPPORTED,
                    format!("the dimension has more than {MAX_ROWS} rows, and its datastore is not read by keys"),
                )
                .at("table", self.read.table.to_string())
                .hint("put the dimension into a database, or a smaller view of it"));
            }
            for row in 0..batch.num_rows() {
                let mut cells = batch.columns().iter().map(|c| text::cell(c, row));
                let mut key = Vec::with_capacity(self.forms.len());
                for form in &self.forms {
                    let cell = cells.next().transpose()?.flatten();
                    key.extend(cell.and_then(|c| form.text(&c)));
                }
                // NULL is equal to nothing.
                if key.len() == self.forms.len() {
                    into.entry(key).or_default().push(cells.collect::<Result<Row>>()?);
                }
            }
        }
        Ok(())
    }

    async fn whole(&self) -> Result<Copy> {
        let mut copy = self.copy.lock().await;
        if let Some((until, rows)) = copy.as_ref()
            && *until > Instant::now()
        {
            return Ok(rows.clone());
        }
        let mut rows = HashMap::new();
        self.read(Slice::All, &mut rows).await?;
        let rows: Copy = Arc::new(rows.into_iter().map(|(k, v)| (k, Arc::new(v))).collect());
        *copy = Some((Instant::now() + self.ttl, rows.clone()));
        Ok(rows)
    }
}

#[async_trait]
impl Lookup for SourceLookup {
    async fn fetch(&self, keys: &[Key]) -> Result<HashMap<Key, Rows>> {
        if self.by_keys.load(Ordering::Relaxed) {
            let terms: Vec<Term> = self.read.columns[..self.forms.len()]
                .iter()
                .map(ReadColumn::term)
                .collect();
            let mut found = HashMap::new();
            let mut able = true;
            for keys in keys.chunks(KEYS_AT_ONCE) {
                let slice = Slice::Keys(KeyList {
                    terms: terms.clone(),
                    keys: keys.iter().map(|k| k.iter().cloned().map(Some).collect()).collect(),
                });
                // A database may find keys that it takes for equal, as those of another case: others ask for these.
                let mut rows = HashMap::new();
                match self.read(slice, &mut rows).await {
                    Ok(()) => found.extend(keys.iter().filter_map(|k| rows.remove_entry(k))),
                    Err(e) if e.kind() == ErrorKind::Unsupported => {
                        able = false;
                        break;
                    }
                    Err(e) => return Err(e.at("dimension", self.read.table.to_string())),
                }
            }
            if able {
                return Ok(found.into_iter().map(|(k, v)| (k, Arc::new(v))).collect());
            }
            self.by_keys.store(false, Ordering::Relaxed);
        }
        let whole = self
            .whole()
            .await
            .map_err(|e| e.at("dimension", self.read.table.to_string()))?;
        let found = keys.iter().filter_map(|k| Some((k.clone(), whole.get(k)?.clone())));
        Ok(found.collect())
    }
}
