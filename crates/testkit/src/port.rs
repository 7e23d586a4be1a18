//! Free ports that two test processes cannot both believe to be theirs.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};

use rand::Rng;

/// Below the kernel's ephemeral range, so that no outgoing connection takes a port between the look and the bind.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A port of 127.0.0.1 that was free, and that no other test process is given while this value lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Finds one.
    ///
    /// # Panics
    /// If no port is free.
    pub fn free() -> Self {
        let directory = std::env::temp_dir().join(format!("synctool-ports-{}", rustix::process::geteuid().as_raw()));
        fs::create_dir_all(&directory).unwrap_or_else(|e| panic!("cannot create {}: {e}", directory.display()));
        for _ in 0..2_000 {
            let number = rand::rng().random_range(RANGE);
            let lock = File::create(directory.join(number.to_string())).expect("create a port's lock file");
            // The lock covers the time between this probe and the server's own bind.
            if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Self { number, _lock: lock };
            }
        }
        panic!("no free port in {RANGE:?} on 127.0.0.1");
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }
}
