//! How a server is reached, trusted, and what is said when it is not.

use super::*;
use synctool_connectors::mysql::SslMode;
use synctool_core::error::code;
use synctool_testkit::proxy::Mode;
use synctool_testkit::{Authority, FaultProxy};

async fn error(config: MysqlConfig) -> synctool_core::error::Error {
    let e = Mysql::open(config).unwrap().greet().await.unwrap_err();
    assert!(!e.to_string().contains("sesame"), "{e}");
    assert!(e.next_step().is_some(), "{e} has no next step");
    e
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_to_be_refused_has_its_code() {
    let db = Db::new().await;
    let name = db.database.name();
    db.sql(&format!(
        "CREATE USER 'u_{name}'@'%' IDENTIFIED BY 'sesame'; CREATE TABLE t (id int PRIMARY KEY); \
         CREATE TABLE other (id int PRIMARY KEY); GRANT SELECT ON {name}.other TO 'u_{name}'@'%'"
    ));
    let mut ours = config(name);
    ours.user = format!("u_{name}");
    ours.password = Some("sesame".into());
    let mut wrong = ours.clone();
    wrong.password = Some("sesame street".into());
    assert_eq!(error(wrong).await.code(), code::AUTH_FAILED);
    assert_eq!(error(config("no_such_database")).await.code(), code::DATABASE_MISSING);
    let mut closed = config(name);
    closed.port = synctool_testkit::Port::free().number();
    assert_eq!(error(closed).await.code(), code::SERVER_UNREACHABLE);
    let mysql = Mysql::open(ours).unwrap();
    let table = TableId::bare("othr");
    let e = mysql.source().describe(&table).await.unwrap_err();
    assert_eq!(e.code(), code::TABLE_MISSING);
    assert!(e.to_string().contains("other"), "{e}");
    let spec = ReadSpec::all(TableId::bare("t"), &[]);
    let e = read_spec(mysql.source().as_ref(), &spec, Slice::All).await.unwrap_err();
    assert_eq!(e.code(), code::PERMISSION, "{e}");
    let findings = mysql
        .source()
        .examine(&[TableId::bare("other"), TableId::bare("t")])
        .await;
    let missing = findings.iter().find(|f| f.what.contains("PROCESS")).unwrap();
    assert!(!missing.ok && missing.fix.contains("GRANT PROCESS"), "{missing:?}");
    let findings = mysql
        .destination()
        .await
        .unwrap()
        .examine(&[TableId::bare("other")])
        .await;
    let missing = findings.iter().find(|f| f.what.contains("rights in")).unwrap();
    assert!(!missing.ok && missing.fix.contains("INSERT"), "{missing:?}");
    let e = mysql
        .destination()
        .await
        .unwrap()
        .prepare(plan("new", &conformance_schema(), Publish::Create))
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::PERMISSION, "{e}");
    db.sql(&format!("DROP USER 'u_{name}'@'%'"));
}

fn conformance_schema() -> TableSchema {
    synctool_core::testing::rows::text_schema(&["id", "name"], 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_examined_and_fine_for_the_superuser() {
    let db = Db::new().await;
    db.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let table = TableId::bare("t");
    for finding in db
        .source()
        .examine(std::slice::from_ref(&table))
        .await
        .into_iter()
        .chain(db.destination.examine(&[table]).await)
    {
        assert!(finding.ok, "{finding:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_server_is_worth_another_try() {
    let db = Db::new().await;
    db.sql(
        "CREATE TABLE t (id int PRIMARY KEY, name varchar(200)); \
            INSERT INTO t SELECT seq, repeat('x', 200) FROM seq_1_to_50000",
    );
    let proxy = FaultProxy::to(MariaDb::shared().port());
    let mut through = config(db.database.name());
    through.port = proxy.port();
    let mysql = Mysql::open(through.clone()).unwrap();
    let source = mysql.source();
    let schema = source.describe(&TableId::bare("t")).await.unwrap();
    let spec = ReadSpec::all(TableId::bare("t"), &schema.columns);
    proxy.set(Mode::CutToClient(1 << 20));
    let e = read_spec(source.as_ref(), &spec, Slice::All).await.unwrap_err();
    assert_eq!(e.code(), code::CONNECTION_LOST, "{e}");
    proxy.set(Mode::Hang);
    through.connect_timeout = std::time::Duration::from_millis(300);
    let e = error(through).await;
    assert_eq!(e.code(), code::SERVER_UNREACHABLE, "{e}");
    proxy.set(Mode::Forward);
    assert_eq!(
        read_spec(source.as_ref(), &spec, Slice::All).await.unwrap().len(),
        50_000
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_fell_silent_is_not_used_again() {
    let db = Db::new().await;
    db.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let proxy = FaultProxy::to(MariaDb::shared().port());
    let mut through = config(db.database.name());
    through.port = proxy.port();
    through.connect_timeout = std::time::Duration::from_millis(700);
    let source = Mysql::open(through).unwrap().source();
    for _ in 0..2 {
        source.describe(&TableId::bare("t")).await.unwrap();
        proxy.set(Mode::Hang);
        let limit = std::time::Duration::from_secs(20);
        let e = tokio::time::timeout(limit, source.describe(&TableId::bare("t"))).await;
        let e = e.expect("nobody waits for a silent session").unwrap_err();
        assert_eq!(e.code(), code::SERVER_UNREACHABLE, "{e}");
        proxy.set(Mode::Forward);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_is_a_conflict() {
    let db = Db::new().await;
    let schema = conformance_schema();
    let p = db
        .destination
        .prepare(plan("t", &schema, Publish::Direct))
        .await
        .unwrap();
    let other = db
        .destination
        .prepare(Plan {
            pipeline: "other".into(),
            ..plan("t", &schema, Publish::Direct)
        })
        .await
        .unwrap();
    let (mut a, mut b) = (sink(&db, &p).await, sink(&db, &other).await);
    a.write(inserts("t", &schema, &[row(&["1", "a"])])).await.unwrap();
    b.write(inserts("t", &schema, &[row(&["2", "b"])])).await.unwrap();
    let (first, second) = ([row(&["2", "a"])], [row(&["1", "b"])]);
    let (x, y) = tokio::join!(
        a.write(inserts("t", &schema, &first)),
        b.write(inserts("t", &schema, &second))
    );
    let e = x.err().or(y.err()).expect("one of both loses");
    assert_eq!(e.code(), code::CONFLICT, "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_is_reached_by_prefer_only() {
    let db = Db::new().await;
    let mut c = config(db.database.name());
    assert_eq!(c.sslmode, SslMode::Prefer);
    let (name, encrypted) = Mysql::open(c.clone()).unwrap().greet().await.unwrap();
    assert!(name.starts_with("MariaDB 10."), "{name}");
    assert!(!encrypted);
    c.sslmode = SslMode::Require;
    assert_eq!(error(c).await.code(), code::TLS_FAILED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sslmode_means_what_libpq_means() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = MariaDb::start_with_tls(&ours.localhost());
    let mut base = MysqlConfig::new("127.0.0.1", server.port(), "root", "mysql");
    let with = |mode, root: Option<&Authority>| {
        let mut c = base.clone();
        c.sslmode = mode;
        c.sslrootcert = root.map(Authority::path);
        c
    };
    for (c, encrypted) in [
        (with(SslMode::Disable, None), false),
        (with(SslMode::Prefer, None), true),
        (with(SslMode::Require, None), true),
        (with(SslMode::Require, Some(&ours)), true),
        (with(SslMode::VerifyCa, Some(&ours)), true),
        (with(SslMode::VerifyFull, Some(&ours)), true),
    ] {
        assert_eq!(
            Mysql::open(c.clone()).unwrap().greet().await.unwrap().1,
            encrypted,
            "{c:?}"
        );
    }
    for c in [
        with(SslMode::Require, Some(&theirs)),
        with(SslMode::VerifyCa, Some(&theirs)),
        with(SslMode::VerifyFull, Some(&theirs)),
        with(SslMode::VerifyFull, None),
    ] {
        assert_eq!(error(c).await.code(), code::TLS_FAILED);
    }
    base.sslrootcert = Some("/nowhere/root.pem".into());
    base.sslmode = SslMode::VerifyCa;
    assert_eq!(error(base).await.code(), code::TLS_FAILED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_verify_full_minds_the_name() {
    let authority = Authority::new();
    let server = MariaDb::start_with_tls(&authority.issue("DNS:db.example"));
    let mut c = MysqlConfig::new("127.0.0.1", server.port(), "root", "mysql");
    c.sslrootcert = Some(authority.path());
    c.sslmode = SslMode::VerifyCa;
    assert!(Mysql::open(c.clone()).unwrap().greet().await.unwrap().1);
    c.sslmode = SslMode::VerifyFull;
    assert_eq!(error(c).await.code(), code::TLS_FAILED);
}
