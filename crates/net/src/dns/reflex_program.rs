//! The program by which the kernel answers what was answered a moment ago: as it would be in C, on what comes in by the
//! sandbox's own loopback interface.
//!
//! ```text
//! if (not a whole IPv4 packet without options, of UDP, to 127.0.0.11 and our port) pass;
//! if (the message is shorter than any question, or longer than a key has room for) pass;
//! key = { length, message without its id };
//! if (!(value = table[key]) || value.until < now) pass;
//! packet's message = value.answer with the id of the question;
//! turn the packet round: addresses, ports (from 53), lengths;
//! pass;   // on to the socket of who asked
//! ```
//!
//! `value.until` stands at both ends of a value. Who finds another one there once the answer is copied has read what was being
//! written over, and drops the packet, whose sender asks again.

use super::{ADDRESS, PORT};
use sys::bpf::Insn;

/// Bytes of a message that a key has room for; any more and it is no question about a name of ours.
pub(super) const QUESTION: usize = 84;
/// The length of the message, and the message, filled up with zeros.
pub(super) const KEY: usize = 4 + QUESTION;
/// Bytes of an answer.
pub(super) const ANSWER: usize = 232;
/// Until when it may be given (`CLOCK_MONOTONIC`), its length, the answer, and once more until when.
pub(super) const VALUE: usize = 8 + 8 + ANSWER + 8;

/// Where things are in a packet with a header of Ethernet's, as the loopback interface has it, and one of IPv4 without options.
mod at {
    pub(super) const PROTOCOL: i16 = 12;
    pub(super) const IP: i16 = 14;
    pub(super) const IP_LENGTH: i16 = 16;
    pub(super) const FRAGMENT: i16 = 20;
    pub(super) const IP_PROTOCOL: i16 = 23;
    pub(super) const IP_SUM: i32 = 24;
    pub(super) const SOURCE: i16 = 26;
    pub(super) const DESTINATION: i16 = 30;
    pub(super) const SOURCE_PORT: i16 = 34;
    pub(super) const PORT: i16 = 36;
    pub(super) const UDP_LENGTH: i16 = 38;
    pub(super) const MESSAGE: i16 = 42;
}
/// Of the headers of IPv4 and of UDP, and of UDP alone.
const HEADERS: i32 = 28;
const UDP_HEADER: i32 = 8;
/// A message's own header; and the shortest question.
const DNS_HEADER: i32 = 12;
const SHORTEST: i32 = 17;

/// `struct __sk_buff` of `<linux/bpf.h>`.
const SKB_LENGTH: i16 = 0;
const SKB_DATA: i16 = 76;
const SKB_END: i16 = 80;

/// On the stack: the key; the packet's length before; until when; its length afterwards; and what is written over from the addresses on: source,
/// destination, both ports, length, checksum (none), id.
const S_KEY: i16 = -(KEY as i16);
const S_BEFORE: i16 = S_KEY - 8;
const S_UNTIL: i16 = S_BEFORE - 8;
const S_LENGTH: i16 = S_UNTIL - 8;
const S_TURNED: i16 = S_LENGTH - 24;
const TURNED: i32 = 18;

/// In a value.
const V_LENGTH: i16 = 8;
const V_ANSWER: i32 = 16;
const V_UNTIL_AGAIN: i16 = 16 + ANSWER as i16;

/// Helpers, by their numbers in `<linux/bpf.h>`.
const LOOK_UP: i32 = 1;
const NOW: i32 = 5;
const STORE_BYTES: i32 = 9;
const REPLACE_IP_SUM: i32 = 10;
const LOAD_BYTES: i32 = 26;
const CHANGE_TAIL: i32 = 38;

/// Verdicts (`enum tcx_action_base`): who else there is decides; or the packet is dropped.
const NEXT: i32 = -1;
const DROP: i32 = 2;

/// `ETH_P_IP`, `IPPROTO_UDP`; what is set where a packet is a fragment; version 4 and five words.
const IPV4: u16 = 0x0800;
const UDP: i32 = 17;
const FRAGMENTS: u16 = 0x3fff;
const PLAIN: i32 = 0x45;

/// Operations.
const LOAD_64: u8 = 0x79;
const LOAD_32: u8 = 0x61;
const LOAD_16: u8 = 0x69;
const LOAD_8: u8 = 0x71;
const STORE_64: u8 = 0x7b;
const STORE_32: u8 = 0x63;
const STORE_16: u8 = 0x6b;
const SET_64: u8 = 0x7a;
const SET_16: u8 = 0x6a;
const COPY: u8 = 0xbf;
const MOVE: u8 = 0xb7;
const ADD: u8 = 0x07;
const SUBTRACT: u8 = 0x17;
const AND: u8 = 0x57;
const NETWORK_ORDER: u8 = 0xdc;
const IF_GREATER: u8 = 0x2d;
const IF_ABOVE: u8 = 0x25;
const IF_BELOW: u8 = 0xa5;
const IF_IS: u8 = 0x15;
const IF_NOT: u8 = 0x55;
const IF_NOT_32: u8 = 0x56;
const IF_DIFFER: u8 = 0x5d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOAD_MAP: u8 = 0x18;
/// Source of [`LOAD_MAP`]: the constant is a descriptor (`BPF_PSEUDO_MAP_FD`).
const DESCRIPTOR: u8 = 1;

/// The frame pointer; and what calls do not change: the packet's context, the table's entry, lengths.
const FRAME: u8 = 10;
const CONTEXT: u8 = 6;
const DATA: u8 = 7;
const LENGTH: u8 = 8;
const ENTRY: u8 = 9;

/// Where a jump leads that is not yet known.
#[derive(Clone, Copy)]
enum To {
    Pass,
    Drop,
}

#[derive(Default)]
struct Program {
    list: Vec<Insn>,
    jumps: Vec<(usize, To)>,
}

impl Program {
    fn op(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) -> &mut Self {
        self.list.push(Insn::new(code, dst, src, off, imm));
        self
    }

    /// Jumps if it is so.
    fn exit_if(&mut self, code: u8, dst: u8, src: u8, imm: i32, to: To) -> &mut Self {
        self.jumps.push((self.list.len(), to));
        self.op(code, dst, src, 0, imm)
    }

    fn pass_if(&mut self, code: u8, dst: u8, src: u8, imm: i32) -> &mut Self {
        self.exit_if(code, dst, src, imm, To::Pass)
    }

    fn drop_if(&mut self, code: u8, dst: u8, src: u8, imm: i32) -> &mut Self {
        self.exit_if(code, dst, src, imm, To::Drop)
    }

    fn load(&mut self, code: u8, dst: u8, from: u8, off: i16) -> &mut Self {
        self.op(code, dst, from, off, 0)
    }

    fn on_stack(&mut self, code: u8, off: i16, src: u8) -> &mut Self {
        self.op(code, FRAME, src, off, 0)
    }

    fn copy(&mut self, dst: u8, src: u8) -> &mut Self {
        self.op(COPY, dst, src, 0, 0)
    }

    fn number(&mut self, dst: u8, imm: i32) -> &mut Self {
        self.op(MOVE, dst, 0, 0, imm)
    }

    fn add(&mut self, dst: u8, imm: i32) -> &mut Self {
        self.op(ADD, dst, 0, 0, imm)
    }

    fn address_on_stack(&mut self, dst: u8, off: i16) -> &mut Self {
        self.copy(dst, FRAME).add(dst, off.into())
    }

    fn call(&mut self, helper: i32) -> &mut Self {
        self.op(CALL, 0, 0, 0, helper)
    }

    /// Ends with both exits, and has the jumps lead there.
    fn end(mut self) -> Vec<Insn> {
        let pass = self.list.len();
        self.number(0, NEXT).op(EXIT, 0, 0, 0, 0);
        let drop = self.list.len();
        self.number(0, DROP).op(EXIT, 0, 0, 0, 0);
        for (place, to) in self.jumps {
            let target = match to {
                To::Pass => pass,
                To::Drop => drop,
            };
            if let Some(jump) = self.list.get_mut(place) {
                jump.off = i16::try_from(target - place - 1).unwrap_or_default();
            }
        }
        self.list
    }
}

/// As a word of a packet is read.
fn word(number: u16) -> i32 {
    number.to_be().into()
}

/// The program for questions to a port, with this table.
pub(super) fn program(port: u16, table: i32) -> Vec<Insn> {
    let mut program = Program::default();
    is_question(&mut program, port);
    find(&mut program, table);
    write_answer(&mut program);
    turn_round(&mut program);
    program.end()
}

/// Passes over all that is no question to us; the length of the message, and what is written over, are known then.
fn is_question(p: &mut Program, port: u16) {
    p.copy(CONTEXT, 1)
        .load(LOAD_32, 2, CONTEXT, SKB_END)
        .load(LOAD_32, DATA, CONTEXT, SKB_DATA)
        .copy(3, DATA)
        .add(3, i32::from(at::MESSAGE) + DNS_HEADER)
        .pass_if(IF_GREATER, 3, 2, 0)
        .load(LOAD_16, 3, DATA, at::PROTOCOL)
        .pass_if(IF_NOT, 3, 0, word(IPV4))
        .load(LOAD_8, 3, DATA, at::IP)
        .pass_if(IF_NOT, 3, 0, PLAIN)
        .load(LOAD_8, 3, DATA, at::IP_PROTOCOL)
        .pass_if(IF_NOT, 3, 0, UDP)
        .load(LOAD_16, 3, DATA, at::FRAGMENT)
        .op(AND, 3, 0, 0, word(FRAGMENTS))
        .pass_if(IF_NOT, 3, 0, 0)
        .load(LOAD_32, 3, DATA, at::DESTINATION)
        .pass_if(IF_NOT_32, 3, 0, i32::from_ne_bytes(ADDRESS.octets()))
        .on_stack(STORE_32, S_TURNED, 3)
        .load(LOAD_16, 3, DATA, at::PORT)
        .pass_if(IF_NOT, 3, 0, word(port))
        .load(LOAD_32, LENGTH, CONTEXT, SKB_LENGTH)
        .op(SUBTRACT, LENGTH, 0, 0, at::MESSAGE.into())
        .pass_if(IF_BELOW, LENGTH, 0, SHORTEST)
        .pass_if(IF_ABOVE, LENGTH, 0, QUESTION as i32);
    // Nothing is behind it, and nothing was cut off.
    for (place, header) in [(at::UDP_LENGTH, UDP_HEADER), (at::IP_LENGTH, HEADERS)] {
        p.load(LOAD_16, 3, DATA, place)
            .op(NETWORK_ORDER, 3, 0, 0, 16)
            .op(SUBTRACT, 3, 0, 0, header)
            .pass_if(IF_DIFFER, 3, LENGTH, 0);
    }
    p.load(LOAD_32, 3, DATA, at::SOURCE)
        .on_stack(STORE_32, S_TURNED + 4, 3)
        .op(SET_16, FRAME, 0, S_TURNED + 8, word(PORT))
        .load(LOAD_16, 3, DATA, at::SOURCE_PORT)
        .on_stack(STORE_16, S_TURNED + 10, 3)
        .op(SET_16, FRAME, 0, S_TURNED + 14, 0)
        .load(LOAD_16, 3, DATA, at::MESSAGE)
        .on_stack(STORE_16, S_TURNED + 16, 3)
        .load(LOAD_16, 3, DATA, at::IP_LENGTH)
        .on_stack(STORE_64, S_BEFORE, 3);
}

/// Passes over what has no entry that still holds.
fn find(p: &mut Program, table: i32) {
    for n in 0..KEY as i16 / 8 {
        p.op(SET_64, FRAME, 0, S_KEY + 8 * n, 0);
    }
    p.on_stack(STORE_32, S_KEY, LENGTH)
        .copy(1, CONTEXT)
        .number(2, at::MESSAGE.into())
        .address_on_stack(3, S_KEY + 4)
        .copy(4, LENGTH)
        .call(LOAD_BYTES)
        .pass_if(IF_NOT, 0, 0, 0)
        .op(SET_16, FRAME, 0, S_KEY + 4, 0)
        .op(LOAD_MAP, 1, DESCRIPTOR, 0, table)
        .op(0, 0, 0, 0, 0)
        .address_on_stack(2, S_KEY)
        .call(LOOK_UP)
        .pass_if(IF_IS, 0, 0, 0)
        .copy(ENTRY, 0)
        .call(NOW)
        .load(LOAD_64, 1, ENTRY, 0)
        .pass_if(IF_GREATER, 0, 1, 0)
        .on_stack(STORE_64, S_UNTIL, 1);
}

/// Writes the answer over the message.
fn write_answer(p: &mut Program) {
    p.load(LOAD_32, LENGTH, ENTRY, V_LENGTH)
        .pass_if(IF_BELOW, LENGTH, 0, DNS_HEADER)
        .pass_if(IF_ABOVE, LENGTH, 0, ANSWER as i32)
        .copy(1, CONTEXT)
        .copy(2, LENGTH)
        .add(2, at::MESSAGE.into())
        .number(3, 0)
        .call(CHANGE_TAIL)
        .pass_if(IF_NOT, 0, 0, 0)
        .copy(1, CONTEXT)
        .number(2, at::MESSAGE.into())
        .copy(3, ENTRY)
        .add(3, V_ANSWER)
        .copy(4, LENGTH)
        .number(5, 0)
        .call(STORE_BYTES)
        .drop_if(IF_NOT, 0, 0, 0)
        .load(LOAD_64, 1, FRAME, S_UNTIL);
    for place in [0, V_UNTIL_AGAIN] {
        p.load(LOAD_64, 2, ENTRY, place).drop_if(IF_DIFFER, 1, 2, 0);
    }
}

/// Sends it back. The sum of IPv4 changes with the length alone; a sum of UDP that is zero is none (RFC 768).
fn turn_round(p: &mut Program) {
    p.copy(3, LENGTH)
        .add(3, UDP_HEADER)
        .op(NETWORK_ORDER, 3, 0, 0, 16)
        .on_stack(STORE_16, S_TURNED + 12, 3)
        .copy(1, CONTEXT)
        .number(2, at::SOURCE.into())
        .address_on_stack(3, S_TURNED)
        .number(4, TURNED)
        .number(5, 0)
        .call(STORE_BYTES)
        .drop_if(IF_NOT, 0, 0, 0)
        .add(LENGTH, HEADERS)
        .op(NETWORK_ORDER, LENGTH, 0, 0, 16)
        .on_stack(STORE_16, S_LENGTH, LENGTH)
        .copy(1, CONTEXT)
        .number(2, at::IP_LENGTH.into())
        .address_on_stack(3, S_LENGTH)
        .number(4, 2)
        .number(5, 0)
        .call(STORE_BYTES)
        .drop_if(IF_NOT, 0, 0, 0)
        .copy(1, CONTEXT)
        .number(2, at::IP_SUM)
        .load(LOAD_64, 3, FRAME, S_BEFORE)
        .copy(4, LENGTH)
        .number(5, 2)
        .call(REPLACE_IP_SUM)
        .drop_if(IF_NOT, 0, 0, 0);
}
