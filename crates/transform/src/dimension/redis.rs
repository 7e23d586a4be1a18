//! Dimension rows in Redis, shared by processes. Redis is a convenience: while it is away, rows come from the source.

use super::{Key, Row, Rows};
use crate::spec::RedisSpec;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisError, RedisResult, cmd, pipe};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use synctool_core::error::{Error, Result, code};

/// How long a Redis that failed is left alone.
const PAUSE: Duration = Duration::from_secs(5);

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_millis(1000);

/// What belongs to one run is forgotten after this, whether the run goes on or not.
const OF_A_RUN: Duration = Duration::from_secs(86_400);

/// Keys per command.
const AT_ONCE: usize = 500;

/// What stands behind a key: a form number, when it ends (so that memory in front of Redis does not keep it longer),
/// and the rows. No rows: the dimension has none.
#[derive(Serialize, Deserialize)]
struct Stored {
    v: u8,
    e: u64,
    r: Vec<Row>,
}

const FORM: u8 = 1;

pub(super) struct RedisCache {
    dimension: String,
    prefix: String,
    ttl: Duration,
    manager: ConnectionManager,
    paused: Mutex<Option<Instant>>,
    pub(super) errors: AtomicU64,
}

impl RedisCache {
    /// `fingerprint` says which table, keys and fields the rows are of: another shape never reads these.
    pub(super) fn new(spec: &RedisSpec, dimension: &str, fingerprint: &str, ttl: Duration) -> Result<Self> {
        // The URL may hold a password: it is in no message.
        let wrong = |_: RedisError| {
            Error::new(code::CONFIG_URI, "the URL of the Redis cache cannot be read")
                .hint("write redis://[user:password@]host:port/database")
        };
        let client = Client::open(spec.url.as_str()).map_err(wrong)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE))
            .set_number_of_retries(1);
        let manager = ConnectionManager::new_lazy_with_config(client, config).map_err(wrong)?;
        let prefix = format!("{}:{dimension}:{fingerprint}:", spec.prefix);
        let (prefix, ttl) = match &spec.run {
            Some(run) => (format!("{prefix}{run}:"), ttl.min(OF_A_RUN)),
            None => (prefix, ttl),
        };
        Ok(RedisCache {
            dimension: dimension.to_string(),
            prefix,
            ttl: ttl.max(Duration::from_secs(1)),
            manager,
            paused: Mutex::new(None),
            errors: AtomicU64::new(0),
        })
    }

    fn key(&self, key: &Key) -> String {
        // JSON keeps the parts of a key apart.
        format!("{}{}", self.prefix, serde_json::json!(key))
    }

    fn is_paused(&self) -> bool {
        let paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        paused.is_some_and(|until| until > Instant::now())
    }

    fn failed(&self, error: &RedisError) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + PAUSE);
        tracing::warn!(
            dimension = %self.dimension,
            kind = ?error.kind(),
            "the Redis cache does not answer; rows of the dimension come from its datastore"
        );
    }

    /// The rows of those keys that are there, and how long they are good.
    pub(super) async fn get(&self, keys: &[Key]) -> HashMap<Key, (Rows, Duration)> {
        let mut found = HashMap::new();
        if keys.is_empty() || self.is_paused() {
            return found;
        }
        let now = unix_millis();
        for keys in keys.chunks(AT_ONCE) {
            let mut command = cmd("MGET");
            for key in keys {
                command.arg(self.key(key));
            }
            let answer: RedisResult<Vec<Option<Vec<u8>>>> = command.query_async(&mut self.manager.clone()).await;
            let values = match answer {
                Ok(values) => values,
                Err(e) => {
                    self.failed(&e);
                    break;
                }
            };
            for (key, value) in keys.iter().zip(values) {
                // What cannot be read was written by somebody else; the source knows better.
                let stored = value.and_then(|v| serde_json::from_slice::<Stored>(&v).ok());
                if let Some(stored) = stored.filter(|s| s.v == FORM && s.e > now) {
                    let left = Duration::from_millis(stored.e - now).min(self.ttl);
                    found.insert(key.clone(), (Arc::new(stored.r), left));
                }
            }
        }
        found
    }

    /// Keeps rows.
    pub(super) async fn put(&self, rows: &[(Key, Rows)]) {
        if self.is_paused() {
            return;
        }
        for rows in rows.chunks(AT_ONCE) {
            let mut all = pipe();
            for (key, rows) in rows {
                let stored = Stored {
                    v: FORM,
                    e: unix_millis() + self.ttl.as_millis() as u64,
                    r: rows.to_vec(),
                };
                let Ok(value) = serde_json::to_vec(&stored) else {
                    continue;
                };
                all.cmd("SET")
                    .arg(self.key(key))
                    .arg(value)
                    .arg("PX")
                    .arg(self.ttl.as_millis() as u64)
                    .ignore();
            }
            let done: RedisResult<()> = all.query_async(&mut self.manager.clone()).await;
            if let Err(e) = done {
                self.failed(&e);
                return;
            }
        }
    }
}

fn unix_millis() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}
