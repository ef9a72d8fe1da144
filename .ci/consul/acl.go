package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
)

const webRules = `service "web" {
  policy = "write"
}
key_prefix "app/" {
  policy = "write"
}
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
`

// Of a server that has ACLs on and that nobody has bootstrapped.
func acls(anonymous *consul.Client) {
	boss := bootstrap(anonymous)
	policies(boss, anonymous)
	rights(tokens(boss), boss, anonymous)
	logins(boss, anonymous)
	fmt.Printf("%d passed, 0 failed\n", passed.Load())
}

// A client whose requests have this token.
func with(secret string) *consul.Client {
	config := consul.DefaultConfig()
	config.Address, config.Token = address, secret
	return must(consul.NewClient(config))
}

func denied(err error, words string) bool { return answered(err, 403, words) }

func answered(err error, code int, words string) bool {
	var status consul.StatusError
	return errors.As(err, &status) && status.Code == code && strings.Contains(status.Body, words)
}

func bootstrap(anonymous *consul.Client) *consul.Client {
	first := data(anonymous.ACL().Bootstrap())
	check("the first token", first.SecretID != "" && first.AccessorID != first.SecretID && first.Policies[0].Name == "global-management")
	_, _, err := anonymous.ACL().Bootstrap()
	check("is made once", denied(err, "bootstrap no longer allowed"))
	boss := with(first.SecretID)
	check("it knows itself", data(boss.ACL().TokenReadSelf(nil)).AccessorID == first.AccessorID)
	return boss
}

func policies(boss, anonymous *consul.Client) {
	acl := boss.ACL()
	made := data(acl.PolicyCreate(&consul.ACLPolicy{Name: "web", Rules: `service "web" { policy = "read" }`}, nil))
	check("a policy has an ID and a hash", made.ID != "" && len(made.Hash) > 0 && made.CreateIndex > 0)
	updated := data(acl.PolicyUpdate(&consul.ACLPolicy{ID: made.ID, Name: "web", Description: "of web", Rules: webRules}, nil))
	check("is updated", updated.ModifyIndex > made.ModifyIndex && updated.CreateIndex == made.CreateIndex && string(updated.Hash) != string(made.Hash))
	for how, read := range map[string]*consul.ACLPolicy{
		"ID": data(acl.PolicyRead(made.ID, nil)), "name": data(acl.PolicyReadByName("web", nil)),
	} {
		check("is read by "+how+", as it was written", read.ID == made.ID && read.Name == "web" && read.Description == "of web" && read.Rules == webRules)
	}
	names := map[string]bool{}
	for _, entry := range data(acl.PolicyList(nil)) {
		names[entry.Name] = true
	}
	check("is listed with the built-in ones", names["web"] && names["global-management"] && names["builtin/global-read-only"])
	_, _, err := acl.PolicyCreate(&consul.ACLPolicy{Name: "broken", Rules: `service "web" { policy = "sing" }`}, nil)
	check("rules with a mistake are refused", err != nil && strings.Contains(err.Error(), "failed to parse policy"))
	_, _, err = acl.PolicyCreate(&consul.ACLPolicy{Name: "web"}, nil)
	check("and a name that is taken", err != nil)
	_, _, err = anonymous.ACL().PolicyList(nil)
	check("without a token nobody reads them", denied(err, "Permission denied"))
	gone := data(acl.PolicyCreate(&consul.ACLPolicy{Name: "gone"}, nil))
	done(acl.PolicyDelete(gone.ID, nil))
	check("a policy is deleted", data(acl.PolicyReadByName("gone", nil)) == nil)

	role := data(acl.RoleCreate(&consul.ACLRole{Name: "web", Policies: []*consul.ACLRolePolicyLink{{Name: "web"}}}, nil))
	check("a role names its policies", role.Policies[0].ID == made.ID && role.Policies[0].Name == "web")
	role.Description = "of web"
	data(acl.RoleUpdate(role, nil))
	check("is updated, read by name", data(acl.RoleReadByName("web", nil)).Description == "of web")
	check("by ID", data(acl.RoleRead(role.ID, nil)).Name == "web")
	check("and listed", len(data(acl.RoleList(nil))) == 1)
	check("no such role", data(acl.RoleReadByName("none", nil)) == nil)
}

// A token that has the role.
func tokens(boss *consul.Client) *consul.ACLToken {
	acl := boss.ACL()
	token := data(acl.TokenCreate(&consul.ACLToken{
		Description: "web on n1", Roles: []*consul.ACLTokenRoleLink{{Name: "web"}}, ExpirationTTL: time.Hour,
	}, nil))
	left := time.Until(*token.ExpirationTime)
	check("a token with an end", token.SecretID != "" && left > 59*time.Minute && left <= time.Hour)
	read := data(acl.TokenRead(token.AccessorID, nil))
	check("is read, without its secret", read.SecretID == "<hidden>" && read.Description == "web on n1" && read.Roles[0].Name == "web" && read.ExpirationTime.Equal(*token.ExpirationTime))
	expanded := data(acl.TokenReadExpanded(token.AccessorID, nil))
	check("with all that it has", expanded.ExpandedRoles[0].Name == "web" && expanded.ExpandedPolicies[0].Rules == webRules)
	self := data(with(token.SecretID).ACL().TokenReadSelf(nil))
	check("reads itself", self.AccessorID == token.AccessorID && self.SecretID == token.SecretID)
	read.Description = "web on n2"
	check("is updated", data(acl.TokenUpdate(read, nil)).Description == "web on n2" && data(acl.TokenRead(token.AccessorID, nil)).Description == "web on n2")

	clone := data(acl.TokenClone(token.AccessorID, "another", nil))
	check("a clone has the same role and end, and a name of its own", clone.AccessorID != token.AccessorID && clone.SecretID != token.SecretID &&
		clone.Description == "another" && clone.Roles[0].Name == "web" && clone.ExpirationTime.Equal(*token.ExpirationTime))
	listed := map[string]string{}
	for _, entry := range data(acl.TokenList(nil)) {
		listed[entry.AccessorID] = entry.Description
	}
	check("tokens are listed", listed[token.AccessorID] == "web on n2" && listed[clone.AccessorID] == "another" && listed["00000000-0000-0000-0000-000000000002"] == "Anonymous Token")
	role := data(acl.RoleReadByName("web", nil))
	check("by role", len(data(acl.TokenListFiltered(consul.ACLTokenFilterOptions{Role: role.ID}, nil))) == 2)
	_, _, err := with(token.SecretID).ACL().TokenList(nil)
	check("not by just any token", denied(err, "Permission denied"))

	key := &consul.KVPair{Key: "app/clone"}
	kv := with(clone.SecretID).KV()
	done(kv.Put(key, nil))
	done(acl.TokenDelete(clone.AccessorID, nil))
	_, err = kv.Put(key, nil)
	check("a token that is deleted writes no more keys", denied(err, "ACL not found"))
	_, _, err = kv.Get(key.Key, nil)
	check("nor reads any", denied(err, "ACL not found"))
	_, _, err = acl.TokenRead(clone.AccessorID, nil)
	check("and is not to be found", answered(err, 404, "ACL not found"))
	return token
}

func rights(token *consul.ACLToken, boss, anonymous *consul.Client) {
	web, unknown := with(token.SecretID), with("0e4f5f0e-0000-4000-8000-000000000000")
	service := func(name string) *consul.AgentServiceRegistration {
		return &consul.AgentServiceRegistration{Name: name, Port: 80}
	}
	must(0, web.Agent().ServiceRegister(service("web")))
	check("its own service is registered", must(web.Agent().Services())["web"].Port == 80)
	err := web.Agent().ServiceRegister(service("db"))
	check("another is not", denied(err, "Permission denied") && strings.Contains(err.Error(), `lacks permission 'service:write' on "db"`))
	check("nor without a token", denied(anonymous.Agent().ServiceRegister(service("web")), "Permission denied"))
	check("an unknown one is not found", denied(unknown.Agent().ServiceRegister(service("web")), "ACL not found"))
	must(0, boss.Agent().ServiceRegister(service("db")))
	check("another's is not deregistered", denied(web.Agent().ServiceDeregister("db"), "Permission denied"))

	done(web.KV().Put(&consul.KVPair{Key: "app/x", Value: []byte("1")}, nil))
	check("its key is written and read", string(data(web.KV().Get("app/x", nil)).Value) == "1")
	other := &consul.KVPair{Key: "other/x"}
	_, err = web.KV().Put(other, nil)
	check("another is not", denied(err, "Permission denied") && strings.Contains(err.Error(), "'key:write'"))
	done(boss.KV().Put(other, nil))
	_, _, err = web.KV().Get(other.Key, nil)
	check("nor read", denied(err, "Permission denied"))
	_, _, err = unknown.KV().Get("app/x", nil)
	check("an unknown token reads none", denied(err, "ACL not found"))
	ok, _, _, err := web.KV().Txn(consul.KVTxnOps{{Verb: consul.KVSet, Key: "app/y"}, {Verb: consul.KVSet, Key: other.Key}}, nil)
	check("a transaction with one of each does nothing", (err != nil || !ok) && data(web.KV().Get("app/y", nil)) == nil)

	narrow := data(boss.ACL().PolicyCreate(&consul.ACLPolicy{
		Name: "narrow", Rules: `service "web" { policy = "read" }
			node_prefix "" { policy = "read" }`,
	}, nil))
	some := with(data(boss.ACL().TokenCreate(&consul.ACLToken{Policies: []*consul.ACLTokenPolicyLink{{ID: narrow.ID}}}, nil)).SecretID)
	for whose, sees := range map[string]struct {
		client *consul.Client
		web    int
		db     int
		nodes  int
	}{"who may": {web, 1, 1, 1}, "who may in part": {some, 1, 0, 1}, "who has no token": {anonymous, 0, 0, 0}} {
		catalog, health := sees.client.Catalog(), sees.client.Health()
		services, meta, err := catalog.Services(nil)
		_, one := services["web"]
		_, two := services["db"]
		check("names of services for "+whose, err == nil && one == (sees.web == 1) && two == (sees.db == 1) &&
			(len(services) > 0) == (sees.web == 1))
		check("and whether some are left out", meta.ResultsFilteredByACLs == (whose == "who may in part"))
		check("instances", len(data(catalog.Service("web", "", nil))) == sees.web && len(data(catalog.Service("db", "", nil))) == sees.db)
		check("with their health", len(data(health.Service("web", "", true, nil))) == sees.web && len(data(health.Service("db", "", true, nil))) == sees.db)
		check("nodes", len(data(catalog.Nodes(nil))) == sees.nodes)
	}
	_, _, err = unknown.Catalog().Services(nil)
	check("an unknown token is no anonymous one", denied(err, "ACL not found"))

	nobody := "00000000-0000-0000-0000-000000000002"
	data(boss.ACL().TokenUpdate(&consul.ACLToken{AccessorID: nobody, Policies: []*consul.ACLTokenPolicyLink{{Name: "narrow"}}}, nil))
	until("what the anonymous token is given all have", func() bool { return len(data(anonymous.Catalog().Service("web", "", nil))) == 1 })
	data(boss.ACL().TokenUpdate(&consul.ACLToken{AccessorID: nobody}, nil))

	must(0, web.Agent().ServiceDeregister("web"))
	must(0, boss.Agent().ServiceDeregister("db"))
	done(boss.ACL().TokenDelete(token.AccessorID, nil))
	_, err = web.KV().Put(&consul.KVPair{Key: "app/x"}, nil)
	check("all of it ends with the token", denied(err, "ACL not found"))
}

// Whose JSON Web Token is good gets one of ours.
func logins(boss, anonymous *consul.Client) {
	acl := boss.ACL()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(&key.PublicKey))})
	method := data(acl.AuthMethodCreate(&consul.ACLAuthMethod{
		Name: "ci", Type: "jwt", MaxTokenTTL: time.Hour, Config: map[string]any{
			"JWTValidationPubKeys": []string{string(public)}, "JWTSupportedAlgs": []string{"ES256"}, "BoundIssuer": "ci",
			"BoundAudiences": []string{"mesh"}, "ClaimMappings": map[string]string{"app": "app"},
		},
	}, nil))
	check("a method", method.Type == "jwt" && method.MaxTokenTTL == time.Hour)
	read := data(acl.AuthMethodRead("ci", nil))
	check("is read", read.Config["BoundIssuer"] == "ci" && data(acl.AuthMethodList(nil))[0].Name == "ci")
	rule := data(acl.BindingRuleCreate(&consul.ACLBindingRule{
		AuthMethod: "ci", Selector: `value.app != ""`, BindType: consul.BindingRuleBindTypeService, BindName: "${value.app}",
	}, nil))
	check("a binding rule", data(acl.BindingRuleRead(rule.ID, nil)).BindName == "${value.app}" && len(data(acl.BindingRuleList("ci", nil))) == 1)

	login := func(audience, app string, signer *ecdsa.PrivateKey) (*consul.ACLToken, error) {
		token, _, err := anonymous.ACL().Login(&consul.ACLLoginParams{AuthMethod: "ci", BearerToken: signed(signer, map[string]any{
			"iss": "ci", "aud": audience, "app": app, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
		})}, nil)
		return token, err
	}
	token := must(login("mesh", "shop", key))
	check("a login", token.AuthMethod == "ci" && token.ServiceIdentities[0].ServiceName == "shop" && token.Local && token.ExpirationTime != nil)
	shop := with(token.SecretID)
	must(0, shop.Agent().ServiceRegister(&consul.AgentServiceRegistration{Name: "shop", Port: 80}))
	check("gives the rights of its service", must(shop.Agent().Services())["shop"] != nil)
	check("and no more", denied(shop.Agent().ServiceRegister(&consul.AgentServiceRegistration{Name: "web"}), "Permission denied"))
	must(0, shop.Agent().ServiceDeregister("shop"))
	_, err := login("others", "shop", key)
	check("what is meant for others is refused", denied(err, "ermission denied"))
	_, err = login("mesh", "shop", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)))
	check("and what others signed", denied(err, "ermission denied"))
	_, err = login("mesh", "", key)
	check("and who no rule gives anything", denied(err, "ermission denied"))
	done(shop.ACL().Logout(nil))
	_, _, err = shop.ACL().TokenReadSelf(nil)
	check("a logout ends it", denied(err, "ACL not found"))

	left := must(login("mesh", "shop", key))
	done(acl.BindingRuleDelete(rule.ID, nil))
	done(acl.AuthMethodDelete("ci", nil))
	_, _, err = acl.TokenRead(left.AccessorID, nil)
	check("a method takes its tokens along", answered(err, 404, "ACL not found"))
}

// A JSON Web Token (ES256).
func signed(key *ecdsa.PrivateKey, claims map[string]any) string {
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"ES256","typ":"JWT"}`)) + "." + encode(must(json.Marshal(claims)))
	hash := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, hash[:])
	must(0, err)
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return text + "." + encode(signature)
}
