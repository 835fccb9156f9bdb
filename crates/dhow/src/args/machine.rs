//! Flags that choose the hull, and the machine of a microVM.

use std::collections::HashMap;

/// Which wall, and what is behind it.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct MachineFlags {
    /// Size of a microVM's writable disk (default 10g)
    #[arg(long, value_name = "bytes")]
    pub disk_size: Option<String>,
    /// What carries a microVM: "kvm" or "qemu" (default: kvm where the CPU has virtualisation)
    #[arg(long, value_name = "string")]
    pub hypervisor: Option<String>,
    /// Isolation technology: "container" (default) or "vm"
    #[arg(long, value_name = "string")]
    pub isolation: Option<String>,
    /// Kernel of a microVM, as 'dhow kernel ls' names it
    #[arg(long, value_name = "string")]
    pub kernel: Option<String>,
    /// Run in a microVM: short for --isolation vm
    #[arg(long)]
    pub vm: bool,
}

impl MachineFlags {
    /// The runtime that these flags mean, given the one that was named.
    pub fn runtime(&self, named: Option<&str>) -> Result<Option<String>, String> {
        let vm = match (self.isolation.as_deref().unwrap_or(""), self.vm) {
            ("container" | "process", true) => {
                return Err("conflicting options: --vm and --isolation container".into());
            }
            ("vm" | "hyperv", _) | ("" | "default", true) => true,
            ("" | "default" | "container" | "process", false) => named == Some(engine::machine::RUNTIME),
            (other, _) => return Err(format!("invalid isolation {other:?}: use container or vm")),
        };
        let given = [
            ("--kernel", &self.kernel),
            ("--hypervisor", &self.hypervisor),
            ("--disk-size", &self.disk_size),
        ];
        match (vm, named) {
            (true, None | Some("" | engine::machine::RUNTIME)) => Ok(Some(engine::machine::RUNTIME.into())),
            (true, Some(other)) => Err(format!("conflicting options: --vm and --runtime {other}")),
            (false, named) => match given.iter().find(|(_, value)| value.is_some()) {
                Some((flag, _)) => Err(format!("{flag} is for microVMs: give --vm as well")),
                None => Ok(named.map(str::to_owned)),
            },
        }
    }

    /// Docker's API has no fields for these: they go as annotations.
    pub fn annotate(&self, annotations: &mut HashMap<String, String>) {
        let mut set = |key: &str, value: &Option<String>| {
            annotations.extend(value.iter().map(|v| (key.to_owned(), v.clone())));
        };
        set(engine::machine::KERNEL, &self.kernel);
        set(engine::machine::HYPERVISOR, &self.hypervisor);
    }

    /// Adds the disk's size to the storage options.
    pub fn storage(&self, mut options: HashMap<String, String>) -> HashMap<String, String> {
        options.extend(self.disk_size.iter().map(|s| ("size".to_owned(), s.clone())));
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hull_is_one_flag() {
        let vm = MachineFlags { vm: true, ..Default::default() };
        assert_eq!(vm.runtime(None).unwrap().as_deref(), Some("dhow-vm"));
        let long = |word: &str| MachineFlags { isolation: Some(word.into()), ..Default::default() };
        assert_eq!(long("vm").runtime(None).unwrap().as_deref(), Some("dhow-vm"));
        assert_eq!(long("container").runtime(None).unwrap(), None);
        assert!(long("zone").runtime(None).is_err());
        assert!(MachineFlags { vm: true, ..long("container") }.runtime(None).is_err());
        assert!(vm.runtime(Some("runc")).is_err());
        let alone = MachineFlags { kernel: Some("6.1".into()), ..Default::default() };
        assert!(alone.runtime(None).unwrap_err().contains("give --vm"));
        assert!(alone.runtime(Some("dhow-vm")).is_ok());
    }
}
