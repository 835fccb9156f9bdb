//! The user of a specification that names it: the numbers are known only where the root filesystem is.

use crate::{UserError, resolve_user};
use sys::Root;
use types::oci;

/// Annotation with the user as it was named, `user[:group]`, for [`resolve_in`].
pub const USER: &str = "dhow.user";
/// Annotation with the additional groups as they were named, separated by commas.
pub const GROUPS: &str = "dhow.groups";

/// Turns the names of user and groups into numbers, by the files of the root filesystem, and sets `HOME`.
pub fn resolve_in(root: &Root, spec: &mut oci::Spec) -> Result<(), UserError> {
    let annotation = |key| spec.annotations().as_ref().and_then(|a| a.get(key)).map_or("", String::as_str);
    let groups: Vec<String> =
        annotation(GROUPS).split(',').filter(|g| !g.is_empty()).map(str::to_owned).collect();
    let user = resolve_user(root, annotation(USER), &groups)?;
    if let Some(process) = spec.process_mut() {
        set_user(root, process, user);
    }
    Ok(())
}

/// Sets the user, and `HOME` where nobody set it.
pub fn set_user(root: &Root, process: &mut oci::Process, user: oci::User) {
    let env = process.env_mut().get_or_insert_default();
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        env.push(format!("HOME={}", crate::home(root, user.uid())));
    }
    process.set_user(user);
}
