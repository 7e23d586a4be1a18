//! Expressions of stages as the engine reads them, and whether they can be understood at all: that is told while a file
//! is read, at the expression's place.

use super::at::At;
use super::error::ConfigError;
use super::pipeline::{Comparison, Filter, Operator};
use super::stage::{Computed, EnrichField, FieldSource, Stage, StageWork};

/// Tells every expression that is not understood. What a disabled stage says does not matter.
pub(super) fn check(stages: &[Stage], errors: &mut Vec<ConfigError>) {
    for stage in stages.iter().filter(|s| *s.enabled) {
        match &stage.work {
            StageWork::Compute(columns) => errors.extend(columns.iter().filter_map(|c| computed(c).err())),
            StageWork::Filter(filters) => errors.extend(filters.iter().filter_map(|f| condition(f).err())),
            StageWork::Enrich(enrich) => {
                for field in &enrich.fields {
                    errors.extend(not_in_sql(field).err());
                    errors.extend(transform(field).and_then(Result::err));
                }
            }
            _ => {}
        }
    }
}

/// What a column is computed by.
pub(crate) fn computed(column: &Computed) -> Result<String, ConfigError> {
    let expression = column.expression.trim();
    let expression = match &column.column {
        // The parameter is the value of one column.
        Some(over) => over_column(expression, over),
        None => as_lambda(expression),
    };
    understood(&expression, &column.expression)?;
    Ok(expression)
}

/// What an added column's value is turned into.
pub(crate) fn transform(field: &EnrichField) -> Option<Result<String, ConfigError>> {
    let transform = field.transform.as_ref()?;
    let expression = over_column(transform.trim(), &field.dest);
    Some(understood(&expression, transform).map(|()| expression))
}

/// Refuses fields in the SQL of the table's own datastore.
pub(crate) fn not_in_sql(field: &EnrichField) -> Result<(), ConfigError> {
    match &field.source {
        FieldSource::Expr(sql) => Err(sql
            .error("expressions of the table's own SQL are not in an enrichment yet")
            .with_help(
                "enrich from a view that computes the field, or compute it of the added columns by `transform`",
            )),
        _ => Ok(()),
    }
}

/// A filter as a condition.
pub(crate) fn condition(filter: &At<Filter>) -> Result<String, ConfigError> {
    match &**filter {
        Filter::Sql(sql) => {
            let sql = as_lambda(sql);
            understood(&sql, &filter.with(sql.clone()))?;
            Ok(sql)
        }
        Filter::Compare(comparison) => Ok(compared(comparison)),
    }
}

fn compared(c: &Comparison) -> String {
    let column = format!("\"{}\"", c.column.replace('"', "\"\""));
    let literal = |v: &serde_json::Value| match v {
        serde_json::Value::String(text) => format!("'{}'", text.replace('\'', "''")),
        other => other.to_string(),
    };
    let sql = match (c.operator, &*c.value) {
        (Operator::Equal, serde_json::Value::Null) => return format!("{column} IS NULL"),
        (Operator::NotEqual, serde_json::Value::Null) => return format!("{column} IS NOT NULL"),
        (Operator::In, serde_json::Value::Array(values)) => {
            let values: Vec<String> = values.iter().map(literal).collect();
            return format!("{column} IN ({})", values.join(", "));
        }
        (Operator::Equal | Operator::In, _) => "=",
        (Operator::NotEqual, _) => "<>",
        (Operator::Less, _) => "<",
        (Operator::LessOrEqual, _) => "<=",
        (Operator::Greater, _) => ">",
        (Operator::GreaterOrEqual, _) => ">=",
    };
    format!("{column} {sql} {}", literal(&c.value))
}

/// What stands after a lambda's colon may be written without the rest.
fn as_lambda(expression: &str) -> String {
    let looks_like_python = expression.contains("x[") || expression.contains("x.get(");
    match expression.trim_start().starts_with("lambda") || !looks_like_python {
        true => expression.to_owned(),
        false => format!("lambda x: {expression}"),
    }
}

/// `lambda x: "abc" + x` over a column becomes `lambda x: "abc" + x['column']`.
pub(crate) fn over_column(expression: &str, column: &str) -> String {
    let (parameter, body) = match expression.strip_prefix("lambda").and_then(|rest| rest.split_once(':')) {
        Some((parameter, body)) => (parameter.trim(), body.trim()),
        None => ("x", expression),
    };
    let value = format!("x[{}]", quoted(column));
    let mut out = String::from("lambda x: ");
    let mut quote: Option<char> = None;
    let mut word = String::new();
    let finish = |word: &mut String, out: &mut String| {
        match word == parameter {
            true => out.push_str(&value),
            false => out.push_str(word),
        }
        word.clear();
    };
    for c in body.chars() {
        match quote {
            Some(q) => {
                out.push(c);
                if c == q {
                    quote = None;
                }
            }
            None if c.is_alphanumeric() || c == '_' => word.push(c),
            None => {
                finish(&mut word, &mut out);
                if matches!(c, '\'' | '"') {
                    quote = Some(c);
                }
                out.push(c);
            }
        }
    }
    finish(&mut word, &mut out);
    out
}

/// A text as a literal of Python.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// An expression that cannot be understood is a mistake of the file, told at its place.
fn understood<T>(expression: &str, written: &At<T>) -> Result<(), ConfigError> {
    synctool_transform::check_syntax(expression).map_err(|e| {
        let place = match (e.line, e.column) {
            (1, column) => format!("at its character {column}"),
            (line, column) => format!("at its line {line}, character {column}"),
        };
        let error = written.error(format!("the expression is not understood {place}: {}", e.message));
        match e.hint {
            Some(hint) => error.with_help(hint),
            None => error.with_help("write SQL over the row's columns, or a lambda such as lambda x: x['a'] + x['b']"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_one_columns_value() {
        assert_eq!(over_column("lambda x: \"x\" + x", "a b"), "lambda x: \"x\" + x['a b']");
        assert_eq!(
            over_column("lambda v: str(v).upper()", "n"),
            "lambda x: str(x['n']).upper()"
        );
        assert_eq!(over_column("max(x, 1)", "n"), "lambda x: max(x['n'], 1)");
    }
}
