//! A hub on this machine that serves the built-in model, well or badly.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// A certificate for localhost and 127.0.0.1, its key, and the authority that signed it; made by
/// `openssl` for a hundred years, and known to nobody but these tests.
pub(crate) const AUTHORITY: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hub_support/tls/ca.pem");
const CERTIFICATE: &[u8] = include_bytes!("tls/server.pem");
const KEY: &[u8] = include_bytes!("tls/server.key");

/// How the hub answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Manner {
    Good,
    /// Closes the connection in the middle of the weights, each time.
    BreaksOff,
    /// The same, but only the first time.
    BreaksOffOnce,
    /// Breaks off once, and then sends everything from the beginning whatever is asked for.
    IgnoresRange,
    /// Goes silent in the middle of the weights.
    Stalls,
    /// Takes the connection and never answers.
    IsSilent,
    /// Does not say how long a file is.
    HidesLength,
    /// Sends more than it promised.
    SendsMore,
    /// Is busy twice before it answers.
    BusyTwice,
    /// Names that would lead out of the cache.
    EvilEtag,
    EvilCommit,
    /// A length that is no number.
    EvilLength,
    /// An answer that is no HTTP.
    Babbles,
    NoPermission,
    /// A redirection to nowhere.
    RedirectsBadly,
    /// A redirection to itself.
    RedirectsInCircles,
    /// The model has another name now.
    WasRenamed,
    /// The weights lie in a store at another address.
    StoresElsewhere,
    /// There is no such model.
    HasNoModel,
    /// The weights come in two shards.
    Shards,
}

/// One request, as the hub saw it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<usize>,
    pub(crate) authorization: Option<String>,
    pub(crate) host: String,
}

struct Hub {
    listener: TcpListener,
    manner: Manner,
    tls: Option<Arc<rustls::ServerConfig>>,
    stop: AtomicBool,
    requests: Mutex<Vec<Request>>,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Runs `client` while a hub serves in the given manner; also gives what was asked for.
pub(crate) fn with_hub<T>(manner: Manner, client: impl FnOnce(&str) -> T) -> (T, Vec<Request>) {
    serve(manner, false, client)
}

/// The same over TLS.
pub(crate) fn with_tls_hub<T>(client: impl FnOnce(&str) -> T) -> (T, Vec<Request>) {
    serve(Manner::Good, true, client)
}

fn serve<T>(manner: Manner, tls: bool, client: impl FnOnce(&str) -> T) -> (T, Vec<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let tls = tls.then(server_config);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let hub =
        Hub { listener, manner, tls, stop: AtomicBool::new(false), requests: Mutex::default() };
    let address = hub.listener.local_addr().expect("it is bound");
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            for connection in hub.listener.incoming() {
                if hub.stop.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away in the middle is the client's affair.
                let hub = &hub;
                scope.spawn(move || connection.and_then(|stream| hub.accept(stream)));
            }
        });
        let endpoint = format!("{scheme}://{address}");
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| client(&endpoint)));
        hub.stop.store(true, Ordering::SeqCst);
        // The last connection only wakes the server up.
        drop(TcpStream::connect(address));
        result
    });
    let requests = hub.requests.into_inner().expect("the threads are gone");
    (result.expect("the client's assertions"), requests)
}

fn server_config() -> Arc<rustls::ServerConfig> {
    let chain = vec![CertificateDer::from_pem_slice(CERTIFICATE).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_slice(KEY).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().expect("TLS 1.2 and 1.3");
    Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).expect("they fit"))
}

impl Hub {
    fn accept(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        match &self.tls {
            None => self.answer(stream),
            Some(config) => {
                let connection = rustls::ServerConnection::new(Arc::clone(config))
                    .map_err(std::io::Error::other)?;
                let mut secure = rustls::StreamOwned::new(connection, stream);
                self.answer(&mut secure)?;
                secure.conn.send_close_notify();
                secure.flush()
            }
        }
    }

    /// Answers one request and closes the connection.
    fn answer(&self, mut stream: impl Stream) -> std::io::Result<()> {
        let Some(request) = read_request(&mut stream)? else { return Ok(()) };
        let nth = {
            let mut all = self.requests.lock().expect("no panic there");
            all.push(request.clone());
            all.iter().filter(|r| r.method == request.method && r.path == request.path).count()
        };
        let reply = |status: &str, headers: &str| {
            format!("HTTP/1.1 {status}\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n")
        };
        let allowed = request.authorization.as_deref() == Some("Bearer secret");
        let names = "ETag: x\r\nX-Repo-Commit: y\r\n";
        let elsewhere = request.path.strip_prefix("/store/");
        let fixed = match self.manner {
            Manner::IsSilent => return self.wait(),
            Manner::Babbles => "have you heard the news?\r\n\r\n".into(),
            Manner::BusyTwice if nth <= 2 => reply("503 Service Unavailable", ""),
            Manner::NoPermission if !allowed => reply("401 Unauthorized", ""),
            Manner::RedirectsBadly => reply("302 Found", names),
            Manner::RedirectsInCircles => {
                reply("307 Temporary Redirect", &format!("Location: {}\r\n", request.path))
            }
            Manner::HasNoModel => reply("404 Not Found", "X-Error-Code: RepoNotFound\r\n"),
            Manner::WasRenamed if !request.path.starts_with("/new/") => {
                let place = request.path.replace("/lab/", "/new/");
                reply("307 Temporary Redirect", &format!("Location: {place}\r\n"))
            }
            Manner::StoresElsewhere if elsewhere.is_none() => match self.file(&request.path) {
                None => reply("404 Not Found", "X-Error-Code: EntryNotFound\r\n"),
                Some(body) => {
                    let port = self.listener.local_addr()?.port();
                    reply(
                        "302 Found",
                        &format!(
                            "Location: http://localhost:{port}/store{}\r\nX-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\nETag: \"of the redirection\"\r\nX-Repo-Commit: {COMMIT}\r\n",
                            request.path,
                            etag(&request.path),
                            body.len(),
                        ),
                    )
                }
            },
            _ => match self.file(elsewhere.map_or(request.path.as_str(), |_| &request.path[6..])) {
                Some(body) => return self.send(stream, &request, &body, nth),
                None => reply("404 Not Found", ""),
            },
        };
        stream.write_all(fixed.as_bytes())?;
        stream.flush()
    }

    /// Says nothing until the test is over.
    fn wait(&self) -> std::io::Result<()> {
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn file(&self, path: &str) -> Option<Vec<u8>> {
        let name =
            ["/lab/tiny/resolve/main/", "/new/tiny/resolve/main/", "/lab/tiny/resolve/v1.0/"]
                .iter()
                .find_map(|prefix| path.strip_prefix(prefix))?;
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/tiny");
        let shards = self.manner == Manner::Shards;
        match name {
            "config.json" | "tokenizer.json" | "tokenizer_config.json" => {
                fs::read(dir.join(name)).ok()
            }
            "model.safetensors" if !shards => fs::read(dir.join(name)).ok(),
            "model.safetensors.index.json" if shards => {
                Some(br#"{"weight_map": {"model.norm.weight": "only.safetensors"}}"#.to_vec())
            }
            "only.safetensors" if shards => fs::read(dir.join("model.safetensors")).ok(),
            _ => None,
        }
    }

    fn send(
        &self,
        mut stream: impl Stream,
        request: &Request,
        body: &[u8],
        nth: usize,
    ) -> std::io::Result<()> {
        use Manner::*;
        let head = request.method == "HEAD";
        let weights = request.path.ends_with("model.safetensors") && !head;
        let start = request.range.filter(|_| self.manner != IgnoresRange).unwrap_or(0);
        let part = body.get(start..).unwrap_or_default();
        let status = if start > 0 {
            format!(
                "206 Partial Content\r\nContent-Range: bytes {start}-{}/{}",
                body.len() - 1,
                body.len()
            )
        } else {
            "200 OK".into()
        };
        let etag =
            if self.manner == EvilEtag { "../../../evil".into() } else { etag(&request.path) };
        let commit = if self.manner == EvilCommit { "../../../../evil" } else { COMMIT };
        let mut length = format!("Content-Length: {}\r\n", part.len());
        match self.manner {
            HidesLength => length.clear(),
            SendsMore if weights => length = format!("Content-Length: {}\r\n", part.len() + 5),
            EvilLength => length.push_str("X-Linked-Size: 99999999999999999999999\r\n"),
            _ => {}
        }
        write!(
            stream,
            "HTTP/1.1 {status}\r\nETag: W/\"{etag}\"\r\nX-Repo-Commit: {commit}\r\n{length}Connection: close\r\n\r\n",
        )?;
        if head {
            return stream.flush();
        }
        let breaks = match self.manner {
            BreaksOff | Stalls => weights,
            BreaksOffOnce | IgnoresRange => weights && nth == 1,
            _ => false,
        };
        stream.write_all(if breaks { &part[..part.len() / 3] } else { part })?;
        if self.manner == SendsMore && weights {
            stream.write_all(b"more!")?;
        }
        stream.flush()?;
        if self.manner == Stalls && weights { self.wait() } else { Ok(()) }
    }
}

fn read_request(stream: &mut impl Stream) -> std::io::Result<Option<Request>> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
    let mut request =
        Request { method, path, range: None, authorization: None, host: String::new() };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { return Ok(Some(request)) };
        match name.to_lowercase().as_str() {
            "range" => {
                let start = value.trim_start_matches("bytes=").trim_end_matches('-');
                request.range = start.parse().ok();
            }
            "authorization" => request.authorization = Some(value.to_owned()),
            "host" => request.host = value.to_owned(),
            _ => {}
        }
    }
}

/// A hash of a path, for its ETag (FNV-1a).
fn etag(path: &str) -> String {
    let hash = path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}
