//! Images that are here: list, inspect, history, tag, remove, prune, commit, save, load.

use super::{Answer, Ask, ask, shapes};
use crate::body::BodyReader;
use crate::fault::Fault;
use crate::work::Late;
use engine::CommitOptions;
use hyper::StatusCode;
use image::{LoadFrom, SaveFormat, SaveTo};
use serde_json::json;
use std::io::Write;
use types::{ImageRef, Platform};

/// The type of tars.
const TAR: &str = "application/x-tar";

pub async fn list(ask: Ask) -> Answer {
    let mut filters = ask.query.filters()?;
    // Docker before API 1.41.
    if let Some(name) = ask.query.get("filter") {
        filters.entry("reference".into()).or_default().push(name.to_owned());
    }
    let mut found = ask.run(move |engine| Ok(serde_json::to_value(engine.list_images(&filters)?)?)).await?;
    shapes::images(&mut found, ask.version);
    ask::json(StatusCode::OK, &found)
}

pub async fn inspect(ask: Ask, name: &str) -> Answer {
    let name = name.to_owned();
    let mut shown = ask.run(move |engine| Ok(serde_json::to_value(engine.images().inspect(&name)?)?)).await?;
    shapes::image(&mut shown, ask.version);
    ask::json(StatusCode::OK, &shown)
}

pub async fn history(ask: Ask, name: &str) -> Answer {
    let name = name.to_owned();
    let shown = ask.run(move |engine| Ok(engine.images().history(&name)?)).await?;
    ask::json(StatusCode::OK, &shown)
}

pub async fn remove(ask: Ask, name: &str) -> Answer {
    let (name, force) = (name.to_owned(), ask.query.flag("force"));
    let gone = ask.run(move |engine| Ok(engine.remove_image(&name, force)?)).await?;
    ask::json(StatusCode::OK, &gone)
}

pub async fn prune(ask: Ask) -> Answer {
    let mut filters = ask.query.filters()?;
    let dangling = filters.remove("dangling").unwrap_or_default();
    let all = dangling.iter().any(|v| matches!(v.as_str(), "false" | "0"));
    let pruned = ask.run(move |engine| Ok(engine.prune_images(all, &filters)?)).await?;
    let shown: Vec<_> = pruned.images.iter().map(|line| deleted(line)).collect();
    let mut shown = json!({"ImagesDeleted": shown, "SpaceReclaimed": pruned.reclaimed});
    shapes::null_if_empty(&mut shown["ImagesDeleted"]);
    ask::json(StatusCode::OK, &shown)
}

/// `untagged: NAME` or `deleted: ID`, as the command prints it.
fn deleted(line: &str) -> serde_json::Value {
    match line.split_once(": ") {
        Some(("untagged", name)) => json!({"Untagged": name}),
        Some((_, id)) => json!({"Deleted": id}),
        None => json!({"Deleted": line}),
    }
}

pub async fn tag(ask: Ask, name: &str) -> Answer {
    let repository = ask.query.get("repo").ok_or_else(|| Fault::invalid("missing parameter: repo"))?;
    let full = match ask.query.get("tag") {
        Some(tag) => format!("{repository}:{tag}"),
        None => repository.to_owned(),
    };
    let reference = ImageRef::parse(&full).map_err(|e| Fault::invalid(e.to_string()))?;
    if let Some(rules) = &ask.server.settings.policy.restrict {
        rules.admit_image(name)?;
        rules.admit_image(&full)?;
    }
    let name = name.to_owned();
    ask.run(move |engine| {
        let id = engine.images().tag(&name, &reference)?;
        engine.image_event("tag", &id.to_string(), &reference.familiar());
        Ok(())
    })
    .await?;
    ask::empty(StatusCode::CREATED)
}

/// `commit`.
pub async fn commit(mut ask: Ask) -> Answer {
    let config = ask.shape().await?;
    let name =
        ask.query.get("container").ok_or_else(|| Fault::invalid("missing parameter: container"))?.to_owned();
    let repository = ask.query.get("repo").map(str::to_owned);
    let options = CommitOptions {
        reference: repository.map(|r| match ask.query.get("tag") {
            Some(tag) => format!("{r}:{tag}"),
            None => r,
        }),
        config,
        changes: ask.query.all("changes").iter().flat_map(|c| c.lines()).map(str::to_owned).collect(),
        author: ask.query.get("author").map(str::to_owned),
        message: ask.query.get("comment").map(str::to_owned),
        pause: ask.query.flag_or("pause", true),
    };
    if let (Some(rules), Some(reference)) = (&ask.server.settings.policy.restrict, &options.reference) {
        rules.admit_image(reference)?;
    }
    let name = super::entered(&ask, &name).await?;
    let id = ask.run(move |engine| Ok(engine.commit(&name, &options)?)).await?;
    ask::json(StatusCode::CREATED, &json!({"Id": id.to_string()}))
}

pub async fn save(ask: Ask, name: Option<String>) -> Answer {
    let names = name.map_or_else(|| ask.query.all("names").to_vec(), |n| vec![n]);
    if names.is_empty() {
        return Err(Fault::invalid("no image was named: give one or more in names"));
    }
    ask.stream(ask::head(TAR), Late::BrokenOff, move |engine, out| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for name in &names {
            engine.images().id(name)?;
        }
        Ok(engine.images().save(&names, SaveTo::Stream(out, SaveFormat::DockerArchive))?)
    })
    .await
}

pub async fn load(mut ask: Ask) -> Answer {
    let platform = ask.query.get("platform").map(Platform::parse).transpose();
    let platform = platform.map_err(|e| Fault::invalid(e.to_string()))?;
    // Docker tells of the progress only to who asks for it.
    let quiet = ask.query.flag_or("quiet", true);
    let mut tar = BodyReader::new(ask.take_body()?);
    if let Some(rules) = &ask.server.settings.policy.restrict {
        rules.admit_archive()?;
    }
    ask.stream(ask::head("application/json"), Late::Document, move |engine, out| {
        // What is wrong with the archive is told in the stream.
        out.begin();
        let told = super::registry::Messages::new(out);
        let progress: &dyn image::Progress = if quiet { &image::Quiet } else { &told };
        let loaded = engine.images().load(LoadFrom::Stream(&mut tar), platform.as_ref(), progress)?;
        let out = told.into_inner();
        for (id, names) in loaded {
            engine.image_event("load", &id.to_string(), &id.to_string());
            let mut line = |text: String| write!(out, "{}\r\n", json!({"stream": text + "\n"}));
            if names.is_empty() {
                line(format!("Loaded image ID: {id}")).ok();
            }
            for name in names {
                line(format!("Loaded image: {}", name.familiar())).ok();
            }
        }
        Ok(())
    })
    .await
}
