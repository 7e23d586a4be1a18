//! A value and where it came from.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use super::error::ConfigError;
use super::secret::MASK;

/// Where a value stands in the files of a user.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The file as the user named it.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// What was put in for `${…}`: `env NAME`, `default of ${NAME}`, `file PATH`.
    pub inserted: Vec<String>,
    /// The text as it stands in the file, where something was put in: `${NAME}`.
    pub written: Option<String>,
    /// The value is not to be shown: it came from a secrets file or stands below a key such as `password`.
    pub secret: bool,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.inserted.is_empty() {
            write!(f, "{}:{}:{}", self.file, self.line, self.column)
        } else {
            write!(
                f,
                "{} ({}:{}:{})",
                self.inserted.join(", "),
                self.file,
                self.line,
                self.column
            )
        }
    }
}

/// A configured value together with its place, so that a later check (against the live catalog, say) can point at it.
/// It behaves like the value; one made by [`At::from`] is a default and has no place.
#[derive(Clone)]
pub struct At<T> {
    value: T,
    origin: Option<Arc<Origin>>,
}

impl<T> At<T> {
    /// The value with a known place.
    pub(super) fn placed(value: T, origin: Option<Arc<Origin>>) -> Self {
        Self { value, origin }
    }

    /// The value alone.
    pub fn into_inner(self) -> T {
        self.value
    }

    /// The value, to be changed in its place.
    pub(super) fn value_mut(&mut self) -> &mut T {
        &mut self.value
    }

    /// Where it stands; `None` for a default or a value made by the program.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_deref()
    }

    /// Another value that stands at the same place.
    pub fn with<U>(&self, value: U) -> At<U> {
        At {
            value,
            origin: self.origin.clone(),
        }
    }

    /// An error that points at this value.
    pub fn error(&self, message: impl Into<String>) -> ConfigError {
        match &self.origin {
            Some(origin) => ConfigError {
                file: origin.file.to_string(),
                line: origin.line,
                column: origin.column,
                message: message.into(),
                help: None,
            },
            None => ConfigError::new(message),
        }
    }

    /// Whether the value is not to be shown.
    pub fn is_secret(&self) -> bool {
        self.origin.as_ref().is_some_and(|origin| origin.secret)
    }
}

impl<T: fmt::Display> At<T> {
    /// The value for a message: `***` for a secret. (There is no `Display`, which `to_string` would take for the value.)
    pub fn shown(&self) -> String {
        if self.is_secret() {
            MASK.to_owned()
        } else {
            self.value.to_string()
        }
    }
}

impl<T> From<T> for At<T> {
    fn from(value: T) -> Self {
        Self { value, origin: None }
    }
}

impl From<&str> for At<String> {
    fn from(value: &str) -> Self {
        value.to_owned().into()
    }
}

impl<T> Deref for At<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// Equality is of the values: moving a line does not change a configuration.
impl<T: PartialEq> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Default> Default for At<T> {
    fn default() -> Self {
        T::default().into()
    }
}

impl<T: fmt::Debug> fmt::Debug for At<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_secret() {
            f.write_str(MASK)
        } else {
            self.value.fmt(f)
        }
    }
}

/// Names of the fields under which `show` finds value and origin.
pub(super) const VALUE: &str = "$value";
pub(super) const ORIGIN: &str = "$origin";
/// The name of the field that holds the text with its variables.
pub(super) const WRITTEN: &str = "$written";

impl<T: Serialize> Serialize for At<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut pair = serializer.serialize_struct("At", 3)?;
        if self.is_secret() {
            pair.serialize_field(VALUE, MASK)?;
        } else {
            pair.serialize_field(VALUE, &self.value)?;
        }
        pair.serialize_field(ORIGIN, &self.origin().map(ToString::to_string))?;
        pair.serialize_field(WRITTEN, &self.origin().and_then(|o| o.written.as_deref()))?;
        pair.end()
    }
}

/// The name by which the decoder recognises that a place is wanted.
pub(super) const AT: &str = "$at";

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Pair<T> {
            type Value = At<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value read by the configuration's own decoder")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<At<T>, A::Error> {
                let missing = || serde::de::Error::custom("a value came without its place");
                let origin: Origin = pair.next_element()?.ok_or_else(missing)?;
                let value = pair.next_element()?.ok_or_else(missing)?;
                Ok(At::placed(value, Some(Arc::new(origin))))
            }
        }
        deserializer.deserialize_newtype_struct(AT, Pair(std::marker::PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}
