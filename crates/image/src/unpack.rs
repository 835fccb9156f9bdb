//! From a blob to a layer: decompression on one thread, conversion on another, with bounds against bombs.

use crate::ImageError;
use crate::content::{CHUNK, Content, Hashing, RoomCheck};
use crate::layer::{Layer, LayerError, LayerLimits, LayerStore};
use crate::manifest::OCI_LAYER_GZIP;
use flate2::bufread::MultiGzDecoder;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use types::Digest;

/// Buffers in flight between the two threads.
const IN_FLIGHT: usize = 8;
/// A layer may grow by this factor when it is decompressed …
const MAX_RATIO: u64 = 256;
/// … or to this size, whichever is more.
const MAX_UNCHECKED: u64 = 4 << 30;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip(1).
    Gzip,
    /// zstd(1).
    Zstd,
}

impl Compression {
    /// Tells by the first bytes.
    pub(crate) fn detect(head: &[u8]) -> Result<Self, ImageError> {
        let refuse = |name: &str| {
            Err(ImageError::Unsupported(format!("{name} compression is not supported; use gzip or zstd")))
        };
        match head {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            // A skippable frame, with which pzstd and seekable zstd begin.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', ..] => refuse("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => refuse("xz"),
            _ => Ok(Self::None),
        }
    }

    /// OCI media type of a layer that is compressed so.
    pub(crate) fn layer_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => OCI_LAYER_GZIP,
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// Decompresses whatever comes.
pub fn decompress<'a>(
    source: impl Read + Send + 'a,
) -> Result<(Compression, Box<dyn Read + Send + 'a>), io::Error> {
    // The head may come in pieces.
    let mut source = source;
    let mut head = Vec::with_capacity(8);
    source.by_ref().take(8).read_to_end(&mut head)?;
    let kind = Compression::detect(&head)?;
    let source = BufReader::with_capacity(CHUNK, io::Cursor::new(head).chain(source));
    Ok((
        kind,
        match kind {
            Compression::None => Box::new(source),
            Compression::Gzip => Box::new(MultiGzDecoder::new(source)),
            Compression::Zstd => {
                let mut d = zstd::Decoder::with_buffer(source)?;
                d.window_log_max(27)?;
                Box::new(d)
            }
        },
    ))
}

/// Bounds for one layer of `compressed` bytes.
pub(crate) fn limits_for(limits: &LayerLimits, compressed: u64) -> LayerLimits {
    let by_ratio = compressed.saturating_mul(MAX_RATIO).max(MAX_UNCHECKED);
    LayerLimits { max_tar: limits.max_tar.min(by_ratio), ..*limits }
}

/// Where the tar bytes also go.
pub(crate) type Tee<'a> = Option<&'a mut (dyn Write + Send)>;

/// Decompresses `source` and makes a layer of it. The bytes of the tar also go to `tee`.
pub(crate) fn ingest(
    layers: &LayerStore,
    content: &Content,
    name: &str,
    source: impl Read + Send,
    expected: Option<&Digest>,
    limits: &LayerLimits,
    tee: Tee<'_>,
) -> Result<Layer, ImageError> {
    let (full, filled) = sync_channel::<io::Result<Vec<u8>>>(IN_FLIGHT);
    let (empty, spare) = sync_channel::<Vec<u8>>(IN_FLIGHT + 2);
    std::thread::scope(|s| {
        let reader = s.spawn(move || {
            let done = inflate(content, name, source, limits, tee, &full, &spare);
            // The empty buffer is the end; without it the other side knows that this thread failed.
            let _ = match &done {
                Ok(_) => full.send(Ok(Vec::new())),
                Err(_) => {
                    full.send(Err(io::Error::new(io::ErrorKind::InvalidData, "the layer cannot be read")))
                }
            };
            done
        });
        let mut tar = Pipe { filled, empty, current: Vec::new(), at: 0, ended: false };
        let made = layers.ingest(&mut tar, expected, limits);
        drop(tar);
        let read =
            reader.join().unwrap_or_else(|_| Err(ImageError::corrupt(name, "the decompressor failed")));
        match (made, read) {
            (_, Err(e)) => Err(e),
            (Err(e), Ok(_)) => Err(layer_error(name, content, e)),
            (Ok(_), Ok(false)) => Err(ImageError::corrupt(name, "it was not read to its end")),
            (Ok(layer), Ok(true)) => Ok(layer),
        }
    })
}

pub(crate) fn layer_error(name: &str, content: &Content, source: LayerError) -> ImageError {
    if matches!(source, LayerError::NoSpace { .. }) {
        return ImageError::DiskFull {
            path: content.tmp().to_owned(),
            reason: format!("{name} does not fit"),
        };
    }
    ImageError::Layer { layer: name.to_owned(), source }
}

/// False: the converter gave up before the end.
fn inflate(
    content: &Content,
    name: &str,
    source: impl Read + Send,
    limits: &LayerLimits,
    mut tee: Tee<'_>,
    full: &SyncSender<io::Result<Vec<u8>>>,
    spare: &Receiver<Vec<u8>>,
) -> Result<bool, ImageError> {
    let broken = |e: io::Error| match crate::error::is_full(&e) {
        true => ImageError::io("write", content.tmp(), e),
        false => e.downcast::<ImageError>().unwrap_or_else(|e| ImageError::corrupt(name, e.to_string())),
    };
    let (_, mut tar) = decompress(source).map_err(broken)?;
    let mut total = 0u64;
    let mut room = RoomCheck::new(content.tmp());
    loop {
        let mut buf = spare.try_recv().unwrap_or_default();
        buf.resize(CHUNK, 0);
        let n = fill(&mut *tar, &mut buf).map_err(broken)?;
        if n == 0 {
            return Ok(true);
        }
        buf.truncate(n);
        total += n as u64;
        if total > limits.max_tar {
            return Err(ImageError::Limit {
                what: name.to_owned(),
                reason: format!(
                    "its tar has more than {} (a decompression bomb?)",
                    types::units::human_size(limits.max_tar as f64)
                ),
            });
        }
        room.at(total)?;
        if let Some(tee) = &mut tee {
            tee.write_all(&buf).map_err(|e| ImageError::io("write a blob in", content.tmp(), e))?;
        }
        if full.send(Ok(buf)).is_err() {
            // The converter gave up and says why.
            return Ok(false);
        }
    }
}

fn fill(from: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut at = 0;
    while at < buf.len() {
        match from.read(&mut buf[at..]) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(at)
}

/// Reads what another thread sends.
struct Pipe {
    filled: Receiver<io::Result<Vec<u8>>>,
    empty: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let data = self.fill_buf()?;
        let n = data.len().min(buf.len());
        buf[..n].copy_from_slice(&data[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Pipe {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() && !self.ended {
            let used = std::mem::take(&mut self.current);
            let _ = self.empty.try_send(used);
            let broken = || io::Error::new(io::ErrorKind::UnexpectedEof, "the layer ended early");
            self.current = self.filled.recv().map_err(|_| broken())??;
            self.at = 0;
            self.ended = self.current.is_empty();
        }
        Ok(self.current.get(self.at..).unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.current.len());
    }
}

/// Compresses tar bytes into a blob: gzip at its fastest, without time and name, so that the same tar is always the
/// same blob.
pub(crate) struct BlobWriter<W: Write>(flate2::write::GzEncoder<Hashing<W>>);

impl<W: Write> BlobWriter<W> {
    pub fn new(out: W) -> Self {
        Self(flate2::GzBuilder::new().mtime(0).write(Hashing::new(out), flate2::Compression::fast()))
    }

    /// Digest and size of the blob.
    pub fn finish(self) -> io::Result<(W, Digest, u64)> {
        Ok(self.0.finish()?.finish())
    }
}

impl<W: Write> Write for BlobWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
