//! The test kit, tested on itself.

mod kill;
mod ports;
mod postgres;
mod proxy;
mod tls;
mod versions;
mod wait;
