package main

import (
	"errors"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Whether nothing is heard of in a moment.
func quiet[T any](what <-chan T) bool {
	select {
	case <-what:
		return false
	case <-time.After(300 * time.Millisecond):
		return true
	}
}

func heard[T any](what <-chan T) bool {
	select {
	case <-what:
		return true
	case <-time.After(30 * time.Second):
		return false
	}
}

// A session that nobody renews ends between its TTL and twice that, and takes what it holds along.
func sessionExpires(client *consul.Client) {
	kv, session := client.KV(), client.Session()
	began := time.Now()
	create := func(name, behavior string) string {
		return data(session.Create(&consul.SessionEntry{
			Name: name, TTL: "10s", Behavior: behavior, LockDelay: time.Millisecond,
		}, nil))
	}
	lost, deleting, kept := create("lost", "release"), create("deleting", "delete"), create("kept", "release")
	over := make(chan struct{})
	go session.RenewPeriodic("10s", kept, nil, over)
	for key, holder := range map[string]string{"expiry/lost": lost, "expiry/deleting": deleting, "expiry/kept": kept} {
		check("taken: "+key, data(kv.Acquire(&consul.KVPair{Key: key, Value: []byte("v"), Session: holder}, nil)))
	}
	pair, meta, err := kv.Get("expiry/lost", nil)
	must(0, err)
	for pair.Session != "" {
		pair, meta, err = kv.Get("expiry/lost", &consul.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: 40 * time.Second})
		must(0, err)
	}
	after := time.Since(began)
	check("an expired session lets go after once to twice its TTL", after > 10*time.Second && after < 22*time.Second)
	until("or takes its keys along", func() bool { return data(kv.Get("expiry/deleting", nil)) == nil })
	check("it is not to be found", data(session.Info(lost, nil)) == nil)
	_, _, err = session.Renew(lost, nil)
	check("nor renewed", errors.Is(err, consul.ErrSessionExpired) || data(session.Renew(lost, nil)) == nil)
	check("one that is renewed goes on", data(session.Info(kept, nil)).Name == "kept" && data(kv.Get("expiry/kept", nil)).Session == kept)
	close(over)
	until("until its client destroys it", func() bool { return data(session.Info(kept, nil)) == nil })
	sessionsOfChecks(client)
}

// A session that is bound to a check of a service ends with it.
func sessionsOfChecks(client *consul.Client) {
	must(0, client.Agent().ServiceRegister(&consul.AgentServiceRegistration{
		ID: "worker", Name: "worker", Check: &consul.AgentServiceCheck{CheckID: "worker-alive", TTL: "1m", Status: consul.HealthPassing},
	}))
	session := data(client.Session().Create(&consul.SessionEntry{
		Name: "bound", LockDelay: 3 * time.Second, ServiceChecks: []consul.ServiceCheck{{ID: "worker-alive"}},
	}, nil))
	node := must(client.Agent().NodeName())
	check("sessions of a node", len(data(client.Session().Node(node, nil))) > 0)
	kv := client.KV()
	check("it takes a key", data(kv.Acquire(&consul.KVPair{Key: "bound", Session: session}, nil)))
	must(0, client.Agent().UpdateTTL("worker-alive", "died", consul.HealthCritical))
	until("it ends with its check", func() bool { return data(kv.Get("bound", nil)).Session == "" })
	ended := time.Now()
	other := data(client.Session().CreateNoChecks(&consul.SessionEntry{Name: "other"}, nil))
	take := func() bool { return data(kv.Acquire(&consul.KVPair{Key: "bound", Session: other}, nil)) }
	check("and nobody takes its key during the lock-delay", !take())
	until("afterwards they do", take)
	check("not earlier", time.Since(ended) > 2500*time.Millisecond)
	done(client.Session().Destroy(other, nil))
	must(0, client.Agent().ServiceDeregister("worker"))
}

func locks(client *consul.Client) {
	lock := func() *consul.Lock {
		return must(client.LockOpts(&consul.LockOptions{Key: "locks/leader", Value: []byte("me"), SessionTTL: "10s", LockWaitTime: 5 * time.Second}))
	}
	first, second := lock(), lock()
	lost := must(first.Lock(nil))
	_, err := first.Lock(nil)
	check("a lock is not taken twice by one", errors.Is(err, consul.ErrLockHeld))
	once := must(client.LockOpts(&consul.LockOptions{Key: "locks/leader", LockTryOnce: true, LockWaitTime: 300 * time.Millisecond}))
	missed, err := once.Lock(nil)
	check("nor by another that tries once", missed == nil && err == nil)

	got := make(chan (<-chan struct{}))
	go func() { got <- must(second.Lock(nil)) }()
	check("another waits", quiet(got) && quiet(lost))
	must(0, first.Unlock())
	secondLost := <-got
	check("and has it as soon as it is let go", secondLost != nil && heard(lost))
	check("destroying a lock in use is refused", errors.Is(first.Destroy(), consul.ErrLockInUse))

	pair := data(client.KV().Get("locks/leader", nil))
	check("the holder's value and the number of takings are seen", string(pair.Value) == "me" && pair.LockIndex == 2 && pair.Flags == consul.LockFlagValue)
	done(client.Session().Destroy(pair.Session, nil))
	check("whose session ends learns that it lost", heard(secondLost))
	second.Unlock()
	must(0, first.Destroy())
	check("and the lock is removed", data(client.KV().Get("locks/leader", nil)) == nil)

	stopped := make(chan struct{})
	holder, waiting := lock(), lock()
	must(holder.Lock(nil))
	ended := make(chan bool)
	go func() {
		held, err := waiting.Lock(stopped)
		ended <- held == nil && err == nil
	}()
	close(stopped)
	check("who waits can stop waiting", <-ended)
	must(0, holder.Unlock())
	must(0, holder.Destroy())
}

func semaphores(client *consul.Client) {
	slot := func(once bool) *consul.Semaphore {
		return must(client.SemaphoreOpts(&consul.SemaphoreOptions{
			Prefix: "semaphore/jobs", Limit: 2, SessionTTL: "10s", SemaphoreTryOnce: once, SemaphoreWaitTime: 300 * time.Millisecond,
		}))
	}
	first, second, third := slot(false), slot(false), slot(true)
	must(first.Acquire(nil))
	lost := must(second.Acquire(nil))
	missed, err := third.Acquire(nil)
	check("a semaphore of two holds no third", missed == nil && err == nil)
	must(0, first.Release())
	check("one that is let go is free", must(third.Acquire(nil)) != nil && quiet(lost))
	other := must(client.SemaphorePrefix("semaphore/jobs", 3))
	_, err = other.Acquire(nil)
	check("the limit must be the same for all", err != nil)
	check("destroying one in use is refused", errors.Is(first.Destroy(), consul.ErrSemaphoreInUse))
	for _, entry := range data(client.KV().List("semaphore/jobs/", nil)) {
		if entry.Session != "" {
			done(client.Session().Destroy(entry.Session, nil))
		}
	}
	check("whose session ends learns that it lost", heard(lost))
	second.Release()
	third.Release()
	must(0, first.Destroy())
	check("and the semaphore is removed", len(data(client.KV().List("semaphore/jobs/", nil))) == 0)
}
