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
    /// A column went.
    Dropped(Named, String),
    /// A column came, or another one got this name.
    Added(Named, String),
    /// Rows of some table, as a statement.
    Rows,
}

/// A table, in its database if the statement says it.
#[derive(Debug, Clone, PartialEq, Eq)]
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
            cursor.skip(&["NOWAIT"]);
            if cursor.eat("WAIT") {
                cursor.next();
            }
            let mut below = false;
            // All of a statement's columns go before others come.
            let (mut gone, mut come) = (Vec::new(), Vec::new());
            let mut depth = 0;
            let mut begins = true;
            while let Some(token) = cursor.next() {
                match token {
                    Token::Sign('(') => depth += 1,
                    Token::Sign(')') => depth -= 1,
                    _ => {}
                }
                let begun = std::mem::replace(&mut begins, depth == 0 && token == Token::Sign(','));
                below |= token.is("PARTITION") || token.is("TABLESPACE") || token.is("SYSTEM");
                if token.is("RENAME") {
                    if cursor.eat("COLUMN") {
                        cursor.skip(&["IF", "EXISTS"]);
                        gone.extend(cursor.name());
                        cursor.skip(&["TO"]);
                        come.extend(cursor.name());
                    } else if !cursor.eat("INDEX") && !cursor.eat("KEY") {
                        cursor.skip(&["TO", "AS"]);
                        all.extend(cursor.table().map(Effect::Remade));
                    }
                } else if begun && token.is("DROP") && !cursor.drops_other() {
                    cursor.skip(&["COLUMN", "IF", "EXISTS"]);
                    gone.extend(cursor.name());
                } else if begun && token.is("CHANGE") {
                    cursor.skip(&["COLUMN", "IF", "EXISTS"]);
                    let (was, is) = (cursor.name(), cursor.name());
                    if was != is {
                        gone.extend(was);
                        come.extend(is);
                    }
                } else if begun && token.is("ADD") && !cursor.adds_other() {
                    cursor.skip(&["COLUMN", "IF", "NOT", "EXISTS"]);
                    come.extend(cursor.columns());
                }
            }
            let columns = gone.into_iter().map(|c| Effect::Dropped(table.clone(), c));
            all.extend(columns.chain(come.into_iter().map(|c| Effect::Added(table.clone(), c))));
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

    fn is_at(&self, words: &[&str]) -> bool {
        self.tokens.first().is_some_and(|t| words.iter().any(|w| t.is(w)))
    }

    /// Whether what is dropped here is no column.
    fn drops_other(&self) -> bool {
        self.is_at(&[
            "PARTITION",
            "PRIMARY",
            "INDEX",
            "KEY",
            "FOREIGN",
            "CONSTRAINT",
            "CHECK",
            "SYSTEM",
            "PERIOD",
        ])
    }

    /// Whether what is added here is no column.
    fn adds_other(&self) -> bool {
        self.is_at(&[
            "PARTITION",
            "PRIMARY",
            "INDEX",
            "KEY",
            "UNIQUE",
            "FULLTEXT",
            "SPATIAL",
            "VECTOR",
            "FOREIGN",
            "CONSTRAINT",
            "CHECK",
            "SYSTEM",
            "PERIOD",
        ])
    }

    /// The names of new columns: one, or a list of them with their definitions.
    fn columns(&mut self) -> Vec<String> {
        if !self.sign('(') {
            return self.name().into_iter().collect();
        }
        let mut names = Vec::new();
        loop {
            if !self.adds_other() {
                names.extend(self.name());
            }
            // To the end of its definition.
            let mut depth = 0;
            loop {
                match self.next() {
                    None => return names,
                    Some(Token::Sign('(')) => depth += 1,
                    Some(Token::Sign(')')) if depth == 0 => return names,
                    Some(Token::Sign(')')) => depth -= 1,
                    Some(Token::Sign(',')) if depth == 0 => break,
                    Some(_) => {}
                }
            }
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
        let gone = |c: &str| Effect::Dropped(named("t"), c.into());
        let come = |c: &str| Effect::Added(named("t"), c.into());
        assert_eq!(
            effects("ALTER TABLE t RENAME COLUMN a TO b, ADD c int DEFAULT 'PARTITION'"),
            [gone("a"), come("b"), come("c")]
        );
        assert_eq!(
            effects(
                "ALTER TABLE t DROP b, DROP PRIMARY KEY, ADD COLUMN IF NOT EXISTS `b` decimal(8, 2) FIRST, ADD KEY k (b, c)"
            ),
            [gone("b"), come("b")]
        );
        assert_eq!(
            effects(
                "ALTER TABLE t ADD (x int, y decimal(8, 2) DEFAULT (1 + 2), UNIQUE (x, y)), DROP COLUMN IF EXISTS z, ENGINE=InnoDB"
            ),
            [gone("z"), come("x"), come("y")]
        );
        assert_eq!(
            effects(
                "ALTER TABLE t CHANGE a a bigint, CHANGE COLUMN b c int AFTER a, ALTER COLUMN d DROP DEFAULT, MODIFY e int"
            ),
            [gone("b"), come("c")]
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
