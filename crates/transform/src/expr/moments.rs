//! Dates and times of SQL in microseconds, where the engine computes in nanoseconds and the years 1677 to 2262 are all
//! it knows: `now`, `date_trunc`, `date_bin` and `AT TIME ZONE`, as PostgreSQL means them.

use super::exact::each;
use crate::lambda::{columns, refused};
use arrow_array::cast::AsArray;
use arrow_array::temporal_conversions::as_datetime_with_timezone;
use arrow_array::timezone::Tz;
use arrow_array::types::{IntervalMonthDayNanoType, Time64MicrosecondType, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, Time64MicrosecondArray, TimestampMicrosecondArray};
use arrow_schema::{DataType, Field, FieldRef, IntervalUnit, TimeUnit};
use datafusion_common::{DataFusionError, Result, ScalarValue, plan_err};
use datafusion_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};
use std::sync::Arc;
use synctool_core::text::{civil_from_days, days_from_civil};

const DAY: i64 = 86_400_000_000;

/// The functions, which stand in place of the engine's.
pub(super) fn functions() -> Vec<(&'static str, Arc<ScalarUDF>)> {
    let now = Arc::new(ScalarUDF::new_from_impl(Now(Signature::nullary(Volatility::Stable))));
    let user = || Signature::user_defined(Volatility::Immutable);
    vec![
        ("now", now.clone()),
        ("current_timestamp", now),
        ("date_trunc", Arc::new(ScalarUDF::new_from_impl(Truncate(user())))),
        ("datetrunc", Arc::new(ScalarUDF::new_from_impl(Truncate(user())))),
        ("date_bin", Arc::new(ScalarUDF::new_from_impl(Bin(user())))),
    ]
}

fn zoned(utc: bool) -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, utc.then(|| "UTC".into()))
}

/// The greatest and the smallest value stand for infinity.
fn is_infinite(micros: i64) -> bool {
    matches!(micros, i64::MAX | i64::MIN)
}

/// The beginning of a day.
pub(super) fn of_day(day: i32) -> i64 {
    match day {
        i32::MAX => i64::MAX,
        i32::MIN => i64::MIN,
        // Days of 32 bits that are microseconds of more than 64 are past every calendar.
        day => i64::from(day).saturating_mul(DAY),
    }
}

/// The day of a moment.
pub(super) fn day(micros: i64) -> std::result::Result<i32, ()> {
    match micros {
        i64::MAX => Ok(i32::MAX),
        i64::MIN => Ok(i32::MIN),
        micros => i32::try_from(micros.div_euclid(DAY)).map_err(drop),
    }
}

/// What tells a zone of `AT TIME ZONE` from that of a type.
const MARK: &str = "at:";

/// The zone of `AT TIME ZONE` so that a planned cast tells that it was one.
pub(super) fn marked(zone: &str) -> std::result::Result<String, String> {
    parse_zone(zone).map(|_| format!("{MARK}{zone}"))
}

pub(super) fn unmarked(zone: &str) -> Option<&str> {
    zone.strip_prefix(MARK)
}

fn parse_zone(zone: &str) -> std::result::Result<Tz, String> {
    // An offset means one thing here and its opposite in PostgreSQL.
    let named = zone.starts_with(|c: char| c.is_ascii_alphabetic());
    let parsed = zone.parse::<Tz>().ok().filter(|_| named);
    parsed.ok_or_else(|| format!("there is no time zone {zone}: write a name such as Europe/Berlin"))
}

/// The clock of a zone at an instant, in microseconds.
fn local(instant: i64, zone: Tz) -> Option<i64> {
    as_datetime_with_timezone::<TimestampMicrosecondType>(instant, zone)
        .map(|t| t.naive_local().and_utc().timestamp_micros())
}

/// The instant at which a zone's clock shows a time. What it shows twice is the later one, and what it leaves out is
/// counted as if it had not been put forward, as in PostgreSQL.
fn instant(clock: i64, zone: Tz) -> Option<i64> {
    let offset = |instant: i64| local(instant, zone).map(|l| l - instant);
    let (before, after) = (offset(clock.checked_sub(DAY)?)?, offset(clock.checked_add(DAY)?)?);
    let (first, second) = (clock - before, clock - after);
    if before == after || offset(second)? != after {
        return Some(first);
    }
    Some(second)
}

fn moment(t: &DataType) -> Option<DataType> {
    match t {
        DataType::Timestamp(_, zone) => Some(DataType::Timestamp(TimeUnit::Microsecond, zone.clone())),
        DataType::Date32 | DataType::Date64 | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            Some(zoned(false))
        }
        DataType::Null => Some(zoned(false)),
        _ => None,
    }
}

/// Moments, one by one; infinity stays.
fn map(
    array: &ArrayRef,
    to: &DataType,
    work: impl Fn(i64) -> Option<i64>,
) -> std::result::Result<ArrayRef, &'static str> {
    let values = array.as_primitive::<TimestampMicrosecondType>();
    let one = |m: Option<i64>| match m {
        Some(m) if !is_infinite(m) => work(m).filter(|m| !is_infinite(*m)).map(Some).ok_or("overflow"),
        m => Ok(m),
    };
    let made: TimestampMicrosecondArray = values.iter().map(one).collect::<std::result::Result<_, _>>()?;
    Ok(Arc::new(match to {
        DataType::Timestamp(_, zone) => made.with_timezone_opt(zone.clone()),
        _ => made,
    }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Now(Signature);

impl ScalarUDFImpl for Now {
    fn name(&self) -> &str {
        "now"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(zoned(true))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(DataFusionError::Internal(
            "now() is known when an expression is planned".into(),
        ))
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        Ok(match info.query_execution_start_time() {
            Some(now) => ExprSimplifyResult::Simplified(lit(ScalarValue::TimestampMicrosecond(
                Some(now.timestamp_micros()),
                Some("UTC".into()),
            ))),
            None => ExprSimplifyResult::Original(args),
        })
    }
}

/// `expr AT TIME ZONE zone`
pub(super) fn at_zone(expr: Expr, zone: &str) -> Result<Expr> {
    Ok(ScalarUDF::new_from_impl(AtZone {
        zone: zone.to_string(),
        signature: Signature::user_defined(Volatility::Immutable),
    })
    .call(vec![expr]))
}

/// An instant becomes what a zone's clock shows, and what it shows an instant.
#[derive(Debug, PartialEq, Eq, Hash)]
struct AtZone {
    zone: String,
    signature: Signature,
}

impl ScalarUDFImpl for AtZone {
    fn name(&self) -> &str {
        "at_time_zone"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        match types {
            [t @ DataType::Timestamp(..)] => Ok(moment(t).into_iter().collect()),
            // A day or a text is read as an instant in UTC, which expressions compute in.
            [t] if moment(t).is_some() => Ok(vec![zoned(true)]),
            _ => plan_err!("AT TIME ZONE stands behind a timestamp"),
        }
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(zoned(matches!(types.first(), Some(DataType::Timestamp(_, None)))))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let zone = parse_zone(&self.zone).map_err(DataFusionError::Internal)?;
        let to = args.return_field.data_type().clone();
        each(&args.args[0], |array| match &to {
            DataType::Timestamp(_, None) => map(array, &to, |m| local(m, zone)),
            _ => map(array, &to, |m| instant(m, zone)),
        })
    }
}

#[derive(Debug, Clone, Copy)]
enum Unit {
    /// So many microseconds.
    Steps(i64),
    Week,
    Months(i64),
    Years(i64),
    /// Centuries and millennia begin with the year 1.
    Counted(i64),
}

const UNITS: &[(&str, Unit)] = &[
    ("microsecond", Unit::Steps(1)),
    ("millisecond", Unit::Steps(1000)),
    ("second", Unit::Steps(1_000_000)),
    ("minute", Unit::Steps(60_000_000)),
    ("hour", Unit::Steps(3_600_000_000)),
    ("day", Unit::Steps(DAY)),
    ("week", Unit::Week),
    ("month", Unit::Months(1)),
    ("quarter", Unit::Months(3)),
    ("year", Unit::Years(1)),
    ("decade", Unit::Years(10)),
    ("century", Unit::Counted(100)),
    ("millennium", Unit::Counted(1000)),
];

fn unit(name: &str) -> Option<Unit> {
    let name = name.to_lowercase();
    let same = |known: &&str| name == **known || name.strip_suffix('s') == Some(known);
    let name = match name.as_str() {
        "centuries" => "century".into(),
        "millennia" => "millennium".into(),
        _ => UNITS
            .iter()
            .map(|(n, _)| n)
            .find(|n| same(n))
            .map_or(name.clone(), |n| n.to_string()),
    };
    UNITS.iter().find(|(n, _)| *n == name).map(|(_, u)| *u)
}

fn truncate(unit: Unit, micros: i64) -> Option<i64> {
    let day = micros.div_euclid(DAY);
    let (year, month, _) = civil_from_days(day);
    let begin = |year: i64, month: u32| days_from_civil(year, month, 1).checked_mul(DAY);
    match unit {
        Unit::Steps(step) => micros.checked_sub(micros.rem_euclid(step)),
        // The first of January 1970 was a Thursday.
        Unit::Week => (day - (day + 3).rem_euclid(7)).checked_mul(DAY),
        Unit::Months(n) => begin(year, month - (month - 1) % n as u32),
        Unit::Years(n) => begin(year - year.rem_euclid(n), 1),
        Unit::Counted(n) => begin((year - 1).div_euclid(n) * n + 1, 1),
    }
}

/// `date_trunc(unit, moment)`, and with a zone as third argument by its clock.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Truncate(Signature);

fn written(value: Option<&ScalarValue>) -> Option<&str> {
    value.and_then(|v| v.try_as_str().flatten())
}

impl ScalarUDFImpl for Truncate {
    fn name(&self) -> &str {
        "date_trunc"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let (t, zone) = match types {
            [_, t] => (t, None),
            [_, t, _] => (t, Some(DataType::Utf8)),
            _ => return plan_err!("date_trunc takes a unit, a timestamp and perhaps a zone"),
        };
        let t = match t {
            DataType::Time32(_) | DataType::Time64(_) if zone.is_none() => {
                Some(DataType::Time64(TimeUnit::Microsecond))
            }
            t => moment(t),
        };
        let Some(t) = t else {
            return plan_err!("date_trunc takes a timestamp, a date or a time");
        };
        if zone.is_some() && t == zoned(false) {
            return plan_err!("date_trunc with a zone takes an instant (timestamptz)");
        }
        Ok([DataType::Utf8, t].into_iter().chain(zone).collect())
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types.get(1).cloned().unwrap_or(DataType::Null))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let scalars = args.scalar_arguments;
        if written(scalars.first().copied().flatten()).and_then(unit).is_none() {
            let names: Vec<&str> = UNITS.iter().map(|(n, _)| *n).collect();
            return plan_err!(
                "the unit of date_trunc must be written out, as one of {}",
                names.join(", ")
            );
        }
        if let Some(zone) = scalars.get(2)
            && let Err(why) = written(*zone).map_or(Err("the zone must be written out".into()), parse_zone)
        {
            return plan_err!("{why}");
        }
        let ty = args.arg_fields[1].data_type().clone();
        Ok(Arc::new(Field::new("date_trunc", ty, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let text = |at: usize| match args.args.get(at) {
            Some(ColumnarValue::Scalar(s)) => written(Some(s)),
            _ => None,
        };
        let Some(unit) = text(0).and_then(unit) else {
            return Err(DataFusionError::Internal("date_trunc without its unit".into()));
        };
        let zone = text(2).map(parse_zone).transpose().map_err(DataFusionError::Internal)?;
        let to = args.return_field.data_type().clone();
        each(&args.args[1], |array| match (&to, zone) {
            (DataType::Time64(_), _) => {
                let times = array.as_primitive::<Time64MicrosecondType>();
                let made = times.iter().map(|t| t.and_then(|t| truncate(unit, t)));
                Ok(Arc::new(made.collect::<Time64MicrosecondArray>()) as ArrayRef)
            }
            (_, None) => map(array, &to, |m| truncate(unit, m)),
            (_, Some(zone)) => map(array, &to, |m| instant(truncate(unit, local(m, zone)?)?, zone)),
        })
    }
}

/// `date_bin(stride, moment, origin)`: the beginning of the stride that a moment lies in, counted from an origin (1970
/// where there is none).
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bin(Signature);

#[derive(Clone, Copy)]
enum Stride {
    Micros(i64),
    Months(i64),
}

fn stride(value: &ScalarValue) -> std::result::Result<Stride, &'static str> {
    let ScalarValue::IntervalMonthDayNano(Some(v)) = value else {
        return Err("the stride of date_bin must be written out, as an interval");
    };
    let micros = i64::from(v.days)
        .checked_mul(DAY)
        .and_then(|d| d.checked_add(v.nanoseconds / 1000))
        .ok_or("the stride of date_bin is too long")?;
    match (v.months, micros) {
        _ if v.nanoseconds % 1000 != 0 => Err("the stride of date_bin is finer than microseconds"),
        (0, m) if m > 0 => Ok(Stride::Micros(m)),
        (n, 0) if n > 0 => Ok(Stride::Months(i64::from(n))),
        (0, _) | (_, 0) => Err("the stride of date_bin must be longer than nothing"),
        _ => Err("the stride of date_bin is months or a time, not both"),
    }
}

fn bin(stride: Stride, micros: i64, origin: i64) -> Option<i64> {
    match stride {
        Stride::Micros(step) => {
            let since = i128::from(micros) - i128::from(origin);
            let begin = i128::from(micros) - since.rem_euclid(i128::from(step));
            i64::try_from(begin).ok()
        }
        Stride::Months(step) => {
            let parts = |m: i64| {
                let (year, month, day) = civil_from_days(m.div_euclid(DAY));
                (year * 12 + i64::from(month) - 1, i64::from(day), m.rem_euclid(DAY))
            };
            let (from, day, time) = parts(origin);
            let at = |months: i64| {
                let months = from + months;
                let first = |m: i64| days_from_civil(m.div_euclid(12), m.rem_euclid(12) as u32 + 1, 1);
                let last = first(months + 1) - first(months);
                (first(months) + day.min(last) - 1).checked_mul(DAY)?.checked_add(time)
            };
            let strides = (parts(micros).0 - from).div_euclid(step);
            let begin = at(strides * step)?;
            if begin <= micros {
                Some(begin)
            } else {
                at((strides - 1) * step)
            }
        }
    }
}

impl ScalarUDFImpl for Bin {
    fn name(&self) -> &str {
        "date_bin"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let stride = DataType::Interval(IntervalUnit::MonthDayNano);
        let (_, t, origin) = match types {
            [s, t] => (s, t, None),
            [s, t, origin] => (s, t, Some(origin)),
            _ => return plan_err!("date_bin takes a stride, a timestamp and perhaps an origin"),
        };
        let Some(t) = moment(t).filter(|_| origin.is_none_or(|o| moment(o).is_some())) else {
            return plan_err!("date_bin takes timestamps or dates");
        };
        Ok([stride, t.clone()].into_iter().chain(origin.map(|_| t)).collect())
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types.get(1).cloned().unwrap_or(DataType::Null))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        // A text becomes an interval only after this.
        if let Some(Some(value @ ScalarValue::IntervalMonthDayNano(_))) = args.scalar_arguments.first()
            && let Err(why) = stride(value)
        {
            return plan_err!("{why}");
        }
        let ty = args.arg_fields[1].data_type().clone();
        Ok(Arc::new(Field::new("date_bin", ty, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let to = args.return_field.data_type().clone();
        let arrays = columns(args.args, rows)?;
        let strides = arrays[0].as_primitive::<IntervalMonthDayNanoType>();
        let moments = arrays[1].as_primitive::<TimestampMicrosecondType>();
        let origins = arrays.get(2).map(|o| o.as_primitive::<TimestampMicrosecondType>());
        let mut made = TimestampMicrosecondArray::builder(rows);
        for row in 0..rows {
            let origin = origins.map_or(Some(0), |o| o.is_valid(row).then(|| o.value(row)));
            let (Some(origin), true, true) = (origin, strides.is_valid(row), moments.is_valid(row)) else {
                made.append_null();
                continue;
            };
            let micros = moments.value(row);
            if is_infinite(micros) {
                made.append_value(micros);
                continue;
            }
            let step = stride(&ScalarValue::IntervalMonthDayNano(Some(strides.value(row))));
            let step = step.map_err(|_| refused("out_of_range"))?;
            if is_infinite(origin) {
                return Err(refused("out_of_range"));
            }
            made.append_value(bin(step, micros, origin).ok_or_else(|| refused("overflow"))?);
        }
        let made = made.finish();
        Ok(ColumnarValue::Array(Arc::new(match &to {
            DataType::Timestamp(_, zone) => made.with_timezone_opt(zone.clone()),
            _ => made,
        })))
    }
}
