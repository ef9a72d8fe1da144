acl = "read"
keyring = "read"
mesh = "read"
operator = "read"
peering = "read"
agent_prefix "" {
  policy = "read"
}
event_prefix "" {
  policy = "read"
}
identity_prefix "" {
  policy = "read"
}
key_prefix "" {
  policy = "read"
}
node_prefix "" {
  policy = "read"
}
query_prefix "" {
  policy = "read"
}
session_prefix "" {
  policy = "read"
}
service_prefix "" {
  policy     = "read"
  intentions = "read"
}
