//! Keys at both ends: in which order each has the values of a column, and which of them it calls equal.
//!
//! A range of a key means the same rows at both ends where they order it alike. And keys that are two at the source must be
//! two at the destination: else the row that is written later takes the place of the other.

use crate::error::{Error, Result, code};
use crate::schema::{Column, ColumnType, TableId};
use crate::source::Source;

/// The order in which an end has the values of a column.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Order {
    /// That of values of a kind: of all that are stored as what they are.
    Values(&'static str),
    /// That of the bytes of texts in UTF-8.
    Bytes,
    /// One of the engine's own. Ends that give it one name have the same.
    Own(String),
    /// Nobody knows.
    #[default]
    Unknown,
}

/// The letters that a collation calls equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letters {
    /// Its rule. Ends that give it one name have the same.
    pub rule: String,
    /// Whether A to Z are a to z by it, whatever else is equal.
    pub ascii: bool,
}

impl Letters {
    /// The rule by which A to Z are a to z, and nothing else is equal.
    pub const ASCII: &'static str = "A to Z are a to z";
    /// The rule by which texts of numbers are equal where the numbers are.
    pub const NUMBERS: &'static str = "1.0 is 1.00";

    fn covers(&self, other: &Letters) -> bool {
        self.rule == other.rule || self.ascii && other.rule == Self::ASCII
    }
}

/// Which texts an end calls equal although they are not the same.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Folding {
    /// The collation, or the type, as people know it.
    pub name: String,
    /// Whether blanks at the end do not count.
    pub blanks: bool,
    /// The letters that are equal; `None`: each is equal to itself alone.
    pub letters: Option<Letters>,
}

impl Folding {
    /// Whether every text is equal to itself alone.
    pub fn is_none(&self) -> bool {
        !self.blanks && self.letters.is_none()
    }

    /// Whether texts that `other` calls equal are equal here too.
    pub fn covers(&self, other: &Folding) -> bool {
        let letters = match (&self.letters, &other.letters) {
            (_, None) => true,
            (Some(own), Some(other)) => own.covers(other),
            (None, Some(_)) => false,
        };
        letters && (self.blanks || !other.blanks)
    }

    fn told(&self) -> String {
        match self.name.as_str() {
            _ if self.is_none() => "byte by byte".into(),
            "" => "byte by byte but for blanks at the end".into(),
            name => format!("by {name}"),
        }
    }
}

/// How an end compares the values of a column.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collation {
    /// In which order it has them.
    pub order: Order,
    /// Which of them it calls equal.
    pub folding: Folding,
}

impl Collation {
    /// Of a type that has the same order in every engine that stores its values as what they are.
    pub fn of(ty: &ColumnType) -> Self {
        Collation {
            order: ty.shared_order().map_or(Order::Unknown, Order::Values),
            folding: Folding::default(),
        }
    }

    /// Whether numbers are one however they are written.
    fn is_by_number(&self) -> bool {
        let is_rule = |letters: &Letters| letters.rule == Letters::NUMBERS;
        matches!(self.order, Order::Values(_)) || self.folding.letters.as_ref().is_some_and(is_rule)
    }

    /// Of texts that go by their bytes, and are equal to themselves alone.
    pub fn bytes() -> Self {
        Collation {
            order: Order::Bytes,
            folding: Folding::default(),
        }
    }
}

/// A column of a key at both ends.
#[derive(Debug, Clone)]
pub struct KeyColumn {
    /// As it is read, under its name at the source; `None` where something on the way makes it.
    pub read: Option<Column>,
    /// As it is stored.
    pub stored: Column,
    source: Collation,
    destination: Collation,
}

impl KeyColumn {
    /// Asks both ends how they compare the columns of a key: the table that is read, and the one that is written.
    pub async fn ask(
        (source, from): (&dyn Source, &TableId),
        (destination, to): (&dyn Source, &TableId),
        columns: Vec<(Option<Column>, Column)>,
    ) -> Result<Vec<KeyColumn>> {
        let read: Vec<Column> = columns.iter().filter_map(|(read, _)| read.clone()).collect();
        let here = source.collations(from, &read).await?;
        KeyColumn::beside(here, (destination, to), columns).await
    }

    /// The same where it is known how the source compares those that are read.
    pub async fn beside(
        here: Vec<Collation>,
        (destination, to): (&dyn Source, &TableId),
        columns: Vec<(Option<Column>, Column)>,
    ) -> Result<Vec<KeyColumn>> {
        let stored: Vec<Column> = columns.iter().map(|(_, stored)| stored.clone()).collect();
        let there = destination.collations(to, &stored).await?;
        let mut here = here.into_iter();
        let both = |((read, stored), destination): ((Option<Column>, Column), Collation)| KeyColumn {
            source: match &read {
                Some(_) => here.next().unwrap_or_default(),
                None => Collation::default(),
            },
            destination,
            read,
            stored,
        };
        Ok(columns.into_iter().zip(there).map(both).collect())
    }

    /// Whether both ends have the same rows between two values of it.
    pub fn is_ordered_alike(&self) -> bool {
        self.source.order != Order::Unknown && self.source.order == self.destination.order
    }

    /// Whether a log cuts ranges of it by the bytes of its texts, at both ends: it does unless both have its values as
    /// what they are, or one order of their own. A destination that keeps such values in a form of its own refuses the
    /// ranges that it has no order for.
    pub fn is_cut_by_bytes(&self) -> bool {
        let as_values = |order: &Order| matches!(order, Order::Values(_) | Order::Unknown);
        let values = self.read.as_ref().is_some_and(|c| is_value(&c.ty))
            && is_value(&self.stored.ty)
            && as_values(&self.source.order)
            && as_values(&self.destination.order);
        // An order in which several texts have one place cuts between none of them.
        let an_order = self.is_ordered_alike() && self.destination.order != Order::Bytes;
        let ordered = an_order && self.destination.folding.is_none();
        !values && !ordered
    }

    /// Whether both ends have it as a text with blanks at its end which are no part of it, in one order: no two values have
    /// one place, though several texts have.
    pub fn is_padded_alike(&self) -> bool {
        let is_padded = |c: &Column| matches!(c.ty, ColumnType::Char { .. });
        self.read.as_ref().is_some_and(is_padded)
            && is_padded(&self.stored)
            && self.is_ordered_alike()
            && self.destination.folding.letters.is_none()
    }

    /// The same of a column that makes groups: those of texts are told apart byte by byte, whatever the source calls equal.
    #[must_use]
    pub fn of_groups(mut self) -> Self {
        if !self.read.as_ref().is_some_and(|c| is_value(&c.ty)) {
            self.source.folding = Folding::default();
        }
        self
    }

    /// Refuses a column whose values the destination may call equal where the source does not.
    fn check_apart(&self) -> Result<()> {
        let (mut ours, theirs) = (self.source.clone(), &self.destination);
        let written = self.read.as_ref().map(|c| &c.ty);
        let ty = written.unwrap_or(&self.stored.ty);
        // Blanks at the end are no part of such a value, wherever it is and whoever made it.
        ours.folding.blanks |= matches!(ty, ColumnType::Char { .. });
        // A number of free form that is kept as its text: 1.0 is another key than 1.00, and the same number.
        let forms = written == Some(&ColumnType::Numeric) && !ours.is_by_number() && theirs.is_by_number();
        // Other values than texts have one form each, and no two of these are equal by any collation.
        if !forms && (is_value(ty) || ours.folding.covers(&theirs.folding)) {
            return Ok(());
        }
        let (how, instead) = match forms {
            true => ("as a number, and the source as a text".to_string(), "as its text"),
            false => {
                let source = match &self.read {
                    Some(_) => ours.folding.told(),
                    None => "byte by byte, as it is made on the way".into(),
                };
                let how = format!("{}, and the source {source}", theirs.folding.told());
                (how, "by a binary collation that counts blanks at the end")
            }
        };
        Err(Error::new(
            code::SCHEMA_MISMATCH,
            format!(
                "key column {} is compared {how}: keys that are two at the source may be one at the destination, \
                 where the row written later would take the place of the other",
                self.stored.name
            ),
        )
        .hint(format!(
            "have the destination's column compare {instead}, or, if no two keys are equal there, say `distinct_keys: true` \
             in the pipeline's `destination`"
        )))
    }
}

/// Whether values of a type are ordered, and equal, as what they are, wherever they are stored so.
fn is_value(ty: &ColumnType) -> bool {
    use ColumnType::{Bool, Float32, Float64};
    ty.shared_order().is_some() || matches!(ty, Bool | Float32 | Float64)
}

/// Refuses a table in which two keys of the source may be one.
pub fn check_apart(key: &[KeyColumn]) -> Result<()> {
    key.iter().try_for_each(KeyColumn::check_apart)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(name: &str, blanks: bool, ascii: bool) -> Collation {
        Collation {
            order: Order::Own(name.into()),
            folding: Folding {
                name: name.into(),
                blanks,
                letters: (name != "bin").then(|| Letters {
                    rule: name.into(),
                    ascii,
                }),
            },
        }
    }

    fn key(ty: ColumnType, source: Collation, destination: Collation) -> KeyColumn {
        KeyColumn {
            read: Some(Column::new("k", ty.clone())),
            stored: Column::new("k", ty),
            source,
            destination,
        }
    }

    const TEXT: ColumnType = ColumnType::Text { max: None };

    #[test]
    fn keys_that_may_become_one_are_refused() {
        let nocase = || Collation {
            folding: Folding {
                letters: Some(Letters {
                    rule: Letters::ASCII.into(),
                    ascii: true,
                }),
                ..by("NOCASE", false, true).folding
            },
            ..Collation::default()
        };
        let (bytes, blanks) = (Collation::bytes, || by("bin", true, false));
        let (ci, blind) = (|| by("general_ci", true, true), || by("blind", false, false));
        for (source, destination, apart) in [
            (bytes(), bytes(), true),
            (ci(), bytes(), true),
            (bytes(), ci(), false),
            (bytes(), blanks(), false),
            (bytes(), nocase(), false),
            (bytes(), blind(), false),
            (ci(), ci(), true),
            (blind(), blind(), true),
            (blind(), ci(), false),
            (blanks(), ci(), false),
            (ci(), blanks(), true),
            (ci(), nocase(), true),
            (blind(), nocase(), false),
            (nocase(), ci(), false),
        ] {
            let key = key(TEXT, source, destination);
            assert_eq!(key.check_apart().is_ok(), apart, "{key:?}");
            // Made on the way, it is what it is.
            let made = KeyColumn {
                read: None,
                source: Collation::default(),
                ..key
            };
            assert_eq!(
                made.check_apart().is_ok(),
                made.destination.folding.is_none(),
                "{made:?}"
            );
        }
    }

    #[test]
    fn blanks_are_no_part_of_a_char() {
        let padded = || ColumnType::Char { length: 3 };
        let (blanks, ci) = (|| by("bin", true, false), || by("general_ci", true, true));
        for (ty, source, destination, grouped, apart) in [
            (padded(), blanks(), blanks(), true, true),
            (padded(), Collation::bytes(), blanks(), false, true),
            (padded(), ci(), ci(), false, true),
            (padded(), ci(), ci(), true, false),
            (TEXT, blanks(), blanks(), false, true),
            (TEXT, blanks(), blanks(), true, false),
        ] {
            let key = key(ty, source, destination);
            let key = if grouped { key.of_groups() } else { key };
            assert_eq!(key.check_apart().is_ok(), apart, "{key:?}");
        }
        let joined = KeyColumn {
            read: None,
            ..key(padded(), Collation::default(), blanks())
        };
        assert!(joined.check_apart().is_ok());
    }

    #[test]
    fn keys_of_values_are_as_many_as_they_were() {
        use ColumnType::{Int64, Numeric, Uuid};
        let ci = || by("general_ci", true, true);
        for ty in [Int64, Uuid, ColumnType::TimestampTz, ColumnType::Bool] {
            assert!(key(ty.clone(), Collation::of(&ty), ci()).check_apart().is_ok(), "{ty}");
        }
        // 1.0 and 1.00 are one number and two texts.
        let (text, number) = (Collation::bytes, || Collation::of(&Numeric));
        assert!(key(Numeric, number(), number()).check_apart().is_ok());
        assert!(key(Numeric, number(), text()).check_apart().is_ok());
        assert!(key(Numeric, text(), text()).check_apart().is_ok());
        // So are they in a column of SQLite that turns texts into numbers, though nobody names its order.
        let turned = || Collation {
            folding: Folding {
                letters: Some(Letters {
                    rule: Letters::NUMBERS.into(),
                    ascii: false,
                }),
                ..by("bin", false, false).folding
            },
            ..Collation::default()
        };
        assert!(key(Numeric, turned(), number()).check_apart().is_ok());
        assert!(key(Numeric, turned(), number()).of_groups().check_apart().is_ok());
        assert!(key(Numeric, number(), turned()).check_apart().is_ok());
        assert!(key(Numeric, text(), turned()).check_apart().is_err());
        let refused = key(Numeric, text(), number()).check_apart().unwrap_err();
        assert_eq!(refused.code(), code::SCHEMA_MISMATCH);
    }

    #[test]
    fn ranges_go_by_bytes_where_the_ends_have_another_order() {
        use ColumnType::{Bool, Date, Int64, Native, Uuid};
        let own = |name: &str| Collation {
            order: Order::Own(name.into()),
            ..Collation::default()
        };
        let padded = || by("bin", true, false);
        let unknown = Collation::default;
        for (ty, source, destination, by_bytes) in [
            (Int64, Collation::of(&Int64), Collation::of(&Int64), false),
            // Kept as a text.
            (Int64, Collation::of(&Int64), Collation::bytes(), true),
            (Int64, Collation::of(&Int64), own("general_ci"), true),
            // Kept in a form of the destination's own, which has its order or refuses ranges.
            (Date, Collation::of(&Date), unknown(), false),
            (Bool, unknown(), unknown(), false),
            // By its last bytes first.
            (Uuid, Collation::of(&Uuid), own("uuid"), true),
            (TEXT, own("en_US"), own("en_US"), false),
            (TEXT, own("en_US"), own("de_DE"), true),
            (TEXT, Collation::bytes(), Collation::bytes(), true),
            (TEXT, padded(), padded(), true),
            (ColumnType::Char { length: 3 }, padded(), padded(), true),
            (TEXT, unknown(), unknown(), true),
            (Native, unknown(), unknown(), true),
        ] {
            let key = key(ty, source, destination);
            assert_eq!(key.is_cut_by_bytes(), by_bytes, "{key:?}");
            assert_eq!(
                key.is_padded_alike(),
                matches!(key.stored.ty, ColumnType::Char { .. }),
                "{key:?}"
            );
        }
    }
}
