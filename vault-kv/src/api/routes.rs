//! Every route of the interface, with what it takes: what `sys/internal/specs/openapi`, `?help=1` and the list in
//! `docs/compatibility.md` are made of. Requests are not dispatched by it; a test sends one to each route.

use crate::mount::Kind;

/// One route below a mount.
pub(crate) struct Route {
    /// `{name}` stands for one segment, `{path}` for all that follow.
    pub path: &'static str,
    /// `r`ead, `w`rite, `p`atch, `d`elete, `l`ist.
    pub operations: &'static str,
    pub about: &'static str,
    /// Fields of the body, with `:` and their type: `s`tring, `i`nteger, `b`oolean, `d`uration, `a`rray, `o`bject.
    pub fields: &'static str,
}

const fn route(
    operations: &'static str,
    path: &'static str,
    about: &'static str,
    fields: &'static str,
) -> Route {
    Route {
        path,
        operations,
        about,
        fields,
    }
}

/// What roles and users of login methods say about tokens.
pub(crate) const TOKEN_FIELDS: &str = "token_ttl:d token_max_ttl:d token_explicit_max_ttl:d token_policies:a token_bound_cidrs:a \
    token_no_default_policy:b token_num_uses:i token_period:d token_type:s token_strictly_bind_ip:b";

/// The routes of a kind of mount; `+` in the fields of a route stands for [`TOKEN_FIELDS`].
pub(crate) fn of(kind: Kind) -> &'static [Route] {
    match kind {
        Kind::System => SYSTEM,
        Kind::Identity => IDENTITY,
        Kind::Token => TOKEN,
        Kind::Spiffe => SPIFFE,
        Kind::Userpass => USERPASS,
        Kind::Approle => APPROLE,
        Kind::Jwt => JWT,
        Kind::Cert => CERT,
        Kind::Kubernetes => KUBERNETES,
        Kind::Kv => KV2,
        Kind::Kv1 | Kind::Cubbyhole => KV1,
        Kind::Ssh => SSH,
    }
}

#[rustfmt::skip]
const KV1: &[Route] = &[route("rwdl", "{path}", "A secret, as a whole.", "")];

#[rustfmt::skip]
const KV2: &[Route] = &[
    route("rw", "config", "Settings of all keys of the mount.",
        "max_versions:i cas_required:b delete_version_after:d metadata_cas_required:b"),
    route("rwpd", "data/{path}", "The newest version of a secret, or with `version` another.", "data:o options:o"),
    route("w", "delete/{path}", "Hides versions until they are undeleted.", "versions:a"),
    route("w", "move/{path}", "Gives a key another name, with all its versions.", "to:s"),
    route("w", "undelete/{path}", "Shows hidden versions again.", "versions:a"),
    route("w", "destroy/{path}", "Removes versions for good.", "versions:a"),
    route("rwpdl", "metadata/{path}", "Versions and settings of a key; names below a folder.",
        "max_versions:i cas_required:b delete_version_after:d custom_metadata:o metadata_cas_required:b \
         metadata_cas:i"),
    route("r", "subkeys/{path}", "The keys of a secret without its values.", ""),
];

#[rustfmt::skip]
const SSH: &[Route] = &[
    route("l", "roles/", "Names of roles.", ""),
    route("rwd", "roles/{name}", "For which hosts and users passwords are made.",
        "key_type:s default_user:s allowed_users:s cidr_list:s exclude_cidr_list:s port:i"),
    route("w", "creds/{name}", "Makes a one-time password.", "ip:s username:s"),
    route("w", "lookup", "Roles that are for an address.", "ip:s"),
    route("w", "verify", "What a password is for; it works no second time. Needs no token.", "otp:s"),
];

#[rustfmt::skip]
const SPIFFE: &[Route] = &[
    route("rw", "config", "Another trust domain whose members may log in.",
        "trust_domain:s profile:s bundle:s endpoint_url:s endpoint_root_ca_truststore_pem:s audience:a \
         defer_bundle_fetch:b"),
    route("w", "login", "A token for who proves a SPIFFE ID.", "role:s jwt:s"),
    route("l", "role/", "Names of roles.", ""),
    route("rwd", "role/{name}", "What the holders of SPIFFE IDs may do.", "workload_id_patterns:a +"),
];

#[rustfmt::skip]
const JWT: &[Route] = &[
    route("rw", "config", "Whose tokens are taken, and how they are checked.",
        "jwt_validation_pubkeys:a jwks:s jwks_url:s jwks_ca_pem:s oidc_discovery_url:s \
         oidc_discovery_ca_pem:s bound_issuer:s default_role:s jwt_supported_algs:a"),
    route("w", "login", "A token for a JSON Web Token.", "role:s jwt:s"),
    route("l", "role/", "Names of roles.", ""),
    route("rwd", "role/{name}", "Which tokens are taken, and what one gets for them.",
        "role_type:s bound_audiences:a bound_subject:s bound_claims:o bound_claims_type:s user_claim:s \
         user_claim_json_pointer:b claim_mappings:o groups_claim:s expiration_leeway:d not_before_leeway:d \
         clock_skew_leeway:d +"),
];

#[rustfmt::skip]
const KUBERNETES: &[Route] = &[
    route("rw", "config", "Which cluster reviews tokens.",
        "kubernetes_host:s kubernetes_ca_cert:s token_reviewer_jwt:s disable_local_ca_jwt:b"),
    route("w", "login", "A token for a service account's.", "role:s jwt:s"),
    route("l", "role/", "Names of roles.", ""),
    route("rwd", "role/{name}", "Which service accounts are taken, and what one gets.",
        "bound_service_account_names:a bound_service_account_namespaces:a audience:s alias_name_source:s +"),
];

#[rustfmt::skip]
const CERT: &[Route] = &[
    route("rw", "config", "Whether tokens renew over their certificate only.", "disable_binding:b"),
    route("w", "login", "A token for the connection's certificate.", "name:s"),
    route("l", "certs/", "Names of roles.", ""),
    route("rwd", "certs/{name}", "Which certificates are taken, and what one gets for them.",
        "certificate:s display_name:s allowed_names:a allowed_common_names:a allowed_dns_sans:a \
         allowed_email_sans:a allowed_uri_sans:a allowed_organizational_units:a required_extensions:a \
         allowed_metadata_extensions:a +"),
    route("l", "crls/", "Names of revocation lists.", ""),
    route("rwd", "crls/{name}", "A revocation list.", "crl:s"),
];

#[rustfmt::skip]
const USERPASS: &[Route] = &[
    route("w", "login/{name}", "A token for a name and a password.", "password:s"),
    route("l", "users/", "Names of users.", ""),
    route("rwd", "users/{name}", "A user.", "password:s +"),
    route("w", "users/{name}/password", "A new password.", "password:s"),
    route("w", "users/{name}/policies", "Other policies.", "token_policies:a"),
];

#[rustfmt::skip]
const APPROLE: &[Route] = &[
    route("w", "login", "A token for a role id and a secret id.", "role_id:s secret_id:s"),
    route("l", "role/", "Names of roles.", ""),
    route("rwd", "role/{name}", "A role.",
        "role_id:s bind_secret_id:b secret_id_bound_cidrs:a secret_id_num_uses:i secret_id_ttl:d +"),
    route("rw", "role/{name}/role-id", "The role's id.", "role_id:s"),
    route("rwd", "role/{name}/policies", "One field of the role.", "token_policies:a"),
    route("rwd", "role/{name}/token-policies", "One field of the role.", "token_policies:a"),
    route("rwd", "role/{name}/bind-secret-id", "One field of the role.", "bind_secret_id:b"),
    route("rwd", "role/{name}/bound-cidr-list", "One field of the role.", "secret_id_bound_cidrs:a"),
    route("rwd", "role/{name}/secret-id-bound-cidrs", "One field of the role.", "secret_id_bound_cidrs:a"),
    route("rwd", "role/{name}/secret-id-num-uses", "One field of the role.", "secret_id_num_uses:i"),
    route("rwd", "role/{name}/secret-id-ttl", "One field of the role.", "secret_id_ttl:d"),
    route("rwd", "role/{name}/local-secret-ids", "One field of the role.", "local_secret_ids:b"),
    route("rwd", "role/{name}/token-bound-cidrs", "One field of the role.", "token_bound_cidrs:a"),
    route("rwd", "role/{name}/token-ttl", "One field of the role.", "token_ttl:d"),
    route("rwd", "role/{name}/token-max-ttl", "One field of the role.", "token_max_ttl:d"),
    route("rwd", "role/{name}/token-explicit-max-ttl", "One field of the role.", "token_explicit_max_ttl:d"),
    route("rwd", "role/{name}/token-num-uses", "One field of the role.", "token_num_uses:i"),
    route("rwd", "role/{name}/token-no-default-policy", "One field of the role.", "token_no_default_policy:b"),
    route("rwd", "role/{name}/token-type", "One field of the role.", "token_type:s"),
    route("rwd", "role/{name}/token-period", "One field of the role.", "token_period:d"),
    route("rwd", "role/{name}/token-strictly-bind-ip", "One field of the role.", "token_strictly_bind_ip:b"),
    route("rwd", "role/{name}/period", "One field of the role.", "token_period:d"),
    route("wl", "role/{name}/secret-id", "Makes a secret id; accessors of those there are.",
        "metadata:s cidr_list:a token_bound_cidrs:a num_uses:i ttl:d"),
    route("w", "role/{name}/custom-secret-id", "A secret id of one's own.",
        "secret_id:s metadata:s cidr_list:a token_bound_cidrs:a num_uses:i ttl:d"),
    route("w", "role/{name}/secret-id/lookup", "What there is to know of a secret id.", "secret_id:s"),
    route("wd", "role/{name}/secret-id/destroy", "Ends a secret id.", "secret_id:s"),
    route("w", "role/{name}/secret-id-accessor/lookup", "The same by accessor.", "secret_id_accessor:s"),
    route("wd", "role/{name}/secret-id-accessor/destroy", "The same by accessor.", "secret_id_accessor:s"),
    route("w", "tidy/secret-id", "Removes secret ids that are over.", ""),
];

#[rustfmt::skip]
const TOKEN: &[Route] = &[
    route("w", "create", "The token create path is used to create new tokens.",
        "id:s policies:a meta:o no_parent:b no_default_policy:b renewable:b ttl:d explicit_max_ttl:d \
         display_name:s num_uses:i period:d type:s"),
    route("w", "create-orphan", "Makes a token without parent.",
        "policies:a meta:o no_default_policy:b renewable:b ttl:d explicit_max_ttl:d display_name:s num_uses:i \
         period:d type:s"),
    route("w", "create/{name}", "Makes a token as a role says.", "policies:a meta:o ttl:d display_name:s num_uses:i type:s"),
    route("rw", "lookup-self", "What there is to know of one's own token.", ""),
    route("rw", "lookup", "What there is to know of a token.", "token:s"),
    route("w", "lookup-accessor", "The same by accessor.", "accessor:s"),
    route("w", "renew-self", "Extends the life of one's own token.", "increment:d"),
    route("w", "renew", "Extends the life of a token.", "token:s increment:d"),
    route("w", "renew-accessor", "The same by accessor.", "accessor:s increment:d"),
    route("w", "revoke-self", "Ends one's own token and what it made.", ""),
    route("w", "revoke", "Ends a token and what it made.", "token:s"),
    route("w", "revoke-accessor", "The same by accessor.", "accessor:s"),
    route("w", "revoke-orphan", "Ends a token; what it made stays.", "token:s"),
    route("l", "accessors/", "Accessors of all tokens.", ""),
    route("l", "roles/", "Names of roles.", ""),
    route("rwd", "roles/{name}", "What tokens of a role may have.",
        "allowed_policies:a disallowed_policies:a allowed_policies_glob:a disallowed_policies_glob:a orphan:b \
         renewable:b path_suffix:s allowed_entity_aliases:a +"),
    route("w", "tidy", "Tokens that are over are removed by themselves.", ""),
];

#[rustfmt::skip]
const IDENTITY: &[Route] = &[
    route("w", "entity", "Makes or changes an entity.", "id:s name:s metadata:o policies:a disabled:b"),
    route("l", "entity/id/", "Ids of entities.", ""),
    route("rwd", "entity/id/{id}", "An entity.", "name:s metadata:o policies:a disabled:b"),
    route("l", "entity/name/", "Names of entities.", ""),
    route("rwd", "entity/name/{name}", "An entity by name.", "metadata:o policies:a disabled:b"),
    route("w", "entity/merge", "Makes one entity of several.", "from_entity_ids:a to_entity_id:s force:b"),
    route("w", "entity/batch-delete", "Removes entities.", "entity_ids:a"),
    route("w", "entity-alias", "What an entity is called by a login method.",
        "id:s name:s canonical_id:s mount_accessor:s custom_metadata:o"),
    route("l", "entity-alias/id/", "Ids of aliases.", ""),
    route("rwd", "entity-alias/id/{id}", "An alias.", "name:s canonical_id:s mount_accessor:s"),
    route("w", "group", "Makes or changes a group.", "id:s name:s type:s metadata:o policies:a member_entity_ids:a member_group_ids:a"),
    route("l", "group/id/", "Ids of groups.", ""),
    route("rwd", "group/id/{id}", "A group.", "name:s metadata:o policies:a member_entity_ids:a member_group_ids:a"),
    route("l", "group/name/", "Names of groups.", ""),
    route("rwd", "group/name/{name}", "A group by name.", "metadata:o policies:a member_entity_ids:a member_group_ids:a"),
    route("w", "lookup/entity", "Finds an entity.", "id:s name:s alias_id:s alias_name:s alias_mount_accessor:s"),
    route("w", "group-alias", "What an external group is called by a login method.", "id:s name:s canonical_id:s mount_accessor:s"),
    route("l", "group-alias/id/", "Ids of aliases of groups.", ""),
    route("rwd", "group-alias/id/{id}", "An alias of a group.", "name:s canonical_id:s mount_accessor:s"),
    route("w", "lookup/group", "Finds a group.", "id:s name:s alias_id:s alias_name:s alias_mount_accessor:s"),
    route("rw", "oidc/config", "The issuer of identity tokens.", "issuer:s"),
    route("l", "oidc/key/", "Names of keys.", ""),
    route("l", "oidc/role/", "Names of roles.", ""),
    route("rwd", "oidc/key/{name}", "A key that signs identity tokens.",
        "algorithm:s rotation_period:d verification_ttl:d allowed_client_ids:a"),
    route("w", "oidc/key/{name}/rotate", "Puts another in its place.", "verification_ttl:d"),
    route("rwd", "oidc/role/{name}", "What an identity token states.", "key:s client_id:s template:s ttl:d"),
    route("r", "oidc/token/{name}", "An identity token about the caller.", ""),
    route("w", "oidc/introspect", "Whether an identity token holds.", "token:s client_id:s"),
    route("r", "oidc/.well-known/openid-configuration", "Where the keys are. Needs no token.", ""),
    route("r", "oidc/.well-known/keys", "Public keys. Needs no token.", ""),
];

#[rustfmt::skip]
const SYSTEM: &[Route] = &[
    route("r", "health", "Whether the server answers. Needs no token.", ""),
    route("r", "seal-status", "Where the seal stands. Needs no token.", ""),
    route("r", "leader", "Who leads. Needs no token.", ""),
    route("rw", "init", "Makes the store. Needs no token, and the server's own machine.", "secret_shares:i secret_threshold:i"),
    route("w", "unseal", "Gives one share. Needs no token.", "key:s reset:b"),
    route("w", "seal", "Drops the keys.", ""),
    route("rl", "policy", "Names of policies.", ""),
    route("rwd", "policy/{name}", "A policy, by its older path.", "policy:s"),
    route("l", "policies/acl/", "Names of policies.", ""),
    route("rwd", "policies/acl/{name}", "A policy.", "policy:s"),
    route("l", "policies/password/", "Names of password policies.", ""),
    route("rwd", "policies/password/{name}", "What made-up passwords look like.", "policy:s"),
    route("r", "policies/password/{name}/generate", "A password.", ""),
    route("w", "capabilities", "What a token may do on paths.", "token:s paths:a"),
    route("w", "capabilities-self", "What one may do on paths.", "paths:a"),
    route("w", "capabilities-accessor", "What a token may do on paths.", "accessor:s paths:a"),
    route("w", "explain", "Why the caller may or may not do something.", "path:s capability:s"),
    route("r", "mounts", "Engines and where they are mounted.", ""),
    route("rwd", "mounts/{path}", "A mount.", "type:s description:s config:o options:o"),
    route("rw", "mounts/{path}/tune", "Settings of a mount.",
        "default_lease_ttl:d max_lease_ttl:d description:s listing_visibility:s audit_non_hmac_request_keys:a \
         audit_non_hmac_response_keys:a"),
    route("r", "auth", "Login methods and where they are enabled.", ""),
    route("rwd", "auth/{path}", "A login method.", "type:s description:s config:o"),
    route("rw", "auth/{path}/tune", "Settings of a login method.",
        "default_lease_ttl:d max_lease_ttl:d description:s listing_visibility:s token_type:s \
         user_lockout_config:o"),
    route("w", "remount", "Gives a mount another path.", "from:s to:s"),
    route("r", "remount/status/{id}", "What became of that.", ""),
    route("r", "leases", "Leases that could not be taken back.", ""),
    route("r", "leases/count", "How many there are.", ""),
    route("w", "leases/lookup", "What there is to know of a lease.", "lease_id:s"),
    route("l", "leases/lookup/{path}", "Names of leases.", ""),
    route("w", "leases/renew", "Extends the life of a lease.", "lease_id:s increment:d"),
    route("w", "leases/renew/{path}", "The same, by its path.", "increment:d"),
    route("w", "leases/revoke", "Ends a lease.", "lease_id:s sync:b"),
    route("w", "leases/revoke/{path}", "The same, by its path.", "sync:b"),
    route("w", "leases/revoke-prefix/{path}", "Ends all leases below a path.", "sync:b"),
    route("w", "leases/revoke-force/{path}", "The same, whatever engines say.", ""),
    route("w", "leases/revoke-identity", "Ends all that a SPIFFE ID was given.", "spiffe_id:s"),
    route("w", "renew", "`leases/renew`, by its older path.", "lease_id:s increment:d"),
    route("w", "renew/{path}", "The same, by its path.", "increment:d"),
    route("w", "revoke", "`leases/revoke`, by its older path.", "lease_id:s sync:b"),
    route("w", "revoke/{path}", "The same, by its path.", "sync:b"),
    route("w", "revoke-prefix/{path}", "`leases/revoke-prefix`, by its older path.", "sync:b"),
    route("w", "revoke-force/{path}", "`leases/revoke-force`, by its older path.", ""),
    route("w", "leases/tidy", "Leases that are over end by themselves.", ""),
    route("w", "wrapping/wrap", "Puts aside what was sent, for one look.", ""),
    route("w", "wrapping/unwrap", "What was put aside.", "token:s"),
    route("w", "wrapping/rewrap", "Puts it aside again.", "token:s"),
    route("rw", "wrapping/lookup", "Where a wrapped answer comes from. Needs no token.", "token:s"),
    route("w", "tools/hash", "A hash.", "input:s algorithm:s format:s"),
    route("w", "tools/hash/{algorithm}", "A hash.", "input:s format:s"),
    route("w", "tools/random", "Random bytes.", "bytes:i format:s source:s"),
    route("w", "tools/random/{bytes}", "So many random bytes.", "format:s"),
    route("w", "tools/random/{source}/{bytes}", "The same; there is one source.", "format:s"),
    route("r", "audit", "Audit sinks, which are configured on the host.", ""),
    route("w", "audit-hash/{path}", "How a text appears in the audit log.", "input:s"),
    route("r", "locked-users", "Names that failed too often.", ""),
    route("w", "locked-users/{accessor}/unlock/{name}", "Lets one try again.", ""),
    route("r", "plugins/catalog", "Engines and login methods there are.", ""),
    route("l", "plugins/catalog/{type}/", "Those of one type.", ""),
    route("r", "plugins/catalog/{type}/{name}", "One of them.", ""),
    route("l", "quotas/rate-limit/", "Names of rate limits.", ""),
    route("rwd", "quotas/rate-limit/{name}", "How many requests an address may send to a path.",
        "path:s rate:i interval:d block_interval:d"),
    route("l", "quotas/lease-count/", "Names of quotas of leases.", ""),
    route("rwd", "quotas/lease-count/{name}", "How many leases there may be of a path; tokens are among them.",
        "path:s max_leases:i"),
    route("rw", "quotas/config", "Paths that no rate limit is for.", "rate_limit_exempt_paths:a"),
    route("r", "host-info", "What there is to know of the host.", ""),
    route("r", "metrics", "Figures; with `format=prometheus` as Prometheus reads them.", ""),
    route("r", "in-flight-req", "Requests that are being answered.", ""),
    route("l", "version-history/", "Versions that ran on this store.", ""),
    route("r", "internal/ui/mounts", "Mounts that the caller may use.", ""),
    route("r", "internal/ui/mounts/{path}", "One of them.", ""),
    route("r", "internal/specs/openapi", "This list, as OpenAPI has it.", ""),
    route("r", "config/cors", "Whether browsers of other sites may ask.", ""),
    route("r", "config/auditing/request-headers", "Headers in the audit log.", ""),
    route("w", "step-down", "Nobody could take over from the one server.", ""),
    route("r", "key-status", "The newest key term.", ""),
    route("w", "rotate", "Adds a key term.", ""),
    route("w", "rotate/keyring", "Adds a key term.", ""),
    route("rw", "rotate/keyring/config", "When terms are added by themselves.", "enabled:b max_operations:i interval:d"),
    route("rwd", "rekey/init", "Making other shares: where it stands, starting and cancelling it.",
        "secret_shares:i secret_threshold:i require_verification:b keys:a"),
    route("w", "rekey/update", "Gives one share. Needs no token.", "key:s nonce:s"),
    route("rwd", "rekey/verify", "Whether the new shares are in good hands.", "key:s nonce:s"),
    route("rwd", "generate-root/attempt", "Making a root token: where it stands, starting and cancelling it.", "otp:s keys:a"),
    route("w", "generate-root/update", "Gives one share. Needs no token.", "key:s nonce:s"),
    route("w", "decode-token", "Takes the one-time password off a token.", "encoded_token:s otp:s"),
    route("rwd", "rotate/root/init", "`rekey/init`, for token holders.",
        "secret_shares:i secret_threshold:i require_verification:b"),
    route("w", "rotate/root/update", "`rekey/update`, for token holders.", "key:s nonce:s"),
    route("rwd", "rotate/root/verify", "`rekey/verify`, for token holders.", "key:s nonce:s"),
    route("rwd", "generate-root-token/attempt", "`generate-root/attempt`, for token holders.", "otp:s"),
    route("w", "generate-root-token/update", "`generate-root/update`, for token holders.", "key:s nonce:s"),
    route("rw", "rotate/config", "When terms are added by themselves.", "enabled:b max_operations:i interval:d"),
    route("w", "mesh/secrets/read", "Many secrets at once.", "paths:a"),
    route("r", "mesh/ledger/history", "Who changed what.", ""),
    route("r", "mesh/ledger/verify", "Whether the ledger is whole.", ""),
];
