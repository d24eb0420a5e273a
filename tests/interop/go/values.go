package main

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang/groupcache"
)

// A source makes the values of both programs' getters. A value is a function of the key alone, so that
// a caller can detect a wrong byte, wherever the value was loaded.
//
//	error:…     fails
//	missing:…   fails; in a larder node as "not found"
//	slow:MS:…   takes MS milliseconds
//	size:N:…    N bytes, of which byte i is i modulo 251
//
// The value of any other key, and of a slow key, is value-of-KEY.
type source struct {
	delay time.Duration
	log   func(key string)

	mu    sync.Mutex
	loads map[string]int
}

func (s *source) Get(ctx context.Context, key string, dest groupcache.Sink) error {
	s.mu.Lock()
	s.loads[key]++
	s.mu.Unlock()
	s.log(key)

	delay := s.delay
	kind, rest := cut(key)
	if kind == "slow" {
		number, _ := cut(rest)
		ms, err := strconv.Atoi(number)
		if err != nil {
			return err
		}
		delay = time.Duration(ms) * time.Millisecond
	}
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return ctx.Err()
	}
	if kind == "error" || kind == "missing" {
		return errors.New("no luck with " + key)
	}
	return dest.SetBytes(valueOf(key))
}

// counts returns the number of loads of each key.
func (s *source) counts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := make(map[string]int, len(s.loads))
	for key, n := range s.loads {
		counts[key] = n
	}
	return counts
}

func valueOf(key string) []byte {
	if kind, rest := cut(key); kind == "size" {
		number, _ := cut(rest)
		if size, err := strconv.Atoi(number); err == nil {
			value := make([]byte, size)
			for i := range value {
				value[i] = byte(i % 251)
			}
			return value
		}
	}
	return []byte("value-of-" + key)
}

// cut splits at the first colon. Without one, the first part is the whole.
func cut(s string) (before, after string) {
	parts := strings.SplitN(s, ":", 2)
	if len(parts) == 1 {
		return s, ""
	}
	return parts[0], parts[1]
}
