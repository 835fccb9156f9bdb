//! One answer, out of what has come of it: the reading that all who ask have in common, be it a supervisor or a guest's agent.

use super::ClientError;
use crate::protocol::{Decoder, Frame, Response};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::io;
use std::os::fd::AsFd;

/// The answer, once a decoder has all of it; a refusal is an error.
pub(crate) fn next(decoder: &mut Decoder) -> Result<Option<Response>, ClientError> {
    loop {
        match decoder.next_frame()? {
            None => return Ok(None),
            Some(Frame::Hello) => {}
            Some(Frame::Response(response)) => {
                return match *response {
                    Response::Failed(failure) => Err(failure.into()),
                    other => Ok(Some(other)),
                };
            }
            Some(_) => return Err(ClientError::Unexpected),
        }
    }
}

/// The next piece of what comes from a socket; none if nothing is there yet. Never blocks.
pub(crate) fn receive(socket: impl AsFd, piece: &mut [u8]) -> Result<Option<&[u8]>, ClientError> {
    let come = loop {
        match recv(&socket, &mut *piece, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(ClientError::Gone),
            Ok((n, _)) => break n,
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(e) => return Err(io::Error::from(e).into()),
        }
    };
    Ok(Some(piece.get(..come).unwrap_or_default()))
}
