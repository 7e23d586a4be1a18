//! The service: it looks at the archive again and again, does what users ask for between batches, and goes on after
//! whatever passes. What happened stands in the local database.

use super::{host, local, settings};
use crate::config::DataSync as Config;
use std::time::{Duration, Instant};
use synctool_connectors::walarchive::journal::Entry;
use synctool_connectors::walarchive::{Board, Claim, DataSync, ReplayConfig, Scratch, Step, SyncConfig, Waiting};
use synctool_core::error::{Error, Result, code};
use tokio_util::sync::CancellationToken;

/// Between looks at what users ask for.
const TICK: Duration = Duration::from_secs(1);
/// The longest pause after a fault that passes by itself.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// What a look at the archive brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Batches that were applied.
    pub batches: u64,
    /// Why there is no more; None if an end was asked for.
    pub waiting: Option<Waiting>,
}

/// A running service.
pub struct Service {
    config: Config,
    stop: CancellationToken,
    board: Option<Board>,
    sync: Option<DataSync>,
    tidied: Option<Instant>,
}

impl Service {
    /// Takes the right to work, and opens everything.
    pub async fn begin(config: Config, stop: CancellationToken) -> Result<Service> {
        let board = Board::open(&local(&config)).await?;
        let mut service = Service {
            config,
            stop,
            board: Some(board),
            sync: None,
            tidied: None,
        };
        let settings = service.settings()?;
        let claim = Claim::take(&settings.local).await?;
        let board = service.board().await?;
        board.begin_service(&host()).await?;
        let text = format!(
            "synctool {} began, pid {}",
            env!("CARGO_PKG_VERSION"),
            std::process::id()
        );
        let mut entry = Entry::new("info", "started", text);
        entry.to = board.applied().await?;
        board.log(&entry).await?;
        match Box::pin(claim.open(settings)).await {
            Ok(sync) => {
                service.sync = Some(sync);
                service.beat("working", None).await;
                Ok(service)
            }
            // What is wrong before anything was done is told to whoever started it.
            Err(error) => {
                let error = service.failed(error).await;
                service.board().await?.stopped().await?;
                Err(error)
            }
        }
    }

    /// Goes on until it is asked to end, which it does at a batch's end, or where it waits.
    pub async fn serve(mut self) -> Result<()> {
        let mut faults = 0;
        loop {
            let pause = match self.look().await {
                Ok(served) if served.waiting.is_none() => break,
                Ok(Served { waiting, .. }) => {
                    faults = 0;
                    self.well(waiting.as_ref()).await;
                    self.config.frequency
                }
                Err(error) if error.code() == code::LOCKED => return Err(error),
                Err(error) => {
                    faults += 1;
                    let error = self.failed(error).await;
                    self.pause_after(&error, faults)
                }
            };
            if self.wait(pause).await {
                break;
            }
        }
        Box::pin(self.end()).await
    }

    /// Applies everything that is there.
    pub async fn once(mut self) -> Result<Served> {
        let served = match self.look().await {
            // One that was asked to end in the middle does not know whether all is well.
            Ok(served) if served.waiting.is_none() => Ok(served),
            Ok(served) => {
                self.well(served.waiting.as_ref()).await;
                Ok(served)
            }
            Err(error) => Err(self.failed(error).await),
        };
        let ended = Box::pin(self.end()).await;
        let served = served?;
        ended.map(|()| served)
    }

    async fn open(&mut self) -> Result<()> {
        if self.sync.is_none() {
            self.sync = Some(DataSync::open(self.settings()?).await?);
        }
        Ok(())
    }

    /// What the work needs to know; it ends when we are told to.
    fn settings(&self) -> Result<SyncConfig> {
        Ok(SyncConfig {
            stop: self.stop.clone(),
            ..settings(&self.config)?
        })
    }

    async fn look(&mut self) -> Result<Served> {
        self.open().await?;
        let mut batches = 0;
        loop {
            self.beat("working", None).await;
            let sync = self.sync.as_mut().ok_or_else(|| Error::bug("nothing is open"))?;
            let done = async {
                let step = Box::pin(sync.step()).await?;
                Box::pin(sync.tend()).await?;
                Ok::<_, Error>(step)
            };
            let step = match done.await {
                // Asked to end in the middle of a copy or of a wait.
                Err(e) if e.code() == code::INTERRUPTED => return Ok(Served { batches, waiting: None }),
                other => other?,
            };
            match step {
                Step::Applied(_) => {
                    batches += 1;
                    self.scratch_is_well();
                }
                Step::Idle(why) => {
                    return Ok(Served {
                        batches,
                        waiting: Some(why),
                    });
                }
            }
            if self.is_asked_to_stop().await {
                return Ok(Served { batches, waiting: None });
            }
        }
    }

    /// Waits for the next look, and does meanwhile what users ask for. Says whether to end.
    async fn wait(&mut self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        while Instant::now() < end {
            tokio::select! {
                () = self.stop.cancelled() => return true,
                () = tokio::time::sleep(TICK.min(pause)) => {}
            }
            let Ok(board) = self.board().await else { continue };
            let Ok(wanted) = board.wanted().await else {
                self.board = None;
                continue;
            };
            if wanted.stop {
                return true;
            }
            if let (true, Some(sync)) = (wanted.tend, self.sync.as_mut())
                && let Err(error) = Box::pin(sync.tend()).await
            {
                if error.code() == code::INTERRUPTED {
                    return true;
                }
                self.failed(error).await;
                return false;
            }
            self.beat_again().await;
        }
        false
    }

    async fn is_asked_to_stop(&mut self) -> bool {
        if self.stop.is_cancelled() {
            return true;
        }
        match self.board().await {
            Ok(board) => board.wanted().await.is_ok_and(|wanted| wanted.stop),
            Err(_) => false,
        }
    }

    /// The session for looking; made again if it broke.
    async fn board(&mut self) -> Result<&Board> {
        let board = match self.board.take().filter(|board| !board.session().is_closed()) {
            Some(board) => board,
            None => Board::open(&local(&self.config)).await?,
        };
        Ok(self.board.insert(board))
    }

    async fn beat(&mut self, state: &str, waiting_for: Option<&str>) {
        // Whoever looks sees that nothing was heard; the work itself fails by itself if the database is gone.
        if let Ok(board) = self.board().await
            && board.beat(state, waiting_for).await.is_err()
        {
            self.board = None;
        }
    }

    async fn beat_again(&mut self) {
        if let Ok(board) = self.board().await
            && board.beat_again().await.is_err()
        {
            self.board = None;
        }
    }

    /// It did what it should.
    fn scratch_is_well(&self) {
        if let Ok(settings) = settings(&self.config) {
            Scratch::is_well(&settings.replay.scratch);
        }
    }

    async fn well(&mut self, waiting: Option<&Waiting>) {
        self.scratch_is_well();
        let text = waiting.map(ToString::to_string);
        self.beat("waiting", text.as_deref()).await;
        self.tell_silence().await;
        let tidy = self.config.log_days > 0 && self.tidied.is_none_or(|at| at.elapsed() > DAY);
        let days = self.config.log_days;
        let Ok(board) = self.board().await else { return };
        // Trouble with the next file is told once it has lasted; until it is over, nothing is well.
        if !waiting.is_some_and(Waiting::is_trouble) {
            let _ = board.well_again().await;
        }
        if tidy && board.forget_older(days).await.is_ok() {
            self.tidied = Some(Instant::now());
        }
    }

    /// Says once that the archive is silent: it brought no segment for longer than it should.
    async fn tell_silence(&mut self) {
        let Some(sync) = &self.sync else { return };
        let (awaited, said) = sync.awaited();
        let said = said.map(str::to_owned);
        let Ok(board) = self.board().await else { return };
        let Ok(quiet) = board.looked(&awaited, said.as_deref()).await else {
            return;
        };
        let interval = self.config.archive_interval;
        let silent = self.sync.as_ref().and_then(|sync| sync.silence(interval, quiet.lasts));
        let Some(text) = silent.filter(|_| !quiet.told) else {
            return;
        };
        tracing::warn!("{text}");
        let Ok(board) = self.board().await else { return };
        if board.log(&Entry::new("warn", "archive_silent", text)).await.is_ok() {
            let _ = board.silence_is_told().await;
        }
    }

    /// Tells an error, and gives it back as it was told.
    async fn failed(&mut self, mut error: Error) -> Error {
        let at_fault = (error.code() == code::SCRATCH).then(|| settings(&self.config).ok());
        let replay = at_fault.flatten().map(|settings| settings.replay);
        if let Some(replay) = &replay {
            error = replay.had_fault(error);
        }
        tracing::error!("{error}");
        // What is stored says where things stand: it is opened anew.
        let under_way = self.sync.take().map(|sync| sync.under_way()).unwrap_or_default();
        let hours = self.config.metric_hours;
        if let Ok(board) = self.board().await {
            let _ = board.beat("failed", None).await;
            if board.failed(&error, under_way, hours).await.is_err() {
                self.board = None;
            }
        }
        if let Some(replay) = replay.filter(ReplayConfig::is_hopeless) {
            self.rebuild_scratch(&replay).await;
        }
        error
    }

    /// It holds nothing that could not be made again from the base backup and the archive.
    async fn rebuild_scratch(&mut self, replay: &ReplayConfig) {
        let done = Scratch::discard(&replay.scratch).await;
        let entry = match &done {
            Ok(()) => {
                Scratch::is_well(&replay.scratch);
                Entry::new(
                    "warn",
                    "scratch_rebuilt",
                    "the scratch server is made again from the base backup",
                )
            }
            Err(error) => Entry::of_error("error", "scratch_rebuilt", error),
        };
        tracing::warn!("{}", entry.message);
        if let Ok(board) = self.board().await {
            let _ = board.log(&entry).await;
        }
    }

    fn pause_after(&self, error: &Error, faults: u32) -> Duration {
        let growing = LONGEST_PAUSE.min(Duration::from_secs(1 << faults.min(6)));
        match error.kind().is_transient() || error.code() == code::SCRATCH {
            true => growing.min(self.config.frequency),
            // Somebody has to do something first; it is looked for as often as for new files.
            false => self.config.frequency,
        }
    }

    async fn end(mut self) -> Result<()> {
        match self.sync.take() {
            Some(sync) => sync.close().await?,
            // What held it went with a fault; it runs on, for whoever would have opened it again.
            None => {
                Scratch::stop_left(&settings(&self.config)?.replay.scratch).await?;
            }
        }
        let board = self.board().await?;
        let mut entry = Entry::new("info", "stopped", format!("pid {} ended", std::process::id()));
        entry.to = board.applied().await?;
        board.log(&entry).await?;
        board.stopped().await
    }
}
