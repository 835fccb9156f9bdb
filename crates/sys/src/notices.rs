//! What the kernel tells of changes of nf_tables (`NFNLGRP_NFTABLES`), as far as something is taken away: rules, chains, sets,
//! tables; and elements of a table's sets, if others than we removed them. What comes and goes with each container wakes
//! nobody: a filter in the kernel drops it.

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const GROUP: libc::c_int = 7;
/// `NFT_MSG_DELTABLE`, `NFT_MSG_DELCHAIN`, `NFT_MSG_DELRULE`, `NFT_MSG_DELSET` (linux/netfilter/nf_tables.h).
const REMOVALS: [u8; 4] = [2, 5, 8, 11];
/// `NFT_MSG_DELSETELEM`.
const ELEMENT: u8 = 14;
/// What is read of a notice: that it came is all it says.
const READ: usize = 16;
/// A filter's word for all of a message. Who keeps less of it cuts it off for the next who listens, too: what is sent to
/// many is one (`do_one_broadcast`, net/netlink/af_netlink.c).
const WHOLE: u32 = u32::MAX;

/// The upper half of the addresses of sockets that are known as ours, by which what we change is told from what others do.
/// No process has so high a number, and those that the kernel makes up are higher.
const OURS: u16 = 0x6468;
/// How many of these addresses are tried before the kernel chooses one.
const ADDRESSES: u16 = 64;

/// A socket that is readable when something was removed from nf_tables, in the network namespace of who opened it.
#[derive(Debug)]
pub struct Notices(OwnedFd);

impl Notices {
    /// Listens from now on. Elements are those of tables of this name.
    pub fn of_removals(table: &[u8; 4]) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags,
            Some(netlink::NETFILTER),
        )?;
        // Connected to the kernel: no other process can wake us.
        rustix::net::connect(&fd, &SocketAddrNetlink::new(0, 0))?;
        filter(fd.as_fd(), *table)?;
        set(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, &GROUP)?;
        Ok(Self(fd))
    }

    /// Whether something was removed since the last call; also if so much was that the kernel could not tell all.
    pub fn drain(&self) -> bool {
        let mut any = false;
        loop {
            match rustix::net::recv(&self.0, &mut [0u8; READ][..], RecvFlags::empty()) {
                Ok(_) | Err(Errno::NOBUFS) => any = true,
                Err(Errno::INTR) => {}
                Err(_) => return any,
            }
        }
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Gives a socket one of our addresses; where none is free, it gets another as it is connected, and is taken for a stranger's.
pub(crate) fn take_address(fd: &OwnedFd) {
    // Anywhere: processes of several PID namespaces have the same number.
    let begin = u16::try_from((crate::host::now_ns() / 1000) & 0xffff).unwrap_or_default();
    for n in 0..ADDRESSES {
        let address = u32::from(OURS) << 16 | u32::from(begin.wrapping_add(n));
        if rustix::net::bind(fd, &SocketAddrNetlink::new(address, 0)) != Err(Errno::ADDRINUSE) {
            return;
        }
    }
}

/// Lets pass only messages that begin with a removal. (A transaction's messages come together, removals first where a whole
/// table or ruleset goes.) In front is the message's header (`struct nlmsghdr`), with the address of who made the change,
/// and netfilter's (`struct nfgenmsg`); then, of elements, the name of the table, as the first attribute.
fn filter(fd: BorrowedFd<'_>, table: [u8; 4]) -> io::Result<()> {
    const TABLE: u32 = 16 + 4 + 4;
    let code = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |size: u32, at: u32| code(libc::BPF_LD | size | libc::BPF_ABS, 0, 0, at);
    // Passes over `then` instructions if it is so, else over `other`.
    let equals =
        |k: u32, then: u8, other: u8| code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, then, other, k);
    let [rule, chain, set_of, whole] = REMOVALS.map(u32::from);
    // The low byte of nlmsg_type, and the upper half of nlmsg_pid, which is in the host's order.
    let (kind, sender, ours) = match cfg!(target_endian = "little") {
        true => (4, 14, OURS.swap_bytes()),
        false => (5, 12, OURS),
    };
    let mut program = [
        load(libc::BPF_B, kind),
        equals(rule, 11, 0),
        equals(chain, 10, 0),
        equals(set_of, 9, 0),
        equals(whole, 8, 0),
        equals(ELEMENT.into(), 0, 6),
        load(libc::BPF_W, TABLE),
        equals(u32::from_be_bytes(table), 0, 4),
        load(libc::BPF_B, TABLE + 4),
        equals(0, 0, 2),
        load(libc::BPF_H, sender),
        equals(ours.into(), 0, 1),
        code(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        code(libc::BPF_RET | libc::BPF_K, 0, 0, WHOLE),
    ];
    let whole = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &whole)
}

fn set<T>(fd: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`, which outlives the call, as does the program that a filter points to; the
    // kernel copies both.
    let done =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
