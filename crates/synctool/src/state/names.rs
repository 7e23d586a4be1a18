//! Pipeline names as file names.

use synctool_core::plan::short_hash;

/// Longer names are cut, so that a suffix still fits into the 255 bytes of common file systems.
const MAX: usize = 150;

/// A file name that stands for this name and no other: letters, digits, `-`, `_` and inner dots stay, all else is
/// percent-encoded.
pub fn file_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_alphanumeric() || matches!(c, '-' | '_') || (c == '.' && !out.is_empty()) {
            out.push(c);
        } else {
            let mut bytes = [0; 4];
            for b in c.encode_utf8(&mut bytes).bytes() {
                out.push_str(&format!("%{b:02X}"));
            }
        }
    }
    if out.is_empty() {
        return "%".into();
    }
    if out.len() > MAX {
        let end = (0..=MAX).rev().find(|i| out.is_char_boundary(*i)).unwrap_or(0);
        out.truncate(end);
        out = format!("{out}%{}", short_hash(name));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn names_stay_inside_their_folder_and_apart() {
        for (name, file) in [
            ("users_sync", "users_sync"),
            ("shop.items-2", "shop.items-2"),
            ("größe", "größe"),
            ("a/b", "a%2Fb"),
            ("a%2Fb", "a%252Fb"),
            ("..", "%2E."),
            (".hidden", "%2Ehidden"),
            ("", "%"),
            ("a b\n", "a%20b%0A"),
        ] {
            assert_eq!(file_name(name), file);
        }
        let (long, other) = ("x".repeat(300), format!("{}y", "x".repeat(299)));
        assert!(file_name(&long).len() < 200);
        assert_ne!(file_name(&long), file_name(&other));
    }
}
