use super::*;
use crate::postgres::decode::Decoder;
use arrow_array::ArrayRef;
use proptest::prelude::*;
use synctool_core::schema::{Carrier, ColumnType};
use synctool_core::text::ColumnBuilder;

fn build(column: &Column, values: &[Option<String>]) -> ArrayRef {
    let mut b = ColumnBuilder::new(column);
    for v in values {
        b.append_cell(v.as_deref()).unwrap();
    }
    b.finish()
}

/// Encodes every cell, decodes it again as the same column would be read, and compares.
fn round_trip(column: &Column, type_name: &str, values: &[Option<String>]) {
    let array = build(column, values);
    let encoder = Encoder::new(column, type_name).expect("a binary form");
    let cells = encoder.bind(&array).unwrap();
    let mut decoder = Decoder::new(column);
    for row in 0..array.len() {
        let mut out = BytesMut::new();
        cells.write(row, &mut out).unwrap();
        let length = i32::from_be_bytes(out[..4].try_into().unwrap());
        if length < 0 {
            assert_eq!(out.len(), 4);
            decoder.extend([None].into_iter()).unwrap();
        } else {
            assert_eq!(out.len(), 4 + length as usize);
            decoder.extend([Some(&out[4..])].into_iter()).unwrap();
        }
    }
    assert_eq!(&decoder.finish(), &array);
}

fn some(values: &[&str]) -> Vec<Option<String>> {
    values.iter().map(|v| Some(v.to_string())).chain([None]).collect()
}

#[test]
fn edge_values_go_both_ways() {
    use ColumnType::*;
    let arrow = |ty: ColumnType| Column::new("c", ty);
    round_trip(&arrow(Bool), "boolean", &some(&["true", "false"]));
    round_trip(&arrow(Int16), "smallint", &some(&["-32768", "32767"]));
    round_trip(&arrow(Int32), "integer", &some(&["-2147483648", "2147483647"]));
    round_trip(
        &arrow(Int64),
        "bigint",
        &some(&["-9223372036854775808", "9223372036854775807"]),
    );
    round_trip(&arrow(Float32), "real", &some(&["Infinity", "-0", "0.1", "1e-45"]));
    round_trip(
        &arrow(Float64),
        "double precision",
        &some(&["-Infinity", "-0", "5e-324", "1.7976931348623157e308"]),
    );
    round_trip(
        &arrow(Date),
        "date",
        &some(&["infinity", "-infinity", "4713-01-01 BC", "5874897-12-31", "1970-01-01"]),
    );
    round_trip(
        &arrow(Time),
        "time",
        &some(&["24:00:00", "00:00:00", "23:59:59.999999"]),
    );
    round_trip(
        &arrow(Timestamp),
        "timestamp(6)",
        &some(&[
            "infinity",
            "-infinity",
            "0044-03-15 12:00:00 BC",
            "1999-12-31 23:59:59.999999",
        ]),
    );
    round_trip(
        &arrow(TimestampTz),
        "timestamptz",
        &some(&["2038-01-19 03:14:08+00", "infinity"]),
    );
    round_trip(
        &arrow(Text { max: None }),
        "text",
        &some(&["", " ", "\\N", "ä€😀", "a\tb\nc"]),
    );
    round_trip(&arrow(Char { length: 3 }), "character(3)", &some(&["a  "]));
    round_trip(&arrow(Bytes), "bytea", &some(&["\\x", "\\x00ff"]));
    round_trip(&arrow(Uuid), "uuid", &some(&["12345678-9abc-def0-1234-56789abcdef0"]));
    round_trip(&arrow(Json), "json", &some(&["{\"a\" :1}"]));
    round_trip(&arrow(Jsonb), "jsonb", &some(&["{\"a\": 1}"]));
    round_trip(
        &arrow(Numeric),
        "numeric",
        &some(&["NaN", "Infinity", "-Infinity", "0.00", "-12345.6789", "1000000"]),
    );
    let wide = arrow(Decimal {
        precision: 76,
        scale: 40,
    });
    round_trip(
        &wide,
        "numeric(76,40)",
        &some(&["-123456789012345678901234567890123456.1234567890123456789012345678901234567890"]),
    );
    let mut as_text = arrow(Decimal {
        precision: 12,
        scale: 2,
    });
    as_text.carrier = Carrier::Text;
    round_trip(&as_text, "numeric(12,2)", &some(&["NaN", "1.20"]));
}

#[test]
fn what_postgres_cannot_hold_is_refused_by_name() {
    let cases: [(ColumnType, &str, &str); 4] = [
        (ColumnType::UInt64, "bigint", "18446744073709551615"),
        (ColumnType::Text { max: None }, "text", "a\0b"),
        (ColumnType::Jsonb, "jsonb", "\"\0\""),
        (ColumnType::Numeric, "numeric", "12,5"),
    ];
    for (ty, type_name, value) in cases {
        let column = Column::new("price", ty);
        let array = build(&column, &[Some(value.into())]);
        let encoder = Encoder::new(&column, type_name).unwrap();
        let e = encoder
            .bind(&array)
            .unwrap()
            .write(0, &mut BytesMut::new())
            .unwrap_err();
        assert_eq!(e.code(), code::VALUE_UNSUPPORTED);
        assert!(e.to_string().contains("price") && !e.to_string().contains(value), "{e}");
    }
    let stamp = Column::new("t", ColumnType::Timestamp);
    let mut d = Decoder::new(&stamp);
    let e = d
        .extend([Some(&(i64::MAX - 1).to_be_bytes()[..])].into_iter())
        .unwrap_err();
    assert_eq!(e.code(), code::VALUE_UNSUPPORTED);
    assert!(e.next_step().unwrap().contains("as_text"));
}

#[test]
fn types_without_a_binary_form_go_as_copy_text() {
    for (ty, type_name) in [
        (ColumnType::Interval, "interval"),
        (ColumnType::TimeTz, "time with time zone"),
        (ColumnType::Native, "inet"),
        (ColumnType::Timestamp, "text"),
    ] {
        assert!(!binary_supported(&Column::new("c", ty), type_name), "{type_name}");
    }
    let column = Column::new("c", ColumnType::Text { max: None });
    let array = build(&column, &some(&["a\tb\\N\r\n\u{8}\u{b}\u{c}", "", "\\."]));
    let mut out = BytesMut::new();
    for row in 0..array.len() {
        copy_text_field(&mut out, &array, row).unwrap();
        out.put_u8(b'|');
    }
    assert_eq!(&out[..], br"a\tb\\N\r\n\b\v\f||\\.|\N|");
}

proptest! {
    #[test]
    fn integers(values in prop::collection::vec(any::<Option<i64>>(), 0..50)) {
        let texts: Vec<_> = values.iter().map(|v| v.map(|v| v.to_string())).collect();
        round_trip(&Column::new("c", ColumnType::Int64), "bigint", &texts);
    }

    #[test]
    fn floats(values in prop::collection::vec(any::<f64>(), 1..50)) {
        let column = Column::new("c", ColumnType::Float64);
        let mut b = ColumnBuilder::new(&column);
        values.iter().for_each(|v| b.append_f64(*v).unwrap());
        let array = b.finish();
        let encoder = Encoder::new(&column, "float8").unwrap();
        let cells = encoder.bind(&array).unwrap();
        for (row, v) in values.iter().enumerate() {
            let mut out = BytesMut::new();
            cells.write(row, &mut out).unwrap();
            prop_assert_eq!(&out[4..], &v.to_be_bytes());
        }
    }

    #[test]
    fn times(days in -1_721_425i32..2_147_472_000, micros in any::<i64>()) {
        let mut date = String::new();
        text::write_date(&mut date, days);
        round_trip(&Column::new("c", ColumnType::Date), "date", &[Some(date)]);
        prop_assume!(micros.checked_sub(EPOCH_MICROS).is_some() && micros.checked_add(EPOCH_MICROS).is_some());
        let mut stamp = String::new();
        text::write_timestamp(&mut stamp, micros, true);
        round_trip(&Column::new("c", ColumnType::TimestampTz), "timestamptz", &[Some(stamp)]);
    }

    #[test]
    fn texts(values in prop::collection::vec(any::<Option<String>>(), 0..20)) {
        let values: Vec<_> = values.into_iter().map(|v| v.map(|v| v.replace('\0', ""))).collect();
        round_trip(&Column::new("c", ColumnType::Text { max: None }), "text", &values);
        round_trip(&Column::new("c", ColumnType::Jsonb), "jsonb", &values);
    }

    #[test]
    fn bytes_and_uuids(value in any::<Vec<u8>>(), uuid in any::<[u8; 16]>()) {
        let mut hex = String::new();
        text::write_bytes(&mut hex, &value);
        round_trip(&Column::new("c", ColumnType::Bytes), "bytea", &[Some(hex), None]);
        let id: String = uuid.iter().map(|b| format!("{b:02x}")).collect();
        round_trip(&Column::new("c", ColumnType::Uuid), "uuid", &[Some(id)]);
    }

    #[test]
    fn numerics(text in "-?[0-9]{1,60}(\\.[0-9]{0,40})?") {
        let column = Column::new("c", ColumnType::Numeric);
        let array = build(&column, &[Some(text.clone())]);
        let encoder = Encoder::new(&column, "numeric").unwrap();
        let mut out = BytesMut::new();
        encoder.bind(&array).unwrap().write(0, &mut out).unwrap();
        let mut decoder = Decoder::new(&column);
        decoder.extend([Some(&out[4..])].into_iter()).unwrap();
        let back = decoder.finish();
        let back = back.as_string::<i32>().value(0);
        // The same number: leading zeros, a bare point and the sign of zero are not kept.
        let plain = |s: &str| {
            let (sign, body) = s.strip_prefix('-').map_or(("", s), |b| ("-", b));
            let body = body.strip_suffix('.').unwrap_or(body);
            let (whole, fraction) = body.split_once('.').unwrap_or((body, ""));
            let whole = whole.trim_start_matches('0');
            let zero = whole.is_empty() && fraction.bytes().all(|b| b == b'0');
            let point = if fraction.is_empty() { "" } else { "." };
            format!("{}{}{point}{fraction}", if zero { "" } else { sign }, if whole.is_empty() { "0" } else { whole })
        };
        prop_assert_eq!(back, plain(&text));
    }
}
