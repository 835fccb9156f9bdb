//! What a server's rules say of what a request names: the container that it enters, the volumes and networks that are there
//! already, whoever made them. What the rules are is [`crate::policy`]'s.

use crate::ask::Ask;
use crate::fault::Fault;
use crate::policy::{Restrict, refused};
use engine::{CreateRequest, Engine};
use types::docker::MountType;

/// The full id of a container that a client may enter or start; all that follows goes by the id, since names move.
pub(super) async fn entered(ask: &Ask, name: &str) -> Result<String, Fault> {
    let (name, restrict) = (name.to_owned(), ask.server.settings.policy.restrict.clone());
    ask.run(move |engine| {
        let id = engine.id(&name)?.to_string();
        if let Some(rules) = restrict {
            admit(engine, &id, &rules)?;
        }
        Ok(id)
    })
    .await
}

/// The same for a look at a container's files. Those of one that does not run are prepared for it, which makes what is missing
/// of its mounts, and boots a microVM.
pub(super) async fn looked_into(ask: &Ask, name: &str) -> Result<String, Fault> {
    let id = entered(ask, name).await?;
    if !ask.server.settings.policy.read_only {
        return Ok(id);
    }
    let of = id.clone();
    match ask.run(move |engine| Ok(engine.status(&of)?.is_active())).await? {
        true => Ok(id),
        false => Err(refused("readonly", "only the files of what runs are looked at")),
    }
}

/// The same for a restart, which the supervisor does by what the run began with.
pub(super) async fn restarted(ask: &Ask, name: &str) -> Result<String, Fault> {
    let id = entered(ask, name).await?;
    if ask.server.settings.policy.restrict.is_none() {
        return Ok(id);
    }
    let of = id.clone();
    match ask.run(move |engine| Ok(engine.runs_unconfined(&of)?)).await? {
        true => Err(refused(
            "bind",
            "it runs with binds that were not found beneath their directory: stop it, and start it",
        )),
        false => Ok(id),
    }
}

/// Whether a container that exists keeps to a server's rules: what is entered must be as harmless as what is made.
fn admit(engine: &Engine, id: &str, rules: &Restrict) -> Result<(), Fault> {
    let found = engine.inspect(id, false)?;
    rules.admit(&found.config.unwrap_or_default(), &found.host_config.unwrap_or_default())?;
    let mounts = found.mounts.unwrap_or_default();
    let of_volumes = mounts.iter().filter(|mount| mount.typ.as_deref() == Some("volume"));
    volumes(engine, rules, of_volumes.filter_map(|mount| mount.name.as_deref()))?;
    let places = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    places.values().try_for_each(|settings| rules.admit_endpoint(settings))?;
    networks(engine, rules, places.keys().map(String::as_str))?;
    // What the rule has just seen may be a link out of the directory when the container starts.
    Ok(engine.confine(id, &rules.binds)?)
}

/// Whether a container may be made.
pub(super) fn admit_new(engine: &Engine, rules: &Restrict, request: &CreateRequest) -> Result<(), Fault> {
    let host = &request.host;
    rules.admit(&request.config, host)?;
    request.networks.iter().try_for_each(|(_, settings)| rules.admit_endpoint(settings))?;
    let binds = host.binds.iter().flatten().filter_map(|bind| Some(bind.split_once(':')?.0));
    let of_volumes =
        host.mounts.iter().flatten().filter(|mount| matches!(mount.typ, None | Some(MountType::VOLUME)));
    let mounts = of_volumes.filter_map(|mount| mount.source.as_deref());
    volumes(engine, rules, binds.filter(|source| !source.starts_with('/')).chain(mounts))?;
    let named = request.networks.iter().map(|(name, _)| name.as_str());
    networks(engine, rules, host.network_mode.as_deref().into_iter().chain(named))
}

/// Whether these volumes, as far as they are there, are none that the rules would not have let be made.
fn volumes<'a>(
    engine: &Engine,
    rules: &Restrict,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<(), Fault> {
    // One that is not there will be made without options.
    names.into_iter().filter_map(|name| engine.volume(name).ok()).try_for_each(|volume| {
        let options = volume.options.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        rules.admit_volume_options(options)
    })
}

/// The same of networks.
pub(super) fn networks<'a>(
    engine: &Engine,
    rules: &Restrict,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<(), Fault> {
    // One that is not there is the engine's to tell.
    names.into_iter().filter_map(|name| engine.inspect_network(name).ok()).try_for_each(|network| {
        let options = network.options.unwrap_or_default();
        let given = options.iter().filter(|(_, value)| !matches!(value.as_str(), "false" | "0"));
        rules.admit_driver(
            network.driver.as_deref().unwrap_or_default(),
            given.map(|(key, _)| key.as_str()).filter(|key| !key.starts_with("com.docker.")),
        )
    })
}
