//! Volumes that are disks, in microVMs: devices of their own, with the rules that hold for containers.

use dhow_tests::said::{ok, refused, run, text, until};
use dhow_tests::traces::{hypervisors, kill};
use dhow_tests::vm;
use std::fs;

#[test]
fn a_disk_volume_is_a_disk_of_the_microvm() {
    let Some(store) = vm::store() else { return };
    store.ok(&["volume", "create", "-d", "disk", "-o", "size=32m", "db"]);
    store.ok(&["volume", "create", "-d", "disk", "-o", "size=32m", "shared"]);
    let binding = tempfile::tempdir().unwrap();
    fs::create_dir(binding.path().join("sub")).unwrap();
    fs::write(binding.path().join("sub/file"), "below\n").unwrap();
    let device = format!("device={}", binding.path().display());
    store.ok(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, "dir"]);
    ok(&run(&store, &["--rm", "-v", "shared:/s"], "echo from a container > /s/note"));

    // A start that fails before the guest has it leaves it to containers.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("{}:80", taken.local_addr().unwrap());
    refused(
        &run(&store, &["--vm", "--rm", "-p", &port, "-v", "db:/data"], "true"),
        "port is already allocated",
    );
    assert_eq!(ok(&run(&store, &["--rm", "-v", "db:/data"], "cat /data/seed")), "from the image\n");

    // One machine for all that can be seen from inside.
    let flags = [
        "--vm",
        "-d",
        "--name",
        "first",
        "-v",
        "db:/data",
        "-v",
        "shared:/s:ro",
        "--mount",
        "type=volume,src=dir,dst=/dir,volume-subpath=sub",
        "--mount",
        "type=image,src=busybox,dst=/image,image-subpath=data",
    ];
    let script = "cat /data/seed; stat -c '%a %u' /data; cat /s/note; touch /s/x; cat /dir/file /image/seed; touch /image/x; \
                  dd if=/dev/zero of=/data/big bs=1M count=64 2>&1 | grep -o 'No space left'; rm /data/big; \
                  echo synced > /data/f; sync; echo up; sleep 1000";
    ok(&run(&store, &flags, script));
    until("the guest", || text(&store.out(&["logs", "first"]).stdout).ends_with("up\n"));
    let logs = store.out(&["logs", "first"]);
    assert_eq!(
        text(&logs.stdout),
        "from the image\n750 0\nfrom a container\nbelow\nfrom the image\nNo space left\nup\n"
    );
    assert_eq!(text(&logs.stderr).matches("Read-only file system").count(), 2, "{}", text(&logs.stderr));

    // It is this one's; and what it wrote, this host's kernel does not read.
    refused(&run(&store, &["--rm", "-v", "db:/data"], "true"), "in use by container first");
    refused(&run(&store, &["--rm", "-v", "shared:/s"], "true"), "in use by container first, which reads it");
    assert_eq!(ok(&run(&store, &["--rm", "-v", "shared:/s:ro"], "cat /s/note")), "from a container\n");
    // It grows under the machine, the smaller of two sizes is none, and one that others read stays as it is.
    store.ok(&["volume", "resize", "db", "64m"]);
    refused(&store.out(&["volume", "resize", "db", "48m"]), "cannot be made smaller");
    let shown =
        store.ok(&["exec", "first", "sh", "-c", "df -m /data | tail -1; echo more > /data/more; sync"]);
    let size: u32 = shown.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(size > 50, "{shown}");
    refused(&store.out(&["volume", "resize", "shared", "64m"]), "in use by a microVM that reads it");
    store.ok(&["pause", "first"]);
    refused(&store.out(&["volume", "resize", "db", "80m"]), "the microVM first, which is paused");
    store.ok(&["unpause", "first"]);
    refused(
        &store.out(&["volume", "export", "--format", "raw", "-o", "/dev/null", "db"]),
        "in use by the microVM first",
    );

    // The hypervisor's death frees it, and what was synced is there.
    hypervisors(&store).iter().for_each(|machine| kill(machine.pid));
    store.ok(&["wait", "first"]);
    refused(&run(&store, &["--rm", "-v", "db:/data"], "true"), "this host's kernel does not mount it");
    refused(&store.out(&["volume", "export", "db"]), "this host's kernel does not mount it");
    store.ok(&["volume", "resize", "db", "96m"]);
    let script =
        "cat /data/f /data/more; df -m /data | tail -1 | tr -s ' ' | cut -d' ' -f2; echo again > /data/g";
    let said = ok(&run(&store, &["--vm", "--rm", "-v", "db:/data"], script));
    let (kept, size) = said.trim().rsplit_once('\n').unwrap();
    assert!(kept == "synced\nmore" && size.parse::<u32>().unwrap() > 80, "{said}");

    // Its machine unmounted it, so that it is whole; and a container has it once its user says so.
    store.ok(&["volume", "clone", "-o", "trust-guest=true", "db", "trusted"]);
    assert_eq!(ok(&run(&store, &["--rm", "-v", "trusted:/data"], "cat /data/g")), "again\n");
    let image = store.root().join("image");
    store.ok(&["volume", "export", "--format", "raw", "-o", image.to_str().unwrap(), "db"]);
    let checked = std::process::Command::new("e2fsck").arg("-fn").arg(&image).output().unwrap();
    assert!(checked.status.success(), "{}", text(&checked.stdout));
    store.ok(&["rm", "first"]);
    store.ok(&["volume", "rm", "db"]);
}
