//! `hf:ORG/NAME`, against a hub on this machine that serves the built-in model.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use aolab::Error;
use aolab::io::{self, HubConfig, LoadOptions};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the hub answers.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Good,
    /// Closes the connection in the middle of the weights.
    BreaksOff,
    /// The same, without having said how long they are.
    BreaksOffSilently,
    /// Names that would lead out of the cache.
    EvilEtag,
    EvilCommit,
    /// An answer that is no HTTP.
    Babbles,
    NoPermission,
    /// A redirection to nowhere.
    RedirectsBadly,
    /// The weights come in two shards.
    Shards,
}

struct Hub {
    listener: TcpListener,
    manner: Manner,
    stop: AtomicBool,
    requests: Mutex<Vec<String>>,
}

impl Hub {
    fn endpoint(&self) -> String {
        format!("http://{}", self.listener.local_addr().expect("it is bound"))
    }

    /// Answers until told to stop; each connection carries one request.
    fn serve(&self) {
        for connection in self.listener.incoming() {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // A client that goes away in the middle is the client's affair.
            let _ = connection.and_then(|stream| self.answer(stream));
        }
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut request = String::new();
        reader.read_line(&mut request)?;
        let mut range = None;
        let mut allowed = false;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim().to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(bytes) = line.strip_prefix("range: bytes=") {
                range = bytes
                    .split_once('-')
                    .map(|(a, b)| (a.parse().unwrap_or(0_usize), b.parse::<usize>().ok()));
            }
            allowed |= line == "authorization: bearer secret";
        }
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        self.requests.lock().expect("one thread").push(path.clone());
        if self.manner == Manner::Babbles {
            return stream.write_all(b"have you heard the news?\r\n\r\n");
        }
        if self.manner == Manner::NoPermission && !allowed {
            return stream.write_all(
                b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
        if self.manner == Manner::RedirectsBadly {
            return stream.write_all(b"HTTP/1.1 302 Found\r\nETag: x\r\nX-Repo-Commit: y\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        match self.file(&path) {
            Some(body) => self.send(stream, &path, &body, range),
            None => stream.write_all(
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            ),
        }
    }

    fn file(&self, path: &str) -> Option<Vec<u8>> {
        let name = path
            .strip_prefix("/lab/tiny/resolve/main/")
            .or_else(|| path.strip_prefix("/lab/tiny/resolve/v1.0/"))?;
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
        mut stream: TcpStream,
        path: &str,
        body: &[u8],
        range: Option<(usize, Option<usize>)>,
    ) -> std::io::Result<()> {
        let (start, end) = range.unwrap_or((0, None));
        let end = end.map_or(body.len(), |end| (end + 1).min(body.len()));
        let part = body.get(start..end).unwrap_or_default();
        let etag = if self.manner == Manner::EvilEtag {
            "../../../evil".into()
        } else {
            format!("{:016x}", fnv(path))
        };
        let commit = if self.manner == Manner::EvilCommit { "../../../../evil" } else { COMMIT };
        let cut = part.len() > 1 && path.ends_with("model.safetensors");
        let silent = self.manner == Manner::BreaksOffSilently && cut;
        let length =
            if silent { String::new() } else { format!("Content-Length: {}\r\n", part.len()) };
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {commit}\r\n{length}Content-Range: bytes {start}-{}/{}\r\nConnection: close\r\n\r\n",
            end.saturating_sub(1),
            body.len()
        )?;
        let breaks = matches!(self.manner, Manner::BreaksOff | Manner::BreaksOffSilently) && cut;
        stream.write_all(if breaks { &part[..part.len() / 3] } else { part })
    }
}

/// A hash of a path, for its ETag.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Runs `client` while a hub serves in the given manner; also gives what was asked for.
fn with_hub<T>(manner: Manner, client: impl FnOnce(&str) -> T) -> (T, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let hub = Hub { listener, manner, stop: AtomicBool::new(false), requests: Mutex::default() };
    let result = std::thread::scope(|scope| {
        scope.spawn(|| hub.serve());
        let result =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| client(&hub.endpoint())));
        hub.stop.store(true, Ordering::SeqCst);
        // The last connection only wakes the server up.
        let _ = TcpStream::connect(hub.listener.local_addr().expect("it is bound"))
            .map(|mut s| s.read(&mut [0]));
        result
    });
    (
        result.expect("the client's assertions"),
        hub.requests.into_inner().expect("the thread is gone"),
    )
}

fn config(home: &Path, endpoint: &str, more: &[(&str, &str)]) -> HubConfig {
    let home = home.to_str().expect("UTF-8").to_owned();
    HubConfig::from_env(|name| match name {
        "HF_HOME" => Some(home.clone()),
        "HF_ENDPOINT" => Some(endpoint.to_owned()),
        _ => more.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()),
    })
}

fn load(source: &str, hub: HubConfig) -> aolab::Result<io::Checkpoint> {
    let mut options = LoadOptions::new(|_, _, _| Err(Error::invalid("no quantized weights here")));
    options.hub = Some(hub);
    io::open(source, &options)
}

/// The bytes of the norm that ends the model, which no two models share.
fn norm(c: &io::Checkpoint) -> Vec<u8> {
    c.parameters
        .vector("model.norm.weight", c.config.hidden_size)
        .expect("it is there")
        .bytes()
        .to_vec()
}

#[test]
fn a_model_is_downloaded_once_and_then_read_from_the_cache() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let ((), requests) = with_hub(Manner::Good, |endpoint| {
        let c = load("hf:lab/tiny", config(home.path(), endpoint, &[])).expect("the hub has it");
        assert_eq!(c.name, "lab/tiny");
        let tiny = load("tiny", config(home.path(), endpoint, &[])).expect("the built-in model");
        assert_eq!(norm(&c), norm(&tiny));
        assert_eq!(
            c.tokenizer.expect("a tokenizer").encode("We", true).ok(),
            tiny.tokenizer.expect("one").encode("We", true).ok()
        );
    });
    assert!(requests.iter().any(|path| path.ends_with("/model.safetensors")), "{requests:?}");
    let snapshot = home.path().join("hub/models--lab--tiny/snapshots").join(COMMIT);
    assert!(
        snapshot.join("model.safetensors").is_file(),
        "the layout that all of the hub's programs share"
    );
    // Nobody listens any more: the cache is enough, offline or not.
    for more in [&[][..], &[("HF_HUB_OFFLINE", "1")]] {
        load("hf:lab/tiny", config(home.path(), "http://127.0.0.1:9", more))
            .expect("it is in the cache");
    }
    let error = load(
        "hf:lab/tiny@v1.0",
        config(home.path(), "http://127.0.0.1:9", &[("HF_HUB_OFFLINE", "1")]),
    );
    let error = error.expect_err("another revision").to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn revisions_shards_and_tokens_reach_the_hub() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let (_, requests) = with_hub(Manner::Shards, |endpoint| {
        let c =
            load("hf:lab/tiny@v1.0", config(home.path(), endpoint, &[])).expect("the hub has it");
        norm(&c)
    });
    assert!(
        requests.iter().all(|path| path.starts_with("/lab/tiny/resolve/v1.0/")),
        "{requests:?}"
    );
    assert!(requests.iter().any(|path| path.ends_with("/only.safetensors")), "{requests:?}");
    let home = tempfile::tempdir().expect("a temporary folder");
    with_hub(Manner::NoPermission, |endpoint| {
        let error = load("hf:lab/tiny", config(home.path(), endpoint, &[]))
            .expect_err("no token")
            .to_string();
        assert!(error.contains("401") && error.contains("HF_TOKEN"), "{error}");
        let secret = config(home.path(), endpoint, &[("HF_TOKEN", "secret")]);
        assert!(!format!("{secret:?}").contains("secret"), "a token is not for logs");
        load("hf:lab/tiny", secret).expect("the token is right");
    });
}

#[test]
fn what_goes_wrong_at_the_hub_is_told_and_leaves_no_model_behind() {
    for (manner, source, words) in [
        (Manner::Good, "hf:lab/none", "the hub has no config.json"),
        (Manner::Good, "hf:lab/tiny@none", "check the name and the revision"),
        (Manner::BreaksOff, "hf:lab/tiny", "model.safetensors"),
        (Manner::BreaksOffSilently, "hf:lab/tiny", "broke off"),
        (Manner::EvilEtag, "hf:lab/tiny", "is no name"),
        (Manner::EvilCommit, "hf:lab/tiny", "is no name"),
        (Manner::Babbles, "hf:lab/tiny", "hf:lab/tiny"),
        (Manner::RedirectsBadly, "hf:lab/tiny", "hf:lab/tiny"),
    ] {
        let outer = tempfile::tempdir().expect("a temporary folder");
        let home = outer.path().join("a/b/c/home");
        with_hub(manner, |endpoint| {
            let error = load(source, config(&home, endpoint, &[])).expect_err(words).to_string();
            assert!(error.contains(words), "{words:?} is not in: {error}");
        });
        let names: Vec<_> = fs::read_dir(outer.path())
            .expect("a folder")
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert_eq!(names, ["a"], "nothing was written outside of the cache");
        let offline = config(&home, "http://127.0.0.1:9", &[("HF_HUB_OFFLINE", "1")]);
        assert!(load(source, offline).is_err(), "half a model is none");
    }
}

#[test]
fn a_download_that_broke_off_is_resumed() {
    let home = tempfile::tempdir().expect("a temporary folder");
    with_hub(Manner::BreaksOff, |endpoint| {
        load("hf:lab/tiny", config(home.path(), endpoint, &[])).expect_err("it broke off");
    });
    with_hub(Manner::Good, |endpoint| {
        let c = load("hf:lab/tiny", config(home.path(), endpoint, &[])).expect("the rest comes");
        let tiny = load("tiny", config(home.path(), endpoint, &[])).expect("the built-in model");
        assert_eq!(norm(&c), norm(&tiny));
    });
}

#[test]
fn names_and_addresses_that_make_no_sense_are_refused_before_anything_is_sent() {
    let home = tempfile::tempdir().expect("a temporary folder");
    for source in [
        "hf:",
        "hf:tiny",
        "hf:a/b/c",
        "hf:../x",
        "hf:a/..",
        "hf:a/b@",
        "hf:a/b@../../x",
        "hf:a b/c",
        "hf:a/b?x=1",
    ] {
        let error = load(source, config(home.path(), "http://127.0.0.1:9", &[]))
            .expect_err(source)
            .to_string();
        assert!(error.contains("wanted hf:ORG/NAME"), "{source}: {error}");
    }
    let error = load("hf:a/b", config(home.path(), "ftp://x", &[]))
        .expect_err("no web address")
        .to_string();
    assert!(error.contains("HF_ENDPOINT"), "{error}");
    let closed =
        TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("it is bound");
    let error = load("hf:a/b", config(home.path(), &format!("http://{closed}"), &[]))
        .expect_err("nobody listens")
        .to_string();
    assert!(error.contains("hf:a/b") && error.contains("check the connection"), "{error}");
    let nowhere =
        HubConfig { cache: "/proc/none".into(), ..config(home.path(), "http://127.0.0.1:9", &[]) };
    let error = load("hf:a/b", nowhere).expect_err("no permission").to_string();
    assert!(error.contains("/proc/none"), "{error}");
}

#[test]
fn the_environment_says_where_the_cache_is() {
    let from = |vars: &'static [(&str, &str)]| {
        HubConfig::from_env(|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    };
    assert_eq!(from(&[("HOME", "/h")]).cache, Path::new("/h/.cache/huggingface/hub"));
    assert_eq!(
        from(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).cache,
        Path::new("/x/huggingface/hub")
    );
    assert_eq!(from(&[("HOME", "/h"), ("HF_HOME", "/f")]).cache, Path::new("/f/hub"));
    assert_eq!(from(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/f")]).cache, Path::new("/c"));
    assert_eq!(from(&[("HF_HOME", "/f")]).endpoint, "https://huggingface.co");
    assert_eq!(from(&[("HF_ENDPOINT", "http://m/")]).endpoint, "http://m");
    assert!(
        from(&[("HF_HUB_OFFLINE", "true")]).offline && !from(&[("HF_HUB_OFFLINE", "0")]).offline
    );
}
