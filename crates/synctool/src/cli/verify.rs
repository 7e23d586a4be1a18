//! `synctool verify`, `repair` and `diff`.

use super::args::{DiffArgs, Doing, Globals, PipelineArg, RepairArgs, VerifyArgs};
use super::out::{self, Reply};
use super::signals::Interrupt;
use super::{copy, find, run};
use crate::config::{self, ColumnMapping, Columns, Datastores};
use crate::pipeline::log::LogPipeline;
use crate::pipeline::{Pipeline, VerifyOptions, VerifyReport};
use serde_json::json;
use synctool_core::error::{Error, Result, code};
use synctool_core::strategy::hash::Difference;

/// `synctool verify`.
pub(super) async fn verify(args: VerifyArgs, globals: &Globals) -> Result<Reply> {
    let pipeline = find::pipeline(&args.pipeline, globals)?;
    if pipeline.config().pipeline.log().is_some() {
        return verify_log(&pipeline, &called(&args.pipeline, &pipeline), args.keys, globals).await;
    }
    let mend = mend(&called(&args.pipeline, &pipeline), args.strategy.as_deref());
    let options = VerifyOptions {
        strategy: args.strategy,
        workers: globals.workers.map(|n| n as usize),
        keys: args.keys,
        remember: true,
    };
    Ok(reply(Box::pin(pipeline.verify(&options)).await?, Some(&mend)))
}

/// The command that mends what a comparison found.
fn mend(called: &str, strategy: Option<&str>) -> String {
    let strategy = strategy.map_or_else(String::new, |s| format!(" --strategy {s}"));
    format!("synctool repair {called}{strategy}")
}

/// What a pipeline was called by, so that it is found again by it from here; a name may be known elsewhere only.
fn called(said: &PipelineArg, pipeline: &Pipeline) -> String {
    said.said()
        .map_or_else(|| pipeline.name().to_owned(), |said| said.display().to_string())
}

/// Compares every table that a log keeps up to date. While the log is followed, what is on its way differs.
async fn verify_log(pipeline: &Pipeline, called: &str, keys: usize, globals: &Globals) -> Result<Reply> {
    let loaded = pipeline.config();
    let (plan, ..) = pipeline.stored().await?.ok_or_else(|| {
        Error::new(code::CONFIG_INVALID, "nothing was captured yet")
            .at("pipeline", pipeline.name())
            .hint(format!("synctool run {called}"))
    })?;
    let ends = &loaded.pipeline;
    let (mut text, mut tables, mut exit) = (String::new(), Vec::new(), 0);
    let by_now = LogPipeline::of(pipeline)?.columns(&plan).await?;
    for (table, columns) in plan.tables.iter().zip(by_now) {
        let (from, to) = (&table.read.table, &table.destination);
        if columns.is_empty() {
            text.push_str(&format!(
                "{from}: not compared, because its log is not followed any more\n"
            ));
            tables.push(json!({ "type": "verification", "table": from.to_string(), "status": "left out" }));
            continue;
        }
        let mut model = config::Pipeline::copy(
            pipeline.name(),
            (ends.source.datastore.as_str(), from.name.as_str()),
            (ends.destination.datastore.as_str(), to.name.as_str()),
        );
        model.source.schema = from.schema.clone().map(Into::into);
        model.destination.schema = to.schema.clone().map(Into::into);
        model
            .destination
            .control_schema
            .clone_from(&ends.destination.control_schema);
        let columns = columns.into_iter().map(|(now, name)| ColumnMapping {
            source: Some(now.into()),
            ..ColumnMapping::same(name)
        });
        model.columns = Columns::Listed(columns.collect());
        model.key = table.schema.key.iter().map(|k| k.as_str().into()).collect();
        let one = Pipeline::from_parts(model, loaded.datastores.clone(), loaded.global.clone());
        let options = VerifyOptions {
            workers: globals.workers.map(|n| n as usize),
            keys,
            remember: false,
            ..VerifyOptions::default()
        };
        let compared = reply(Box::pin(one.verify(&options)).await?, None);
        text.push_str(&compared.text);
        exit = exit.max(compared.exit);
        tables.push(compared.json);
    }
    if exit != 0 {
        text.push_str(&format!(
            "to mend a table: synctool cdc refresh {called} TABLE; to mend all of them: synctool repair {called}\n"
        ));
    }
    let status = if exit == 0 { "equal" } else { "different" };
    let json = json!({ "type": "verification", "status": status, "pipeline": pipeline.name(), "tables": tables });
    Ok(Reply::new(json, text).exit(exit))
}

/// Compares every table that a log keeps up to date and mends it, while the log goes on.
async fn repair_log(pipeline: &Pipeline, args: RepairArgs, globals: &Globals, interrupt: Interrupt) -> Result<Reply> {
    let log = LogPipeline::of(pipeline)?;
    let mut holder = None;
    if let Some((plan, ..)) = pipeline.stored().await? {
        for table in plan.tables.iter().filter(|t| !t.schema.key.is_empty()) {
            (_, holder) = log.refresh(&table.read.table.to_string(), Vec::new(), false).await?;
        }
    }
    if let Some(holder) = holder {
        let text = format!("{}: every table is compared and mended by {holder}\n", pipeline.name());
        let json = json!({ "pipeline": pipeline.name(), "state": "asked", "holder": holder.to_string() });
        return Ok(Reply::new(json, text));
    }
    let mut options = run::options(args.strategy, None, None, globals);
    (options.repair, options.until_caught_up) = (true, true);
    let doing = Doing {
        full_mode: None,
        verify: None,
        allow_mass_delete: args.allow_mass_delete,
        restart: false,
        accept_schema: false,
        dry_run: false,
    };
    Box::pin(run::go(pipeline, options, &doing, globals, interrupt)).await
}

/// `synctool repair`.
pub(super) async fn repair(args: RepairArgs, globals: &Globals, interrupt: Interrupt) -> Result<Reply> {
    let pipeline = find::pipeline(&args.pipeline, globals)?;
    if pipeline.config().pipeline.log().is_some() {
        return match args.dry_run {
            true => {
                let called = called(&args.pipeline, &pipeline);
                verify_log(&pipeline, &called, VerifyOptions::default().keys, globals).await
            }
            false => repair_log(&pipeline, args, globals, interrupt).await,
        };
    }
    if args.dry_run {
        let mend = mend(&called(&args.pipeline, &pipeline), args.strategy.as_deref());
        let options = VerifyOptions {
            strategy: args.strategy,
            workers: globals.workers.map(|n| n as usize),
            remember: false,
            ..VerifyOptions::default()
        };
        return Ok(reply(Box::pin(pipeline.verify(&options)).await?, Some(&mend)));
    }
    let mut options = run::options(args.strategy, None, None, globals);
    options.repair = true;
    let doing = Doing {
        full_mode: None,
        verify: None,
        allow_mass_delete: args.allow_mass_delete,
        accept_schema: false,
        restart: false,
        dry_run: false,
    };
    Box::pin(run::go(&pipeline, options, &doing, globals, interrupt)).await
}

/// `synctool diff`.
pub(super) async fn diff(args: DiffArgs, globals: &Globals) -> Result<Reply> {
    let (from, to) = copy::ends(&args.source, &args.destination)?;
    let other = copy::destination_table(args.destination_table, &from, &args.source_table, &to);
    let mut model = copy::model(&from, &args.source_table, &to, &other);
    if !args.columns.is_empty() {
        let columns = args.columns.iter().map(|c| ColumnMapping::same(c.trim()));
        model.columns = Columns::Listed(columns.collect());
    }
    model.key = args.key.iter().map(|k| k.trim().into()).collect();
    let datastores = Datastores::of([from, to]);
    let pipeline = Pipeline::from_parts(model, datastores, globals.loader().global()?);
    let options = VerifyOptions {
        workers: globals.workers.map(|n| n as usize),
        keys: args.keys,
        remember: false,
        ..VerifyOptions::default()
    };
    Ok(reply(Box::pin(pipeline.verify(&options)).await?, None))
}

/// What is told of a comparison. `mend` is the command that makes both ends equal.
fn reply(report: VerifyReport, mend: Option<&str>) -> Reply {
    let equal = report.is_equal();
    let c = report.compared;
    let n = out::number;
    let mut text = format!("{} ~ {}\n", report.source, report.destination);
    text.push_str(&out::card(
        &[
            "source",
            "destination",
            "differing",
            "missing",
            "too many",
            "waiting",
            "slices",
        ],
        vec![
            n(c.source),
            n(c.destination),
            n(c.differing),
            n(c.only_source),
            n(c.only_destination),
            n(report.pending),
            report.slices.to_string(),
        ],
    ));
    if let Some(scope) = &report.scope {
        text.push_str(&format!("  {scope}\n"));
    }
    if report.kept > 0 {
        let kept = n(report.kept);
        text.push_str(&format!(
            "  only at the destination and left there by `deletes: none`: {kept}\n"
        ));
    }
    if !report.missing_columns.is_empty() {
        let missing = report.missing_columns.join(", ");
        text.push_str(&format!("  the destination has no column {missing}\n"));
    }
    for different in &report.keys {
        let values: Vec<String> = report
            .key
            .iter()
            .zip(&different.key)
            .map(|(column, value)| format!("{column} = {}", value.as_deref().unwrap_or("NULL")))
            .collect();
        text.push_str(&format!("  {}: {}\n", word(different.how), values.join(", ")));
    }
    let more = c.differ().saturating_sub(report.keys.len() as u64);
    if more > 0 {
        text.push_str(&format!("  … and {} more\n", n(more)));
    }
    let told: usize = 5;
    for slice in report.different_slices.iter().take(told) {
        text.push_str(&format!("  in {slice}\n"));
    }
    if report.different_slices.len() > told {
        let more = report.different_slices.len() - told;
        text.push_str(&format!("  … and in {more} slices more\n"));
    }
    for reason in &report.reasons {
        text.push_str(&format!("{reason}\n"));
    }
    if let Some(proved) = report.proved_before.as_ref().filter(|_| !equal) {
        let through = proved
            .through
            .as_ref()
            .map_or_else(String::new, |t| format!(", up to {t}"));
        text.push_str(&format!("last proved equal at {}{through}\n", proved.at));
    }
    match (equal, mend) {
        (true, _) => match &report.verified_through {
            Some(through) => text.push_str(&format!("equal, up to {through}\n")),
            None => text.push_str("equal\n"),
        },
        (false, Some(mend)) => text.push_str(&format!("different; to mend it: {mend}\n")),
        (false, None) => text.push_str("different\n"),
    }
    let mut json = json!(report);
    json["type"] = "verification".into();
    json["status"] = if equal { "equal" } else { "different" }.into();
    Reply {
        text,
        json,
        exit: if equal { 0 } else { 3 },
        error: None,
    }
}

fn word(how: Difference) -> &'static str {
    match how {
        Difference::OnlySource => "missing at the destination",
        Difference::OnlyDestination => "only at the destination",
        Difference::Values => "differs",
    }
}
