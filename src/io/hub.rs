//! Models of the Hugging Face hub by name, kept in the cache that all its programs share.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::files;
use crate::error::{AtPath, Context, Error, Result};

/// Where the hub is, where its cache is, and who is asking.
#[derive(Clone)]
pub struct HubConfig {
    /// The folder of the cache: `models--ORG--NAME` folders lie in it.
    pub cache: PathBuf,
    /// The address of the hub or of a mirror.
    pub endpoint: String,
    /// Sent to the hub, for models that are not public.
    pub token: Option<String>,
    /// Only what is in the cache is used.
    pub offline: bool,
    /// Told of each download: the file's name, the bytes that are here, all its bytes.
    pub progress: Option<DownloadProgress>,
}

/// Called with a file's name, the bytes that are here, and all its bytes.
pub type DownloadProgress = Arc<dyn Fn(&str, u64, u64) + Send + Sync>;

impl HubConfig {
    /// The configuration that environment variables give, as Hugging Face's own programs read them:
    /// HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE. `get` reads a variable.
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
        HubConfig {
            cache: get("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: get("HF_TOKEN"),
            offline,
            progress: None,
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
            .finish_non_exhaustive()
    }
}

/// The files that may be missing: a model can be read without them.
const OPTIONAL: [&str; 3] = ["generation_config.json", "tokenizer.json", "tokenizer_config.json"];

/// Returns the folder in the cache that holds the model `ORG/NAME` or `ORG/NAME@REVISION`. What is not
/// in the cache is downloaded first; a revision that is complete in the cache is used without asking the hub.
pub fn fetch(model: &str, config: &HubConfig) -> Result<PathBuf> {
    let (name, revision) = parse(model)?;
    let repo = Repo::with_revision(name, RepoType::Model, revision);
    let cached = Cache::new(config.cache.clone()).repo(repo.clone());
    if let Some(folder) = complete(&cached)? {
        return Ok(folder);
    }
    if config.offline {
        return Err(Error::invalid(format!(
            "hf:{model}: it is not complete in {}, and HF_HUB_OFFLINE forbids to download it",
            config.cache.display()
        )));
    }
    let client = Client::new(config, repo, cached).within(format!("hf:{model}"))?;
    client.download_all().within(format!("hf:{model}"))
}

/// Splits `ORG/NAME[@REVISION]`; names that could lead elsewhere in an address or in the cache are refused.
fn parse(model: &str) -> Result<(String, String)> {
    let (name, revision) = model.split_once('@').unwrap_or((model, "main"));
    let plain = |part: &str| {
        let good = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
        !part.is_empty() && !part.starts_with('.') && part.len() <= 96 && part.chars().all(good)
    };
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() == 2 && parts.iter().all(|part| plain(part)) && revision.split('/').all(plain) {
        return Ok((name.to_owned(), revision.to_owned()));
    }
    Err(Error::invalid(format!(
        "hf:{model}: wanted hf:ORG/NAME or hf:ORG/NAME@REVISION, as in hf:HuggingFaceTB/SmolLM2-135M"
    )))
}

/// The folder of a model that is complete in the cache. Weights are downloaded last: where they are,
/// everything else is too.
fn complete(cached: &CacheRepo) -> Result<Option<PathBuf>> {
    let Some(config) = cached.get("config.json") else { return Ok(None) };
    let weights = match cached.get("model.safetensors.index.json") {
        Some(index) => shard_names(&index)?,
        None => vec!["model.safetensors".to_owned()],
    };
    let all = weights.iter().all(|name| cached.get(name).is_some());
    Ok(config.parent().filter(|_| all).map(Path::to_path_buf))
}

struct Client {
    api: Api,
    repo: ApiRepo,
    cached: CacheRepo,
    progress: Option<DownloadProgress>,
}

impl Client {
    fn new(config: &HubConfig, repo: Repo, cached: CacheRepo) -> Result<Client> {
        if !config.endpoint.starts_with("https://") && !config.endpoint.starts_with("http://") {
            let got = &config.endpoint;
            return Err(Error::invalid(format!("HF_ENDPOINT is {got:?}; wanted https://…")));
        }
        // Made before the first download, so that a cache without permission says so.
        fs::create_dir_all(&config.cache).at(&config.cache)?;
        let cache = config.cache.canonicalize().at(&config.cache)?;
        let mut builder = ApiBuilder::from_cache(Cache::new(cache))
            .with_endpoint(config.endpoint.clone())
            .with_retries(2)
            .with_progress(false);
        if config.token.is_some() {
            builder = builder.with_token(config.token.clone());
        }
        let api = builder.build().map_err(|error| Error::invalid(error.to_string()))?;
        let repo = api.repo(repo);
        Ok(Client { api, repo, cached, progress: config.progress.clone() })
    }

    fn download_all(&self) -> Result<PathBuf> {
        let config = self.required("config.json")?;
        let folder = config.parent().unwrap_or(Path::new(".")).to_path_buf();
        for name in OPTIONAL {
            self.get(name)?;
        }
        let mut files = Vec::new();
        match self.get("model.safetensors")? {
            Some(weights) => files.push(weights),
            None => {
                let index = self.get("model.safetensors.index.json")?.ok_or_else(|| {
                    Error::invalid("the hub has neither model.safetensors nor its index: models in other formats are not supported")
                })?;
                for name in shard_names(&index)? {
                    files.push(self.required(&name)?);
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

    fn required(&self, name: &str) -> Result<PathBuf> {
        self.get(name)?.ok_or_else(|| {
            Error::invalid(format!(
                "the hub has no {name} ({}); check the name and the revision",
                self.repo.url(name)
            ))
        })
    }

    /// The file in the cache, downloaded if it is not there yet; `None` if the hub has none.
    fn get(&self, name: &str) -> Result<Option<PathBuf>> {
        if let Some(path) = self.cached.get(name) {
            return Ok(Some(path));
        }
        match guard(|| self.download(name)).within(name)? {
            Ok(path) => Ok(Some(path)),
            Err(ApiError::RequestError(error))
                if matches!(*error, ureq::Error::StatusCode(404)) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::invalid(words(&error, &self.repo.url(name)))),
        }
    }

    /// Downloads a file and checks that it is as long as was promised. The hub's answers become names in
    /// the cache, so that they must be plain.
    fn download(&self, name: &str) -> Result<Result<PathBuf, ApiError>> {
        let promised = match self.api.metadata(&self.repo.url(name)) {
            Ok(metadata) => metadata,
            Err(error) => return Ok(Err(error)),
        };
        for (what, text) in [("etag", promised.etag()), ("x-repo-commit", promised.commit_hash())] {
            if !is_plain(text) {
                return Err(Error::invalid(format!(
                    "the hub's answer has the {what} {text:?}, which is no name"
                )));
            }
        }
        let total = promised.size() as u64;
        let report =
            Report { callback: self.progress.clone(), file: name.to_owned(), done: 0, total };
        let path = match self.repo.download_with_progress(name, report) {
            Ok(path) => path,
            Err(error) => return Ok(Err(error)),
        };
        let got = fs::metadata(&path).at(&path)?.len();
        if got == total {
            return Ok(Ok(path));
        }
        let blob = path.canonicalize().at(&path)?;
        fs::remove_file(&path).at(&path)?;
        fs::remove_file(&blob).at(&blob)?;
        Err(Error::invalid(format!(
            "the download broke off: {got} of {total} bytes came; load it again"
        )))
    }
}

struct Report {
    callback: Option<DownloadProgress>,
    file: String,
    done: u64,
    total: u64,
}

impl Progress for Report {
    fn init(&mut self, size: usize, _: &str) {
        (self.done, self.total) = (0, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        if let Some(callback) = &self.callback {
            callback(&self.file, self.done, self.total);
        }
    }

    fn finish(&mut self) {}
}

/// The crate asserts some things of a server's answers; a broken server must not take the program down.
fn guard<T>(step: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|_| {
        Err(Error::invalid("the answer makes no sense; is this address a hub?"))
    })
}

/// What an error of the hub means and what to do about it.
fn words(error: &ApiError, url: &str) -> String {
    let denied = matches!(
        error,
        ApiError::RequestError(inner) if matches!(**inner, ureq::Error::StatusCode(401 | 403))
    );
    let next = if denied {
        "the model needs permission: accept its terms at the hub and set HF_TOKEN"
    } else {
        "check the connection, or set HF_ENDPOINT to a mirror"
    };
    format!("{url}: {error}; {next}")
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
