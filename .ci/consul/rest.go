package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"strings"

	consul "github.com/hashicorp/consul/api"
)

func events(client *consul.Client) {
	heard := watching(map[string]any{"type": "event", "name": "release"})
	id := data(client.Event().Fire(&consul.UserEvent{Name: "deploy", Payload: []byte("v7")}, nil))
	until("an event is heard of", func() bool {
		for _, event := range data(client.Event().List("deploy", nil)) {
			if event.ID == id {
				return string(event.Payload) == "v7"
			}
		}
		return false
	})
	data(client.Event().Fire(&consul.UserEvent{Name: "release", Payload: []byte("a")}, nil))
	sees(heard, "and by a watch", func(all []*consul.UserEvent) bool { return len(all) == 1 && all[0].Name == "release" })
	heard.ends("events")
}

func configEntries(client *consul.Client) {
	entries := client.ConfigEntries()
	check("a configuration entry is set", data(entries.Set(&consul.ServiceConfigEntry{Kind: consul.ServiceDefaults, Name: "shop", Protocol: "http"}, nil)))
	read := data(entries.Get(consul.ServiceDefaults, "shop", nil)).(*consul.ServiceConfigEntry)
	check("a configuration entry", read.Protocol == "http" && read.ModifyIndex > 0)
	read.Protocol = "grpc"
	check("check-and-set", data(entries.CAS(read, read.ModifyIndex, nil)))
	check("refuses a stale writer", !data(entries.CAS(read, read.ModifyIndex, nil)))
	check("entries of a kind", len(data(entries.List(consul.ServiceDefaults, nil))) == 1)
	data(entries.Set(&consul.ServiceResolverConfigEntry{
		Kind: consul.ServiceResolver, Name: "shop", DefaultSubset: "v2",
		Subsets: map[string]consul.ServiceResolverSubset{"v2": {Filter: `Service.Meta.version == "2"`}},
	}, nil))
	resolver := data(entries.Get(consul.ServiceResolver, "shop", nil)).(*consul.ServiceResolverConfigEntry)
	check("a resolver with a subset", resolver.DefaultSubset == "v2" && resolver.Subsets["v2"].Filter != "")
	done(entries.Delete(consul.ServiceResolver, "shop", nil))
	done(entries.Delete(consul.ServiceDefaults, "shop", nil))
	_, _, err := entries.Get(consul.ServiceDefaults, "shop", nil)
	check("deleted", err != nil && strings.Contains(err.Error(), "404"))
}

func authority(client *consul.Client) {
	roots := data(client.Connect().CARoots(nil))
	check("roots of the mesh, one active", len(roots.Roots) > 0 && roots.ActiveRootID != "" && roots.TrustDomain != "")
	check("as the agent has them", data(client.Agent().ConnectCARoots(nil)).ActiveRootID == roots.ActiveRootID)
	check("and how they are made", data(client.Connect().CAGetConfig(nil)).Provider != "")
	pool := x509.NewCertPool()
	for _, root := range roots.Roots {
		check("a root that can be read", pool.AppendCertsFromPEM([]byte(root.RootCertPEM)))
	}
	watch := watching(map[string]any{"type": "connect_roots"})
	sees(watch, "a watch of roots", func(all *consul.CARootList) bool { return len(all.Roots) == len(roots.Roots) })
	watch.ends("roots")

	// A certificate of a service: of these roots, with the name of the service, and its key.
	must(0, client.Agent().ServiceRegister(&consul.AgentServiceRegistration{ID: "leafy", Name: "leafy", Port: 1}))
	leaf := data(client.Agent().ConnectCALeaf("leafy", nil))
	pair := must(tls.X509KeyPair([]byte(leaf.CertPEM), []byte(leaf.PrivateKeyPEM)))
	certificate := must(x509.ParseCertificate(pair.Certificate[0]))
	between := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		between.AddCert(must(x509.ParseCertificate(der)))
	}
	_, err := certificate.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	check("a leaf certificate is of these roots", err == nil)
	check("and of its service", leaf.Service == "leafy" && fmt.Sprint(certificate.URIs[0]) == leaf.ServiceURI)
	check("asked for again, it is the same", data(client.Agent().ConnectCALeaf("leafy", nil)).SerialNumber == leaf.SerialNumber)
	watch = watching(map[string]any{"type": "connect_leaf", "service": "leafy"})
	sees(watch, "a watch of it", func(seen *consul.LeafCert) bool { return seen.SerialNumber == leaf.SerialNumber })
	watch.ends("leaf")

	done(client.Connect().IntentionUpsert(&consul.Intention{SourceName: "web", DestinationName: "leafy", Action: consul.IntentionActionDeny}, nil))
	authorised := func(from string) *consul.AgentAuthorize {
		return must(client.Agent().ConnectAuthorize(&consul.AgentAuthorizeParams{
			Target: "leafy", ClientCertSerial: leaf.SerialNumber,
			ClientCertURI: "spiffe://" + roots.TrustDomain + "/ns/default/dc/dc1/svc/" + from,
		}))
	}
	denied, others := authorised("web"), authorised("others")
	check("who may connect is told, and why", !denied.Authorized && denied.Reason != "" && others.Authorized)
	done(client.Connect().IntentionDeleteExact("web", "leafy", nil))
	must(0, client.Agent().ServiceDeregister("leafy"))
}

func operator(client *consul.Client) {
	agent, operator := client.Agent(), client.Operator()
	node := must(agent.NodeName())
	coordinates := data(client.Coordinate().Nodes(nil))
	check("a coordinate per node", len(coordinates) == 1 && coordinates[0].Node == node && len(coordinates[0].Coord.Vec) == 8)
	check("coordinates of servers", must(client.Coordinate().Datacenters())[0].Coordinates[0].Node != "")
	check("metrics", must(agent.Metrics()).Timestamp != "")
	check("what the agent runs on", must(agent.Host())["CPU"] != nil)
	check("a leader among the servers", must(operator.RaftGetConfiguration(nil)).Servers[0].Leader)
	check("which are healthy", must(operator.AutopilotServerHealth(nil)).Healthy)

	marker := &consul.KVPair{Key: "snapshot", Value: []byte("in it")}
	done(client.KV().Put(marker, nil))
	snapshot := data(client.Snapshot().Save(nil))
	saved := must(io.ReadAll(snapshot))
	must(0, snapshot.Close())
	check("a snapshot is saved", len(saved) > 0)
	done(client.KV().Delete(marker.Key, nil))
	_, _, err := client.ACL().TokenReadSelf(nil)
	check("tokens are refused as long as there are no ACLs", err != nil && strings.Contains(err.Error(), "401"))
}
