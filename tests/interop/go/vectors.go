package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/golang/groupcache/consistenthash"
)

// vectors has the owner of each key on each ring. A letter stands for the owner's place among the
// ring's peers: A to Z are 0 to 25, a to z go on. So a ring's owners are one text, a letter a key.
type vectors struct {
	Keys []string `json:"keys"`
	// A ring has the first few of them.
	Peers []string     `json:"peers"`
	Rings []ringVector `json:"rings"`
}

type ringVector struct {
	// golang, mailgun or v3.
	Preset string `json:"preset"`
	// For golang: crc32, or another hash of this program.
	Hash     string `json:"hash"`
	Replicas int    `json:"replicas"`
	Peers    int    `json:"peers"`
	Owners   string `json:"owners"`
}

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// runVectors writes the vectors. Those of golang come from its own package. Those of the others come
// from md5Ring, after a check of md5Ring against known owners.
func runVectors([]string) error {
	if err := checkKnownOwners(); err != nil {
		return err
	}
	hashes := []struct {
		name string
		hash consistenthash.Hash
	}{
		{"crc32", nil},
		{"fnv1a", fnv1a32},
		// The ring has so few places that peers share nearly all points. Then the order of the peers decides.
		{"fnv1a%251", func(data []byte) uint32 { return fnv1a32(data) % 251 }},
	}
	v := vectors{Keys: vectorKeys(), Peers: vectorPeers(50)}
	for _, count := range []int{3, 10, 50} {
		peers := v.Peers[:count]
		for _, replicas := range []int{50, 160} {
			for _, h := range hashes {
				ring := consistenthash.New(replicas, h.hash)
				ring.Add(peers...)
				place := map[string]int{}
				for i, peer := range peers {
					place[peer] = i
				}
				v.add("golang", h.name, replicas, count, func(key string) int { return place[ring.Get(key)] })
			}
			v.add("mailgun", "", replicas, count, newMD5Ring(peers, replicas).owner)
			names, err := hostPorts(peers)
			if err != nil {
				return err
			}
			v.add("v3", "", replicas, count, newMD5Ring(names, replicas).owner)
		}
	}
	// One ring a line, so that a diff is readable.
	out := &strings.Builder{}
	keys, err := json.Marshal(v.Keys)
	if err != nil {
		return err
	}
	peers, err := json.Marshal(v.Peers)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "{\"keys\": %s,\n\"peers\": %s,\n\"rings\": [", keys, peers)
	for i, ring := range v.Rings {
		line, err := json.Marshal(ring)
		if err != nil {
			return err
		}
		if i > 0 {
			out.WriteString(",")
		}
		fmt.Fprintf(out, "\n%s", line)
	}
	out.WriteString("\n]}\n")
	_, err = os.Stdout.WriteString(out.String())
	return err
}

func (v *vectors) add(preset, hash string, replicas int, peers int, owner func(string) int) {
	owners := make([]byte, 0, len(v.Keys))
	for _, key := range v.Keys {
		owners = append(owners, letters[owner(key)])
	}
	v.Rings = append(v.Rings, ringVector{preset, hash, replicas, peers, string(owners)})
}

// vectorPeers are URLs of all shapes that peers have, never two alike.
func vectorPeers(count int) []string {
	peers := []string{"http://cache-1.example:8080", "http://[2001:db8::1]:8008", "http://192.0.2.1:80"}
	for i := len(peers); i < count; i++ {
		peers = append(peers, "http://10.0."+strconv.Itoa(i%5)+"."+strconv.Itoa(i)+":"+strconv.Itoa(8000+i%7))
	}
	return peers
}

func vectorKeys() []string {
	keys := []string{
		"", " ", "/", "+", "%", ".", "..", "//", "a b", "a+b", "a%20b", "../../etc/passwd", "é", "世界",
		"\U0001F980", "\x00", "key\nkey", strings.Repeat("long", 64),
	}
	for i := len(keys); i < 1000; i++ {
		switch i % 4 {
		case 0:
			keys = append(keys, "key-"+strconv.Itoa(i))
		case 1:
			keys = append(keys, strconv.Itoa(i*i*i))
		case 2:
			keys = append(keys, "u/"+strconv.Itoa(i)+"?x")
		default:
			keys = append(keys, strconv.FormatInt(int64(i)*2654435761, 36))
		}
	}
	return keys
}

// checkKnownOwners compares the rings with owners that the programs themselves computed, among
// http://10.0.0.1:8080 to http://10.0.0.3:8080: golang's, mailgun's and v3's.
func checkKnownOwners() error {
	var peers []string
	for i := 1; i <= 3; i++ {
		peers = append(peers, fmt.Sprintf("http://10.0.0.%d:8080", i))
	}
	names, err := hostPorts(peers)
	if err != nil {
		return err
	}
	golang := consistenthash.New(50, nil)
	golang.Add(peers...)
	mailgun, v3 := newMD5Ring(peers, 50), newMD5Ring(names, 50)
	for key, known := range map[string][3]int{
		"foo": {1, 2, 1}, "bar": {2, 2, 1}, "": {1, 2, 1}, "12345": {3, 3, 3},
		"user:42": {1, 1, 3}, "Ben": {2, 3, 1}, "key-0": {3, 2, 1}, "a b/c,d": {1, 3, 3},
	} {
		found := [3]int{0, mailgun.owner(key) + 1, v3.owner(key) + 1}
		for i, peer := range peers {
			if golang.Get(key) == peer {
				found[0] = i + 1
			}
		}
		if found != known {
			return fmt.Errorf("owners of %q are %v, and should be %v", key, found, known)
		}
	}
	return nil
}

func hostPorts(peers []string) ([]string, error) {
	var names []string
	for _, peer := range peers {
		name, err := hostPort(peer)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}
