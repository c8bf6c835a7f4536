//! The Jupyter kernel as a program, with a client of the same protocol: what `tests/jupyter_kernel.py` does with
//! Jupyter's own client, as far as no Python is needed.
#![cfg(feature = "jupyter")]
#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jupyter_protocol::{
    ConnectionInfo, ExecuteRequest, ExecutionState, InterruptRequest, JupyterMessage,
    JupyterMessageContent as Content, KernelInfoRequest, ReplyStatus, ShutdownRequest, Transport,
};
use jupyter_zmq_client as zmq;

const PATIENCE: Duration = Duration::from_secs(60);

struct Client {
    kernel: Child,
    shell: zmq::ClientShellConnection,
    control: zmq::ClientControlConnection,
    iopub: zmq::ClientIoPubConnection,
}

impl Drop for Client {
    fn drop(&mut self) {
        // A kernel that has ended cannot be killed; that is as well.
        let _ = self.kernel.kill();
        let _ = self.kernel.wait();
    }
}

fn info(ports: &[u16]) -> ConnectionInfo {
    ConnectionInfo {
        ip: "127.0.0.1".into(),
        transport: Transport::TCP,
        shell_port: ports[0],
        iopub_port: ports[1],
        stdin_port: ports[2],
        control_port: ports[3],
        hb_port: ports[4],
        key: "a key that nobody guesses".into(),
        signature_scheme: "hmac-sha256".into(),
        kernel_name: None,
    }
}

async fn start(folder: &Path) -> (Client, ConnectionInfo) {
    let ports = zmq::peek_ports("127.0.0.1".parse().expect("an address"), 5).await;
    let info = info(&ports.expect("free ports"));
    let file = folder.join("connection.json");
    std::fs::write(&file, serde_json::to_string(&info).expect("JSON")).expect("written");
    let kernel = Command::new(env!("CARGO_BIN_EXE_aolab"))
        .args(["jupyter", "run"])
        .arg(&file)
        .env("XDG_DATA_HOME", folder)
        .stderr(Stdio::null())
        .spawn()
        .expect("the kernel starts");
    // Sockets that connect before the kernel listens would wait; try until it does.
    let begin = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", info.iopub_port)).is_err() {
        assert!(begin.elapsed() < PATIENCE, "the kernel does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let identity = zmq::peer_identity_for_session("test").expect("an identity");
    let shell = zmq::create_client_shell_connection_with_identity(&info, "test", identity).await;
    let control = zmq::create_client_control_connection(&info, "test").await;
    let iopub = zmq::create_client_iopub_connection(&info, "", "test").await;
    let mut client = Client {
        kernel,
        shell: shell.expect("shell"),
        control: control.expect("control"),
        iopub: iopub.expect("iopub"),
    };
    // A subscription takes a moment to arrive; from the first answer on nothing is missed.
    loop {
        client.shell.send(KernelInfoRequest {}.into()).await.expect("asked");
        within(client.shell.read()).await.expect("kernel info");
        let seen = tokio::time::timeout(Duration::from_millis(300), client.iopub.read()).await;
        if seen.is_ok() {
            while tokio::time::timeout(Duration::from_millis(100), client.iopub.read())
                .await
                .is_ok()
            {}
            return (client, info);
        }
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("an answer in time")
}

impl Client {
    async fn send(&mut self, code: &str) {
        self.shell.send(ExecuteRequest::new(code.to_owned()).into()).await.expect("asked");
    }

    /// The reply to the cell that was sent last, and what it showed.
    async fn outcome(&mut self) -> (JupyterMessage, Vec<Content>) {
        let reply = within(self.shell.read()).await.expect("a reply");
        let asked = reply.parent_header.as_ref().expect("a parent").msg_id.clone();
        let mut shown = Vec::new();
        loop {
            let seen = within(self.iopub.read()).await.expect("an output");
            if seen.parent_header.as_ref().is_none_or(|parent| parent.msg_id != asked) {
                continue;
            }
            match seen.content {
                Content::Status(status) if status.execution_state == ExecutionState::Idle => break,
                content => shown.push(content),
            }
        }
        (reply, shown)
    }

    async fn run(&mut self, code: &str) -> (ReplyStatus, Vec<Content>) {
        self.send(code).await;
        let (reply, shown) = self.outcome().await;
        let Content::ExecuteReply(reply) = reply.content else { panic!("{:?}", reply.content) };
        (reply.status, shown)
    }
}

#[tokio::test]
async fn cells_run_fail_and_are_interrupted_in_one_session() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut client, info) = start(folder.path()).await;

    let (status, shown) = client.run("base = load tiny\n$base | size\nplot bars --y bytes").await;
    assert_eq!(status, ReplyStatus::Ok);
    let results: Vec<_> = shown
        .iter()
        .filter(|c| matches!(c, Content::DisplayData(_) | Content::ExecuteResult(_)))
        .collect();
    assert_eq!(results.len(), 3, "{shown:?}");
    assert!(matches!(results[2], Content::ExecuteResult(_)), "the last result is the cell's own");

    let (status, shown) = client.run("nonsense").await;
    assert_eq!(status, ReplyStatus::Error);
    assert!(shown.iter().any(|c| matches!(c, Content::ErrorOutput(_))), "{shown:?}");

    client.send("$base | eval perplexity --context 256").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.control.send(InterruptRequest {}.into()).await.expect("asked");
    let (reply, _) = client.outcome().await;
    let Content::ExecuteReply(reply) = reply.content else { panic!("{:?}", reply.content) };
    assert_eq!(reply.error.map(|error| error.ename), Some("KeyboardInterrupt".to_owned()));
    let (status, _) = client.run("$base | size").await;
    assert_eq!(status, ReplyStatus::Ok, "the session is as it was");

    // A stranger with another key asks for the same, and gets no answer.
    let stranger = ConnectionInfo { key: "a guess".into(), ..info };
    let identity = zmq::peer_identity_for_session("stranger").expect("an identity");
    let shell = zmq::create_client_shell_connection_with_identity(&stranger, "x", identity).await;
    let mut shell = shell.expect("connects");
    shell.send(KernelInfoRequest {}.into()).await.expect("sent");
    let answer = tokio::time::timeout(Duration::from_millis(500), shell.read()).await;
    assert!(answer.is_err(), "an unsigned message was obeyed");

    client.control.send(ShutdownRequest { restart: false }.into()).await.expect("asked");
    within(client.control.read()).await.expect("the interrupt's reply");
    let begin = Instant::now();
    while client.kernel.try_wait().expect("a child").is_none() {
        assert!(begin.elapsed() < PATIENCE, "the kernel does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn what_is_no_connection_file_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("connection.json");
    for (text, words) in [("{}", "connection files"), ("", "connection files")] {
        std::fs::write(&file, text).expect("written");
        let run = Command::new(env!("CARGO_BIN_EXE_aolab"))
            .args(["jupyter", "run"])
            .arg(&file)
            .output()
            .expect("it runs");
        let errors = String::from_utf8_lossy(&run.stderr);
        assert!(!run.status.success() && errors.contains(words), "{errors}");
    }
}

#[test]
fn a_kernel_is_installed_with_our_flags_and_taken_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let aolab = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aolab"));
        command.args(words).env("JUPYTER_DATA_DIR", folder.path()).output().expect("it runs")
    };
    assert!(aolab(&["--threads", "2", "jupyter", "install", "--name", "two"]).status.success());
    let spec = folder.path().join("kernels/two/kernel.json");
    let text = std::fs::read_to_string(&spec).expect("a kernelspec");
    let spec_json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let argv: Vec<&str> =
        spec_json["argv"].as_array().expect("argv").iter().filter_map(|a| a.as_str()).collect();
    assert_eq!(argv[1..], ["--threads", "2", "jupyter", "run", "{connection_file}"]);
    assert_eq!(spec_json["interrupt_mode"], "message");
    assert!(aolab(&["jupyter", "uninstall", "--name", "two"]).status.success());
    assert!(!spec.exists());
    let again = aolab(&["jupyter", "uninstall", "--name", "two"]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(aolab(&["jupyter", "install", "--name", "../x"]).status.code(), Some(2));
    assert_eq!(aolab(&["jupyter"]).status.code(), Some(2));
}
