//! The connectors against the real thing: servers, databases, files.

mod object;
