//! The kernelspec: a folder with the file that tells Jupyter how to start us.

use std::fs;
use std::path::{Path, PathBuf};

use aolab::error::AtPath as _;
use aolab::{Error, Result};
use serde_json::json;

use crate::cli::JupyterFolders;

/// Which kernel, and where.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The kernel's name in file names and on Jupyter's command line
    #[arg(long, default_value = "aolab", value_name = "NAME", value_parser = kernel_name)]
    pub(super) name: String,
    /// In DIR/share/jupyter instead of the user's folder
    #[arg(long, value_name = "DIR", conflicts_with = "sys_prefix")]
    prefix: Option<PathBuf>,
    /// In the active Python environment
    #[arg(long)]
    sys_prefix: bool,
}

/// Everything that `install` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Install {
    #[command(flatten)]
    pub(super) place: Place,
    /// What JupyterLab shows
    #[arg(long, value_name = "WORDS")]
    display_name: Option<String>,
}

/// Jupyter's own rule: letters, digits, `-`, `.` and `_`.
fn kernel_name(word: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !word.is_empty() && word.chars().all(plain) && !word.starts_with('.') {
        return Ok(word.to_owned());
    }
    Err("a kernel's name is of letters, digits, - . and _".to_owned())
}

impl Place {
    fn folder(&self, folders: &JupyterFolders) -> Result<PathBuf> {
        let data = match (&self.prefix, self.sys_prefix) {
            (Some(prefix), _) => Some(prefix.join("share").join("jupyter")),
            (None, true) => {
                let active = folders.environment.as_ref().ok_or_else(|| {
                    Error::usage("no Python environment is active; name it with --prefix DIR")
                })?;
                Some(active.join("share").join("jupyter"))
            }
            (None, false) => folders.user.clone(),
        };
        let data = data.ok_or_else(|| {
            Error::usage("the user's home folder is unknown; say where with --prefix DIR")
        })?;
        Ok(data.join("kernels").join(&self.name))
    }
}

/// Writes the kernelspec of this very program; gives its folder.
pub(super) fn install(
    install: &Install,
    flags: &[String],
    folders: &JupyterFolders,
) -> Result<PathBuf> {
    let folder = install.place.folder(folders)?;
    let program = std::env::current_exe().at("this program")?;
    let program = program.into_os_string().into_string().map_err(|path| {
        Error::invalid(format!("{}: Jupyter wants a path in UTF-8", path.display()))
    })?;
    let words = ["jupyter", "run", "{connection_file}"].map(str::to_owned);
    let name = &install.place.name;
    let shown = install.display_name.clone().unwrap_or_else(|| match name.as_str() {
        "aolab" => "aolab".to_owned(),
        name => format!("aolab ({name})"),
    });
    let argv: Vec<String> =
        std::iter::once(program).chain(flags.iter().cloned()).chain(words).collect();
    let spec = json!({
        "argv": argv,
        "display_name": shown,
        "language": "aolab",
        // A message also reaches a kernel on another machine; signals are obeyed as well.
        "interrupt_mode": "message",
    });
    fs::create_dir_all(&folder).at(&folder)?;
    let json = serde_json::to_string_pretty(&spec)
        .map_err(|error| Error::invalid(format!("kernel.json: {error}")))?;
    write(&folder.join("logo-svg.svg"), LOGO)?;
    write(&folder.join("kernel.json"), &(json + "\n"))?;
    Ok(folder)
}

/// Removes it; only a folder that holds a kernelspec.
pub(super) fn uninstall(place: &Place, folders: &JupyterFolders) -> Result<PathBuf> {
    let folder = place.folder(folders)?;
    let spec = folder.join("kernel.json");
    if !spec.is_file() {
        let next = "`jupyter kernelspec list` tells where kernels are";
        return Err(Error::file(&folder, format!("no kernel lies here; {next}")));
    }
    fs::remove_file(&spec).at(&spec)?;
    fs::remove_dir_all(&folder).at(&folder)?;
    Ok(folder)
}

/// A file appears only when it is whole: Jupyter may look at any moment.
fn write(path: &Path, text: &str) -> Result<()> {
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    fs::write(&partial, text).and_then(|()| fs::rename(&partial, path)).at(path)
}

/// Four bars of falling height: a weight with ever fewer bits.
const LOGO: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 64 64\">\
<rect width=\"64\" height=\"64\" rx=\"12\" fill=\"#17324d\"/>\
<g fill=\"#ffb454\"><rect x=\"10\" y=\"12\" width=\"8\" height=\"40\"/>\
<rect x=\"22\" y=\"24\" width=\"8\" height=\"28\"/><rect x=\"34\" y=\"36\" width=\"8\" height=\"16\"/>\
<rect x=\"46\" y=\"44\" width=\"8\" height=\"8\"/></g></svg>\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_name_is_a_plain_word() {
        for good in ["aolab", "aolab-4", "a.b_c"] {
            assert!(kernel_name(good).is_ok(), "{good}");
        }
        for bad in ["", "..", ".x", "a/b", "a b", "ä"] {
            assert!(kernel_name(bad).is_err(), "{bad:?}");
        }
    }
}
