//! Every key of Consul's agent configuration.

use super::schema::{
    Becomes, Key,
    Shape::{
        self, Duration, Flag, Free, Integer, Lists, Number, Pairs, Table, Tables, Text, Texts,
    },
};

const fn taken(name: &'static str, shape: Shape) -> Key {
    let becomes = Becomes::Taken;
    Key {
        name,
        shape,
        becomes,
    }
}

const fn nothing(name: &'static str, shape: Shape) -> Key {
    let becomes = Becomes::Nothing;
    Key {
        name,
        shape,
        becomes,
    }
}

const fn refused(name: &'static str, shape: Shape, why: &'static str) -> Key {
    let becomes = Becomes::Refused(why);
    Key {
        name,
        shape,
        becomes,
    }
}

/// The keys of a document.
pub const TOP: &[Key] = &[
    // Who this node is, and where.
    taken("node_name", Text),
    taken("node_meta", Pairs),
    nothing("node_id", Text),
    nothing("disable_host_node_id", Flag),
    taken("datacenter", Text),
    nothing("primary_datacenter", Text),
    taken("data_dir", Text),
    taken("locality", Table(LOCALITY)),
    taken("bind_addr", Text),
    taken("serf_lan", Text),
    nothing("serf_wan", Text),
    taken("advertise_addr", Text),
    nothing("advertise_addr_ipv4", Text),
    nothing("advertise_addr_ipv6", Text),
    nothing("advertise_addr_wan", Text),
    nothing("advertise_addr_wan_ipv4", Text),
    nothing("advertise_addr_wan_ipv6", Text),
    nothing("translate_wan_addrs", Flag),
    taken("client_addr", Text),
    taken("addresses", Table(ADDRESSES)),
    taken("ports", Table(PORTS)),
    taken("unix_sockets", Table(UNIX_SOCKETS)),
    // Finding others.
    taken("retry_join", Texts),
    taken("start_join", Texts),
    nothing("retry_join_wan", Texts),
    nothing("start_join_wan", Texts),
    nothing("retry_interval", Duration),
    nothing("retry_interval_wan", Duration),
    nothing("retry_max", Integer),
    nothing("retry_max_wan", Integer),
    nothing("rejoin_after_leave", Flag),
    nothing("reconnect_timeout", Duration),
    nothing("reconnect_timeout_wan", Duration),
    nothing("advertise_reconnect_timeout", Duration),
    nothing("serf_lan_allowed_cidrs", Texts),
    nothing("serf_wan_allowed_cidrs", Texts),
    nothing("encrypt", Text),
    nothing("encrypt_verify_incoming", Flag),
    nothing("encrypt_verify_outgoing", Flag),
    nothing("disable_keyring_file", Flag),
    nothing("gossip_lan", Table(GOSSIP)),
    nothing("gossip_wan", Table(GOSSIP)),
    nothing("auto_config", Free),
    nothing("auto_encrypt", Table(AUTO_ENCRYPT)),
    nothing("disable_coordinates", Flag),
    taken("leave_on_terminate", Flag),
    nothing("skip_leave_on_interrupt", Flag),
    // TLS.
    taken("tls", Table(TLS)),
    taken("cert_file", Text),
    taken("key_file", Text),
    taken("ca_file", Text),
    taken("ca_path", Text),
    taken("verify_incoming", Flag),
    taken("verify_incoming_https", Flag),
    nothing("verify_incoming_rpc", Flag),
    nothing("verify_outgoing", Flag),
    nothing("verify_server_hostname", Flag),
    nothing("server_name", Text),
    taken("tls_min_version", Text),
    nothing("tls_cipher_suites", Text),
    nothing("tls_prefer_server_cipher_suites", Flag),
    nothing("enable_agent_tls_for_checks", Flag),
    // DNS.
    taken("domain", Text),
    taken("alt_domain", Text),
    taken("recursors", Texts),
    taken("dns_config", Table(DNS)),
    // Services and checks.
    taken("service", Tables(SERVICE)),
    taken("services", Tables(SERVICE)),
    taken("check", Tables(CHECK)),
    taken("checks", Tables(CHECK)),
    taken("enable_script_checks", Flag),
    taken("enable_local_script_checks", Flag),
    nothing("check_update_interval", Duration),
    nothing("check_output_max_size", Integer),
    nothing("discard_check_output", Flag),
    nothing("enable_central_service_config", Flag),
    nothing("watches", Free),
    // Interfaces.
    taken("limits", Table(LIMITS)),
    taken("http_config", Table(HTTP)),
    nothing("max_query_time", Duration),
    nothing("default_query_time", Duration),
    nothing("discovery_max_stale", Duration),
    nothing("session_ttl_min", Duration),
    nothing("disable_http_unprintable_char_filter", Flag),
    nothing("disable_kv_key_validation", Flag),
    nothing("cache", Table(CACHE)),
    nothing("ui", Flag),
    nothing("ui_dir", Text),
    nothing("ui_content_path", Text),
    nothing("ui_config", Free),
    nothing("rpc", Table(&[nothing("enable_streaming", Flag)])),
    nothing("use_streaming_backend", Flag),
    nothing("xds", Table(&[nothing("update_max_per_second", Number)])),
    nothing("enable_xds_load_balancing", Flag),
    nothing("peering", Table(&[nothing("enabled", Flag)])),
    // Rights.
    taken("acl", Table(ACL)),
    nothing("acl_agent_master_token", Text),
    nothing("acl_agent_token", Text),
    nothing("acl_datacenter", Text),
    nothing("acl_default_policy", Text),
    nothing("acl_down_policy", Text),
    nothing("acl_enable_key_list_policy", Flag),
    nothing("acl_enforce_version_8", Flag),
    nothing("acl_master_token", Text),
    nothing("acl_replication_token", Text),
    nothing("acl_token", Text),
    nothing("acl_ttl", Duration),
    nothing("enable_acl_replication", Flag),
    taken("default_intention_policy", Text),
    // The mesh.
    nothing("connect", Table(CONNECT)),
    nothing("config_entries", Table(&[nothing("bootstrap", Free)])),
    // Servers.
    nothing("server", Flag),
    nothing("bootstrap", Flag),
    nothing("bootstrap_expect", Integer),
    nothing("autopilot", Table(AUTOPILOT)),
    nothing("performance", Table(PERFORMANCE)),
    nothing("primary_gateways", Texts),
    nothing("primary_gateways_interval", Duration),
    nothing("protocol", Integer),
    nothing("rpc_protocol", Integer),
    nothing("raft_protocol", Integer),
    nothing("raft_snapshot_threshold", Integer),
    nothing("raft_snapshot_interval", Duration),
    nothing("raft_trailing_logs", Integer),
    nothing("raft_boltdb", Free),
    nothing("raft_logstore", Free),
    nothing("server_rejoin_age_max", Duration),
    nothing("non_voting_server", Flag),
    nothing("read_replica", Flag),
    nothing("segment", Text),
    nothing("segments", Free),
    nothing("partition", Text),
    nothing("audit", Free),
    nothing("license_path", Text),
    nothing("reporting", Free),
    nothing("cloud", Free),
    nothing("experiments", Texts),
    // The process.
    taken("log_level", Text),
    taken("log_json", Flag),
    nothing("log_file", Text),
    nothing("log_rotate_duration", Duration),
    nothing("log_rotate_bytes", Integer),
    nothing("log_rotate_max_files", Integer),
    nothing("enable_syslog", Flag),
    nothing("syslog_facility", Text),
    nothing("pid_file", Text),
    nothing("telemetry", Table(TELEMETRY)),
    nothing("enable_debug", Flag),
    nothing("auto_reload_config", Flag),
    nothing("disable_anonymous_signature", Flag),
    nothing("disable_remote_exec", Flag),
    nothing("disable_update_check", Flag),
];

const LOCALITY: &[Key] = &[taken("region", Text), taken("zone", Text)];

const ADDRESSES: &[Key] = &[
    taken("http", Text),
    taken("https", Text),
    taken("dns", Text),
    nothing("grpc", Text),
    nothing("grpc_tls", Text),
];

const PORTS: &[Key] = &[
    taken("http", Integer),
    taken("https", Integer),
    taken("dns", Integer),
    taken("serf_lan", Integer),
    nothing("serf_wan", Integer),
    nothing("server", Integer),
    nothing("grpc", Integer),
    nothing("grpc_tls", Integer),
    nothing("proxy_min_port", Integer),
    nothing("proxy_max_port", Integer),
    nothing("sidecar_min_port", Integer),
    nothing("sidecar_max_port", Integer),
    nothing("expose_min_port", Integer),
    nothing("expose_max_port", Integer),
];

const UNIX_SOCKETS: &[Key] = &[
    taken("mode", Text),
    taken("user", Text),
    taken("group", Text),
];

const GOSSIP: &[Key] = &[
    nothing("gossip_nodes", Integer),
    nothing("gossip_interval", Duration),
    nothing("probe_interval", Duration),
    nothing("probe_timeout", Duration),
    nothing("suspicion_mult", Integer),
    nothing("retransmit_mult", Integer),
];

const AUTO_ENCRYPT: &[Key] = &[
    nothing("tls", Flag),
    nothing("allow_tls", Flag),
    nothing("dns_san", Texts),
    nothing("ip_san", Texts),
];

const TLS: &[Key] = &[
    taken("defaults", Table(TLS_OF_HTTP)),
    taken("https", Table(TLS_OF_HTTP)),
    nothing("internal_rpc", Table(TLS_OF_OTHERS)),
    nothing("grpc", Table(TLS_OF_OTHERS)),
];

const TLS_OF_HTTP: &[Key] = &[
    taken("cert_file", Text),
    taken("key_file", Text),
    taken("ca_file", Text),
    taken("ca_path", Text),
    taken("verify_incoming", Flag),
    taken("tls_min_version", Text),
    nothing("tls_cipher_suites", Text),
    nothing("verify_outgoing", Flag),
    nothing("verify_server_hostname", Flag),
];

const TLS_OF_OTHERS: &[Key] = &[
    nothing("cert_file", Text),
    nothing("key_file", Text),
    nothing("ca_file", Text),
    nothing("ca_path", Text),
    nothing("verify_incoming", Flag),
    nothing("tls_min_version", Text),
    nothing("tls_cipher_suites", Text),
    nothing("verify_outgoing", Flag),
    nothing("verify_server_hostname", Flag),
    nothing("use_auto_cert", Flag),
];

const DNS: &[Key] = &[
    taken("node_ttl", Duration),
    taken("service_ttl", Pairs),
    taken("only_passing", Flag),
    taken("udp_answer_limit", Integer),
    taken("a_record_limit", Integer),
    taken("recursor_timeout", Duration),
    taken("soa", Table(SOA)),
    nothing("recursor_strategy", Text),
    nothing("enable_truncate", Flag),
    nothing("disable_compression", Flag),
    nothing("enable_additional_node_meta_txt", Flag),
    nothing("allow_stale", Flag),
    nothing("max_stale", Duration),
    nothing("use_cache", Flag),
    nothing("cache_max_age", Duration),
    nothing("prefer_namespace", Flag),
];

const SOA: &[Key] = &[
    taken("min_ttl", Integer),
    nothing("refresh", Integer),
    nothing("retry", Integer),
    nothing("expire", Integer),
];

const LIMITS: &[Key] = &[
    taken("http_max_conns_per_client", Integer),
    nothing("https_handshake_timeout", Duration),
    nothing("rpc_handshake_timeout", Duration),
    nothing("rpc_client_timeout", Duration),
    nothing("rpc_max_conns_per_client", Integer),
    nothing("rpc_max_burst", Integer),
    nothing("rpc_rate", Number),
    nothing("kv_max_value_size", Integer),
    nothing("txn_max_req_len", Integer),
    nothing(
        "request_limits",
        Table(&[
            nothing("mode", Text),
            nothing("read_rate", Number),
            nothing("write_rate", Number),
        ]),
    ),
];

const HTTP: &[Key] = &[
    refused(
        "block_endpoints",
        Texts,
        "endpoints cannot be closed here, and would be open",
    ),
    refused(
        "allow_write_http_from",
        Texts,
        "writing cannot be bound to networks here, and would be open to all",
    ),
    nothing("response_headers", Pairs),
    nothing("use_cache", Flag),
    nothing("max_header_bytes", Integer),
];

const CACHE: &[Key] = &[
    nothing("entry_fetch_max_burst", Integer),
    nothing("entry_fetch_rate", Number),
];

const ACL: &[Key] = &[
    taken("enabled", Flag),
    taken("default_policy", Text),
    nothing("down_policy", Text),
    taken("token_ttl", Duration),
    nothing("policy_ttl", Duration),
    nothing("role_ttl", Duration),
    nothing("enable_key_list_policy", Flag),
    nothing("enable_token_persistence", Flag),
    nothing("enable_token_replication", Flag),
    nothing("msp_disable_bootstrap", Flag),
    nothing(
        "tokens",
        Table(&[
            nothing("initial_management", Text),
            nothing("master", Text),
            nothing("agent", Text),
            nothing("agent_recovery", Text),
            nothing("agent_master", Text),
            nothing("default", Text),
            nothing("dns", Text),
            nothing("replication", Text),
            nothing("config_file_service_registration", Text),
            nothing("managed_service_provider", Free),
        ]),
    ),
];

const CONNECT: &[Key] = &[
    nothing("enabled", Flag),
    nothing("ca_provider", Text),
    nothing("ca_config", Free),
    nothing("enable_mesh_gateway_wan_federation", Flag),
    nothing("enable_serverless_plugin", Flag),
    nothing("test_ca_leaf_root_change_spread", Duration),
];

const AUTOPILOT: &[Key] = &[
    nothing("cleanup_dead_servers", Flag),
    nothing("disable_upgrade_migration", Flag),
    nothing("last_contact_threshold", Duration),
    nothing("max_trailing_logs", Integer),
    nothing("min_quorum", Integer),
    nothing("redundancy_zone_tag", Text),
    nothing("server_stabilization_time", Duration),
    nothing("upgrade_version_tag", Text),
];

const PERFORMANCE: &[Key] = &[
    nothing("leave_drain_time", Duration),
    nothing("raft_multiplier", Integer),
    nothing("rpc_hold_timeout", Duration),
    nothing("grpc_keepalive_interval", Duration),
    nothing("grpc_keepalive_timeout", Duration),
];

const TELEMETRY: &[Key] = &[
    nothing("circonus_api_token", Text),
    nothing("circonus_api_app", Text),
    nothing("circonus_api_url", Text),
    nothing("circonus_submission_interval", Text),
    nothing("circonus_submission_url", Text),
    nothing("circonus_check_id", Text),
    nothing("circonus_check_force_metric_activation", Text),
    nothing("circonus_check_instance_id", Text),
    nothing("circonus_check_search_tag", Text),
    nothing("circonus_check_display_name", Text),
    nothing("circonus_check_tags", Text),
    nothing("circonus_broker_id", Text),
    nothing("circonus_broker_select_tag", Text),
    nothing("disable_compat_1.9", Flag),
    nothing("disable_hostname", Flag),
    nothing("disable_per_tenancy_usage_metrics", Flag),
    nothing("dogstatsd_addr", Text),
    nothing("dogstatsd_tags", Texts),
    nothing("enable_host_metrics", Flag),
    nothing("filter_default", Flag),
    nothing("metrics_prefix", Text),
    nothing("prefix_filter", Texts),
    nothing("prometheus_retention_time", Duration),
    nothing("retry_failed_connection", Flag),
    nothing("statsd_address", Text),
    nothing("statsite_address", Text),
    nothing("statsite_prefix", Text),
];

/// What is taken is read by what reads registrations over HTTP, which has the last word.
const SERVICE: &[Key] = &[
    taken("id", Text),
    taken("name", Text),
    taken("tags", Texts),
    taken("meta", Pairs),
    taken("address", Text),
    taken("port", Integer),
    taken("ports", Free),
    taken("socket_path", Text),
    taken("tagged_addresses", Free),
    taken(
        "weights",
        Table(&[taken("passing", Integer), taken("warning", Integer)]),
    ),
    taken("enable_tag_override", Flag),
    taken("locality", Table(LOCALITY)),
    taken("kind", Text),
    taken("proxy", Free),
    taken("check", Table(CHECK)),
    taken("checks", Tables(CHECK)),
    taken(
        "connect",
        Table(&[taken("native", Flag), nothing("sidecar_service", Free)]),
    ),
    nothing("token", Text),
    nothing("namespace", Text),
    nothing("partition", Text),
];

const CHECK: &[Key] = &[
    taken("id", Text),
    taken("check_id", Text),
    taken("name", Text),
    taken("notes", Text),
    taken("service_id", Text),
    taken("status", Text),
    taken("args", Texts),
    taken("script_args", Texts),
    taken("http", Text),
    taken("method", Text),
    taken("header", Lists),
    taken("body", Text),
    taken("disable_redirects", Flag),
    taken("tcp", Text),
    taken("tcp_use_tls", Flag),
    taken("udp", Text),
    taken("grpc", Text),
    taken("grpc_use_tls", Flag),
    taken("h2ping", Text),
    taken("h2ping_use_tls", Flag),
    taken("tls_server_name", Text),
    taken("tls_skip_verify", Flag),
    taken("docker_container_id", Text),
    taken("os_service", Text),
    taken("alias_node", Text),
    taken("alias_service", Text),
    taken("ttl", Duration),
    taken("interval", Duration),
    taken("timeout", Duration),
    taken("output_max_size", Integer),
    taken("success_before_passing", Integer),
    taken("failures_before_warning", Integer),
    taken("failures_before_critical", Integer),
    taken("deregister_critical_service_after", Duration),
    nothing("shell", Text),
    nothing("token", Text),
    nothing("namespace", Text),
    nothing("partition", Text),
];
