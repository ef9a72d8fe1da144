package main

import (
	"fmt"
	"sync"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/api/watch"
)

// A watch plan, and what its handler was called with.
type watched struct {
	plan    *watch.Plan
	mutex   sync.Mutex
	results []any
	indexes []uint64
}

func watching(params map[string]any) *watched {
	w := &watched{plan: must(watch.Parse(params))}
	w.plan.HybridHandler = func(value watch.BlockingParamVal, result any) {
		w.mutex.Lock()
		defer w.mutex.Unlock()
		w.results = append(w.results, result)
		if index, ok := value.(watch.WaitIndexVal); ok {
			w.indexes = append(w.indexes, uint64(index))
		}
	}
	go w.plan.Run(address)
	return w
}

// Waits for the first result, or a later one, that `is` so.
func sees[T any](w *watched, what string, is func(T) bool) {
	until(what, func() bool {
		w.mutex.Lock()
		defer w.mutex.Unlock()
		for _, result := range w.results {
			if typed, ok := result.(T); ok && is(typed) {
				return true
			}
		}
		return false
	})
}

func (w *watched) ends(what string) {
	w.plan.Stop()
	w.mutex.Lock()
	defer w.mutex.Unlock()
	for i := 1; i < len(w.indexes); i++ {
		check(what+": its index grows", w.indexes[i] > w.indexes[i-1])
	}
}

func watches(client *consul.Client) {
	agent, kv := client.Agent(), client.KV()
	key := watching(map[string]any{"type": "key", "key": "watch/a"})
	prefix := watching(map[string]any{"type": "keyprefix", "prefix": "watch/"})
	services := watching(map[string]any{"type": "services"})
	nodes := watching(map[string]any{"type": "nodes"})
	service := watching(map[string]any{"type": "service", "service": "watched", "passingonly": true})
	tagged := watching(map[string]any{"type": "service", "service": "watched", "tag": []any{"one", "two"}})
	checks := watching(map[string]any{"type": "checks", "service": "watched"})
	critical := watching(map[string]any{"type": "checks", "state": "critical"})
	sees(nodes, "a watch of nodes", func(all []*consul.Node) bool { return len(all) >= 1 })
	until("a watch of a key that is not there", func() bool { return len(key.indexesSeen()) == 1 })

	for i := range 3 {
		done(kv.Put(&consul.KVPair{Key: "watch/a", Value: fmt.Append(nil, i)}, nil))
		sees(key, "a watch of a key", func(pair *consul.KVPair) bool { return pair != nil && string(pair.Value) == fmt.Sprint(i) })
	}
	done(kv.Put(&consul.KVPair{Key: "watch/b"}, nil))
	sees(prefix, "a watch of a prefix", func(pairs consul.KVPairs) bool { return len(pairs) == 2 })
	done(kv.DeleteTree("watch/", nil))
	until("a watch of a key sees it go", func() bool { return key.last() == nil })

	register := func(status string, tags ...string) {
		must(0, agent.ServiceRegister(&consul.AgentServiceRegistration{
			ID: "watched", Name: "watched", Tags: tags,
			Check: &consul.AgentServiceCheck{CheckID: "watched-ttl", TTL: "1m", Status: status},
		}))
	}
	register(consul.HealthCritical, "one")
	sees(services, "a watch of services", func(all map[string][]string) bool { return len(all["watched"]) == 1 })
	sees(critical, "a watch of all that is critical", func(all []*consul.HealthCheck) bool { return holds(all, "watched-ttl") })
	ofService := watching(map[string]any{"type": "agent_service", "service_id": "watched"})
	sees(ofService, "a watch of the agent's own service", func(own *consul.AgentService) bool { return own.Tags[0] == "one" })
	must(0, agent.UpdateTTL("watched-ttl", "well", consul.HealthPassing))
	sees(service, "a watch of those that pass", func(all []*consul.ServiceEntry) bool { return len(all) == 1 })
	sees(checks, "a watch of checks", func(all []*consul.HealthCheck) bool {
		return holds(all, "watched-ttl") && all[0].Output == "well"
	})
	register(consul.HealthPassing, "one", "two")
	sees(tagged, "a watch of those with two tags", func(all []*consul.ServiceEntry) bool { return len(all) == 1 })
	sees(ofService, "by hash, too", func(own *consul.AgentService) bool { return len(own.Tags) == 2 })
	ofService.plan.Stop()
	must(0, agent.ServiceDeregister("watched"))
	until("a watch sees the last one go", func() bool {
		left, ok := service.last().([]*consul.ServiceEntry)
		return ok && len(left) == 0
	})
	for what, w := range map[string]*watched{
		"key": key, "prefix": prefix, "services": services, "nodes": nodes, "service": service, "tagged": tagged,
		"checks": checks, "critical": critical, "the agent's": ofService,
	} {
		w.ends(what)
	}
}

func holds(checks []*consul.HealthCheck, id string) bool {
	for _, check := range checks {
		if check.CheckID == id {
			return true
		}
	}
	return false
}

func (w *watched) indexesSeen() []uint64 {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.indexes
}

func (w *watched) last() any {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.results[len(w.results)-1]
}
