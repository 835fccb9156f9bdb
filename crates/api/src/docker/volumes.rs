//! Volumes.

use super::{Answer, Ask, ask};
use crate::fault::Fault;
use engine::CreateVolume;
use hyper::StatusCode;
use serde_json::json;
use types::docker::VolumeCreateRequest;

pub async fn list(ask: Ask) -> Answer {
    let filters = ask.query.filters()?;
    let found = ask
        .run(move |engine| {
            let found = engine.matching_volumes(&filters)?;
            found.iter().map(|v| Ok(engine.volume_shape(v)?)).collect::<Result<Vec<_>, Fault>>()
        })
        .await?;
    ask::json(StatusCode::OK, &json!({"Volumes": found, "Warnings": null}))
}

pub async fn inspect(ask: Ask, name: &str) -> Answer {
    let name = name.to_owned();
    let shown = ask.run(move |engine| Ok(engine.volume_shape(&engine.volume(&name)?)?)).await?;
    ask::json(StatusCode::OK, &shown)
}

pub async fn create(mut ask: Ask) -> Answer {
    let request: VolumeCreateRequest = ask.shape().await?;
    if let Some(rules) = &ask.server.settings.policy.restrict {
        rules.admit_volume(&request)?;
    }
    let wanted = CreateVolume {
        name: request.name.filter(|n| !n.is_empty()),
        driver: request.driver.unwrap_or_default(),
        options: request.driver_opts.unwrap_or_default().into_iter().collect(),
        labels: request.labels.unwrap_or_default().into_iter().collect(),
    };
    let shown = ask
        .run(move |engine| {
            let name = engine.create_volume(&wanted)?;
            Ok(engine.volume_shape(&engine.volume(&name)?)?)
        })
        .await?;
    ask::json(StatusCode::CREATED, &shown)
}

pub async fn remove(ask: Ask, name: &str) -> Answer {
    let (name, force) = (name.to_owned(), ask.query.flag("force"));
    ask.run(move |engine| match engine.remove_volume(&name) {
        Err(engine::EngineError::NoSuchVolume(_)) if force => Ok(()),
        done => Ok(done?),
    })
    .await?;
    ask::empty(StatusCode::NO_CONTENT)
}

pub async fn prune(ask: Ask) -> Answer {
    let mut filters = ask.query.filters()?;
    let all = filters.remove("all").unwrap_or_default().iter().any(|v| matches!(v.as_str(), "true" | "1"));
    // Before API 1.42 named volumes were pruned as well.
    let all = all || ask.version < 42;
    let pruned = ask.run(move |engine| Ok(engine.prune_volumes(all, &filters)?)).await?;
    ask::json(StatusCode::OK, &json!({"VolumesDeleted": pruned.volumes, "SpaceReclaimed": pruned.reclaimed}))
}
