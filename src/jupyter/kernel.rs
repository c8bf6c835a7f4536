//! One notebook being served: the queue of its cells, and what the running one shows.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use aolab::display::Part;
use jupyter_protocol::{
    DisplayData, ErrorOutput, ExecuteInput, ExecuteReply, ExecuteRequest, ExecuteResult,
    ExecutionCount, JupyterMessage, JupyterMessageContent as Content, Payload, ReplyError,
    ReplyStatus, ShutdownReply, Status, StreamContent, Transient, UpdateDisplayData,
};
use jupyter_zmq_client::{KernelIoPubConnection, RouterSendConnection};
use tokio::time::Instant;

use super::history::History;
use super::replies::{self, media};
use super::screen::Shown;
use super::server::{Order, tell};
use super::worker::{CellFault, Ended, Event, Known};

/// Streams are sent in pieces: a message for each line would cost more than the lines.
const PIECE: usize = 8 << 10;
/// How long a piece, or a result that may be the cell's last, waits for more.
const WAIT: Duration = Duration::from_millis(20);

pub(super) struct Kernel {
    iopub: KernelIoPubConnection,
    shell: RouterSendConnection,
    jobs: std::sync::mpsc::Sender<String>,
    /// Cells that wait for the running one.
    queue: VecDeque<JupyterMessage>,
    running: Option<JupyterMessage>,
    count: usize,
    known: Known,
    history: History,
    /// A stream that has not been sent yet: whether it is of errors, and its text.
    piece: Option<(bool, String)>,
    /// A result that is the cell's own if nothing follows it.
    held: Option<Vec<Part>>,
    /// When both must be sent.
    pub(super) due: Option<Instant>,
    /// Shut down, or left by `quit`.
    pub(super) leaving: bool,
}

impl Kernel {
    pub(super) fn new(
        iopub: KernelIoPubConnection,
        shell: RouterSendConnection,
        jobs: std::sync::mpsc::Sender<String>,
        history: History,
    ) -> Kernel {
        Kernel {
            iopub,
            shell,
            jobs,
            queue: VecDeque::new(),
            running: None,
            count: 0,
            known: Known::default(),
            history,
            piece: None,
            held: None,
            due: None,
            leaving: false,
        }
    }

    /// Sends to everyone who watches.
    pub(super) async fn publish(&mut self, message: JupyterMessage) {
        if let Err(error) = self.iopub.send(message).await {
            tell(&format!("an output could not be sent: {error}"));
        }
    }

    /// Sends to everyone, as an answer to the running cell.
    async fn show(&mut self, content: impl Into<Content>) {
        let message = JupyterMessage::new(content, self.running.as_ref());
        self.publish(message).await;
    }

    async fn answer(&mut self, request: &JupyterMessage, content: Content) {
        let sent = self.shell.send(JupyterMessage::new(content, Some(request))).await;
        if let Err(error) = sent {
            tell(&format!("a reply could not be sent: {error}"));
        }
    }

    async fn status(&mut self, request: &JupyterMessage, busy: bool) {
        let status = if busy { Status::busy() } else { Status::idle() };
        self.publish(status.as_child_of(request)).await;
    }

    pub(super) async fn asked(&mut self, request: JupyterMessage) {
        match &request.content {
            Content::ExecuteRequest(_) => {
                self.queue.push_back(request);
                self.start_next().await;
            }
            Content::ShutdownRequest(shutdown) => {
                let restart = shutdown.restart;
                let reply = ShutdownReply { restart, ..ShutdownReply::default() };
                self.answer(&request, reply.into()).await;
                self.leaving = true;
            }
            content => {
                let Some(reply) = replies::reply(content, &self.known, &self.history) else {
                    return;
                };
                // While a cell runs the kernel is busy, whatever else it answers.
                let quiet = self.running.is_some();
                if !quiet {
                    self.status(&request, true).await;
                }
                self.answer(&request, reply).await;
                if !quiet {
                    self.status(&request, false).await;
                }
            }
        }
    }

    pub(super) async fn ordered(&mut self, order: Order) {
        self.status(&order.request, true).await;
        self.status(&order.request, false).await;
        self.leaving |= order.leaving;
    }

    /// Begins the next cell if none runs.
    async fn start_next(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some(request) = self.queue.pop_front() else { return };
        let Content::ExecuteRequest(execute) = &request.content else { return };
        let execute = execute.clone();
        self.status(&request, true).await;
        self.running = Some(request);
        if kept(&execute) {
            self.count += 1;
            self.history.add(self.count, &execute.code);
        }
        if !execute.silent {
            let execution_count = ExecutionCount::new(self.count);
            self.show(ExecuteInput { code: execute.code.clone(), execution_count }).await;
        }
        // The worker lives as long as this end of the channel.
        let _ = self.jobs.send(execute.code);
    }

    pub(super) async fn happened(&mut self, event: Event) {
        match event {
            Event::Shown(Shown::Stream { error, text }) => {
                self.flush_result().await;
                if self.piece.as_ref().is_some_and(|(of_errors, _)| *of_errors != error) {
                    self.flush_piece().await;
                }
                let (_, piece) = self.piece.get_or_insert_with(|| (error, String::new()));
                piece.push_str(&text);
                if piece.len() >= PIECE {
                    self.flush_piece().await;
                }
                self.due.get_or_insert_with(|| Instant::now() + WAIT);
            }
            Event::Shown(Shown::Result(parts)) => {
                self.flush().await;
                self.held = Some(parts);
                self.due = Some(Instant::now() + WAIT);
            }
            Event::Shown(Shown::Progress { id, first, parts }) => {
                self.flush().await;
                if first {
                    let mut display = DisplayData::new(media(parts));
                    display.transient = Some(Transient { display_id: Some(id) });
                    self.show(display).await;
                } else {
                    self.show(UpdateDisplayData::new(media(parts), &id)).await;
                }
            }
            Event::Ended(ended) => self.ended(ended).await,
        }
    }

    /// Sends what waits for more.
    pub(super) async fn flush(&mut self) {
        self.flush_piece().await;
        self.flush_result().await;
    }

    async fn flush_piece(&mut self) {
        self.due = None;
        match self.piece.take() {
            Some((true, text)) => self.show(StreamContent::stderr(&text)).await,
            Some((false, text)) => self.show(StreamContent::stdout(&text)).await,
            None => {}
        }
    }

    async fn flush_result(&mut self) {
        self.due = None;
        if let Some(parts) = self.held.take() {
            self.show(DisplayData::new(media(parts))).await;
        }
    }

    async fn ended(&mut self, ended: Ended) {
        self.flush_piece().await;
        let execution_count = ExecutionCount::new(self.count);
        if let Some(parts) = self.held.take() {
            // The last result of a cell is its own.
            self.show(ExecuteResult::new(execution_count, media(parts))).await;
        }
        self.known = ended.known;
        let failed = ended.fault.is_some();
        let mut reply = ExecuteReply {
            execution_count,
            user_expressions: Some(HashMap::new()),
            ..ExecuteReply::default()
        };
        if let Some(fault) = ended.fault {
            let error = reply_error(fault);
            let ReplyError { ename, evalue, traceback } = error.clone();
            self.show(ErrorOutput { ename, evalue, traceback }).await;
            reply.status = ReplyStatus::Error;
            reply.error = Some(Box::new(error));
        }
        if ended.leaving {
            reply.payload.push(Payload::AskExit { keepkernel: false });
            self.leaving = true;
        }
        let Some(request) = self.running.take() else { return };
        self.answer(&request, reply.into()).await;
        self.status(&request, false).await;
        if failed && stops_others(&request) {
            self.abort_queue().await;
        }
        self.start_next().await;
    }

    /// Cells that were asked for after one that failed are not run.
    async fn abort_queue(&mut self) {
        while let Some(request) = self.queue.pop_front() {
            self.status(&request, true).await;
            let reply = ExecuteReply {
                status: ReplyStatus::Aborted,
                execution_count: ExecutionCount::new(self.count),
                ..ExecuteReply::default()
            };
            self.answer(&request, reply.into()).await;
            self.status(&request, false).await;
        }
    }
}

/// Whether a cell counts and goes into the history.
fn kept(execute: &ExecuteRequest) -> bool {
    execute.store_history && !execute.silent && !execute.code.trim().is_empty()
}

fn stops_others(request: &JupyterMessage) -> bool {
    matches!(&request.content, Content::ExecuteRequest(execute) if execute.stop_on_error)
}

fn reply_error(fault: CellFault) -> ReplyError {
    let CellFault { name, words } = fault;
    let traceback = words.lines().enumerate().map(|(i, line)| match i {
        0 => format!("\x1b[1;31m{name}\x1b[0m: {line}"),
        _ => line.to_owned(),
    });
    ReplyError { ename: name.to_owned(), traceback: traceback.collect(), evalue: words }
}
