//! An S3-compatible object store.

use std::ops::Deref;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use ring::{digest, hmac};

use crate::daemon::{Daemon, Recipe, Shared};
use crate::supervisor::Supervisor;
use crate::{Port, http, install, shared};

/// SeaweedFS on 127.0.0.1, with one user. Paths in requests may hold only characters that need no escape.
#[derive(Debug)]
pub struct S3 {
    daemon: Daemon,
}

impl Deref for S3 {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

const IDENTITIES: &str = r#"{"identities": [{"name": "test", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
  "credentials": [{"accessKey": "testkit-access", "secretKey": "testkit-secret"}]}]}"#;

impl S3 {
    /// The user's access key.
    pub const ACCESS_KEY: &str = "testkit-access";
    /// The user's secret key.
    pub const SECRET_KEY: &str = "testkit-secret";
    /// The region to sign for.
    pub const REGION: &str = "us-east-1";

    /// A private one; dropping it ends it.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn start() -> Self {
        Self::try_start().unwrap_or_else(|e| panic!("cannot start the S3 server: {e:#}"))
    }

    /// The one the whole test run shares; use buckets of your own.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn shared() -> &'static Self {
        static RUNNING: Shared<S3> = Shared::new();
        let attach = |url: &str| Self {
            daemon: Daemon::attach("s3", url),
        };
        shared::instance(&RUNNING, "s3", attach, Self::start)
    }

    fn try_start() -> Result<Self> {
        let mut supervisor = Supervisor::new("s3", None, "KILL")?;
        let identities = supervisor.write("identities.json", IDENTITIES)?;
        // Each part has an HTTP and a gRPC port; unnamed, the latter would be the former + 10000, which nobody reserved.
        let ports: Vec<Port> = (0..8).map(|_| Port::free()).collect();
        let mut arguments = vec![
            "server".to_owned(),
            format!("-dir={}", supervisor.directory().display()),
            "-ip=127.0.0.1".into(),
            "-ip.bind=127.0.0.1".into(),
            "-s3".into(),
            format!("-s3.config={}", identities.display()),
            "-volume.max=20".into(),
            "-master.volumeSizeLimitMB=64".into(),
            "-master.electionTimeout=1s".into(),
            "-master.telemetry=false".into(),
            "-s3.port.iceberg=0".into(),
            "-s3.port.lance=0".into(),
            format!("-filer.localSocket={}/filer.sock", supervisor.directory().display()),
            format!("-s3.localSocket={}/s3.sock", supervisor.directory().display()),
        ];
        let names = [
            "s3.port",
            "s3.port.grpc",
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
        ];
        let names = names.into_iter().chain(["filer.port", "filer.port.grpc"]);
        arguments.extend(
            names
                .zip(&ports)
                .map(|(name, port)| format!("-{name}={}", port.number())),
        );
        let (number, master) = (ports[0].number(), ports[2].number());
        for (part, port) in [
            ("s3", &ports[1]),
            ("master", &ports[3]),
            ("volume", &ports[5]),
            ("filer", &ports[7]),
        ] {
            for middle in ["-grpc", ""] {
                supervisor.also_remove(&format!("/tmp/seaweedfs-{part}{middle}-{}.sock", port.number()))?;
            }
        }
        let recipe = Recipe {
            program: install::cached("weed")?,
            arguments,
            // Its orderly end waits for idle connections and takes half a minute.
            stop: "KILL",
            limit: Duration::from_secs(60),
            // A signed request, and a place for an object: the interface answers before it can store anything.
            ready: Box::new(move |_| {
                signed(number, "GET", "/", b"").is_ok_and(|(status, _)| status == 200)
                    && http::request(master, "GET", "/dir/assign", &[], b"").is_ok_and(|(status, _)| status == 200)
            }),
        };
        Ok(Self {
            daemon: Daemon::start("s3", supervisor, ports, recipe)?,
        })
    }

    /// Its URL, without a bucket; buckets stand in the path.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// Creates a bucket with a unique name that starts with `prefix`.
    ///
    /// # Panics
    /// If the server refuses.
    #[track_caller]
    pub fn bucket(&self, prefix: &str) -> String {
        let name = shared::unique_name(prefix).replace('_', "-");
        match self.request("PUT", &format!("/{name}"), b"") {
            Ok((200, _)) => name,
            other => panic!("cannot create the bucket {name}: {other:?}"),
        }
    }

    /// Sends a signed request (`/bucket/key`, no query string); returns status and body.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        signed(self.port(), method, path, body)
    }
}

/// A request signed by AWS's fourth version of signatures.
fn signed(port: u16, method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
    if path.contains('?') {
        bail!("a query string is not signed here: {path}");
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let sha256 = |bytes: &[u8]| hex(digest::digest(&digest::SHA256, bytes).as_ref());
    let time = timestamp(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    let day = &time[..8];
    let mut headers = vec![
        ("host".to_owned(), format!("127.0.0.1:{port}")),
        ("x-amz-content-sha256".to_owned(), sha256(body)),
        ("x-amz-date".to_owned(), time.clone()),
    ];
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}:{value}\n"))
        .collect();
    let names = "host;x-amz-content-sha256;x-amz-date";
    let request = format!("{method}\n{path}\n\n{lines}\n{names}\n{}", headers[1].1);
    let scope = format!("{day}/{}/s3/aws4_request", S3::REGION);
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha256(request.as_bytes()));
    let sign = |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
    let mut key = sign(format!("AWS4{}", S3::SECRET_KEY).as_bytes(), day);
    for part in [S3::REGION, "s3", "aws4_request"] {
        key = sign(key.as_ref(), part);
    }
    let signature = hex(sign(key.as_ref(), &text).as_ref());
    let credential = format!("{}/{scope}", S3::ACCESS_KEY);
    let value = format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}");
    headers.push(("authorization".to_owned(), value));
    Ok(http::request(port, method, path, &headers, body)?)
}

/// `20260101T000000Z` for seconds since 1970, by the civil calendar.
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Counted from 1 March of the year 0, so that a leap day is the last of its year.
    let shifted = days + 719_468;
    let era_day = shifted % 146_097;
    let era_year = (era_day - era_day / 1_460 + era_day / 36_524 - era_day / 146_096) / 365;
    let year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
    let shifted_month = (5 * year_day + 2) / 153;
    let day = year_day - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era_year + shifted / 146_097 * 400 + u64::from(month <= 2);
    format!(
        "{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z",
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::timestamp;

    #[test]
    fn timestamps_follow_the_calendar() {
        assert_eq!(timestamp(0), "19700101T000000Z");
        assert_eq!(timestamp(951_827_696), "20000229T123456Z");
        assert_eq!(timestamp(1_798_761_599), "20261231T235959Z");
    }
}
