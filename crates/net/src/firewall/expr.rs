//! The nf_tables expressions that our rules are made of, in the kernel's encoding
//! (`linux/netfilter/nf_tables.h`; what each does is told by `nft(8)`).
//!
//! Registers of 16 bytes (1 to 4) overlay those of 4 bytes (8 to 23); expressions here use the small ones, so that
//! concatenated keys are registers in a row.

use super::Family;
use sys::netlink::Batch;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const REG_VERDICT: u32 = 0;
/// The first 4-byte register.
pub(super) const REG: u32 = 8;

/// `NF_DROP`.
pub(super) const DROP: u32 = 0;
/// `NF_ACCEPT`.
pub(super) const ACCEPT: u32 = 1;

/// Keys of `meta`.
#[derive(Clone, Copy)]
pub(super) enum Meta {
    IifName = 6,
    OifName = 7,
    NfProto = 15,
    L4Proto = 16,
}

/// How a packet is refused that may not go where it wants to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refuse {
    /// By an ICMP error "administratively prohibited", so that the workload need not wait for a timeout.
    Tell,
    /// Without a word: for kernels without `nft_reject`.
    Drop,
}

/// Writes the expressions of one rule.
pub(super) struct Expr<'b>(pub &'b mut Batch);

impl Expr<'_> {
    fn put(&mut self, name: &str, data: impl FnOnce(&mut Batch)) -> &mut Self {
        self.0.nest(NFTA_LIST_ELEM, |b| {
            b.attr_str(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, data);
        });
        self
    }

    /// Loads packet metadata.
    pub(super) fn meta(&mut self, key: Meta, reg: u32) -> &mut Self {
        self.put("meta", |b| {
            b.attr_be32(2, key as u32).attr_be32(1, reg);
        })
    }

    /// Loads bytes of the network header.
    pub(super) fn network(&mut self, offset: u32, len: u32, reg: u32) -> &mut Self {
        self.payload(1, offset, len, reg)
    }

    /// Loads bytes of the Ethernet header.
    pub(super) fn link(&mut self, offset: u32, len: u32, reg: u32) -> &mut Self {
        self.payload(0, offset, len, reg)
    }

    /// Loads bytes of the transport header. Fragments but the first have none: the rule ends there.
    pub(super) fn transport(&mut self, offset: u32, len: u32, reg: u32) -> &mut Self {
        self.payload(2, offset, len, reg)
    }

    /// Loads the destination port of TCP or UDP.
    pub(super) fn destination_port(&mut self, reg: u32) -> &mut Self {
        self.transport(2, 2, reg)
    }

    /// Loads a constant.
    pub(super) fn constant(&mut self, value: &[u8], reg: u32) -> &mut Self {
        self.put("immediate", |b| {
            b.attr_be32(1, reg).nest(2, |b| {
                b.attr(NFTA_DATA_VALUE, value);
            });
        })
    }

    fn payload(&mut self, base: u32, offset: u32, len: u32, reg: u32) -> &mut Self {
        self.put("payload", |b| {
            b.attr_be32(1, reg).attr_be32(2, base).attr_be32(3, offset).attr_be32(4, len);
        })
    }

    /// Goes on only if the register equals (or, with `not`, does not equal) `value`.
    pub(super) fn compare(&mut self, reg: u32, not: bool, value: &[u8]) -> &mut Self {
        self.put("cmp", |b| {
            b.attr_be32(1, reg).attr_be32(2, u32::from(not)).nest(3, |b| {
                b.attr(NFTA_DATA_VALUE, value);
            });
        })
    }

    /// Keeps only the bits of `mask`.
    pub(super) fn mask(&mut self, reg: u32, mask: &[u8]) -> &mut Self {
        self.put("bitwise", |b| {
            b.attr_be32(1, reg).attr_be32(2, reg).attr_be32(3, mask.len() as u32);
            b.nest(4, |b| {
                b.attr(NFTA_DATA_VALUE, mask);
            });
            b.nest(5, |b| {
                b.attr(NFTA_DATA_VALUE, &[0; 16][..mask.len().min(16)]);
            });
        })
    }

    /// Goes on only if any of these bits of the connection's state (0) or status (2) is set.
    fn ct_any(&mut self, key: u32, bits: u32) -> &mut Self {
        self.put("ct", |b| {
            b.attr_be32(2, key).attr_be32(1, REG);
        });
        self.mask(REG, &bits.to_ne_bytes()).compare(REG, true, &[0; 4])
    }

    /// `ct state established,related`.
    pub(super) fn established(&mut self) -> &mut Self {
        self.ct_any(0, (1 << 1) | (1 << 2))
    }

    /// `ct status dnat`.
    pub(super) fn translated(&mut self) -> &mut Self {
        self.ct_any(2, 1 << 5)
    }

    /// Goes on only if the register's value is (or is not) in the set.
    pub(super) fn in_set(&mut self, set: &str, reg: u32, not: bool) -> &mut Self {
        self.put("lookup", |b| {
            b.attr_str(1, set).attr_be32(2, reg);
            if not {
                b.attr_be32(5, 1);
            }
        })
    }

    /// Loads what the map has for the key in `from`; goes on only if it has something.
    pub(super) fn map(&mut self, map: &str, from: u32, to: u32) -> &mut Self {
        self.put("lookup", |b| {
            b.attr_str(1, map).attr_be32(2, from).attr_be32(3, to);
        })
    }

    /// `fib daddr type local`.
    pub(super) fn destination_is_local(&mut self) -> &mut Self {
        const RTN_LOCAL: u32 = 2;
        self.put("fib", |b| {
            b.attr_be32(1, REG).attr_be32(2, 3).attr_be32(3, 1 << 1);
        });
        self.compare(REG, false, &RTN_LOCAL.to_ne_bytes())
    }

    /// `fib saddr . iif oif missing`: goes on only if answers to the packet would not leave by where it came in.
    pub(super) fn comes_from_elsewhere(&mut self) -> &mut Self {
        const SADDR_IIF: u32 = 1 | (1 << 3);
        self.put("fib", |b| {
            b.attr_be32(1, REG).attr_be32(2, 1).attr_be32(3, SADDR_IIF);
        });
        self.compare(REG, false, &[0; 4])
    }

    /// `fib daddr . iif oif exists`: goes on only if the packet would leave by where it came in.
    pub(super) fn destination_is_near(&mut self) -> &mut Self {
        const DADDR_IIF: u32 = (1 << 1) | (1 << 3);
        self.put("fib", |b| {
            b.attr_be32(1, REG).attr_be32(2, 1).attr_be32(3, DADDR_IIF);
        });
        self.compare(REG, true, &[0; 4])
    }

    /// Adds the key in the register to a set, or has it stay for `millis` from now.
    pub(super) fn remember(&mut self, set: &str, reg: u32, millis: u64) -> &mut Self {
        const UPDATE: u32 = 1;
        self.put("dynset", |b| {
            b.attr_str(1, set).attr_be32(3, UPDATE).attr_be32(4, reg).attr(6, &millis.to_be_bytes());
        })
    }

    /// Goes on if the key in the register has come here more than `rate` times a second, and `burst` times at once; each key is
    /// counted for as long as it comes, and `millis` longer.
    pub(super) fn exceeds(&mut self, set: &str, reg: u32, rate: u64, burst: u32, millis: u64) -> &mut Self {
        const UPDATE: u32 = 1;
        const OVER: u32 = 1;
        self.put("dynset", |b| {
            b.attr_str(1, set).attr_be32(3, UPDATE).attr_be32(4, reg).attr(6, &millis.to_be_bytes());
            b.nest(7, |b| {
                b.attr_str(1, "limit").nest(2, |b| {
                    // Packets a second.
                    b.attr(1, &rate.to_be_bytes()).attr(2, &1u64.to_be_bytes()).attr_be32(3, burst);
                    b.attr_be32(4, 0).attr_be32(5, OVER);
                });
            });
        })
    }

    /// Ends the walk by refusing the packet, in a table of this family.
    pub(super) fn refuse(&mut self, family: Family, how: Refuse) -> &mut Self {
        // `ICMP_PKT_FILTERED`, `ICMPV6_ADM_PROHIBITED`, and either of them.
        let (kind, code) = match family {
            Family::V4 => (0, 13),
            Family::V6 => (0, 1),
            Family::Inet => (2, 3),
            Family::Bridge => return self.verdict(DROP),
        };
        match how {
            Refuse::Drop => self.verdict(DROP),
            Refuse::Tell => self.put("reject", |b| {
                b.attr_be32(1, kind).attr(2, &[code]);
            }),
        }
    }

    /// Destination NAT to the address and the port in two registers.
    pub(super) fn dnat(&mut self, nfproto: u8, address: u32, port: u32) -> &mut Self {
        const NFT_NAT_DNAT: u32 = 1;
        self.put("nat", |b| {
            b.attr_be32(1, NFT_NAT_DNAT).attr_be32(2, u32::from(nfproto));
            b.attr_be32(3, address).attr_be32(5, port);
        })
    }

    /// Source NAT to the address of the interface that the packet leaves by.
    pub(super) fn masquerade(&mut self) -> &mut Self {
        self.put("masq", |_| ())
    }

    /// Ends the walk through the chain.
    pub(super) fn verdict(&mut self, verdict: u32) -> &mut Self {
        self.put("immediate", |b| {
            b.attr_be32(1, REG_VERDICT).nest(2, |b| {
                b.nest(NFTA_DATA_VERDICT, |b| {
                    b.attr_be32(NFTA_VERDICT_CODE, verdict);
                });
            });
        })
    }
}
