//! Asking the hub: what a file is, and its bytes.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector as _, DefaultConnector};
use ureq::{Agent, Body};

use super::cache::RepoCache;
use super::patient::PatientConnector;
use super::{HubConfig, Repo, is_plain};
use crate::error::{AtPath, Context, Error, Result};
use crate::io::files;

/// How often a request that a failing network, or a busy hub, broke off is begun.
const TRIES: u32 = 5;
/// A renamed model is one redirection away; more are a loop.
const MOST_REDIRECTS: usize = 5;

/// Why a request gave nothing.
enum Fault {
    /// It may go well next time.
    Passing(String),
    /// It will not.
    Final(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Final(error)
    }
}

/// What the hub says of a file before it sends it.
struct Promise {
    commit: String,
    etag: String,
    size: u64,
}

pub(super) struct Client<'a> {
    agent: Agent,
    token: Option<String>,
    config: &'a HubConfig,
    repo: &'a Repo,
    cache: &'a RepoCache,
}

impl<'a> Client<'a> {
    pub(super) fn new(
        config: &'a HubConfig,
        repo: &'a Repo,
        cache: &'a RepoCache,
    ) -> Result<Client<'a>> {
        if !config.endpoint.starts_with("https://") && !config.endpoint.starts_with("http://") {
            let got = &config.endpoint;
            return Err(Error::invalid(format!("HF_ENDPOINT is {got:?}; wanted https://…")));
        }
        cache.make()?;
        let mut token = config.token.clone();
        if let (None, Some(file)) = (&token, &config.token_file) {
            let kept = files::read_if_there(file, 4096)?;
            token = kept.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
        }
        let token = token.filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::invalid("the hub's token has spaces or other signs in it"));
        }
        Ok(Client { agent: agent(config)?, token, config, repo, cache })
    }

    pub(super) fn required(&self, name: &str) -> Result<PathBuf> {
        self.get(name)?.ok_or_else(|| {
            let url = self.url(name);
            Error::invalid(format!(
                "the hub has no {name} ({url}); check the name and the revision"
            ))
        })
    }

    /// The file in the cache, downloaded if it is not there yet; `None` if the hub has none.
    pub(super) fn get(&self, name: &str) -> Result<Option<PathBuf>> {
        if let Some(path) = self.cache.find(name) {
            return Ok(Some(path));
        }
        let promise = self.patiently(name, || self.promise(name)).within(name)?;
        let Some(promise) = promise else { return Ok(None) };
        let blob = self.cache.blob(&promise.etag);
        let lock = self.cache.lock(&promise.etag, self.config)?;
        // Whoever held the lock may have brought the file.
        if !blob.is_file() {
            self.patiently(name, || self.download(name, &promise, &blob)).within(name)?;
        }
        drop(lock);
        self.cache.link(name, &promise.etag, &promise.commit).map(Some)
    }

    fn url(&self, name: &str) -> String {
        let Repo { name: repo, revision } = self.repo;
        format!("{}/{repo}/resolve/{}/{name}", self.config.endpoint, revision.replace('/', "%2F"))
    }

    /// Tries a step again as long as its faults pass, with growing waits between.
    fn patiently<T>(
        &self,
        name: &str,
        mut step: impl FnMut() -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        let mut wait = self.config.retry_wait;
        let mut tries = 1;
        loop {
            let words = match step() {
                Ok(done) => return Ok(done),
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Passing(words)) => words,
            };
            // Stopping looks like a broken connection from inside.
            self.config.check_cancelled()?;
            if tries == TRIES {
                return Err(Error::invalid(format!(
                    "{}: {words}, {TRIES} times; check the connection, or set HF_ENDPOINT to a mirror (what has come is kept, and the next try goes on from there)",
                    self.url(name)
                )));
            }
            tries += 1;
            let seconds = wait.as_secs_f64();
            self.config.say(&format!("{name}: {words}; try {tries} of {TRIES} in {seconds:.1} s"));
            self.sleep(wait)?;
            wait *= 2;
        }
    }

    fn sleep(&self, wait: Duration) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < wait {
            self.config.check_cancelled()?;
            std::thread::sleep((wait - begun.elapsed().min(wait)).min(Duration::from_millis(50)));
        }
        Ok(())
    }

    /// Asks what a file is; `None` if there is none. The file itself may lie elsewhere, but its name,
    /// size and commit are the hub's to tell, so only redirections within the hub are followed.
    fn promise(&self, name: &str) -> std::result::Result<Option<Promise>, Fault> {
        let mut url = self.url(name);
        for _ in 0..=MOST_REDIRECTS {
            let mut request = self.agent.head(&url).config().max_redirects(0).build();
            request = request.header("Accept-Encoding", "identity");
            if let Some(token) = &self.token {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let answer = request.call().map_err(|error| passing(&error))?;
            let elsewhere =
                header(&answer, "location").filter(|_| answer.status().is_redirection());
            match elsewhere {
                Some(path) if path.starts_with('/') && !path.starts_with("//") => {
                    url = format!("{}{path}", origin(&self.config.endpoint));
                }
                _ if answer.status() == StatusCode::NOT_FOUND => return self.not_found(&answer),
                _ => {
                    self.check_status(&answer, true)?;
                    return Ok(Some(promise_of(&answer)?));
                }
            }
        }
        Err(Error::invalid(format!("{url}: the hub redirects in circles")).into())
    }

    /// Of a whole model or revision that is missing, the hub says so; a missing file may be no mistake.
    fn not_found<T>(&self, answer: &Response<Body>) -> std::result::Result<Option<T>, Fault> {
        let Repo { name, revision } = self.repo;
        let words = match header(answer, "x-error-code").as_deref() {
            Some("RepoNotFound") => format!("the hub has no model {name}; check the name"),
            Some("RevisionNotFound") => format!("{name} has no revision {revision}"),
            _ => return Ok(None),
        };
        Err(Error::invalid(words).into())
    }

    fn check_status(
        &self,
        answer: &Response<Body>,
        may_redirect: bool,
    ) -> std::result::Result<(), Fault> {
        let status = answer.status();
        if status.is_success() || (may_redirect && status.is_redirection()) {
            return Ok(());
        }
        let said = header(answer, "x-error-message").unwrap_or_default();
        let said = if said.is_empty() { String::new() } else { format!(" ({said})") };
        let url = self.url("");
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let next = match &self.token {
                None => {
                    "if it exists, it needs permission: accept its terms at the hub and set HF_TOKEN"
                }
                Some(_) => {
                    "the token that was sent does not open it: accept its terms at the hub, or set another HF_TOKEN"
                }
            };
            return Err(Error::invalid(format!("{url}: {}{said}; {next}", status.as_u16())).into());
        }
        let words = format!("the hub answered {status}{said}");
        match status.as_u16() {
            408 | 429 | 500.. => Err(Fault::Passing(words)),
            _ => Err(Error::invalid(format!("{url}: {words}; is this address a hub?")).into()),
        }
    }

    /// Brings a file's bytes to `blob`, from where an earlier try ended.
    fn download(
        &self,
        name: &str,
        promise: &Promise,
        blob: &Path,
    ) -> std::result::Result<(), Fault> {
        let partial = blob.with_file_name(format!("{}.incomplete", promise.etag));
        let mut file = File::options().create(true).append(true).open(&partial).at(&partial)?;
        let mut here = file.metadata().at(&partial)?.len();
        if here > promise.size {
            file.set_len(0).at(&partial)?;
            here = 0;
        }
        if here < promise.size {
            self.receive(name, promise, (&mut file, &partial), here)?;
        }
        file.sync_all().at(&partial)?;
        fs::rename(&partial, blob).at(blob)?;
        Ok(())
    }

    fn receive(
        &self,
        name: &str,
        promise: &Promise,
        (file, path): (&mut File, &Path),
        mut here: u64,
    ) -> std::result::Result<(), Fault> {
        let mut request = self.agent.get(self.url(name)).header("Accept-Encoding", "identity");
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if here > 0 {
            request = request.header("Range", format!("bytes={here}-"));
        }
        let answer = request.call().map_err(|error| passing(&error))?;
        if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            file.set_len(0).at(path)?;
            return Err(Fault::Passing("the hub cannot go on where the last try ended".into()));
        }
        self.check_status(&answer, false)?;
        let continues = answer.status() == StatusCode::PARTIAL_CONTENT
            && header(&answer, "content-range")
                .is_some_and(|range| range.starts_with(&format!("bytes {here}-")));
        if here > 0 && !continues {
            // The answer begins at the beginning, whatever was asked for.
            file.set_len(0).at(path)?;
            file.rewind().at(path)?;
            here = 0;
        }
        let mut body = answer.into_body().into_reader();
        let mut bytes = vec![0; 64 << 10];
        while here < promise.size {
            let room = usize::try_from(promise.size - here).unwrap_or(usize::MAX).min(bytes.len());
            let got = body
                .read(&mut bytes[..room])
                .map_err(|error| broke_off(&error.to_string(), here, promise.size))?;
            if got == 0 {
                return Err(broke_off("the connection closed", here, promise.size));
            }
            file.write_all(&bytes[..got]).at(path)?;
            here += got as u64;
            if let Some(progress) = &self.config.progress {
                progress(name, here, promise.size);
            }
            self.config.check_cancelled()?;
        }
        // More than was promised is another file than the one that was promised.
        if body.read(&mut [0]).is_ok_and(|more| more > 0) {
            file.set_len(0).at(path)?;
            let size = promise.size;
            let words = format!("the hub promised {size} bytes and sends more; load it again");
            return Err(Error::invalid(words).into());
        }
        Ok(())
    }
}

fn broke_off(why: &str, here: u64, size: u64) -> Fault {
    Fault::Passing(format!("the download broke off after {here} of {size} bytes ({why})"))
}

fn passing(error: &ureq::Error) -> Fault {
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Tls(_) | ureq::Error::Rustls(_) => {
            Fault::Final(Error::invalid(format!("{error}; check HF_ENDPOINT and SSL_CERT_FILE")))
        }
        // What rustls thinks of a certificate comes as an I/O error, and does not change.
        ureq::Error::Io(inner) if inner.kind() == std::io::ErrorKind::InvalidData => {
            Fault::Final(Error::invalid(format!("{inner}; check HF_ENDPOINT and SSL_CERT_FILE")))
        }
        ureq::Error::Timeout(_) => Fault::Passing("no answer came in time".into()),
        other => Fault::Passing(other.to_string()),
    }
}

fn agent(config: &HubConfig) -> Result<Agent> {
    let mut builder = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects_will_error(false)
        // Where the bytes lie elsewhere (a store for large files), the token is not for there.
        .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
        .user_agent(concat!("aolab/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(config.timeout))
        .timeout_connect(Some(config.timeout));
    if let Some(path) = &config.certificates {
        let mut trusted = Vec::new();
        for item in parse_pem(&files::read(path, 16 << 20)?) {
            match item {
                Ok(PemItem::Certificate(certificate)) => trusted.push(certificate),
                Ok(_) => {}
                Err(error) => return Err(Error::file(path, format!("not PEM: {error}"))),
            }
        }
        if trusted.is_empty() {
            return Err(Error::file(path, "wanted PEM certificates, got none"));
        }
        let roots = RootCerts::Specific(Arc::new(trusted));
        builder = builder.tls_config(TlsConfig::builder().root_certs(roots).build());
    }
    let patient = PatientConnector { cancel: config.cancel.clone(), idle: config.timeout };
    let connector = DefaultConnector::default().chain(patient);
    Ok(Agent::with_parts(builder.build(), connector, DefaultResolver::default()))
}

fn header(answer: &Response<Body>, name: &str) -> Option<String> {
    Some(answer.headers().get(name)?.to_str().ok()?.to_owned())
}

/// `https://host:port` of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    url[host..].find('/').map_or(url, |slash| &url[..host + slash])
}

/// The hub's headers. They become names in the cache, so that they must be plain.
fn promise_of(answer: &Response<Body>) -> Result<Promise> {
    let wanted = |name: &str| {
        header(answer, name).ok_or_else(|| {
            Error::invalid(format!("the answer has no header {name}; is this address a hub?"))
        })
    };
    let etag = header(answer, "x-linked-etag").map_or_else(|| wanted("etag"), Ok)?;
    let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
    let commit = wanted("x-repo-commit")?;
    for (what, text) in [("etag", &etag), ("x-repo-commit", &commit)] {
        if !is_plain(text) || text.len() > 200 {
            return Err(Error::invalid(format!(
                "the hub's answer has the {what} {text:?}, which is no name"
            )));
        }
    }
    // A redirection's own length is not the file's.
    let length = if answer.status().is_redirection() { "x-linked-size" } else { "content-length" };
    let size = header(answer, "x-linked-size").map_or_else(|| wanted(length), Ok)?;
    let size = size.parse().map_err(|_| {
        Error::invalid(format!("the hub says the file has {size:?} bytes, which is no number"))
    })?;
    Ok(Promise { commit, etag, size })
}
