//! An archive that brings nothing: nobody but its owner knows whether nothing happened or nothing is archived, so it is told.

use super::archive::{Archive, Listing};
use std::time::Duration;

/// What is to be told of an archive that has brought nothing for three times as long as it should: the same segment is
/// awaited for so long (`lasts`), and this is what its command said (`said`).
pub(super) fn silence(archive: &Archive, interval: Duration, lasts: Duration, said: Option<&str>) -> Option<String> {
    let is_long = |age: &Duration| *age >= interval * 3;
    let expected = format!("expected is one every {} s", interval.as_secs());
    let idle = "production is idle, or archives no more";
    if let Archive::Directory(directory) = archive
        && let Some(newest) = Listing::of(directory).ok()?.newest
    {
        let age = newest.elapsed().ok().filter(is_long)?.as_secs();
        return Some(format!(
            "the newest file of the archive is {age} s old, {expected}: {idle}"
        ));
    }
    let age = Some(lasts).filter(is_long)?.as_secs();
    let told = format!("no segment was taken for {age} s, {expected}: {idle}");
    Some(match (archive, said) {
        (Archive::Command { .. }, Some(said)) => format!("{told}, or wal_fetch_command cannot ask ({said})"),
        (Archive::Command { .. }, None) => format!("{told}, or wal_fetch_command cannot ask"),
        (Archive::Directory(directory), _) => format!("{told}, or nothing is mounted in {}", directory.display()),
        _ => told,
    })
}
