//! The two policies that every server has.

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

# The store that belongs to the token itself.
path "cubbyhole/*" {
    capabilities = ["create", "read", "update", "delete", "list"]
}
"#;
