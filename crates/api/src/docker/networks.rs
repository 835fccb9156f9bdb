//! Networks.

use super::{Answer, Ask, admission, ask, shapes};
use crate::fault::Fault;
use hyper::StatusCode;
use serde_json::json;
use types::docker::{NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest};

pub async fn list(ask: Ask) -> Answer {
    let filters = ask.query.filters()?;
    let mut found = ask.run(move |engine| Ok(serde_json::to_value(engine.networks(&filters)?)?)).await?;
    shapes::networks(&mut found, ask.version);
    ask::json(StatusCode::OK, &found)
}

pub async fn inspect(ask: Ask, id: &str) -> Answer {
    let name = id.to_owned();
    let mut shown = ask.run(move |engine| Ok(serde_json::to_value(engine.inspect_network(&name)?)?)).await?;
    shapes::network(&mut shown, ask.version);
    ask::json(StatusCode::OK, &shown)
}

pub async fn create(mut ask: Ask) -> Answer {
    let request: NetworkCreateRequest = ask.shape().await?;
    if request.name.is_empty() {
        return Err(Fault::invalid("network name cannot be empty"));
    }
    if let Some(rules) = &ask.server.settings.policy.restrict {
        rules.admit_network(&request)?;
    }
    let id = ask.run(move |engine| engine.create_network(&request).map_err(forbidden)).await?;
    ask::json(StatusCode::CREATED, &json!({"Id": id, "Warning": ""}))
}

pub async fn remove(ask: Ask, id: &str) -> Answer {
    let name = id.to_owned();
    ask.run(move |engine| engine.remove_network(&name).map_err(forbidden)).await?;
    ask::empty(StatusCode::NO_CONTENT)
}

pub async fn prune(ask: Ask) -> Answer {
    let filters = ask.query.filters()?;
    let pruned = ask.run(move |engine| Ok(engine.prune_networks(&filters)?)).await?;
    let mut shown = json!({"NetworksDeleted": pruned});
    shapes::null_if_empty(&mut shown["NetworksDeleted"]);
    ask::json(StatusCode::OK, &shown)
}

pub async fn connect(mut ask: Ask, id: &str) -> Answer {
    let request: NetworkConnectRequest = ask.shape().await?;
    let network = id.to_owned();
    let container = super::entered(&ask, &request.container).await?;
    let restrict = ask.server.settings.policy.restrict.clone();
    ask.run(move |engine| {
        if let Some(rules) = restrict {
            request.endpoint_config.iter().try_for_each(|settings| rules.admit_endpoint(settings))?;
            admission::networks(engine, &rules, [network.as_str()])?;
        }
        let settings = request.endpoint_config.unwrap_or_default();
        engine.connect_network(&network, &container, settings).map_err(forbidden)
    })
    .await?;
    ask::empty(StatusCode::OK)
}

pub async fn disconnect(mut ask: Ask, id: &str) -> Answer {
    let request: NetworkDisconnectRequest = ask.shape().await?;
    let network = id.to_owned();
    ask.run(move |engine| {
        Ok(engine.disconnect_network(&network, &request.container, request.force.unwrap_or(false))?)
    })
    .await?;
    ask::empty(StatusCode::OK)
}

/// Docker forbids what a network's state does not allow; only a name that is taken is a conflict.
fn forbidden(e: engine::EngineError) -> Fault {
    let fault = Fault::from(e);
    match fault.status {
        409 if !fault.message.starts_with("network with name") => Fault { status: 403, ..fault },
        _ => fault,
    }
}
