//! `hf:ORG/NAME`, against a hub on this machine that serves the built-in model.

mod hub_support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aolab::Error;
use aolab::io::{self, HubConfig, LoadOptions};
use hub_support::{AUTHORITY, COMMIT, Manner, with_hub, with_tls_hub};

fn config(home: &Path, endpoint: &str, more: &[(&str, &str)]) -> HubConfig {
    let home = home.to_str().expect("UTF-8").to_owned();
    let mut config = HubConfig::from_env(|name| match name {
        "HF_HOME" => Some(home.clone()),
        "HF_ENDPOINT" => Some(endpoint.to_owned()),
        _ => more.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()),
    });
    config.retry_wait = Duration::from_millis(1);
    config
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
    assert!(requests.iter().any(|r| r.path.ends_with("/model.safetensors")), "{requests:?}");
    // The layout that all of the hub's programs share.
    let repo = home.path().join("hub/models--lab--tiny");
    let linked = repo.join("snapshots").join(COMMIT).join("model.safetensors");
    let target = fs::read_link(&linked).expect("a link");
    assert!(target.starts_with("../../blobs"), "{target:?}");
    assert!(linked.is_file());
    assert_eq!(fs::read_to_string(repo.join("refs/main")).expect("a reference"), COMMIT);
    assert!(home.path().join("hub/.locks/models--lab--tiny").is_dir());
    assert!(left_over(home.path()).is_empty());
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
    assert!(requests.iter().all(|r| r.path.starts_with("/lab/tiny/resolve/v1.0/")), "{requests:?}");
    assert!(requests.iter().any(|r| r.path.ends_with("/only.safetensors")), "{requests:?}");
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
    // A token that was kept by a login serves too; a wrong one is told apart from none.
    let home = tempfile::tempdir().expect("a temporary folder");
    with_hub(Manner::NoPermission, |endpoint| {
        fs::write(home.path().join("token"), "wrong\n").expect("a file");
        let error = load("hf:lab/tiny", config(home.path(), endpoint, &[]));
        let error = error.expect_err("the wrong token").to_string();
        assert!(error.contains("does not open it"), "{error}");
        fs::write(home.path().join("token"), "secret\n").expect("a file");
        load("hf:lab/tiny", config(home.path(), endpoint, &[])).expect("the token is right");
    });
}

#[test]
fn what_goes_wrong_at_the_hub_is_told_and_leaves_no_model_behind() {
    for (manner, source, words) in [
        (Manner::Good, "hf:lab/none", "the hub has no config.json"),
        (Manner::Good, "hf:lab/tiny@none", "check the name and the revision"),
        (Manner::BreaksOff, "hf:lab/tiny", "broke off"),
        (Manner::HidesLength, "hf:lab/tiny", "no header content-length"),
        (Manner::SendsMore, "hf:lab/tiny", "sends more"),
        (Manner::EvilLength, "hf:lab/tiny", "is no number"),
        (Manner::EvilEtag, "hf:lab/tiny", "is no name"),
        (Manner::EvilCommit, "hf:lab/tiny", "is no name"),
        (Manner::Babbles, "hf:lab/tiny", "5 times"),
        (Manner::RedirectsBadly, "hf:lab/tiny", "x-linked-size"),
        (Manner::RedirectsInCircles, "hf:lab/tiny", "in circles"),
        (Manner::HasNoModel, "hf:lab/tiny", "has no model lab/tiny"),
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

/// Files in the cache that are not whole.
fn left_over(home: &Path) -> Vec<String> {
    let blobs = fs::read_dir(home.join("hub/models--lab--tiny/blobs")).expect("a cache");
    let names =
        blobs.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".incomplete")).collect()
}

/// Loads the model in spite of the hub's manner; gives the requests for its weights.
fn loads_well(manner: Manner, more: &[(&str, &str)]) -> Vec<hub_support::Request> {
    let home = tempfile::tempdir().expect("a temporary folder");
    let ((), requests) = with_hub(manner, |endpoint| {
        let c = load("hf:lab/tiny", config(home.path(), endpoint, more)).expect("it comes");
        let tiny = load("tiny", config(home.path(), endpoint, &[])).expect("the built-in model");
        assert_eq!(norm(&c), norm(&tiny), "{manner:?}");
        assert!(left_over(home.path()).is_empty(), "{manner:?}");
    });
    let weights = |r: &hub_support::Request| r.path.ends_with("/model.safetensors");
    requests.into_iter().filter(|r| r.method == "GET" && weights(r)).collect()
}

#[test]
fn what_passes_is_tried_again_from_where_it_ended() {
    let ranges = |requests: Vec<hub_support::Request>| -> Vec<_> {
        requests.into_iter().map(|request| request.range.is_some()).collect()
    };
    assert_eq!(ranges(loads_well(Manner::BreaksOffOnce, &[])), [false, true]);
    // A hub that begins again gives the same file, and not a third of it twice.
    assert_eq!(ranges(loads_well(Manner::IgnoresRange, &[])), [false, true]);
    assert_eq!(ranges(loads_well(Manner::BusyTwice, &[])), [false; 3]);
}

#[test]
fn a_download_that_broke_off_is_resumed_by_the_next_run() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let told = Arc::new(Mutex::new(Vec::new()));
    with_hub(Manner::BreaksOff, |endpoint| {
        let mut hub = config(home.path(), endpoint, &[]);
        let heard = Arc::clone(&told);
        hub.note = Some(Arc::new(move |words| heard.lock().expect("fine").push(words.to_owned())));
        load("hf:lab/tiny", hub).expect_err("it broke off each time");
    });
    let told = told.lock().expect("fine").join("; ");
    assert!(told.contains("broke off after") && told.contains("try 5 of 5"), "{told}");
    assert_eq!(left_over(home.path()).len(), 1, "what came is kept");
    let ((), requests) = with_hub(Manner::Good, |endpoint| {
        let c = load("hf:lab/tiny", config(home.path(), endpoint, &[])).expect("the rest comes");
        let tiny = load("tiny", config(home.path(), endpoint, &[])).expect("the built-in model");
        assert_eq!(norm(&c), norm(&tiny));
    });
    assert!(requests.iter().any(|r| r.range.is_some_and(|start| start > 1000)), "{requests:?}");
    assert!(left_over(home.path()).is_empty());
}

#[test]
fn redirections_are_followed_and_the_token_stays_at_the_hub() {
    let secret = [("HF_TOKEN", "secret")];
    let renamed = loads_well(Manner::WasRenamed, &secret);
    assert!(renamed.iter().all(|r| r.authorization.is_some()), "the hub is still the hub");
    let stored = loads_well(Manner::StoresElsewhere, &secret);
    let (store, hub): (Vec<_>, Vec<_>) =
        stored.into_iter().partition(|r| r.path.starts_with("/store/"));
    assert!(hub.iter().all(|r| r.authorization.as_deref() == Some("Bearer secret")), "{hub:?}");
    assert!(!store.is_empty() && store.iter().all(|r| r.host.starts_with("localhost:")));
    assert!(store.iter().all(|r| r.authorization.is_none()), "{store:?}");
}

#[test]
fn silence_has_an_end() {
    for manner in [Manner::IsSilent, Manner::Stalls] {
        let home = tempfile::tempdir().expect("a temporary folder");
        with_hub(manner, |endpoint| {
            let mut hub = config(home.path(), endpoint, &[]);
            hub.timeout = Duration::from_millis(300);
            let begun = Instant::now();
            let error = load("hf:lab/tiny", hub).expect_err("nothing comes").to_string();
            assert!(error.contains("5 times"), "{manner:?}: {error}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        });
    }
    let seconds = |text| config(Path::new("/"), "http://x", &[("HF_HUB_DOWNLOAD_TIMEOUT", text)]);
    assert_eq!(seconds("3").timeout, Duration::from_secs(3));
    assert_eq!(seconds("no number").timeout, Duration::from_secs(10));
}

#[test]
fn a_download_stops_when_it_is_told_to() {
    for manner in [Manner::IsSilent, Manner::Stalls] {
        let home = tempfile::tempdir().expect("a temporary folder");
        with_hub(manner, |endpoint| {
            let stop = Arc::new(AtomicBool::new(false));
            let mut hub = config(home.path(), endpoint, &[]);
            hub.timeout = Duration::from_secs(60);
            hub.cancel = Some(Arc::clone(&stop));
            let begun = std::thread::scope(|scope| {
                let loading = scope.spawn(|| load("hf:lab/tiny", hub).map(drop));
                std::thread::sleep(Duration::from_millis(500));
                stop.store(true, Ordering::Relaxed);
                let begun = Instant::now();
                let error = loading.join().expect("no panic").expect_err("it was stopped");
                assert!(error.is_cancelled(), "{manner:?}: {error}");
                begun
            });
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        });
    }
}

#[test]
fn https_trusts_who_it_is_told_to_trust_and_nobody_else() {
    let home = tempfile::tempdir().expect("a temporary folder");
    with_tls_hub(|endpoint| {
        let error = load("hf:lab/tiny", config(home.path(), endpoint, &[]))
            .expect_err("an unknown authority")
            .to_string();
        assert!(error.contains("certificate") && error.contains("SSL_CERT_FILE"), "{error}");
        let not_pem = config(home.path(), endpoint, &[("SSL_CERT_FILE", "Cargo.toml")]);
        let error = load("hf:lab/tiny", not_pem).expect_err("no certificate").to_string();
        assert!(error.contains("Cargo.toml") && error.contains("PEM"), "{error}");
        let trusting = config(home.path(), endpoint, &[("SSL_CERT_FILE", AUTHORITY)]);
        let c = load("hf:lab/tiny", trusting).expect("the authority is known");
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
