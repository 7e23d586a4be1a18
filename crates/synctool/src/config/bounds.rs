//! The bounds of a backfill, as `--bounds` says them.

use serde::Deserialize;
use serde_json::Value;
use synctool_core::query::{Condition, Term, Test};

use super::moment;

/// One bound, in JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    column: String,
    start: Option<Value>,
    end: Option<Value>,
    value: Option<Value>,
    values: Option<Value>,
    /// Rows whose column is NULL too, or alone.
    null: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    More(Vec<Value>),
    One(Value),
}

/// Reads `[{"column": "id", "start": 100, "end": 200}, {"column": "region", "value": ["eu", "us"]}]` as conditions that
/// a row must meet, all of them: ranges from their start to before their end, and lists of values. Rows without a value are
/// in none of these; `"null": true` names them, alone or beside a range or list. A column may carry the alias of its table.
/// The error is a sentence that goes on after `--bounds`.
pub fn parse_bounds(text: &str) -> Result<Vec<Condition>, String> {
    let written: OneOrMore = serde_json::from_str(text).map_err(|e| format!("is not JSON: {e}"))?;
    let written = match written {
        OneOrMore::More(more) => more,
        OneOrMore::One(one) => vec![one],
    };
    if written.is_empty() {
        return Err("names no column".into());
    }
    let mut conditions: Vec<Condition> = Vec::new();
    for one in written {
        let one: Written = serde_json::from_value(one).map_err(|e| format!("is not understood: {e}"))?;
        let condition = condition(one)?;
        if conditions.iter().any(|c| c.term == condition.term) {
            return Err(format!("names column {} twice", condition.term));
        }
        conditions.push(condition);
    }
    Ok(conditions)
}

fn condition(bound: Written) -> Result<Condition, String> {
    let (column, null) = (bound.column, bound.null == Some(true));
    if column.trim().is_empty() {
        return Err("has a column without a name".into());
    }
    let end = |value: Option<Value>, which: &str| match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => moment::text(&value)
            .map(Some)
            .ok_or_else(|| format!("has a {which} of {column} that is neither a number nor a text")),
    };
    let (lower, upper) = (end(bound.start, "start")?, end(bound.end, "end")?);
    let list = match (bound.value, bound.values) {
        (Some(_), Some(_)) => return Err(format!("has both value and values for {column}")),
        (list, None) | (None, list) => list,
    };
    let test = match (list, &lower, &upper) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            return Err(format!("has a range and a list of values for {column}"));
        }
        (Some(list), None, None) => {
            let items = match list {
                Value::Array(items) => items,
                one => vec![one],
            };
            if items.is_empty() {
                return Err(format!("has an empty list of values for {column}"));
            }
            let texts = items.iter().map(|item| {
                moment::text(item).ok_or_else(|| {
                    let why = format!("has a value of {column} that is neither a number nor a text");
                    match item {
                        Value::Null => format!("{why}: say \"null\": true for rows without a value"),
                        _ => why,
                    }
                })
            });
            Test::In(texts.collect::<Result<_, _>>()?)
        }
        (None, None, None) if null => Test::Null,
        (None, None, None) => return Err(format!("has neither start, end, value nor null for {column}")),
        (None, Some(lower), Some(upper)) if is_empty(lower, upper) => {
            return Err(format!(
                "has an empty range for {column}: its end must be behind its start"
            ));
        }
        (None, ..) => Test::Range { lower, upper },
    };
    Ok(Condition {
        term: term(&column),
        test: match test {
            Test::Range { lower, upper } if null => Test::NullOrRange { lower, upper },
            Test::In(values) if null => Test::NullOrIn(values),
            test => test,
        },
    })
}

/// Whether a range of whole numbers has none inside; of other types only the engines know the order.
fn is_empty(lower: &str, upper: &str) -> bool {
    matches!((lower.parse::<i128>(), upper.parse::<i128>()), (Ok(a), Ok(b)) if a >= b)
}

/// `o.id` → the column of a table by its alias.
fn term(column: &str) -> Term {
    match column.split_once('.') {
        Some((relation, name)) if !relation.is_empty() && !name.is_empty() => Term::Column {
            relation: Some(relation.to_owned()),
            name: name.to_owned(),
        },
        _ => Term::column(column),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_original() {
        let bounds = parse_bounds(
            r#"[{"column": "id", "start": 100, "end": 200}, {"column": "o.region", "value": ["eu", 5, true]},
                {"column": "at", "start": "2024-01-01"}]"#,
        )
        .unwrap();
        let range = |lower: Option<&str>, upper: Option<&str>| Test::Range {
            lower: lower.map(Into::into),
            upper: upper.map(Into::into),
        };
        assert_eq!(bounds[0].term, Term::column("id"));
        assert_eq!(bounds[0].test, range(Some("100"), Some("200")));
        assert_eq!(bounds[1].term.to_string(), "o.region");
        assert_eq!(bounds[1].test, Test::In(vec!["eu".into(), "5".into(), "true".into()]));
        assert_eq!(bounds[2].test, range(Some("2024-01-01"), None));
        let one = parse_bounds(r#"{"column": "id", "value": 7}"#).unwrap();
        assert_eq!(one[0].test, Test::In(vec!["7".into()]));
    }

    #[test]
    fn rows_without_a_value_are_named_by_themselves() {
        let test = |text: &str| parse_bounds(text).unwrap().remove(0).test;
        assert_eq!(test(r#"{"column": "id", "null": true}"#), Test::Null);
        assert_eq!(
            test(r#"{"column": "id", "null": true, "start": 5}"#),
            Test::NullOrRange {
                lower: Some("5".into()),
                upper: None
            }
        );
        assert_eq!(
            test(r#"{"column": "id", "null": true, "value": [5]}"#),
            Test::NullOrIn(vec!["5".into()])
        );
        assert_eq!(
            test(r#"{"column": "id", "null": false, "value": 5}"#),
            Test::In(vec!["5".into()])
        );
        let why = parse_bounds(r#"{"column": "id", "value": [5, null]}"#).unwrap_err();
        assert!(why.contains(r#""null": true"#), "{why}");
    }

    #[test]
    fn mistakes_are_told_by_column() {
        for (text, why) in [
            ("", "is not JSON"),
            ("[]", "names no column"),
            (r#"[{"start": 1}]"#, "missing field `column`"),
            (r#"[{"column": "id"}]"#, "neither start, end, value nor null for id"),
            (r#"[{"column": "id", "start": 1, "value": [2]}]"#, "a range and a list"),
            (r#"[{"column": "id", "start": 5, "end": 5}]"#, "an empty range for id"),
            (r#"[{"column": "id", "value": []}]"#, "an empty list"),
            (r#"[{"column": "id", "value": [null]}]"#, "neither a number nor a text"),
            (r#"[{"column": "id", "start": [1]}]"#, "a start of id"),
            (r#"[{"column": "id", "from": 1}]"#, "unknown field `from`"),
            (
                r#"[{"column": "id", "start": 1}, {"column": "id", "end": 2}]"#,
                "names column id twice",
            ),
        ] {
            let error = parse_bounds(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
