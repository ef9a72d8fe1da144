//! The policies that every server has, besides `root`.

/// What is part of this program and cannot be changed: name, description, document.
pub(super) const FIXED: [(&str, &str, &str); 3] = [
    (WRAPPING_NAME, "", WRAPPING),
    (
        MANAGEMENT,
        "Every right to Consul's resources",
        include_str!("builtin/management.hcl"),
    ),
    (
        READ_ONLY,
        "Looking at every one of Consul's resources",
        include_str!("builtin/read_only.hcl"),
    ),
];

/// The name of the policy with every right to Consul's resources.
pub(crate) const MANAGEMENT: &str = "global-management";
/// The name of the one that lets look at all of them.
pub(crate) const READ_ONLY: &str = "builtin/global-read-only";

/// Whether a policy is part of this program.
pub(crate) fn is_fixed(name: &str) -> bool {
    FIXED.iter().any(|(fixed, ..)| *fixed == name)
        || crate::acl::Identity::of_policy(name).is_some()
}

/// What `default` grants at first: a caller's dealings with itself. It can be edited, not deleted.
pub(crate) const DEFAULT: &str = r#"# Look at, renew and revoke one's own token.
path "auth/token/lookup-self" {
    capabilities = ["read"]
}
path "auth/token/renew-self" {
    capabilities = ["update"]
}
path "auth/token/revoke-self" {
    capabilities = ["update"]
}

# Ask what one may do, and why.
path "sys/capabilities-self" {
    capabilities = ["update"]
}
path "sys/explain" {
    capabilities = ["update"]
}

# What one's own leases and wrapped answers are about.
path "sys/leases/renew" {
    capabilities = ["update"]
}
path "sys/leases/lookup" {
    capabilities = ["update"]
}
path "sys/wrapping/wrap" {
    capabilities = ["update"]
}
path "sys/wrapping/lookup" {
    capabilities = ["update"]
}
path "sys/wrapping/unwrap" {
    capabilities = ["update"]
}

# Arithmetic that needs no secret.
path "sys/tools/hash" {
    capabilities = ["update"]
}
path "sys/tools/hash/*" {
    capabilities = ["update"]
}

# The store that belongs to the token itself.
path "cubbyhole/*" {
    capabilities = ["create", "read", "update", "delete", "list"]
}
"#;

/// The name of [`WRAPPING`], which nobody can give or change.
pub(crate) const WRAPPING_NAME: &str = "response-wrapping";

/// What the token of a wrapped answer may do.
pub(super) const WRAPPING: &str = r#"
path "cubbyhole/response" {
    capabilities = ["create", "read"]
}
path "sys/wrapping/unwrap" {
    capabilities = ["update"]
}
"#;
