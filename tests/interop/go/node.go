package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"io/ioutil"
	"log"
	"net"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang/groupcache"
	"github.com/golang/groupcache/consistenthash"
)

// node is a groupcache node and the HTTP front by which the tests control it.
type node struct {
	self   string
	pool   *groupcache.HTTPPool
	source *source

	mu sync.Mutex
	// The number of peers' requests under way.
	serving int
	// Closed and replaced when serving changes.
	changed chan struct{}
}

// runNode serves until its standard input ends, so that no node outlives the test that started it.
func runNode(args []string) error {
	flags := flag.NewFlagSet("node", flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:0", "the address to listen on")
	self := flags.String("self", "", "the URL of this node; by default that of the address")
	peers := flags.String("peers", "", "the URLs of all nodes, with commas; or set them at /peers")
	replicas := flags.Int("replicas", 0, "points of a node on the ring")
	hash := flags.String("hash", "", "the ring's hash: crc32 or fnv1a")
	cache := flags.Int64("cache", 256<<20, "bytes of the group `values`")
	delay := flags.Duration("delay", 0, "the time that a load takes")
	bare := flags.Bool("bare", false, "serve peers without http.ServeMux before the pool")
	idle := flags.Int("idle", 0, "idle connections to keep for each peer; Go's default is 2")
	from := flags.String("from", "", "the address to ask peers from")
	verbose := flags.Bool("verbose", false, "log each load")
	flags.Parse(args)

	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	if *self == "" {
		*self = "http://" + listener.Addr().String()
	}
	hashes := map[string]consistenthash.Hash{"": nil, "crc32": nil, "fnv1a": fnv1a32}
	hashFn, known := hashes[*hash]
	if !known {
		return fmt.Errorf("no hash is called %q", *hash)
	}
	n := &node{
		self: *self,
		pool: groupcache.NewHTTPPoolOpts(*self, &groupcache.HTTPPoolOptions{
			Replicas: *replicas,
			HashFn:   hashFn,
		}),
		changed: make(chan struct{}),
		source:  &source{delay: *delay, loads: map[string]int{}, log: func(string) {}},
	}
	if *verbose {
		n.source.log = func(key string) { log.Printf("load %q", key) }
	}
	if *idle > 0 || *from != "" {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxIdleConnsPerHost = *idle
		if *from != "" {
			dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(*from)}}
			transport.DialContext = dialer.DialContext
		}
		n.pool.Transport = func(context.Context) http.RoundTripper { return transport }
	}
	if *peers != "" {
		n.pool.Set(strings.Split(*peers, ",")...)
	}
	groupcache.NewGroup("values", *cache, n.source)
	groupcache.NewGroup("uncached", 0, n.source)
	groupcache.NewGroup("only-go", *cache, n.source)
	groupcache.NewGroup("expiring", *cache, n.source)

	go http.Serve(listener, n.handler(*bare))
	fmt.Println("listening", *self)
	io.Copy(ioutil.Discard, os.Stdin)
	return nil
}

func (n *node) handler(bare bool) http.Handler {
	peers := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.count(1)
		defer n.count(-1)
		n.pool.ServeHTTP(w, r)
	})
	mux := http.NewServeMux()
	mux.Handle("/_groupcache/", peers)
	mux.HandleFunc("/get", n.get)
	mux.HandleFunc("/stats", n.stats)
	mux.HandleFunc("/loads", n.loads)
	mux.HandleFunc("/peers", n.setPeers)
	mux.HandleFunc("/owners", n.owners)
	mux.HandleFunc("/hammer", n.hammer)
	mux.HandleFunc("/wait", n.wait)
	if !bare {
		return mux
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/_groupcache/") {
			peers.ServeHTTP(w, r)
		} else {
			mux.ServeHTTP(w, r)
		}
	})
}

// get answers GET /get?key=KEY, or POST /get with the key as its body; and group=, timeout_ms=.
func (n *node) get(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	key := query.Get("key")
	if r.Method == http.MethodPost {
		body, err := ioutil.ReadAll(r.Body)
		if err != nil {
			fail(w, http.StatusBadRequest, err)
			return
		}
		key = string(body)
	}
	name := query.Get("group")
	if name == "" {
		name = "values"
	}
	group := groupcache.GetGroup(name)
	if group == nil {
		fail(w, http.StatusNotFound, fmt.Errorf("no group is called %q", name))
		return
	}
	ctx := r.Context()
	if ms, err := strconv.Atoi(query.Get("timeout_ms")); err == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(ms)*time.Millisecond)
		defer cancel()
	}
	var value []byte
	if err := group.Get(ctx, key, groupcache.AllocatingByteSliceSink(&value)); err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(value)
}

func (n *node) stats(w http.ResponseWriter, r *http.Request) {
	stats := map[string]int64{}
	for _, name := range []string{"values", "uncached", "only-go", "expiring"} {
		s := &groupcache.GetGroup(name).Stats
		stats["gets"] += s.Gets.Get()
		stats["cache_hits"] += s.CacheHits.Get()
		stats["peer_loads"] += s.PeerLoads.Get()
		stats["peer_errors"] += s.PeerErrors.Get()
		stats["local_loads"] += s.LocalLoads.Get()
		stats["local_load_errs"] += s.LocalLoadErrs.Get()
		stats["server_requests"] += s.ServerRequests.Get()
	}
	answer(w, stats)
}

func (n *node) count(delta int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.serving += delta
	close(n.changed)
	n.changed = make(chan struct{})
}

// wait answers when serving= requests of peers are under way, or after timeout_ms=.
func (n *node) wait(w http.ResponseWriter, r *http.Request) {
	wanted, _ := strconv.Atoi(r.URL.Query().Get("serving"))
	ms, _ := strconv.Atoi(r.URL.Query().Get("timeout_ms"))
	late := time.After(time.Duration(ms) * time.Millisecond)
	for {
		n.mu.Lock()
		serving, changed := n.serving, n.changed
		n.mu.Unlock()
		if serving == wanted {
			answer(w, serving)
			return
		}
		select {
		case <-changed:
		case <-late:
			fail(w, http.StatusGatewayTimeout, fmt.Errorf("%d requests are being answered", serving))
			return
		}
	}
}

func (n *node) loads(w http.ResponseWriter, r *http.Request) {
	answer(w, n.source.counts())
}

func (n *node) setPeers(w http.ResponseWriter, r *http.Request) {
	var urls []string
	if err := json.NewDecoder(r.Body).Decode(&urls); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	n.pool.Set(urls...)
	answer(w, len(urls))
}

// owners answers with the node that the pool picks for each key in the body. It asks the pool itself,
// not a ring that is built like the pool's.
func (n *node) owners(w http.ResponseWriter, r *http.Request) {
	var keys []string
	if err := json.NewDecoder(r.Body).Decode(&keys); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	owners := make([]string, 0, len(keys))
	for _, key := range keys {
		owner := n.self
		if peer, remote := n.pool.PickPeer(key); remote {
			base := reflect.ValueOf(peer).Elem().FieldByName("baseURL").String()
			owner = strings.TrimSuffix(base, "/_groupcache/")
		}
		owners = append(owners, owner)
	}
	answer(w, owners)
}

func answer(w http.ResponseWriter, value interface{}) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(value)
}

func fail(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
}

// fnv1a32 is a hash for the ring that is not the default.
func fnv1a32(data []byte) uint32 {
	h := fnv.New32a()
	h.Write(data)
	return h.Sum32()
}
