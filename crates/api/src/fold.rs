//! Documents of clients in Docker's shapes, read as Go's `encoding/json` reads them: a member's name counts in any case, and
//! exactly where there is one that is exact. What no shape knows is left out, as it is there.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Map, Value};

/// Members that are a list of words, or one word (moby's `StrSlice`), and the shapes that have them.
const WORDS: [(&str, &[&str]); 2] =
    [("ContainerConfig", &["Cmd", "Entrypoint"]), ("HostConfig", &["CapAdd", "CapDrop"])];

/// One of Docker's shapes.
pub(crate) fn shaped<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    T::deserialize(Folded(value))
}

/// Takes a member out of a document.
pub(crate) fn take(document: &mut Value, name: &str) -> Option<Value> {
    let map = document.as_object_mut()?;
    let found = match map.contains_key(name) {
        true => name.to_owned(),
        false => map.keys().find(|key| key.eq_ignore_ascii_case(name))?.clone(),
    };
    map.remove(&found)
}

struct Folded(Value);

impl IntoDeserializer<'_, Error> for Folded {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

fn members(map: Map<String, Value>) -> impl Iterator<Item = (String, Folded)> {
    map.into_iter().map(|(name, value)| (name, Folded(value)))
}

/// Gives the members the names that a shape has for them.
fn fold(map: Map<String, Value>, names: &[&str]) -> Map<String, Value> {
    let (mut folded, other): (Map<_, _>, Map<_, _>) =
        map.into_iter().partition(|(name, _)| names.contains(&name.as_str()));
    for (name, value) in other {
        if let Some(known) = names.iter().find(|known| known.eq_ignore_ascii_case(&name)) {
            folded.entry(*known).or_insert(value);
        }
    }
    folded
}

impl<'de> Deserializer<'de> for Folded {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(list) => {
                let mut list = SeqDeserializer::new(list.into_iter().map(Folded));
                let value = visitor.visit_seq(&mut list)?;
                list.end().map(|()| value)
            }
            Value::Object(map) => visitor.visit_map(MapDeserializer::new(members(map))),
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        shape: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Value::Object(map) = self.0 else { return self.0.deserialize_struct(shape, names, visitor) };
        let mut map = fold(map, names);
        let words = WORDS.iter().filter(|(of, _)| *of == shape).flat_map(|(_, names)| *names);
        for name in words {
            if let Some(word) = map.get_mut(*name).filter(|value| value.is_string()) {
                *word = Value::Array(vec![word.take()]);
            }
        }
        visitor.visit_map(MapDeserializer::new(members(map)))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use types::docker::{ContainerConfig, HostConfig};

    #[test]
    fn members_count_in_any_case() {
        let host: HostConfig = shaped(json!({
            "networkMode": "none", "readonlyrootfs": true, "MEMORY": 5, "Memory": 6, "unknown": [1],
            "logConfig": {"type": "none", "config": {"Key": "a", "key": "b"}},
            "portbindings": {"80/tcp": [{"hostport": "8080"}], "81/tcp": null},
            "mounts": [{"type": "tmpfs", "target": "/x", "tmpfsoptions": {"sizebytes": 7}}],
            "capadd": "NET_RAW", "RestartPolicy": null
        }))
        .unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!((host.readonly_rootfs, host.memory), (Some(true), Some(6)));
        let log = host.log_config.unwrap();
        assert_eq!(log.typ.as_deref(), Some("none"));
        // Keys of a map are nobody's members.
        assert_eq!(log.config.unwrap().len(), 2);
        let ports = host.port_bindings.unwrap();
        assert_eq!(ports["80/tcp"].as_ref().unwrap()[0].host_port.as_deref(), Some("8080"));
        let mount = &host.mounts.unwrap()[0];
        assert_eq!(mount.tmpfs_options.as_ref().unwrap().size_bytes, Some(7));
        assert_eq!(host.cap_add, Some(vec!["NET_RAW".to_owned()]));
    }

    #[test]
    fn one_word_is_a_list_of_one() {
        let config: ContainerConfig =
            shaped(json!({"Cmd": "a b", "entrypoint": ["c"], "Env": ["d"]})).unwrap();
        assert_eq!(config.cmd, Some(vec!["a b".to_owned()]));
        assert_eq!(config.entrypoint, Some(vec!["c".to_owned()]));
        assert!(shaped::<ContainerConfig>(json!({"Env": "d"})).is_err());
        assert!(shaped::<ContainerConfig>(json!({"Cmd": 5})).is_err());
        assert!(shaped::<ContainerConfig>(json!("text")).is_err());
    }

    #[test]
    fn members_are_taken_by_their_names() {
        let mut document = json!({"hostconfig": 1, "HostConfig": 2});
        assert_eq!(take(&mut document, "HostConfig"), Some(json!(2)));
        assert_eq!(take(&mut document, "HostConfig"), Some(json!(1)));
        assert_eq!(take(&mut document, "HostConfig"), None);
        assert_eq!(take(&mut json!(5), "HostConfig"), None);
    }
}
