//! The configuration loader against files: good ones, every kind of mistake, and noise.

use std::path::{Path, PathBuf};

use synctool::config::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config")
}
#[test]
fn x() {
    for f in ["brief/my_first_pipeline.yaml", "brief/advanced_sync_pipeline.yaml", "brief/users_row_sync.yaml", "brief/user_daily_orders_aggregate.yaml"] {
        match Loader::new().env(|_| None).global_config(Some(fixtures().join("brief/global_config.yaml"))).datastores(Some(fixtures().join("brief/datastores.yaml"))).pipeline(&fixtures().join(f)) {
            Ok(l) => println!("{}", l.to_yaml()),
            Err(e) => println!("{e}"),
        }
    }
}
