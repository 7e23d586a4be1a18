//! The conformance suite.

use super::*;
use synctool_core::error::Result;
use synctool_core::source::{PlannedSlice, ReadContext, Reader, SliceRequest, Source, TableInfo};
use synctool_core::testing::conformance::{self, Subject};

/// The database as it is at each call; a source of ours keeps its first snapshot.
struct Now(Database);

#[async_trait::async_trait]
impl Source for Now {
    fn engine(&self) -> &'static str {
        "postgresql"
    }

    async fn tables(&self, schema: Option<&str>) -> Result<Vec<TableInfo>> {
        self.0.source().tables(schema).await
    }

    async fn describe(&self, table: &TableId) -> Result<TableSchema> {
        self.0.source().describe(table).await
    }

    async fn slices(&self, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
        self.0.source().slices(read, request).await
    }

    async fn open(
        &self,
        read: &ReadSpec,
        partition: &Partition,
        after: Option<&Position>,
        context: &ReadContext,
    ) -> Result<Box<dyn Reader>> {
        self.0.source().open(read, partition, after, context).await
    }
}

fn subject(f: &Fixture) -> Subject {
    let database = Database::open(PostgresConfig::from_url(&f.db.url()).unwrap()).unwrap();
    Subject {
        destination: Arc::new(f.destination.clone()),
        source: Arc::new(Now(database)),
        schema: Some("public".into()),
    }
}

on_servers! {
    async fn conformance_loads(version: PgVersion) {
        conformance::loads(&subject(&fixture(version).await)).await;
    }

    async fn conformance_fences(version: PgVersion) {
        conformance::fences(&subject(&fixture(version).await)).await;
    }

    async fn conformance_changes(version: PgVersion) {
        conformance::changes(&subject(&fixture(version).await)).await;
    }

    async fn conformance_types(version: PgVersion) {
        conformance::types(&subject(&fixture(version).await)).await;
    }

    async fn conformance_crashes(version: PgVersion) {
        // Half as many calls on the older one, but in a soak.
        let all = version == PgVersion::V18 || synctool_testkit::is_soak();
        let step = if all { 37 } else { 73 };
        conformance::crashes(&subject(&fixture(version).await), step).await;
    }
}
