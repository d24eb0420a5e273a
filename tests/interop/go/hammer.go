package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"sort"
	"sync"
	"time"

	"github.com/golang/groupcache"
)

// The keys to get, the goroutines that get them, and the time.
type hammering struct {
	Group   string   `json:"group"`
	Keys    []string `json:"keys"`
	Threads int      `json:"threads"`
	Seconds float64  `json:"seconds"`
}

type hammered struct {
	Gets       int    `json:"gets"`
	Errors     int    `json:"errors"`
	Wrong      int    `json:"wrong"`
	FirstError string `json:"first_error"`
	P50Micros  int64  `json:"p50_us"`
	P99Micros  int64  `json:"p99_us"`
	MaxMicros  int64  `json:"max_us"`
}

// hammer gets keys of its own group, as the program around a cache would, and checks every byte.
func (n *node) hammer(w http.ResponseWriter, r *http.Request) {
	var todo hammering
	if err := json.NewDecoder(r.Body).Decode(&todo); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	group := groupcache.GetGroup(todo.Group)
	until := time.Now().Add(time.Duration(todo.Seconds * float64(time.Second)))
	var (
		mu    sync.Mutex
		sum   hammered
		times []int64
		wait  sync.WaitGroup
	)
	for thread := 0; thread < todo.Threads; thread++ {
		wait.Add(1)
		go func(thread int) {
			defer wait.Done()
			var own hammered
			var took []int64
			for i := thread * 7919; ; i++ {
				begun := time.Now()
				if begun.After(until) {
					break
				}
				key := todo.Keys[i%len(todo.Keys)]
				var value []byte
				err := group.Get(context.Background(), key, groupcache.AllocatingByteSliceSink(&value))
				took = append(took, time.Since(begun).Microseconds())
				own.Gets++
				if err != nil {
					own.Errors++
					own.FirstError = err.Error()
				} else if !bytes.Equal(value, valueOf(key)) {
					own.Wrong++
				}
			}
			mu.Lock()
			defer mu.Unlock()
			sum.Gets += own.Gets
			sum.Errors += own.Errors
			sum.Wrong += own.Wrong
			if own.FirstError != "" {
				sum.FirstError = own.FirstError
			}
			times = append(times, took...)
		}(thread)
	}
	wait.Wait()
	if len(times) > 0 {
		sort.Slice(times, func(i, j int) bool { return times[i] < times[j] })
		sum.P50Micros = times[len(times)/2]
		sum.P99Micros = times[len(times)*99/100]
		sum.MaxMicros = times[len(times)-1]
	}
	answer(w, sum)
}
