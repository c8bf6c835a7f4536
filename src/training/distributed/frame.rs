//! What ranks send each other: a kind, a length, and so many bytes. Lengths are checked before they are believed.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use crate::error::{Error, Result};

const DATA: u8 = 0;
const WORDS: u8 = 1;

/// The longest words of an error or a greeting.
const MOST_WORDS: usize = 1 << 16;

/// Sends bytes.
pub(super) fn send(stream: &mut TcpStream, peer: &str, data: &[u8]) -> Result<()> {
    write(stream, DATA, data).map_err(|error| lost(peer, &error))
}

/// Tells why this rank gives up; a peer that is gone cannot be told.
pub(super) fn give_up(stream: &mut TcpStream, words: &str) {
    let end = (0..=words.len().min(MOST_WORDS)).rev().find(|end| words.is_char_boundary(*end));
    let _ = write(stream, WORDS, &words.as_bytes()[..end.unwrap_or(0)]);
}

fn write(stream: &mut TcpStream, kind: u8, data: &[u8]) -> io::Result<()> {
    let mut head = [0; 9];
    head[0] = kind;
    head[1..].copy_from_slice(&(data.len() as u64).to_le_bytes());
    stream.write_all(&head)?;
    stream.write_all(data)?;
    stream.flush()
}

/// Receives exactly `data.len()` bytes.
pub(super) fn receive(stream: &mut TcpStream, peer: &str, data: &mut [u8]) -> Result<()> {
    let len = head(stream, peer)?;
    if len != data.len() as u64 {
        return Err(Error::invalid(format!(
            "{peer} sent {len} bytes, wanted {}: it trains something else",
            data.len()
        )));
    }
    stream.read_exact(data).map_err(|error| lost(peer, &error))
}

/// Receives a greeting.
pub(super) fn receive_words(stream: &mut TcpStream, peer: &str) -> Result<String> {
    let len = head(stream, peer)?;
    let len = usize::try_from(len).ok().filter(|len| *len <= MOST_WORDS);
    let len = len.ok_or_else(|| Error::invalid(format!("{peer} is no rank of aolab")))?;
    let mut data = vec![0; len];
    stream.read_exact(&mut data).map_err(|error| lost(peer, &error))?;
    String::from_utf8(data).map_err(|_| Error::invalid(format!("{peer} is no rank of aolab")))
}

/// The length of what comes; an error where the peer gives up.
fn head(stream: &mut TcpStream, peer: &str) -> Result<u64> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).map_err(|error| lost(peer, &error))?;
    let [kind, len @ ..] = head;
    let len = u64::from_le_bytes(len);
    match kind {
        DATA => Ok(len),
        WORDS => {
            let mut words = Vec::new();
            let most = len.min(MOST_WORDS as u64);
            let _ = stream.take(most).read_to_end(&mut words);
            Err(Error::invalid(format!("{peer} gave up: {}", String::from_utf8_lossy(&words))))
        }
        _ => Err(Error::invalid(format!("{peer} is no rank of aolab"))),
    }
}

fn lost(peer: &str, error: &io::Error) -> Error {
    let why = match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => "it closed the connection".to_owned(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            "it did not answer in time".to_owned()
        }
        _ => error.to_string(),
    };
    Error::invalid(format!(
        "{peer} was lost: {why}; start all ranks again, with `--resume` where there are checkpoints"
    ))
}
