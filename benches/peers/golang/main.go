// golang/groupcache in the benchmarks. For `hop`, a process is a server or a client with the protocol
// of ../mod.rs. For `fill`, see fill.go. ../install.sh builds it.
package main

import (
	"bufio"
	"context"
	"fmt"
	"math/rand"
	"net"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang/groupcache"
)

const group = "hop"

func main() {
	if len(os.Args) == 2 && os.Args[1] == "server" {
		serve()
		return
	}
	if len(os.Args) == 3 && os.Args[1] == "client" {
		ask(os.Args[2])
		return
	}
	var numbers [3]int
	if len(os.Args) == 5 {
		for n := range numbers {
			number, err := strconv.Atoi(os.Args[2+n])
			check(err)
			numbers[n] = number
		}
		switch os.Args[1] {
		case "fill":
			fill(numbers[0], numbers[1], numbers[2])
			return
		case "one-key":
			oneKey(numbers[0], numbers[1])
			return
		}
	}
	fmt.Fprintln(os.Stderr, "usage: golang-node server | client ADDRESS | fill FILLS THREADS FULL | one-key KEYS THREADS 0")
	os.Exit(2)
}

func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	self := "http://" + listener.Addr().String()
	pool := groupcache.NewHTTPPool(self)
	pool.Set(self)
	groupcache.NewGroup(group, 256<<20, groupcache.GetterFunc(
		func(_ context.Context, key string, dest groupcache.Sink) error {
			var size, number int
			if _, err := fmt.Sscanf(key, "slow-%d-%d", &size, &number); err == nil {
				time.Sleep(50 * time.Millisecond)
			} else if _, err := fmt.Sscanf(key, "key-%d-%d", &size, &number); err != nil {
				return err
			}
			return dest.SetBytes([]byte(strings.Repeat("v", size)))
		}))
	fmt.Println(listener.Addr())
	go func() {
		bufio.NewReader(os.Stdin).ReadString('\n')
		os.Exit(0)
	}()
	check(http.Serve(listener, nil))
}

func ask(address string) {
	transport := &http.Transport{MaxIdleConns: 64, MaxIdleConnsPerHost: 64}
	pool := groupcache.NewHTTPPoolOpts("http://127.0.0.1:1", nil)
	pool.Transport = func(context.Context) http.RoundTripper { return transport }
	pool.Set("http://" + address)
	// With capacity 0 it keeps nothing.
	asked := groupcache.NewGroup(group, 0, groupcache.GetterFunc(
		func(context.Context, string, groupcache.Sink) error {
			return fmt.Errorf("the peer did not answer")
		}))
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var size, keys, threads, millis, slow int
		_, err := fmt.Sscanf(lines.Text(), "run %d %d %d %d %d", &size, &keys, &threads, &millis, &slow)
		check(err)
		run(asked, size, keys, threads, time.Duration(millis)*time.Millisecond, slow)
	}
}

func run(asked *groupcache.Group, size, keys, threads int, length time.Duration, slow int) {
	taken := make([][]int64, threads)
	var done sync.WaitGroup
	begun := time.Now()
	for thread := range taken {
		done.Add(1)
		go func(thread int) {
			defer done.Done()
			random := rand.New(rand.NewSource(begun.UnixNano() + int64(thread)))
			for time.Since(begun) < length {
				key := fmt.Sprintf("key-%d-%d", size, random.Intn(keys))
				isSlow := random.Intn(100) < slow
				if isSlow {
					key = fmt.Sprintf("slow-%d-%d", size, random.Int63())
				}
				var value []byte
				asking := time.Now()
				check(asked.Get(context.Background(), key, groupcache.AllocatingByteSliceSink(&value)))
				if !isSlow {
					taken[thread] = append(taken[thread], time.Since(asking).Nanoseconds())
				}
				if len(value) != size {
					panic("the value has another length")
				}
			}
		}(thread)
	}
	done.Wait()
	seconds := time.Since(begun).Seconds()
	var all []int64
	for _, each := range taken {
		all = append(all, each...)
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	at := func(part float64) float64 { return float64(all[int(part*float64(len(all)-1))]) / 1000 }
	fmt.Printf("%d %f %f %f\n", len(all), seconds, at(0.50), at(0.99))
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
