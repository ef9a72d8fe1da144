// What Go's vault/api must be able to do against `mesh dev`, unchanged.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	vault "github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/api/auth/approle"
	"github.com/hashicorp/vault/api/auth/userpass"
)

var passed int

func check(what string, held bool) {
	if !held {
		fmt.Println("FAILED:", what)
		os.Exit(1)
	}
	passed++
	fmt.Println("ok:", what)
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Println("FAILED:", err)
		os.Exit(1)
	}
	return value
}

func done(err error) {
	must(0, err)
}

func main() {
	var addresses struct {
		Vault     string `json:"vault"`
		RootToken string `json:"root_token"`
	}
	done(json.Unmarshal(must(os.ReadFile(os.Args[1])), &addresses))
	ctx := context.Background()
	connect := func(token string) *vault.Client {
		config := vault.DefaultConfig()
		config.Address = addresses.Vault
		client := must(vault.NewClient(config))
		client.SetToken(token)
		return client
	}
	root := connect(addresses.RootToken)
	health := must(root.Sys().Health())
	check("health", health.Initialized && !health.Sealed)
	check("seal status", must(root.Sys().SealStatus()).T >= 1)
	check("leader", must(root.Sys().Leader()).IsSelf)

	kv := root.KVv2("secret")
	must(kv.Put(ctx, "go/a", map[string]any{"n": 1}))
	must(kv.Put(ctx, "go/a", map[string]any{"n": 2}, vault.WithCheckAndSet(1)))
	_, err := kv.Put(ctx, "go/a", map[string]any{"n": 3}, vault.WithCheckAndSet(1))
	check("check-and-set refuses a stale writer", err != nil)
	must(kv.Patch(ctx, "go/a", map[string]any{"m": "x"}))
	secret := must(kv.Get(ctx, "go/a"))
	check("a patch keeps the rest", secret.Data["m"] == "x" && secret.VersionMetadata.Version == 3)
	check("versions are listed", len(must(kv.GetVersionsAsList(ctx, "go/a"))) == 3)
	must(kv.Rollback(ctx, "go/a", 1))
	check("and rolled back to", fmt.Sprint(must(kv.Get(ctx, "go/a")).Data["n"]) == "1")

	done(root.Sys().PutPolicy("go", `path "secret/data/go/*" { capabilities = ["read"] }`))
	done(root.Sys().EnableAuthWithOptions("go-people", &vault.EnableAuthOptions{
		Type: "userpass", Config: vault.MountConfigInput{DefaultLeaseTTL: "20m"},
	}))
	must(root.Logical().Write("auth/go-people/users/eve", map[string]any{"password": "pw", "token_policies": "go"}))
	eve := connect("")
	method := must(userpass.NewUserpassAuth("eve", &userpass.Password{FromString: "pw"}, userpass.WithMountPath("go-people")))
	login := must(eve.Auth().Login(ctx, method))
	check("a password logs in", login.Auth.LeaseDuration == 1200 && login.Auth.EntityID != "")
	check("and reads", must(eve.KVv2("secret").Get(ctx, "go/a")) != nil)
	watcher := must(eve.NewLifetimeWatcher(&vault.LifetimeWatcherInput{Secret: login}))
	go watcher.Start()
	check("its token is renewed", (<-watcher.RenewCh()).Secret.Auth.LeaseDuration == 1200)
	watcher.Stop()

	done(root.Sys().EnableAuthWithOptions("go-machines", &vault.EnableAuthOptions{Type: "approle"}))
	must(root.Logical().Write("auth/go-machines/role/go", map[string]any{"token_policies": "go", "token_type": "batch", "token_ttl": "5m"}))
	roleID := must(root.Logical().Read("auth/go-machines/role/go/role-id")).Data["role_id"].(string)
	wrapping := connect(addresses.RootToken)
	wrapping.SetWrappingLookupFunc(func(string, string) string { return "2m" })
	wrapped := must(wrapping.Logical().Write("auth/go-machines/role/go/secret-id", nil))
	job := connect("")
	role := must(approle.NewAppRoleAuth(roleID, &approle.SecretID{FromString: wrapped.WrapInfo.Token}, approle.WithWrappingToken(), approle.WithMountPath("go-machines")))
	login = must(job.Auth().Login(ctx, role))
	check("a wrapped secret id logs in", login.Auth.LeaseDuration == 300 && !login.Auth.Renewable)
	_, err = root.Logical().Unwrap(wrapped.WrapInfo.Token)
	check("once", err != nil)
	capabilities := must(root.Sys().Capabilities(job.Token(), "secret/data/go/a"))
	check("capabilities of a token", len(capabilities) == 1 && capabilities[0] == "read")

	done(root.Sys().Mount("go-kv", &vault.MountInput{Type: "kv", Options: map[string]string{"version": "2"}}))
	done(root.Sys().TuneMount("go-kv", vault.MountConfigInput{MaxLeaseTTL: "3h"}))
	check("a mount is tuned", must(root.Sys().MountConfig("go-kv")).MaxLeaseTTL == 3*3600)
	must(root.KVv2("go-kv").Put(ctx, "k", map[string]any{"a": "b"}))
	done(root.Sys().Remount("go-kv", "go-moved"))
	check("and moves", must(root.KVv2("go-moved").Get(ctx, "k")).Data["a"] == "b")
	done(root.Sys().Unmount("go-moved"))
	fmt.Printf("%d passed, 0 failed\n", passed)
}
