//! The session's front end in a notebook: results as rich output, streams in pieces, progress in place.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aolab::display::{self, Part};
use aolab::session::{FrontEnd, Outcome};
use tokio::sync::mpsc::Sender;

use super::worker::Event;

/// Work shorter than this shows no progress: it would only flicker.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long a state of the progress stands at least.
const STEP: Duration = Duration::from_millis(100);

/// Something to see, on its way to the notebook.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Words that come bit by bit.
    Stream { error: bool, text: String },
    /// A result.
    Result(Vec<Part>),
    /// The progress `id`, for the first time or again.
    Progress { id: String, first: bool, parts: Vec<Part> },
}

/// Sends everything on. The channel is bounded: a cell that shows too much waits for the notebook.
pub(super) struct Screen {
    events: Sender<Event>,
    state: Mutex<State>,
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Screen")
    }
}

#[derive(Debug, Default)]
struct State {
    bar: Option<Bar>,
    bars: usize,
    /// What has been streamed of a text whose result is still to come.
    streamed: String,
}

#[derive(Debug)]
struct Bar {
    what: String,
    done: usize,
    total: usize,
    since: Instant,
    /// Its id and when it was last sent, once it is on the screen.
    shown: Option<(String, Instant)>,
}

impl Screen {
    pub(super) fn new(events: Sender<Event>) -> Screen {
        Screen { events, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, shown: Shown) {
        // Where the server has gone, nobody looks.
        let _ = self.events.blocking_send(Event::Shown(shown));
    }

    /// A text in the stream of errors, for what is not a result.
    pub(super) fn remark(&self, text: &str) {
        self.send(Shown::Stream { error: true, text: format!("{text}\n") });
    }

    /// Ends what a cell left open.
    pub(super) fn finish(&self) {
        self.end();
        let streamed = std::mem::take(&mut self.state().streamed);
        if !streamed.is_empty() && !streamed.ends_with('\n') {
            self.send(Shown::Stream { error: false, text: "\n".to_owned() });
        }
    }
}

impl FrontEnd for Screen {
    fn result(&self, outcome: &Outcome<'_>) {
        self.end();
        let streamed = std::mem::take(&mut self.state().streamed);
        if let Some(name) = outcome.bound {
            let line = format!("{name} = {}", outcome.value.summary());
            self.send(Shown::Result(vec![Part { mime: "text/plain", content: line }]));
        } else if !streamed.is_empty() {
            let whole = outcome.to_text(None, false);
            let rest = whole.strip_prefix(streamed.as_str()).unwrap_or_default();
            let text = format!("{}\n", rest.trim_end_matches('\n'));
            self.send(Shown::Stream { error: false, text });
        } else {
            let parts = display::parts(outcome.value);
            if parts.iter().any(|part| !part.content.is_empty()) {
                self.send(Shown::Result(parts));
            }
        }
        if let Some(timing) = &outcome.timing {
            self.send(Shown::Result(display::table_parts(timing)));
        }
    }

    fn note(&self, text: &str) {
        self.remark(text);
    }

    fn stream(&self, piece: &str) {
        self.end();
        self.state().streamed.push_str(piece);
        self.send(Shown::Stream { error: false, text: piece.to_owned() });
    }

    fn progress(&self, what: &str, done: usize, total: usize) {
        let mut state = self.state();
        let State { bar, bars, .. } = &mut *state;
        if bar.as_ref().is_some_and(|bar| bar.what != what) {
            drop(state);
            self.end();
            return self.progress(what, done, total);
        }
        let now = Instant::now();
        let bar = bar.get_or_insert_with(|| Bar::new(what, now));
        (bar.done, bar.total) = (done, total);
        let shown = match &mut bar.shown {
            None if now - bar.since < PATIENCE => return,
            Some((_, last)) if now - *last < STEP => return,
            None => {
                *bars += 1;
                let id = format!("progress-{bars}");
                bar.shown = Some((id.clone(), now));
                Shown::Progress { id, first: true, parts: bar.parts(now) }
            }
            Some((id, last)) => {
                *last = now;
                let id = id.clone();
                Shown::Progress { id, first: false, parts: bar.parts(now) }
            }
        };
        drop(state);
        self.send(shown);
    }

    fn end(&self) {
        let Some(bar) = self.state().bar.take() else { return };
        if let Some((id, _)) = &bar.shown {
            let parts = bar.ended(Instant::now());
            self.send(Shown::Progress { id: id.clone(), first: false, parts });
        }
    }

    fn echo(&self, line: &str) {
        self.send(Shown::Stream { error: false, text: format!("{line}\n") });
    }
}

impl Bar {
    fn new(what: &str, since: Instant) -> Bar {
        Bar { what: what.to_owned(), done: 0, total: 0, since, shown: None }
    }

    fn parts(&self, now: Instant) -> Vec<Part> {
        let (what, done, total) = (&self.what, self.done, self.total);
        let gone = (now - self.since).as_secs_f64();
        let ago = format!("{gone:.1} s gone");
        let words = match self.to_go(gone) {
            Some(to_go) => format!("{what}: {done} of {total}, {ago}, {to_go:.1} s to go"),
            None => format!("{what}: {done} of {total}, {ago}"),
        };
        let html = format!(
            "<div><progress value=\"{done}\" max=\"{}\"></progress> {}</div>",
            total.max(1),
            escaped(&words)
        );
        vec![Part { mime: "text/html", content: html }, Part { mime: "text/plain", content: words }]
    }

    #[expect(clippy::cast_precision_loss, reason = "a guess of seconds")]
    fn to_go(&self, gone: f64) -> Option<f64> {
        let left = self.total.checked_sub(self.done)?;
        (self.done > 0).then(|| gone / self.done as f64 * left as f64)
    }

    fn ended(&self, now: Instant) -> Vec<Part> {
        let (what, done, total) = (&self.what, self.done, self.total);
        let gone = (now - self.since).as_secs_f64();
        let words = format!("{what}: {done} of {total} in {gone:.1} s");
        let html = format!("<div><small>{}</small></div>", escaped(&words));
        vec![Part { mime: "text/html", content: html }, Part { mime: "text/plain", content: words }]
    }
}

/// The name of a file may be part of what is told.
fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_once_it_lasts_and_then_in_place() {
        let (events, mut seen) = tokio::sync::mpsc::channel(64);
        let screen = Screen::new(events);
        screen.progress("reading", 1, 3);
        screen.end();
        assert!(seen.try_recv().is_err(), "work that is over at once shows nothing");
        screen.progress("reading <a>", 1, 3);
        std::thread::sleep(PATIENCE);
        screen.progress("reading <a>", 2, 3);
        screen.progress("reading <a>", 3, 3);
        screen.end();
        let mut told = Vec::new();
        while let Ok(Event::Shown(Shown::Progress { id, first, parts })) = seen.try_recv() {
            assert!(parts[0].content.contains("reading &lt;a>"), "{parts:?}");
            told.push((id, first, parts[1].content.clone()));
        }
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].1 && !told[1].1 && told[0].0 == told[1].0, "{told:?}");
        assert!(told[1].2.starts_with("reading <a>: 3 of 3 in"), "{told:?}");
    }
}
