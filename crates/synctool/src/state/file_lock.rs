//! The run lock of one host: an advisory lock on a file, kept by the open file and so gone with its process, however it
//! ends. The file's text only names the holder.

use super::{Held, Holder, RunLock, locked};
use async_trait::async_trait;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Others look whether a lock is free by taking it for a moment; that must not look like a running pipeline.
const PATIENCE: Duration = Duration::from_millis(300);
const STEP: Duration = Duration::from_millis(10);

struct HeldFile(File);

impl Drop for HeldFile {
    fn drop(&mut self) {
        // The file stays: deleting it would let two processes lock two files of one name.
        let _ = self.0.set_len(0);
    }
}

#[async_trait]
impl Held for HeldFile {
    async fn release(self: Box<Self>) {}
}

fn failed(path: &Path, e: std::io::Error) -> Error {
    Error::new(
        code::STATE_STORE,
        format!("the lock file {} cannot be used: {e}", path.display()),
    )
    .hint("check that the data directory is writable and on a local disk")
}

fn open(path: &Path) -> Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|e| failed(path, e))
}

fn read_holder(path: &Path) -> Option<Holder> {
    let mut text = String::new();
    File::open(path).ok()?.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// Takes the lock, or says who has it.
pub(super) async fn take(path: &Path, pipeline: &str) -> Result<RunLock> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(lock) = try_take(path, pipeline)? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Err(locked(pipeline, read_holder(path).as_ref()));
        }
        tokio::time::sleep(STEP).await;
    }
}

/// Takes the lock if it is free.
pub(super) fn try_take(path: &Path, pipeline: &str) -> Result<Option<RunLock>> {
    let mut file = open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(e)) => return Err(failed(path, e)),
    }
    let holder = Holder::here();
    let text = serde_json::to_string(&holder).map_err(|e| Error::bug(format!("a lock's holder: {e}")))?;
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(text.as_bytes()))
        .map_err(|e| failed(path, e))?;
    Ok(Some(RunLock {
        pipeline: pipeline.into(),
        holder,
        lost: CancellationToken::new(),
        held: Box::new(HeldFile(file)),
    }))
}

/// Who has the lock now.
pub(super) fn holder(path: &Path) -> Result<Option<Holder>> {
    if !path.exists() {
        return Ok(None);
    }
    let file = open(path)?;
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(read_holder(path)),
        Err(TryLockError::Error(e)) => Err(failed(path, e)),
    }
}
