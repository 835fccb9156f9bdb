//! Verbs on images that need to know of containers; the others are [`image::ImageStore`]'s own.

use crate::request::Filters;
use crate::spec::invalid;
use crate::{Engine, Result, store};
use image::{ImageStore, ImageUser, ListFilters};
use types::docker::ImageDeleteResponseItem;
use types::{Digest, ImageRef};

impl Engine {
    /// The image store.
    pub fn images(&self) -> &ImageStore {
        &self.images
    }

    /// Brings the embedded image `hello` into the store, where it is not there yet.
    pub fn ensure_hello(&self) -> Result<()> {
        if !self.hello.is_empty() {
            self.images.ensure_hello(self.hello)?;
        }
        Ok(())
    }

    /// The containers of an image.
    pub(crate) fn users_of(&self, id: &Digest) -> Vec<ImageUser> {
        let users = store::users_of_image(&self.db, &id.to_string());
        // Where they cannot be read, the image is better taken for used.
        let unknown = || vec![("unknown".to_owned(), String::new())];
        users
            .unwrap_or_else(|_| unknown())
            .into_iter()
            .map(|(id, _)| {
                let parsed = types::ContainerId::parse(&id);
                ImageUser {
                    running: parsed.as_ref().map_or(true, |id| self.read_state(id).status.is_active()),
                    id: parsed.map_or(id, |id| id.short().to_owned()),
                }
            })
            .collect()
    }

    /// Every tag that this store has of a repository.
    pub fn tags_of(&self, repository: &ImageRef) -> Result<Vec<ImageRef>> {
        let filters = ListFilters { reference: vec![repository.familiar_name()], ..ListFilters::default() };
        let tags = self.images.list(&filters)?.into_iter().flat_map(|i| i.repo_tags);
        Ok(tags.filter_map(|t| ImageRef::parse(&t).ok()).filter(|r| r.name() == repository.name()).collect())
    }

    /// `rmi`: takes a name, and with the last one the image.
    pub fn remove_image(&self, name: &str, force: bool) -> Result<Vec<ImageDeleteResponseItem>> {
        let items = self.images.remove(name, force, &|id| self.users_of(id))?;
        for item in &items {
            if let Some(id) = &item.deleted {
                self.image_event("delete", id, id);
            } else if let Some(untagged) = &item.untagged {
                self.image_event("untag", untagged, name);
            }
        }
        Ok(items)
    }
}

/// `--filter` of images as the store takes it.
pub(crate) fn list_filters(filters: &Filters) -> Result<ListFilters> {
    let mut out = ListFilters::default();
    for (key, values) in filters {
        for value in values {
            match key.as_str() {
                "dangling" => out.dangling = Some(matches!(value.as_str(), "true" | "1")),
                "label" => out.label.push(value.clone()),
                "label!" => out.label_not.push(value.clone()),
                "before" => out.before = Some(value.clone()),
                "since" => out.since = Some(value.clone()),
                "reference" => out.reference.push(value.clone()),
                "until" => out.until_ns = Some(until(value)?),
                other => {
                    return Err(invalid(format!(
                        "invalid filter {other:?}: before, dangling, label, label!, reference, since, until are known"
                    )));
                }
            }
        }
    }
    Ok(out)
}

/// A time, or a span before now.
pub(crate) fn until(text: &str) -> Result<i64> {
    if let Some(span) = types::units::parse_duration(text) {
        return Ok(sys::host::now_ns().saturating_sub(span));
    }
    if let Ok(seconds) = text.parse::<f64>() {
        return Ok((seconds * 1e9) as i64);
    }
    types::units::parse_rfc3339(text)
        .ok_or_else(|| invalid(format!("invalid time {text:?}: RFC 3339, seconds, or a span such as 24h")))
}

impl Engine {
    /// The images that match, newest first.
    pub fn list_images(&self, filters: &Filters) -> Result<Vec<types::docker::ImageSummary>> {
        let mut all = self.images.list(&list_filters(filters)?)?;
        for image in &mut all {
            image.containers = store::users_of_image(&self.db, &image.id)?.len() as i64;
        }
        Ok(all)
    }
}
