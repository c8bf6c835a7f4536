//! The `aolab` program: a laboratory on the command line. Everything it can do is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use aolab::cli;

fn main() -> ExitCode {
    cli::main(std::env::args_os(), &environment())
}

/// The one place that reads the environment.
#[expect(clippy::disallowed_methods, reason = "this is main")]
fn environment() -> cli::Environment {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let data = set("XDG_DATA_HOME")
        .map(std::path::PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(std::path::PathBuf::from(set("HOME")?).join(".local/share")));
    let cache = set("XDG_CACHE_HOME")
        .map(std::path::PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(std::path::PathBuf::from(set("HOME")?).join(".cache")));
    let folders = |names: &[&str]| -> Vec<std::path::PathBuf> {
        names.iter().filter_map(|name| set(name)).map(Into::into).collect()
    };
    let cuda = aolab::kernels::cuda::Options {
        ordinal: 0,
        library_folders: aolab::kernels::cuda::search_folders(
            &folders(&["AOLAB_CUDA_LIBRARIES"]),
            &folders(&["CUDA_HOME", "CUDA_PATH"]),
            &folders(&["VIRTUAL_ENV", "CONDA_PREFIX"]),
        ),
        cache: cache.map(|folder| folder.join("aolab").join("cuda")),
    };
    let home = set("HOME").map(std::path::PathBuf::from);
    let jupyter = cli::JupyterFolders {
        user: set("JUPYTER_DATA_DIR").map(Into::into).or_else(|| match cfg!(target_os = "macos") {
            true => Some(home?.join("Library").join("Jupyter")),
            false => data.as_ref().map(|folder| folder.join("jupyter")),
        }),
        environment: folders(&["VIRTUAL_ENV", "CONDA_PREFIX"]).into_iter().next(),
        has_parent: set("JPY_PARENT_PID").is_some(),
    };
    cli::Environment {
        cuda,
        jupyter,
        no_color: set("NO_COLOR").is_some(),
        dumb_terminal: set("TERM").is_none_or(|term| term == "dumb"),
        hub: aolab::io::HubConfig::from_env(|name| std::env::var(name).ok()),
        runs_file: data.as_ref().map(|folder| folder.join("aolab").join("runs.sqlite")),
        sessions_folder: data.as_ref().map(|folder| folder.join("aolab").join("sessions")),
        launch: cli::launched(|name| std::env::var(name).ok()),
        history_file: data.map(|folder| folder.join("aolab").join("history")),
    }
}
