//! An archive in a bucket of an S3-compatible store: production's files under their own names behind a prefix, or one folder
//! deeper, in the one that is called like the first sixteen digits of its segments (so Barman keeps them). A file is asked
//! for by its name, whatever ending a compression added to it.

use super::names::Kind;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use synctool_pgwal::SegmentName;
use tokio::io::AsyncWriteExt;

/// How long the store is asked again before an error is told.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(60);
/// Names that are looked at: the first answer of a listing holds so many.
const LOOKED_AT: usize = 1000;

/// What a listing shows of a file.
enum Found {
    /// It is there.
    Object(Key),
    /// It is not, and these come behind it.
    Later(BTreeSet<SegmentName>),
}

/// Where a bucket is, and who may read it.
#[derive(Debug, Clone, Default)]
pub struct BucketConfig {
    /// `s3://bucket/prefix`.
    pub url: String,
    /// The store's address, where it is not Amazon's.
    pub endpoint: Option<String>,
    /// The region to sign for; `AWS_REGION` and us-east-1 otherwise.
    pub region: Option<String>,
    /// The access key and its secret; otherwise those of the environment (`AWS_ACCESS_KEY_ID` …) or of the machine.
    pub keys: Option<(String, String)>,
}

/// The files behind a prefix of a bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    store: Arc<AmazonS3>,
    prefix: Key,
    /// Its URL, for messages.
    url: String,
}

impl Bucket {
    /// Opens it; nothing is asked yet.
    pub fn new(config: &BucketConfig) -> Result<Self> {
        let wrong = |what: &str| {
            Error::new(code::CONFIG_URI, format!("{} {what}", config.url)).hint("write s3://bucket/prefix")
        };
        let rest = config.url.strip_prefix("s3://").ok_or_else(|| wrong("is no bucket"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(wrong("names no bucket"));
        }
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_client_options(ClientOptions::new().with_timeout(ANSWER))
            .with_retry(RetryConfig {
                retry_timeout: PATIENCE,
                ..RetryConfig::default()
            });
        if let Some(endpoint) = &config.endpoint {
            builder = builder
                .with_endpoint(endpoint)
                .with_allow_http(endpoint.starts_with("http://"));
        }
        if let Some(region) = &config.region {
            builder = builder.with_region(region);
        }
        if let Some((key, secret)) = &config.keys {
            builder = builder.with_access_key_id(key).with_secret_access_key(secret);
        }
        let store = builder.build().map_err(|e| {
            Error::new(code::CONFIG_INVALID, "the settings of the bucket do not go together")
                .at("archive", &config.url)
                .caused_by(e)
        })?;
        let prefix =
            Key::parse(prefix.trim_end_matches('/')).map_err(|e| wrong("has a prefix that is none").caused_by(e))?;
        Ok(Bucket {
            store: Arc::new(store),
            prefix,
            url: config.url.clone(),
        })
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Fetches a file by its name to a place. If there is none, these are segments that come behind it.
    pub(super) async fn fetch(&self, file: &str, to: &Path) -> Result<Option<BTreeSet<SegmentName>>> {
        let key = match self.find(file).await? {
            Found::Object(key) => key,
            Found::Later(later) => return Ok(Some(later)),
        };
        let found = match self.store.get(&key).await {
            Ok(found) => found,
            // It went since it was listed.
            Err(object_store::Error::NotFound { .. }) => return Ok(Some(BTreeSet::new())),
            Err(e) => return Err(self.error(e)),
        };
        let failed = |e: std::io::Error| super::archive::file_error(to, &e);
        let mut out = tokio::fs::File::create(to).await.map_err(failed)?;
        let mut pieces = found.into_stream();
        while let Some(piece) = pieces.try_next().await.map_err(|e| self.error(e))? {
            out.write_all(&piece).await.map_err(failed)?;
        }
        out.flush().await.map_err(failed)?;
        Ok(None)
    }

    /// The object that is a file, by its name and perhaps a compression's ending. The listing that shows that there is
    /// none shows what comes behind it, too.
    async fn find(&self, file: &str) -> Result<Found> {
        let mut later = BTreeSet::new();
        let Some(wanted) = Kind::of(file) else {
            return Ok(Found::Later(later));
        };
        let folder = match file.len() >= 24 {
            true => Some(self.prefix.clone().join(&file[..16])),
            false => None,
        };
        for folder in [Some(self.prefix.clone()), folder].into_iter().flatten() {
            // Names are listed from right before the file's own on.
            let before = folder.clone().join(&file[..file.len() - 1]);
            let listed = self.store.list_with_offset(Some(&folder), &before);
            let mut listed = listed.take(LOOKED_AT);
            while let Some(object) = listed.next().await {
                let key = object.map_err(|e| self.error(e))?.location;
                let name = key.filename().unwrap_or_default();
                let stands_here = key.prefix_matches(&folder) && key.parts_count() == folder.parts_count() + 1;
                let is_beyond = key.as_ref() > folder.clone().join(file).as_ref() && !name.starts_with(file);
                match (Kind::of(name), wanted) {
                    (Some(kind), _) if stands_here && kind == wanted => return Ok(Found::Object(key)),
                    (Some(Kind::Segment(other)), Kind::Segment(_)) if is_beyond && self.is_file(&key, name) => {
                        later.insert(other);
                    }
                    (_, Kind::Segment(_)) => {}
                    _ if is_beyond => break,
                    _ => {}
                }
            }
        }
        Ok(Found::Later(later))
    }

    /// Whether a segment stands where one is looked for.
    fn is_file(&self, key: &Key, name: &str) -> bool {
        let folder = key.parts().nth(self.prefix.parts_count());
        let depth = key.parts_count() - self.prefix.parts_count();
        depth == 1 || depth == 2 && folder.is_some_and(|folder| name.starts_with(folder.as_ref()))
    }

    fn error(&self, e: object_store::Error) -> Error {
        use object_store::Error as E;
        // A listing that is refused has no kind of its own, only the status that the store answered with.
        let answered = |status: &str| {
            let chain = std::iter::successors(Some(&e as &dyn std::error::Error), |e| e.source());
            chain.map(ToString::to_string).any(|text| text.contains(status))
        };
        let known = match &e {
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => Some(code::AUTH_FAILED),
            E::NotFound { .. } => Some(code::FILE),
            _ if answered(": 403 ") || answered(": 401 ") => Some(code::AUTH_FAILED),
            _ if answered(": 404 ") => Some(code::FILE),
            _ => None,
        };
        let error = match known {
            Some(code) if code == code::AUTH_FAILED => {
                Error::new(code, format!("the store refuses to let {} be read", self.url))
                    .hint("check access key and secret; they need the rights to list the bucket and to get its objects")
            }
            Some(code) => Error::new(code, format!("there is no bucket for {}", self.url))
                .hint("check the bucket's name, and the endpoint"),
            None => Error::new(
                code::SERVER_UNREACHABLE,
                format!("the store of {} does not answer as it should", self.url),
            )
            .hint("check the endpoint and that it can be reached from here"),
        };
        error.at("archive", &self.url).caused_by(e)
    }
}
