//! Connectors against real servers.

mod postgres_sink;
