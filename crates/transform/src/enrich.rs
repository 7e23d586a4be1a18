//! Adds columns of a dimension: joined by key, or by key and the time at which a dimension's row is valid.

use crate::chain::Step;
use crate::dimension::{CachedDimension, Key, KeyForm, Lookup, Row, Rows, SourceLookup};
use crate::rows::{
    Parts, Passage, PerSchema, Refused, arrow_schema, has_all, let_through, pick, place, presence_of_all, rejects,
    without,
};
use crate::spec::{AsOf, EnrichJoin, EnrichSpec, Several};
use arrow_array::ArrayRef;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use synctool_core::blocks::{digest, form_of};
use synctool_core::change::{ChangeBatch, Op};
use synctool_core::error::{Among, Error, Result, code};
use synctool_core::ledger::StageAccount;
use synctool_core::plan::short_hash;
use synctool_core::schema::{Column, ColumnType, TableSchema};
use synctool_core::source::Source;
use synctool_core::stage::{Stage, Staged};
use synctool_core::text::{self, ColumnBuilder};

/// The stage as it is configured, with its dimension.
#[derive(Clone)]
pub(crate) struct Enrich(Arc<Inner>);

struct Inner {
    name: String,
    spec: EnrichSpec,
    key: Arc<[String]>,
    forms: Vec<KeyForm>,
    /// The columns that are added.
    fields: Vec<Column>,
    /// The types of the fields that a dimension's row begins with; its hash is made of them.
    hashed: Vec<ColumnType>,
    /// Where validity stands in a row of the dimension: behind the fields.
    validity: Option<(ColumnType, Option<ColumnType>)>,
    dimension: CachedDimension<SourceLookup>,
    overlaps: AtomicBool,
}

impl Enrich {
    pub(crate) async fn new(name: &str, spec: EnrichSpec, key: Arc<[String]>, source: Arc<dyn Source>) -> Result<Self> {
        let wrong = |message: String| Err(Error::new(code::CONFIG_INVALID, message).at("dimension", &*spec.dimension));
        if spec.on.is_empty() {
            return wrong("a dimension is joined on at least one column".into());
        }
        let there = source
            .describe(&spec.table)
            .await
            .map_err(|e| e.at("dimension", &*spec.dimension))?;
        let find = |name: &str| {
            let at = place(&there.columns, name).map_err(|e| {
                Error::no_column(
                    Among::Dimension,
                    name,
                    format!("column {name} is not in {}", spec.table),
                )
                .at("dimension", &*spec.dimension)
                .hint(e.next_step().unwrap_or_default())
            })?;
            Ok::<Column, Error>(there.columns[at].clone())
        };
        let keys = spec.on.iter().map(|o| find(&o.key)).collect::<Result<Vec<_>>>()?;
        let mut taken = spec
            .fields
            .iter()
            .map(|f| find(&f.source))
            .collect::<Result<Vec<_>>>()?;
        let fields = taken.iter().zip(&spec.fields).map(|(column, field)| {
            let ty = match &column.ty {
                // Its name of the type means something to its engine only.
                ColumnType::Native => ColumnType::Text { max: None },
                ty => ty.clone(),
            };
            Column::new(field.dest.clone(), ty)
        });
        let mut fields: Vec<Column> = fields.collect();
        let hashed = fields.iter().map(|f| f.ty.clone()).collect();
        fields.extend(
            spec.hash
                .iter()
                .map(|h| Column::new(h.clone(), ColumnType::Text { max: None })),
        );
        if let Some(twice) = fields
            .iter()
            .enumerate()
            .find(|(i, f)| fields[..*i].iter().any(|g| g.name == f.name))
        {
            return wrong(format!("column {} is made twice", twice.1.name));
        }
        let mut validity = None;
        if let Some(as_of) = &spec.as_of {
            let from = find(&as_of.valid_from)?;
            let to = as_of.valid_to.as_ref().map(|c| find(c)).transpose()?;
            for column in std::iter::once(&from).chain(&to) {
                if ordinal(&column.ty, "").is_none() {
                    return wrong(format!("column {} ({}) cannot bound validity", column.name, column.ty));
                }
            }
            validity = Some((from.ty.clone(), to.as_ref().map(|c| c.ty.clone())));
            taken.push(from);
            taken.extend(to);
        }
        // Types and names both: a changed dimension does not read what an older one left in Redis.
        let filters = serde_json::to_string(&spec.filters).map_err(|e| Error::bug(format!("filters as text: {e}")))?;
        let shape = format!("{}/{}/{keys:?}/{taken:?}/{filters}", spec.datastore, spec.table);
        let lookup =
            SourceLookup::new(source, spec.table.clone(), &keys, &taken, spec.cache.ttl).filtered(spec.filters.clone());
        let dimension = CachedDimension::new(lookup, &spec.cache, &spec.dimension, &short_hash(&shape))?;
        Ok(Enrich(Arc::new(Inner {
            name: name.to_string(),
            key,
            forms: keys.iter().map(KeyForm::of).collect(),
            fields,
            hashed,
            validity,
            dimension,
            overlaps: AtomicBool::new(false),
            spec,
        })))
    }
}

impl Step for Enrich {
    fn output(&self, input: &TableSchema) -> Result<TableSchema> {
        let inner = &self.0;
        inner.plan(input.columns.clone())?;
        let mut output = input.clone();
        for field in &inner.fields {
            match output.column_mut(&field.name) {
                Some(column) => *column = field.clone(),
                None => output.columns.push(field.clone()),
            }
        }
        Ok(output)
    }

    fn open(&self) -> Result<Box<dyn Stage>> {
        Ok(Box::new(Enriching {
            inner: self.0.clone(),
            plan: PerSchema::default(),
        }))
    }

    fn reads(&self) -> Vec<String> {
        let spec = &self.0.spec;
        let on = spec.on.iter().map(|o| o.column.clone());
        on.chain(spec.as_of.iter().map(|a| a.column.clone())).collect()
    }

    fn makes(&self) -> Vec<String> {
        self.0.fields.iter().map(|f| f.name.clone()).collect()
    }
}

struct Plan {
    /// The columns that are looked up, and whether blanks pad their values.
    on: Vec<(usize, bool)>,
    /// The column compared with validity, and its type.
    as_of: Option<(usize, ColumnType)>,
    /// All columns that a row must have for a lookup.
    inputs: Vec<usize>,
    schema: SchemaRef,
}

impl Inner {
    fn plan(&self, mut columns: Vec<Column>) -> Result<Plan> {
        let on = self
            .spec
            .on
            .iter()
            .map(|o| {
                let at = place(&columns, &o.column)?;
                Ok((at, matches!(columns[at].ty, ColumnType::Char { .. })))
            })
            .collect::<Result<Vec<_>>>()?;
        let as_of = match (&self.spec.as_of, &self.validity) {
            (Some(as_of), Some((from, to))) => {
                let at = place(&columns, &as_of.column)?;
                let ty = columns[at].ty.clone();
                for bound in std::iter::once(from).chain(to) {
                    if !same_axis(&ty, bound) {
                        return Err(Error::new(
                            code::CONFIG_TYPE,
                            format!("column {} ({ty}) has no place in a validity of {bound}", as_of.column),
                        )
                        .at("dimension", &*self.spec.dimension)
                        .hint("cast the column to the type that bounds the validity"));
                    }
                }
                Some((at, ty))
            }
            _ => None,
        };
        let looked_up = on.iter().map(|(at, _)| *at);
        let inputs = looked_up.chain(as_of.as_ref().map(|(at, _)| *at)).collect();
        for field in &self.fields {
            match columns.iter_mut().find(|c| c.name == field.name) {
                Some(column) => *column = field.clone(),
                None => columns.push(field.clone()),
            }
        }
        Ok(Plan {
            on,
            as_of,
            inputs,
            schema: arrow_schema(&columns),
        })
    }

    /// The key of a row, if the dimension may have it.
    fn key_of(&self, batch: &ChangeBatch, on: &[(usize, bool)], row: usize) -> Result<Option<Key>> {
        let mut key = Vec::with_capacity(on.len());
        for ((at, padded), form) in on.iter().zip(&self.forms) {
            let cell = text::cell(batch.rows.column(*at), row)?;
            let value = cell
                .as_deref()
                .map(|c| if *padded { c.trim_end_matches(' ') } else { c });
            match value.and_then(|c| form.text(c)) {
                Some(text) => key.push(text),
                None => return Ok(None),
            }
        }
        Ok(Some(key))
    }

    /// The dimension's row that is valid at a value: of several, the one that became valid last.
    fn valid_at(&self, rows: &Rows, as_of: &AsOf, ty: &ColumnType, value: &str) -> Option<usize> {
        let (from_ty, to_ty) = self.validity.as_ref()?;
        let point = ordinal(ty, value).flatten()?;
        let fields = self.hashed.len();
        let mut best: Option<(i128, usize)> = None;
        let mut several = false;
        for (i, row) in rows.iter().enumerate() {
            let Some(from) = bound(row, fields, from_ty) else {
                continue;
            };
            let begun = if as_of.after { from < point } else { from <= point };
            let going = match to_ty {
                None => true,
                Some(ty) => match bound(row, fields + 1, ty) {
                    None => as_of.include_open_ended,
                    Some(to) if as_of.to_inclusive => point <= to,
                    Some(to) => point < to,
                },
            };
            if begun && going {
                several |= best.is_some_and(|(b, _)| to_ty.is_some() || b == from);
                // Whichever order they are read in, the same one is taken.
                if best.is_none_or(|(b, at)| (from, row) > (b, &rows[at])) {
                    best = Some((from, i));
                }
            }
        }
        if several && !self.overlaps.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                dimension = %self.spec.dimension,
                table = %self.spec.table,
                "rows of the dimension are valid at the same time; the one that became valid last is taken"
            );
        }
        best.map(|(_, i)| i)
    }

    fn column(&self, at: usize, matches: &[Match]) -> Result<ArrayRef> {
        let mut builder = ColumnBuilder::new(&self.fields[at]);
        for m in matches {
            match m {
                Match::Row(rows, i) if at == self.hashed.len() => {
                    let form = form_of(self.hashed.iter().zip(rows[*i].iter().map(Option::as_deref)))?;
                    builder.append_text(&format!("{:032x}", digest(&form)))?;
                }
                Match::Row(rows, i) => builder.append_cell(rows[*i][at].as_deref())?,
                _ => builder.append_null(),
            }
        }
        Ok(builder.finish())
    }
}

/// What the dimension has for a row.
#[derive(Clone)]
enum Match {
    /// The row is a delete, or lacks what the lookup needs.
    Unasked,
    Missing,
    Row(Rows, usize),
    Refused(&'static str),
}

fn bound(row: &Row, at: usize, ty: &ColumnType) -> Option<i128> {
    row.get(at)?.as_deref().and_then(|text| ordinal(ty, text).flatten())
}

/// The place of a value on its axis. The outer `None`: the type has none.
fn ordinal(ty: &ColumnType, value: &str) -> Option<Option<i128>> {
    use ColumnType::*;
    const DAY: i128 = 86_400_000_000;
    Some(match ty {
        Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64 => value.parse().ok(),
        Date => match value {
            "infinity" => Some(i128::MAX),
            "-infinity" => Some(i128::MIN),
            _ => text::parse_date(value).map(|d| i128::from(d) * DAY),
        },
        Timestamp | TimestampTz => match value {
            "infinity" => Some(i128::MAX),
            "-infinity" => Some(i128::MIN),
            _ => text::parse_timestamp(value, *ty == TimestampTz).map(i128::from),
        },
        _ => return None,
    })
}

/// Whether two types are compared on one axis: numbers, days and wall-clock times, or instants.
fn same_axis(a: &ColumnType, b: &ColumnType) -> bool {
    let axis = |t: &ColumnType| match t {
        ColumnType::Date | ColumnType::Timestamp => Some(1),
        ColumnType::TimestampTz => Some(2),
        t => ordinal(t, "").map(|_| 0),
    };
    axis(a).is_some() && axis(a) == axis(b)
}

struct Enriching {
    inner: Arc<Inner>,
    plan: PerSchema<Plan>,
}

impl Enriching {
    async fn matches(inner: &Inner, plan: &Plan, batch: &ChangeBatch) -> Result<Vec<Vec<Match>>> {
        let mut keys = Vec::with_capacity(batch.len());
        for row in 0..batch.len() {
            let asked = batch.ops.get(row) != Op::Delete && has_all(batch, &plan.inputs, row);
            keys.push(match asked {
                true => Some(inner.key_of(batch, &plan.on, row)?),
                false => None,
            });
        }
        let wanted: Vec<Key> = keys.iter().flatten().flatten().cloned().collect();
        let found = inner.dimension.fetch(&wanted).await?;
        let mut matches = Vec::with_capacity(batch.len());
        for (row, key) in keys.into_iter().enumerate() {
            let Some(key) = key else {
                let inner_join = inner.spec.join == EnrichJoin::Inner && batch.ops.get(row) != Op::Delete;
                matches.push(vec![if inner_join {
                    Match::Refused("column_absent")
                } else {
                    Match::Unasked
                }]);
                continue;
            };
            let rows = key.and_then(|k| found.get(&k).cloned()).filter(|r| !r.is_empty());
            matches.push(match (rows, &plan.as_of, &inner.spec.as_of) {
                (None, ..) => vec![Match::Missing],
                (Some(rows), Some((at, ty)), Some(as_of)) => {
                    let value = text::cell(batch.rows.column(*at), row)?;
                    let valid = value.and_then(|v| inner.valid_at(&rows, as_of, ty, &v));
                    vec![valid.map_or(Match::Missing, |i| Match::Row(rows, i))]
                }
                (Some(rows), ..) if rows.len() == 1 => vec![Match::Row(rows, 0)],
                (Some(rows), ..) => match inner.spec.several {
                    Several::Refuse => vec![Match::Refused("several_dimension_rows")],
                    Several::Expand => (0..rows.len()).map(|i| Match::Row(rows.clone(), i)).collect(),
                },
            });
        }
        Ok(matches)
    }
}

#[async_trait]
impl Stage for Enriching {
    fn name(&self) -> &str {
        &self.inner.name
    }

    async fn apply(&mut self, batch: ChangeBatch) -> Result<Staged> {
        let inner = self.inner.clone();
        let rows_in = batch.len() as u64;
        let plan = self.plan.get(&batch.rows.schema(), |columns| inner.plan(columns))?;
        let changes = (0..batch.len()).any(|r| matches!(batch.ops.get(r), Op::Update | Op::Delete));
        let keyed = inner.fields.iter().any(|f| inner.key.contains(&f.name));
        if changes && (inner.spec.several == Several::Expand || keyed) {
            return Err(Error::new(
                code::UNSUPPORTED,
                "deletes and updates do not tell which of a row's copies they are about",
            )
            .at("dimension", &*inner.spec.dimension)
            .hint("rows become several only where they are read as a whole, not where changes are followed"));
        }
        let found = Self::matches(&inner, plan, &batch).await?;
        let mut picked: Vec<u32> = Vec::with_capacity(batch.len());
        let mut matches: Vec<Match> = Vec::with_capacity(batch.len());
        for (row, all) in found.into_iter().enumerate() {
            for one in all {
                picked.push(row as u32);
                matches.push(one);
            }
        }
        let expanded = picked.len() as u64 - rows_in;
        let batch = if expanded > 0 { pick(&batch, &picked)? } else { batch };
        let present = presence_of_all(&batch, &plan.inputs);
        let mut parts = Parts::of(&batch)?;
        for (at, field) in inner.fields.iter().enumerate() {
            parts.set(field.clone(), inner.column(at, &matches)?, present.clone(), None);
        }
        let batch = parts.into_batch(batch, &plan.schema)?;
        let mut account = StageAccount {
            rows_in,
            expanded,
            ..StageAccount::default()
        };
        let (out, refused) = match inner.spec.join {
            EnrichJoin::Left => {
                let refused: Refused = matches
                    .iter()
                    .enumerate()
                    .filter_map(|(row, m)| match m {
                        Match::Refused(reason) => Some((row, (None, *reason))),
                        _ => None,
                    })
                    .collect();
                (without(batch.clone(), &refused)?, refused)
            }
            EnrichJoin::Inner => {
                let passed = let_through(batch.clone(), &inner.key, |row| match &matches[row] {
                    Match::Refused(reason) => Passage::Refused(reason),
                    Match::Missing => Passage::Stopped,
                    _ => Passage::Through,
                })?;
                account.filtered = passed.filtered;
                (passed.batch, passed.refused)
            }
        };
        account.rejected = refused.len() as u64;
        account.rows_out = out.len() as u64;
        Ok(Staged {
            rejects: rejects(&inner.name, &batch, &inner.key, &refused)?,
            batches: if out.is_empty() { Vec::new() } else { vec![out] },
            account,
        })
    }
}
