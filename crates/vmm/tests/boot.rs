//! MicroVMs of Debian's unmodified cloud kernel, from their first instruction to their end.
//!
//! They need KVM. Where the processor has none, one test runs all others on an emulated host that has
//! (`contrib/kvm-host`), which takes a few minutes. What is missing is told with SKIPPED.

mod common;

use common::{Kernel, PROGRAM, cpio};
use dhow_vmm::Ended;
use dhow_vmm::config::{Config, Disk, DiskContent, Jail};
use dhow_vmm::control::{Answer, Request, State, ask};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Whether the processor can run guests.
fn has_kvm() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split(' ').any(|flag| flag == "vmx" || flag == "svm") && Path::new("/dev/kvm").exists()
}

/// What the guest's first process does, by the word `do=` of its command line.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
for module in virtio_ring virtio virtio_mmio virtio_blk virtio-rng; do insmod /$module.ko; done
echo \"hello from $(grep -c ^processor /proc/cpuinfo) processors\"
case $(sed 's/.*do=\\([a-z]*\\).*/\\1/' /proc/cmdline) in
disks)
    echo \"partition 2: $(head -c 11 /dev/vda2)\"
    echo -n from-the-guest | dd of=/dev/vdb bs=512 seek=3 conv=sync,fsync 2>/dev/null
    echo \"read-only: $(cat /sys/block/vda/ro /sys/block/vdb/ro | tr -d '\\n')\"
    echo \"random: $(head -c 8 /dev/hwrng | wc -c)\"
    poweroff -f ;;
count) n=0; while :; do n=$((n + 1)); echo \"count $n\"; usleep 50000; done ;;
reboot) reboot -f ;;
esac
";

fn initramfs(kernel: &Kernel) -> Result<Vec<u8>, String> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find_map(|path| fs::read(path).ok());
    let busybox = busybox.ok_or("there is no busybox: apt-get install busybox-static")?;
    let mut files =
        vec![("bin", 0o40755, Vec::new()), ("bin/busybox", PROGRAM, busybox), ("init", PROGRAM, INIT.into())];
    for name in ["virtio.ko", "virtio_ring.ko", "virtio_mmio.ko", "virtio_blk.ko", "virtio-rng.ko"] {
        files.push((name, PROGRAM, kernel.module(name)?));
    }
    Ok(cpio(&files))
}

/// How long a guest may take for anything, on a slow emulated host.
const PATIENCE: Duration = Duration::from_secs(120);

/// A microVM in a process of its own.
struct Machine {
    directory: tempfile::TempDir,
    process: Child,
    control: PathBuf,
}

impl Machine {
    /// Boots into this word of [`INIT`]; none where that is not possible, which is told.
    fn boot(action: &str, change: impl FnOnce(&Path, &mut Config)) -> Option<Self> {
        let reason = match has_kvm() {
            false => Some("the processor here has no vmx or svm".to_owned()),
            true if !rustix::process::geteuid().is_root() => Some("this is not root".to_owned()),
            true => None,
        };
        let found = || Kernel::get().and_then(|kernel| Ok((initramfs(&kernel)?, kernel.image()?)));
        let files = reason.map_or_else(found, Err);
        let (initramfs, kernel) = match files {
            Ok(files) => files,
            Err(reason) => {
                eprintln!("SKIPPED: {reason}");
                return None;
            }
        };
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("initramfs"), initramfs).unwrap();
        fs::create_dir(at("root")).unwrap();
        let mut config = Config {
            vcpus: 2,
            memory_mib: 256,
            kernel,
            initrd: Some(at("initramfs")),
            cmdline: format!("console=ttyS0 quiet panic=-1 do={action}"),
            console: Some(at("console")),
            control: at("control"),
            jail: Some(Jail { uid: 65534, gid: 65534, root: at("root"), keep: Vec::new() }),
            ..Config::default()
        };
        change(directory.path(), &mut config);
        fs::write(at("config"), serde_json::to_vec(&config).unwrap()).unwrap();
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_process_of_a_machine", "--nocapture", "--test-threads=1"])
            .env("DHOW_VMM_CONFIG", at("config"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Some(Self { control: at("control"), directory, process })
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.path().join("console")).unwrap_or_default())
            .into_owned()
    }

    fn wait_for(&self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.console().contains(text) {
            assert!(Instant::now() < until, "no {text:?} on the console:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// How it ended, as text, and all of the console.
    fn end(&mut self) -> (String, String) {
        let until = Instant::now() + PATIENCE;
        let status = loop {
            match self.process.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < until, "it does not end:\n{}", self.console()),
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        let mut said = String::new();
        self.process.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        let ended = said.lines().find_map(|line| line.strip_prefix("ended: ")).map(str::to_owned);
        (ended.unwrap_or_else(|| format!("{status}: {said}")), self.console())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// No test: what [`Machine`] runs. It ends the process, as a jailed one can do little else.
#[test]
fn the_process_of_a_machine() {
    let Some(path) = std::env::var_os("DHOW_VMM_CONFIG") else { return };
    let config: Config = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let ended = dhow_vmm::run(config);
    let text = match &ended {
        Ok(ended) => format!("\nended: {ended:?}\n"),
        Err(e) => format!("\nended: {e}: {:?}\n", std::error::Error::source(e).map(ToString::to_string)),
    };
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
    std::process::exit(i32::from(!matches!(ended, Ok(Ended::PoweredOff))));
}

#[test]
fn a_guest_finds_its_processors_and_disks_and_powers_off() {
    let machine = Machine::boot("disks", |directory, config| {
        let at = |name: &str| directory.join(name);
        fs::write(at("first"), vec![1; 1_500_000]).unwrap();
        fs::write(at("second"), "second file").unwrap();
        fs::write(at("disk"), vec![0; 1 << 20]).unwrap();
        let partitions = DiskContent::Partitions(vec![at("first"), at("second")]);
        let disk = |content, read_only| Disk { content, read_only, lock: None, rate: Default::default() };
        config.disks = vec![disk(partitions, true), disk(DiskContent::Raw(at("disk")), false)];
        fs::set_permissions(at("disk"), fs::Permissions::from_mode(0o600)).unwrap();
    });
    let Some(mut machine) = machine else { return };
    let (ended, console) = machine.end();
    assert_eq!(ended, "PoweredOff", "{console}");
    for text in ["hello from 2 processors", "partition 2: second file", "read-only: 10", "random: 8"] {
        assert!(console.contains(text), "no {text:?} in:\n{console}");
    }
    let disk = fs::read(machine.directory.path().join("disk")).unwrap();
    assert_eq!(&disk[3 * 512..][..14], b"from-the-guest");
}

/// Every thread of a jailed machine that runs is a nobody without rights, but the test's own that waits for it.
fn assert_walls(process: u32) {
    let mut confined = 0;
    for task in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let task = task.unwrap().path();
        let status = fs::read_to_string(task.join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        if field("Seccomp:") == ["0"] {
            assert_eq!(task.file_name().unwrap().to_str(), Some(&*process.to_string()));
            continue;
        }
        confined += 1;
        assert_eq!(field("Seccomp:"), ["2"]);
        assert_eq!(
            (field("Uid:"), field("Gid:")),
            (vec!["65534".to_owned(); 4], vec!["65534".to_owned(); 4])
        );
        assert_eq!((field("Groups:").len(), field("NoNewPrivs:")), (0, vec!["1".to_owned()]));
        assert_eq!((&*field("CapEff:")[0], &*field("CapPrm:")[0]), ("0000000000000000", "0000000000000000"));
        assert_eq!(fs::read_dir(task.join("root")).unwrap().count(), 0, "its root is not empty");
    }
    assert!(confined >= 4, "main, two vCPUs, a worker: {confined}");
}

#[test]
fn a_guest_is_paused_resumed_and_stopped() {
    let Some(mut machine) = Machine::boot("count", |_, _| ()) else { return };
    machine.wait_for("count 3");
    assert_walls(machine.process.id());
    let asked = |request| ask(&machine.control, &request).unwrap();
    let status = |state| Answer::Status { state, vcpus: 2, memory_mib: 256, balloon_mib: 0, disks: 0 };
    assert_eq!(asked(Request::Status), status(State::Running));
    assert_eq!(asked(Request::Pause), Answer::Done);
    assert_eq!(asked(Request::Status), status(State::Paused));
    let held = machine.console();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(machine.console(), held, "it went on while it was paused");
    assert_eq!(asked(Request::Resume), Answer::Done);
    let next = 1 + held.matches("count").count();
    machine.wait_for(&format!("count {next}"));
    assert_eq!(asked(Request::Stop), Answer::Done);
    assert_eq!(machine.end().0, "Stopped");
}

#[test]
fn a_guest_resets_the_machine() {
    let Some(mut machine) = Machine::boot("reboot", |_, config| config.vcpus = 1) else { return };
    let (ended, console) = machine.end();
    assert_eq!(ended, "Reset", "{console}");
}

/// Without one such a host hangs once in some forty times that a first machine begins: `contrib/kvm-host` says why.
#[test]
fn an_emulated_host_holds_a_machine() {
    if std::env::var_os("DHOW_KVM_HOST").is_none() {
        return;
    }
    let held = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let open = processes.filter_map(|process| fs::read_dir(process.path().join("fd")).ok()).flatten();
        let mut targets = open.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        targets.any(|target| target == Path::new("anon_inode:kvm-vm"))
    };
    let until = Instant::now() + PATIENCE;
    while !held() {
        assert!(Instant::now() < until, "no process holds a virtual machine");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn on_an_emulated_host_where_there_is_no_kvm() {
    if has_kvm() || std::env::var_os("DHOW_VMM_CONFIG").is_some() {
        return;
    }
    if let Err(reason) = Kernel::get() {
        eprintln!("SKIPPED: {reason}");
        return;
    }
    let lane = || {
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../contrib/kvm-host"))
            .args(["-m", "3072", "-t", "900", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--test-threads=1", "--nocapture"])
            .output()
            .unwrap()
    };
    let mut output = lane();
    if !matches!(output.status.code(), Some(0 | 125)) {
        // Once in some dozens of boots a guest was seen to fault without a cause that could be found; whether the
        // emulation of the processor's virtualisation or the VMM is to blame is not known.
        eprintln!("RETRIED after: {}", String::from_utf8_lossy(&output.stdout));
        output = lane();
    }
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    match output.status.code() {
        Some(0) => {
            assert!(said.contains("test result: ok") && !said.contains("SKIPPED"), "nothing was tested")
        }
        Some(125) => eprintln!("SKIPPED: {}", String::from_utf8_lossy(&output.stderr).trim()),
        code => panic!("on the emulated host: {code:?} {}", String::from_utf8_lossy(&output.stderr)),
    }
}
