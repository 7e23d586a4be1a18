//! When a standby lets anybody read. It has to know every open transaction, and a list of them in the log that left out
//! subtransactions (of one with more than 64) is not enough: it waits for a better one, or until everything that was open
//! then has ended. Whoever shuts the gate before that has a scratch server that nobody can ask.

use super::archive;
use std::fs::File;
use std::path::PathBuf;
use synctool_core::error::{Error, Result, code};
use synctool_pgwal::{Decoder, History, Identity, Lsn, Meaning, Parts, Running};

/// Why a scratch server that was started again cannot be asked.
pub(super) const UNREADABLE: &str = "a transaction of production with more than 64 subtransactions is open where the scratch server was started again, so that it cannot be read there";

/// What a standby knows of the open transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    Nothing,
    /// All but some subtransactions, none of which is younger than this.
    Part(u32),
    All,
}

/// Follows what a standby learns that begins to replay at some place.
#[derive(Debug)]
pub(super) struct Readable {
    decoder: Decoder,
    knowledge: Knowledge,
}

impl Readable {
    pub(super) fn new(identity: Identity, from: Lsn) -> Readable {
        Readable {
            decoder: Decoder::at(identity, from),
            knowledge: Knowledge::Nothing,
        }
    }

    /// Goes over to another timeline's copy of the log, which is the same up to our place.
    pub(super) fn change_timeline(&mut self) {
        self.decoder = Decoder::at(*self.decoder.identity(), self.decoder.position());
    }

    /// Whether the standby can be read once it has replayed the log up to `to`; `file` finds a segment of it.
    pub(super) fn look(&mut self, history: &History, to: Lsn, file: impl Fn(&str) -> Option<PathBuf>) -> Result<bool> {
        let size = self.decoder.identity().segment_size;
        while self.knowledge != Knowledge::All && self.decoder.position() < to {
            let number = size.number(self.decoder.needs());
            // That something is missing is told when it is wanted.
            let Some(path) = file(&archive::segment_name(history, number, size).to_string()) else {
                return Ok(true);
            };
            let read = File::open(&path);
            let read =
                read.and_then(|file| archive::in_pieces(file, size.start(number), |at, piece| self.learn(at, piece)));
            let learned = read.map_err(|e| archive::file_error(&path, &e))?;
            learned.map_err(|e| {
                let what = format!("{} cannot be read: {e}", path.display());
                Error::new(code::SCRATCH, what)
                    .hint("remove the scratch directory: it is made again from the base backup")
            })?;
        }
        Ok(self.knowledge == Knowledge::All)
    }

    fn learn(&mut self, at: Lsn, bytes: &[u8]) -> synctool_pgwal::Result<()> {
        let (mut parts, mut touches) = (Parts::default(), Vec::new());
        let mut feed = self.decoder.feed(at, bytes)?;
        while let Some(record) = feed.next()? {
            match Meaning::of(&record, &mut parts, &mut touches)? {
                Meaning::Running(running) => self.knowledge = self.knowledge.after(&running),
                // Only prepared transactions are left, and their subtransactions are known.
                Meaning::Checkpoint { shutdown: true, .. } => self.knowledge = Knowledge::All,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Knowledge {
    /// What a list of the open transactions adds.
    fn after(self, running: &Running) -> Knowledge {
        let is_empty = running.xids.len() == running.subtransactions;
        match self {
            Knowledge::All => Knowledge::All,
            _ if !running.overflowed => Knowledge::All,
            Knowledge::Nothing => Knowledge::Part(running.next.wrapping_sub(1)),
            Knowledge::Part(_) if is_empty => Knowledge::All,
            Knowledge::Part(youngest) => match (youngest.wrapping_sub(running.oldest) as i32) < 0 {
                true => Knowledge::All,
                false => Knowledge::Part(youngest),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_without_subtransactions_is_waited_out() {
        let list = |xids: &[u32], overflowed, next, oldest| Running {
            xids: xids.to_vec(),
            subtransactions: 0,
            overflowed,
            next,
            oldest,
        };
        let part = Knowledge::Nothing.after(&list(&[90], true, 200, 90));
        assert_eq!(part, Knowledge::Part(199));
        // The same again, or another that began before the first list: some may be missing still.
        assert_eq!(part.after(&list(&[90], true, 300, 90)), part);
        assert_eq!(part.after(&list(&[199], true, 300, 199)), part);
        // Everything that was open then has ended; or nothing is left out; or nothing is open.
        assert_eq!(part.after(&list(&[200], true, 300, 200)), Knowledge::All);
        assert_eq!(part.after(&list(&[90], false, 300, 90)), Knowledge::All);
        assert_eq!(part.after(&list(&[], true, 300, 90)), Knowledge::All);
        assert_eq!(Knowledge::Nothing.after(&list(&[90], false, 200, 90)), Knowledge::All);
        // What is known stays known.
        assert_eq!(Knowledge::All.after(&list(&[90], true, 200, 90)), Knowledge::All);
    }
}
