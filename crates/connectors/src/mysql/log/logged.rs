//! What the log says of a table before its rows: types always, names and the rest where the server is told to say them
//! (`binlog_row_metadata = FULL`).

use super::super::types::{self, Declared};
use mysql_async::binlog::events::{OptionalMetaExtractor, OptionalMetadataField, TableMapEvent};
use mysql_async::consts::ColumnType as Wire;
use std::collections::VecDeque;
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Column, ColumnType};

/// The texts of an enum or a set, as the log has them.
pub(super) type Members = Arc<[Vec<u8>]>;

/// A column of the log.
#[derive(Debug, Clone)]
pub(super) struct LoggedColumn {
    pub(super) name: Option<String>,
    pub(super) wire: Wire,
    pub(super) meta: [u8; 2],
    pub(super) unsigned: Option<bool>,
    /// The number of its collation.
    pub(super) collation: Option<u16>,
    pub(super) members: Option<Members>,
}

/// The columns of a table of the log.
pub(super) fn columns(event: &TableMapEvent<'_>) -> Result<Vec<LoggedColumn>> {
    let malformed =
        |e: std::io::Error| Error::new(code::SERVER_ERROR, "a table of the log cannot be read").caused_by(e);
    let said = OptionalMetaExtractor::new(event.iter_optional_meta()).map_err(malformed)?;
    let (mut signs, mut names) = (said.iter_signedness(), said.iter_column_name());
    let (mut texts, mut choices) = (said.iter_charset(), said.iter_enum_and_set_charset());
    let (mut enums, mut sets) = (VecDeque::new(), VecDeque::new());
    for field in event.iter_optional_meta() {
        match field.map_err(malformed)? {
            OptionalMetadataField::EnumStrValue(all) => {
                for one in all.iter_values() {
                    let one = one.map_err(malformed)?;
                    enums.push_back(one.values().iter().map(|v| v.value_raw().to_vec()).collect::<Members>());
                }
            }
            OptionalMetadataField::SetStrValue(all) => {
                for one in all.iter_values() {
                    let one = one.map_err(malformed)?;
                    sets.push_back(one.values().iter().map(|v| v.value_raw().to_vec()).collect::<Members>());
                }
            }
            _ => {}
        }
    }
    (0..event.columns_count() as usize)
        .map(|i| {
            let name = names.next().transpose().map_err(malformed)?;
            let name = name.map(|n| n.name().into_owned());
            let wire = event.get_column_type(i).ok().flatten().ok_or_else(|| {
                let column = name.clone().unwrap_or_else(|| format!("{} of the table", i + 1));
                Error::new(
                    code::TYPE_UNSUPPORTED,
                    format!("column {column} comes in a form of the log that is not read here"),
                )
                .hint("compressed columns are not read: ALTER TABLE … MODIFY the column without COMPRESSED")
            })?;
            let meta = event.get_column_metadata(i).unwrap_or_default();
            let byte = |at: usize| meta.get(at).copied().unwrap_or(0);
            Ok(LoggedColumn {
                name,
                wire,
                meta: [byte(0), byte(1)],
                unsigned: wire.is_numeric_type().then(|| signs.next()).flatten(),
                collation: match () {
                    () if wire.is_character_type() => texts.next().transpose().map_err(malformed)?,
                    () if wire.is_enum_or_set_type() => choices.next().transpose().map_err(malformed)?,
                    () => None,
                },
                members: match wire {
                    Wire::MYSQL_TYPE_ENUM => enums.pop_front(),
                    Wire::MYSQL_TYPE_SET => sets.pop_front(),
                    _ => None,
                },
            })
        })
        .collect()
}

impl LoggedColumn {
    /// Whether it can be a column that the catalog declares like this.
    pub(super) fn fits(&self, declared: &str) -> bool {
        let (base, arguments) = parts(declared);
        let first: u8 = arguments.first().and_then(|a| a.parse().ok()).unwrap_or(0);
        let second: u8 = arguments.get(1).and_then(|a| a.parse().ok()).unwrap_or(0);
        let wire = match base.as_str() {
            "tinyint" => Wire::MYSQL_TYPE_TINY,
            "smallint" => Wire::MYSQL_TYPE_SHORT,
            "mediumint" => Wire::MYSQL_TYPE_INT24,
            "int" | "integer" => Wire::MYSQL_TYPE_LONG,
            "bigint" => Wire::MYSQL_TYPE_LONGLONG,
            "float" => Wire::MYSQL_TYPE_FLOAT,
            "double" | "real" => Wire::MYSQL_TYPE_DOUBLE,
            "decimal" | "numeric" => Wire::MYSQL_TYPE_NEWDECIMAL,
            "year" => Wire::MYSQL_TYPE_YEAR,
            "date" => Wire::MYSQL_TYPE_NEWDATE,
            "time" => Wire::MYSQL_TYPE_TIME2,
            "datetime" => Wire::MYSQL_TYPE_DATETIME2,
            "timestamp" => Wire::MYSQL_TYPE_TIMESTAMP2,
            "bit" => Wire::MYSQL_TYPE_BIT,
            "enum" => Wire::MYSQL_TYPE_ENUM,
            "set" => Wire::MYSQL_TYPE_SET,
            "char" | "binary" | "uuid" | "inet4" | "inet6" => Wire::MYSQL_TYPE_STRING,
            "varchar" | "varbinary" => Wire::MYSQL_TYPE_VARCHAR,
            "tinytext" | "text" | "mediumtext" | "longtext" | "tinyblob" | "blob" | "mediumblob" | "longblob" => {
                Wire::MYSQL_TYPE_BLOB
            }
            "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
            | "geometrycollection" | "geomcollection" => Wire::MYSQL_TYPE_GEOMETRY,
            _ => return false,
        };
        let size = match wire {
            Wire::MYSQL_TYPE_NEWDECIMAL => self.meta == [first, second],
            Wire::MYSQL_TYPE_TIME2 | Wire::MYSQL_TYPE_DATETIME2 | Wire::MYSQL_TYPE_TIMESTAMP2 => self.meta[0] == first,
            Wire::MYSQL_TYPE_BIT => self.meta == [first % 8, first / 8],
            _ => true,
        };
        let signs = !wire.is_numeric_type() || self.unsigned.is_none_or(|u| u == declared.contains("unsigned"));
        // A year is unsigned by itself.
        self.wire == wire && size && (signs || wire == Wire::MYSQL_TYPE_YEAR)
    }

    /// The column as the log alone says it, where that is enough to know its type; it has no name.
    pub(super) fn column(&self) -> Option<Column> {
        let [first, second] = self.meta;
        let of = |name: &str| (name.to_owned(), name.to_owned());
        let fraction = |name: &str| match first {
            0 => of(name),
            digits => (name.to_owned(), format!("{name}({digits})")),
        };
        let (data_type, mut column_type) = match self.wire {
            Wire::MYSQL_TYPE_TINY => of("tinyint"),
            Wire::MYSQL_TYPE_SHORT => of("smallint"),
            Wire::MYSQL_TYPE_INT24 => of("mediumint"),
            Wire::MYSQL_TYPE_LONG => of("int"),
            Wire::MYSQL_TYPE_LONGLONG => of("bigint"),
            Wire::MYSQL_TYPE_FLOAT => of("float"),
            Wire::MYSQL_TYPE_DOUBLE => of("double"),
            Wire::MYSQL_TYPE_NEWDECIMAL => ("decimal".into(), format!("decimal({first},{second})")),
            Wire::MYSQL_TYPE_NEWDATE => of("date"),
            Wire::MYSQL_TYPE_TIME2 => fraction("time"),
            Wire::MYSQL_TYPE_DATETIME2 => fraction("datetime"),
            Wire::MYSQL_TYPE_TIMESTAMP2 => fraction("timestamp"),
            _ => return None,
        };
        if self.wire.is_numeric_type() && self.unsigned? {
            column_type.push_str(" unsigned");
        }
        let declared = Declared {
            data_type,
            precision: first.into(),
            scale: second.into(),
            column_type,
            ..Declared::default()
        };
        let ty: ColumnType = types::column_type(&declared);
        Some(Column::new("", ty).with_source_type(declared.column_type))
    }
}

/// The name of a declared type, and what stands in its parentheses.
pub(super) fn parts(declared: &str) -> (String, Vec<String>) {
    let base = declared
        .split(['(', ' '])
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let inner = declared
        .split_once('(')
        .and_then(|(_, rest)| rest.rsplit_once(')'))
        .map_or("", |(inner, _)| inner);
    let (mut all, mut one, mut chars, mut quoted) = (Vec::new(), String::new(), inner.chars().peekable(), false);
    while let Some(c) = chars.next() {
        match c {
            '\'' if quoted && chars.next_if_eq(&'\'').is_some() => one.push('\''),
            '\'' => quoted = !quoted,
            ',' if !quoted => all.push(std::mem::take(&mut one)),
            c => one.push(c),
        }
    }
    if !inner.is_empty() {
        all.push(one);
    }
    (base, all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(wire: Wire, meta: [u8; 2], unsigned: Option<bool>) -> LoggedColumn {
        LoggedColumn {
            name: None,
            wire,
            meta,
            unsigned,
            collation: None,
            members: None,
        }
    }

    #[test]
    fn declarations_are_taken_apart() {
        assert_eq!(parts("bigint(20) unsigned"), ("bigint".into(), vec!["20".into()]));
        assert_eq!(
            parts("enum('a','it''s','x,y)','')"),
            ("enum".into(), ["a", "it's", "x,y)", ""].map(String::from).to_vec())
        );
        assert_eq!(parts("double"), ("double".into(), vec![]));
        assert_eq!(parts("decimal(10,2)").1, ["10", "2"]);
    }

    #[test]
    fn plain_types_are_known_by_the_log_alone() {
        let column = |wire, meta, unsigned| {
            let column = logged(wire, meta, unsigned).column();
            column.map(|c| (c.ty, c.source_type.unwrap_or_default()))
        };
        let some = |ty, declared: &str| Some((ty, declared.to_owned()));
        assert_eq!(
            column(Wire::MYSQL_TYPE_LONG, [0, 0], Some(true)),
            some(ColumnType::UInt32, "int unsigned")
        );
        assert_eq!(
            column(Wire::MYSQL_TYPE_LONG, [0, 0], None),
            None,
            "the log does not say its sign"
        );
        let decimal = ColumnType::Decimal {
            precision: 10,
            scale: 2,
        };
        assert_eq!(
            column(Wire::MYSQL_TYPE_NEWDECIMAL, [10, 2], Some(false)),
            some(decimal, "decimal(10,2)")
        );
        assert_eq!(
            column(Wire::MYSQL_TYPE_DATETIME2, [6, 0], None),
            some(ColumnType::Timestamp, "datetime(6)")
        );
        assert_eq!(column(Wire::MYSQL_TYPE_VARCHAR, [9, 0], None), None);
    }

    #[test]
    fn columns_of_the_log_fit_declarations() {
        let n = logged(Wire::MYSQL_TYPE_LONG, [0, 0], Some(true));
        assert!(n.fits("int(10) unsigned") && !n.fits("int(11)") && !n.fits("bigint(20) unsigned"));
        let n = logged(Wire::MYSQL_TYPE_NEWDECIMAL, [10, 2], None);
        assert!(n.fits("decimal(10,2)") && !n.fits("decimal(12,2)"));
        let n = logged(Wire::MYSQL_TYPE_BIT, [1, 1], None);
        assert!(n.fits("bit(9)") && !n.fits("bit(8)"));
        let n = logged(Wire::MYSQL_TYPE_DATETIME2, [0, 0], None);
        assert!(n.fits("datetime") && !n.fits("datetime(6)"));
    }
}
