//! The test kit, tested on itself.

mod clickhouse;
mod kafka;
mod kill;
mod mariadb;
mod ports;
mod postgres;
mod proxy;
mod redis;
mod s3;
mod servers;
mod tls;
mod versions;
mod wait;
