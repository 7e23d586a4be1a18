//! The library alone, as fast as it goes: everything that waits in the log of a PostgreSQL database comes as typed Arrow
//! batches, is counted and thrown away. It ends where the log ended when it was opened. `./scripts/bench` measures it.
//!
//! ```text
//! cargo run --release -p synctool-connectors --example drain -- URL SLOT PUBLICATION [stream|catch-up]
//! ```
//!
//! Slot and publication must be there. `stream` reads as a replica does, `catch-up` by SQL.

#![allow(clippy::large_futures, reason = "an example waits for one at a time")]
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Instant;
use synctool_connectors::postgres::PostgresConfig;
use synctool_connectors::postgres::log::capture::Initial;
use synctool_connectors::postgres::log::changes::Changes;
use synctool_core::change::Event;
use synctool_core::error::{Error, Result, code};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (url, slot, publication, way) = match arguments.as_slice() {
        [url, slot, publication] => (url, slot, publication, "stream"),
        [url, slot, publication, way] => (url, slot, publication, way.as_str()),
        _ => return Err(usage()),
    };
    let catch_up_bytes = match way {
        "stream" => None,
        "catch-up" => Some(0),
        _ => return Err(usage()),
    };
    let began = Instant::now();
    let mut changes = Changes::of(PostgresConfig::from_url(url)?)
        .slot(slot)
        .publication(publication)
        .initial(Initial::Skip)
        .keyless(true)
        .options(|options| {
            options.create = false;
            options.heartbeat = None;
            options.catch_up_bytes = catch_up_bytes;
            options.together = true;
            options.until_now = true;
        })
        .open(None)
        .await?;
    let (mut rows, mut batches, mut boundaries) = (0, 0_u64, 0_u64);
    while let Some(event) = changes.next().await? {
        match event {
            Event::Rows(batch) => {
                rows += batch.len();
                batches += 1;
            }
            Event::Boundary { position, .. } => {
                boundaries += 1;
                changes.acknowledge(&position).await?;
            }
            _ => {}
        }
    }
    println!(
        "{rows} rows in {batches} batches and {boundaries} boundaries, {:.3} s",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

fn usage() -> Error {
    Error::new(
        code::CONFIG_INVALID,
        "usage: drain URL SLOT PUBLICATION [stream|catch-up]",
    )
}
