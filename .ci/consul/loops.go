package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Blocking loops as consul-template runs them: watchers of a service, of the names of services, of a prefix, and of
// single keys ask again as soon as they are answered, while one writer makes 50 changes a second, for WATCH_SECONDS
// (20). Each change carries a number; per thing they grow. What comes and goes is there at odd numbers and gone at even
// ones. Held against what was written:
//
//   - an index never goes back, and a thing's number never does;
//   - an answer with an index shows every change whose index is at most that, or a later one: otherwise the next query,
//     which waits beyond that index, would never see it;
//   - each change, or a later one of the same thing, reaches each of its watchers, at the latest patience after it.
const (
	rate     = 50
	things   = 8 // of each kind
	patience = 5 * time.Second
)

// What was written: what it belongs to, its number, when it was sent, and the index of the first answer that shows it.
type change struct {
	thing  string
	number int
	at     time.Time
	index  uint64
}

// What a watcher was shown: its things with their numbers.
type shown struct {
	at    time.Time
	index uint64
	now   map[string]int
}

type watcher struct {
	name string
	// The prefix of the things it watches.
	of    string
	query func(*consul.QueryOptions) (map[string]int, *consul.QueryMeta, error)
	seen  []shown
}

func loops(client *consul.Client) {
	seconds := must(strconv.Atoi(or(os.Getenv("WATCH_SECONDS"), "20")))
	watchers := watchersOf(client)
	stop := make(chan struct{})
	var running sync.WaitGroup
	for _, w := range watchers {
		running.Go(func() { w.run(stop) })
	}

	began := time.Now()
	written := write(client, began.Add(time.Duration(seconds)*time.Second))
	took := time.Since(began)
	final := map[string]int{}
	for _, change := range written {
		final[change.thing] = change.number
	}
	// One last change of each thing wakes who waits, so that all see `stop`.
	time.Sleep(patience / 5)
	close(stop)
	for thing := range final {
		written = append(written, apply(client, thing, final[thing]+1))
		final[thing]++
	}
	running.Wait()

	fmt.Printf("%d changes in %.1f s (%.1f a second)\n", len(written), took.Seconds(), float64(len(written)-len(final))/took.Seconds())
	var all []time.Duration
	for _, w := range watchers {
		lags := w.judge(written, final)
		fmt.Printf("  %-28s %6d wakeups, lag %s\n", w.name, len(w.seen), spread(lags))
		all = append(all, lags...)
	}
	fmt.Printf("  %-28s %6d sightings, lag %s\n", "all", len(all), spread(all))
	fmt.Printf("%d passed, 0 failed\n", passed.Load())
}

func or(given, otherwise string) string {
	if given == "" {
		return otherwise
	}
	return given
}

func watchersOf(client *consul.Client) (watchers []*watcher) {
	add := func(name, of string, query func(*consul.QueryOptions) (map[string]int, *consul.QueryMeta, error)) {
		watchers = append(watchers, &watcher{name: name, of: of, query: query})
	}
	for i := range 3 {
		for _, service := range []string{"instance-", "comes-"} {
			add(fmt.Sprint("health/service ", service, " ", i), service, func(options *consul.QueryOptions) (map[string]int, *consul.QueryMeta, error) {
				entries, meta, err := client.Health().Service(strings.TrimRight(service, "-"), "", true, options)
				now := map[string]int{}
				for _, entry := range entries {
					now[entry.Service.ID] = must(strconv.Atoi(entry.Service.Meta["number"]))
				}
				return now, meta, err
			})
		}
		add(fmt.Sprint("catalog/services ", i), "name-", func(options *consul.QueryOptions) (map[string]int, *consul.QueryMeta, error) {
			services, meta, err := client.Catalog().Services(options)
			now := map[string]int{}
			for name, tags := range services {
				if strings.HasPrefix(name, "name-") && len(tags) == 1 {
					now[name] = must(strconv.Atoi(tags[0]))
				}
			}
			return now, meta, err
		})
		for _, prefix := range []string{"loop/", "gone/"} {
			add(fmt.Sprint("kv prefix ", prefix, " ", i), prefix, func(options *consul.QueryOptions) (map[string]int, *consul.QueryMeta, error) {
				pairs, meta, err := client.KV().List(prefix, options)
				return numbers(pairs), meta, err
			})
		}
		key := fmt.Sprint("loop/", i)
		add("kv "+key, key, func(options *consul.QueryOptions) (map[string]int, *consul.QueryMeta, error) {
			pair, meta, err := client.KV().Get(key, options)
			if pair == nil {
				return nil, meta, err
			}
			return numbers(consul.KVPairs{pair}), meta, err
		})
	}
	return watchers
}

func numbers(pairs consul.KVPairs) map[string]int {
	now := map[string]int{}
	for _, pair := range pairs {
		now[pair.Key] = must(strconv.Atoi(string(pair.Value)))
	}
	return now
}

func (w *watcher) run(stop <-chan struct{}) {
	var index uint64
	for {
		stopping := false
		select {
		case <-stop:
			stopping = true
		default:
		}
		now, meta, err := w.query(&consul.QueryOptions{WaitIndex: index, WaitTime: 2 * time.Second})
		must(0, err)
		if len(w.seen) > 0 && comesAndGoes(w.of) {
			for thing, number := range w.seen[len(w.seen)-1].now {
				if _, there := now[thing]; !there {
					now[thing] = number + number%2
				}
			}
		}
		w.seen = append(w.seen, shown{time.Now(), meta.LastIndex, now})
		if stopping && meta.LastIndex == index {
			return // nothing came for two seconds after the last change
		}
		index = meta.LastIndex
	}
}

func write(client *consul.Client, end time.Time) (written []change) {
	kinds := []string{"loop/", "instance-", "gone/", "name-", "loop/", "comes-"}
	next := map[string]int{}
	began := time.Now()
	for i := 0; time.Now().Before(end); i++ {
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / rate)))
		thing := fmt.Sprint(kinds[i%len(kinds)], rand.IntN(things))
		next[thing]++
		written = append(written, apply(client, thing, next[thing]))
	}
	return written
}

func comesAndGoes(thing string) bool {
	return !strings.HasPrefix(thing, "loop/") && !strings.HasPrefix(thing, "instance-")
}

// Makes one change; every other of a key by transaction.
func apply(client *consul.Client, thing string, number int) change {
	made := change{thing: thing, number: number, at: time.Now()}
	kind, value := strings.TrimRight(thing, "0123456789"), strconv.Itoa(number)
	isKey, gone := strings.HasSuffix(kind, "/"), comesAndGoes(thing) && number%2 == 0
	switch {
	case isKey && gone:
		done(client.KV().Delete(thing, nil))
	case isKey && number%2 == 0:
		done(client.KV().Put(&consul.KVPair{Key: thing, Value: []byte(value)}, nil))
	case isKey:
		_, _, _, err := client.KV().Txn(consul.KVTxnOps{{Verb: consul.KVSet, Key: thing, Value: []byte(value)}}, nil)
		must(0, err)
	case gone:
		must(0, client.Agent().ServiceDeregister(thing))
	case kind == "name-":
		must(0, client.Agent().ServiceRegister(&consul.AgentServiceRegistration{ID: thing, Name: thing, Tags: []string{value}}))
	default:
		must(0, client.Agent().ServiceRegister(&consul.AgentServiceRegistration{
			ID: thing, Name: strings.TrimRight(kind, "-"), Port: 1, Meta: map[string]string{"number": value},
		}))
	}
	var meta *consul.QueryMeta
	var err error
	switch {
	case isKey:
		_, meta, err = client.KV().Get(thing, nil)
	case kind == "name-":
		_, meta, err = client.Catalog().Services(nil)
	default:
		_, meta, err = client.Health().Service(strings.TrimRight(kind, "-"), "", true, nil)
	}
	must(0, err)
	made.index = meta.LastIndex
	return made
}

// Holds what the watcher saw against what was written; says how long after each change was sent it saw that or a later one.
func (w *watcher) judge(written []change, final map[string]int) (lags []time.Duration) {
	var before shown
	for i, answer := range w.seen {
		if i > 0 {
			hold(w.name+": an index does not go back", answer.index >= before.index)
			for thing, number := range before.now {
				hold(fmt.Sprintf("%s: %s goes on from %d, not from %d", w.name, thing, number, answer.now[thing]), answer.now[thing] >= number)
			}
		}
		before = answer
	}
	check(fmt.Sprintf("%s: %d answers, none older than the one before", w.name, len(w.seen)), true)

	mine := 0
	for _, change := range written {
		if !strings.HasPrefix(change.thing, w.of) {
			continue
		}
		mine++
		first := sort.Search(len(w.seen), func(i int) bool { return w.seen[i].now[change.thing] >= change.number })
		hold(fmt.Sprintf("%s: %s is seen to be %d", w.name, change.thing, change.number), first < len(w.seen))
		lags = append(lags, w.seen[first].at.Sub(change.at))
		reached := sort.Search(len(w.seen), func(i int) bool { return w.seen[i].index >= change.index })
		hold(fmt.Sprintf("%s: index %d has %s", w.name, change.index, change.thing), first <= reached)
	}
	check(fmt.Sprintf("%s: none of %d changes missed", w.name, mine), mine > 0)
	check(fmt.Sprintf("%s: none later than %s", w.name, patience), slices.Max(lags) < patience)
	last := w.seen[len(w.seen)-1].now
	for thing, number := range final {
		if strings.HasPrefix(thing, w.of) {
			hold(w.name+": what is there at the end: "+thing, last[thing] == number)
		}
	}
	check(w.name+": ends with what is there", true)
	return lags
}

// As `check`, without a word when it holds.
func hold(what string, held bool) {
	if !held {
		check(what, false)
	}
}

func spread(lags []time.Duration) string {
	slices.Sort(lags)
	at := func(share float64) time.Duration {
		return lags[int(share*float64(len(lags)-1))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("p50 %s, p99 %s, max %s", at(0.5), at(0.99), at(1))
}
