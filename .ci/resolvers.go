// Looks names up as Go programs do. Arguments: what ("host", "srv" or "ptr") and the name.
package main

import (
	"fmt"
	"net"
	"os"
	"sort"
	"strings"
)

func main() {
	var found []string
	var err error
	switch os.Args[1] {
	case "host":
		found, err = net.LookupHost(os.Args[2])
	case "srv":
		var records []*net.SRV
		_, records, err = net.LookupSRV("web", "tcp", os.Args[2])
		for _, r := range records {
			found = append(found, fmt.Sprintf("%d %s", r.Port, strings.TrimSuffix(r.Target, ".")))
		}
	case "ptr":
		found, err = net.LookupAddr(os.Args[2])
	}
	if missing, ok := err.(*net.DNSError); ok && missing.IsNotFound {
		fmt.Println("not found")
		return
	}
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	sort.Strings(found)
	fmt.Println(strings.Join(found, " "))
}
