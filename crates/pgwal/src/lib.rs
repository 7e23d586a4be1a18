//! Write-ahead log pages and records of PostgreSQL 15 to 18: bytes in, records out. No I/O, no async.
