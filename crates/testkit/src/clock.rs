//! A wall clock that jumps, for one program.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

/// Loaded before the C library, it answers for the wall clock. Clocks that only go on are left alone.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, at);
    if (!failed && clock == CLOCK_REALTIME) {
        struct timespec on;
        real(CLOCK_MONOTONIC, &on);
        at->tv_sec += on.tv_nsec / 250000000 % 2 ? 315360000 : -315360000;
    }
    return failed;
}
"#;

/// A library that makes the wall clock of whoever loads it jump by twenty years, forth and back, four times a second.
#[derive(Debug)]
pub struct JumpingClock(TempDir);

impl JumpingClock {
    /// Makes it.
    ///
    /// # Panics
    /// If there is no C compiler, or if a program that loads the library sees the right time.
    #[track_caller]
    #[allow(clippy::new_without_default, reason = "it runs a program and writes files")]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap_or_else(|e| panic!("a folder for a clock: {e}"));
        let source = folder.path().join("clock.c");
        std::fs::write(&source, SOURCE).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
        let clock = Self(folder);
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]);
        compiler.arg(clock.library()).arg(&source).arg("-ldl");
        let made = compiler.status().is_ok_and(|status| status.success());
        assert!(made, "a clock that jumps needs a C compiler: cc");
        let told = Command::new("date")
            .arg("+%s")
            .env("LD_PRELOAD", clock.library())
            .output();
        let told = told.unwrap_or_else(|e| panic!("date: {e}")).stdout;
        let told = String::from_utf8_lossy(&told).trim().parse().map(Duration::from_secs);
        let told = told.unwrap_or_else(|e| panic!("date says no time: {e}"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        assert!(
            told.abs_diff(now) > Duration::from_secs(300_000_000),
            "the clock does not jump"
        );
        clock
    }

    /// What a program names in `LD_PRELOAD`.
    pub fn library(&self) -> PathBuf {
        self.0.path().join("clock.so")
    }
}
