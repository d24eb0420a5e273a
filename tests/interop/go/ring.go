package main

import (
	"crypto/md5"
	"fmt"
	"hash/fnv"
	"net/url"
	"sort"
	"strconv"
)

// md5Ring is the ring of mailgun/groupcache and of groupcache-go v3, written from its description:
//
//	a node has the points 0 to replicas-1; the place of point i is the 64-bit FNV-1 of the lower-case
//	hexadecimal MD5 of the decimal i followed by the node's name; a key's place is the 64-bit FNV-1
//	of the key; a key belongs to the first point at or after its place, and past the last point to
//	the first; of equal points the one added last counts.
//
// The name of a node is its URL for mailgun, and the URL's host and port for v3.
type md5Ring struct {
	places []uint64
	owners map[uint64]int
}

func newMD5Ring(names []string, replicas int) *md5Ring {
	ring := &md5Ring{owners: map[uint64]int{}}
	for owner, name := range names {
		for i := 0; i < replicas; i++ {
			digest := md5.Sum([]byte(strconv.Itoa(i) + name))
			place := fnv1(fmt.Sprintf("%x", digest))
			ring.places = append(ring.places, place)
			ring.owners[place] = owner
		}
	}
	sort.Slice(ring.places, func(i, j int) bool { return ring.places[i] < ring.places[j] })
	return ring
}

func (r *md5Ring) owner(key string) int {
	place := fnv1(key)
	at := sort.Search(len(r.places), func(i int) bool { return r.places[i] >= place })
	return r.owners[r.places[at%len(r.places)]]
}

func fnv1(text string) uint64 {
	h := fnv.New64()
	h.Write([]byte(text))
	return h.Sum64()
}

func hostPort(peer string) (string, error) {
	u, err := url.Parse(peer)
	if err != nil {
		return "", err
	}
	return u.Host, nil
}
