//! Models of the Hugging Face hub by name, kept in the cache that all its programs share.
//!
//! Own code on an HTTP client instead of the `hf-hub` crate, which can neither time out nor be
//! stopped, and which believes a server that answers a resumed download from the beginning.

mod cache;
mod client;
mod patient;

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use self::cache::RepoCache;
use self::client::Client;
use super::files;
use crate::error::{Context, Error, Result};

/// Where the hub is, where its cache is, who is asking, and how patiently.
#[derive(Clone)]
pub struct HubConfig {
    /// The folder of the cache: `models--ORG--NAME` folders lie in it.
    pub cache: PathBuf,
    /// The address of the hub or of a mirror.
    pub endpoint: String,
    /// Sent to the hub, for models that are not public.
    pub token: Option<String>,
    /// The file that `hf auth login` keeps the token in; read if `token` is not given.
    pub token_file: Option<PathBuf>,
    /// Only what is in the cache is used.
    pub offline: bool,
    /// A file of PEM certificates that are trusted instead of the usual authorities.
    pub certificates: Option<PathBuf>,
    /// How long the hub may be silent, or a connection may take, before it is tried again.
    pub timeout: Duration,
    /// The wait before the second try; it doubles with each.
    pub retry_wait: Duration,
    /// Set by whoever wants the download to stop.
    pub cancel: Option<Arc<AtomicBool>>,
    /// Told of each download: the file's name, the bytes that are here, all its bytes.
    pub progress: Option<DownloadProgress>,
    /// Told in words what a download waits for.
    pub note: Option<DownloadNote>,
}

/// Called with a file's name, the bytes that are here, and all its bytes.
pub type DownloadProgress = Arc<dyn Fn(&str, u64, u64) + Send + Sync>;

/// Called with a sentence.
pub type DownloadNote = Arc<dyn Fn(&str) + Send + Sync>;

impl HubConfig {
    /// The configuration that environment variables give, as Hugging Face's own programs read them:
    /// HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE,
    /// HF_HUB_DOWNLOAD_TIMEOUT (seconds), SSL_CERT_FILE and REQUESTS_CA_BUNDLE. `get` reads a variable.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> HubConfig {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let user_cache = get("XDG_CACHE_HOME").map(PathBuf::from);
        let user_cache = user_cache.or_else(|| {
            get("HOME").or_else(|| get("USERPROFILE")).map(|home| Path::new(&home).join(".cache"))
        });
        let home = get("HF_HOME").map(PathBuf::from);
        let home = home.unwrap_or_else(|| user_cache.unwrap_or_default().join("huggingface"));
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let offline = get("HF_HUB_OFFLINE").is_some_and(|value| {
            ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
        });
        let seconds = get("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse::<u32>().ok());
        HubConfig {
            cache: get("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: get("HF_TOKEN"),
            token_file: Some(
                get("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from),
            ),
            offline,
            certificates: get("SSL_CERT_FILE")
                .or_else(|| get("REQUESTS_CA_BUNDLE"))
                .map(Into::into),
            timeout: Duration::from_secs(seconds.filter(|s| *s > 0).unwrap_or(10).into()),
            retry_wait: Duration::from_secs(1),
            cancel: None,
            progress: None,
            note: None,
        }
    }

    fn check_cancelled(&self) -> Result<()> {
        match &self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }

    fn say(&self, words: &str) {
        if let Some(note) = &self.note {
            note(words);
        }
    }
}

impl std::fmt::Debug for HubConfig {
    /// The token stays out of every log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubConfig")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// A model's name at the hub, and which of its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Repo {
    /// `ORG/NAME`.
    name: String,
    /// A branch, a tag or a commit.
    revision: String,
}

/// The files that may be missing: a model can be read without them.
const OPTIONAL: [&str; 3] = ["generation_config.json", "tokenizer.json", "tokenizer_config.json"];

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Returns the folder in the cache that holds the model `ORG/NAME` or `ORG/NAME@REVISION`. What is not
/// in the cache is downloaded first; a revision that is complete in the cache is used without asking the hub.
pub fn fetch(model: &str, config: &HubConfig) -> Result<PathBuf> {
    let repo = parse(model)?;
    let cache = RepoCache::new(&config.cache, &repo);
    if let Some(folder) = complete(&cache)? {
        return Ok(folder);
    }
    if config.offline {
        return Err(Error::invalid(format!(
            "hf:{model}: it is not complete in {}, and HF_HUB_OFFLINE forbids to download it",
            config.cache.display()
        )));
    }
    download_all(config, &repo, &cache).within(format!("hf:{model}"))
}

/// Splits `ORG/NAME[@REVISION]`; names that could lead elsewhere in an address or in the cache are refused.
fn parse(model: &str) -> Result<Repo> {
    let (name, revision) = model.split_once('@').unwrap_or((model, "main"));
    let plain = |part: &str| {
        let good = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
        !part.is_empty() && !part.starts_with('.') && part.len() <= 96 && part.chars().all(good)
    };
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() == 2 && parts.iter().all(|part| plain(part)) && revision.split('/').all(plain) {
        return Ok(Repo { name: name.to_owned(), revision: revision.to_owned() });
    }
    Err(Error::invalid(format!(
        "hf:{model}: wanted hf:ORG/NAME or hf:ORG/NAME@REVISION, as in hf:HuggingFaceTB/SmolLM2-135M"
    )))
}

/// The folder of a model that is complete in the cache. Weights are downloaded last: where they are,
/// everything else is too.
fn complete(cache: &RepoCache) -> Result<Option<PathBuf>> {
    let Some(config) = cache.find("config.json") else { return Ok(None) };
    let weights = match cache.find(INDEX) {
        Some(index) => shard_names(&index)?,
        None => vec![WEIGHTS.to_owned()],
    };
    let all = weights.iter().all(|name| cache.find(name).is_some());
    Ok(config.parent().filter(|_| all).map(Path::to_path_buf))
}

fn download_all(config: &HubConfig, repo: &Repo, cache: &RepoCache) -> Result<PathBuf> {
    let client = Client::new(config, repo, cache)?;
    let first = client.required("config.json")?;
    let folder = first.parent().unwrap_or(Path::new(".")).to_path_buf();
    for name in OPTIONAL {
        client.get(name)?;
    }
    let mut files = Vec::new();
    match client.get(WEIGHTS)? {
        Some(weights) => files.push(weights),
        None => {
            let index = client.get(INDEX)?.ok_or_else(|| {
                Error::invalid("the hub has neither model.safetensors nor its index: models in other formats are not supported")
            })?;
            for name in shard_names(&index)? {
                files.push(client.required(&name)?);
            }
        }
    }
    match files.iter().find(|file| file.parent() != Some(&folder)) {
        None => Ok(folder),
        Some(_) => Err(Error::invalid(
            "the model changed at the hub while it was downloaded; load it again",
        )),
    }
}

/// The files that an index names.
fn shard_names(index: &Path) -> Result<Vec<String>> {
    let json = files::read_json(index)?;
    let map = json.get("weight_map").and_then(serde_json::Value::as_object);
    let map = map.ok_or_else(|| Error::file(index, "there is no weight_map in it"))?;
    let names: Option<std::collections::BTreeSet<&str>> =
        map.values().map(|name| name.as_str().filter(|name| is_plain(name))).collect();
    let names =
        names.ok_or_else(|| Error::file(index, "wanted the names of files beside the index"))?;
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// Whether a text is one component of a path.
fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}
