use std::io::Read;
use std::process::Command;

fn servers(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_testkit-servers"))
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_command_finds_the_servers_and_its_exit_code_is_passed_on() {
    let script = "echo $SYNCTOOL_TEST_REDIS_URL; echo $SYNCTOOL_TEST_PG18_URL; exit 7";
    let (code, stdout, stderr) = servers(&["pg18", "redis", "--", "sh", "-c", script]);
    assert_eq!(code, Some(7), "{stderr}");
    let (redis, postgres) = stdout.split_once('\n').unwrap();
    assert!(redis.starts_with("redis://127.0.0.1:"), "{redis}");
    assert!(postgres.starts_with("postgres://postgres@127.0.0.1:"), "{postgres}");
    let port: u16 = redis.trim_end_matches('/').rsplit_once(':').unwrap().1.parse().unwrap();
    assert!(
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err(),
        "the server goes with the command"
    );
}

#[test]
fn an_unknown_server_is_refused_by_name() {
    let (code, _, stderr) = servers(&["oracle", "--", "true"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("no server is called oracle"), "{stderr}");
}

#[test]
fn duckdbs_library_is_there() {
    let mut start = [0; 4];
    std::fs::File::open(synctool_testkit::libduckdb())
        .unwrap()
        .read_exact(&mut start)
        .unwrap();
    assert_eq!(&start, b"\x7fELF");
}
