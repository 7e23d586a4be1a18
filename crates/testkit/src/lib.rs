//! Real servers, faults and kills for SyncTool's tests. Development only: nothing here ships.
//!
//! * [`Postgres`], [`MariaDb`], [`Redis`], [`Kafka`], [`S3`], [`ClickHouse`]: private servers on free ports of
//!   127.0.0.1, each in a directory of its own. `start()` gives one to a single test, `shared()` one to the whole
//!   test run.
//! * [`FaultProxy`]: a TCP proxy that delays, cuts, resets, hangs, throttles or refuses on demand.
//! * [`KillRun`]: runs a whole program and has it killed at a named failpoint.
//! * [`SmallDisk`]: a file system that is soon full.
//! * [`JumpingClock`]: a wall clock that jumps, for one program.
//! * [`Dice`]: numbers that a seed determines.
//! * [`Authority`]: certificates for TLS tests.
//! * [`is_soak`]: whether tests are to be as long as they can be.
//! * [`wait_for`] and [`eventually`]: wait for the thing itself, never for a length of time.
//!
//! Everything here fails the test by panicking with the reason: a server that is missing is a failed test, not a
//! skipped one. `scripts/test` installs the servers; the kit finds them in the cache directory that script fills
//! (`SYNCTOOL_CACHE`).
//!
//! What a server begins with is made once per test run, where `testkit-servers` is around it, and copied ([`Prepared`]).
//!
//! A server never outlives its test process: a small shell supervises it and ends it, by its process id, when the
//! pipe to the test closes, however the test ended.

mod clickhouse;
mod clock;
mod daemon;
mod dice;
mod disk;
mod http;
mod install;
mod kafka;
pub mod kill;
mod mariadb;
mod port;
mod postgres;
mod prepared;
mod process;
pub mod proxy;
mod redis;
mod s3;
mod shared;
mod soak;
mod supervisor;
mod tls;
mod wait;

pub use clickhouse::ClickHouse;
pub use clock::JumpingClock;
pub use daemon::Daemon;
pub use dice::Dice;
pub use disk::SmallDisk;
pub use install::libduckdb;
pub use kafka::Kafka;
pub use kill::KillRun;
pub use mariadb::{MariaDb, MariaDbDatabase};
pub use port::Port;
pub use postgres::{PgVersion, Postgres, PostgresBuilder, Template, TestDb, psql_url};
pub use prepared::Prepared;
pub use proxy::FaultProxy;
pub use redis::Redis;
pub use s3::S3;
pub use soak::is_soak;
pub use tls::{Authority, ClientCertificate, ServerCertificate};
pub use wait::{Verdict, eventually, wait_for};
