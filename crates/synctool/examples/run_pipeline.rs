//! A pipeline from Rust: loaded, checked, run, with progress and row accounts as values.
//!
//! `cargo run --example run_pipeline examples/quickstart/pipeline.yaml`

use std::time::Duration;
use synctool::{Pipeline, Result, RunOptions};

#[tokio::main]
async fn main() -> Result<()> {
    let file = std::env::args()
        .nth(1)
        .unwrap_or("examples/quickstart/pipeline.yaml".into());
    let pipeline = Pipeline::load(file)?;
    pipeline.check().await?;
    let run = pipeline.start(RunOptions::default()).await?;

    let progress = run.progress();
    let watch = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let rows: u64 = progress.partitions().iter().map(|p| p.rows).sum();
            tracing::info!(step = ?progress.step(), rows);
        }
    });
    let report = run.finish().await?;
    watch.abort();

    let done = report.ledger.outcome();
    let text = format!(
        "{}: {} rows read, {} inserted, {} updated, {} deleted, {} unchanged, in {:?}\n",
        report.pipeline,
        report.ledger.accounts.read.rows,
        done.inserted,
        done.updated,
        done.deleted,
        done.unchanged,
        report.duration
    );
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()).expect("stdout");
    Ok(())
}
