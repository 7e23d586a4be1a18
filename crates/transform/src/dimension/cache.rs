//! Memory in front of Redis in front of the datastore.

use super::lru::Lru;
use super::redis::RedisCache;
use super::{Key, Lookup, Rows};
use crate::spec::CacheSpec;
use async_trait::async_trait;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use synctool_core::error::Result;

/// Where looked-up keys were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LookupStats {
    /// In memory.
    pub memory: u64,
    /// In Redis.
    pub redis: u64,
    /// Asked of the datastore.
    pub source: u64,
    /// Of those, without rows.
    pub missing: u64,
    /// Times that Redis failed.
    pub redis_errors: u64,
}

/// A lookup that remembers, also what is missing.
pub struct CachedDimension<L> {
    lookup: L,
    memory: Mutex<Lru<Key, Rows>>,
    redis: Option<RedisCache>,
    ttl: Duration,
    counts: [AtomicU64; 4],
}

impl<L: Lookup> CachedDimension<L> {
    /// Puts a cache before a lookup. `fingerprint` says what the rows are of, for caches that outlive the process.
    pub fn new(lookup: L, spec: &CacheSpec, dimension: &str, fingerprint: &str) -> Result<Self> {
        let redis = spec
            .redis
            .as_ref()
            .map(|r| RedisCache::new(r, dimension, fingerprint, spec.ttl));
        Ok(CachedDimension {
            lookup,
            memory: Mutex::new(Lru::new(spec.max_size)),
            redis: redis.transpose()?,
            ttl: spec.ttl,
            counts: Default::default(),
        })
    }

    /// Where keys were found so far.
    pub fn stats(&self) -> LookupStats {
        let [memory, redis, source, missing] = self.counts.each_ref().map(|c| c.load(Ordering::Relaxed));
        LookupStats {
            memory,
            redis,
            source,
            missing,
            redis_errors: self.redis.as_ref().map_or(0, |r| r.errors.load(Ordering::Relaxed)),
        }
    }

    fn count(&self, which: usize, keys: usize) {
        self.counts[which].fetch_add(keys as u64, Ordering::Relaxed);
    }

    fn remember(&self, rows: impl Iterator<Item = (Key, Rows, Duration)>) {
        let now = Instant::now();
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        rows.for_each(|(key, rows, left)| memory.put(key, rows, now + left));
    }
}

#[async_trait]
impl<L: Lookup> Lookup for CachedDimension<L> {
    async fn fetch(&self, keys: &[Key]) -> Result<HashMap<Key, Rows>> {
        let mut found: HashMap<Key, Rows> = HashMap::new();
        let mut wanted: Vec<Key> = Vec::new();
        {
            let (mut asked, now) = (HashSet::new(), Instant::now());
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            for key in keys {
                if !asked.insert(key) {
                    continue;
                }
                match memory.get(key, now) {
                    Some(rows) => {
                        found.insert(key.clone(), rows);
                    }
                    None => wanted.push(key.clone()),
                }
            }
        }
        self.count(0, found.len());
        if let Some(redis) = &self.redis
            && !wanted.is_empty()
        {
            let there = redis.get(&wanted).await;
            self.count(1, there.len());
            wanted.retain(|k| !there.contains_key(k));
            self.remember(there.iter().map(|(k, (rows, left))| (k.clone(), rows.clone(), *left)));
            found.extend(there.into_iter().map(|(k, (rows, _))| (k, rows)));
        }
        if !wanted.is_empty() {
            let mut fetched = self.lookup.fetch(&wanted).await?;
            self.count(2, wanted.len());
            let nothing: Rows = Arc::new(Vec::new());
            let fresh: Vec<(Key, Rows)> = wanted
                .into_iter()
                .map(|key| {
                    let rows = fetched.remove(&key).unwrap_or_else(|| nothing.clone());
                    (key, rows)
                })
                .collect();
            self.count(3, fresh.iter().filter(|(_, rows)| rows.is_empty()).count());
            if let Some(redis) = &self.redis {
                redis.put(&fresh).await;
            }
            self.remember(fresh.iter().map(|(k, rows)| (k.clone(), rows.clone(), self.ttl)));
            found.extend(fresh);
        }
        Ok(found)
    }
}
