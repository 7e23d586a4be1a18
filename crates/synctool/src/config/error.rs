//! What is wrong with a configuration file, and where.

use std::fmt;

/// One mistake: where it stands, what it is, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file as the user named it; empty when the mistake is not in a file (a URI on the command line).
    pub file: String,
    /// Line, from 1; 0 when the mistake concerns the file as a whole.
    pub line: u32,
    /// Column, from 1, counted in characters; 0 like `line`.
    pub column: u32,
    /// What is wrong. Never holds a value that could be a secret.
    pub message: String,
    /// What to do: the nearest allowed word, the allowed words, a command.
    pub help: Option<String>,
}

impl ConfigError {
    /// A mistake that has no place in a file.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            file: String::new(),
            line: 0,
            column: 0,
            message: message.into(),
            help: None,
        }
    }

    /// A mistake that concerns `file` as a whole.
    pub fn in_file(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            ..Self::new(message)
        }
    }

    /// The same mistake with advice.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.line > 0 {
                write!(f, "{}:{}:", self.line, self.column)?;
            }
            f.write_str(" ")?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Every mistake found, in the order of the files; printed one per line. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// `Ok` when nothing is wrong, else all of it, sorted by place and without repetitions.
    pub(crate) fn check(mut errors: Vec<ConfigError>) -> Result<(), Self> {
        if errors.is_empty() {
            return Ok(());
        }
        // Files keep the order in which they were read; inside a file the reader goes from top to bottom.
        let mut files: Vec<String> = Vec::new();
        for error in &errors {
            if !files.contains(&error.file) {
                files.push(error.file.clone());
            }
        }
        errors.sort_by_key(|e| (files.iter().position(|f| *f == e.file), e.line, e.column));
        errors.dedup();
        Err(Self(errors))
    }

    /// The mistakes.
    pub fn iter(&self) -> std::slice::Iter<'_, ConfigError> {
        self.0.iter()
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

impl IntoIterator for ConfigErrors {
    type Item = ConfigError;
    type IntoIter = std::vec::IntoIter<ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// The word of `allowed` that was probably meant by `word`.
pub(crate) fn nearest<'a>(word: &str, allowed: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = word.to_lowercase();
    allowed
        .into_iter()
        .map(|candidate| {
            (
                strsim::normalized_damerau_levenshtein(&folded, &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(score, _)| *score >= 0.6)
        // Of equals the first, which is the more usual word.
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, candidate)| candidate)
}

/// "did you mean …? `label`: a, b, c", as far as there is something to say.
pub(crate) fn suggestion(word: &str, label: &str, allowed: &[&str]) -> Option<String> {
    let mut help = match nearest(word, allowed.iter().copied()) {
        Some(candidate) => format!("did you mean \"{candidate}\"?"),
        None => String::new(),
    };
    if !allowed.is_empty() {
        if !help.is_empty() {
            help.push(' ');
        }
        help.push_str(&format!("{label}: {}", allowed.join(", ")));
    }
    (!help.is_empty()).then_some(help)
}
