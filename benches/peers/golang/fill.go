// The measurements of `cargo bench --bench fill` for golang/groupcache, in a process of its own. The
// figures are described in benches/fill/main.rs and one_key.rs.
package main

import (
	"context"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang/groupcache"
)

const valueSize = 100

// Prints the nanoseconds of a fill, when the threads share all fills. The cache has room for `full`
// entries and is full; with 0 it is empty and has room for all.
func fill(fills, threads, full int) {
	value := make([]byte, valueSize)
	room := 2 * fills
	if full > 0 {
		room = full
	}
	group := groupcache.NewGroup("fill", int64(room)*(16+valueSize), groupcache.GetterFunc(
		func(_ context.Context, _ string, dest groupcache.Sink) error {
			return dest.SetBytes(value)
		}))
	getAll := func(keys []string) {
		for _, key := range keys {
			var view groupcache.ByteView
			check(group.Get(context.Background(), key, groupcache.ByteViewSink(&view)))
		}
	}
	getAll(manyKeys("o", 2*full))
	keys := manyKeys("k", fills)
	var done sync.WaitGroup
	begun := time.Now()
	for part := fills / threads; len(keys) >= part; keys = keys[part:] {
		done.Add(1)
		go func(keys []string) {
			defer done.Done()
			getAll(keys)
		}(keys[:part])
	}
	done.Wait()
	fmt.Println(float64(time.Since(begun).Nanoseconds()) / float64(fills))
}

// Prints the getter's calls for each key, and the median of the microseconds from the getter's end
// until the other callers have the value.
func oneKey(keys, threads int) {
	begun := time.Now()
	var ended, calls int64
	type led struct{}
	group := groupcache.NewGroup("one-key", 1<<20, groupcache.GetterFunc(
		func(ctx context.Context, _ string, dest groupcache.Sink) error {
			time.Sleep(time.Millisecond)
			atomic.AddInt64(&calls, 1)
			*ctx.Value(led{}).(*bool) = true
			atomic.StoreInt64(&ended, time.Since(begun).Nanoseconds())
			return dest.SetBytes(make([]byte, valueSize))
		}))
	var lock sync.Mutex
	var late []int64
	for _, key := range manyKeys("s", keys) {
		var done sync.WaitGroup
		start := make(chan struct{})
		for thread := 0; thread < threads; thread++ {
			done.Add(1)
			go func(key string) {
				defer done.Done()
				<-start
				var hasLed bool
				ctx := context.WithValue(context.Background(), led{}, &hasLed)
				var view groupcache.ByteView
				asked := time.Since(begun).Nanoseconds()
				check(group.Get(ctx, key, groupcache.ByteViewSink(&view)))
				had := time.Since(begun).Nanoseconds()
				if end := atomic.LoadInt64(&ended); !hasLed && asked < end {
					lock.Lock()
					defer lock.Unlock()
					late = append(late, had-end)
				}
			}(key)
		}
		close(start)
		done.Wait()
	}
	sort.Slice(late, func(i, j int) bool { return late[i] < late[j] })
	median := float64(late[len(late)/2]) / 1000
	fmt.Println(float64(calls)/float64(keys), median)
}

func manyKeys(kind string, count int) []string {
	keys := make([]string, count)
	for n := range keys {
		keys[n] = fmt.Sprintf("%s%015d", kind, n)
	}
	return keys
}
