//! How much a record may hold.
//!
//! What a node says is kept by every other node, so each part has a limit. It is checked where a record enters the
//! mesh (the error names the field) and again by every node that reads it. Where Consul has a limit, it is the same.

/// Longest service name, in bytes.
pub const SERVICE_BYTES: usize = 128;
/// Longest node name, in bytes; its labels are DNS labels.
pub const NODE_BYTES: usize = 253;
/// Longest DNS label, in bytes (RFC 1035 §2.3.4).
pub const LABEL_BYTES: usize = 63;
/// Longest instance id, in bytes.
pub const INSTANCE_ID_BYTES: usize = 256;
/// Most tags of an instance.
pub const TAGS: usize = 256;
/// Longest tag, and longest version, in bytes.
pub const TAG_BYTES: usize = 255;
/// Most metadata pairs of an instance or a node (Consul's limit).
pub const META_PAIRS: usize = 64;
/// Longest metadata key, in bytes (Consul's limit).
pub const META_KEY_BYTES: usize = 128;
/// Longest metadata value, in bytes (Consul's limit).
pub const META_VALUE_BYTES: usize = 512;
/// Longest host name, in bytes (RFC 1035 §2.3.4).
pub const HOST_BYTES: usize = 253;
/// Most named ports of an instance.
pub const PORTS: usize = 32;
/// Most tagged addresses of an instance.
pub const TAGGED_ADDRESSES: usize = 16;
/// Longest name of a region or a zone, in bytes.
pub const LOCALITY_BYTES: usize = 128;
/// Longest check id, check name and check kind, in bytes.
pub const CHECK_BYTES: usize = 256;
/// Longest notes of a check, in bytes.
pub const NOTES_BYTES: usize = 1024;
/// Longest version of a node's software, in bytes.
pub const VERSION_BYTES: usize = 128;
