//! How values of two tables become equal texts.

use synctool_core::schema::{Column, ColumnType};
use synctool_core::text::{self, ColumnBuilder};

/// The form of one key column, made from the dimension's type.
#[derive(Debug, Clone)]
pub(crate) enum KeyForm {
    /// Whole numbers, whatever zeros stand behind a point.
    Whole,
    /// Numbers without needless zeros.
    Number,
    /// Text without the blanks that pad it.
    Padded,
    /// Text.
    Text,
    /// The canonical text of a type.
    Typed(Box<Column>),
}

impl KeyForm {
    pub(crate) fn of(column: &Column) -> Self {
        use ColumnType::*;
        match &column.ty {
            Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64 => KeyForm::Whole,
            Decimal { .. } | Numeric | Float32 | Float64 => KeyForm::Number,
            Char { .. } => KeyForm::Padded,
            Text { .. } | Json | Jsonb | Native | Interval | TimeTz => KeyForm::Text,
            ty => KeyForm::Typed(Box::new(Column::new("key", ty.clone()))),
        }
    }

    /// The text of a value in this form; `None` where no value of the dimension can be equal to it.
    pub(crate) fn text(&self, cell: &str) -> Option<String> {
        match self {
            // As a large float is written, in the fewest digits: what it holds may have others.
            KeyForm::Whole | KeyForm::Number if cell.contains(['e', 'E']) => {
                let value = cell.parse::<f64>().ok().filter(|v| v.is_finite())?;
                match value.fract() == 0.0 && value.abs() < 1e38 {
                    true => self.text(&(value as i128).to_string()),
                    false => self.text(&value.to_string()),
                }
            }
            KeyForm::Whole => {
                let whole = match cell.split_once('.') {
                    Some((whole, zeros)) if zeros.bytes().all(|b| b == b'0') => whole,
                    Some(_) => return None,
                    None => cell,
                };
                whole.parse::<i128>().ok().map(|n| n.to_string())
            }
            KeyForm::Number => {
                let trimmed = match cell.split_once('.') {
                    Some((whole, rest)) => match rest.trim_end_matches('0') {
                        "" => whole.to_string(),
                        rest => format!("{whole}.{rest}"),
                    },
                    None => cell.to_string(),
                };
                cell.parse::<f64>().ok()?;
                Some(if trimmed == "-0" { "0".into() } else { trimmed })
            }
            KeyForm::Padded => Some(cell.trim_end_matches(' ').to_string()),
            KeyForm::Text => Some(cell.to_string()),
            KeyForm::Typed(column) => {
                let mut builder = ColumnBuilder::new(column);
                builder.append_text(cell).ok()?;
                text::cell(&builder.finish(), 0).ok().flatten()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_equal_keys() {
        let form = |ty: ColumnType, cell: &str| KeyForm::of(&Column::new("k", ty)).text(cell);
        let some = |t: &str| Some(t.to_string());
        assert_eq!(form(ColumnType::Int64, "5.00"), some("5"));
        assert_eq!(form(ColumnType::Int64, "05"), some("5"));
        assert_eq!(form(ColumnType::Int64, "5.01"), None);
        assert_eq!(form(ColumnType::Int64, "five"), None);
        assert_eq!(
            form(ColumnType::Int64, "1.234567890123456e18"),
            some("1234567890123456000")
        );
        assert_eq!(
            form(ColumnType::Int64, "1.152921504606847e18"),
            some("1152921504606846976")
        );
        assert_eq!(form(ColumnType::Float64, "1e15"), some("1000000000000000"));
        assert_eq!(form(ColumnType::Float64, "NaN"), some("NaN"));
        assert_eq!(form(ColumnType::Numeric, "5.10"), some("5.1"));
        assert_eq!(form(ColumnType::Numeric, "500"), some("500"));
        assert_eq!(form(ColumnType::Char { length: 4 }, "ab  "), some("ab"));
        let id = "12345678-9ABC-def0-1234-56789abcdef0";
        assert_eq!(form(ColumnType::Uuid, id), some(&id.to_lowercase()));
        assert_eq!(form(ColumnType::Uuid, "no"), None);
    }
}
