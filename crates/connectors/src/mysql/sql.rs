//! SQL text: quoting, literals, and the SELECTs that read rows.

use super::types;
use synctool_core::change::KeyRange;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{ReadColumn, ReadSpec};
use synctool_core::query::{Condition, Cut, Filter, JoinKind, KeyList, Term, Test};
use synctool_core::schema::{Column, TableId};

/// The longest name of a table or column, in characters.
pub(super) const MAX_NAME: usize = 64;

/// An identifier, exact bytes, quoted.
pub(super) fn ident(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// Refuses names that the server cannot have.
pub(super) fn check_ident(name: &str) -> Result<()> {
    let why = if name.is_empty() {
        "is empty"
    } else if name.chars().count() > MAX_NAME {
        "is longer than 64 characters"
    } else if name.contains('\0') || name.chars().any(|c| c > '\u{ffff}') {
        "holds a NUL or a character beyond the basic plane"
    } else if name.ends_with(' ') {
        "ends with a blank"
    } else {
        return Ok(());
    };
    Err(Error::new(
        code::IDENTIFIER,
        format!("the name {name:?} {why}, which MySQL does not allow"),
    )
    .hint("give it another name in the pipeline"))
}

/// Quoted names, joined by commas, each with a prefix such as `l.`.
pub(super) fn list<S: AsRef<str>>(prefix: &str, names: &[S]) -> String {
    names
        .iter()
        .map(|n| format!("{prefix}{}", ident(n.as_ref())))
        .collect::<Vec<_>>()
        .join(", ")
}

/// A table's quoted name, in its database or the connection's.
pub(super) fn table(name: &TableId) -> String {
    match &name.schema {
        Some(schema) => format!("{}.{}", ident(schema), ident(&name.name)),
        None => ident(&name.name),
    }
}

/// A text as data. Backslashes escape in our sessions, as they do in what users write.
pub(super) fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for c in text.chars() {
        match c {
            '\'' => out.push_str("''"),
            '\\' => out.push_str("\\\\"),
            '\0' => out.push_str("\\0"),
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

/// Bytes as data.
pub(super) fn hex_literal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2 + 3);
    synctool_core::text::write_bytes(&mut text, bytes);
    format!("X'{}'", &text[2..])
}

/// The byte-for-byte form of a term of this type, for comparing: a collation hides differences.
pub(super) fn exact(expression: &str, text: bool) -> String {
    if text {
        format!("CAST(CONVERT({expression} USING utf8mb4) AS BINARY)")
    } else {
        expression.to_string()
    }
}

/// `(a, b) op (x, y)`, plain for one column. Spelt out, because row comparisons of ranges do not use an index.
pub(super) fn compare(columns: &[String], op: &str, values: &[String]) -> String {
    let strict = &op[..1];
    let mut alternatives = Vec::new();
    for i in 0..columns.len() {
        let mut terms: Vec<String> = (0..i).map(|j| format!("{} = {}", columns[j], values[j])).collect();
        let last = i + 1 == columns.len();
        terms.push(format!(
            "{} {} {}",
            columns[i],
            if last { op } else { strict },
            values[i]
        ));
        alternatives.push(terms.join(" AND "));
    }
    match alternatives.len() {
        1 => alternatives.remove(0),
        // The first column alone bounds the range of the index that is looked at.
        _ => format!(
            "{} {strict}= {} AND (({}))",
            columns[0],
            values[0],
            alternatives.join(") OR (")
        ),
    }
}

/// The condition of a range of key columns; empty for one without bounds. `columns` are their SQL and types.
pub(super) fn range(range: &KeyRange, columns: &[(String, Column)]) -> Result<String> {
    let names: Vec<String> = columns.iter().map(|(sql, _)| sql.clone()).collect();
    bounds(range, &names, |at, value| types::literal(&columns[at].1, value))
}

/// The same of columns that are called like this in SQL, with a value of each as `literal` says (by the place of its column).
pub(super) fn bounds(
    range: &KeyRange,
    names: &[String],
    literal: impl Fn(usize, &str) -> Result<String>,
) -> Result<String> {
    let mut sides = Vec::new();
    for (bound, op) in [(&range.lower, ">="), (&range.upper, "<")] {
        let Some(values) = bound else { continue };
        if values.len() != names.len() {
            return Err(Error::bug("a key range has another number of values than columns"));
        }
        let literals: Vec<String> = values
            .iter()
            .enumerate()
            .map(|(at, value)| literal(at, value))
            .collect::<Result<_>>()?;
        sides.push(compare(names, op, &literals));
    }
    Ok(sides.join(" AND "))
}

/// A term in SQL. The table read is called `t` unless it has an alias.
pub(super) fn term(read: &ReadSpec, term: &Term) -> String {
    match term {
        Term::Column { relation, name } => {
            let relation = relation.as_deref().unwrap_or_else(|| alias(read));
            format!("{}.{}", ident(relation), ident(name))
        }
        Term::Sql(sql) => format!("({sql})"),
    }
}

fn alias(read: &ReadSpec) -> &str {
    read.alias.as_deref().unwrap_or(&read.table.name)
}

/// `FROM … JOIN …`
pub(super) fn from(read: &ReadSpec) -> Result<String> {
    let mut sql = format!("FROM {} AS {}", table(&read.table), ident(alias(read)));
    for join in &read.joins {
        let kind = match join.kind {
            JoinKind::Inner => "INNER",
            JoinKind::Left => "LEFT",
            JoinKind::Right => "RIGHT",
            JoinKind::Full => {
                return Err(Error::new(code::UNSUPPORTED, "MySQL has no full join")
                    .at("table", join.table.to_string())
                    .hint("read from a view that unites a left and a right join"));
            }
        };
        let name = join.alias.as_deref().unwrap_or(&join.table.name);
        sql.push_str(&format!(
            " {kind} JOIN {} AS {} ON ({})",
            table(&join.table),
            ident(name),
            join.on
        ));
    }
    Ok(sql)
}

/// A test of a term whose type is `column`'s.
pub(super) fn condition(read: &ReadSpec, c: &Condition, column: &Column) -> Result<String> {
    let sql = term(read, &c.term);
    let value = |v: &str| types::literal(column, v);
    Ok(match &c.test {
        Test::Range { lower, upper } => {
            let mut sides = vec![format!("{sql} IS NOT NULL")];
            if let Some(v) = lower {
                sides.push(format!("{sql} >= {}", value(v)?));
            }
            if let Some(v) = upper {
                sides.push(format!("{sql} < {}", value(v)?));
            }
            if sides.len() > 1 {
                sides.remove(0);
            }
            sides.join(" AND ")
        }
        Test::In(values) if values.is_empty() => "FALSE".into(),
        Test::In(values) => {
            let values: Vec<String> = values.iter().map(|v| value(v)).collect::<Result<_>>()?;
            format!("{sql} IN ({})", values.join(", "))
        }
        Test::NotIn(values) if values.is_empty() => format!("{sql} IS NOT NULL"),
        Test::NotIn(values) => {
            let values: Vec<String> = values.iter().map(|v| value(v)).collect::<Result<_>>()?;
            format!("{sql} NOT IN ({})", values.join(", "))
        }
        Test::Compare(how, v) => format!("{sql} {} {}", how.sql(), value(v)?),
        Test::Null => format!("{sql} IS NULL"),
        Test::NotNull => format!("{sql} IS NOT NULL"),
        Test::NullOrIn(_) | Test::NullOrNotIn(_) | Test::NullOrRange { .. } => {
            format!("({sql} IS NULL OR ({}))", condition(read, &c.without_null(), column)?)
        }
    })
}

/// The terms of a request whose types must be known, in the order in which [`filters`], [`cut`] and [`keys`] ask for
/// them.
pub(super) fn tested(filters: &[Filter]) -> impl Iterator<Item = &Term> {
    filters.iter().filter_map(|f| match f {
        Filter::Test(c) => Some(&c.term),
        Filter::Sql(_) => None,
    })
}

/// The filters of a read, each in parentheses.
pub(super) fn filters(read: &ReadSpec, types: &[Column]) -> Result<Vec<String>> {
    let mut types = types.iter();
    read.filters
        .iter()
        .map(|f| match f {
            Filter::Sql(sql) => Ok(format!("({sql})")),
            Filter::Test(c) => {
                let column = types.next().ok_or_else(|| Error::bug("a filter without its type"))?;
                condition(read, &c.as_written(&column.ty), column).map(|c| format!("({c})"))
            }
        })
        .collect()
}

/// A condition that cuts work: a list of texts means them by their bytes, as everywhere else. Under a collation a row
/// would belong to every piece that lists one of its letters' cases.
fn listed(read: &ReadSpec, c: &Condition, column: &Column) -> Result<String> {
    let sql = term(read, &c.term);
    let (values, how) = match &c.test {
        Test::In(values) => (values, "IN"),
        Test::NotIn(values) => (values, "NOT IN"),
        Test::NullOrIn(_) | Test::NullOrNotIn(_) => {
            return Ok(format!(
                "({sql} IS NULL OR ({}))",
                listed(read, &c.without_null(), column)?
            ));
        }
        _ => return condition(read, c, column),
    };
    if values.is_empty() || !types::is_text(&column.ty) {
        return condition(read, c, column);
    }
    let bytes: Vec<String> = values
        .iter()
        .map(|v| types::literal(column, v).map(|v| exact(&v, true)))
        .collect::<Result<_>>()?;
    let exactly = format!("{} {how} ({})", exact(&sql, true), bytes.join(", "));
    Ok(match &c.test {
        // The first is what an index answers.
        Test::In(_) => format!("{} AND {exactly}", condition(read, c, column)?),
        _ => exactly,
    })
}

/// The conditions of a cut; `types` are those of its conditions, `key` those of its range.
pub(super) fn cut(read: &ReadSpec, cut: &Cut, types: &[Column], key: &[(String, Column)]) -> Result<Vec<String>> {
    let mut all: Vec<String> = cut
        .conditions
        .iter()
        .zip(types)
        .map(|(c, column)| listed(read, c, column).map(|c| format!("({c})")))
        .collect::<Result<_>>()?;
    if let Some(r) = &cut.key {
        let text = range(r, key)?;
        if !text.is_empty() {
            all.push(format!("({text})"));
        }
    }
    Ok(all)
}

/// The condition that a row is one of those named.
pub(super) fn keys(read: &ReadSpec, list: &KeyList, types: &[Column]) -> Result<String> {
    let terms: Vec<String> = list.terms.iter().map(|t| term(read, t)).collect();
    let (mut whole, mut alternatives) = (Vec::new(), Vec::new());
    for key in &list.keys {
        if key.len() != terms.len() || types.len() != terms.len() {
            return Err(Error::bug("a key has another number of values than terms"));
        }
        let values: Vec<Option<String>> = key
            .iter()
            .zip(types)
            .map(|(v, c)| v.as_deref().map(|v| types::literal(c, v)).transpose())
            .collect::<Result<_>>()?;
        match values.iter().cloned().collect::<Option<Vec<String>>>() {
            Some(all) => whole.push(all.join(", ")),
            None => {
                let each: Vec<String> = terms
                    .iter()
                    .zip(values)
                    .map(|(t, v)| match v {
                        Some(v) => format!("{t} = {v}"),
                        None => format!("{t} IS NULL"),
                    })
                    .collect();
                alternatives.push(format!("({})", each.join(" AND ")));
            }
        }
    }
    if !whole.is_empty() {
        alternatives.push(match terms.as_slice() {
            [one] => format!("{one} IN ({})", whole.join(", ")),
            many => format!("({}) IN (({}))", many.join(", "), whole.join("), (")),
        });
    }
    Ok(match alternatives.is_empty() {
        true => "FALSE".into(),
        false => format!("({})", alternatives.join(" OR ")),
    })
}

/// `SELECT … FROM … WHERE … GROUP BY …` of a read; `conditions` are those of its filters and slice.
pub(super) fn select(read: &ReadSpec, conditions: &[String]) -> Result<String> {
    let columns: Vec<String> = read
        .columns
        .iter()
        .map(|c| types::select(&column_sql(read, c), &c.column))
        .collect();
    let columns = if columns.is_empty() {
        "1".into()
    } else {
        columns.join(", ")
    };
    Ok(format!("SELECT {columns} {}{}", from(read)?, rest(read, conditions)?))
}

/// The SQL of a column as it stands in the table, before it is made fit to be read.
pub(super) fn column_sql(read: &ReadSpec, column: &ReadColumn) -> String {
    term(read, &column.term())
}

/// `WHERE … GROUP BY …`. Texts make a group by their bytes, as everywhere else: under a collation a group would be called
/// now by one of its texts and now by another.
pub(super) fn rest(read: &ReadSpec, conditions: &[String]) -> Result<String> {
    let mut sql = String::new();
    if !conditions.is_empty() {
        sql.push_str(&format!(" WHERE {}", conditions.join(" AND ")));
    }
    if !read.group_by.is_empty() {
        let by: Vec<String> = read
            .groups()?
            .into_iter()
            .map(|(_, column)| exact(&column_sql(read, column), types::is_text(&column.column.ty)))
            .collect();
        sql.push_str(&format!(" GROUP BY {}", by.join(", ")));
    }
    Ok(sql)
}

#[cfg(test)]
mod tests {
    use super::*;
    use synctool_core::schema::ColumnType;

    #[test]
    fn names_and_values_cannot_break_out() {
        assert_eq!(ident("a`; DROP TABLE x; --"), "`a``; DROP TABLE x; --`");
        assert_eq!(literal("it's \\ \0"), "'it''s \\\\ \\0'");
        assert_eq!(hex_literal(&[0, 255]), "X'00ff'");
        assert!(check_ident(&"x".repeat(65)).is_err() && check_ident("größe").is_ok());
    }

    #[test]
    fn composite_ranges_bound_the_first_column() {
        let key = |name: &str, ty| (ident(name), Column::new(name, ty));
        let columns = [key("a", ColumnType::Int64), key("B", ColumnType::Text { max: None })];
        let r = KeyRange {
            columns: vec!["a".into(), "B".into()],
            lower: Some(vec!["1".into(), "it's".into()]),
            upper: None,
        };
        assert_eq!(
            range(&r, &columns).unwrap(),
            "`a` >= 1 AND ((`a` > 1) OR (`a` = 1 AND `B` >= 'it''s'))"
        );
        assert_eq!(range(&KeyRange::default(), &[]).unwrap(), "");
        let short = KeyRange {
            lower: Some(vec!["1".into()]),
            ..r
        };
        assert!(range(&short, &columns).is_err());
    }

    #[test]
    fn named_rows_may_hold_null() {
        let read = ReadSpec::of(TableId::bare("t"), Vec::new());
        let list = KeyList {
            terms: vec![Term::column("a"), Term::column("b")],
            keys: vec![vec![Some("1".into()), Some("x".into())], vec![None, Some("y".into())]],
        };
        let types = [
            Column::new("a", ColumnType::Int32),
            Column::new("b", ColumnType::Text { max: None }),
        ];
        assert_eq!(
            keys(&read, &list, &types).unwrap(),
            "((`t`.`a` IS NULL AND `t`.`b` = 'y') OR (`t`.`a`, `t`.`b`) IN ((1, 'x')))"
        );
    }
}
