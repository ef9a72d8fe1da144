package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

	consul "github.com/hashicorp/consul/api"
)

// What came last, each behind a probe.
func newer(client *consul.Client) {
	agent, connect := client.Agent(), client.Connect()

	id, _, err := client.Event().Fire(&consul.UserEvent{Name: "deploy", Payload: []byte("v7")}, nil)
	if there("events", err) {
		until("an event is heard of", func() bool {
			for _, event := range data(client.Event().List("deploy", nil)) {
				if event.ID == id {
					return string(event.Payload) == "v7"
				}
			}
			return false
		})
		events := watching(map[string]any{"type": "event", "name": "release"})
		data(client.Event().Fire(&consul.UserEvent{Name: "release", Payload: []byte("a")}, nil))
		sees(events, "and by a watch", func(all []*consul.UserEvent) bool { return len(all) == 1 && all[0].Name == "release" })
		events.ends("events")
	}

	roots, _, err := connect.CARoots(nil)
	if there("connect/ca/roots", err) {
		check("roots of the mesh, one active", len(roots.Roots) > 0 && roots.ActiveRootID != "" && roots.TrustDomain != "")
		pool := x509.NewCertPool()
		for _, root := range roots.Roots {
			check("a root that can be read", pool.AppendCertsFromPEM([]byte(root.RootCertPEM)))
		}
		watch := watching(map[string]any{"type": "connect_roots"})
		sees(watch, "a watch of roots", func(all *consul.CARootList) bool { return len(all.Roots) == len(roots.Roots) })
		watch.ends("roots")
		leafOf(client, pool)
	}

	entries := client.ConfigEntries()
	_, _, err = entries.Set(&consul.ServiceConfigEntry{Kind: consul.ServiceDefaults, Name: "shop", Protocol: "http"}, nil)
	if there("configuration entries", err) {
		read := data(entries.Get(consul.ServiceDefaults, "shop", nil)).(*consul.ServiceConfigEntry)
		check("a configuration entry", read.Protocol == "http" && read.ModifyIndex > 0)
		read.Protocol = "grpc"
		check("check-and-set", data(entries.CAS(read, read.ModifyIndex, nil)))
		check("refuses a stale writer", !data(entries.CAS(read, read.ModifyIndex, nil)))
		check("entries of a kind", len(data(entries.List(consul.ServiceDefaults, nil))) == 1)
		done(entries.Delete(consul.ServiceDefaults, "shop", nil))
		_, _, err = entries.Get(consul.ServiceDefaults, "shop", nil)
		check("deleted", err != nil)
	}

	coordinates, _, err := client.Coordinate().Nodes(nil)
	if there("coordinates", err) {
		check("a coordinate per node", len(coordinates) > 0 && len(coordinates[0].Coord.Vec) == 8)
		check("coordinates of servers", len(must(client.Coordinate().Datacenters())) > 0)
	}

	metrics, err := agent.Metrics()
	if there("agent/metrics", err) {
		check("metrics", metrics.Timestamp != "")
	}
	host, err := agent.Host()
	if there("agent/host", err) {
		check("what the agent runs on", host["CPU"] != nil)
	}
	raft, err := client.Operator().RaftGetConfiguration(nil)
	if there("operator/raft", err) {
		check("a leader among the servers", len(raft.Servers) > 0 && raft.Servers[0].Leader)
	}
	healthy, err := client.Operator().AutopilotServerHealth(nil)
	if there("operator/autopilot", err) {
		check("servers are healthy", healthy.Healthy)
	}
	_, _, err = client.ACL().TokenReadSelf(nil)
	check("tokens are refused as long as there are no ACLs, or read", err != nil)
}

// A certificate of a service: of these roots, with the name of the service, and its key.
func leafOf(client *consul.Client, roots *x509.CertPool) {
	must(0, client.Agent().ServiceRegister(&consul.AgentServiceRegistration{ID: "leafy", Name: "leafy", Port: 1}))
	leaf, _, err := client.Agent().ConnectCALeaf("leafy", nil)
	if there("agent/connect/ca/leaf", err) {
		pair := must(tls.X509KeyPair([]byte(leaf.CertPEM), []byte(leaf.PrivateKeyPEM)))
		certificate := must(x509.ParseCertificate(pair.Certificate[0]))
		between := x509.NewCertPool()
		for _, der := range pair.Certificate[1:] {
			between.AddCert(must(x509.ParseCertificate(der)))
		}
		_, err = certificate.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		check("a leaf certificate is of these roots", err == nil)
		check("and of its service", leaf.Service == "leafy" && fmt.Sprint(certificate.URIs[0]) == leaf.ServiceURI)
		again, _, _ := client.Agent().ConnectCALeaf("leafy", nil)
		check("asked for again, it is the same", again.SerialNumber == leaf.SerialNumber)
		watch := watching(map[string]any{"type": "connect_leaf", "service": "leafy"})
		sees(watch, "a watch of it", func(seen *consul.LeafCert) bool { return seen.SerialNumber == leaf.SerialNumber })
		watch.ends("leaf")
	}
	authorised, err := client.Agent().ConnectAuthorize(&consul.AgentAuthorizeParams{
		Target: "leafy", ClientCertURI: "spiffe://x/ns/default/dc/dc1/svc/web", ClientCertSerial: "00",
	})
	if there("agent/connect/authorize", err) {
		check("who may connect is told", authorised.Reason != "")
	}
	must(0, client.Agent().ServiceDeregister("leafy"))
}
