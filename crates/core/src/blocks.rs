//! Hashes of blocks of rows, computed at each end and compared: how differences are found without moving rows.
//!
//! One scan per end groups the rows of a slice into blocks by their key and yields, per block, a count and two 64-bit
//! sums of a 128-bit row hash. Only blocks that differ are looked at row by row.
//!
//! # The canonical form of a row
//!
//! Every engine must make the same bytes of the same row. Per compared column, in order, one field:
//!
//! - NULL is `~`.
//! - A *short* value is its text and a comma. Its text never holds a comma or begins with `~`.
//! - A *long* value is the number of its bytes in UTF-8, a colon and the bytes.
//!
//! | [`ColumnType`] | form | text |
//! | --- | --- | --- |
//! | Bool | short | `0` or `1` |
//! | integers | short | decimal digits, `-` before a negative one |
//! | Decimal | short | with exactly `scale` digits behind the point (no point for scale 0), `-` before a negative one, zero without a sign; NaN and infinities as `NaN`, `Infinity`, `-Infinity` |
//! | Numeric | short | plain digits without an exponent, no zeros at the end of the fraction, no point without a fraction; NaN and infinities as above |
//! | Date | short | days since 1970-01-01; `infinity`, `-infinity` |
//! | Time | short | microseconds since midnight |
//! | Timestamp, TimestampTz | short | microseconds since 1970-01-01 00:00:00 (UTC where there is a zone); `infinity`, `-infinity` |
//! | Uuid | short | 32 lower hexadecimal digits |
//! | Bytes | short | lower hexadecimal digits |
//! | Text | long | as it is |
//! | Char | long | without blanks at the end |
//! | Float32, Float64 | short | the bits in hexadecimal, 8 or 16 digits, zero without a sign, every NaN as `NaN`; only on our side |
//! | TimeTz, Interval, Json, Jsonb, Native | long | the canonical text ([`crate::text`]); only on our side |
//!
//! The row hash is the MD5 of these bytes (RFC 1321), for its presence in every engine, not for security: its first
//! eight bytes, big endian, are the high half, the last eight the low half. What a column is called or which database
//! computes it plays no part. Where both ends have a cheaper hash of texts in common, that is taken of the same bytes
//! ([`RowForm::Text`]).

use crate::change::Event;
use crate::error::{Error, Result, code};
use crate::ledger::Tally;
use crate::plan::{Partition, ReadSpec, Slice, Work};
use crate::schema::ColumnType;
use crate::source::{ReadContext, Source};
use crate::text;
use arrow_array::RecordBatch;
use async_trait::async_trait;
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How a row becomes 128 bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowForm {
    /// An engine's own fast hash of whole records. Both ends agreed on this signature, so they compute the same.
    Fast(String),
    /// An engine's own hashes of texts, 128 bits together, of the canonical form. Both ends agreed on this signature.
    Text(String),
    /// MD5 of the canonical form.
    Canonical,
}

impl RowForm {
    /// Whether only engines that agreed on it can compute it: nobody else, neither another engine nor our side.
    pub fn is_agreed(&self) -> bool {
        !matches!(self, RowForm::Canonical)
    }
}

/// How the rows of a slice are grouped into blocks. Both ends group by the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocks {
    /// By the first key column, an integer: block = floor(key / width).
    Divide {
        /// Keys per block.
        width: i64,
    },
    /// By the MD5 of the key columns' canonical form: block = its first four bytes, big endian, modulo count. Ends that
    /// agreed on a hash of rows take that of the key instead.
    Spread {
        /// How many blocks.
        count: u32,
    },
}

/// A column that is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its place in [`ReadSpec::columns`], where its own type stands.
    pub place: usize,
    /// The type both ends agreed to compare as: the canonical form is this type's.
    pub ty: ColumnType,
}

/// What is hashed.
#[derive(Debug, Clone)]
pub struct HashRequest {
    /// Where it is read, with the columns' own types and names.
    pub read: ReadSpec,
    /// The columns compared, in the order both ends agreed on.
    pub compared: Vec<Field>,
    /// The key.
    pub key: Vec<Field>,
    /// Which rows.
    pub slice: Slice,
    /// How a row becomes 128 bits.
    pub form: RowForm,
    /// How rows are grouped.
    pub blocks: Blocks,
}

/// One block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Block {
    /// How many rows.
    pub rows: u64,
    /// Sum of the high halves of the row hashes, modulo 2^64.
    pub high: u64,
    /// Sum of the low halves.
    pub low: u64,
}

/// One row of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowHash {
    /// Its key, as canonical texts.
    pub key: Vec<Option<String>>,
    /// Its hash.
    pub hash: u128,
}

/// Computes hashes inside a datastore.
#[async_trait]
pub trait BlockHashes: Send + Sync {
    /// The signature of the fast form for these columns, if the engine has one for all of them: two ends with equal
    /// signatures compute equal hashes of equal rows. It names everything that plays a part (engine, version of the
    /// algorithm, types in order).
    fn fast_form(&self, read: &ReadSpec, compared: &[usize]) -> Option<String>;

    /// The signature of the engine's own 128 bits of hash of a text, if it has one: two ends with equal signatures compute
    /// equal hashes of equal texts.
    fn text_form(&self) -> Option<String> {
        None
    }

    /// Whether the engine can compute the canonical form of this type from a column of it (`stored` is the column's
    /// own type, `agreed` the type compared as).
    fn canonical(&self, stored: &ColumnType, agreed: &ColumnType) -> bool;

    /// The blocks that hold rows, by number.
    async fn blocks(&self, request: &HashRequest) -> Result<BTreeMap<i64, Block>>;

    /// Every row of these blocks.
    async fn rows(&self, request: &HashRequest, blocks: &[i64]) -> Result<Vec<RowHash>>;
}

/// Whether a type's canonical form is long: its length stands before it.
pub fn is_long(ty: &ColumnType) -> bool {
    matches!(
        ty,
        ColumnType::Text { .. }
            | ColumnType::Char { .. }
            | ColumnType::TimeTz
            | ColumnType::Interval
            | ColumnType::Json
            | ColumnType::Jsonb
            | ColumnType::Native
    )
}

/// Adds a value's field to the canonical form of its row. `value` is the canonical text of the value in the column's own
/// type; `ty` is the type it is compared as.
pub fn push_field(out: &mut Vec<u8>, ty: &ColumnType, value: Option<&str>) -> Result<()> {
    let Some(value) = value else {
        out.push(b'~');
        return Ok(());
    };
    if is_long(ty) {
        let value = match ty {
            ColumnType::Char { .. } => value.trim_end_matches(' '),
            _ => value,
        };
        out.extend_from_slice(value.len().to_string().as_bytes());
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
        return Ok(());
    }
    let malformed = || {
        Error::new(
            code::VALUE_MALFORMED,
            format!("a value is not of the type {ty} that it is compared as"),
        )
    };
    let special = |v: &str| matches!(v, "infinity" | "-infinity");
    let number = |n: i64| n.to_string();
    let text: String = match ty {
        ColumnType::Bool => match value {
            "true" | "t" | "1" => "1".into(),
            "false" | "f" | "0" => "0".into(),
            _ => return Err(malformed()),
        },
        ColumnType::Decimal { scale, .. } => decimal(value, Some(i32::from(*scale))).ok_or_else(malformed)?,
        ColumnType::Numeric => decimal(value, None).ok_or_else(malformed)?,
        ColumnType::Date if special(value) => value.into(),
        ColumnType::Date => number(i64::from(text::parse_date(value).ok_or_else(malformed)?)),
        ColumnType::Time => number(text::parse_time(value).ok_or_else(malformed)?),
        ColumnType::Timestamp | ColumnType::TimestampTz if special(value) => value.into(),
        ColumnType::Timestamp => number(text::parse_timestamp(value, false).ok_or_else(malformed)?),
        ColumnType::TimestampTz => number(text::parse_timestamp(value, true).ok_or_else(malformed)?),
        ColumnType::Uuid => value
            .chars()
            .filter(|c| *c != '-')
            .map(|c| c.to_ascii_lowercase())
            .collect(),
        ColumnType::Bytes => value.strip_prefix("\\x").ok_or_else(malformed)?.to_ascii_lowercase(),
        ColumnType::Float32 => {
            let v: f32 = value.parse().map_err(|_| malformed())?;
            if v.is_nan() {
                "NaN".into()
            } else {
                format!("{:08x}", (v + 0.0).to_bits())
            }
        }
        ColumnType::Float64 => {
            let v: f64 = value.parse().map_err(|_| malformed())?;
            if v.is_nan() {
                "NaN".into()
            } else {
                format!("{:016x}", (v + 0.0).to_bits())
            }
        }
        _ => value.into(),
    };
    out.extend_from_slice(text.as_bytes());
    out.push(b',');
    Ok(())
}

/// The canonical form of some values, each with the type it is compared as ([`push_field`]).
pub fn form_of<'a>(fields: impl IntoIterator<Item = (&'a ColumnType, Option<&'a str>)>) -> Result<Vec<u8>> {
    let mut form = Vec::new();
    for (ty, value) in fields {
        push_field(&mut form, ty, value)?;
    }
    Ok(form)
}

/// A decimal's text with exactly `scale` digits behind the point, or with as many as it needs. `None` if it is no
/// decimal or would lose a digit.
fn decimal(value: &str, scale: Option<i32>) -> Option<String> {
    if matches!(value, "NaN" | "Infinity" | "-Infinity") {
        return Some(value.into());
    }
    let (sign, digits) = value.strip_prefix('-').map_or(("", value), |d| ("-", d));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        w => w,
    };
    let fraction = fraction.trim_end_matches('0');
    let fraction = match scale {
        None => fraction.to_string(),
        Some(scale) if fraction.len() <= usize::try_from(scale.max(0)).ok()? => {
            format!("{fraction:0<width$}", width = scale.max(0) as usize)
        }
        Some(_) => return None,
    };
    let zero = whole == "0" && fraction.bytes().all(|b| b == b'0');
    let sign = if zero { "" } else { sign };
    Some(match fraction.is_empty() {
        true => format!("{sign}{whole}"),
        false => format!("{sign}{whole}.{fraction}"),
    })
}

/// The MD5 of a canonical form, as the row's 128 bits.
pub fn digest(form: &[u8]) -> u128 {
    u128::from_be_bytes(Md5::digest(form).into())
}

/// The block of a key in canonical form; `first_key` is the text of its first part.
pub fn block_of(blocks: Blocks, first_key: Option<&str>, key_form: &[u8]) -> Result<i64> {
    match blocks {
        Blocks::Divide { width } => {
            let key: i64 = first_key
                .and_then(|k| k.parse().ok())
                .ok_or_else(|| Error::bug("blocks by division need an integer key that is not NULL"))?;
            Ok(key.div_euclid(width))
        }
        Blocks::Spread { count } => Ok(i64::from((digest(key_form) >> 96) as u32 % count)),
    }
}

/// Hashes made by reading rows: for engines that cannot compute them, and for types that only our side knows.
pub struct ReadingHashes {
    source: Arc<dyn Source>,
    context: ReadContext,
}

impl ReadingHashes {
    /// Hashes of what `source` reads.
    pub fn new(source: Arc<dyn Source>, context: ReadContext) -> Self {
        ReadingHashes { source, context }
    }

    async fn each(
        &self,
        request: &HashRequest,
        mut take: impl FnMut(i64, Vec<Option<String>>, u128) + Send,
    ) -> Result<()> {
        let partition = Partition::new("compare", Work::Read(request.slice.clone()));
        let mut reader = self.source.open(&request.read, &partition, None, &self.context).await?;
        while let Some(event) = reader.next().await? {
            let Event::Rows(batch) = event else { continue };
            each_row(request, &batch.rows, &mut take)?;
        }
        Ok(())
    }
}

fn each_row(
    request: &HashRequest,
    rows: &RecordBatch,
    take: &mut impl FnMut(i64, Vec<Option<String>>, u128),
) -> Result<()> {
    if request.form.is_agreed() {
        return Err(Error::bug("an engine's own hash cannot be made by reading rows"));
    }
    let mut form = Vec::new();
    for row in 0..rows.num_rows() {
        form.clear();
        let mut key = Vec::with_capacity(request.key.len());
        for field in &request.key {
            let value = text::cell(rows.column(field.place), row)?;
            push_field(&mut form, &field.ty, value.as_deref())?;
            key.push(value);
        }
        let block = block_of(request.blocks, key.first().and_then(Option::as_deref), &form)?;
        form.clear();
        for field in &request.compared {
            let value = text::cell(rows.column(field.place), row)?;
            push_field(&mut form, &field.ty, value.as_deref())?;
        }
        take(block, key, digest(&form));
    }
    Ok(())
}

#[async_trait]
impl BlockHashes for ReadingHashes {
    fn fast_form(&self, _: &ReadSpec, _: &[usize]) -> Option<String> {
        None
    }

    fn canonical(&self, _: &ColumnType, _: &ColumnType) -> bool {
        true
    }

    async fn blocks(&self, request: &HashRequest) -> Result<BTreeMap<i64, Block>> {
        let mut blocks: BTreeMap<i64, Tally> = BTreeMap::new();
        self.each(request, |block, _, hash| blocks.entry(block).or_default().add_row(hash))
            .await?;
        Ok(blocks
            .into_iter()
            .map(|(id, t)| {
                let block = Block {
                    rows: t.rows,
                    high: t.hash_high,
                    low: t.hash_low,
                };
                (id, block)
            })
            .collect())
    }

    async fn rows(&self, request: &HashRequest, blocks: &[i64]) -> Result<Vec<RowHash>> {
        let wanted: std::collections::HashSet<i64> = blocks.iter().copied().collect();
        let mut rows = Vec::new();
        self.each(request, |block, key, hash| {
            if wanted.contains(&block) {
                rows.push(RowHash { key, hash });
            }
        })
        .await?;
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(ty: &ColumnType, value: Option<&str>) -> String {
        let mut out = Vec::new();
        push_field(&mut out, ty, value).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fields_have_one_form() {
        use ColumnType as T;
        let decimal = T::Decimal {
            precision: 10,
            scale: 2,
        };
        for (ty, value, form) in [
            (T::Int64, "-5", "-5,"),
            (T::Bool, "true", "1,"),
            (decimal.clone(), "1.1", "1.10,"),
            (decimal.clone(), "-0.00", "0.00,"),
            (decimal.clone(), "NaN", "NaN,"),
            (T::Numeric, "100.500", "100.5,"),
            (T::Numeric, "100", "100,"),
            (T::Numeric, "-0.0", "0,"),
            (T::Date, "1969-12-31", "-1,"),
            (T::Time, "24:00:00", "86400000000,"),
            (T::Timestamp, "1969-12-31 23:59:59.999999", "-1,"),
            (T::TimestampTz, "1970-01-01 00:00:01+00", "1000000,"),
            (T::TimestampTz, "infinity", "infinity,"),
            (
                T::Uuid,
                "0F3C0000-0000-0000-0000-00000000000a",
                "0f3c000000000000000000000000000a,",
            ),
            (T::Bytes, "\\xDEad", "dead,"),
            (T::Text { max: None }, "a,é", "4:a,é"),
            (T::Char { length: 5 }, "ab   ", "2:ab"),
            (T::Float64, "-0", "0000000000000000,"),
        ] {
            assert_eq!(field(&ty, Some(value)), form, "{ty} {value:?}");
            assert_eq!(field(&ty, None), "~");
        }
        let mut out = Vec::new();
        assert!(
            push_field(&mut out, &decimal, Some("1.005")).is_err(),
            "a digit would be lost"
        );
    }

    #[test]
    fn neighbours_do_not_run_together() {
        let row = |values: [Option<&str>; 2]| {
            let mut out = Vec::new();
            for v in values {
                push_field(&mut out, &ColumnType::Text { max: None }, v).unwrap();
            }
            digest(&out)
        };
        assert_ne!(row([Some("ab"), Some("c")]), row([Some("a"), Some("bc")]));
        assert_ne!(row([Some(""), None]), row([None, Some("")]));
        assert_ne!(row([Some("~"), None]), row([None, None]));
    }

    #[test]
    fn keys_below_zero_have_blocks_of_their_own() {
        let block = |k: &str| block_of(Blocks::Divide { width: 10 }, Some(k), b"").unwrap();
        assert_eq!([block("-1"), block("-10"), block("0"), block("9")], [-1, -1, 0, 0]);
    }
}
