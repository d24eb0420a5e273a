package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"io/ioutil"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "github.com/golang/groupcache/groupcachepb"
	"github.com/golang/protobuf/proto"
)

// server is the larder node that is tested.
type server struct {
	url string
	// A second node, which closes connections after a millisecond without a request.
	impatient string
}

// A session is a client and the connections that it made.
type session struct {
	http.Client
	dials int64
}

// runClient sends a larder node requests of all kinds that net/http has, and prints a line for each.
// After any answer of the server, the next request of the same client must succeed.
func runClient(args []string) error {
	flags := flag.NewFlagSet("client", flag.ExitOnError)
	var s server
	flags.StringVar(&s.url, "url", "", "a larder node")
	flags.StringVar(&s.impatient, "impatient", "", "a larder node that closes idle connections at once")
	flags.Parse(args)
	failed := 0
	for _, check := range []struct {
		name string
		run  func(server) (string, error)
	}{
		{"1000 requests on one connection", keepAlive},
		{"32 goroutines keep 32 connections", parallel},
		{"an answer to Accept-Encoding: gzip is not encoded", acceptsGzip},
		{"HEAD has no body and keeps the connection", head},
		{"Expect: 100-continue", expectContinue},
		{"a chunked request is refused and ends well", chunked},
		{"an answer of 8 MiB", large},
		{"an answer that is not read to its end", abandoned},
		{"a request that is given up", cancelled},
		{"Connection: close", closing},
		{"a request through a proxy, in absolute form", proxied},
		{"a head of 60 fields", manyFields},
		{"a head over the limit", tooLong},
		{"connections closed while they are idle", idleRace},
	} {
		found, err := check.run(s)
		if err != nil {
			failed++
			fmt.Printf("FAILED %s: %v\n", check.name, err)
			continue
		}
		fmt.Printf("ok %s: %s\n", check.name, found)
	}
	if failed > 0 {
		return fmt.Errorf("%d failed", failed)
	}
	return nil
}

func keepAlive(s server) (string, error) {
	c := newSession(nil)
	for i := 0; i < 1000; i++ {
		if err := c.getKey(s.url, fmt.Sprintf("alive-%d", i)); err != nil {
			return "", err
		}
	}
	return c.connections(1)
}

func parallel(s server) (string, error) {
	c := newSession(func(t *http.Transport) { t.MaxIdleConnsPerHost = 32 })
	err := in32Goroutines(func(i int) error { return c.getKey(s.url, fmt.Sprintf("alive-%d", i)) })
	if err != nil {
		return "", err
	}
	// Now and then, a goroutine dials while another one returns its connection.
	if dials := atomic.LoadInt64(&c.dials); dials > 64 {
		return "", fmt.Errorf("%d connections were made", dials)
	}
	return fmt.Sprintf("16000 requests, %d connections", c.dials), nil
}

func acceptsGzip(s server) (string, error) {
	c := newSession(nil)
	sent := ""
	trace := &httptrace.ClientTrace{WroteHeaderField: func(name string, value []string) {
		if name == "Accept-Encoding" {
			sent = strings.Join(value, ",")
		}
	}}
	request := newRequest("GET", keyURL(s.url, "size:100000:gzip"), nil)
	request = request.WithContext(httptrace.WithClientTrace(context.Background(), trace))
	response, body, err := c.ask(request)
	if err != nil {
		return "", err
	}
	if sent != "gzip" {
		return "", fmt.Errorf("the client sent Accept-Encoding: %q", sent)
	}
	if response.Uncompressed || response.Header.Get("Content-Encoding") != "" {
		return "", fmt.Errorf("the answer is encoded: %v", response.Header)
	}
	if err := checkBody("size:100000:gzip", body); err != nil {
		return "", err
	}
	return c.still(s, 1)
}

func head(s server) (string, error) {
	c := newSession(nil)
	response, body, err := c.ask(newRequest("HEAD", keyURL(s.url, "alive-0"), nil))
	if err != nil {
		return "", err
	}
	if response.StatusCode != 405 || response.Header.Get("Allow") != "GET, PUT, DELETE" || len(body) != 0 {
		return "", fmt.Errorf("%s, %d bytes", response.Status, len(body))
	}
	return c.still(s, 1)
}

func expectContinue(s server) (string, error) {
	c := newSession(func(t *http.Transport) { t.ExpectContinueTimeout = time.Minute })
	var continued int64
	trace := &httptrace.ClientTrace{Got100Continue: func() { atomic.AddInt64(&continued, 1) }}
	request := newRequest("POST", s.url+"/get", strings.NewReader("alive-0"))
	request.Header.Set("Expect", "100-continue")
	request = request.WithContext(httptrace.WithClientTrace(context.Background(), trace))
	response, body, err := c.ask(request)
	if err != nil {
		return "", err
	}
	if response.StatusCode != 200 || string(body) != "value-of-alive-0" {
		return "", fmt.Errorf("%s: %s", response.Status, body)
	}
	if continued != 1 {
		return "", fmt.Errorf("%d times 100 Continue", continued)
	}
	return c.still(s, 1)
}

func chunked(s server) (string, error) {
	c := newSession(nil)
	// A body of unknown length is sent in chunks.
	request := newRequest("POST", s.url+"/get", io.MultiReader(strings.NewReader("alive-0")))
	response, _, err := c.ask(request)
	if err != nil {
		return "", err
	}
	if response.StatusCode != 411 {
		return "", fmt.Errorf("%s", response.Status)
	}
	return c.still(s, 2)
}

func large(s server) (string, error) {
	c := newSession(nil)
	key := "size:8388608:large"
	for i := 0; i < 2; i++ {
		if err := c.getKey(s.url, key); err != nil {
			return "", err
		}
	}
	return c.still(s, 1)
}

func abandoned(s server) (string, error) {
	c := newSession(nil)
	for i := 0; i < 20; i++ {
		response, err := c.Do(newRequest("GET", keyURL(s.url, "size:8388608:large"), nil))
		if err != nil {
			return "", err
		}
		if _, err := io.ReadFull(response.Body, make([]byte, 100)); err != nil {
			return "", err
		}
		response.Body.Close()
	}
	return c.still(s, 21)
}

func cancelled(s server) (string, error) {
	c := newSession(nil)
	for i := 0; i < 20; i++ {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		request := newRequest("GET", keyURL(s.url, fmt.Sprintf("slow:200:given-up-%d", i)), nil)
		_, _, err := c.ask(request.WithContext(ctx))
		cancel()
		if err == nil {
			return "", fmt.Errorf("a load of 200 ms was answered within 20 ms")
		}
	}
	return c.still(s, 21)
}

func closing(s server) (string, error) {
	c := newSession(nil)
	for i := 0; i < 20; i++ {
		request := newRequest("GET", keyURL(s.url, "alive-0"), nil)
		request.Close = true
		response, body, err := c.ask(request)
		if err != nil {
			return "", err
		}
		if !response.Close {
			return "", fmt.Errorf("the answer does not say that the connection ends")
		}
		if err := checkBody("alive-0", body); err != nil {
			return "", err
		}
	}
	return c.still(s, 21)
}

func proxied(s server) (string, error) {
	proxy, err := url.Parse(s.url)
	if err != nil {
		return "", err
	}
	c := newSession(func(t *http.Transport) { t.Proxy = http.ProxyURL(proxy) })
	if err := c.getKey("http://cache.example:8080", "a/b c"); err != nil {
		return "", err
	}
	return c.connections(1)
}

func manyFields(s server) (string, error) {
	c := newSession(nil)
	request := newRequest("GET", keyURL(s.url, "alive-0"), nil)
	// With Host, User-Agent and Accept-Encoding these are 60.
	for i := 0; i < 57; i++ {
		request.Header.Set(fmt.Sprintf("X-Field-%d", i), "some value")
	}
	response, body, err := c.ask(request)
	if err != nil {
		return "", err
	}
	if response.StatusCode != 200 {
		return "", fmt.Errorf("%s", response.Status)
	}
	if err := checkBody("alive-0", body); err != nil {
		return "", err
	}
	return c.still(s, 1)
}

func tooLong(s server) (string, error) {
	c := newSession(nil)
	for i := 0; i < 20; i++ {
		response, _, err := c.ask(newRequest("GET", keyURL(s.url, strings.Repeat("x", 40000)), nil))
		if err != nil {
			return "", err
		}
		if response.StatusCode != 431 {
			return "", fmt.Errorf("%s", response.Status)
		}
	}
	return c.still(s, 21)
}

// idleRace sends requests at the moment when the server closes the idle connection. net/http then
// sends them again on another connection.
func idleRace(s server) (string, error) {
	c := newSession(func(t *http.Transport) { t.MaxIdleConnsPerHost = 32 })
	// The number of connections that are idle for long enough depends on the machine's speed.
	for round := 0; round < 10 && c.dials < 500; round++ {
		err := in32Goroutines(func(i int) error {
			if i%4 == 0 {
				time.Sleep(time.Duration(rand.Intn(3000)) * time.Microsecond)
			}
			return c.getKey(s.impatient, fmt.Sprintf("alive-%d", i%10))
		})
		if err != nil {
			return "", err
		}
	}
	if c.dials < 500 {
		return "", fmt.Errorf("only %d connections: none was closed", c.dials)
	}
	return fmt.Sprintf("%d connections", c.dials), nil
}

func newSession(options func(*http.Transport)) *session {
	c := &session{}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		atomic.AddInt64(&c.dials, 1)
		return dialer.DialContext(ctx, network, address)
	}
	transport.Proxy = nil
	if options != nil {
		options(transport)
	}
	c.Transport = transport
	c.Timeout = 20 * time.Second
	return c
}

// ask sends a request and reads the answer to its end.
func (c *session) ask(request *http.Request) (*http.Response, []byte, error) {
	response, err := c.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	body, err := ioutil.ReadAll(response.Body)
	return response, body, err
}

// getKey sends the request of groupcache's client and checks the value.
func (c *session) getKey(base, key string) error {
	response, body, err := c.ask(newRequest("GET", keyURL(base, key), nil))
	if err != nil {
		return err
	}
	if response.StatusCode != 200 {
		return fmt.Errorf("%s: %s", response.Status, body)
	}
	return checkBody(key, body)
}

// still checks that the client can go on, and that it took no more connections than it had to.
func (c *session) still(s server, connections int64) (string, error) {
	if err := c.getKey(s.url, "alive-0"); err != nil {
		return "", err
	}
	return c.connections(connections)
}

func (c *session) connections(wanted int64) (string, error) {
	if dials := atomic.LoadInt64(&c.dials); dials > wanted {
		return "", fmt.Errorf("%d connections were made, not %d", dials, wanted)
	}
	return fmt.Sprintf("connections: %d", c.dials), nil
}

func in32Goroutines(ask func(i int) error) error {
	errs := make(chan error, 32)
	var wait sync.WaitGroup
	for thread := 0; thread < 32; thread++ {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for i := 0; i < 500; i++ {
				if err := ask(i); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	wait.Wait()
	close(errs)
	return <-errs
}

func newRequest(method, target string, body io.Reader) *http.Request {
	request, err := http.NewRequest(method, target, body)
	if err != nil {
		panic(err)
	}
	return request
}

func keyURL(base, key string) string {
	return base + basePath + "values/" + url.QueryEscape(key)
}

func checkBody(key string, body []byte) error {
	var message pb.GetResponse
	if err := proto.Unmarshal(body, &message); err != nil {
		return err
	}
	if !bytes.Equal(message.Value, valueOf(key)) {
		return fmt.Errorf("the value of %q is wrong: %d bytes", key, len(message.Value))
	}
	return nil
}
