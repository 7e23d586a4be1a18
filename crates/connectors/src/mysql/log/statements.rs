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
    /// A column came.
    Added(Named, String),
    /// A column has another name. Columns may trade theirs in one statement.
    Renamed(Named, String, String),
    /// A column has another definition, which may have changed its values.
    Redefined(Named, String),
    /// The table has a foreign key that changes its rows, which the log does not say; its name, if the statement says it.
    Cascades(Named, Option<String>),
    /// The table may have an engine without transactions.
    Engine(Named),
    /// Rows of some table, as a statement.
    Rows,
}

impl Effect {
    /// The table whose columns or rows are other ones from here on.
    pub(super) fn altered(&self) -> Option<&Named> {
        match self {
            Effect::Remade(table)
            | Effect::Dropped(table, _)
            | Effect::Added(table, _)
            | Effect::Renamed(table, ..)
            | Effect::Redefined(table, _) => Some(table),
            Effect::Commit
            | Effect::Rollback
            | Effect::Undone
            | Effect::Emptied(_)
            | Effect::Cascades(..)
            | Effect::Engine(_)
            | Effect::Rows => None,
        }
    }
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
    /// A text in double quotes, which some sessions write names in.
    Either(String),
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
    cursor.skip_settings();
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
            let Some(table) = cursor.table() else {
                return Vec::new();
            };
            let cascades = cascading(cursor.tokens).map(|key| Effect::Cascades(table.clone(), key));
            [Effect::Remade(table)].into_iter().chain(cascades).collect()
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
            cursor.skip(&["ONLINE"]);
            // Rows that a new key does not allow go.
            let mut below = cursor.eat("IGNORE");
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
            let cascades = cascading(cursor.tokens);
            let mut redefined = Vec::new();
            // All of a statement's columns go, or get their names, before others come.
            let (mut gone, mut renamed, mut come) = (Vec::new(), Vec::new(), Vec::new());
            let mut depth = 0;
            let mut begins = true;
            let mut other_engine = false;
            while let Some(token) = cursor.next() {
                match token {
                    Token::Sign('(') => depth += 1,
                    Token::Sign(')') => depth -= 1,
                    _ => {}
                }
                let begun = std::mem::replace(&mut begins, depth == 0 && token == Token::Sign(','));
                below |= token.is("PARTITION") || token.is("TABLESPACE") || token.is("SYSTEM") || token.is("CONVERT");
                if below && (token.is("WITH") || token.is("TO")) && cursor.eat("TABLE") {
                    // EXCHANGE PARTITION … WITH TABLE, CONVERT PARTITION … TO TABLE: that one has other rows, too.
                    all.extend(cursor.table().map(Effect::Remade));
                }
                if token.is("RENAME") {
                    if cursor.eat("COLUMN") {
                        cursor.skip(&["IF", "EXISTS"]);
                        let was = cursor.name();
                        cursor.skip(&["TO"]);
                        renamed.extend(was.zip(cursor.name()));
                    } else if !cursor.eat("INDEX") && !cursor.eat("KEY") {
                        cursor.skip(&["TO", "AS"]);
                        all.extend(cursor.table().map(Effect::Remade));
                    }
                } else if begun && token.is("DROP") && !cursor.drops_other() {
                    cursor.skip(&["COLUMN", "IF", "EXISTS"]);
                    gone.extend(cursor.name());
                } else if begun && token.is("CHANGE") {
                    cursor.skip(&["COLUMN", "IF", "EXISTS"]);
                    if let (Some(was), Some(is)) = (cursor.name(), cursor.name()) {
                        redefined.push(is.clone());
                        renamed.push((was, is));
                    }
                } else if begun && token.is("MODIFY") {
                    cursor.skip(&["COLUMN", "IF", "EXISTS"]);
                    redefined.extend(cursor.name());
                } else if begun && token.is("ADD") && !cursor.adds_other() {
                    cursor.skip(&["COLUMN", "IF", "NOT", "EXISTS"]);
                    come.extend(cursor.columns());
                } else if token.is("ENGINE") {
                    cursor.sign('=');
                    // Tables are often written anew by naming the engine that they have.
                    other_engine |= !cursor.eat("InnoDB");
                }
            }
            let other = |(was, is): &(String, String)| !is_same(was, is);
            all.extend(gone.into_iter().map(|c| Effect::Dropped(table.clone(), c)));
            let renamed = renamed.into_iter().filter(other);
            all.extend(renamed.map(|(was, is)| Effect::Renamed(table.clone(), was, is)));
            all.extend(come.into_iter().map(|c| Effect::Added(table.clone(), c)));
            match below {
                true => all.push(Effect::Remade(table.clone())),
                false => all.extend(redefined.into_iter().map(|c| Effect::Redefined(table.clone(), c))),
            }
            all.extend(other_engine.then(|| Effect::Engine(table.clone())));
            all.extend(cascades.map(|key| Effect::Cascades(table, key)));
            all
        }
        _ => Vec::new(),
    }
}

/// Whether two names are those of one column.
pub(super) fn is_same(a: &str, b: &str) -> bool {
    a.to_lowercase() == b.to_lowercase()
}

/// The foreign key that changes rows of the table that has it, by the table's definition.
pub(super) fn cascading_key(create: &str) -> Option<Option<String>> {
    cascading(&tokens(create))
}

/// The first foreign key in a definition that changes rows of its table; its name, if it has one there.
fn cascading(tokens: &[Token]) -> Option<Option<String>> {
    let is = |i: Option<usize>, word: &str| i.and_then(|i| tokens.get(i)).is_some_and(|t| t.is(word));
    let (mut key, mut told) = (None, false);
    for (i, token) in tokens.iter().enumerate() {
        if token.is("FOREIGN") {
            key = match i.checked_sub(1).map(|i| &tokens[i]) {
                Some(Token::Word(name) | Token::Name(name) | Token::Either(name))
                    if is(i.checked_sub(2), "CONSTRAINT") =>
                {
                    Some(name.clone())
                }
                _ => None,
            };
            told = true;
        } else if token.is("REFERENCES") && !std::mem::take(&mut told) {
            // Behind a column: it has no name yet.
            key = None;
        } else if token.is("ON")
            && (is(Some(i + 1), "DELETE") || is(Some(i + 1), "UPDATE"))
            && (is(Some(i + 2), "CASCADE") || is(Some(i + 2), "SET") && is(Some(i + 3), "NULL"))
        {
            return Some(key);
        }
    }
    None
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

    /// To the statement that settings are made for: `SET STATEMENT a = 1, b = 'x' FOR …`.
    fn skip_settings(&mut self) {
        while let [first, second, rest @ ..] = self.tokens
            && first.is("SET")
            && second.is("STATEMENT")
        {
            self.tokens = rest;
            let mut depth = 0;
            while let Some(token) = self.next() {
                match token {
                    Token::Sign('(') => depth += 1,
                    Token::Sign(')') => depth -= 1,
                    token if depth == 0 && token.is("FOR") => break,
                    _ => {}
                }
            }
        }
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
            Token::Word(s) | Token::Name(s) | Token::Either(s) => {
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
                all.push(match c {
                    '`' => Token::Name(text),
                    '"' => Token::Either(text),
                    _ => Token::Value,
                });
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
        let renamed = |a: &str, b: &str| Effect::Renamed(named("t"), a.into(), b.into());
        let redefined = |c: &str| Effect::Redefined(named("t"), c.into());
        assert_eq!(
            effects("ALTER TABLE t RENAME COLUMN a TO b, ADD c int DEFAULT 'PARTITION'"),
            [renamed("a", "b"), come("c")]
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
            [renamed("b", "c"), redefined("a"), redefined("c"), redefined("e")]
        );
        assert_eq!(effects("ALTER TABLE t TRUNCATE PARTITION p0"), remade("t"));
        let both = |other| [Effect::Remade(named(other)), Effect::Remade(named("t"))];
        assert_eq!(
            effects("ALTER TABLE t EXCHANGE PARTITION p0 WITH TABLE `s`.`o` WITHOUT VALIDATION"),
            both("s.o")
        );
        assert_eq!(effects("ALTER TABLE t CONVERT PARTITION p0 TO TABLE o"), both("o"));
        assert_eq!(
            effects("ALTER TABLE t CONVERT TABLE o TO PARTITION p1 VALUES LESS THAN (9)"),
            remade("t")
        );
        assert_eq!(effects("ALTER TABLE t CONVERT TO CHARACTER SET latin1"), remade("t"));
        assert_eq!(effects("ALTER IGNORE TABLE t ADD UNIQUE (a)"), remade("t"));
        assert_eq!(
            effects("ALTER TABLE t CHANGE `A` a int, MODIFY b int"),
            [redefined("a"), redefined("b")]
        );
        assert_eq!(
            effects("ALTER TABLE t RENAME COLUMN a TO b, RENAME COLUMN IF EXISTS `b` TO `a`, DROP c, ADD a2 int"),
            [gone("c"), renamed("a", "b"), renamed("b", "a"), come("a2")]
        );
        let engine = || Effect::Engine(named("t"));
        assert_eq!(effects("ALTER TABLE t ENGINE = InnoDB"), []);
        assert_eq!(effects("ALTER TABLE t ENGINE=MyISAM"), [engine()]);
        assert_eq!(
            effects("ALTER TABLE t ADD engine int, Engine Aria"),
            [come("engine"), engine()]
        );
        assert_eq!(effects("TRUNCATE \"t\""), emptied("t"));
        assert_eq!(effects("-- x\nCOMMIT"), [Effect::Commit]);
        assert_eq!(effects("insert into t values ('x')"), [Effect::Rows]);
        assert_eq!(effects("DROP TABLE `t` /* generated by server */"), []);
        assert_eq!(effects("ROLLBACK TO `s`"), [Effect::Undone]);
        assert_eq!(effects("XA COMMIT X'31'"), [Effect::Commit]);
        assert_eq!(effects(""), []);
    }

    #[test]
    fn a_statement_stands_behind_its_settings() {
        let within = |sql: &str| {
            let settings =
                "SET STATEMENT max_statement_time=10, sql_mode='ANSI, FOR', lock_wait_timeout=(SELECT 1 FOR UPDATE)";
            let told = effects(&format!("{settings} FOR {sql}"));
            assert_eq!(told, effects(sql), "{sql}");
            told
        };
        assert_eq!(within("TRUNCATE t"), [Effect::Emptied(named("t"))]);
        assert_eq!(
            within("CREATE OR REPLACE TABLE t (a int)"),
            [Effect::Remade(named("t"))]
        );
        assert_eq!(within("RENAME TABLE t TO tq, s2 TO t").len(), 2);
        assert_eq!(within("ALTER TABLE t DROP PARTITION a"), [Effect::Remade(named("t"))]);
        assert_eq!(
            within("SET STATEMENT x=1 FOR TRUNCATE t"),
            [Effect::Emptied(named("t"))]
        );
        assert_eq!(effects("SET STATEMENT x = 1"), []);
    }

    #[test]
    fn foreign_keys_that_change_rows_are_seen() {
        let key = |sql: &str| cascading_key(sql);
        let named_key = |name: &str| Some(Some(name.to_owned()));
        let create = |rest: &str| {
            format!(
                "CREATE TABLE `t` (\n `id` int(11) NOT NULL,\n `of` int(11) DEFAULT NULL,\n PRIMARY KEY (`id`),\n \
                 CONSTRAINT `quiet` FOREIGN KEY (`id`) REFERENCES `p` (`id`),\n \
                 CONSTRAINT `loud` FOREIGN KEY (`of`, `id`) REFERENCES `p` (`a`, `b`){rest}\n) ENGINE=InnoDB COMMENT='ON DELETE CASCADE'"
            )
        };
        assert_eq!(key(&create("")), None);
        assert_eq!(key(&create(" ON DELETE NO ACTION ON UPDATE NO ACTION")), None);
        assert_eq!(key(&create(" ON DELETE CASCADE")), named_key("loud"));
        assert_eq!(
            key(&create(" ON DELETE NO ACTION ON UPDATE SET NULL")),
            named_key("loud")
        );
        let cascades = |sql: &str| match effects(sql).pop() {
            Some(Effect::Cascades(table, key)) if table == named("t") => Some(key),
            _ => None,
        };
        assert_eq!(
            cascades("ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES p (a) ON UPDATE CASCADE"),
            Some(None)
        );
        assert_eq!(
            cascades(
                "ALTER TABLE t ADD x int, ADD CONSTRAINT k FOREIGN KEY (a, b) REFERENCES p (a, b) ON DELETE SET NULL"
            ),
            named_key("k")
        );
        assert_eq!(
            cascades("CREATE TABLE t (id int PRIMARY KEY, of int REFERENCES p (id) ON DELETE CASCADE)"),
            Some(None)
        );
        assert_eq!(
            cascades("ALTER TABLE t ALTER a SET DEFAULT NULL, DROP FOREIGN KEY k"),
            None
        );
    }
}
