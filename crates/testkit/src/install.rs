//! Where scripts/lib/servers.sh put the servers.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The cache directory, by the same rule as scripts/lib/servers.sh.
fn cache() -> PathBuf {
    if let Some(cache) = env::var_os("SYNCTOOL_CACHE").filter(|v| !v.is_empty()) {
        return cache.into();
    }
    if rustix::process::geteuid().is_root() {
        return "/var/cache/synctool".into();
    }
    let base = env::var_os("XDG_CACHE_HOME")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from);
    base.unwrap_or_else(|| PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache"))
        .join("synctool")
}

/// A file the installer puts below the cache.
pub(crate) fn cached(name: &str) -> Result<PathBuf> {
    let path = cache().join(name);
    if !path.exists() {
        bail!(
            "{} is not installed; run ./scripts/test, which installs what tests need",
            path.display()
        );
    }
    Ok(path)
}

/// A program of the system.
pub(crate) fn system(name: &str) -> Result<PathBuf> {
    let directories = env::var_os("PATH").unwrap_or_default();
    let searched = env::split_paths(&directories).chain([Path::new("/usr/sbin").into(), Path::new("/usr/bin").into()]);
    match searched
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
    {
        Some(path) => Ok(path),
        None => bail!("{name} is not installed; run ./scripts/test, which installs what tests need"),
    }
}

/// DuckDB's shared library, for tests that load it.
///
/// # Panics
/// If it is not installed.
#[track_caller]
pub fn libduckdb() -> PathBuf {
    cached("duckdb/libduckdb.so").unwrap_or_else(|e| panic!("{e:#}"))
}
