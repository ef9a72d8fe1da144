// What Go's consul/api must be able to do against `mesh dev`, unchanged: registering, looking up, keys, queries,
// intentions. Keys, locks, watch plans and the rest have files of
// their own. With the argument `loops` it runs blocking loops instead (loops.go), with `acl` what needs ACLs (acl.go).
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	consul "github.com/hashicorp/consul/api"
)

var (
	passed  atomic.Int64
	address string
)

func check(what string, held bool) {
	if !held {
		fmt.Println("FAILED:", what)
		os.Exit(1)
	}
	passed.Add(1)
	fmt.Println("ok:", what)
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Println("FAILED:", err)
		panic(err)
	}
	return value
}

func done[T any](_ T, err error) {
	must(0, err)
}

// For calls that answer with data, metadata and an error.
func data[T, M any](value T, _ M, err error) T {
	return must(value, err)
}

// Waits until `holds` does, no longer than half a minute.
func until(what string, holds func() bool) {
	end := time.Now().Add(30 * time.Second)
	for !holds() {
		if time.Now().After(end) {
			check(what, false)
		}
		time.Sleep(20 * time.Millisecond)
	}
	check(what, true)
}

func main() {
	var addresses struct {
		HTTP string `json:"http"`
	}
	must(0, json.Unmarshal(must(os.ReadFile(os.Args[len(os.Args)-1])), &addresses))
	address = strings.TrimPrefix(addresses.HTTP, "http://")
	config := consul.DefaultConfig()
	config.Address = address
	client := must(consul.NewClient(config))
	switch os.Args[1] {
	case "loops":
		loops(client)
		return
	case "acl":
		acls(client)
		return
	}

	var beside sync.WaitGroup
	for _, slow := range []func(*consul.Client){sessionExpires, locks, semaphores, watches} {
		beside.Go(func() { slow(client) })
	}
	for _, part := range []func(*consul.Client){agent, discovery, external, keys, transactions, queries, intentions,
		events, configEntries, authority, operator} {
		part(client)
	}
	beside.Wait()
	maintenance(client)
	fmt.Printf("%d passed, 0 failed\n", passed.Load())
}

func agent(client *consul.Client) {
	agent := client.Agent()
	check("a leader and its peers", must(client.Status().Leader()) != "" && len(must(client.Status().Peers())) == 1)
	name := must(agent.NodeName())
	check("the agent is its only member", must(agent.Members(false))[0].Name == name)
	check("and has a version", must(agent.Self())["Config"]["Version"] != "")

	var healthy atomic.Bool
	healthy.Store(true)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !healthy.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer app.Close()
	must(0, agent.ServiceRegister(&consul.AgentServiceRegistration{
		ID: "shop-1", Name: "shop", Port: 8080, Address: "127.0.0.1", Tags: []string{"v1", "blue"},
		Meta:            map[string]string{"team": "a"},
		Weights:         &consul.AgentWeights{Passing: 7, Warning: 2},
		TaggedAddresses: map[string]consul.ServiceAddress{"wan": {Address: "192.0.2.1", Port: 80}},
		Checks: consul.AgentServiceChecks{
			{CheckID: "shop-http", HTTP: app.URL, Interval: "200ms", Timeout: "1s"},
			{CheckID: "shop-ttl", TTL: "1m", Status: "passing"},
		},
	}))
	service := data(agent.Service("shop-1", nil))
	check("a service is as it was registered", service.Service == "shop" && service.Port == 8080 && service.Meta["team"] == "a" &&
		service.Weights.Passing == 7 && service.TaggedAddresses["wan"].Port == 80 && len(service.Tags) == 2)
	until("its HTTP check passes", func() bool {
		status, _, _ := agent.AgentHealthServiceByID("shop-1")
		return status == consul.HealthPassing
	})
	must(0, agent.UpdateTTL("shop-ttl", "tired", consul.HealthWarning))
	status, info, err := agent.AgentHealthServiceByID("shop-1")
	check("a TTL check warns, and says why", err == nil && status == consul.HealthWarning && len(info.Checks) == 2 &&
		(info.Checks[0].Output == "tired" || info.Checks[1].Output == "tired"))
	must(0, agent.UpdateTTL("shop-ttl", "", consul.HealthPassing))
	healthy.Store(false)
	until("and an HTTP check that fails is critical", func() bool {
		status, infos, err := agent.AgentHealthServiceByName("shop")
		return err == nil && status == consul.HealthCritical && len(infos) == 1
	})
	check("services by filter", len(must(agent.ServicesWithFilter(`"blue" in Tags and Meta.team == "a"`))) == 1 &&
		len(must(agent.ServicesWithFilter(`"green" in Tags`))) == 0)
	check("checks by filter", len(must(agent.ChecksWithFilter(`ServiceID == "shop-1" and Status == "critical"`))) == 1)

	must(0, agent.ServiceRegisterOpts(&consul.AgentServiceRegistration{
		ID: "shop-1", Name: "shop", Port: 8081, Check: &consul.AgentServiceCheck{CheckID: "shop-ttl", TTL: "1m"},
	}, consul.ServiceRegisterOpts{ReplaceExistingChecks: true}))
	check("checks that a registration no longer has are gone", len(must(agent.ChecksWithFilter(`ServiceID == "shop-1"`))) == 1)

	must(0, agent.CheckRegister(&consul.AgentCheckRegistration{
		ID: "disk", Name: "disk", AgentServiceCheck: consul.AgentServiceCheck{TTL: "1m"},
	}))
	check("a check of the node is critical until it is heard of", must(agent.Checks())["disk"].Status == consul.HealthCritical)
	must(0, agent.CheckDeregister("disk"))
	check("and is gone", must(agent.Checks())["disk"] == nil)
	must(0, agent.ServiceDeregister("shop-1"))
	var absent consul.StatusError
	check("a service that is not there is a 404", errors.As(agent.ServiceDeregister("shop-1"), &absent) && absent.Code == 404)
	_, _, err = agent.Service("shop-1", nil)
	check("in each call", errors.As(err, &absent) && absent.Code == 404)
}

func maintenance(client *consul.Client) {
	agent := client.Agent()
	must(0, agent.ServiceRegister(&consul.AgentServiceRegistration{ID: "m", Name: "m", Port: 1}))
	up := func() int { return len(data(client.Health().Service("m", "", true, nil))) }
	check("a service without checks passes", up() == 1)
	must(0, agent.EnableServiceMaintenance("m", "new disk"))
	maintained := data(client.Health().Checks("m", nil))
	check("under maintenance it does not", up() == 0 && maintained.AggregatedStatus() == consul.HealthMaint && maintained[0].Notes == "new disk")
	must(0, agent.DisableServiceMaintenance("m"))
	check("until that is over", up() == 1)
	must(0, agent.EnableNodeMaintenance("new kernel"))
	check("nor on a node under maintenance", up() == 0)
	must(0, agent.DisableNodeMaintenance())
	check("until that is over, too", up() == 1)
	must(0, agent.ServiceDeregister("m"))
}

func discovery(client *consul.Client) {
	agent, health, catalog := client.Agent(), client.Health(), client.Catalog()
	for _, at := range []struct {
		id, tag string
	}{{"db-1", "primary"}, {"db-2", "replica"}, {"db-3", "replica"}} {
		must(0, agent.ServiceRegister(&consul.AgentServiceRegistration{
			ID: at.id, Name: "db", Port: 5432, Tags: []string{at.tag, "sql"}, Meta: map[string]string{"id": at.id},
			Check: &consul.AgentServiceCheck{CheckID: "check-" + at.id, TTL: "1m", Status: consul.HealthPassing},
		}))
	}
	must(0, agent.UpdateTTL("check-db-3", "full", consul.HealthCritical))
	all, meta, err := health.Service("db", "", false, nil)
	check("health has all instances, and an index", err == nil && len(all) == 3 && meta.LastIndex > 0 && meta.KnownLeader)
	check("those that pass", len(data(health.Service("db", "", true, nil))) == 2)
	check("those with all tags", len(data(health.ServiceMultipleTags("db", []string{"replica", "sql"}, false, nil))) == 2)
	filtered := data(health.Service("db", "", false, &consul.QueryOptions{Filter: `Service.Meta.id == "db-2" or Checks.Output matches "^fu"`}))
	check("those that a filter chooses", len(filtered) == 2)
	_, _, err = health.Service("db", "", false, &consul.QueryOptions{Filter: `Service.Nothing == `})
	check("a filter that cannot be read is an error", err != nil)
	checks := data(health.Checks("db", nil))
	check("checks of a service", len(checks) == 3 && checks.AggregatedStatus() == consul.HealthCritical)
	check("checks by state", len(data(health.State(consul.HealthCritical, &consul.QueryOptions{Filter: `ServiceName == "db"`}))) == 1)
	node := all[0].Node
	onNode := data(health.Node(node.Node, nil))
	check("checks of a node, serfHealth among them", len(onNode) >= 4 && strings.Contains(fmt.Sprint(checkIDs(onNode)), "serfHealth"))

	check("a datacenter", must(catalog.Datacenters())[0] == node.Datacenter)
	check("nodes", data(catalog.Nodes(nil))[0].Node == node.Node)
	check("nodes with such metadata", len(data(catalog.Nodes(&consul.QueryOptions{NodeMeta: map[string]string{"no": "such"}}))) == 0)
	check("services with their tags", len(data(catalog.Services(nil))["db"]) == 3)
	check("a service by tag", data(catalog.Service("db", "primary", nil))[0].ServiceID == "db-1")
	check("a node with its services", data(catalog.Node(node.Node, nil)).Services["db-2"].Port == 5432)
	check("and as a list", len(data(catalog.NodeServiceList(node.Node, &consul.QueryOptions{Filter: `Service == "db"`})).Services) == 3)

	woken := make(chan *consul.QueryMeta)
	go func() {
		_, meta, _ := health.Service("db", "", true, &consul.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Minute})
		woken <- meta
	}()
	must(0, agent.ServiceDeregister("db-1"))
	check("a blocking query wakes with a higher index", (<-woken).LastIndex > meta.LastIndex)
	must(0, agent.ServiceDeregister("db-2"))
	must(0, agent.ServiceDeregister("db-3"))
	gone, after, err := health.Service("db", "", false, nil)
	check("nothing left, and the index did not go back", err == nil && len(gone) == 0 && after.LastIndex > meta.LastIndex)
}

func checkIDs(checks consul.HealthChecks) (ids []string) {
	for _, check := range checks {
		ids = append(ids, check.CheckID)
	}
	return ids
}

func external(client *consul.Client) {
	catalog := client.Catalog()
	done(catalog.Register(&consul.CatalogRegistration{
		Node: "printer", Address: "192.0.2.7", NodeMeta: map[string]string{"external-node": "true"},
		Service: &consul.AgentService{ID: "print-1", Service: "print", Port: 631, Tags: []string{"ipp"}},
		Checks: consul.HealthChecks{{
			Node: "printer", CheckID: "paper", Name: "paper", Status: consul.HealthPassing, ServiceID: "print-1",
		}},
	}, nil))
	until("a node without an agent is in the catalog", func() bool {
		return len(data(catalog.Nodes(&consul.QueryOptions{NodeMeta: map[string]string{"external-node": "true"}}))) == 1
	})
	found := data(client.Health().Service("print", "ipp", true, nil))
	check("and its service passes", len(found) == 1 && found[0].Node.Address == "192.0.2.7" && found[0].Service.Port == 631)
	done(catalog.Deregister(&consul.CatalogDeregistration{Node: "printer", ServiceID: "print-1"}, nil))
	until("its service goes", func() bool { return len(data(client.Health().Service("print", "", false, nil))) == 0 })
	done(catalog.Deregister(&consul.CatalogDeregistration{Node: "printer"}, nil))
	until("and so does it", func() bool { return data(catalog.Node("printer", nil)) == nil })
}

func queries(client *consul.Client) {
	must(0, client.Agent().ServiceRegister(&consul.AgentServiceRegistration{ID: "geo-1", Name: "geo-eu", Port: 9, Tags: []string{"x"}}))
	query := client.PreparedQuery()
	definition := &consul.PreparedQueryDefinition{
		Name: "near-geo", Service: consul.ServiceQuery{Service: "geo-eu", OnlyPassing: true, Tags: []string{"x"}},
		DNS: consul.QueryDNSOptions{TTL: "5s"},
	}
	id := data(query.Create(definition, nil))
	found := data(query.Execute("near-geo", nil))
	check("a prepared query by name", len(found.Nodes) == 1 && found.Nodes[0].Service.ID == "geo-1" && found.DNS.TTL == "5s")
	definition.ID, definition.Service.Tags = id, []string{"!x"}
	done(query.Update(definition, nil))
	check("changed, by id", len(data(query.Execute(id, nil)).Nodes) == 0)
	check("read and listed", data(query.Get(id, nil))[0].Name == "near-geo" && len(data(query.List(nil))) == 1)
	template := data(query.Create(&consul.PreparedQueryDefinition{
		Name: "geo-", Template: consul.QueryTemplate{Type: "name_prefix_match"},
		Service: consul.ServiceQuery{Service: "geo-${name.suffix}"},
	}, nil))
	check("a template", len(data(query.Execute("geo-eu", nil)).Nodes) == 1)
	done(query.Delete(template, nil))
	done(query.Delete(id, nil))
	_, _, err := query.Execute("near-geo", nil)
	check("deleted", err != nil)
	must(0, client.Agent().ServiceDeregister("geo-1"))
}

func intentions(client *consul.Client) {
	connect := client.Connect()
	done(connect.IntentionUpsert(&consul.Intention{
		SourceName: "web", DestinationName: "db", Action: consul.IntentionActionDeny, Description: "not yet",
	}, nil))
	exact := data(connect.IntentionGetExact("web", "db", nil))
	check("an intention", exact.Action == consul.IntentionActionDeny && exact.Description == "not yet" && exact.Precedence > 0)
	check("is listed", len(data(connect.Intentions(nil))) == 1)
	allowed := func() bool {
		return data(connect.IntentionCheck(&consul.IntentionCheck{Source: "web", Destination: "db"}, nil))
	}
	check("denies", !allowed())
	done(connect.IntentionUpsert(&consul.Intention{SourceName: "web", DestinationName: "db", Action: consul.IntentionActionAllow}, nil))
	check("and, changed, allows", allowed())
	matched := data(connect.IntentionMatch(&consul.IntentionMatch{By: consul.IntentionMatchDestination, Names: []string{"db"}}, nil))
	check("it matches its destination", len(matched["db"]) == 1 && matched["db"][0].SourceName == "web")
	done(connect.IntentionDeleteExact("web", "db", nil))
	check("and is gone", data(connect.IntentionGetExact("web", "db", nil)) == nil)
}
