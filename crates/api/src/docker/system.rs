//! `_ping`, `version`, `info`, `system/df`.

use super::{Answer, Ask, ask, shapes};
use crate::body::Body;
use crate::fault::Fault;
use hyper::header::CONTENT_TYPE;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

pub fn ping() -> Answer {
    Response::builder()
        .header(CONTENT_TYPE, "text/plain; charset=utf-8")
        .header("Cache-Control", "no-cache, no-store, must-revalidate")
        .header("Pragma", "no-cache")
        .header("Builder-Version", "1")
        .header("Swarm", "inactive")
        .body(Body::of("OK"))
        .map_err(|e| Fault::internal(e.to_string()))
}

pub fn version(ask: &Ask) -> Answer {
    let mut shown = serde_json::to_value(engine::version(&ask.server.settings.build))?;
    shapes::version(&mut shown);
    ask::json(StatusCode::OK, &shown)
}

pub async fn info(ask: Ask) -> Answer {
    let settings = ask.server.settings;
    let mut info = ask.run(|engine| Ok(serde_json::to_value(engine.info(&settings.build)?)?)).await?;
    if settings.vm_by_default {
        info["DefaultRuntime"] = json!(engine::VM_RUNTIME);
    }
    shapes::info(&mut info, ask.version);
    ask::json(StatusCode::OK, &info)
}

/// `system/df`: everything with its size.
pub async fn df(ask: Ask) -> Answer {
    let wanted: Vec<String> = ask.query.all("type").to_vec();
    let version = ask.version;
    let wants = move |kind: &str| wanted.is_empty() || wanted.iter().any(|w| w == kind);
    let out = ask
        .run(move |engine| {
            let mut out = json!({"BuildCache": Value::Null, "BuilderSize": 0});
            if wants("image") {
                let usage = engine.disk_usage()?;
                out["LayersSize"] = json!(usage.iter().find(|u| u.kind == "Images").map_or(0, |u| u.size));
                out["Images"] = json!(engine.list_images(&engine::Filters::new())?);
                shapes::images(&mut out["Images"], version);
            }
            if wants("container") {
                let options = engine::ListOptions { all: true, size: true, ..Default::default() };
                out["Containers"] = serde_json::from_slice(&shapes::containers(engine, &options, version)?)?;
            }
            if wants("volume") {
                let volumes = engine.volumes()?;
                let shown: Result<Vec<Value>, Fault> = volumes
                    .iter()
                    .map(|v| {
                        let mut shown = serde_json::to_value(engine.volume_shape(v)?)?;
                        shown["UsageData"] =
                            json!({"Size": engine.volume_usage(v)?, "RefCount": v.users.len()});
                        Ok(shown)
                    })
                    .collect();
                out["Volumes"] = json!(shown?);
            }
            Ok(out)
        })
        .await?;
    ask::json(StatusCode::OK, &out)
}
