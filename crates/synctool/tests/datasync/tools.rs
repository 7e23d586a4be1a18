//! Production's log and backups where a backup tool keeps them, by the keys that docs/data-sync.md has for each tool.

use super::ran::Ran;
use super::{PATIENCE, World};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use synctool_testkit::{PgVersion, wait_for};
use tempfile::TempDir;

const SCHEMA: &str = "CREATE TABLE acc (id int PRIMARY KEY, n int)";
const ROWS: &str = "INSERT INTO acc SELECT g, g FROM generate_series(1, 1000) g";
const CHANGE: &str = "UPDATE acc SET n = n + 1; DELETE FROM acc WHERE id % 7 = 0;
    INSERT INTO acc SELECT max(id) + g, 1 FROM acc, generate_series(1, 100) g GROUP BY g";

/// The blocks of a tool's section, in their order.
fn recipes(tool: &str) -> Vec<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/data-sync.md");
    let page = fs::read_to_string(page).expect("docs/data-sync.md");
    let (_, section) = page.split_once(&format!("\n### {tool}\n")).expect("its section");
    let section = section.split("\n##").next().unwrap_or_default();
    let blocks = section.split("```toml\n").skip(1);
    let blocks: Vec<String> = blocks
        .filter_map(|block| Some(block.split_once("```")?.0.into()))
        .collect();
    assert_eq!(blocks.len(), 2, "one for its commands, one for its files:\n{section}");
    blocks
}

/// A production whose log and backups a tool keeps.
struct Kept {
    world: World,
    /// Everything of the tool.
    place: TempDir,
    /// What the page says, and what it is here.
    names: Vec<(&'static str, String)>,
    /// What brings archived files to where they are kept, if production's own command does not.
    brings: Option<&'static str>,
}

impl Kept {
    /// Production archives by this command, in which PLACE is the tool's folder.
    fn archiving(command: &str) -> Self {
        let place = tempfile::Builder::new().prefix("tool").tempdir().expect("a folder");
        // Production's user keeps it.
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).expect("permissions");
        let command = command.replace("PLACE", &place.path().display().to_string());
        let world = World::with(PgVersion::V15, SCHEMA, |p| p.setting("archive_command", &command));
        world.production.psql(ROWS);
        let names = vec![(
            "/var/lib/synctool/datasync",
            world.path("scratch").display().to_string(),
        )];
        Kept {
            world,
            place,
            names,
            brings: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Lets a program find the tools' configuration.
    fn knowing<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("PGBACKREST_CONFIG", self.path("pgbackrest.conf"))
            .env("HOME", self.place.path())
    }

    /// Runs a line as production's user, and gives what it printed.
    #[track_caller]
    fn tool(&self, line: &str) -> String {
        let owner = fs::metadata(self.world.production.data_directory()).expect("production's data");
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).uid(owner.uid()).gid(owner.gid());
        let ran = Ran::of(self.knowing(shell.current_dir(self.place.path())));
        assert_eq!(ran.code, 0, "{line}\n{}\n{}", ran.stdout, ran.stderr);
        ran.stdout.trim().to_owned()
    }

    /// Ends the segment and waits until the tool has it.
    #[track_caller]
    fn archived(&self) {
        let production = &self.world.production;
        let names = production.psql("SELECT pg_create_restore_point('x'); SELECT pg_walfile_name(pg_switch_wal())");
        let name = names.lines().last().unwrap_or_default();
        let has = format!("SELECT coalesce(last_archived_wal >= '{name}', false) FROM pg_stat_archiver");
        wait_for("the archive", PATIENCE, || production.psql(&has) == "t");
        if let Some(line) = self.brings {
            self.tool(line);
        }
    }

    #[track_caller]
    fn run(&self, argument: &str) {
        Ran::of(self.knowing(&mut self.world.command(&[argument]))).ok();
    }

    /// Production has other rows, and they arrive.
    #[track_caller]
    fn changes_arrive(&self) {
        self.world.production.psql(CHANGE);
        self.archived();
        self.run("run-once");
        self.world.same(&["acc"]);
    }

    /// Follows production by the keys of a recipe, from nothing, and from nothing but the stored place.
    #[track_caller]
    fn is_followed_by(&self, recipe: &str) {
        let here = |text: String, (name, here): &(&str, String)| text.replace(name, here);
        let keys = self.names.iter().fold(recipe.to_owned(), here);
        self.world
            .reconfigure("ARCHIVE_DIR = \"archive\"\nBASE_BACKUP = \"backup\"\n", &keys);
        self.world.production.psql("CHECKPOINT; INSERT INTO other VALUES (1)");
        self.archived();
        self.world.add(&["acc"]);
        self.run("doctor");
        self.run("run-once");
        self.world.same(&["acc"]);
        self.changes_arrive();
        fs::remove_dir_all(self.world.path("scratch")).expect("the scratch server");
        self.changes_arrive();
        self.run("verify");
    }
}

/// A repository with one backup, kept as these lines of pgBackRest's configuration say.
fn pgbackrest(options: &str) -> Kept {
    let mut kept = Kept::archiving("pgbackrest --config=PLACE/pgbackrest.conf --stanza=main archive-push %p");
    let (place, production) = (kept.place.path().display(), &kept.world.production);
    // It waits for the disk after each file: after many at a time, and after small ones together.
    let text = format!(
        "[global]\nrepo1-path={place}/repository\nlock-path={place}/lock\nspool-path={place}/spool\nlog-level-file=off\n\
         start-fast=y\nprocess-max=8\nrepo1-bundle=y\n{options}\n\
         [main]\npg1-path={}\npg1-port={}\npg1-socket-path={}\npg1-user=postgres\n",
        production.data_directory().display(),
        production.port(),
        production.socket_directory(),
    );
    let repository = format!("{place}/repository");
    fs::write(kept.path("pgbackrest.conf"), text).expect("pgBackRest's configuration");
    kept.tool("pgbackrest --stanza=main stanza-create");
    kept.tool("pgbackrest --stanza=main backup");
    kept.names.push(("/var/lib/pgbackrest", repository));
    kept
}

/// The log and a backup of production, where Barman keeps them.
fn barman() -> Kept {
    let incoming = "PLACE/barman/main/incoming/%f";
    let mut kept = Kept::archiving(&format!("cp %p {incoming}.tmp && mv {incoming}.tmp {incoming}"));
    let (place, production) = (kept.place.path().display(), &kept.world.production);
    let user = kept.tool("id -un");
    let server = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres",
        production.port()
    );
    let programs = production.tool("pg_basebackup");
    let text = format!(
        "[barman]\nbarman_user = {user}\nbarman_home = {place}/barman\nlog_file = {place}/barman/log\ncompression = gzip\n\
         [main]\ndescription = production\nconninfo = {server}\nstreaming_conninfo = {server}\nbackup_method = postgres\n\
         archiver = on\nimmediate_checkpoint = true\npath_prefix = {}\n",
        programs.parent().expect("a folder").display(),
    );
    let home = format!("{place}/barman");
    // It makes its folders when it first looks at a server, and takes no backup before it has a file of the log.
    fs::write(kept.path(".barman.conf"), text).expect("Barman's configuration");
    kept.tool("mkdir barman; barman check main || true");
    kept.brings = Some("barman archive-wal main");
    kept.archived();
    kept.tool("barman backup main");
    let backup = kept.tool("barman list-backup --minimal main");
    kept.names.extend([
        ("/var/lib/barman", home),
        ("chown barman", format!("chown {user}")),
        ("SCRATCH_USER = \"barman\"", format!("SCRATCH_USER = \"{user}\"")),
        ("20260101T000000", backup),
    ]);
    kept
}

#[test]
fn pgbackrest_is_followed_by_its_commands() {
    let options = "compress-type=zst\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=of-the-repository\n\
                   [global:archive-get]\narchive-async=y";
    pgbackrest(options).is_followed_by(&recipes("pgBackRest")[0]);
}

#[test]
fn the_repository_of_pgbackrest_is_read_as_it_lies() {
    pgbackrest("compress-type=lz4").is_followed_by(&recipes("pgBackRest")[1]);
}

#[test]
fn barman_is_followed_by_its_commands() {
    barman().is_followed_by(&recipes("Barman")[0]);
}

#[test]
fn the_folders_of_barman_are_read_as_they_lie() {
    barman().is_followed_by(&recipes("Barman")[1]);
}
