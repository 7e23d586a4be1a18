//! What may be said on the command line.

use crate::config::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use synctool_pgwal::Lsn;

/// Keeps tables in one place equal to tables in another.
#[derive(Debug, Parser)]
#[command(
    name = "synctool",
    version,
    about = "Keeps tables in one place equal to tables in another: by query, by log or by file, resumable, verified.",
    after_help = "Examples:
  synctool copy sqlite:shop.db orders orders.csv orders       copy one table, no files needed
  synctool init postgresql://me@db/shop orders sqlite:x.db    write a pipeline from the live catalog
  synctool doctor orders.yaml                                 check every prerequisite, with fixes
  synctool plan orders.yaml                                   what a run would do
  synctool run orders.yaml                                    do it; again after any interruption
  synctool verify orders.yaml                                 prove that both ends hold the same
  synctool cdc status shop_log.yaml                           how far one that follows a log is
  synctool datasync status                                    the same of Data Sync (archived WAL)

Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 differences found, 4 refused by policy,
5 transient (retry), 6 already running, 130 interrupted (state saved).",
    subcommand_required = true,
    arg_required_else_help = true,
    propagate_version = true
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) globals: Globals,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What every command understands.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Globals {
    /// How results are printed on stdout.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub(super) output: Format,
    /// No progress and no notes on stderr, only errors.
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,
    /// How log lines are printed on stderr.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub(super) log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter such as synctool=debug. Default: warn (RUST_LOG too).
    #[arg(
        long,
        global = true,
        env = "SYNCTOOL_LOG_LEVEL",
        value_name = "LEVEL",
        hide_env_values = true
    )]
    pub(super) log_level: Option<String>,
    /// Where state, logs and metrics are kept. Default: ./data
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// The global configuration. Default: ./synctool.yaml, if there is one.
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) global_config: Option<PathBuf>,
    /// The datastores file. Default: datastores.yaml beside the pipeline, or in the folder above it.
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) datastores: Option<PathBuf>,
    /// Answers yes to every question.
    #[arg(long, short, global = true)]
    pub(super) yes: bool,
    /// Partitions worked on at once. Default: 2.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(super) workers: Option<u32>,
    /// Bytes that rows on their way may take. Default: 256MiB.
    #[arg(long, global = true, value_name = "SIZE", value_parser = memory)]
    pub(super) memory: Option<u64>,
}

fn memory(text: &str) -> Result<u64, String> {
    let size: ByteSize = serde_json::from_value(text.into()).map_err(|e| e.to_string())?;
    match size.0 {
        n if n < 16 << 20 => Err("must be at least 16MiB".into()),
        n => Ok(n),
    }
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// One JSON document.
    Json,
    /// JSON, one line per item or event; a run's summary is the last line.
    Ndjson,
}

/// How log lines are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people.
    Text,
    /// JSON, one line per event.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a pipeline.
    Run(RunArgs),
    /// Copy one table without any file.
    Copy(CopyArgs),
    /// Show what a run would do; nothing is changed.
    Plan(PlanArgs),
    /// Prove that source and destination hold the same rows; exit 3 if they do not.
    Verify(VerifyArgs),
    /// Compare both ends and mend what differs.
    Repair(RepairArgs),
    /// Compare two tables of any two engines; exit 3 if they differ. Nothing is changed.
    Diff(DiffArgs),
    /// Write a pipeline and a datastores file from the live catalog.
    Init(InitArgs),
    /// Check every prerequisite, privilege and setting; each problem comes with its fix.
    Doctor(DoctorArgs),
    /// Look at configuration files.
    #[command(subcommand, arg_required_else_help = true)]
    Config(ConfigCommand),
    /// Look at what is remembered between runs, or forget it.
    #[command(subcommand, arg_required_else_help = true)]
    State(StateCommand),
    /// Look at runs of the past.
    #[command(subcommand, arg_required_else_help = true)]
    Runs(RunsCommand),
    /// Look at datastores.
    #[command(subcommand, arg_required_else_help = true)]
    Conns(ConnsCommand),
    /// Keep tables of a production PostgreSQL in a local one, from archived WAL alone.
    #[command(arg_required_else_help = true)]
    Datasync(DatasyncArgs),
    /// Logs that pipelines follow: how far they are; pause, resume, read tables again.
    #[command(subcommand, arg_required_else_help = true)]
    Cdc(CdcCommand),
    /// Look into PostgreSQL's write-ahead log: segment files or an archive.
    #[command(subcommand, arg_required_else_help = true)]
    Wal(WalCommand),
    /// Print a completion script for a shell.
    #[command(after_help = "Examples:
  synctool completions bash > ~/.local/share/bash-completion/completions/synctool
  synctool completions zsh > \"${fpath[1]}/_synctool\"")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Which pipeline.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct PipelineArg {
    /// The pipeline's file, or the name of one in ./, ./pipelines or the configured folder.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same, as an option.
    #[arg(long = "config", value_name = "FILE", conflicts_with = "file")]
    config: Option<PathBuf>,
}

impl PipelineArg {
    /// A pipeline's file or name.
    pub(super) fn of(file: PathBuf) -> Self {
        PipelineArg {
            file: Some(file),
            config: None,
        }
    }

    /// What was said.
    pub(super) fn said(&self) -> Option<&PathBuf> {
        self.file.as_ref().or(self.config.as_ref())
    }
}

/// How a run's rows are put in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FullModeArg {
    /// Swap a table that an earlier run made, merge into any other.
    Auto,
    /// The loaded table takes the place of the existing one.
    Swap,
    /// Only rows that differ are written; rows gone from the source are deleted.
    Upsert,
    /// Rows are added.
    Append,
}

/// How a run's rows are proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum VerifyArg {
    /// As many rows stored as were read.
    Count,
    /// A hash of what was read against a hash of what was stored.
    Hash,
    /// Not at all.
    None,
}

/// What a run and a copy understand.
#[derive(Debug, Clone, Args)]
pub(super) struct Doing {
    /// How rows are put in place. Default: as the pipeline says, else auto.
    #[arg(long, value_enum, value_name = "MODE")]
    pub(super) full_mode: Option<FullModeArg>,
    /// How the stored rows are proved before they are put in place. Default: hash where a table is replaced, else count.
    #[arg(long, value_enum, value_name = "HOW")]
    pub(super) verify: Option<VerifyArg>,
    /// Allow deleting more than 30 % and 1,000 rows, or everything because the source is empty.
    #[arg(long)]
    pub(super) allow_mass_delete: bool,
    /// Go on with the source's columns as they are now, where `schema_drift` refuses or waits.
    #[arg(long)]
    pub(super) accept_schema: bool,
    /// Forget an unfinished run instead of going on with it.
    #[arg(long)]
    pub(super) restart: bool,
    /// Show the plan; nothing is changed.
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  synctool run orders.yaml
  synctool run --config orders.yaml --strategy nightly --output json
  synctool run orders.yaml --dry-run
  synctool run orders.yaml --bounds '[{\"column\": \"id\", \"start\": 100, \"end\": 200}]'
  synctool run shop_log.yaml --until-caught-up

A pipeline that follows a log runs until it is stopped. A run that was stopped, killed or failed
is taken up by running the same command again: finished partitions are not done again.
Ctrl-C stops at the next boundary, a second one at once.")]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) pipeline: PipelineArg,
    /// The strategy, by name or by type. Default: the one that is likely cheapest now; the run says why.
    #[arg(long, value_name = "NAME")]
    pub(super) strategy: Option<String>,
    /// Only rows inside these bounds, as JSON: '[{"column": "id", "start": 100, "end": 200}]' (end not included; either
    /// may be left out) or '[{"column": "region", "value": ["eu", "us"]}]'; "null": true names rows without a value, alone
    /// or beside these. Rows outside stay as they are, nothing is deleted.
    #[arg(long, value_name = "JSON")]
    pub(super) bounds: Option<String>,
    /// Follow a log to where it ends now, once every table is loaded, and stop there.
    #[arg(long)]
    pub(super) until_caught_up: bool,
    /// Mend by difference. A log that is lost or of another server is followed anew, and every table is compared and
    /// made equal while its log goes on; without a log it is what `synctool repair` does.
    #[arg(long)]
    pub(super) repair: bool,
    #[command(flatten)]
    pub(super) doing: Doing,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  synctool verify orders.yaml
  synctool verify orders.yaml --keys 100 --output json

Both ends are compared by hashes of blocks of rows, computed inside the databases where they can;
only blocks that differ are looked at row by row. Rows that changed after the last delta are told
apart: they wait for the next one.
Exit codes: 0 equal, 3 different.")]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    pub(super) pipeline: PipelineArg,
    /// The strategy whose stages rows pass and whose range is compared. Default: the whole table, by the stages of the first.
    #[arg(long, value_name = "NAME")]
    pub(super) strategy: Option<String>,
    /// Keys of differing rows to print.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(super) keys: usize,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  synctool repair orders.yaml --dry-run
  synctool repair orders.yaml

Rows that differ are written, missing ones inserted, and those that the source does not have
deleted (within the guard against mass deletes). --dry-run shows what would be mended, as
`synctool verify` does.")]
pub(super) struct RepairArgs {
    #[command(flatten)]
    pub(super) pipeline: PipelineArg,
    /// The strategy whose stages rows pass and whose range is mended. Default: the whole table, by the stages of the first.
    #[arg(long, value_name = "NAME")]
    pub(super) strategy: Option<String>,
    /// Allow deleting more than 30 % and 1,000 rows, or everything because the source is empty.
    #[arg(long)]
    pub(super) allow_mass_delete: bool,
    /// Show what differs; nothing is changed.
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  synctool diff postgresql://me@db/shop orders sqlite:copy.db orders
  synctool diff orders.csv orders postgresql://me@db/shop public.orders --key id")]
pub(super) struct DiffArgs {
    /// One side.
    #[arg(value_name = "SRC_URI")]
    pub(super) source: String,
    /// Its table.
    #[arg(value_name = "SRC_TABLE")]
    pub(super) source_table: String,
    /// The other side.
    #[arg(value_name = "DST_URI")]
    pub(super) destination: String,
    /// Its table. Default: the name of the first.
    #[arg(value_name = "DST_TABLE")]
    pub(super) destination_table: Option<String>,
    /// Only these columns.
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    pub(super) columns: Vec<String>,
    /// The columns that identify a row. Default: the first side's primary key.
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    pub(super) key: Vec<String>,
    /// Keys of differing rows to print.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(super) keys: usize,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  synctool copy sqlite:shop.db orders postgresql://me@localhost/shop orders
  synctool copy postgresql://me@db/shop public.orders sqlite:copy.db orders --columns id,total
  synctool copy orders.csv orders sqlite:shop.db orders --key id --save orders.yaml

A password may stand in the URI, but better in a pipeline as ${NAME}: --save writes one.
Connections: postgresql://USER:PASSWORD@HOST:PORT/DATABASE,
mysql://USER:PASSWORD@HOST:PORT/DATABASE, sqlite:FILE, duckdb:FILE, csv:FILE_OR_FOLDER,
parquet:FILE_OR_FOLDER, or a path that ends in .csv, .parquet, .db, .sqlite or .duckdb.")]
pub(super) struct CopyArgs {
    /// Where rows come from.
    #[arg(value_name = "SRC_URI")]
    pub(super) source: String,
    /// The table to read.
    #[arg(value_name = "SRC_TABLE")]
    pub(super) source_table: String,
    /// Where rows go.
    #[arg(value_name = "DST_URI")]
    pub(super) destination: String,
    /// The table to write; made if it is missing. Default: the name of the source's.
    #[arg(value_name = "DST_TABLE")]
    pub(super) destination_table: Option<String>,
    /// Only these columns.
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    pub(super) columns: Vec<String>,
    /// The columns that identify a row. Default: the source's primary key.
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    pub(super) key: Vec<String>,
    /// Also write the pipeline to a file; passwords become ${NAME}.
    #[arg(long, value_name = "FILE")]
    pub(super) save: Option<PathBuf>,
    #[command(flatten)]
    pub(super) doing: Doing,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  synctool plan orders.yaml

Shows the strategy and why, the partitions, each column's type at both ends and how faithfully it
arrives, how the rows are put in place, and the SQL with its locks.")]
pub(super) struct PlanArgs {
    #[command(flatten)]
    pub(super) pipeline: PipelineArg,
    /// The strategy, by name or by type.
    #[arg(long, value_name = "NAME")]
    pub(super) strategy: Option<String>,
    /// How rows are put in place.
    #[arg(long, value_enum, value_name = "MODE")]
    pub(super) full_mode: Option<FullModeArg>,
    /// How the stored rows are proved.
    #[arg(long, value_enum, value_name = "HOW")]
    pub(super) verify: Option<VerifyArg>,
    /// Plan as if an unfinished run were forgotten.
    #[arg(long)]
    pub(super) restart: bool,
    /// Plan as a run with --repair would.
    #[arg(long)]
    pub(super) repair: bool,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  synctool init postgresql://me:secret@db/shop public.orders sqlite:copy.db --dir shop
  cd shop && synctool run orders.yaml

Writes datastores.yaml and TABLE.yaml; passwords become ${NAME}.
Existing files are kept unless --yes.")]
pub(super) struct InitArgs {
    /// Where rows come from.
    #[arg(value_name = "SRC_URI")]
    pub(super) source: String,
    /// The table to read.
    #[arg(value_name = "TABLE")]
    pub(super) source_table: String,
    /// Where rows go.
    #[arg(value_name = "DST_URI")]
    pub(super) destination: String,
    /// The table to write. Default: the name of the source's.
    #[arg(value_name = "DST_TABLE")]
    pub(super) destination_table: Option<String>,
    /// The folder to write to; made if it is missing.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(super) dir: PathBuf,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  synctool doctor orders.yaml
  synctool doctor postgresql://me@db/shop

Exits 1 if anything is not as it must be.")]
pub(super) struct DoctorArgs {
    /// A pipeline's file or name, or a connection URI. Default: every pipeline in this folder.
    #[arg(value_name = "FILE_OR_URI")]
    pub(super) what: Option<String>,
    /// The same, as an option.
    #[arg(long = "config", value_name = "FILE", conflicts_with = "what")]
    pub(super) config: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check a pipeline file and all it refers to; every mistake is told with its place.
    #[command(after_help = "Example:\n  synctool config validate orders.yaml")]
    Validate {
        /// The pipeline's file.
        #[command(flatten)]
        pipeline: PipelineArg,
    },
    /// Show a pipeline as it is understood: every value with its origin, secrets masked. Without a file, what holds for all.
    #[command(after_help = "Examples:\n  synctool config show orders.yaml\n  synctool config show")]
    Show {
        /// The pipeline's file.
        #[command(flatten)]
        pipeline: PipelineArg,
    },
    /// List the pipelines of a folder.
    #[command(after_help = "Example:\n  synctool config list --config-dir ./pipelines")]
    List {
        /// The folder. Default: the configured one (./pipelines), or this folder where there is none.
        #[arg(long, value_name = "DIR")]
        config_dir: Option<PathBuf>,
    },
    /// Write a pipeline of an older form in the current one; without a target it is printed.
    #[command(after_help = "Examples:
  synctool config migrate old.yaml --to new.yaml
  synctool config migrate old.yaml --in-place

Comments and the layout are left behind. Secrets that are written out in the file become variables,
but with --in-place they stay.")]
    Migrate {
        /// The pipeline's file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The file to write; it must not be there yet.
        #[arg(long, value_name = "FILE", conflicts_with = "in_place")]
        to: Option<PathBuf>,
        /// Replace the file itself.
        #[arg(long)]
        in_place: bool,
    },
    /// Print the JSON Schema of a kind of file, for editors.
    #[command(after_help = "Example:
  synctool config schema > pipeline.schema.json
  and in the first line of a pipeline:  # yaml-language-server: $schema=pipeline.schema.json")]
    Schema {
        /// The kind of file.
        #[arg(value_enum, default_value_t = SchemaArg::Pipeline)]
        of: SchemaArg,
    },
}

/// The files that have a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum SchemaArg {
    /// A pipeline.
    Pipeline,
    /// A datastores file.
    Datastores,
    /// The global configuration.
    Global,
}

#[derive(Debug, Subcommand)]
pub(super) enum StateCommand {
    /// Show what is remembered of a pipeline, or of all.
    #[command(after_help = "Examples:\n  synctool state show\n  synctool state show orders")]
    Show {
        /// The pipeline, by name or file.
        pipeline: Option<String>,
        /// Only this strategy.
        #[arg(long, value_name = "NAME")]
        strategy: Option<String>,
    },
    /// Forget an unfinished run, at the destination too, and the watermark: the next delta compares or loads everything.
    /// Shows what would be forgotten and asks.
    #[command(after_help = "Example:
  synctool state reset orders.yaml

The next run starts over. Rows at the destination stay. Without a terminal, --yes is needed.")]
    Reset {
        /// The pipeline, by file or name.
        pipeline: String,
        /// Only this strategy.
        #[arg(long, value_name = "NAME")]
        strategy: Option<String>,
    },
    /// Forget old runs.
    #[command(after_help = "Example:\n  synctool state cleanup --days 30")]
    Cleanup {
        /// Runs that ended longer ago.
        #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=36500))]
        days: u32,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum RunsCommand {
    /// List runs, the newest first.
    #[command(after_help = "Example:\n  synctool runs list orders --limit 5")]
    List {
        /// Only this pipeline's.
        pipeline: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show a run with its partitions.
    #[command(after_help = "Example:\n  synctool runs show 20260115_140000_1a2b3c")]
    Show {
        /// The run's id; `latest` is the newest of all.
        run_id: String,
    },
    /// Print a run's log.
    #[command(after_help = "Example:\n  synctool runs logs latest")]
    Logs {
        /// The run's id; `latest` is the newest of all.
        run_id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ConnsCommand {
    /// List the configured datastores.
    #[command(after_help = "Example:\n  synctool conns list --datastores datastores.yaml")]
    List,
    /// Open datastores, and tell how long it took.
    #[command(after_help = "Examples:\n  synctool conns test\n  synctool conns test shop sqlite:copy.db")]
    Test {
        /// Names or connection URIs. Default: all that are configured.
        #[arg(value_name = "NAME_OR_URI")]
        which: Vec<String>,
    },
    /// List the tables of a datastore, or the columns of one table.
    #[command(after_help = "Examples:
  synctool conns discover shop
  synctool conns discover postgresql://me@db/shop --schema public
  synctool conns discover sqlite:shop.db orders")]
    Discover {
        /// A name or a connection URI.
        datastore: String,
        /// A table, to see its columns.
        table: Option<String>,
        /// Only this schema.
        #[arg(long, value_name = "SCHEMA")]
        schema: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum CdcCommand {
    /// Show how far logs are: in bytes, in seconds, and per table. Exit 4 if a log cannot go on where it stands.
    #[command(after_help = "Examples:
  synctool cdc status shop_log.yaml
  synctool cdc status --output json

Without a pipeline, all of this folder that follow a log.
A log that nobody follows is looked at too.")]
    Status {
        #[command(flatten)]
        pipeline: PipelineArg,
    },
    /// Hold a log still: its source keeps what comes meanwhile. Holds for later runs too.
    #[command(after_help = "Examples:
  synctool cdc pause shop_log.yaml
  synctool cdc pause shop_log.yaml --backfill")]
    Pause {
        #[command(flatten)]
        pipeline: PipelineArg,
        /// Only chunks of tables: the log goes on.
        #[arg(long)]
        backfill: bool,
    },
    /// Let a log go on that was paused.
    #[command(after_help = "Example:\n  synctool cdc resume shop_log.yaml")]
    Resume {
        #[command(flatten)]
        pipeline: PipelineArg,
    },
    /// Read a table again and make it equal, while its log and the other tables go on.
    #[command(after_help = "Examples:
  synctool cdc refresh shop_log.yaml users
  synctool cdc refresh shop_log.yaml public.visit --keys '[[1, \"corner\"], [2, \"corner\"]]' --wait
  synctool cdc refresh shop_log.yaml users --cancel
  synctool cdc refresh shop_log.yaml users --dry-run

Rows that differ are written, missing ones inserted, and those that the source does not have
deleted. The request is heard within a second by the process that follows the log, or waits for
the next run.")]
    Refresh {
        /// The pipeline's file or name.
        #[arg(value_name = "FILE")]
        pipeline: PathBuf,
        /// The table, as it is called at the source.
        #[arg(value_name = "TABLE")]
        table: String,
        /// Only the rows of these keys: 1,2,3, or a JSON list of keys where a key has several columns.
        #[arg(long, value_name = "KEYS")]
        keys: Option<String>,
        /// Give up what is still to be read of the table; what was read stays.
        #[arg(long, conflicts_with = "keys")]
        cancel: bool,
        /// Wait until it is done.
        #[arg(long, conflicts_with = "cancel")]
        wait: bool,
        /// Show what would be asked; nothing is asked.
        #[arg(long, conflicts_with = "wait")]
        dry_run: bool,
    },
    /// List the replication slots of a source, with what they keep of its log.
    #[command(after_help = "Examples:
  synctool cdc slots shop_log.yaml
  synctool cdc slots postgresql://me@db/shop")]
    Slots {
        /// A pipeline's file or name, or a connection URI.
        #[arg(value_name = "FILE_OR_URI")]
        what: Option<String>,
    },
}

/// Which part of which log.
#[derive(Debug, Clone, Args)]
pub(super) struct WalRange {
    /// Segment files, or directories that hold some: pg_wal or an archive, compressed or not.
    #[arg(value_name = "PATH", required = true)]
    pub(super) paths: Vec<PathBuf>,
    /// From this LSN on, such as 0/3000028.
    #[arg(long, value_name = "LSN", value_parser = super::wal::lsn)]
    pub(super) from: Option<Lsn>,
    /// Up to this LSN, not included.
    #[arg(long, value_name = "LSN", value_parser = super::wal::lsn)]
    pub(super) to: Option<Lsn>,
}

#[derive(Debug, Subcommand)]
pub(super) enum WalCommand {
    /// Print every record: what it does to rows, files and transactions.
    #[command(after_help = "Examples:
  synctool wal dump /archive/000000010000000000000003.gz
  synctool wal dump /archive --from 0/3000028 --to 0/4000000 --relation 16384
  synctool wal dump /archive --xid 735 --output ndjson

PostgreSQL 15 to 18, every segment size; plain, gzip, zstd, lz4, bzip2 and xz files, told by their
content.")]
    Dump {
        #[command(flatten)]
        range: WalRange,
        /// Only what touches this file: its number, or tablespace/database/number.
        #[arg(long, value_name = "FILE")]
        relation: Option<String>,
        /// Only this transaction or subtransaction.
        #[arg(long, value_name = "XID")]
        xid: Option<u32>,
        /// Only this resource manager, such as Heap or Transaction.
        #[arg(long, value_name = "NAME")]
        rmgr: Option<String>,
        /// At most so many records.
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
    /// Count records and bytes per resource manager.
    #[command(after_help = "Examples:
  synctool wal stats /archive
  synctool wal stats /var/lib/postgresql/18/main/pg_wal --by-kind")]
    Stats {
        #[command(flatten)]
        range: WalRange,
        /// Count per kind of record.
        #[arg(long)]
        by_kind: bool,
    },
}

/// Data Sync.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  export DATA_SYNC_CONFIG=/etc/synctool/datasync.toml
  synctool datasync doctor && synctool datasync add-tables orders items && synctool datasync start
  synctool datasync status

Production is never contacted. docs/data-sync.md leads from nothing to a running service.")]
pub(super) struct DatasyncArgs {
    /// The TOML file. Default: what DATA_SYNC_CONFIG names.
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: DatasyncCommand,
}

/// How long to wait for the service.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Patience {
    /// Seconds to wait for the service to do it; 0 leaves the request and does not wait.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(super) wait: u64,
}

#[derive(Debug, Clone, Subcommand)]
pub(super) enum DatasyncCommand {
    /// Start the service; the first start makes the scratch server and copies the selected tables.
    #[command(
        after_help = "Example:\n  synctool datasync start\n  synctool datasync start --foreground    for systemd and containers"
    )]
    Start {
        /// Stay in the foreground.
        #[arg(long)]
        foreground: bool,
    },
    /// Apply everything that is archived, and end.
    #[command(after_help = "Example:\n  synctool datasync run-once")]
    RunOnce,
    /// Stop the service at the end of its batch.
    #[command(after_help = "Examples:\n  synctool datasync stop\n  synctool datasync stop --wait 0")]
    Stop {
        #[command(flatten)]
        patience: Patience,
    },
    /// Show the service, its place, the archive and every table. Exit 0: it runs and all is well; 1: something is to be done.
    #[command(after_help = "Examples:\n  synctool datasync status\n  synctool datasync status --all --output json")]
    Status {
        /// Also tables that are not synced, with production's operations of this month.
        #[arg(long)]
        all: bool,
    },
    /// Copy all selected tables anew from the scratch server; they can be read all the time.
    #[command(after_help = "Examples:
  synctool datasync clear
  synctool datasync clear --dry-run
  synctool datasync clear --rebuild    anew from the base backup; the service must be stopped")]
    Clear {
        /// Also forget the place: the next start begins anew from the base backup.
        #[arg(long)]
        rebuild: bool,
        /// Show what would be copied and forgotten; nothing is done.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        patience: Patience,
    },
    /// Copy tables anew from the scratch server, where they stand; the way out for a table that is paused.
    #[command(
        after_help = "Examples:\n  synctool datasync resync public.orders\n  synctool datasync resync public.orders --dry-run"
    )]
    Resync {
        /// The tables.
        #[arg(value_name = "TABLE", required = true)]
        tables: Vec<String>,
        /// Show what would be copied; nothing is asked.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        patience: Patience,
    },
    /// Select tables: they are copied and kept equal from then on.
    #[command(after_help = "Example:\n  synctool datasync add-tables orders shop.items")]
    AddTables {
        /// The tables; without a schema they are in public. A partitioned table means all its partitions.
        #[arg(value_name = "TABLE", required = true)]
        tables: Vec<String>,
        #[command(flatten)]
        patience: Patience,
    },
    /// Follow tables no more; their rows stay.
    #[command(after_help = "Example:\n  synctool datasync remove-tables orders")]
    RemoveTables {
        /// The tables.
        #[arg(value_name = "TABLE", required = true)]
        tables: Vec<String>,
        #[command(flatten)]
        patience: Patience,
    },
    /// Prove that the local tables are production's as of the stored place; exit 3 if one is not.
    #[command(after_help = "Example:\n  synctool datasync verify")]
    Verify {
        #[command(flatten)]
        patience: Patience,
    },
    /// Print what was done: data_sync_logs.
    #[command(
        after_help = "Examples:\n  synctool datasync logs --limit 20\n  synctool datasync logs --level error --table orders"
    )]
    Logs {
        /// At most so many lines, the newest.
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
        /// Only this table's.
        #[arg(long, value_name = "TABLE")]
        table: Option<String>,
        /// Only lines as bad as this.
        #[arg(long, value_enum, value_name = "LEVEL")]
        level: Option<LevelArg>,
    },
    /// Print records added, updated and deleted per table and period: data_sync_metrics.
    #[command(after_help = "Example:\n  synctool datasync metrics --period week --table orders")]
    Metrics {
        /// At most so many lines, the newest.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
        /// Only this table's; * is the whole.
        #[arg(long, value_name = "TABLE")]
        table: Option<String>,
        /// Only this period.
        #[arg(long, value_enum, value_name = "PERIOD")]
        period: Option<PeriodArg>,
    },
    /// Check every prerequisite; each problem comes with its fix.
    #[command(after_help = "Example:\n  synctool datasync doctor --config /etc/synctool/datasync.toml")]
    Doctor,
}

/// How bad a line of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LevelArg {
    /// Everything.
    Info,
    /// What somebody should look at.
    Warn,
    /// What stopped something.
    Error,
}

/// A period of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PeriodArg {
    /// METRIC_FREQ hours.
    Window,
    /// An ISO week.
    Week,
    /// A calendar month.
    Month,
}
