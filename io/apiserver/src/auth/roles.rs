//! The roles and bindings every cluster has, from the manifest beside this file.

use serde_json::Value;

const MANIFEST: &str = include_str!("roles.yaml");

/// All default ClusterRoles, ClusterRoleBindings, Roles and RoleBindings.
pub fn defaults() -> Result<Vec<Value>, String> {
    serde_saphyr::from_multiple(MANIFEST).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_binding_refers_to_a_default_role() {
        let objects = defaults().unwrap();
        let named = |kind: &str, name: &str| {
            objects.iter().any(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        };
        let mut bindings = 0;
        for object in &objects {
            if let (Some(kind), Some(name)) =
                (object["roleRef"]["kind"].as_str(), object["roleRef"]["name"].as_str())
            {
                assert!(named(kind, name), "{name}");
                bindings += 1;
            }
        }
        assert!(bindings >= 8, "{bindings}");
    }
}
