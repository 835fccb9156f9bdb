//! The kernel's modules, where it has not all that is needed built in.

use crate::{Error, Result, Told};
use std::ffi::CStr;
use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

const DIR: &str = "/modules";
const NO_PARAMETERS: &CStr = c"";

/// Loads all of them, in the order of their names. One that the kernel has already is no error; one that does not fit
/// is named.
pub fn load() -> Result<()> {
    let mut files: Vec<PathBuf> = match fs::read_dir(DIR) {
        Ok(list) => list.flatten().map(|e| e.path()).collect(),
        Err(_) => return Ok(()),
    };
    files.sort();
    for path in &files {
        let file = fs::File::open(path).told(path.display())?;
        match rustix::system::finit_module(file.as_fd(), NO_PARAMETERS, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                return Err(Error(format!("the kernel refuses its module {name}: {e}")));
            }
        }
        drop(file);
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// Waits for nothing and asks once: whether a driver is there, by what it makes appear.
pub fn require(path: &str, driver: &str) -> Result<()> {
    match fs::exists(path) {
        Ok(true) => Ok(()),
        _ => Err(Error(format!("this kernel has no {driver}: choose one that has, or install its modules"))),
    }
}
