package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// inner adds what only the daemon itself can tell, by its debug socket (net/http/pprof): how many goroutines it has, the
// asking one's among them, and at which size of its heap, in KiB, the collector will begin next. That is one and a half of
// what was alive after its last turn, and says more about a leak than resident memory, which takes minutes to settle.
func inner(v map[string]float64, socket string) error {
	goroutines, err := ask(socket, "goroutine?debug=1")
	heap, herr := ask(socket, "heap?debug=1")
	v["daemon_goroutines"] = number(goroutines, "goroutine profile: total ")
	v["daemon_heap_goal"] = number(heap, "# NextGC = ") / 1024
	if err := errors.Join(err, herr); err != nil {
		return err
	}
	if v["daemon_goroutines"] == 0 || v["daemon_heap_goal"] == 0 {
		return fmt.Errorf("the daemon's profiles tell neither goroutines nor NextGC: %.100s %.100s", goroutines, heap)
	}
	return nil
}

// number is the one that follows a word at the beginning of a line.
func number(text, word string) (n float64) {
	for l := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(l, word); ok {
			if k, _ := fmt.Sscan(rest, &n); k == 1 {
				return n
			}
		}
	}
	return 0
}

func ask(socket, what string) (string, error) {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	r, err := c.Get("http://berth/debug/pprof/" + what)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(r.Body)
	return string(b), errors.Join(err, r.Body.Close())
}
