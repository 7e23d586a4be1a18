//! Mistakes of configuration files as errors of the program.

use crate::config::{ConfigError, ConfigErrors};
use synctool_core::error::{Error, code};

/// The first mistake is the sentence; all of them are the cause, so that a caller can show every one at its place.
impl From<ConfigErrors> for Error {
    fn from(errors: ConfigErrors) -> Self {
        let mut message = String::new();
        let mut hint = None;
        for (i, mistake) in errors.iter().enumerate() {
            if i == 0 {
                hint.clone_from(&mistake.help);
                let bare = ConfigError {
                    help: None,
                    ..mistake.clone()
                };
                message = bare.to_string();
            }
        }
        match errors.iter().count() - 1 {
            0 => {}
            1 => message.push_str("; and one more mistake"),
            more => message.push_str(&format!("; and {more} more mistakes")),
        }
        let error = Error::new(code::CONFIG_INVALID, message).caused_by(errors);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        ConfigErrors::from(error).into()
    }
}
