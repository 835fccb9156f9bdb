//! What the kernel tells of changes of nf_tables (`NFNLGRP_NFTABLES`), as far as something is taken away: rules, chains, sets,
//! tables. What comes and goes with each container, elements of sets, wakes nobody: a filter in the kernel drops it.

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const GROUP: libc::c_int = 7;
/// `NFT_MSG_DELTABLE`, `NFT_MSG_DELCHAIN`, `NFT_MSG_DELRULE`, `NFT_MSG_DELSET` (linux/netfilter/nf_tables.h).
const REMOVALS: [u8; 4] = [2, 5, 8, 11];
/// What is kept of a notice: nobody reads it.
const KEPT: u32 = 16;

/// A socket that is readable when something was removed from nf_tables, in the network namespace of who opened it.
#[derive(Debug)]
pub struct Notices(OwnedFd);

impl Notices {
    /// Listens from now on.
    pub fn of_removals() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags,
            Some(netlink::NETFILTER),
        )?;
        // Connected to the kernel: no other process can wake us.
        rustix::net::connect(&fd, &SocketAddrNetlink::new(0, 0))?;
        filter(fd.as_fd())?;
        set(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, &GROUP)?;
        Ok(Self(fd))
    }

    /// Whether something was removed since the last call; also if so much was that the kernel could not tell all.
    pub fn drain(&self) -> bool {
        let mut any = false;
        loop {
            match rustix::net::recv(&self.0, &mut [0u8; KEPT as usize][..], RecvFlags::empty()) {
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

/// Lets pass only messages that begin with a removal. (A transaction's messages come together, removals first where a whole
/// table or ruleset goes.)
fn filter(fd: BorrowedFd<'_>) -> io::Result<()> {
    // The low byte of nlmsg_type.
    let place = if cfg!(target_endian = "little") { 4 } else { 5 };
    let code = |code: u32, jt: usize, k: u32| libc::sock_filter { code: code as u16, jt: jt as u8, jf: 0, k };
    let mut program = vec![code(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, place)];
    for (n, kind) in REMOVALS.iter().enumerate() {
        // Past the others and the refusal.
        let to_accept = REMOVALS.len() - n;
        program.push(code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, to_accept, (*kind).into()));
    }
    program.push(code(libc::BPF_RET | libc::BPF_K, 0, 0));
    program.push(code(libc::BPF_RET | libc::BPF_K, 0, KEPT));
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
