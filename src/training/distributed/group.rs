//! The ranks that train together, each connected to rank 0.

use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::frame;
use super::launch::Launch;
use crate::error::{Error, Result};

/// Changes with what is sent.
const VERSION: u64 = 1;

/// How long a rank that is not up yet is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// Connected ranks.
#[derive(Debug)]
pub struct Group {
    rank: usize,
    world_size: usize,
    /// Rank 0's: to ranks 1, 2 … The others': to rank 0 alone.
    peers: Vec<TcpStream>,
}

impl Group {
    /// Meets the others; all must be there `within` that time, and wait no longer than `answer` for each other later.
    /// `run` says what is trained: ranks that train something else are refused.
    pub fn connect(
        launch: &Launch,
        run: &str,
        within: Duration,
        answer: Duration,
    ) -> Result<Group> {
        let end = Instant::now() + within;
        let mut group =
            Group { rank: launch.rank, world_size: launch.world_size, peers: Vec::new() };
        if launch.world_size < 2 {
            return Ok(group);
        }
        if launch.rank == 0 {
            group.peers = listen(launch, run, end)?;
        } else {
            group.peers = vec![join(launch, run, end)?];
        }
        for peer in &group.peers {
            let set = peer
                .set_read_timeout(Some(answer))
                .and_then(|()| peer.set_write_timeout(Some(answer)))
                .and_then(|()| peer.set_nodelay(true));
            set.map_err(|error| Error::invalid(format!("a connection to a rank: {error}")))?;
        }
        Ok(group)
    }

    /// Which rank this is.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// `values ← Σ values` over all ranks, summed in their order: the same bytes on each.
    pub fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<()> {
        self.all_reduce(values, |sum, other| sum + other)
    }

    /// `values ← max values` over all ranks; a NaN of any rank stays one.
    pub fn all_reduce_max(&mut self, values: &mut [f32]) -> Result<()> {
        self.all_reduce(
            values,
            |most, other| if other > most || other.is_nan() { other } else { most },
        )
    }

    /// The bytes of all ranks one after another, the same on each: this rank's are `own`, rank r's `lengths[r]` long.
    pub fn all_gather(&mut self, own: &[u8], lengths: &[usize]) -> Result<Vec<u8>> {
        let wanted = lengths.get(self.rank).copied().unwrap_or(0);
        if lengths.len() != self.world_size || own.len() != wanted {
            return Err(Error::invalid(format!(
                "rank {} of {} gathers {} bytes; {lengths:?} were said",
                self.rank,
                self.world_size,
                own.len()
            )));
        }
        let mut all = vec![0; lengths.iter().sum()];
        if self.rank > 0 {
            frame::send(&mut self.peers[0], "rank 0", own)?;
            frame::receive(&mut self.peers[0], "rank 0", &mut all)?;
            return Ok(all);
        }
        let (first, mut rest) = all.split_at_mut(own.len());
        first.copy_from_slice(own);
        for (i, (peer, len)) in self.peers.iter_mut().zip(&lengths[1..]).enumerate() {
            let (part, others) = rest.split_at_mut(*len);
            frame::receive(peer, &name(i + 1), part)?;
            rest = others;
        }
        for (i, peer) in self.peers.iter_mut().enumerate() {
            frame::send(peer, &name(i + 1), &all)?;
        }
        Ok(all)
    }

    fn all_reduce(&mut self, values: &mut [f32], both: fn(f32, f32) -> f32) -> Result<()> {
        if self.rank > 0 {
            frame::send(&mut self.peers[0], "rank 0", bytemuck::cast_slice(values))?;
            return frame::receive(&mut self.peers[0], "rank 0", bytemuck::cast_slice_mut(values));
        }
        let summed = self.gather(values, both);
        if let Err(error) = &summed {
            // The others wait for the sum: they are told that none will come.
            self.give_up(&error.to_string());
        }
        summed?;
        for (i, peer) in self.peers.iter_mut().enumerate() {
            frame::send(peer, &name(i + 1), bytemuck::cast_slice(values))?;
        }
        Ok(())
    }

    fn gather(&mut self, values: &mut [f32], both: fn(f32, f32) -> f32) -> Result<()> {
        let mut others = vec![0.0_f32; values.len()];
        for (i, peer) in self.peers.iter_mut().enumerate() {
            frame::receive(peer, &name(i + 1), bytemuck::cast_slice_mut(&mut others))?;
            values.iter_mut().zip(&others).for_each(|(sum, other)| *sum = both(*sum, *other));
        }
        Ok(())
    }

    /// Tells the others why this rank goes no further.
    pub fn give_up(&mut self, words: &str) {
        self.peers.iter_mut().for_each(|peer| frame::give_up(peer, words));
    }
}

fn name(rank: usize) -> String {
    format!("rank {rank}")
}

fn greeting(launch: &Launch, run: &str) -> String {
    json!({
        "aolab": VERSION, "rank": launch.rank, "world_size": launch.world_size, "run": run
    })
    .to_string()
}

/// Rank 0: waits for all others, and greets each back once it is known that it belongs here.
fn listen(launch: &Launch, run: &str, end: Instant) -> Result<Vec<TcpStream>> {
    let address = (launch.master_addr.as_str(), launch.master_port);
    let at = format!("{}:{}", address.0, address.1);
    let fault = |error: std::io::Error| {
        Error::invalid(format!("rank 0 cannot listen at {at}: {error}; choose another MASTER_PORT"))
    };
    let listener = TcpListener::bind(address).map_err(fault)?;
    listener.set_nonblocking(true).map_err(fault)?;
    let mut peers: Vec<Option<TcpStream>> = (1..launch.world_size).map(|_| None).collect();
    while peers.iter().any(Option::is_none) {
        if Instant::now() > end {
            let missing: Vec<String> = (1..launch.world_size)
                .filter(|rank| peers[rank - 1].is_none())
                .map(|rank| rank.to_string())
                .collect();
            return Err(Error::invalid(format!(
                "rank 0 waited in vain for rank {}; WORLD_SIZE is {}: start that many processes",
                missing.join(", "),
                launch.world_size
            )));
        }
        let Ok((mut stream, _)) = listener.accept() else {
            thread::sleep(PAUSE);
            continue;
        };
        match admit(&mut stream, launch, run, end) {
            Ok(rank) if peers[rank - 1].is_some() => {
                frame::give_up(&mut stream, &format!("there is a rank {rank} already"));
            }
            Ok(rank) => peers[rank - 1] = Some(stream),
            Err(error) => {
                // What does not belong here is told so; a rank of this run that is set wrong ends it.
                frame::give_up(&mut stream, &error.to_string());
                for peer in peers.iter_mut().flatten() {
                    frame::give_up(peer, &error.to_string());
                }
                return Err(error);
            }
        }
    }
    let mut peers: Vec<TcpStream> = peers.into_iter().flatten().collect();
    for (i, peer) in peers.iter_mut().enumerate() {
        frame::send(peer, &name(i + 1), greeting(launch, run).as_bytes())?;
    }
    Ok(peers)
}

/// Which rank a connection is.
fn admit(stream: &mut TcpStream, launch: &Launch, run: &str, end: Instant) -> Result<usize> {
    let left = end.saturating_duration_since(Instant::now()).max(PAUSE);
    let blocking = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(left)));
    blocking.map_err(|error| Error::invalid(format!("a connection to a rank: {error}")))?;
    let words = frame::receive_words(stream, "who connected")?;
    let hello: Json = serde_json::from_str(&words)
        .map_err(|_| Error::invalid("who connected is no rank of aolab"))?;
    let number = |field: &str| hello[field].as_u64().and_then(|n| usize::try_from(n).ok());
    let rank = number("rank").filter(|rank| (1..launch.world_size).contains(rank));
    let (size, version) = (number("world_size"), hello["aolab"].as_u64());
    if version != Some(VERSION) {
        return Err(Error::invalid("a rank runs another version of aolab; take the same for all"));
    }
    if size != Some(launch.world_size) {
        return Err(Error::invalid(format!(
            "a rank has WORLD_SIZE {}, rank 0 has {}; set the same for all",
            hello["world_size"], launch.world_size
        )));
    }
    let rank = rank.ok_or_else(|| {
        Error::invalid(format!(
            "a rank calls itself {}; wanted 1 to {}",
            hello["rank"],
            launch.world_size - 1
        ))
    })?;
    if hello["run"].as_str() != Some(run) {
        return Err(Error::invalid(format!(
            "rank {rank} trains {}, rank 0 {run}; start all ranks with the same command",
            hello["run"]
        )));
    }
    Ok(rank)
}

/// The others: try until rank 0 listens, and wait until it has met all.
fn join(launch: &Launch, run: &str, end: Instant) -> Result<TcpStream> {
    let at = format!("{}:{}", launch.master_addr, launch.master_port);
    let unknown = |error: std::io::Error| {
        Error::invalid(format!("MASTER_ADDR {}: {error}", launch.master_addr))
    };
    let addresses: Vec<_> = (launch.master_addr.as_str(), launch.master_port)
        .to_socket_addrs()
        .map_err(unknown)?
        .collect();
    let mut stream = loop {
        if let Ok(stream) = TcpStream::connect(&addresses[..]) {
            break stream;
        }
        if Instant::now() > end {
            return Err(Error::invalid(format!(
                "rank {} found no rank 0 at {at}; start it, or set MASTER_ADDR and MASTER_PORT",
                launch.rank
            )));
        }
        thread::sleep(PAUSE);
    };
    let left = end.saturating_duration_since(Instant::now()).max(PAUSE);
    stream
        .set_read_timeout(Some(left))
        .map_err(|error| Error::invalid(format!("a connection to rank 0: {error}")))?;
    frame::send(&mut stream, "rank 0", greeting(launch, run).as_bytes())?;
    frame::receive_words(&mut stream, "rank 0")?;
    Ok(stream)
}
