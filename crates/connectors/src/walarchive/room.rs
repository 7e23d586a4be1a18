//! Whether there is room for what is to be written: asked before, because a disk that fills up in the middle stops more
//! than us.

use std::path::Path;
use synctool_core::error::{Error, Result, code};
use synctool_pgwal::{SegmentName, SegmentSize};

/// Bytes that are left over for whatever the scratch server writes besides.
const MARGIN: u64 = 32 << 20;

/// Bytes that are free where a directory is, or will be.
pub(super) fn free(directory: &Path) -> Option<u64> {
    let there = directory.ancestors().find(|path| path.is_dir());
    fs4::available_space(there.unwrap_or(Path::new("/"))).ok()
}

/// Fails if a segment would not find room: it stands here once, and once where the scratch server replays it.
pub(super) fn for_segment(directory: &Path, name: SegmentName, size: SegmentSize) -> Result<()> {
    check(directory, 2 * size.bytes(), &format!("WAL segment {name}"))
}

/// Fails if so many bytes would not find room. Where that cannot be known, whoever writes will see.
pub(super) fn check(directory: &Path, bytes: u64, what: &str) -> Result<()> {
    let needed = bytes.saturating_add(MARGIN);
    let Some(free) = free(directory).filter(|free| *free < needed) else {
        return Ok(());
    };
    let place = directory.display().to_string();
    let mb = |bytes: u64| bytes.div_ceil(1 << 20);
    let what = format!(
        "no space is left for {what}: {} MB are needed in {place}, {} MB are free",
        mb(needed),
        free >> 20
    );
    Err(Error::new(code::DISK_FULL, what)
        .at("directory", place)
        .hint("free space there, or set scratch_dir to a larger disk; nothing was lost, and it is tried again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_not_fit_is_refused_before_it_is_written() {
        let place = tempfile::tempdir().unwrap();
        let later = place.path().join("not/there/yet");
        assert!(check(&later, 0, "nothing").is_ok());
        let error = check(&later, u64::MAX, "everything").unwrap_err();
        assert_eq!(error.code(), code::DISK_FULL);
        let says = error.message();
        assert!(
            says.starts_with("no space is left for everything: ") && says.contains("not/there/yet"),
            "{says}"
        );
        assert!(error.next_step().unwrap().contains("scratch_dir"));
    }
}
