//! The long versions of tests.

/// Whether this is a soak (`SYNCTOOL_SOAK`, as `./scripts/soak` sets it): tests do all of what they else do a part of, and more
/// rounds of it.
pub fn is_soak() -> bool {
    std::env::var_os("SYNCTOOL_SOAK").is_some()
}
