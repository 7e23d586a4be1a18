//! Values that must not be seen.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, Serializer};

/// What is printed in place of a secret.
pub(super) const MASK: &str = "***";

/// A password or token. It has no `Display`; `Debug` and serialisation give `***`; only [`Secret::reveal`] gives the text.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the driver that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

/// A URL that may carry a password in its user part (`redis://:pw@host`): shown without it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// Wraps a URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The URL with its password.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The URL with `***` for everything that may be secret: the user part and the query.
    pub fn masked(&self) -> String {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return MASK.into();
        };
        let (before, query) = match rest.split_once('?') {
            // Whether the password holds the ? or the query the @ cannot be told: nothing is shown.
            Some((_, query)) if query.contains('@') => return format!("{scheme}://{MASK}"),
            Some((before, _)) => (before, "?***"),
            None => (rest, ""),
        };
        // The last @ ends the user part: passwords with an unescaped @ are common.
        match before.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://{MASK}@{host}{query}"),
            None => format!("{scheme}://{before}{query}"),
        }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.masked())
    }
}

impl JsonSchema for SecretUrl {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "SecretUrl".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

/// Whether a key of this name holds a secret.
pub(super) fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    [
        "password",
        "passwd",
        "passphrase",
        "secret",
        "token",
        "api_key",
        "apikey",
        "access_key",
        "private_key",
        "credential",
    ]
    .iter()
    .any(|word| key.contains(word))
}

#[cfg(test)]
mod tests {
    use super::SecretUrl;

    #[test]
    fn no_part_of_a_password_is_shown() {
        for (url, shown) in [
            ("redis://queue:6379/3", "redis://queue:6379/3"),
            ("redis://:hunter2@queue:6379", "redis://***@queue:6379"),
            ("redis://u:hunt@er2@queue:6379", "redis://***@queue:6379"),
            ("redis://:hunt?er2@queue:6379", "redis://***"),
            ("redis://u:hunt@er?2@queue:6379/?a=b", "redis://***"),
            ("redis://queue:6379?password=hunt@er2", "redis://***"),
            (
                "redis://:hunter2@queue:6379?password=hunter2",
                "redis://***@queue:6379?***",
            ),
            ("hunter2", "***"),
        ] {
            assert_eq!(SecretUrl::new(url).masked(), shown);
        }
    }
}
