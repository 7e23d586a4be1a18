//! The test kit, tested on itself.

mod ports;
mod postgres;
mod wait;
