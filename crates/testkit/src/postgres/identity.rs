//! A copied cluster's own identity: servers of tests are told apart by it, as those of people are.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Where the first page of each segment of the log has the cluster's identifier.
const IN_LOG: u64 = 24;

/// Gives a cluster that was shut down an identifier as initdb would: in its control file, and in its log.
pub(super) fn renew(data: &Path) -> Result<()> {
    let control = data.join("global/pg_control");
    let mut bytes = fs::read(&control).with_context(|| format!("cannot read {}", control.display()))?;
    let sum = sum_at(&bytes).with_context(|| format!("{} has no checksum", control.display()))?;
    let old = bytes[..8].to_vec();
    // SQL shows it as a signed number.
    let new = (rand::random::<u64>() >> 1).to_le_bytes();
    bytes[..8].copy_from_slice(&new);
    let crc = crc32c::crc32c(&bytes[..sum]).to_le_bytes();
    bytes[sum..sum + 4].copy_from_slice(&crc);
    fs::write(&control, &bytes)?;

    for entry in fs::read_dir(data.join("pg_wal"))? {
        let path = entry?.path();
        if !path.is_file() {
            continue;
        }
        let file = File::options().read(true).write(true).open(&path)?;
        let mut found = [0; 8];
        file.read_exact_at(&mut found, IN_LOG)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if found[..] == old[..] {
            file.write_all_at(&new, IN_LOG)?;
        }
    }
    Ok(())
}

/// Where the checksum of a control file is, behind everything that it is of. The place depends on the version.
fn sum_at(bytes: &[u8]) -> Option<usize> {
    let end = bytes.len().min(512).saturating_sub(4);
    (8..end)
        .step_by(4)
        .find(|at| bytes[*at..*at + 4] == crc32c::crc32c(&bytes[..*at]).to_le_bytes()[..])
}
