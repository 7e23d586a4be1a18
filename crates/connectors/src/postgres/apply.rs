//! Applies changes by op.
use super::client::Connection;
use super::destination::{PostgresDestination, Target};
use synctool_core::change::Event;
use synctool_core::error::{Error, Result};
use synctool_core::ledger::Applied;

pub(super) struct Applier;

impl Applier {
    pub(super) async fn open(_d: &PostgresDestination, _c: &Connection, _t: Vec<Target>) -> Result<Self> {
        Err(Error::bug("to be written"))
    }
    pub(super) async fn write(&mut self, _c: &Connection, _e: Event) -> Result<()> {
        Ok(())
    }
    pub(super) async fn finish(&mut self, _c: &Connection) -> Result<Applied> {
        Ok(Applied::default())
    }
    pub(super) fn rolled_back(&mut self) {}
}
