//! Statements in the log: what they do to tables without saying a row.

/// What a statement does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// A transaction ends, and counts.
    Commit,
    /// A transaction ends, undone.
    Rollback,
    /// A part of a transaction is undone.
    Undone,
    /// The table is empty.
    Emptied(Named),
    /// The table holds other rows from here on: made, renamed to this name, or changed below its rows.
    Remade(Named),
    /// Rows of some table, as a statement.
    Rows,
}

/// A table, in its database if the statement says it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) schema: Option<String>,
    pub(super) name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A word outside of quotes, as it is written.
    Word(String),
    /// A quoted name.
    Name(String),
    /// A quoted text, or a number.
    Value,
    Sign(char),
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(self, Token::Word(w) if w.eq_ignore_ascii_case(word))
    }
}

/// What a statement does to tables, in order.
pub(super) fn effects(sql: &str) -> Vec<Effect> {
    let tokens = tokens(sql);
    let mut cursor = Cursor { tokens: &tokens };
    let Some(Token::Word(first)) = cursor.next() else {
        return Vec::new();
    };
    match first.to_ascii_uppercase().as_str() {
        "COMMIT" => vec![Effect::Commit],
        "XA" => match cursor.next() {
            Some(t) if t.is("COMMIT") => vec![Effect::Commit],
            Some(t) if t.is("ROLLBACK") => vec![Effect::Rollback],
            _ => Vec::new(),
        },
        "ROLLBACK" => {
            cursor.skip(&["WORK"]);
            match cursor.eat("TO") {
                true => vec![Effect::Undone],
                false => vec![Effect::Rollback],
            }
        }
        "INSERT" | "UPDATE" | "DELETE" | "REPLACE" | "LOAD" => vec![Effect::Rows],
        "TRUNCATE" => {
            cursor.skip(&["TABLE"]);
            cursor.table().map(Effect::Emptied).into_iter().collect()
        }
        "CREATE" => {
            cursor.skip(&["OR", "REPLACE"]);
            if !cursor.eat("TABLE") {
                return Vec::new();
            }
            // Where it was there already, nothing was made, and then the server does not log it.
            cursor.skip(&["IF", "NOT", "EXISTS"]);
            cursor.table().map(Effect::Remade).into_iter().collect()
        }
        "RENAME" => {
            if !(cursor.eat("TABLE") || cursor.eat("TABLES")) {
                return Vec::new();
            }
            cursor.skip(&["IF", "EXISTS"]);
            let mut all = Vec::new();
            while cursor.table().is_some() {
                cursor.skip(&["WAIT", "NOWAIT"]);
                while !cursor.at_end() && !cursor.eat("TO") {
                    cursor.next();
                }
                all.extend(cursor.table().map(Effect::Remade));
                if !cursor.sign(',') {
                    break;
                }
            }
            all
        }
        "ALTER" => {
            cursor.skip(&["ONLINE", "IGNORE"]);
            if !cursor.eat("TABLE") {
                return Vec::new();
            }
            cursor.skip(&["IF", "EXISTS"]);
            let Some(table) = cursor.table() else {
                return Vec::new();
            };
            let mut all = Vec::new();
            let mut below = false;
            while let Some(token) = cursor.next() {
                below |= token.is("PARTITION") || token.is("TABLESPACE") || token.is("SYSTEM");
                if token.is("RENAME") && !["COLUMN", "INDEX", "KEY"].iter().any(|w| cursor.eat(w)) {
                    cursor.skip(&["TO", "AS"]);
                    all.extend(cursor.table().map(Effect::Remade));
                }
            }
            if below {
                all.push(Effect::Remade(table));
            }
            all
        }
        _ => Vec::new(),
    }
}

struct Cursor<'a> {
    tokens: &'a [Token],
}

impl Cursor<'_> {
    fn next(&mut self) -> Option<Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first.clone())
    }

    fn at_end(&self) -> bool {
        self.tokens.is_empty()
    }

    fn eat(&mut self, word: &str) -> bool {
        let found = self.tokens.first().is_some_and(|t| t.is(word));
        if found {
            self.next();
        }
        found
    }

    fn skip(&mut self, words: &[&str]) {
        for word in words {
            self.eat(word);
        }
    }

    fn sign(&mut self, sign: char) -> bool {
        let found = self.tokens.first() == Some(&Token::Sign(sign));
        if found {
            self.next();
        }
        found
    }

    fn name(&mut self) -> Option<String> {
        match self.tokens.first()? {
            Token::Word(s) | Token::Name(s) => {
                let s = s.clone();
                self.next();
                Some(s)
            }
            _ => None,
        }
    }

    fn table(&mut self) -> Option<Named> {
        let first = self.name()?;
        if self.sign('.') {
            let name = self.name()?;
            return Some(Named {
                schema: Some(first),
                name,
            });
        }
        Some(Named {
            schema: None,
            name: first,
        })
    }
}

fn tokens(sql: &str) -> Vec<Token> {
    let mut all = Vec::new();
    let mut chars = sql.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '#' => while chars.next().is_some_and(|c| c != '\n') {},
            '-' if chars.peek() == Some(&'-') => while chars.next().is_some_and(|c| c != '\n') {},
            '/' if chars.peek() == Some(&'*') => {
                chars.next();
                // What a comment holds for certain versions only is a part of the statement.
                if chars.peek() == Some(&'!') || chars.peek() == Some(&'M') {
                    while chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '!').is_some() {}
                    continue;
                }
                let mut star = false;
                for c in chars.by_ref() {
                    if star && c == '/' {
                        break;
                    }
                    star = c == '*';
                }
            }
            '*' if chars.peek() == Some(&'/') => {
                chars.next();
            }
            '`' | '\'' | '"' => {
                let mut text = String::new();
                while let Some(next) = chars.next() {
                    if next == c {
                        if chars.next_if_eq(&c).is_none() {
                            break;
                        }
                        text.push(c);
                    } else if next == '\\' && c != '`' {
                        chars.next();
                    } else {
                        text.push(next);
                    }
                }
                all.push(if c == '`' { Token::Name(text) } else { Token::Value });
            }
            c if c.is_alphanumeric() || c == '_' || c == '$' => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '_' || *c == '$') {
                    word.push(c);
                }
                all.push(Token::Word(word));
            }
            c => all.push(Token::Sign(c)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Named {
        match text.split_once('.') {
            Some((schema, name)) => Named {
                schema: Some(schema.into()),
                name: name.into(),
            },
            None => Named {
                schema: None,
                name: text.into(),
            },
        }
    }

    #[test]
    fn statements_say_which_tables_they_change() {
        let emptied = |t| vec![Effect::Emptied(named(t))];
        let remade = |t| vec![Effect::Remade(named(t))];
        assert_eq!(effects("TRUNCATE t"), emptied("t"));
        assert_eq!(
            effects("/* a; b */ truncate TABLE `shop`.`a``b` NOWAIT"),
            emptied("shop.a`b")
        );
        assert_eq!(effects("CREATE OR REPLACE TABLE `t` (a int)"), remade("t"));
        assert_eq!(effects("CREATE TABLE IF NOT EXISTS s.t LIKE x"), remade("s.t"));
        assert_eq!(effects("CREATE INDEX i ON t (a)"), []);
        assert_eq!(
            effects("RENAME TABLE t TO _t_del, `s`.`_t_gho` TO t"),
            [Effect::Remade(named("_t_del")), Effect::Remade(named("t"))]
        );
        assert_eq!(effects("ALTER TABLE x RENAME TO t"), remade("t"));
        assert_eq!(
            effects("ALTER TABLE t RENAME COLUMN a TO b, ADD c int DEFAULT 'PARTITION'"),
            []
        );
        assert_eq!(effects("ALTER TABLE t TRUNCATE PARTITION p0"), remade("t"));
        assert_eq!(effects("-- x\nCOMMIT"), [Effect::Commit]);
        assert_eq!(effects("insert into t values ('x')"), [Effect::Rows]);
        assert_eq!(effects("DROP TABLE `t` /* generated by server */"), []);
        assert_eq!(effects("ROLLBACK TO `s`"), [Effect::Undone]);
        assert_eq!(effects("XA COMMIT X'31'"), [Effect::Commit]);
        assert_eq!(effects(""), []);
    }
}
