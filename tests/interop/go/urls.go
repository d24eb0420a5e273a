package main

import (
	"bufio"
	"encoding/binary"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
)

const basePath = "/_groupcache/"

// runURLs answers questions about paths on its standard input until that ends. A question is a byte
// and texts. Each text follows its length, 32 bits, little-endian. An answer is texts only.
//
//	'r' target       groupcache's server's reading of a request with this target: "key" and group
//	                 and key, or one of "refused" (net/http answers 400), "outside", "bad"
//	's' group key    the target of the request that groupcache's client sends
func runURLs([]string) error {
	in, out := bufio.NewReaderSize(os.Stdin, 1<<16), bufio.NewWriterSize(os.Stdout, 1<<16)
	defer out.Flush()
	for {
		question, err := in.ReadByte()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		first, err := readText(in)
		if err != nil {
			return err
		}
		if question == 'r' {
			for _, text := range readTarget(first) {
				writeText(out, text)
			}
		} else {
			key, err := readText(in)
			if err != nil {
				return err
			}
			writeText(out, sentTarget(first, key))
		}
		// The client sends many questions ahead.
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return err
			}
		}
	}
}

// readTarget parses a target like net/http, then like groupcache's handler.
func readTarget(target string) []string {
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return []string{"refused"}
	}
	if !strings.HasPrefix(u.Path, basePath) {
		return []string{"outside"}
	}
	parts := strings.SplitN(u.Path[len(basePath):], "/", 2)
	if len(parts) != 2 {
		return []string{"bad"}
	}
	return []string{"key", parts[0], parts[1]}
}

func sentTarget(group, key string) string {
	u := "http://peer" + basePath + url.QueryEscape(group) + "/" + url.QueryEscape(key)
	request, err := http.NewRequest("GET", u, nil)
	if err != nil {
		return "cannot be sent: " + err.Error()
	}
	return request.URL.RequestURI()
}

func readText(in io.Reader) (string, error) {
	var length uint32
	if err := binary.Read(in, binary.LittleEndian, &length); err != nil {
		return "", err
	}
	text := make([]byte, length)
	_, err := io.ReadFull(in, text)
	return string(text), err
}

func writeText(out io.Writer, text string) {
	binary.Write(out, binary.LittleEndian, uint32(len(text)))
	io.WriteString(out, text)
}
