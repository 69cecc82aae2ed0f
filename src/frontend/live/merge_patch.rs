//! Merge patches of JSON (RFC 7396).

use serde_json::{Map, Value};

/// Returns the merge patch that makes `new` of `old`; `None` if nothing has changed.
///
/// A property whose name ends in `_ms` is a duration that changes all the time. It is in the patch
/// of an object if something else in this object has changed, and then always. `new` must contain
/// no null, which a patch cannot express.
pub fn merge_patch(old: &Value, new: &Value) -> Option<Value> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => object_patch(old, new).map(Value::Object),
        _ => (old != new).then(|| new.clone()),
    }
}

fn object_patch(old: &Map<String, Value>, new: &Map<String, Value>) -> Option<Map<String, Value>> {
    let mut patch = Map::new();
    for (name, value) in new.iter().filter(|(name, _)| !is_duration(name)) {
        let change = match old.get(name) {
            Some(old) => merge_patch(old, value),
            None => Some(value.clone()),
        };
        if let Some(change) = change {
            patch.insert(name.clone(), change);
        }
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    if patch.is_empty() {
        return None;
    }
    let durations = new.iter().filter(|(name, _)| is_duration(name));
    patch.extend(durations.map(|(name, value)| (name.clone(), value.clone())));
    Some(patch)
}

fn is_duration(name: &str) -> bool {
    name.ends_with("_ms")
}

/// Removes all properties that are null.
pub fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(without_nulls);
        }
        Value::Array(array) => array.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Applies a patch as RFC 7396 section 2 defines it.
    fn apply(target: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        let target = target.as_object_mut().unwrap();
        for (name, value) in patch {
            match value {
                Value::Null => _ = target.remove(name),
                value => apply(target.entry(name.clone()).or_insert(Value::Null), value),
            }
        }
    }

    /// The examples of RFC 7396 appendix A whose result has no null.
    #[test]
    fn patch_makes_new_of_old() {
        for (old, new) in [
            (json!({"a": "b"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"])),
            (json!({}), json!({"a": {"bb": {}}})),
        ] {
            let patch = merge_patch(&old, &new).unwrap();
            let mut patched = old.clone();
            apply(&mut patched, &patch);
            assert_eq!(patched, new, "{old} with {patch}");
            assert_eq!(merge_patch(&new, &new), None);
        }
    }

    #[test]
    fn patch_has_only_what_has_changed() {
        let old = json!({"a": {"x": 1, "y": 2}, "b": [1, 2], "gone": 1});
        let new = json!({"a": {"x": 1, "y": 3}, "b": [1, 2]});
        let patch = json!({"a": {"y": 3}, "gone": null});
        assert_eq!(merge_patch(&old, &new), Some(patch));
    }

    #[test]
    fn durations_are_sent_with_other_changes_of_their_object() {
        let old = json!({"at_ms": 1, "a": {"n": 1, "idle_ms": 1}, "b": {"idle_ms": 7, "n": 1}});
        let idle = json!({"at_ms": 2, "a": {"n": 1, "idle_ms": 2}, "b": {"idle_ms": 8, "n": 1}});
        assert_eq!(merge_patch(&old, &idle), None);
        let new = json!({"at_ms": 2, "a": {"n": 1, "idle_ms": 2}, "b": {"idle_ms": 7, "n": 2}});
        let patch = json!({"at_ms": 2, "b": {"idle_ms": 7, "n": 2}});
        assert_eq!(merge_patch(&old, &new), Some(patch));
    }

    #[test]
    fn nulls_are_removed_at_each_depth() {
        let mut value = json!({"a": null, "b": [{"c": null, "d": 1}]});
        without_nulls(&mut value);
        assert_eq!(value, json!({"b": [{"d": 1}]}));
    }
}
