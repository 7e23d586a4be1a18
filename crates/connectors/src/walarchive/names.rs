//! What files of an archive are, by their names.

use synctool_core::error::Result;
use synctool_pgwal::SegmentName;

/// A file of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole segment.
    Segment(SegmentName),
    /// The beginning of a segment: the last one of a timeline, or one that is being written. Never taken for whole.
    Partial(SegmentName),
    /// Where a timeline came from.
    History(u32),
    /// A note that a base backup was made.
    Backup(SegmentName),
}

/// Endings that compressing tools add. They say nothing that the first bytes do not say better.
const ENDINGS: &[&str] = &["gz", "zst", "zstd", "lz4", "bz2", "xz", "lzma", "br", "lzo"];

impl Kind {
    /// What a file is; None for one that is no part of the log. Knows what `archive_command = 'cp …'`, pg_receivewal,
    /// Barman, WAL-G and pgBackRest (a checksum behind the name) leave.
    pub fn of(name: &str) -> Option<Kind> {
        let mut name = name;
        if let Some((stem, ending)) = name.rsplit_once('.')
            && ENDINGS.contains(&ending)
        {
            name = stem;
        }
        let mut partial = false;
        if let Some(stem) = name.strip_suffix(".partial") {
            (name, partial) = (stem, true);
        }
        // pg_receivewal writes NAME.gz.partial.
        if let Some((stem, ending)) = name.rsplit_once('.')
            && partial
            && ENDINGS.contains(&ending)
        {
            name = stem;
        }
        if let Some(stem) = name.strip_suffix(".history") {
            let digits = stem.len() == 8 && stem.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
            return u32::from_str_radix(stem, 16)
                .ok()
                .filter(|_| digits && !partial)
                .map(Kind::History);
        }
        let segment = SegmentName::parse(name.get(..24)?)?;
        match &name[24..] {
            "" if partial => Some(Kind::Partial(segment)),
            "" => Some(Kind::Segment(segment)),
            rest if rest.starts_with('-') => {
                let sum = rest.len() == 41 && rest[1..].bytes().all(|b| b.is_ascii_hexdigit());
                match (sum, partial) {
                    (true, false) => Some(Kind::Segment(segment)),
                    (true, true) => Some(Kind::Partial(segment)),
                    _ => None,
                }
            }
            rest => {
                let offset = rest.strip_prefix('.')?.strip_suffix(".backup")?;
                let digits = offset.len() == 8 && offset.bytes().all(|b| b.is_ascii_hexdigit());
                (digits && !partial).then_some(Kind::Backup(segment))
            }
        }
    }
}

/// A command with `%f` (the file wanted) and `%p` (where it is to be put) filled in, as in PostgreSQL's
/// `restore_command`.
pub fn command(template: &str, file: &str, path: &str) -> Result<String> {
    let mut out = String::with_capacity(template.len() + path.len());
    let mut chars = template.chars();
    while let Some(c) = chars.next() {
        match (c, c == '%') {
            (_, true) => match chars.next() {
                Some('f') => out.push_str(&shell(file)),
                Some('p') => out.push_str(&shell(path)),
                Some('%') => out.push('%'),
                other => {
                    out.push('%');
                    out.extend(other);
                }
            },
            (c, false) => out.push(c),
        }
    }
    Ok(out)
}

/// A word that the shell takes as it is.
fn shell(word: &str) -> String {
    let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+".contains(&b));
    match plain && !word.is_empty() {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_tool_are_known() {
        let name = "00000001000000000000002A";
        let segment = SegmentName::parse(name).unwrap();
        let sum = "0123456789abcdef0123456789abcdef01234567";
        for ending in ["", ".gz", ".zst", ".lz4", ".bz2", ".xz", ".br", ".lzo", ".lzma"] {
            assert_eq!(Kind::of(&format!("{name}{ending}")), Some(Kind::Segment(segment)));
            assert_eq!(Kind::of(&format!("{name}-{sum}{ending}")), Some(Kind::Segment(segment)));
            assert_eq!(
                Kind::of(&format!("{name}.partial{ending}")),
                Some(Kind::Partial(segment))
            );
            assert_eq!(
                Kind::of(&format!("{name}{ending}.partial")),
                Some(Kind::Partial(segment))
            );
            assert_eq!(
                Kind::of(&format!("{name}-{sum}.partial{ending}")),
                Some(Kind::Partial(segment))
            );
            assert_eq!(
                Kind::of(&format!("{name}.00000028.backup{ending}")),
                Some(Kind::Backup(segment))
            );
            assert_eq!(Kind::of(&format!("0000000B.history{ending}")), Some(Kind::History(11)));
        }
        for other in [
            "",
            "archive.info",
            "xlog.db",
            "backup.info",
            "00000001000000000000002a",
            "00000001000000000000002A.tmp",
            "00000001000000000000002A_delta",
            "00000001000000000000002A-123",
            ".00000001000000000000002A.X1b2",
            "0000000b.history",
            "1.history",
            "00000001000000000000002Aäöü",
        ] {
            assert_eq!(Kind::of(other), None, "{other}");
        }
    }

    #[test]
    fn commands_are_filled_in() {
        let filled = |template: &str, path: &str| command(template, "00000002.history", path).unwrap();
        assert_eq!(filled("cp /a/%f %p", "/tmp/x"), "cp /a/00000002.history /tmp/x");
        assert_eq!(
            filled("get %f '%%' > %p", "/tmp/it's"),
            r"get 00000002.history '%' > '/tmp/it'\''s'"
        );
        assert_eq!(filled("100%", "x"), "100%");
        assert_eq!(filled("%x", "x"), "%x");
    }
}
