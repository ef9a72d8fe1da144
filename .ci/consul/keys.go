package main

import (
	"bytes"
	"fmt"
	"strings"

	consul "github.com/hashicorp/consul/api"
)

func keys(client *consul.Client) {
	kv := client.KV()
	for _, key := range []string{"go/a/1", "go/a/2", "go/b", "go/with space/%2F ä", "go/empty"} {
		value := []byte(key)
		if key == "go/empty" {
			value = nil
		}
		done(kv.Put(&consul.KVPair{Key: key, Value: value, Flags: 42}, nil))
	}
	pair := data(kv.Get("go/a/1", nil))
	check("a key, its value and flags", string(pair.Value) == "go/a/1" && pair.Flags == 42 && pair.CreateIndex == pair.ModifyIndex)
	check("odd characters in a key", string(data(kv.Get("go/with space/%2F ä", nil)).Value) == "go/with space/%2F ä")
	check("an empty value", len(data(kv.Get("go/empty", nil)).Value) == 0)
	check("no such key", data(kv.Get("go/none", nil)) == nil)
	listed := data(kv.List("go/", nil))
	check("a tree, in order", len(listed) == 5 && listed[0].Key == "go/a/1" && listed[4].Key == "go/with space/%2F ä")
	check("keys up to a separator", fmt.Sprint(data(kv.Keys("go/", "/", nil))) == "[go/a/ go/b go/empty go/with space/]")
	check("no such tree", len(data(kv.List("none/", nil))) == 0)

	pair.Value = []byte("changed")
	check("check-and-set", data(kv.CAS(pair, nil)))
	check("refuses a stale writer", !data(kv.CAS(pair, nil)))
	check("index 0 creates", data(kv.CAS(&consul.KVPair{Key: "go/new"}, nil)))
	check("once", !data(kv.CAS(&consul.KVPair{Key: "go/new"}, nil)))
	check("a stale delete is refused", !data(kv.DeleteCAS(pair, nil)))
	check("a current one is not", data(kv.DeleteCAS(data(kv.Get("go/a/1", nil)), nil)) && data(kv.Get("go/a/1", nil)) == nil)

	all := make([]byte, 512*1024)
	for i := range all {
		all[i] = byte(i * 7)
	}
	done(kv.Put(&consul.KVPair{Key: "go/large", Value: all}, nil))
	check("512 KiB of any bytes", bytes.Equal(data(kv.Get("go/large", nil)).Value, all))
	_, err := kv.Put(&consul.KVPair{Key: "go/large", Value: append(all, 0)}, nil)
	check("and not one more", err != nil && strings.Contains(err.Error(), "413"))
	done(kv.DeleteTree("go/", nil))
	check("a tree is deleted", len(data(kv.List("go/", nil))) == 0)
}

func transactions(client *consul.Client) {
	kv := client.KV()
	set := func(key, value string) *consul.KVTxnOp {
		return &consul.KVTxnOp{Verb: consul.KVSet, Key: key, Value: []byte(value)}
	}
	ok, answer, _, err := kv.Txn(consul.KVTxnOps{set("t/a", "1"), set("t/b", "2"), {Verb: consul.KVGetTree, Key: "t/"}}, nil)
	check("a transaction", err == nil && ok && len(answer.Results) == 4 && string(answer.Results[3].Value) == "2")
	check("has one index", answer.Results[0].ModifyIndex == answer.Results[1].ModifyIndex)
	ok, answer, _, err = kv.Txn(consul.KVTxnOps{
		set("t/c", "3"), {Verb: consul.KVCheckIndex, Key: "t/a", Index: 1}, {Verb: consul.KVCheckNotExists, Key: "t/b"},
	}, nil)
	check("one that fails says where", err == nil && !ok && len(answer.Errors) == 2 && answer.Errors[0].OpIndex == 1 && answer.Errors[1].OpIndex == 2)
	check("and changes nothing", data(kv.Get("t/c", nil)) == nil)
	pair := data(kv.Get("t/a", nil))
	mixed := consul.TxnOps{
		{KV: &consul.KVTxnOp{Verb: consul.KVCAS, Key: "t/a", Value: []byte("x"), Index: pair.ModifyIndex}},
		{KV: &consul.KVTxnOp{Verb: consul.KVDeleteTree, Key: "t/b"}},
		{KV: &consul.KVTxnOp{Verb: consul.KVGet, Key: "t/a"}},
	}
	ok, mixedAnswer, _, err := client.Txn().Txn(mixed, nil)
	check("check-and-set, delete and read in one", err == nil && ok && string(mixedAnswer.Results[len(mixedAnswer.Results)-1].KV.Value) == "x")
	_, _, _, err = kv.Txn(make(consul.KVTxnOps, 0), nil)
	check("an empty one is nothing", err == nil)
	many := consul.KVTxnOps{}
	for i := range 129 {
		many = append(many, set(fmt.Sprint("t/many/", i), ""))
	}
	_, _, _, err = kv.Txn(many, nil)
	check("129 operations are too many", err != nil && strings.Contains(err.Error(), "too many operations"))
	done(kv.DeleteTree("t/", nil))
}
