//! A tree of nodes → the structs that describe a file, by serde.
//!
//! The structs are the only description of the files (the JSON Schema comes from the same ones), so the decoder follows
//! a few conventions instead of serde's attributes that would buffer values and lose their places:
//! - an enum given by a mapping is tagged by the mapping's `type` key;
//! - an enum named [`BY_KIND`] chooses its variant by the kind of node: `text`, `list`, `map`;
//! - [`At`] gets the value's place, [`Later`] leaves a notice.
//!
//! Serde ends at the first mistake. To find them all, the place of a mistake is set aside and the file decoded again as
//! if nothing stood there, with blanks for required keys that are missing or were set aside.

mod blank;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::{Deserialize, Deserializer};

use self::blank::Blank;
use super::at::{AT, At, Origin};
use super::error::{ConfigError, suggestion};
use super::text::{Kind, Node, Pos, Text, is_bool, printable_key};

/// The serde name of enums that choose their variant by the kind of node.
pub(super) const BY_KIND: &str = "$by_kind";
const LATER: &str = "$later";
/// The enum of the one word that may stand in place of a list.
pub(super) const ALL_COLUMNS: &str = "AllColumns";
const TAG: &str = "type";

/// A key that is understood and not yet acted upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The key with its path, such as `strategies[0].use_sub_partition`.
    pub key: String,
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// What the user should know, as a sentence.
    pub message: String,
}

impl Notice {
    /// A notice about a value; none for a value that stands in no file.
    pub(super) fn at<T>(value: &At<T>, key: &str, message: String) -> Option<Self> {
        let origin = value.origin()?;
        Some(Self {
            key: key.to_owned(),
            file: origin.file.to_string(),
            line: origin.line,
            column: origin.column,
            message,
        })
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

/// A key that is read and checked, and for which a [`Notice`] is left.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Later<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Later<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Inner<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Inner<T> {
            type Value = Later<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Later<T>, D::Error> {
                T::deserialize(deserializer).map(Later)
            }
        }
        deserializer.deserialize_newtype_struct(LATER, Inner(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Later<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// Any value whatever, not looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Anything;

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        de::IgnoredAny::deserialize(deserializer).map(|_| Anything)
    }
}

impl JsonSchema for Anything {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Anything".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!(true)
    }
}

/// Decodes a tree. `None` when it cannot be or a variable is missing in it; every mistake is in `errors`.
pub(super) fn decode<T: DeserializeOwned>(
    node: &Node,
    text: &Text,
    errors: &mut Vec<ConfigError>,
    notices: &mut Vec<Notice>,
) -> Option<T> {
    let sheet = Sheet {
        text,
        errors: RefCell::default(),
        aside: RefCell::default(),
        blanks: RefCell::default(),
        steps: Cell::new(0),
        notices: RefCell::default(),
    };
    loop {
        let before = sheet.steps.get();
        sheet.notices.borrow_mut().clear();
        let result = T::deserialize(De {
            node,
            path: String::new(),
            skip: None,
            sheet: &sheet,
        });
        if result.is_ok() || sheet.steps.get() == before || sheet.is_aside(node) {
            let mut found = sheet.errors.into_inner();
            let broken = node.has_broken();
            if let (Err(stop), true) = (&result, found.is_empty() && !broken) {
                found.push(text.error(node.pos, stop.to_string()));
            }
            let value = result.ok().filter(|_| found.is_empty() && !broken);
            errors.append(&mut found);
            notices.extend(sheet.notices.into_inner());
            return value;
        }
    }
}

/// What one decoding shares.
struct Sheet<'a> {
    text: &'a Text,
    errors: RefCell<Vec<ConfigError>>,
    /// Nodes in which a mistake was found; they are passed over.
    aside: RefCell<HashSet<usize>>,
    /// Keys for which a blank is supplied, by mapping.
    blanks: RefCell<HashMap<usize, Vec<&'static str>>>,
    /// What was set aside or supplied so far, counted: another attempt needs a change.
    steps: Cell<usize>,
    notices: RefCell<Vec<Notice>>,
}

fn address(node: &Node) -> usize {
    std::ptr::from_ref(node).addr()
}

impl Sheet<'_> {
    fn record(&self, pos: Pos, message: String, help: Option<String>) {
        let mut error = self.text.error(pos, message);
        error.help = help;
        let mut errors = self.errors.borrow_mut();
        if !errors.contains(&error) {
            errors.push(error);
        }
    }

    fn is_aside(&self, node: &Node) -> bool {
        self.aside.borrow().contains(&address(node))
    }
}

/// Why decoding stopped.
#[derive(Debug)]
enum Stop {
    /// It stands in the sheet already.
    Recorded,
    /// A required key is not there.
    Missing(&'static str),
    /// A rule of a value was broken; a sentence that goes on after the value's path ("must be …").
    Says(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Recorded => f.write_str("recorded"),
            Stop::Missing(key) => write!(f, "missing key \"{key}\""),
            Stop::Says(sentence) => f.write_str(sentence),
        }
    }
}

impl std::error::Error for Stop {}

impl de::Error for Stop {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Stop::Says(message.to_string())
    }
    fn missing_field(field: &'static str) -> Self {
        Stop::Missing(field)
    }
    // Serde's own words would show the value.
    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Stop::Says(format!("must be {expected}"))
    }
    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Stop::Says(format!("must be {expected}"))
    }
}

/// The deserializer of one node.
#[derive(Clone)]
struct De<'a> {
    node: &'a Node,
    path: String,
    /// A key that was taken already: the tag of the enum whose content this is.
    skip: Option<&'static str>,
    sheet: &'a Sheet<'a>,
}

impl<'a> De<'a> {
    fn what(&self) -> &str {
        if self.path.is_empty() { "the file" } else { &self.path }
    }

    /// Records a mistake of this node.
    fn refuse(&self, message: impl Into<String>, help: Option<String>) -> Stop {
        // The missing variable was told already; what its lack leads to is no second mistake.
        if !self.node.broken {
            self.sheet.record(self.node.pos, message.into(), help);
        }
        self.set_aside()
    }

    fn set_aside(&self) -> Stop {
        if self.sheet.aside.borrow_mut().insert(address(self.node)) {
            self.sheet.steps.set(self.sheet.steps.get() + 1);
        }
        Stop::Recorded
    }

    fn must_be(&self, what: &str) -> Stop {
        self.refuse(
            format!("{} must be {what}, found {}", self.what(), self.node.describe()),
            None,
        )
    }

    /// Gives an error that does not have a place yet this one.
    fn settle<T>(&self, result: Result<T, Stop>) -> Result<T, Stop> {
        result.map_err(|stop| match stop {
            Stop::Recorded => Stop::Recorded,
            Stop::Says(sentence) => {
                // Some sentences bring advice along.
                let (sentence, help) = match sentence.split_once("; ") {
                    Some((sentence, help)) => (sentence.to_owned(), Some(help.to_owned())),
                    None => (sentence, None),
                };
                self.refuse(format!("{} {sentence}", self.what()), help)
            }
            Stop::Missing(key) => {
                if !self.node.get(key).is_some_and(|node| self.sheet.is_aside(node)) {
                    let place = if self.path.is_empty() {
                        String::new()
                    } else {
                        format!(" in {}", self.path)
                    };
                    self.sheet
                        .record(self.node.pos, format!("missing key \"{key}\"{place}"), None);
                }
                let mut blanks = self.sheet.blanks.borrow_mut();
                let supplied = blanks.entry(address(self.node)).or_default();
                if supplied.contains(&key) {
                    return self.set_aside();
                }
                supplied.push(key);
                self.sheet.steps.set(self.sheet.steps.get() + 1);
                Stop::Recorded
            }
        })
    }

    fn scalar(&self) -> Option<(&'a str, bool)> {
        match &self.node.kind {
            // What a variable holds has no type of its own: it is what is asked for.
            Kind::Scalar { text, plain } => Some((text, *plain || !self.node.inserted.is_empty())),
            _ => None,
        }
    }

    fn integer(&self, min: i128, max: i128) -> Result<i128, Stop> {
        let found = self
            .scalar()
            .map(|(text, typed)| (text.trim().replace('_', "").parse::<i128>(), typed));
        match found {
            Some((Ok(n), true)) if (min..=max).contains(&n) => Ok(n),
            Some((Ok(n), true)) if n < min => Err(self.refuse(format!("{} must be at least {min}", self.what()), None)),
            Some((Ok(_), true)) => Err(self.refuse(format!("{} must be at most {max}", self.what()), None)),
            Some((Ok(_), false)) => Err(self.refuse(
                format!("{} must be a whole number, found quoted text", self.what()),
                Some("remove the quotes".into()),
            )),
            _ => Err(self.must_be("a whole number")),
        }
    }

    fn origin(&self) -> Origin {
        Origin {
            file: self.sheet.text.file.clone(),
            line: self.node.pos.line,
            column: self.node.pos.column,
            inserted: self.node.inserted.clone(),
            written: self.node.written.clone(),
            secret: self.node.secret,
        }
    }

    /// Decodes; a type's own complaint, made after it took the value, is placed here.
    fn hand_to<T: DeserializeSeed<'a>>(self, seed: T) -> Result<T::Value, Stop> {
        let place = self.clone();
        let result = seed.deserialize(self);
        place.settle(result)
    }

    fn below(&self, node: &'a Node, path: String) -> De<'a> {
        De {
            node,
            path,
            skip: None,
            sheet: self.sheet,
        }
    }

    fn map<V: Visitor<'a>>(self, fields: Option<&'static [&'static str]>, visitor: V) -> Result<V::Value, Stop> {
        let Kind::Map(entries) = &self.node.kind else {
            let help = fields.map(|fields| format!("its keys are {}", fields.join(", ")));
            let message = format!("{} must be a mapping, found {}", self.what(), self.node.describe());
            return Err(self.refuse(message, help));
        };
        let blanks = self
            .sheet
            .blanks
            .borrow()
            .get(&address(self.node))
            .cloned()
            .unwrap_or_default();
        let origin = self.origin();
        let mut walk = Entries {
            entries: entries.iter(),
            blanks: blanks.into_iter(),
            value: None,
            de: &self,
            fields,
            origin,
        };
        let result = visitor.visit_map(&mut walk);
        self.settle(result)
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty),*) => {
        $(fn $method<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
            let n = self.integer(i128::from(<$type>::MIN), i128::from(<$type>::MAX))?;
            let result = visitor.$visit(n as $type);
            self.settle(result)
        })*
    };
}

impl<'a> Deserializer<'a> for De<'a> {
    type Error = Stop;

    integers! {
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64, deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64
    }

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.kind {
            Kind::Null => {
                let result = visitor.visit_unit();
                self.settle(result)
            }
            Kind::List(_) => self.deserialize_seq(visitor),
            Kind::Map(_) => self.deserialize_map(visitor),
            Kind::Scalar { text, plain } => {
                let result = if !plain || !self.node.inserted.is_empty() {
                    visitor.visit_str(text)
                } else if let Some(truth) = is_bool(text) {
                    visitor.visit_bool(truth)
                } else if let Ok(n) = text.parse::<i64>() {
                    if n < 0 {
                        visitor.visit_i64(n)
                    } else {
                        visitor.visit_u64(n as u64)
                    }
                } else if let Some(n) = text.parse::<f64>().ok().filter(|n| n.is_finite()) {
                    visitor.visit_f64(n)
                } else {
                    visitor.visit_str(text)
                };
                self.settle(result)
            }
        }
    }

    fn deserialize_bool<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        match self.scalar().map(|(text, typed)| (is_bool(text.trim()), typed)) {
            Some((Some(truth), true)) => {
                let result = visitor.visit_bool(truth);
                self.settle(result)
            }
            Some((_, _)) => {
                let found = self.node.describe();
                Err(self.refuse(
                    format!("{} must be true or false, found {found}", self.what()),
                    Some("write true or false, without quotes".into()),
                ))
            }
            None => Err(self.must_be("true or false")),
        }
    }

    fn deserialize_f64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        match self.scalar().map(|(text, typed)| (text.trim().parse::<f64>(), typed)) {
            Some((Ok(n), true)) if n.is_finite() => {
                let result = visitor.visit_f64(n);
                self.settle(result)
            }
            _ => Err(self.must_be("a number")),
        }
    }

    fn deserialize_f32<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_char<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        let Some((text, _)) = self.scalar() else {
            return Err(self.must_be("one character"));
        };
        let mut chars = text.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) => {
                let result = visitor.visit_char(c);
                self.settle(result)
            }
            _ => Err(self.refuse(format!("{} must be one character", self.what()), None)),
        }
    }

    fn deserialize_str<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.kind {
            Kind::Scalar { text, .. } => {
                let result = visitor.visit_str(text);
                self.settle(result)
            }
            _ => Err(self.must_be("text")),
        }
    }

    fn deserialize_string<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        match self.node.kind {
            Kind::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_unit()
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'a>>(self, _: &'static str, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(self, name: &'static str, visitor: V) -> Result<V::Value, Stop> {
        match name {
            AT => visitor.visit_seq(PlaceAndValue {
                step: Cell::new(0),
                de: Some(self),
            }),
            LATER => {
                self.sheet.notices.borrow_mut().push(Notice {
                    key: self.path.clone(),
                    file: self.sheet.text.file.to_string(),
                    line: self.node.pos.line,
                    column: self.node.pos.column,
                    message: super::generations::later(&self.path),
                });
                visitor.visit_newtype_struct(self)
            }
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_seq<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        let Kind::List(items) = &self.node.kind else {
            return Err(self.must_be("a list"));
        };
        let result = visitor.visit_seq(Items {
            items: items.iter().enumerate(),
            de: &self,
        });
        self.settle(result)
    }

    fn deserialize_tuple<V: Visitor<'a>>(self, _: usize, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'a>>(self, _: &'static str, _: usize, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.map(None, visitor)
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.map(Some(fields), visitor)
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        if name == BY_KIND {
            let kind = match self.node.kind {
                Kind::Null => "null",
                Kind::Scalar { .. } => "text",
                Kind::List(_) => "list",
                Kind::Map(_) => "map",
            };
            let Some(variant) = variants.iter().find(|v| **v == kind) else {
                let words: Vec<&str> = variants
                    .iter()
                    .filter_map(|v| match *v {
                        "text" => Some("text"),
                        "list" => Some("a list"),
                        "map" => Some("a mapping"),
                        _ => None,
                    })
                    .collect();
                return Err(self.must_be(&words.join(" or ")));
            };
            return visitor.visit_enum(Choice { variant, de: self });
        }
        // The word that chooses stands in the node itself, or below `type`.
        let tagged = matches!(self.node.kind, Kind::Map(_));
        let path = if tagged {
            join(&self.path, TAG)
        } else {
            self.path.clone()
        };
        let node = match self.node.get(TAG) {
            Some(node) => node,
            None if tagged => {
                let result = Err(Stop::Missing(TAG));
                return self.settle(result);
            }
            None => self.node,
        };
        let word = self.below(node, path);
        let Kind::Scalar { text, .. } = &node.kind else {
            return Err(word.must_be("text"));
        };
        let Some(variant) = variants.iter().find(|v| *v == text) else {
            let help = super::error::nearest(text, variants.iter().copied());
            let message = match variants {
                [only] if name == ALL_COLUMNS => format!("{} must be a list, or the word {only}", word.what()),
                _ => format!("{} must be one of {}", word.what(), variants.join(", ")),
            };
            let stop = word.refuse(message, help.map(|word| format!("did you mean \"{word}\"?")));
            if tagged {
                self.set_aside();
            }
            return Err(stop);
        };
        visitor.visit_enum(Choice {
            variant,
            de: De {
                skip: tagged.then_some(TAG),
                ..self
            },
        })
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// The entries of a mapping.
struct Entries<'a, 'd> {
    entries: std::slice::Iter<'a, super::text::Entry>,
    blanks: std::vec::IntoIter<&'static str>,
    value: Option<(&'a str, &'a Node)>,
    de: &'d De<'a>,
    fields: Option<&'static [&'static str]>,
    origin: Origin,
}

impl<'a> MapAccess<'a> for &mut Entries<'a, '_> {
    type Error = Stop;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, seed: K) -> Result<Option<K::Value>, Stop> {
        for entry in self.entries.by_ref() {
            if self.de.skip == Some(entry.key.as_str()) || self.de.sheet.is_aside(&entry.value) {
                continue;
            }
            if let Some(fields) = self.fields
                && !fields.contains(&entry.key.as_str())
            {
                let place = match self.de.path.as_str() {
                    "" => "at the top of the file".to_owned(),
                    path => format!("in {path}"),
                };
                let key = printable_key(&entry.key);
                let help = suggestion(key.trim_end_matches('…'), "keys here", fields);
                let message = format!("unknown key \"{key}\" {place}");
                self.de.sheet.record(entry.key_pos, message, help);
                continue;
            }
            self.value = Some((&entry.key, &entry.value));
            let key: StrDeserializer<'_, Stop> = entry.key.as_str().into_deserializer();
            return seed.deserialize(key).map(Some);
        }
        let Some(key) = self.blanks.next() else { return Ok(None) };
        let key: StrDeserializer<'_, Stop> = key.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, Stop> {
        match self.value.take() {
            Some((key, node)) => self.de.below(node, join(&self.de.path, key)).hand_to(seed),
            // Where not even a blank will do, the whole mapping is passed over.
            None => seed.deserialize(Blank(&self.origin)).map_err(|_| self.de.set_aside()),
        }
    }
}

/// The items of a list.
struct Items<'a, 'd> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    de: &'d De<'a>,
}

impl<'a> SeqAccess<'a> for Items<'a, '_> {
    type Error = Stop;

    fn next_element_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>, Stop> {
        for (i, node) in self.items.by_ref() {
            if self.de.sheet.is_aside(node) {
                continue;
            }
            let path = format!("{}[{i}]", self.de.path);
            return self.de.below(node, path).hand_to(seed).map(Some);
        }
        Ok(None)
    }
}

/// What [`At`] is read from: first the place, then the value.
struct PlaceAndValue<'a> {
    step: Cell<u8>,
    de: Option<De<'a>>,
}

impl<'a> SeqAccess<'a> for PlaceAndValue<'a> {
    type Error = Stop;

    fn next_element_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>, Stop> {
        let step = self.step.replace(self.step.get() + 1);
        match (step, &self.de) {
            (0, Some(de)) => origin_of(&de.origin(), seed).map(Some),
            (1, _) => self.de.take().map(|de| seed.deserialize(de)).transpose(),
            _ => Ok(None),
        }
    }
}

/// Hands a place over to serde.
fn origin_of<'de, T: DeserializeSeed<'de>>(origin: &Origin, seed: T) -> Result<T::Value, Stop> {
    let value = serde_json::to_value(origin).map_err(de::Error::custom)?;
    seed.deserialize(value).map_err(de::Error::custom)
}

/// A chosen variant and the node of its content.
struct Choice<'a> {
    variant: &'static str,
    de: De<'a>,
}

impl<'a> EnumAccess<'a> for Choice<'a> {
    type Error = Stop;
    type Variant = De<'a>;

    fn variant_seed<V: DeserializeSeed<'a>>(self, seed: V) -> Result<(V::Value, De<'a>), Stop> {
        let name: StrDeserializer<'_, Stop> = self.variant.into_deserializer();
        seed.deserialize(name).map(|value| (value, self.de))
    }
}

impl<'a> VariantAccess<'a> for De<'a> {
    type Error = Stop;

    fn unit_variant(self) -> Result<(), Stop> {
        match &self.node.kind {
            Kind::Scalar { .. } | Kind::Null => Ok(()),
            _ => self.map(Some(&[]), de::IgnoredAny).map(|_| ()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'a>>(self, seed: T) -> Result<T::Value, Stop> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'a>>(self, _: usize, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'a>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Stop> {
        self.map(Some(fields), visitor)
    }
}
