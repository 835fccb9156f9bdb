//! Files in and out of a container: `archive` and `export`.

use super::admission::looked_into;
use super::{Answer, Ask, ask};
use crate::body::BodyReader;
use crate::fault::Fault;
use crate::work::Late;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::{Response, StatusCode};
use rootfs::UnpackOptions;
use serde_json::json;
use std::path::PathBuf;

/// The type of tars.
const TAR: &str = "application/x-tar";
/// Where a path's description stands.
const STAT: &str = "X-Docker-Container-Path-Stat";

fn path(ask: &Ask) -> Result<PathBuf, Fault> {
    ask.query.get("path").map(PathBuf::from).ok_or_else(|| Fault::invalid("missing parameter: path"))
}

/// The description of a path, as the header has it.
async fn stat(ask: &Ask, id: &str) -> Result<(String, PathBuf), Fault> {
    let path = path(ask)?;
    let name = looked_into(ask, id).await?;
    let asked = path.clone();
    let shown = ask
        .run(move |engine| {
            let stat = engine.stat_path(&name, &asked)?;
            Ok(json!({
                "name": stat.name, "size": stat.size, "mode": stat.mode,
                "mtime": types::units::rfc3339(stat.mtime_ns), "linkTarget": stat.link_target,
            }))
        })
        .await?;
    Ok((BASE64_STANDARD.encode(shown.to_string()), path))
}

pub async fn head(ask: Ask, id: &str) -> Answer {
    let (stat, _) = stat(&ask, id).await?;
    Response::builder()
        .header(STAT, stat)
        .body(crate::body::Body::empty())
        .map_err(|e| Fault::internal(e.to_string()))
}

pub async fn get(ask: Ask, id: &str) -> Answer {
    let (stat, path) = stat(&ask, id).await?;
    let name = looked_into(&ask, id).await?;
    let head = ask::head(TAR).header(STAT, stat);
    ask.stream(head, Late::BrokenOff, move |engine, out| Ok(engine.copy_from(&name, &path, None, out)?)).await
}

pub async fn put(mut ask: Ask, id: &str) -> Answer {
    let path = path(&ask)?;
    let name = super::entered(&ask, id).await?;
    let options = UnpackOptions {
        no_overwrite_dir_non_dir: ask.query.flag("noOverwriteDirNonDir"),
        ..UnpackOptions::default()
    };
    let mut tar = BodyReader::new(ask.take_body()?);
    ask.run_apart(move |engine| {
        let (_, mut tar) = image::decompress(&mut tar)
            .map_err(|e| Fault::invalid(format!("the archive cannot be read: {e}")))?;
        Ok(engine.copy_to(&name, &path, &mut tar, &options)?)
    })
    .await?;
    ask::empty(StatusCode::OK)
}

pub async fn export(ask: Ask, id: &str) -> Answer {
    let name = looked_into(&ask, id).await?;
    ask.stream(ask::head("application/octet-stream"), Late::BrokenOff, move |engine, out| {
        Ok(engine.export(&name, out)?)
    })
    .await
}
