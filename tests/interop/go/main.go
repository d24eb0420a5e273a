// The other side of larder's interoperability tests: programs on golang/groupcache and net/http.
//
//	node     a groupcache node with an HTTP front
//	mailgun  a node of the protocol of mailgun/groupcache
//	client   a net/http client that sends a larder server requests of all kinds
//	urls     paths and keys as net/url reads and writes them, over a pipe
//	vectors  the owner of each key on each ring, as JSON
//
// It builds with Go 1.13 or later and Debian's golang-github-golang-groupcache-dev.
package main

import (
	"fmt"
	"os"
)

func main() {
	commands := map[string]func(args []string) error{
		"node":    runNode,
		"mailgun": runMailgun,
		"client":  runClient,
		"urls":    runURLs,
		"vectors": runVectors,
	}
	if len(os.Args) > 1 {
		if run := commands[os.Args[1]]; run != nil {
			if err := run(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		}
	}
	fmt.Fprintln(os.Stderr, "usage: interop node|mailgun|client|urls|vectors [flags]")
	os.Exit(2)
}
