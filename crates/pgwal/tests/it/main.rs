//! The log of real servers, against what PostgreSQL itself says about it.

mod damage;
mod load;
mod oracle;
mod rows;
mod wal;
