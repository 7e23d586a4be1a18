//! The index of errors in the docs is made from the table of codes. `BLESS=1` writes it anew.

use std::fmt::Write;
use synctool_core::error::code;

#[test]
fn the_index_of_errors_is_the_table_of_codes() {
    let mut page = String::from(
        "# Errors\n\nEvery error has a stable code, a sentence that says what failed and where, and, where there is one, the next\n\
         step. The exit code tells a script what to do. This page is made from the table in `crates/core/src/error.rs`.\n\n\
         Exit codes: 0 ok · 1 failed · 2 usage or configuration · 3 differences found · 4 refused by policy · 5 transient, try\n\
         again · 6 already running · 130 interrupted, state saved.\n\n| code | exit | meaning |\n| --- | --- | --- |\n",
    );
    for c in code::ALL {
        let _ = writeln!(
            page,
            "| <a id=\"{}\"></a>`{}` | {} | {} |",
            c.id.to_lowercase(),
            c.id,
            c.kind.exit_code(),
            c.meaning
        );
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(file, &page).expect("docs are writable");
    }
    assert_eq!(
        std::fs::read_to_string(file).unwrap_or_default(),
        page,
        "docs/errors.md is old: run with BLESS=1"
    );
}
