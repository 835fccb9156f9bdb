//! What the user asked for over what the image suggests (Docker's `runconfig.Merge`).

use types::docker::{ContainerConfig, HealthConfig};
use types::{ImageHealth, ProcessDefaults};

/// Fills in whatever `user` leaves open from the image's defaults.
pub(crate) fn merge(mut user: ContainerConfig, image: &ProcessDefaults) -> ContainerConfig {
    if user.user.as_deref().unwrap_or("").is_empty() {
        user.user = Some(image.user.clone());
    }
    merge_list(&mut user.exposed_ports, image.exposed_ports.keys());
    merge_list(&mut user.volumes, image.volumes.keys());
    merge_env(user.env.get_or_insert_default(), &image.env);
    let labels = user.labels.get_or_insert_default();
    for (key, value) in &image.labels {
        labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    merge_command(&mut user, image);
    if user.working_dir.as_deref().unwrap_or("").is_empty() {
        user.working_dir = Some(image.working_dir.clone());
    }
    user.healthcheck = merge_health(user.healthcheck.take(), image.healthcheck.as_ref());
    user.stop_signal = user.stop_signal.or_else(|| image.stop_signal.clone());
    user.stop_timeout = user.stop_timeout.or(image.stop_timeout);
    user.shell = user.shell.or_else(|| image.shell.clone());
    user.on_build = user.on_build.or_else(|| image.on_build.clone());
    user
}

fn merge_list<'a>(list: &mut Option<Vec<String>>, more: impl Iterator<Item = &'a String>) {
    for item in more {
        let list = list.get_or_insert_default();
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn merge_env(env: &mut Vec<String>, image: &[String]) {
    fn key(entry: &str) -> &str {
        entry.split('=').next().unwrap_or(entry)
    }
    for entry in image {
        if !env.iter().any(|e| key(e) == key(entry)) {
            env.push(entry.clone());
        }
    }
}

/// The image's command goes with the image's entry point only.
fn merge_command(user: &mut ContainerConfig, image: &ProcessDefaults) {
    let given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
    match &user.entrypoint {
        // `--entrypoint ""` asks for none.
        Some(e) if e.len() == 1 && e[0].is_empty() => user.entrypoint = None,
        Some(e) if !e.is_empty() => {}
        _ => {
            if !given(&user.cmd) {
                user.cmd = image.cmd.clone();
            }
            user.entrypoint = image.entrypoint.clone();
        }
    }
}

fn merge_health(user: Option<HealthConfig>, image: Option<&ImageHealth>) -> Option<HealthConfig> {
    let Some(image) = image else { return user };
    let mut merged = user.unwrap_or_default();
    if merged.test.as_ref().is_none_or(Vec::is_empty) {
        merged.test = Some(image.test.clone());
    }
    let fill = |field: &mut Option<i64>, value: i64| {
        if field.unwrap_or(0) == 0 && value != 0 {
            *field = Some(value);
        }
    };
    fill(&mut merged.interval, image.interval);
    fill(&mut merged.timeout, image.timeout);
    fill(&mut merged.start_period, image.start_period);
    fill(&mut merged.start_interval, image.start_interval);
    fill(&mut merged.retries, image.retries);
    Some(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[&str]) -> Option<Vec<String>> {
        Some(items.iter().map(|s| (*s).to_owned()).collect())
    }

    #[test]
    fn commands_and_entry_points() {
        let image =
            ProcessDefaults { entrypoint: list(&["/e"]), cmd: list(&["a"]), ..ProcessDefaults::default() };
        for (entrypoint, cmd, want_e, want_c) in [
            (None, None, list(&["/e"]), list(&["a"])),
            (None, list(&["b"]), list(&["/e"]), list(&["b"])),
            (list(&["/x"]), None, list(&["/x"]), None),
            (list(&[""]), list(&["b"]), None, list(&["b"])),
        ] {
            let user = ContainerConfig { entrypoint, cmd, ..ContainerConfig::default() };
            let merged = merge(user, &image);
            assert_eq!((merged.entrypoint, merged.cmd), (want_e, want_c));
        }
    }

    #[test]
    fn the_users_environment_wins() {
        let image = ProcessDefaults { env: list(&["A=1", "B=2"]).unwrap(), ..ProcessDefaults::default() };
        let user = ContainerConfig { env: list(&["B=3"]), ..ContainerConfig::default() };
        assert_eq!(merge(user, &image).env, list(&["B=3", "A=1"]));
    }
}
