//! What a launcher tells a process: torchrun's variables.

use crate::error::{Error, Result};

/// Who a process is among those that train together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Which of them, from 0.
    pub rank: usize,
    /// How many they are.
    pub world_size: usize,
    /// Which of those on this machine; which GPU it takes.
    pub local_rank: usize,
    /// Where rank 0 listens.
    pub master_addr: String,
    /// The port.
    pub master_port: u16,
}

impl Launch {
    /// Reads `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`; `None` where no `WORLD_SIZE` is set.
    pub fn from_env(find: impl Fn(&str) -> Option<String>) -> Result<Option<Launch>> {
        let Some(size) = find("WORLD_SIZE") else { return Ok(None) };
        let number = |name: &str, text: Option<String>| {
            let text = text.ok_or_else(|| {
                Error::invalid(format!(
                    "WORLD_SIZE is set and {name} is not; a launcher such as torchrun sets both"
                ))
            })?;
            text.trim()
                .parse::<usize>()
                .map_err(|_| Error::invalid(format!("{name} is {text:?}; wanted a whole number")))
        };
        let world_size = number("WORLD_SIZE", Some(size))?;
        let rank = number("RANK", find("RANK"))?;
        if rank >= world_size {
            return Err(Error::invalid(format!(
                "RANK is {rank} and WORLD_SIZE {world_size}; wanted a rank from 0 to below the size"
            )));
        }
        let local_rank =
            find("LOCAL_RANK").map_or(Ok(rank), |text| number("LOCAL_RANK", Some(text)))?;
        let port = find("MASTER_PORT").unwrap_or_else(|| "29500".to_owned());
        let master_port = port
            .trim()
            .parse()
            .map_err(|_| Error::invalid(format!("MASTER_PORT is {port:?}; wanted 1 to 65535")))?;
        let master_addr = find("MASTER_ADDR").unwrap_or_else(|| "127.0.0.1".to_owned());
        Ok(Some(Launch { rank, world_size, local_rank, master_addr, master_port }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(all: &[(&str, &str)]) -> Result<Option<Launch>> {
        Launch::from_env(|name| {
            all.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn torchruns_variables_are_read_and_checked() {
        assert_eq!(read(&[("RANK", "1")]).expect("alone"), None);
        let launch = read(&[("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "4000")]);
        let launch = launch.expect("sound").expect("set");
        assert_eq!((launch.rank, launch.local_rank, launch.master_port), (1, 1, 4000));
        assert_eq!(launch.master_addr, "127.0.0.1");
        for (all, words) in [
            (&[("WORLD_SIZE", "2")][..], "RANK is not"),
            (&[("WORLD_SIZE", "2"), ("RANK", "2")], "from 0 to below the size"),
            (&[("WORLD_SIZE", "two"), ("RANK", "0")], "WORLD_SIZE is \"two\""),
            (&[("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_PORT", "70000")], "MASTER_PORT"),
            (&[("WORLD_SIZE", "0"), ("RANK", "0")], "WORLD_SIZE 0"),
        ] {
            let error = read(all).expect_err("refused").to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
