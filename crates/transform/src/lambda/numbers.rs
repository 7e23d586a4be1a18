//! Python's arithmetic where SQL's differs. Whatever Python would raise for is a reason to refuse the row.

use arrow_buffer::i256;
use std::cmp::Ordering;

/// A value, or the reason why there is none.
pub(super) type Outcome<T> = Result<T, &'static str>;

pub(super) const OVERFLOW: &str = "overflow";
pub(super) const DIVISION: &str = "division_by_zero";
pub(super) const CAST: &str = "bad_cast";
pub(super) const RANGE: &str = "out_of_range";
pub(super) const COMPLEX: &str = "not_a_real_number";

/// A number in one of the three forms a column has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    Int(i64),
    Float(f64),
    /// Unscaled digits and scale.
    Decimal(i128, i8),
}

use Number::{Decimal, Float, Int};

/// Both as decimals, as unscaled digits of the same scale.
fn aligned(a: Number, b: Number) -> Option<(i256, i256, i8)> {
    let parts = |n: Number| match n {
        Int(v) => Some((i256::from(v), 0)),
        Decimal(v, s) => Some((i256::from_i128(v), s)),
        Float(_) => None,
    };
    let ((a, sa), (b, sb)) = (parts(a)?, parts(b)?);
    let scale = sa.max(sb);
    Some((shift(a, scale - sa)?, shift(b, scale - sb)?, scale))
}

fn power_of_ten(n: i8) -> Option<i256> {
    i256::from_i128(10).checked_pow(u32::try_from(n).ok()?)
}

fn shift(v: i256, by: i8) -> Option<i256> {
    v.checked_mul(power_of_ten(by)?)
}

/// The quotient rounded to the even neighbour.
fn divide_half_even(a: i256, b: i256) -> Option<i256> {
    let (quotient, rest) = (a.checked_div(b)?, a.checked_rem(b)?);
    let twice = rest.checked_abs()?.checked_mul(i256::from_i128(2))?;
    let odd = quotient.checked_rem(i256::from_i128(2))? != i256::ZERO;
    let away = match twice.cmp(&b.checked_abs()?) {
        Ordering::Greater => true,
        Ordering::Equal => odd,
        Ordering::Less => false,
    };
    let step = if (a < i256::ZERO) == (b < i256::ZERO) { 1 } else { -1 };
    if away {
        quotient.checked_add(i256::from_i128(step))
    } else {
        Some(quotient)
    }
}

/// The quotient rounded half away from zero.
fn divide_half_away(a: i256, b: i256) -> Option<i256> {
    let (quotient, rest) = (a.checked_div(b)?, a.checked_rem(b)?);
    let twice = rest.checked_abs()?.checked_mul(i256::from_i128(2))?;
    if twice < b.checked_abs()? {
        return Some(quotient);
    }
    let step = if (a < i256::ZERO) == (b < i256::ZERO) { 1 } else { -1 };
    quotient.checked_add(i256::from_i128(step))
}

/// Digits of scale `from` in scale `to`, rounded to the even neighbour.
pub(super) fn rescale(v: i128, from: i8, to: i8) -> Outcome<i128> {
    let v = i256::from_i128(v);
    if to >= from {
        shift(v, to - from)
    } else {
        power_of_ten(from - to).and_then(|p| divide_half_even(v, p))
    }
    .and_then(i256::to_i128)
    .ok_or(OVERFLOW)
}

pub(super) fn to_float(n: Number) -> f64 {
    match n {
        Int(v) => v as f64,
        Float(v) => v,
        // The text has the exact value, and reading it rounds once.
        Decimal(v, s) => plain(v, s).parse().unwrap_or(f64::NAN),
    }
}

/// `a / b`; decimals come in `scale`, rounded half away from zero.
pub(super) fn divide(a: Number, b: Number, scale: i8) -> Outcome<Number> {
    if let (Decimal(..), Int(_) | Decimal(..)) | (Int(_), Decimal(..)) = (a, b) {
        let (a, b, _) = aligned(a, b).ok_or(OVERFLOW)?;
        if b == i256::ZERO {
            return Err(DIVISION);
        }
        let quotient = shift(a, scale)
            .and_then(|a| divide_half_away(a, b))
            .and_then(i256::to_i128);
        return quotient.map(|q| Decimal(q, scale)).ok_or(OVERFLOW);
    }
    match (to_float(a), to_float(b)) {
        (_, 0.0) => Err(DIVISION),
        (a, b) => Ok(Float(a / b)),
    }
}

/// `a // b`. Whole numbers and floats floor; decimals cut towards zero, as Python's do.
pub(super) fn floor_divide(a: Number, b: Number) -> Outcome<Number> {
    match (a, b) {
        (Int(_), Int(0)) => Err(DIVISION),
        (Int(a), Int(b)) => {
            let quotient = a.checked_div(b).ok_or(OVERFLOW)?;
            let inexact = a.wrapping_rem(b) != 0 && (a < 0) != (b < 0);
            Ok(Int(quotient - i64::from(inexact)))
        }
        (Float(_), _) | (_, Float(_)) => float_divmod(to_float(a), to_float(b)).map(|(q, _)| Float(q)),
        _ => {
            let (a, b, _) = aligned(a, b).ok_or(OVERFLOW)?;
            if b == i256::ZERO {
                return Err(DIVISION);
            }
            let quotient = a.checked_div(b).and_then(i256::to_i128).ok_or(OVERFLOW)?;
            Ok(Decimal(quotient, 0))
        }
    }
}

/// `a % b`: the divisor's sign for whole numbers and floats, the dividend's for decimals.
pub(super) fn modulo(a: Number, b: Number) -> Outcome<Number> {
    match (a, b) {
        (Int(_), Int(0)) => Err(DIVISION),
        (Int(a), Int(b)) => {
            let rest = a.wrapping_rem(b);
            Ok(Int(if rest != 0 && (rest < 0) != (b < 0) {
                rest + b
            } else {
                rest
            }))
        }
        (Float(_), _) | (_, Float(_)) => float_divmod(to_float(a), to_float(b)).map(|(_, r)| Float(r)),
        _ => {
            let (a, b, scale) = aligned(a, b).ok_or(OVERFLOW)?;
            if b == i256::ZERO {
                return Err(DIVISION);
            }
            let rest = a.checked_rem(b).and_then(i256::to_i128).ok_or(OVERFLOW)?;
            Ok(Decimal(rest, scale))
        }
    }
}

fn float_divmod(a: f64, b: f64) -> Outcome<(f64, f64)> {
    if b == 0.0 {
        return Err(DIVISION);
    }
    let mut rest = a % b;
    let mut quotient = (a - rest) / b;
    if rest == 0.0 {
        rest = 0f64.copysign(b);
    } else if (b < 0.0) != (rest < 0.0) {
        rest += b;
        quotient -= 1.0;
    }
    let floor = if quotient == 0.0 {
        0f64.copysign(a / b)
    } else {
        let floor = quotient.floor();
        if quotient - floor > 0.5 { floor + 1.0 } else { floor }
    };
    Ok((floor, rest))
}

/// `base ** exponent` of floats.
pub(super) fn float_power(base: f64, exponent: f64) -> Outcome<f64> {
    if base == 0.0 && exponent < 0.0 {
        return Err(DIVISION);
    }
    let result = base.powf(exponent);
    let finite = base.is_finite() && exponent.is_finite();
    match result {
        r if r.is_nan() && finite => Err(COMPLEX),
        r if r.is_infinite() && finite => Err(OVERFLOW),
        r => Ok(r),
    }
}

/// `base ** exponent` with a literal exponent that is not negative.
pub(super) fn whole_power(base: Number, exponent: u32) -> Outcome<Number> {
    match base {
        Int(v) => v.checked_pow(exponent).map(Int).ok_or(OVERFLOW),
        Float(v) => float_power(v, f64::from(exponent)).map(Float),
        Decimal(v, s) => {
            let scale = i8::try_from(exponent)
                .ok()
                .and_then(|e| s.checked_mul(e))
                .ok_or(OVERFLOW)?;
            v.checked_pow(exponent).map(|v| Decimal(v, scale)).ok_or(OVERFLOW)
        }
    }
}

/// `round(n)`: a whole number.
pub(super) fn round_whole(n: Number) -> Outcome<i64> {
    match n {
        Int(v) => Ok(v),
        Float(v) => float_to_int(v.round_ties_even()),
        Decimal(v, s) => rescale(v, s, 0)?.try_into().map_err(|_| OVERFLOW),
    }
}

/// `round(n, digits)`.
pub(super) fn round(n: Number, digits: i32) -> Outcome<Number> {
    let tens = || u32::try_from(-digits).ok().and_then(|d| 10i128.checked_pow(d));
    match n {
        Int(v) if digits >= 0 => Ok(Int(v)),
        Int(v) => {
            let Some(p) = tens() else { return Ok(Int(0)) };
            let rounded = half_even_multiple(i128::from(v), p, false);
            i64::try_from(rounded).map(Int).map_err(|_| OVERFLOW)
        }
        Float(v) if !v.is_finite() => Ok(Float(v)),
        Float(v) if digits > 323 => Ok(Float(v)),
        // The formatter works on the exact value of the float and rounds once, to the even neighbour.
        Float(v) if digits >= 0 => Ok(Float(format!("{v:.*}", digits as usize).parse().map_err(|_| CAST)?)),
        Float(v) => {
            let Some(p) = tens() else {
                return Ok(Float(0f64.copysign(v)));
            };
            // So far out, neighbours are further apart than the numbers to round to.
            if v.abs() >= 1e38 && digits >= -22 {
                return Ok(Float(v));
            }
            if v.abs() >= 1e38 {
                return Ok(Float((v / p as f64).round_ties_even() * p as f64));
            }
            let rounded = half_even_multiple(v.abs().trunc() as i128, p, v.fract() != 0.0);
            Ok(Float((rounded as f64).copysign(v)))
        }
        Decimal(v, s) if digits >= 0 => {
            let to = i8::try_from(digits).map_err(|_| OVERFLOW)?;
            Ok(Decimal(rescale(v, s, to)?, to))
        }
        Decimal(v, s) => {
            let to = i8::try_from(digits).map_err(|_| OVERFLOW)?;
            let p = tens().ok_or(OVERFLOW)?;
            let cut = i256::from_i128(v);
            let wide = power_of_ten(s - to)
                .and_then(|p| divide_half_even(cut, p))
                .and_then(i256::to_i128);
            Ok(Decimal(wide.and_then(|w| w.checked_mul(p)).ok_or(OVERFLOW)?, 0))
        }
    }
}

/// The multiple of `p` nearest to `v`; `more` tells that the number is a little further from zero than `v`.
fn half_even_multiple(v: i128, p: i128, more: bool) -> i128 {
    let (quotient, rest) = (v / p, (v % p).abs());
    let away = match (2 * rest).cmp(&p) {
        Ordering::Greater => true,
        Ordering::Equal => more || quotient % 2 != 0,
        Ordering::Less => false,
    };
    (quotient + if away { v.signum() } else { 0 }) * p
}

fn float_to_int(v: f64) -> Outcome<i64> {
    if v.is_nan() {
        return Err(CAST);
    }
    // 2^63 as a float is exact.
    if (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&v) {
        Ok(v as i64)
    } else {
        Err(OVERFLOW)
    }
}

/// `int(n)`: cut towards zero.
pub(super) fn to_int(n: Number) -> Outcome<i64> {
    match n {
        Int(v) => Ok(v),
        Float(v) => float_to_int(v.trunc()),
        Decimal(v, s) => {
            let p = power_of_ten(s).and_then(i256::to_i128).ok_or(OVERFLOW)?;
            (v / p).try_into().map_err(|_| OVERFLOW)
        }
    }
}

pub(super) fn absolute(n: Number) -> Outcome<Number> {
    Ok(match n {
        Int(v) => Int(v.checked_abs().ok_or(OVERFLOW)?),
        Float(v) => Float(v.abs()),
        Decimal(v, s) => Decimal(v.abs(), s),
    })
}

/// Python's `int(text)`.
pub(super) fn parse_int(text: &str) -> Outcome<i64> {
    let digits = underscores(super::texts::strip(text, None, true, true))?;
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(&digits);
    if unsigned.is_empty() || !unsigned.bytes().all(|b| b.is_ascii_digit()) {
        return Err(CAST);
    }
    digits.parse().map_err(|_| OVERFLOW)
}

/// Python's `float(text)`.
pub(super) fn parse_float(text: &str) -> Outcome<f64> {
    underscores(super::texts::strip(text, None, true, true))?
        .parse()
        .map_err(|_| CAST)
}

/// Python allows single underscores between digits.
fn underscores(text: &str) -> Outcome<String> {
    let bytes = text.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|i| bytes.get(i)).is_some_and(u8::is_ascii_digit);
    for (i, b) in bytes.iter().enumerate() {
        if *b == b'_' && !(digit(i.checked_sub(1)) && digit(Some(i + 1))) {
            return Err(CAST);
        }
    }
    Ok(text.replace('_', ""))
}

/// Digits with a point, never an exponent.
fn plain(v: i128, scale: i8) -> String {
    let digits = v.unsigned_abs().to_string();
    let scale = scale.max(0) as usize;
    let sign = if v < 0 { "-" } else { "" };
    if scale == 0 {
        return format!("{sign}{digits}");
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{sign}{whole}.{fraction}")
}

/// `str(n)`.
pub(super) fn print(n: Number) -> String {
    match n {
        Int(v) => v.to_string(),
        Float(v) => print_float(v),
        Decimal(v, s) => {
            let digits = v.unsigned_abs().to_string();
            let exponent = digits.len() as i32 - 1 - i32::from(s);
            if s <= 0 || exponent >= -6 {
                return plain(v, s);
            }
            let (first, rest) = digits.split_at(1);
            let point = if rest.is_empty() { "" } else { "." };
            format!("{}{first}{point}{rest}E{exponent}", if v < 0 { "-" } else { "" })
        }
    }
}

fn print_float(v: f64) -> String {
    if v.is_nan() {
        return "nan".into();
    }
    if v.is_infinite() {
        return if v > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{v:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let text = format!("{v}");
        return if text.contains('.') { text } else { format!("{text}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// `f"{n:.2f}"`.
pub(super) fn print_fixed(n: Number, digits: u8) -> Outcome<String> {
    match n {
        Decimal(v, s) => {
            let text = plain(rescale(v, s, digits as i8)?, digits as i8);
            // What is rounded to zero keeps its sign.
            let sign = if v < 0 && !text.starts_with('-') { "-" } else { "" };
            Ok(format!("{sign}{text}"))
        }
        n => match to_float(n) {
            v if v.is_finite() => Ok(format!("{v:.*}", usize::from(digits))),
            v => Ok(print_float(v)),
        },
    }
}
