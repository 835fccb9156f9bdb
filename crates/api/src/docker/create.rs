//! `containers/create`.

use super::{Answer, Ask, admission, ask};
use crate::fault::Fault;
use engine::{CreateRequest, PullPolicy};
use hyper::StatusCode;
use serde_json::{Value, json};
use types::Platform;
use types::docker::{ContainerConfig, EndpointSettings, HostConfig};

pub async fn create(mut ask: Ask) -> Answer {
    let Some((mut body, _turn)) = ask.document().await? else {
        return Err(Fault::invalid("config cannot be empty in order to create a container"));
    };
    let mut host = body.get_mut("HostConfig").map(Value::take).unwrap_or(Value::Null);
    let networks = body.get_mut("NetworkingConfig").map(Value::take).unwrap_or(Value::Null);
    let hull = isolation(&mut host)?;
    let config: ContainerConfig = ask::shaped(body)?;
    let mut host: HostConfig = if host.is_null() { HostConfig::default() } else { ask::shaped(host)? };
    choose_hull(&mut host, hull, ask.server.settings.vm_by_default);
    if config.image.as_deref().unwrap_or_default().is_empty() {
        return Err(Fault::invalid("no image was named: give one in Image"));
    }
    let networks = endpoints(networks)?;
    let platform = ask.query.get("platform").map(Platform::parse).transpose();
    let restrict = ask.server.settings.policy.restrict.clone();
    let request = CreateRequest {
        name: ask.query.get("name").map(|n| n.strip_prefix('/').unwrap_or(n).to_owned()),
        image: config.image.clone().unwrap_or_default(),
        platform: platform.map_err(|e| Fault::invalid(e.to_string()))?,
        // The client pulls, when it is told that there is no such image.
        pull: PullPolicy::Never,
        config,
        host,
        networks,
        beneath: restrict.as_ref().map(|rules| rules.binds.clone()).unwrap_or_default(),
    };
    let created = ask.run(move |engine| {
        if let Some(rules) = restrict {
            admission::admit_new(engine, &rules, &request)?;
        }
        Ok(engine.create(request, &image::Quiet)?)
    });
    let created = created.await?;
    ask::json(StatusCode::CREATED, &json!({"Id": created.id.as_str(), "Warnings": created.warnings}))
}

fn endpoints(networks: Value) -> Result<Vec<(String, EndpointSettings)>, Fault> {
    let Some(Value::Object(map)) = networks.get("EndpointsConfig") else { return Ok(Vec::new()) };
    map.iter()
        .map(|(name, settings)| {
            let settings =
                if settings.is_null() { EndpointSettings::default() } else { ask::shaped(settings.clone())? };
            Ok((name.clone(), settings))
        })
        .collect()
}

/// Which hull `HostConfig.Isolation` asks for. The word is taken out: Docker's type knows Windows' only.
fn isolation(host: &mut Value) -> Result<Option<bool>, Fault> {
    let Some(word) = host.get_mut("Isolation").map(Value::take) else { return Ok(None) };
    if let Some(map) = host.as_object_mut() {
        map.remove("Isolation");
    }
    match word.as_str().unwrap_or_default() {
        "" | "default" => Ok(None),
        "vm" | "hyperv" => Ok(Some(true)),
        "container" | "process" => Ok(Some(false)),
        other => Err(Fault::invalid(format!("invalid isolation {other:?}: give vm or container"))),
    }
}

/// The client's word counts: the runtime first, then the isolation, then the server's default.
fn choose_hull(host: &mut HostConfig, isolation: Option<bool>, vm_by_default: bool) {
    let runtime = host.runtime.as_deref().unwrap_or_default();
    let vm = match runtime {
        "vm" => true,
        "" => isolation.unwrap_or(vm_by_default),
        _ => return,
    };
    host.runtime = vm.then(|| engine::VM_RUNTIME.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(mut host: Value, default: bool) -> Option<String> {
        let hull = isolation(&mut host).unwrap();
        let mut host: HostConfig = ask::shaped(host).unwrap();
        choose_hull(&mut host, hull, default);
        host.runtime
    }

    #[test]
    fn the_hull_is_one_word_away() {
        let vm = Some(engine::VM_RUNTIME.to_owned());
        assert_eq!(runtime(json!({"Runtime": "vm"}), false), vm);
        assert_eq!(runtime(json!({"Isolation": "vm"}), false), vm);
        assert_eq!(runtime(json!({"Isolation": ""}), false), None);
        assert_eq!(runtime(json!({}), true), vm);
        assert_eq!(runtime(json!({"Isolation": "container"}), true), None);
        assert_eq!(runtime(json!({"Runtime": "runc", "Isolation": "vm"}), true), Some("runc".into()));
        assert!(isolation(&mut json!({"Isolation": "maybe"})).is_err());
    }
}
