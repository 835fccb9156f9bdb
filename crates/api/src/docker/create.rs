//! `containers/create`.

use super::{Answer, Ask, admission, ask};
use crate::fault::Fault;
use crate::fold;
use engine::{CreateRequest, PullPolicy};
use hyper::StatusCode;
use serde_json::{Value, json};
use types::Platform;
use types::docker::{ContainerConfig, EndpointSettings, HostConfig};

pub async fn create(mut ask: Ask) -> Answer {
    let Some((mut body, _turn)) = ask.document().await? else {
        return Err(Fault::invalid("config cannot be empty in order to create a container"));
    };
    let mut host = fold::take(&mut body, "HostConfig").unwrap_or(Value::Null);
    let networks = fold::take(&mut body, "NetworkingConfig").unwrap_or(Value::Null);
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

fn endpoints(mut networks: Value) -> Result<Vec<(String, EndpointSettings)>, Fault> {
    let wrong = |what: &str| Fault::invalid(format!("invalid JSON: {what} is not an object"));
    if !networks.is_null() && !networks.is_object() {
        return Err(wrong("NetworkingConfig"));
    }
    let map = match fold::take(&mut networks, "EndpointsConfig").unwrap_or(Value::Null) {
        Value::Null => return Ok(Vec::new()),
        Value::Object(map) => map,
        _ => return Err(wrong("NetworkingConfig.EndpointsConfig")),
    };
    let read = |(name, settings)| match settings {
        Value::Null => Ok((name, EndpointSettings::default())),
        settings => Ok((name, ask::shaped(settings)?)),
    };
    map.into_iter().map(read).collect()
}

/// Which hull `HostConfig.Isolation` asks for. The word is taken out: Docker's type knows Windows' only.
fn isolation(host: &mut Value) -> Result<Option<bool>, Fault> {
    let word = match fold::take(host, "Isolation").unwrap_or(Value::Null) {
        Value::Null => return Ok(None),
        Value::String(word) => word,
        other => {
            return Err(Fault::invalid(format!("invalid isolation {other}: give \"vm\" or \"container\"")));
        }
    };
    match word.as_str() {
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
        assert_eq!(runtime(json!({"isolation": "vm"}), false), vm);
        for bad in [json!("maybe"), json!(["vm"]), json!(5)] {
            assert!(isolation(&mut json!({"Isolation": bad})).is_err());
        }
    }

    #[test]
    fn networks_are_objects() {
        let networks =
            endpoints(json!({"endpointsConfig": {"one": null, "two": {"aliases": ["a"]}}})).unwrap();
        assert_eq!(networks[0], ("one".to_owned(), EndpointSettings::default()));
        assert_eq!(networks[1].1.aliases, Some(vec!["a".to_owned()]));
        assert!(endpoints(Value::Null).unwrap().is_empty() && endpoints(json!({})).unwrap().is_empty());
        for bad in [json!("x"), json!({"EndpointsConfig": ["none"]}), json!({"EndpointsConfig": {"one": 1}})]
        {
            assert!(endpoints(bad).is_err());
        }
    }
}
