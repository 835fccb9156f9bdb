//! Runs one microVM from a configuration file and says how it ended:
//!
//! ```text
//! cargo run -p dhow-vmm --example boot -- config.json
//! ```
//!
//! The file is `dhow_vmm::config::Config` as JSON. The least that boots:
//!
//! ```json
//! {"vcpus": 1, "memory_mib": 256, "kernel": "vmlinuz", "initrd": "initramfs", "cmdline": "console=ttyS0",
//!  "disks": [], "nets": [], "balloon": false, "console": "console.log", "control": "control.sock"}
//! ```

use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    match boot() {
        Ok(ended) => {
            println!("{ended:?}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            let mut text = e.to_string();
            let mut source = e.source();
            while let Some(e) = source {
                text += &format!(": {e}");
                source = e.source();
            }
            eprintln!("boot: {text}");
            ExitCode::FAILURE
        }
    }
}

fn boot() -> Result<dhow_vmm::Ended, Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: boot CONFIG.json")?;
    let config = serde_json::from_slice(&std::fs::read(path)?)?;
    Ok(dhow_vmm::run(config)?)
}
