//! Precedences, mistakes and junk.

use super::*;
use proptest::prelude::*;

fn fails(text: &str) -> (usize, String) {
    let e = parse(text).expect_err(text);
    (e.column, e.message)
}

#[test]
fn precedences_are_pythons() {
    let same = |a: &str, b: &str| {
        // Places differ by the brackets only.
        let strip = |n: Node| {
            format!("{n:?}")
                .split("at: ")
                .map(|s| s.trim_start_matches(|c: char| c.is_ascii_digit()).to_string())
                .collect::<String>()
        };
        assert_eq!(strip(parse(a).unwrap()), strip(parse(b).unwrap()), "{a}");
    };
    same("lambda x: 1 + 2 * 3 ** 2", "lambda x: 1 + (2 * (3 ** 2))");
    same("lambda x: -2 ** 2", "lambda x: -(2 ** 2)");
    same("lambda x: 2 ** -1 * 3", "lambda x: (2 ** (-1)) * 3");
    same(
        "lambda x: not x['a'] == 1 and x['b']",
        "lambda x: (not (x['a'] == 1)) and x['b']",
    );
    same(
        "lambda x: 1 if x['a'] or x['b'] else 2 if x['c'] else 3",
        "lambda x: 1 if (x['a'] or x['b']) else (2 if x['c'] else 3)",
    );
    same("lambda x: x['a'] - 1 - 2", "lambda x: (x['a'] - 1) - 2");
    same("lambda row: row.get('a', 0)", "lambda row: row[\"a\"]");
    same("lambda x: 'a' 'b'", "lambda x: 'ab'");
}

#[test]
fn what_is_not_supported_is_named_at_its_place() {
    assert_eq!(
        fails("lambda x: x['a'] + __import__('os').system('true')"),
        (20, "the function __import__ is not supported".into())
    );
    assert_eq!(
        fails("lambda x: x['a'].format(1)").1,
        "the method .format() is not supported"
    );
    let (column, message) = fails("lambda x: x['a'].year");
    assert_eq!((column, message.as_str()), (18, "the attribute .year is not supported"));
    assert_eq!(fails("lambda x: x['a'] & 1").0, 18);
    assert_eq!(fails("lambda x, y: 1").1, "a lambda takes one row only");
    assert_eq!(
        fails("lambda x: [x['a'] for v in x['b']]"),
        (19, "comprehensions are not supported".into())
    );
    assert_eq!(
        fails("lambda x: f'{x[\"a\"]!r}'").1,
        "!r, !s and !a are not supported in an f-string"
    );
    assert_eq!(fails("lambda x: 'open").1, "the string is not closed");
    assert_eq!(
        fails("lambda x: total * 2"),
        (11, "total is unknown; the row is x".into())
    );
    assert_eq!(fails("lambda x:\n  x['a'] +").0, 11);
    assert_eq!(
        fails(&format!("lambda x: {}1{}", "(".repeat(500), ")".repeat(500))).1,
        "the expression is nested too deeply"
    );
    assert_eq!(
        fails(&format!("lambda x: {}1", "-".repeat(500))).1,
        "the expression is nested too deeply"
    );
}

#[test]
fn columns_are_found_everywhere() {
    let node = parse("lambda x: f\"{x['a']:.2f} {{x}}\" + (x.get('b') or x['c'])[1:len(x['d'])]").unwrap();
    let mut found = Vec::new();
    node.columns(&mut found);
    assert_eq!(found, ["a", "b", "c", "d"]);
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,60}") {
        let _ = parse(&text);
        let _ = parse(&format!("lambda x: {text}"));
    }

    #[test]
    fn no_soup_of_tokens_panics(parts in prop::collection::vec(prop::sample::select(vec![
        "x", "['a']", ".get(", "(", ")", "[", "]", "'s'", "f'{x[\"a\"]}'", "f'{'", "1", "1.5", "+", "**", "-", "not", "in",
        "if", "else", "and", ",", ":", "None", "round", " ", "is", "<", "lambda",
    ]), 0..25)) {
        let _ = parse(&format!("lambda x: {}", parts.join(" ")));
    }
}
