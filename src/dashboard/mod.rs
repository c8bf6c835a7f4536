//! The run store in a browser, live: a page that asks every second what is new.
//!
//! Only this machine can reach it unless another address is asked for, and only with the token that is in the page's address. A page of
//! another site cannot read it either: its requests lack the token, and a host name that is not this machine's is refused, so that no
//! name can be pointed here.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tiny_http::{Header, Method, Request, Response, Server};

use crate::error::{Error, Result};
use crate::report::{page, random_token};
use crate::store::{Query, Run, RunStore, utc};

const STYLE: &str = include_str!("../report/page.css");
const SCRIPT: &str = include_str!("live.js");
const BODY: &str = "<h1>Runs</h1>\n<p class=\"about\" id=\"state\">…</p>\n\
    <input id=\"filter\" placeholder=\"perplexity &lt; 30 and model ~ int4\" aria-label=\"filter\">\n\
    <section><table class=\"sorts\" id=\"runs\"><thead><tr></tr></thead><tbody></tbody></table></section>\n";

/// A dashboard that listens.
pub struct Dashboard {
    server: Server,
    address: SocketAddr,
    token: String,
}

impl std::fmt::Debug for Dashboard {
    /// Without the token, which is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dashboard").field("address", &self.address).finish_non_exhaustive()
    }
}

/// How long one answer of the page's list may be.
const MOST_RUNS: usize = 2000;

impl Dashboard {
    /// Listens at `address`; port 0 takes a free one.
    pub fn listen(address: SocketAddr) -> Result<Dashboard> {
        let server = Server::http(address)
            .map_err(|error| Error::invalid(format!("{address} cannot be listened at: {error}")))?;
        let address = server.server_addr().to_ip().unwrap_or(address);
        Ok(Dashboard { server, address, token: random_token()? })
    }

    /// The page's address, with its token.
    pub fn url(&self) -> String {
        format!("http://{}/?token={}", self.address, self.token)
    }

    /// Answers until `stop` says so, which is asked ten times a second.
    pub fn serve(&self, store: &RunStore, stop: &dyn Fn() -> bool) -> Result<()> {
        const LOOK: Duration = Duration::from_millis(100);
        while !stop() {
            let request = self.server.recv_timeout(LOOK);
            let request =
                request.map_err(|error| Error::invalid(format!("{}: {error}", self.address)))?;
            if let Some(request) = request {
                let answer = self.answer(&request, store);
                // A browser that left does not want its answer.
                let _ = request.respond(answer);
            }
        }
        Ok(())
    }

    fn answer(&self, request: &Request, store: &RunStore) -> Response<std::io::Cursor<Vec<u8>>> {
        let said = |status: u16, words: &str| {
            text(words.as_bytes().to_vec(), "text/plain; charset=utf-8", status)
        };
        if *request.method() != Method::Get {
            return said(405, "only GET is answered\n");
        }
        let host = request.headers().iter().find(|header| header.field.equiv("Host"));
        if !host.is_some_and(|header| self.is_here(header.value.as_str())) {
            return said(403, "this is not the host that was asked for\n");
        }
        let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
        let value = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.clone().find(|(key, _)| *key == name).map(|(_, value)| decoded(value))
        };
        if !same(&value("token").unwrap_or_default(), &self.token) {
            return said(
                403,
                "the address lacks its token: open the one that `dashboard` showed\n",
            );
        }
        let result = match path {
            "/" => page(
                "aolab: runs",
                STYLE,
                BODY,
                &format!("{SCRIPT}\n{}", include_str!("../report/page.js")),
            )
            .map(|html| text(html.into_bytes(), "text/html; charset=utf-8", 200)),
            "/runs" => runs(store, &value("filter").unwrap_or_default())
                .map(|json| text(json.into_bytes(), "application/json", 200)),
            _ => return said(404, "there is no such page\n"),
        };
        result.unwrap_or_else(|error| said(400, &error.to_string()))
    }

    /// Whether a request's host is the address that is listened at, or this machine by name.
    fn is_here(&self, host: &str) -> bool {
        let port = self.address.port();
        host == self.address.to_string()
            || host == format!("localhost:{port}")
            || (!self.address.ip().is_loopback() && host.ends_with(&format!(":{port}")))
    }
}

/// The latest runs as JSON: metrics as columns, newest first.
fn runs(store: &RunStore, filter: &str) -> Result<String> {
    let query = Query { filter: filter.to_owned(), limit: Some(MOST_RUNS), ..Query::default() };
    let found = store.query(&query)?;
    let mut names: Vec<String> = Vec::new();
    for metric in found.iter().flat_map(|(_, run)| &run.metrics) {
        let name = heading(&metric.name, &metric.unit);
        // Metrics of single layers would be hundreds of columns.
        if !metric.name.contains('[') && !names.contains(&name) && names.len() < 24 {
            names.push(name);
        }
    }
    let row = |(id, run): &(i64, Run)| {
        let values: Vec<_> = names
            .iter()
            .map(|name| {
                let metric =
                    run.metrics.iter().find(|metric| heading(&metric.name, &metric.unit) == *name);
                metric.map(|metric| {
                    if metric.value.is_finite() {
                        json!(metric.value)
                    } else {
                        json!(metric.value.to_string())
                    }
                })
            })
            .collect();
        json!({"id": id, "started": utc(run.started), "model": run.subject, "command": run.command,
            "status": run.status, "values": values})
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    Ok(json!({"metrics": names, "runs": rows, "count": store.count(filter)?}).to_string())
}

fn heading(name: &str, unit: &str) -> String {
    if unit.is_empty() { name.to_owned() } else { format!("{name} ({unit})") }
}

fn text(bytes: Vec<u8>, kind: &str, status: u16) -> Response<std::io::Cursor<Vec<u8>>> {
    let header = |name: &str, value: &str| {
        Header::from_bytes(name, value).expect("names and values of ours are ASCII")
    };
    Response::from_data(bytes)
        .with_status_code(status)
        .with_header(header("Content-Type", kind))
        .with_header(header("Cache-Control", "no-store"))
        .with_header(header("X-Content-Type-Options", "nosniff"))
        .with_header(header("Referrer-Policy", "no-referrer"))
}

/// Compares in a time that does not tell how much is right.
fn same(given: &str, token: &str) -> bool {
    // The hashes of different tokens differ in unforeseeable places.
    blake3::hash(given.as_bytes()) == blake3::hash(token.as_bytes())
}

/// `%41+b` → `A b`. What is no code stays as it is.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[at], code) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_decoded() {
        for (given, wanted) in [
            ("a%20b+c", "a b c"),
            ("%3C%", "<%"),
            ("%zz", "%zz"),
            ("%C3%A9", "é"),
            ("%e", "%e"),
            ("é%41", "éA"),
        ] {
            assert_eq!(decoded(given), wanted);
        }
        assert!(same("x", "x") && !same("", "x") && !same("xx", "x"));
    }
}
