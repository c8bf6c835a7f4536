//! The sockets and the loop that serves them.
//!
//! The worker's thread runs cells; this thread does everything else, so that completion, inspection and interrupts
//! are answered while a cell runs. Messages whose signature is wrong are told about and not obeyed.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aolab::error::AtPath as _;
use aolab::{Error, Result, Session};
use jupyter_protocol::{
    ConnectionInfo, InterruptReply, JupyterMessage, JupyterMessageContent as Content,
    ShutdownReply, Status,
};
use jupyter_zmq_client as zmq;
use jupyter_zmq_client::{KernelControlConnection, RouterRecvConnection, RuntimeError};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, sleep, sleep_until};

use super::history::History;
use super::kernel::Kernel;
use super::replies;
use super::worker::{self, Event};
use crate::cli::Environment;

/// How long a running cell has to stop when the kernel is to end.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until a client says shutdown, a cell says `quit`, or Jupyter is gone.
pub(super) fn run(path: &Path, session: Session, environment: &Environment) -> Result<()> {
    let text = std::fs::read_to_string(path).at(path)?;
    let connection: ConnectionInfo = serde_json::from_str(&text).map_err(|error| {
        Error::file(path, format!("wanted one of Jupyter's connection files, got {error}"))
    })?;
    if connection.signature_scheme != "hmac-sha256" {
        let got = &connection.signature_scheme;
        return Err(Error::file(path, format!("signed by {got:?}; this kernel signs hmac-sha256")));
    }
    if connection.key.is_empty() {
        tell("this connection file has no key: whoever reaches its ports can run cells");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::invalid(format!("no event loop: {error}")))?;
    let stop = session.cancel_flag();
    let history = History::open(environment.history_file.as_deref());
    let (jobs, received) = std::sync::mpsc::channel();
    let (events, seen) = channel(256);
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || worker::work(session, &received, &events));
        let served = runtime.block_on(serve(&connection, &stop, jobs, seen, history, environment));
        // A cell that does not hear that it should stop does not keep the kernel alive.
        stop.store(true, Ordering::Relaxed);
        let deadline = std::time::Instant::now() + GRACE;
        while !worker.is_finished() {
            if std::time::Instant::now() > deadline {
                std::process::exit(i32::from(served.is_err()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        served.map_err(|error| Error::invalid(format!("the notebook's sockets: {error}")))
    })
}

/// A word to whoever watches the kernel's own output; not part of a notebook.
pub(super) fn tell(words: &str) {
    let _ = writeln!(std::io::stderr(), "aolab jupyter: {words}");
}

async fn serve(
    connection: &ConnectionInfo,
    stop: &Arc<AtomicBool>,
    jobs: std::sync::mpsc::Sender<String>,
    mut events: Receiver<Event>,
    history: History,
    environment: &Environment,
) -> Result<(), RuntimeError> {
    let id = format!("aolab-{}", std::process::id());
    let mut heartbeat = zmq::create_kernel_heartbeat_connection(connection).await?;
    let shell = zmq::create_kernel_shell_connection(connection, &id).await?;
    let control = zmq::create_kernel_control_connection(connection, &id).await?;
    // Nothing is ever asked of the person, but clients connect.
    let _stdin = zmq::create_kernel_stdin_connection(connection, &id).await?;
    let iopub = zmq::create_kernel_iopub_connection(connection, &id).await?;
    tokio::spawn(async move {
        loop {
            if heartbeat.single_heartbeat().await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let (shell, incoming) = shell.split();
    let (requests, mut asked) = channel(64);
    tokio::spawn(listen(incoming, requests));
    let (orders, mut ordered) = channel(64);
    tokio::spawn(obey(control, Arc::clone(stop), orders));
    let mut gone = Box::pin(parent_is_gone(environment.jupyter.has_parent));
    let mut kernel = Kernel::new(iopub, shell, jobs, history);
    kernel.publish(Status::starting().into()).await;
    while !kernel.leaving {
        let due = kernel.due.unwrap_or_else(Instant::now);
        tokio::select! {
            Some(request) = asked.recv() => kernel.asked(request).await,
            Some(event) = events.recv() => kernel.happened(event).await,
            Some(order) = ordered.recv() => kernel.ordered(order).await,
            () = sleep_until(due), if kernel.due.is_some() => kernel.flush().await,
            () = &mut gone => kernel.leaving = true,
        }
    }
    // What was said last is still on its way.
    sleep(Duration::from_millis(50)).await;
    Ok(())
}

/// Hands on what clients ask. A message that is damaged or not signed by our key is not obeyed.
async fn listen(mut shell: RouterRecvConnection, requests: Sender<JupyterMessage>) {
    loop {
        match shell.read().await {
            Ok(request) => {
                if requests.send(request).await.is_err() {
                    return;
                }
            }
            Err(error) => refused(&error).await,
        }
    }
}

async fn refused(error: &RuntimeError) {
    match error {
        RuntimeError::VerifyError(_) => {
            tell("a message with a wrong signature was not obeyed");
        }
        other => tell(&format!("a message was not understood: {other}")),
    }
    // Whoever floods us with nonsense does not take the processor.
    sleep(Duration::from_millis(1)).await;
}

/// Interrupts and shutdowns, at once.
async fn obey(mut control: KernelControlConnection, stop: Arc<AtomicBool>, orders: Sender<Order>) {
    loop {
        let request = match control.read().await {
            Ok(request) => request,
            Err(error) => {
                refused(&error).await;
                continue;
            }
        };
        let (reply, leaving) = match &request.content {
            Content::InterruptRequest(_) => {
                stop.store(true, Ordering::Relaxed);
                (InterruptReply::default().into(), false)
            }
            Content::ShutdownRequest(shutdown) => {
                stop.store(true, Ordering::Relaxed);
                (
                    ShutdownReply { restart: shutdown.restart, ..ShutdownReply::default() }.into(),
                    true,
                )
            }
            Content::KernelInfoRequest(_) => (replies::kernel_info().into(), false),
            _ => continue,
        };
        let reply: Content = reply;
        if orders.send(Order { request: request.clone(), leaving: false }).await.is_err() {
            return;
        }
        if let Err(error) = control.send(JupyterMessage::new(reply, Some(&request))).await {
            tell(&format!("a reply could not be sent: {error}"));
        }
        if leaving {
            let _ = orders.send(Order { request, leaving }).await;
        }
    }
}

/// A request that the control socket has answered.
pub(super) struct Order {
    pub(super) request: JupyterMessage,
    pub(super) leaving: bool,
}

/// A kernel whose Jupyter was killed would wait for ever.
async fn parent_is_gone(has_parent: bool) {
    #[cfg(unix)]
    if has_parent {
        let parent = std::os::unix::process::parent_id();
        while std::os::unix::process::parent_id() == parent {
            sleep(Duration::from_secs(1)).await;
        }
        return;
    }
    let _ = has_parent;
    std::future::pending().await
}
