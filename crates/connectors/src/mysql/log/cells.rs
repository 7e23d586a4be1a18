//! Values of the log, written as the server prints them: so they go the same way as those of a query.

use super::charset::Charset;
use super::logged::{LoggedColumn, Members, parts};
use mysql_async::consts::ColumnType as Wire;
use std::io::Write;
use synctool_core::error::{Error, Result, code};

/// What the values of a column are.
#[derive(Debug, Clone)]
enum Form {
    Signed,
    Unsigned,
    Float,
    Double,
    Year,
    Date,
    Time,
    Datetime,
    Timestamp,
    Decimal {
        zerofill: bool,
    },
    Bit,
    Enum(Members),
    Set(Members),
    Text(Charset),
    /// Bytes, of a fixed length where zeros at the end are not in the log.
    Bytes(Option<usize>),
    Uuid,
    Inet4,
    Inet6,
}

/// Takes the values of one column out of rows of the log.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    column: LoggedColumn,
    form: Option<Form>,
    /// For messages.
    name: String,
}

/// A second has no more digits behind its point.
const MAX_FRACTION: u8 = 6;

/// What gives a table's times their present form.
pub(super) const RENEW_TIMES: &str = "SET GLOBAL mysql56_temporal_format = ON; ALTER TABLE … FORCE";

/// A set has no more members.
const MAX_MEMBERS: usize = 64;

fn malformed(name: &str) -> Error {
    Error::new(
        code::VALUE_MALFORMED,
        format!("column {name}: a value of the log does not have its type's form"),
    )
}

/// The length in bytes of a fixed string.
fn string_length(meta: [u8; 2]) -> usize {
    let [high, low] = meta.map(usize::from);
    // Two bits of a long length hide in the type.
    low | ((high & 0x30) ^ 0x30) << 4
}

impl Cell {
    /// A column that nobody wants: its values are stepped over.
    pub(super) fn skipped(column: &LoggedColumn) -> Cell {
        Cell {
            column: column.clone(),
            form: None,
            name: column.name.clone().unwrap_or_default(),
        }
    }

    /// A column that is declared like this, its texts in this character set.
    pub(super) fn new(column: &LoggedColumn, name: &str, declared: &str, charset: Charset) -> Result<Cell> {
        let (base, arguments) = parts(declared);
        let unsigned = column.unsigned.unwrap_or_else(|| declared.contains("unsigned"));
        let members = || match &column.members {
            Some(members) => {
                let utf8 = |m: &Vec<u8>| {
                    let mut out = Vec::new();
                    charset.write(m, &mut out);
                    out
                };
                members.iter().map(utf8).collect()
            }
            None => arguments.iter().map(|a| a.clone().into_bytes()).collect::<Members>(),
        };
        let unsupported = |why: &str| {
            Error::new(
                code::TYPE_UNSUPPORTED,
                format!("column {name} of type {declared} is not read from the log: {why}"),
            )
        };
        let form = match column.wire {
            Wire::MYSQL_TYPE_TINY
            | Wire::MYSQL_TYPE_SHORT
            | Wire::MYSQL_TYPE_INT24
            | Wire::MYSQL_TYPE_LONG
            | Wire::MYSQL_TYPE_LONGLONG => match unsigned {
                true => Form::Unsigned,
                false => Form::Signed,
            },
            Wire::MYSQL_TYPE_FLOAT => Form::Float,
            Wire::MYSQL_TYPE_DOUBLE => Form::Double,
            Wire::MYSQL_TYPE_YEAR => Form::Year,
            Wire::MYSQL_TYPE_NEWDATE => Form::Date,
            Wire::MYSQL_TYPE_TIME2 | Wire::MYSQL_TYPE_DATETIME2 | Wire::MYSQL_TYPE_TIMESTAMP2
                if column.meta[0] > MAX_FRACTION =>
            {
                return Err(malformed(name));
            }
            Wire::MYSQL_TYPE_TIME2 => Form::Time,
            Wire::MYSQL_TYPE_DATETIME2 => Form::Datetime,
            Wire::MYSQL_TYPE_TIMESTAMP2 => Form::Timestamp,
            Wire::MYSQL_TYPE_TIME | Wire::MYSQL_TYPE_DATETIME | Wire::MYSQL_TYPE_TIMESTAMP => {
                return Err(unsupported("it is stored in the old form of times").hint(RENEW_TIMES));
            }
            Wire::MYSQL_TYPE_NEWDECIMAL => Form::Decimal {
                zerofill: declared.contains("zerofill"),
            },
            Wire::MYSQL_TYPE_BIT => Form::Bit,
            Wire::MYSQL_TYPE_ENUM => Form::Enum(members()),
            Wire::MYSQL_TYPE_SET => Form::Set(members()),
            Wire::MYSQL_TYPE_STRING if base == "uuid" => Form::Uuid,
            Wire::MYSQL_TYPE_STRING if base == "inet4" => Form::Inet4,
            Wire::MYSQL_TYPE_STRING if base == "inet6" => Form::Inet6,
            Wire::MYSQL_TYPE_STRING if base == "binary" => Form::Bytes(Some(string_length(column.meta))),
            Wire::MYSQL_TYPE_GEOMETRY => Form::Bytes(None),
            Wire::MYSQL_TYPE_STRING
            | Wire::MYSQL_TYPE_VARCHAR
            | Wire::MYSQL_TYPE_VAR_STRING
            | Wire::MYSQL_TYPE_BLOB => match charset {
                Charset::Binary => Form::Bytes(None),
                charset => Form::Text(charset),
            },
            Wire::MYSQL_TYPE_JSON => {
                return Err(unsupported("MySQL logs JSON in a form of its own").hint("leave the table out"));
            }
            _ => return Err(unsupported("its form is not known").hint("leave the table out")),
        };
        Ok(Cell {
            column: column.clone(),
            form: Some(form),
            name: name.to_string(),
        })
    }

    /// Whether anybody wants its values.
    #[cfg(test)]
    pub(super) fn is_wanted(&self) -> bool {
        self.form.is_some()
    }

    /// Takes a value's bytes from the front of a row.
    pub(super) fn take<'a>(&self, row: &mut &'a [u8]) -> Result<&'a [u8]> {
        let [first, second] = self.column.meta.map(usize::from);
        let fraction = |digits: usize| digits.div_ceil(2);
        let (prefix, fixed) = match self.column.wire {
            Wire::MYSQL_TYPE_TINY | Wire::MYSQL_TYPE_YEAR => (0, 1),
            Wire::MYSQL_TYPE_SHORT => (0, 2),
            Wire::MYSQL_TYPE_INT24 | Wire::MYSQL_TYPE_NEWDATE | Wire::MYSQL_TYPE_DATE | Wire::MYSQL_TYPE_TIME => (0, 3),
            Wire::MYSQL_TYPE_LONG | Wire::MYSQL_TYPE_FLOAT | Wire::MYSQL_TYPE_TIMESTAMP => (0, 4),
            Wire::MYSQL_TYPE_LONGLONG | Wire::MYSQL_TYPE_DOUBLE | Wire::MYSQL_TYPE_DATETIME => (0, 8),
            Wire::MYSQL_TYPE_TIMESTAMP2 => (0, 4 + fraction(first)),
            Wire::MYSQL_TYPE_DATETIME2 => (0, 5 + fraction(first)),
            Wire::MYSQL_TYPE_TIME2 => (0, 3 + fraction(first)),
            Wire::MYSQL_TYPE_NEWDECIMAL => (0, decimal_size(first, second)),
            Wire::MYSQL_TYPE_BIT => (0, (first + second * 8).div_ceil(8)),
            Wire::MYSQL_TYPE_ENUM | Wire::MYSQL_TYPE_SET => (0, second),
            Wire::MYSQL_TYPE_VARCHAR | Wire::MYSQL_TYPE_VAR_STRING => (1 + usize::from(second > 0), 0),
            Wire::MYSQL_TYPE_STRING => (1 + usize::from(string_length(self.column.meta) > 255), 0),
            Wire::MYSQL_TYPE_BLOB | Wire::MYSQL_TYPE_GEOMETRY => (first, 0),
            Wire::MYSQL_TYPE_JSON => (4, 0),
            _ => {
                return Err(Error::new(
                    code::TYPE_UNSUPPORTED,
                    format!("column {} comes in a form of the log that is not read here", self.name),
                ));
            }
        };
        let short = || malformed(&self.name);
        let (length, rest) = row.split_at_checked(prefix).ok_or_else(short)?;
        let length = length.iter().rev().fold(fixed, |n, b| n << 8 | usize::from(*b));
        let (value, rest) = rest.split_at_checked(length).ok_or_else(short)?;
        *row = rest;
        Ok(value)
    }

    /// Writes a value as the server prints it, given how its column is read ([`super::super::types::select`]).
    pub(super) fn print(&self, value: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let Some(form) = &self.form else {
            return Err(Error::bug("a value that nobody wants is read"));
        };
        let digits = usize::from(self.column.meta[0]);
        let written = match form {
            Form::Signed => {
                let sign = if value.last().is_some_and(|b| b & 0x80 != 0) {
                    -1i64
                } else {
                    0
                };
                let n = value.iter().rev().fold(sign, |n, b| n << 8 | i64::from(*b));
                write!(out, "{n}")
            }
            Form::Unsigned => write!(out, "{}", little(value)),
            Form::Float => write!(out, "{}", f64::from(f32::from_bits(little(value) as u32))),
            Form::Double => write!(out, "{}", f64::from_bits(little(value))),
            Form::Year => match little(value) {
                0 => write!(out, "0000"),
                n => write!(out, "{}", 1900 + n),
            },
            Form::Date => {
                let n = little(value);
                write!(out, "{:04}-{:02}-{:02}", n >> 9, n >> 5 & 15, n & 31)
            }
            Form::Datetime => {
                let (whole, rest) = value.split_at(value.len().min(5));
                let n = big(whole).wrapping_sub(0x80_0000_0000) & 0x7f_ffff_ffff;
                let (month, second) = (n >> 22, n & 0x1_ffff);
                let day = n >> 17 & 31;
                write!(
                    out,
                    "{:04}-{:02}-{day:02} {:02}:{:02}:{:02}",
                    month / 13,
                    month % 13,
                    second >> 12,
                    second >> 6 & 63,
                    second & 63
                )
                .and_then(|()| write_fraction(out, fraction(rest), digits))
            }
            Form::Timestamp => {
                let (whole, rest) = value.split_at(value.len().min(4));
                let fraction = fraction(rest);
                match (big(whole), fraction) {
                    (0, 0) => write!(out, "0000-00-00 00:00:00"),
                    (seconds, _) => {
                        let at =
                            chrono::DateTime::from_timestamp(seconds as i64, 0).ok_or_else(|| malformed(&self.name))?;
                        write!(out, "{}", at.format("%Y-%m-%d %H:%M:%S"))
                    }
                }
                .and_then(|()| write_fraction(out, fraction, digits))
            }
            Form::Time => {
                // One number with its sign: the fraction of a negative time counts down with it.
                let bits = 8 * value.len() as u32;
                let n = big(value) as i64 - (1 << (bits - 1));
                let shift = bits - 24;
                let (n, sign) = (n.unsigned_abs(), if n < 0 { "-" } else { "" });
                let (whole, rest) = (n >> shift, n & ((1 << shift) - 1));
                let scaled = (0..6 - shift / 4).fold(rest, |n, _| n * 10);
                write!(
                    out,
                    "{sign}{:02}:{:02}:{:02}",
                    whole >> 12 & 0x3ff,
                    whole >> 6 & 63,
                    whole & 63
                )
                .and_then(|()| write_fraction(out, scaled, digits))
            }
            Form::Decimal { zerofill } => {
                let [precision, scale] = self.column.meta.map(usize::from);
                write_decimal(value, precision, scale, *zerofill, out);
                Ok(())
            }
            Form::Bit => write!(out, "{}", big(value)),
            Form::Enum(members) => {
                match little(value) {
                    // What was refused when it came.
                    0 => {}
                    n => out.extend_from_slice(members.get(n as usize - 1).ok_or_else(|| malformed(&self.name))?),
                }
                Ok(())
            }
            Form::Set(members) => {
                let chosen = little(value);
                let mut first = true;
                for (i, member) in members.iter().take(MAX_MEMBERS).enumerate() {
                    if chosen >> i & 1 == 1 {
                        if !first {
                            out.push(b',');
                        }
                        first = false;
                        out.extend_from_slice(member);
                    }
                }
                Ok(())
            }
            Form::Text(charset) => {
                charset.write(value, out);
                Ok(())
            }
            Form::Bytes(length) => {
                out.extend_from_slice(value);
                out.resize(out.len() + length.unwrap_or(0).saturating_sub(value.len()), 0);
                Ok(())
            }
            Form::Uuid => {
                let mut bytes = [0; 16];
                bytes[..value.len().min(16)].copy_from_slice(&value[..value.len().min(16)]);
                write!(out, "{}", uuid::Uuid::from_bytes(uuid_in_order(bytes)))
            }
            Form::Inet4 => {
                let mut bytes = [0; 4];
                bytes[..value.len().min(4)].copy_from_slice(&value[..value.len().min(4)]);
                write!(out, "{}", std::net::Ipv4Addr::from(bytes))
            }
            Form::Inet6 => {
                let mut bytes = [0; 16];
                bytes[..value.len().min(16)].copy_from_slice(&value[..value.len().min(16)]);
                write!(out, "{}", std::net::Ipv6Addr::from(bytes))
            }
        };
        written.map_err(|e| Error::bug(e.to_string()))
    }
}

fn little(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn big(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Microseconds of a fraction of one, two or three bytes.
fn fraction(bytes: &[u8]) -> u64 {
    (bytes.len()..3).fold(big(bytes), |n, _| n * 100)
}

fn write_fraction(out: &mut Vec<u8>, micros: u64, digits: usize) -> std::io::Result<()> {
    match digits {
        0 => Ok(()),
        digits => write!(out, ".{:0digits$}", micros / 10u64.pow(6 - digits.min(6) as u32)),
    }
}

/// Bytes of a group of fewer than nine digits.
const GROUP: [usize; 9] = [0, 1, 1, 2, 2, 3, 3, 4, 4];

fn decimal_size(precision: usize, scale: usize) -> usize {
    let whole = precision.saturating_sub(scale);
    whole / 9 * 4 + GROUP[whole % 9] + scale / 9 * 4 + GROUP[scale % 9]
}

fn write_decimal(value: &[u8], precision: usize, scale: usize, zerofill: bool, out: &mut Vec<u8>) {
    let negative = value.first().is_some_and(|b| b & 0x80 == 0);
    let mut bytes: Vec<u8> = value.to_vec();
    if let Some(first) = bytes.first_mut() {
        *first ^= 0x80;
    }
    if negative {
        bytes.iter_mut().for_each(|b| *b = !*b);
    }
    let whole = precision.saturating_sub(scale);
    let mut groups = Vec::new();
    groups.push(whole % 9);
    groups.extend(std::iter::repeat_n(9, whole / 9 + scale / 9));
    groups.push(scale % 9);
    let (mut rest, mut text) = (&bytes[..], String::new());
    for digits in groups {
        let size = if digits == 9 { 4 } else { GROUP[digits] };
        let (group, others) = rest.split_at(size.min(rest.len()));
        rest = others;
        if digits > 0 {
            text.push_str(&format!("{:0digits$}", big(group)));
        }
    }
    let (integral, fractional) = text.split_at(whole.min(text.len()));
    if negative {
        out.push(b'-');
    }
    match (integral.trim_start_matches('0'), zerofill) {
        (_, true) => out.extend_from_slice(integral.as_bytes()),
        ("", false) => out.push(b'0'),
        (shown, false) => out.extend_from_slice(shown.as_bytes()),
    }
    if scale > 0 {
        out.push(b'.');
        out.extend_from_slice(fractional.as_bytes());
    }
}

/// A uuid that counts time is stored with its parts turned round, so that later ones sort behind earlier ones.
fn uuid_in_order(stored: [u8; 16]) -> [u8; 16] {
    let turned = stored[6] & 0x80 != 0 && (1..=0x80).contains(&stored[8]);
    if !turned {
        return stored;
    }
    let mut bytes = [0; 16];
    for (to, from) in [(0, 12..16), (4, 10..12), (6, 8..10), (8, 6..8), (10, 0..6)] {
        let part = &stored[from];
        bytes[to..to + part.len()].copy_from_slice(part);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(wire: Wire, meta: [u8; 2], declared: &str, bytes: &[u8]) -> String {
        let column = LoggedColumn {
            name: None,
            wire,
            meta,
            unsigned: None,
            collation: None,
            members: None,
        };
        let cell = Cell::new(&column, "c", declared, Charset::Utf8).unwrap();
        let mut rest = bytes;
        let value = cell.take(&mut rest).unwrap();
        assert!(rest.is_empty());
        let mut out = Vec::new();
        cell.print(value, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_are_printed_as_the_server_prints_them() {
        let n = |declared, bytes: &[u8]| printed(Wire::MYSQL_TYPE_INT24, [0, 0], declared, bytes);
        assert_eq!(n("mediumint(9)", &[0xff, 0xff, 0xff]), "-1");
        assert_eq!(n("mediumint(8) unsigned", &[0xff, 0xff, 0xff]), "16777215");
        let d = |bytes: &[u8]| printed(Wire::MYSQL_TYPE_NEWDECIMAL, [14, 4], "decimal(14,4)", bytes);
        assert_eq!(d(&[0x81, 0x0d, 0xfb, 0x38, 0xd2, 0x04, 0xd2]), "1234567890.1234");
        assert_eq!(d(&[0x7e, 0xf2, 0x04, 0xc7, 0x2d, 0xfb, 0x2d]), "-1234567890.1234");
        assert_eq!(d(&[0x80, 0, 0, 0, 0, 0, 0]), "0.0000");
        let t = |meta, bytes: &[u8]| printed(Wire::MYSQL_TYPE_TIME2, [meta, 0], "time", bytes);
        assert_eq!(t(0, &[0x80, 0, 1]), "00:00:01");
        assert_eq!(t(1, &[0x7f, 0xff, 0xff, 0xf6]), "-00:00:00.1");
        let date = printed(Wire::MYSQL_TYPE_NEWDATE, [0, 0], "date", &[0, 0, 0]);
        assert_eq!(date, "0000-00-00");
        assert_eq!(printed(Wire::MYSQL_TYPE_BIT, [1, 1], "bit(9)", &[1, 1]), "257");
        assert_eq!(printed(Wire::MYSQL_TYPE_SET, [248, 1], "set('a','b','c')", &[5]), "a,c");
        assert_eq!(
            printed(Wire::MYSQL_TYPE_STRING, [254, 4], "binary(4)", &[1, 7]),
            "\u{7}\0\0\0"
        );
    }

    #[test]
    fn a_value_that_is_cut_off_is_refused() {
        let column = LoggedColumn {
            name: None,
            wire: Wire::MYSQL_TYPE_VARCHAR,
            meta: [44, 1],
            unsigned: None,
            collation: None,
            members: None,
        };
        let cell = Cell::new(&column, "c", "varchar(300)", Charset::Utf8).unwrap();
        assert!(cell.take(&mut &[5, 0, b'a'][..]).is_err() && cell.take(&mut &[5][..]).is_err());
    }
}
