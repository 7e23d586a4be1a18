//! The conformance suite: the same cases for every source and sink.
