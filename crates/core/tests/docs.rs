//! The index of errors in the docs is made from the table of codes. `BLESS=1` writes it anew.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
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

/// The names of all functions below a folder.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).expect("a file");
            for part in text.split("fn ").skip(1) {
                let name = part.split(|c: char| !c.is_alphanumeric() && c != '_').next();
                found.extend(name.map(str::to_owned));
            }
        }
    }
}

/// Every fault of the list has a line, and every test that a line names exists.
#[test]
fn the_tests_of_the_list_of_faults_exist() {
    let crates = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let page = std::fs::read_to_string(crates.join("../docs/faults.md")).expect("docs/faults.md");
    let mut known = BTreeSet::new();
    functions(crates, &mut known);
    let mut named = BTreeSet::new();
    let mut tests = 0;
    for line in page.lines().filter(|l| l.starts_with("| F")) {
        let (faults, shown) = line.trim_start_matches("| ").split_once(" | ").expect("two columns");
        let mut last = 0;
        for word in faults.split([' ', ',']) {
            for (i, number) in word.split('–').enumerate() {
                let Some(n) = number.strip_prefix('F').and_then(|n| n.parse::<u32>().ok()) else {
                    continue;
                };
                named.extend(if i == 1 { last..=n } else { n..=n });
                last = n;
            }
        }
        for code in shown.split('`').skip(1).step_by(2) {
            let path = code.split("::").next().unwrap_or(code);
            if path.contains('/') {
                assert!(crates.join(path).exists(), "{faults}: there is no {path}");
            }
            let Some((_, name)) = code.rsplit_once("::") else {
                continue;
            };
            if name.starts_with(char::is_uppercase) {
                continue;
            }
            let prefix = name.trim_end_matches('…');
            let exists = match prefix == name {
                true => known.contains(name),
                false => known.iter().any(|k| k.starts_with(prefix)),
            };
            assert!(exists, "{faults}: there is no test {code}");
            tests += 1;
        }
    }
    let missing: Vec<u32> = (1..=80).filter(|n| !named.contains(n)).collect();
    assert!(missing.is_empty(), "no line for F{missing:?}");
    assert!(tests > 50, "only {tests} tests are named");
}

/// Every test that the page of Data Sync names exists, where it says; with **15**, for that version too.
#[test]
fn the_tests_of_data_sync_exist() {
    let crates = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let page = std::fs::read_to_string(crates.join("../docs/data-sync.md")).expect("docs/data-sync.md");
    let (_, shown) = page.split_once("## What shows it").expect("the table");
    let mut tests = 0;
    for part in shown.split(" `").skip(1) {
        let (code, rest) = part.split_once('`').expect("the end of a name");
        let folder = match code.split_once('/') {
            Some(("ds", file)) => crates.join("synctool/tests/datasync").join(file),
            Some(("wa", file)) => crates.join("connectors/tests/it/walarchive").join(file),
            _ => continue,
        };
        let folder = folder.to_string_lossy().into_owned();
        let (file, name) = folder.split_once("::").map_or((&*folder, None), |(f, n)| (f, Some(n)));
        let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{code}: {e}"));
        let has = |name: &str| text.contains(&format!("fn {name}()"));
        let Some(name) = name else { continue };
        assert!(has(name), "there is no test {code}");
        if rest.starts_with(" (**15**)") {
            let other = format!("{}_15", name.trim_end_matches("_18"));
            assert!(has(&other), "there is no test {other} beside {code}");
        }
        tests += 1;
    }
    assert!(tests > 35, "only {tests} tests are named");
}
