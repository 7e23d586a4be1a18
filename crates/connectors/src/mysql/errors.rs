//! What the server's and the driver's errors mean: a stable code, and words that hold no value.

use mysql_async::{DriverError, Error as Wire, IoError, ServerError};
use synctool_core::error::{Code, Error, code};

/// The error of a call: the server's number to a code, with its own sentence only where it cannot hold a value.
pub(super) fn map_error(e: Wire, what: &str) -> Error {
    match &e {
        Wire::Server(server) => server_error(server, what),
        Wire::Io(IoError::Tls(why)) => Error::new(code::TLS_FAILED, format!("{what} failed: {why}"))
            .hint("check sslmode and sslrootcert against the server's certificate"),
        Wire::Io(IoError::Io(io)) => {
            if io.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
                return Error::new(code::TLS_FAILED, format!("{what} failed: {io}"))
                    .hint("check sslmode and sslrootcert against the server's certificate");
            }
            if what.starts_with("connecting") {
                let missing = io.kind() == std::io::ErrorKind::NotFound;
                let (code, hint) = if missing {
                    (
                        code::TLS_FAILED,
                        "check the files that sslrootcert, sslcert and sslkey name",
                    )
                } else {
                    (
                        code::SERVER_UNREACHABLE,
                        "check host and port, and that the server runs and listens there",
                    )
                };
                return Error::new(code, format!("{what} failed: {io}")).hint(hint);
            }
            Error::new(code::CONNECTION_LOST, format!("{what} failed: {io}"))
                .hint("the work is tried again; look into the server's log if it repeats")
        }
        Wire::Driver(DriverError::ConnectionClosed) => Error::new(
            code::CONNECTION_LOST,
            format!("{what} failed: the server closed the connection"),
        )
        .hint("the work is tried again; look into the server's log if it repeats"),
        Wire::Driver(DriverError::PacketTooLarge) => too_large(what),
        Wire::Driver(
            DriverError::UnknownAuthPlugin { .. }
            | DriverError::MysqlOldPasswordDisabled
            | DriverError::CleartextPluginDisabled,
        ) => Error::new(
            code::AUTH_FAILED,
            format!("{what} failed: the server asks for a login method that is not supported"),
        )
        .hint("give the user mysql_native_password, caching_sha2_password or ed25519"),
        Wire::Driver(DriverError::NoKeyFound) => {
            Error::new(code::TLS_FAILED, format!("{what} failed: sslkey holds no key"))
        }
        // Values may stand in the driver's own sentences.
        _ => Error::new(
            code::SERVER_ERROR,
            format!("{what} failed: the driver could not carry it out"),
        ),
    }
}

fn too_large(what: &str) -> Error {
    Error::new(
        code::ROW_TOO_LARGE,
        format!("{what} failed: a row is larger than the server's max_allowed_packet"),
    )
    .hint("SET GLOBAL max_allowed_packet = 1073741824, and the same in the server's configuration file")
}

/// The error that a server's answer stands for.
pub(super) fn server_error(e: &ServerError, what: &str) -> Error {
    if e.code == 1153 {
        return too_large(what);
    }
    let (code, hint) = classify(e.code, &e.message);
    let says = own_words(e).unwrap_or_else(|| e.message.clone());
    let error = Error::new(code, format!("{what} failed: {says}")).at("errno", e.code.to_string());
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn classify(errno: u16, message: &str) -> (&'static Code, Option<&'static str>) {
    match errno {
        1045 | 1698 | 1820 | 1862 | 1251 | 3159 | 4151 => {
            (code::AUTH_FAILED, Some("check user and password of this datastore"))
        }
        1049 => (code::DATABASE_MISSING, Some("check the database's name")),
        1146 | 1051 | 1109 => (code::TABLE_MISSING, None),
        1054 => (code::COLUMN_MISSING, None),
        1044 | 1142 | 1143 | 1227 | 1370 | 1410 | 1419 => {
            (code::PERMISSION, Some("ask for a GRANT of the right that is named"))
        }
        1290 | 1836 => (
            code::PERMISSION,
            Some("the server is read-only or forbids it by an option: connect to the primary"),
        ),
        1205 | 1213 | 1020 | 1412 => (code::CONFLICT, None),
        1040 | 1041 | 1037 | 1038 | 1203 | 1226 | 1317 | 1969 | 3024 => (code::SERVER_BUSY, None),
        1053 | 1077..=1080 | 1152 | 1156..=1161 | 1184 | 1927 | 4031 => (
            code::CONNECTION_LOST,
            Some("the work is tried again; look into the server's log if it repeats"),
        ),
        1021 | 1114 => (
            code::DISK_FULL,
            Some("free space on the server's disk, then run again: it goes on from the last commit"),
        ),
        1030 | 1026 | 1 if message.contains("28") => (code::DISK_FULL, Some("free space on the server's disk")),
        1062 | 1586 | 1022 | 1859 => (code::DUPLICATE_KEY, None),
        1048 | 1216 | 1217 | 1364 | 1451 | 1452 | 1644 | 3819 | 4025 => (code::CONSTRAINT, None),
        1264..=1265 | 1292 | 1366 | 1367 | 1406 | 1411 | 1416 | 1425 | 1426 | 1439 | 1690 | 1416..=1418 | 3140 => {
            (code::VALUE_UNSUPPORTED, None)
        }
        1059 | 1102 | 1103 | 1166 => (code::IDENTIFIER, None),
        1050 | 1060 | 1061 | 1068..=1075 | 1118 | 1163 | 1167 | 1170 | 1171 => (code::SCHEMA_MISMATCH, None),
        1235 | 1112 => (code::UNSUPPORTED, None),
        1148 | 3948 | 4166 => (
            code::UNSUPPORTED,
            Some("SET GLOBAL local_infile = 1, or load by INSERT"),
        ),
        _ => (code::SERVER_ERROR, None),
    }
}

/// Our own sentence for the errors whose messages can hold a cell's value.
fn own_words(e: &ServerError) -> Option<String> {
    // What stands behind the value is a name.
    let named = |mark: &str| {
        let at = e.message.rfind(mark)?;
        Some(
            e.message[at + mark.len()..]
                .split(" at row")
                .next()
                .unwrap_or("")
                .to_string(),
        )
    };
    Some(match e.code {
        1062 | 1586 | 1022 => match named("' for key ") {
            Some(key) => format!("two rows have the same key ({key})"),
            None => "two rows have the same key".into(),
        },
        1366 | 1292 | 1367 | 1411 | 1416 | 1425 | 1426 | 3140 => {
            match named("' for column ").or_else(|| named(" for column ")) {
                Some(column) => format!("a value does not fit column {column}"),
                None => "a value has the wrong form for its column".into(),
            }
        }
        1690 => "a number is out of range".into(),
        1064 | 1149 => "the server does not understand the SQL (check filters, expressions and join conditions)".into(),
        1644 => "a trigger or procedure of the database raised an error".into(),
        1105 => "the server reported an unknown error".into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use synctool_core::error::ErrorKind;

    #[test]
    fn numbers_say_what_the_engine_should_do() {
        for (errno, kind) in [
            (1045, ErrorKind::Failed),
            (1146, ErrorKind::Config),
            (1205, ErrorKind::Conflict),
            (1213, ErrorKind::Conflict),
            (1040, ErrorKind::Unavailable),
            (1927, ErrorKind::Unavailable),
            (1053, ErrorKind::Unavailable),
            (1062, ErrorKind::Data),
            (1264, ErrorKind::Data),
            (1021, ErrorKind::Failed),
        ] {
            assert_eq!(classify(errno, "").0.kind, kind, "{errno}");
        }
    }

    #[test]
    fn values_do_not_get_into_messages() {
        for (errno, message, shown) in [
            (1062, "Duplicate entry 'sesame' for key 'PRIMARY'", "'PRIMARY'"),
            (
                1366,
                "Incorrect integer value: 'sesame' for column `d`.`t`.`n` at row 1",
                "`d`.`t`.`n`",
            ),
            (1292, "Truncated incorrect DOUBLE value: 'sesame'", "wrong form"),
            (
                1064,
                "You have an error in your SQL syntax near 'sesame'",
                "does not understand",
            ),
        ] {
            let e = server_error(
                &ServerError {
                    code: errno,
                    message: message.into(),
                    state: String::new(),
                },
                "writing",
            )
            .to_string();
            assert!(!e.contains("sesame") && e.contains(shown), "{e}");
        }
    }
}
