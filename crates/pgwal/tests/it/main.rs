//! The log of real servers, against what PostgreSQL itself says about it.

mod damage;
mod edges;
mod load;
mod oracle;
mod rows;
mod wal;
