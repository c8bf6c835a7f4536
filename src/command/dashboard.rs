//! `dashboard`

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::{Command, Example, Group, Output};
use crate::dashboard;
use crate::error::Result;
use crate::session::Session;
use crate::value::{Kind, Value};

/// Show the run store in a browser, live, until Ctrl-C.
///
/// The address that it shows has a token; without it nothing is answered. Only this machine can reach it unless --listen says otherwise: it
/// is not encrypted.
#[derive(Debug, clap::Args)]
pub(super) struct Dashboard {
    /// The port; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The address of this machine to listen at
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    listen: IpAddr,
    /// End after so many seconds
    #[arg(long)]
    seconds: Option<f64>,
}

impl Command for Dashboard {
    const NAME: &'static str = "dashboard";
    const GROUP: Group = Group::Session;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Nothing);
    const REPLAYS: bool = false;
    const EXAMPLES: &'static [Example] = &[Example {
        line: "dashboard --seconds 0.2",
        about: "open the address that it shows; without --seconds Ctrl-C ends it",
        expect: "http://127.0.0.1:",
    }];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        let store = session.store()?;
        let server = dashboard::Dashboard::listen(SocketAddr::new(self.listen, self.port))?;
        session.note(&format!("{} (Ctrl-C ends it)", server.url()));
        let limit = self.seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let begun = Instant::now();
        let over = || limit.is_some_and(|limit| begun.elapsed() >= limit);
        server.serve(&store, &|| session.cancelled() || over())?;
        // To stop is how this command ends.
        session.clear_cancelled();
        Ok(Value::Nothing)
    }
}
