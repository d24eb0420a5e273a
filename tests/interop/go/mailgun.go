package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/ioutil"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
)

// mailgun is a node of the protocol of mailgun/groupcache, written from its description, with the front
// of the other nodes. It keeps every value that it gets, in one cache without a limit:
//
//	GET     answers with a GetResponse; a node that does not own the key asks the owner
//	DELETE  removes the key from this node, and answers 200 without a body
//	PUT     with a SetRequest sets the key at this node, and answers 200 without a body
//
// Its Remove tells the owner first, drops its own value, and then tells the others. Its Set tells the
// owner alone.
type mailgun struct {
	self string

	mu    sync.Mutex
	peers []string
	ring  *md5Ring
	cache map[string][]byte
}

const (
	mailgunBase     = "/_groupcache/"
	mailgunReplicas = 50
)

// runMailgun serves until its standard input ends.
func runMailgun(args []string) error {
	flags := flag.NewFlagSet("mailgun", flag.ExitOnError)
	flags.Parse(args)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	n := &mailgun{
		self:  "http://" + listener.Addr().String(),
		cache: map[string][]byte{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc(mailgunBase, n.serve)
	front := func(path string, do func(query url.Values, body []byte) (interface{}, error)) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			body, err := ioutil.ReadAll(r.Body)
			var answer interface{}
			if err == nil {
				answer, err = do(r.URL.Query(), body)
			}
			if err != nil {
				fail(w, http.StatusInternalServerError, err)
				return
			}
			if raw, isRaw := answer.([]byte); isRaw {
				w.Write(raw)
				return
			}
			json.NewEncoder(w).Encode(answer)
		})
	}
	front("/get", func(_ url.Values, key []byte) (interface{}, error) { return n.get(string(key)) })
	front("/remove", func(_ url.Values, key []byte) (interface{}, error) { return true, n.remove(string(key)) })
	front("/set", func(query url.Values, value []byte) (interface{}, error) {
		return true, n.set(query.Get("key"), value)
	})
	front("/peers", func(_ url.Values, body []byte) (interface{}, error) { return true, n.setPeers(body) })
	front("/owners", func(_ url.Values, body []byte) (interface{}, error) {
		var keys []string
		err := json.Unmarshal(body, &keys)
		owners := []string{}
		for _, key := range keys {
			owners = append(owners, n.owner(key))
		}
		return owners, err
	})
	go http.Serve(listener, mux)
	fmt.Println("listening", n.self)
	io.Copy(ioutil.Discard, os.Stdin)
	return nil
}

func (n *mailgun) setPeers(body []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := json.Unmarshal(body, &n.peers); err != nil {
		return err
	}
	n.ring = newMD5Ring(n.peers, mailgunReplicas)
	return nil
}

func (n *mailgun) owner(key string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peers[n.ring.owner(key)]
}

func (n *mailgun) put(key string, value []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cache[key] = value
}

func (n *mailgun) drop(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cache, key)
}

func (n *mailgun) get(key string) ([]byte, error) {
	n.mu.Lock()
	value, found := n.cache[key]
	n.mu.Unlock()
	if found {
		return value, nil
	}
	owner := n.owner(key)
	if owner == n.self {
		value = valueOf(key)
	} else {
		body, err := n.send("GET", owner, key, nil)
		if err != nil {
			return nil, err
		}
		fields, err := readFields(body)
		if err != nil {
			return nil, err
		}
		value = fields[1]
	}
	n.put(key, value)
	return value, nil
}

func (n *mailgun) remove(key string) error {
	owner := n.owner(key)
	if owner != n.self {
		if _, err := n.send("DELETE", owner, key, nil); err != nil {
			return err
		}
	}
	n.drop(key)
	for _, peer := range n.peers {
		if peer == owner || peer == n.self {
			continue
		}
		if _, err := n.send("DELETE", peer, key, nil); err != nil {
			return err
		}
	}
	return nil
}

func (n *mailgun) set(key string, value []byte) error {
	owner := n.owner(key)
	if owner == n.self {
		n.put(key, value)
		return nil
	}
	body := appendField(nil, 1, []byte("values"))
	body = appendField(body, 2, []byte(key))
	body = appendField(body, 3, value)
	_, err := n.send("PUT", owner, key, body)
	return err
}

// send sends a request for a key to a peer. The key is escaped as Go's client does it.
func (n *mailgun) send(method, peer, key string, body []byte) ([]byte, error) {
	target := peer + mailgunBase + "values/" + url.QueryEscape(key)
	request, err := http.NewRequest(method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := ioutil.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, target, response.Status, answer)
	}
	return answer, err
}

func (n *mailgun) serve(w http.ResponseWriter, r *http.Request) {
	parts := strings.SplitN(r.URL.Path[len(mailgunBase):], "/", 2)
	if len(parts) != 2 {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	if parts[0] != "values" {
		http.Error(w, "no such group: "+parts[0], http.StatusNotFound)
		return
	}
	key := parts[1]
	switch r.Method {
	case http.MethodDelete:
		n.drop(key)
		return
	case http.MethodPut:
		body, err := ioutil.ReadAll(r.Body)
		if err == nil {
			var fields map[uint64][]byte
			if fields, err = readFields(body); err == nil {
				n.put(string(fields[2]), fields[3])
				return
			}
		}
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	value, err := n.get(key)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	w.Write(appendField(nil, 1, value))
}

// appendField appends a protobuf field of bytes.
func appendField(message []byte, number uint64, value []byte) []byte {
	var varint [binary.MaxVarintLen64]byte
	message = append(message, varint[:binary.PutUvarint(varint[:], number<<3|2)]...)
	message = append(message, varint[:binary.PutUvarint(varint[:], uint64(len(value)))]...)
	return append(message, value...)
}

// readFields returns the fields of bytes of a protobuf message, and skips the numbers.
func readFields(message []byte) (map[uint64][]byte, error) {
	fields := map[uint64][]byte{}
	short := errors.New("a short message")
	for len(message) > 0 {
		tag, size := binary.Uvarint(message)
		if size <= 0 {
			return nil, short
		}
		message = message[size:]
		length := uint64(0)
		switch tag & 7 {
		case 0:
			_, size := binary.Uvarint(message)
			if size <= 0 {
				return nil, short
			}
			length = uint64(size)
		case 1:
			length = 8
		case 5:
			length = 4
		case 2:
			var size int
			if length, size = binary.Uvarint(message); size <= 0 {
				return nil, short
			}
			message = message[size:]
		}
		if length > uint64(len(message)) {
			return nil, short
		}
		if tag&7 == 2 {
			fields[tag>>3] = message[:length]
		}
		message = message[length:]
	}
	return fields, nil
}
