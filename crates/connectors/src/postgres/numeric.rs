//! PostgreSQL's binary numeric (`numeric_send` in `src/backend/utils/adt/numeric.c`): count of base-10000 digits,
//! weight of the first, sign, digits shown after the point, then the digits; 16 bits each.

use bytes::{BufMut, BytesMut};

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const MINUS_INFINITY: u16 = 0xF000;

/// More decimal digits than this hold in no numeric.
const MAX_DIGITS: usize = 131_072 + 16_384;

/// Why a numeric does not become a fixed-scale integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// The bytes are no numeric.
    Malformed,
    /// NaN or an infinity.
    NotFinite,
    /// More digits than the type keeps.
    TooLong,
}

struct Parts<'a> {
    weight: i32,
    sign: u16,
    dscale: usize,
    digits: &'a [u8],
}

impl<'a> Parts<'a> {
    fn read(wire: &'a [u8]) -> Option<Parts<'a>> {
        let head: &[u8; 8] = wire.first_chunk()?;
        let word = |i: usize| u16::from_be_bytes([head[i], head[i + 1]]);
        let digits = &wire[8..];
        (digits.len() == usize::from(word(0)) * 2).then_some(Parts {
            weight: i32::from(word(2) as i16),
            sign: word(4),
            dscale: usize::from(word(6)),
            digits,
        })
    }

    fn len(&self) -> i32 {
        (self.digits.len() / 2) as i32
    }

    /// The base-10000 digit that stands at a place counted from the first; 0 beyond both ends.
    fn digit(&self, at: i32) -> u16 {
        match usize::try_from(at) {
            Ok(i) if i * 2 + 1 < self.digits.len() => u16::from_be_bytes([self.digits[i * 2], self.digits[i * 2 + 1]]),
            _ => 0,
        }
    }
}

fn four(n: u16) -> [u8; 4] {
    [
        b'0' + (n / 1000) as u8,
        b'0' + (n / 100 % 10) as u8,
        b'0' + (n / 10 % 10) as u8,
        b'0' + (n % 10) as u8,
    ]
}

/// Appends the text that PostgreSQL prints.
pub fn write_text(out: &mut String, wire: &[u8]) -> Result<(), Unfit> {
    let p = Parts::read(wire).ok_or(Unfit::Malformed)?;
    if (0..p.len()).any(|at| p.digit(at) > 9999) {
        return Err(Unfit::Malformed);
    }
    match p.sign {
        POSITIVE => {}
        NEGATIVE => out.push('-'),
        NAN => {
            out.push_str("NaN");
            return Ok(());
        }
        INFINITY => {
            out.push_str("Infinity");
            return Ok(());
        }
        MINUS_INFINITY => {
            out.push_str("-Infinity");
            return Ok(());
        }
        _ => return Err(Unfit::Malformed),
    }
    let mut push = |bytes: &[u8]| bytes.iter().for_each(|b| out.push(*b as char));
    if p.weight < 0 {
        push(b"0");
    }
    for at in 0..=p.weight {
        let text = four(p.digit(at));
        let skip = if at == 0 {
            text.iter().take(3).take_while(|b| **b == b'0').count()
        } else {
            0
        };
        push(&text[skip..]);
    }
    if p.dscale > 0 {
        push(b".");
        let mut left = p.dscale;
        let mut at = p.weight + 1;
        while left > 0 {
            let n = left.min(4);
            push(&four(p.digit(at))[..n]);
            left -= n;
            at += 1;
        }
    }
    Ok(())
}

/// A type of so many digits, of which so many are behind the point.
#[derive(Debug, Clone, Copy)]
pub struct Fixed {
    scale: i32,
    /// 10^precision.
    limit: u128,
}

impl Fixed {
    /// A type of at most 38 digits.
    pub fn new(precision: u8, scale: i8) -> Fixed {
        Fixed {
            scale: i32::from(scale),
            limit: 10u128.checked_pow(u32::from(precision)).unwrap_or(0),
        }
    }

    /// The numeric times 10^scale, if it is whole and has no more digits than the type.
    pub fn read(&self, wire: &[u8]) -> Result<i128, Unfit> {
        if let Some(value) = self.read_short(wire) {
            return Ok(value);
        }
        let p = Parts::read(wire).ok_or(Unfit::Malformed)?;
        let negative = match p.sign {
            POSITIVE => false,
            NEGATIVE => true,
            NAN | INFINITY | MINUS_INFINITY => return Err(Unfit::NotFinite),
            _ => return Err(Unfit::Malformed),
        };
        let zeros = (0..p.len()).rev().take_while(|at| p.digit(*at) == 0).count() as i32;
        let len = p.len() - zeros;
        if len == 0 {
            return Ok(0);
        }
        let fold = |len: i32| -> Option<u128> {
            (0..len).try_fold(0u128, |v, at| {
                v.checked_mul(10_000)?.checked_add(u128::from(p.digit(at)))
            })
        };
        // Decimal places between the last digit's unit and the scale's.
        let shift = self.scale + 4 * (p.weight - len + 1);
        let value = if shift >= 0 {
            let power = 10u128.checked_pow(shift as u32).ok_or(Unfit::TooLong)?;
            fold(len).and_then(|v| v.checked_mul(power)).ok_or(Unfit::TooLong)?
        } else {
            // The last digit reaches beyond the scale; what of it lies beyond must be zero.
            let beyond = 10u16.checked_pow(shift.unsigned_abs()).unwrap_or(u16::MAX);
            let last = p.digit(len - 1);
            if beyond > 1000 || last % beyond != 0 {
                return Err(Unfit::TooLong);
            }
            fold(len - 1)
                .and_then(|v| v.checked_mul(u128::from(10_000 / beyond)))
                .and_then(|v| v.checked_add(u128::from(last / beyond)))
                .ok_or(Unfit::TooLong)?
        };
        if value >= self.limit {
            return Err(Unfit::TooLong);
        }
        Ok(if negative { -(value as i128) } else { value as i128 })
    }

    /// The same for a number of at most four base-10000 digits that fits, which most are: 64 bits hold it, and their
    /// arithmetic is several times faster.
    fn read_short(&self, wire: &[u8]) -> Option<i128> {
        let (head, digits) = wire.split_first_chunk::<8>()?;
        let word = |i: usize| u16::from_be_bytes([head[i], head[i + 1]]);
        let (count, weight, sign) = (usize::from(word(0)), i32::from(word(2) as i16), word(4));
        if count > 4 || digits.len() != count * 2 || sign & !NEGATIVE != 0 {
            return None;
        }
        let value = digits
            .chunks_exact(2)
            .fold(0u64, |v, d| v * 10_000 + u64::from(u16::from_be_bytes([d[0], d[1]])));
        let shift = self.scale + 4 * (weight - count as i32 + 1);
        let value = match shift {
            0..=12 => u128::from(value) * u128::from(POWERS[shift as usize]),
            -3..0 if value % POWERS[-shift as usize] == 0 => u128::from(value / POWERS[-shift as usize]),
            _ => return None,
        };
        (value < self.limit).then(|| {
            if sign == NEGATIVE {
                -(value as i128)
            } else {
                value as i128
            }
        })
    }
}

/// Powers of ten.
const POWERS: [u64; 13] = {
    let mut powers = [1; 13];
    let mut i = 1;
    while i < powers.len() {
        powers[i] = powers[i - 1] * 10;
        i += 1;
    }
    powers
};

fn put(out: &mut BytesMut, negative: bool, mut weight: i32, dscale: usize, digits: &[u16]) {
    let leading = digits.iter().take_while(|d| **d == 0).count();
    let trailing = digits[leading..].iter().rev().take_while(|d| **d == 0).count();
    let digits = &digits[leading..digits.len() - trailing];
    weight -= leading as i32;
    let (weight, sign) = match digits {
        [] => (0, POSITIVE),
        _ => (weight, if negative { NEGATIVE } else { POSITIVE }),
    };
    out.put_u16(digits.len() as u16);
    out.put_i16(weight as i16);
    out.put_u16(sign);
    out.put_u16(dscale as u16);
    digits.iter().for_each(|d| out.put_u16(*d));
}

/// Appends `value / 10^scale` in binary form.
pub fn put_i128(out: &mut BytesMut, value: i128, scale: u8) {
    let scale = usize::from(scale);
    let fraction_groups = scale.div_ceil(4);
    let pad = fraction_groups * 4 - scale;
    // The fraction, filled up to whole groups, must stay within 128 bits.
    if scale + pad > 38 {
        let mut text = String::new();
        let digits = value.unsigned_abs().to_string();
        let digits = format!("{digits:0>width$}", width = scale + 1);
        text.push_str(if value < 0 { "-" } else { "" });
        text.push_str(&digits[..digits.len() - scale]);
        text.push('.');
        text.push_str(&digits[digits.len() - scale..]);
        put_text(out, &text).expect("digits and a point");
        return;
    }
    let mut groups = [0u16; 24];
    let mut at = groups.len();
    let mut take = |mut v: u128, count: Option<usize>| {
        let mut taken = 0;
        while count.map_or(v > 0, |n| taken < n) {
            at -= 1;
            // 64-bit arithmetic as soon as the rest allows it.
            groups[at] = if let Ok(short) = u64::try_from(v) {
                v = u128::from(short / 10_000);
                (short % 10_000) as u16
            } else {
                let digit = (v % 10_000) as u16;
                v /= 10_000;
                digit
            };
            taken += 1;
        }
        taken as i32
    };
    let unit = 10u128.pow(scale as u32);
    let magnitude = value.unsigned_abs();
    let (whole, fraction) = match (u64::try_from(magnitude), u64::try_from(unit)) {
        (Ok(m), Ok(u)) => (u128::from(m / u), u128::from(m % u)),
        _ => (magnitude / unit, magnitude % unit),
    };
    take(fraction * 10u128.pow(pad as u32), Some(fraction_groups));
    let weight = take(whole, None) - 1;
    put(out, value < 0, weight, scale, &groups[at..]);
}

/// Appends the binary form of a decimal text (`-1.50`, `1e400`, `NaN`, `Infinity`); the scale shown is kept.
/// `None` if it is no number, or one that no numeric holds; then nothing was appended.
pub fn put_text(out: &mut BytesMut, text: &str) -> Option<()> {
    let special = |out: &mut BytesMut, sign: u16| {
        out.put_u32(0);
        out.put_u16(sign);
        out.put_u16(0);
        Some(())
    };
    let text = text.trim();
    match text {
        "NaN" | "nan" => return special(out, NAN),
        "Infinity" | "infinity" | "inf" | "+Infinity" => return special(out, INFINITY),
        "-Infinity" | "-infinity" | "-inf" => return special(out, MINUS_INFINITY),
        _ => {}
    }
    let (negative, body) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (mantissa, exponent) = match body.find(['e', 'E']) {
        Some(at) => (&body[..at], body[at + 1..].parse::<i32>().ok()?),
        None => (body, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits = whole.bytes().chain(fraction.bytes());
    if whole.len() + fraction.len() == 0 || !digits.clone().all(|b| b.is_ascii_digit()) {
        return None;
    }
    if whole.len() + fraction.len() > MAX_DIGITS || exponent.unsigned_abs() as usize > MAX_DIGITS {
        return None;
    }
    let dscale = (fraction.len() as i32 - exponent).max(0);
    // Decimal digits before the point; the first group is filled with zeros in front so that groups meet at the point.
    let before = whole.len() as i32 + exponent;
    let weight = (before - 1).div_euclid(4);
    let fill = (weight + 1) * 4 - before;
    let mut groups = Vec::with_capacity((whole.len() + fraction.len()) / 4 + 2);
    let mut have = fill;
    let mut group = 0u16;
    for b in &mut digits {
        group = group * 10 + u16::from(b - b'0');
        have += 1;
        if have == 4 {
            groups.push(group);
            (group, have) = (0, 0);
        }
    }
    if have > 0 {
        groups.push(group * 10u16.pow((4 - have) as u32));
    }
    let zero = groups.iter().all(|g| *g == 0);
    let leading = groups.iter().take_while(|g| **g == 0).count() as i32;
    if dscale > 0x3FFF || (!zero && !(-0x8000..=0x7FFF).contains(&(weight - leading))) {
        return None;
    }
    put(out, negative, weight, dscale as usize, &groups);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire(text: &str) -> BytesMut {
        let mut out = BytesMut::new();
        put_text(&mut out, text).unwrap_or_else(|| panic!("{text} was refused"));
        out
    }

    fn text(wire: &[u8]) -> String {
        let mut out = String::new();
        write_text(&mut out, wire).unwrap();
        out
    }

    #[test]
    fn text_comes_back_with_its_scale() {
        for t in [
            "0",
            "0.00",
            "1",
            "-1",
            "10000",
            "9999",
            "0.0001",
            "-0.00001",
            "12345.67890",
            "NaN",
            "Infinity",
            "-Infinity",
            "100000000",
            "0.00010000",
            "1234567890123456789012345678901234567890.5",
            "10",
            "1000",
            "99990000.0001",
        ] {
            assert_eq!(text(&wire(t)), t);
        }
        assert_eq!(text(&wire("1.50e2")), "150");
        assert_eq!(text(&wire("1e-3")), "0.001");
        assert_eq!(text(&wire("-0")), "0");
        assert_eq!(text(&wire(&format!("1e{}", 131_071))).len(), 131_072);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for t in ["", "-", ".", "1.2.3", "1e", "abc", "1 2", "1e999999", "0x10"] {
            let mut out = BytesMut::new();
            assert_eq!(put_text(&mut out, t), None, "{t}");
            assert!(out.is_empty());
        }
    }

    #[test]
    fn fixed_scale_is_exact_or_refused() {
        assert_eq!(Fixed::new(12, 2).read(&wire("1.25")), Ok(125));
        assert_eq!(Fixed::new(12, 1).read(&wire("1.25")), Err(Unfit::TooLong));
        assert_eq!(Fixed::new(12, 1).read(&wire("1.20")), Ok(12));
        assert_eq!(Fixed::new(2, 0).read(&wire("100")), Err(Unfit::TooLong));
        assert_eq!(Fixed::new(12, 2).read(&wire("NaN")), Err(Unfit::NotFinite));
        assert_eq!(Fixed::new(12, 2).read(&[0; 7]), Err(Unfit::Malformed));
    }

    proptest! {
        #[test]
        fn every_decimal_goes_both_ways(value in any::<i128>(), shift in 0u32..120, scale in 0u8..=38) {
            let value = (value >> shift) % 10i128.pow(38);
            let mut out = BytesMut::new();
            put_i128(&mut out, value, scale);
            prop_assert_eq!(Fixed::new(38, scale as i8).read(&out), Ok(value));
            let shown = text(&out);
            prop_assert_eq!(&wire(&shown)[..], &out[..]);
            prop_assert_eq!(shown.split_once('.').map_or(0, |(_, f)| f.len()), usize::from(scale));
        }
    }
}
