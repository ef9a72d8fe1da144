path "secret/data/web/*" {
  capabilities = ["read", "list"]
  denied_parameters = { "x" = ["1"] }
}
path "secret/+/x" { policy = "write" }
