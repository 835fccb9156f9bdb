//! One pass over a tar: entries in, a finished [`Tree`] and a written [`Sink`] out.

use super::LayerLimits;
use super::error::{LayerError, Result, entry};
use super::source::Source;
use super::tar::{Entry, Kind, Meta, SparseMap, Tar};
use super::tree::{Inode, Place, Tree, Type};
use std::io::Read;
use types::Digest;

/// What a file system is asked to hold, apart from directories.
pub(super) enum Node<'a> {
    File { size: u64, sparse: Option<&'a SparseMap> },
    Symlink(&'a [u8]),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// One way to write a layer.
pub(super) trait Sink {
    /// Writes an inode with its content, and says where it is. It may end without any name.
    fn inode(&mut self, meta: &Meta, node: &Node<'_>, content: &mut Tar<'_>) -> Result<u64>;
    /// Writes names and directories. `content_size` is kept with the layer.
    fn finish(&mut self, tree: &Tree, diff_id: &Digest, content_size: u64) -> Result<()>;
}

/// Writes a tar into a sink. Returns the digest of the stream and the sum of file sizes.
pub(super) fn ingest(
    tar: &mut dyn Read,
    expected: Option<&Digest>,
    limits: &LayerLimits,
    sink: &mut dyn Sink,
) -> Result<(Digest, u64)> {
    // Only a digest can tell a tar without an end mark from a truncated one.
    let mut tar =
        Tar::new(Source::new(tar, limits.max_tar), limits.max_entries.saturating_mul(3), expected.is_none());
    let mut tree = Tree::new(limits.max_entries);
    let mut content = 0_u64;
    while let Some(entry) = tar.next()? {
        if let Kind::File { size, .. } = entry.kind {
            content = content.saturating_add(size);
            if content > limits.max_content {
                return Err(LayerError::Limit {
                    what: "the sum of its file sizes",
                    limit: limits.max_content,
                });
            }
        }
        add(&mut tree, sink, &mut tar, entry)?;
    }
    let found = tar.into_source().finish()?;
    match expected {
        Some(expected) if *expected != found => {
            return Err(LayerError::Digest { expected: *expected, found });
        }
        _ => {}
    }
    sink.finish(&tree, &found, content)?;
    Ok((found, content))
}

fn add(tree: &mut Tree, sink: &mut dyn Sink, tar: &mut Tar<'_>, item: Entry) -> Result<()> {
    let Entry { path, kind, mut meta } = item;
    let place = tree.locate(&path)?;
    let (parent, name) = match (place, &kind) {
        (Place::Done, _) => return Ok(()),
        (place, Kind::Dir) => {
            harmless(&mut meta, true);
            return tree.put_dir(place, meta);
        }
        (Place::Root, _) => return Err(entry(&path, "is the root, and no directory")),
        (Place::Name(parent, name), _) => (parent, name),
    };
    harmless(&mut meta, matches!(kind, Kind::File { .. }));
    let (node, kind) = match &kind {
        Kind::HardLink(target) => {
            let index = tree.link_target(&path, target)?;
            return tree.put_link(parent, name, index);
        }
        Kind::Symlink(target) => match target.len() {
            0 => return Err(entry(&path, "is a symbolic link to nothing")),
            1..4096 => {
                // Linux gives links no other mode, whatever the tar says.
                meta.mode = 0o777;
                (Node::Symlink(target), Type::Symlink)
            }
            _ => return Err(entry(&path, "is a symbolic link to a path longer than 4095 bytes")),
        },
        Kind::Char(major, minor) => (Node::Char(*major, *minor), Type::Char),
        Kind::Block(major, minor) => (Node::Block(*major, *minor), Type::Block),
        Kind::Fifo => (Node::Fifo, Type::Fifo),
        Kind::File { size, sparse } => (Node::File { size: *size, sparse: sparse.as_ref() }, Type::File),
        Kind::Dir => return Ok(()),
    };
    let place = sink.inode(&meta, &node, tar)?;
    let target = match node {
        Node::Symlink(target) => Some(target.into()),
        _ => None,
    };
    tree.put_inode(parent, name, Inode { place, links: 0, kind, target })
}

/// Keeps the attributes that a file system of Linux can hold, and drops those that overlayfs would obey: a layer
/// must not redirect, hide or fake anything in the layers below it by `overlay.*` attributes.
fn harmless(meta: &mut Meta, user: bool) {
    meta.xattrs.retain(|(name, value)| {
        let known = [&b"user."[..], b"trusted.", b"security."]
            .iter()
            .any(|prefix| name.strip_prefix(*prefix).is_some_and(|rest| !rest.is_empty()))
            || matches!(name.as_slice(), b"system.posix_acl_access" | b"system.posix_acl_default");
        known
            && !name.starts_with(b"trusted.overlay.")
            && !name.starts_with(b"user.overlay.")
            && (user || !name.starts_with(b"user."))
            && name.len() <= 255
            && !name.contains(&0)
            && value.len() <= usize::from(u16::MAX)
    });
    meta.xattrs.sort();
    meta.nanos = meta.nanos.min(999_999_999);
}
