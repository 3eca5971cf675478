package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// chatter says a line ten times a second for ever.
const chatter = "trap 'exit 9' TERM; i=0; while :; do echo line $i; i=$((i+1)); usleep 100000; done"

// rotation is how often a resident's log is rotated, as a kubelet does with a full one.
const rotation = 2 * time.Minute

// household are the pods that live through the whole soak, and who reads from them or asks after them.
type household struct {
	residents []*resident
	stop      context.CancelFunc
	wg        sync.WaitGroup
}

// resident is a pod that must not notice anything.
type resident struct {
	*pod
	id      string
	process string // its first process, by pid and start
	follow  int    // log lines read
}

// settle starts a resident of each sort with its reader, and the reader of a streamed exec.
func (n *node) settle(ctx context.Context) (*household, error) {
	bound, done := context.WithTimeout(ctx, time.Minute)
	defer done()
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	h := &household{stop: stop}
	for _, s := range []sort{plain, host, mapped} {
		r := &resident{pod: n.pod("resident-"+s.name, s)}
		h.residents = append(h.residents, r)
		if err := r.run(bound); err != nil {
			return h, err
		}
		var err error
		if r.id, err = r.create(bound, "main", chatter); err != nil {
			return h, err
		}
		if err := r.n.client.StartContainer(bound, r.id); err != nil {
			return h, err
		}
		if r.process, err = r.first(); err != nil {
			return h, err
		}
	}
	for _, r := range h.residents {
		h.wg.Go(func() { r.read(ctx) })
	}
	h.wg.Go(func() { h.residents[0].stream(ctx) })
	h.wg.Go(func() { n.relist(ctx) })
	h.wg.Go(func() { n.events(ctx) })
	h.wg.Go(func() { n.pulls(ctx) })
	return h, nil
}

// first is the container's first process.
func (r *resident) first() (string, error) {
	pids, err := harness.CgroupPids(r.n.lab.PodGroup(r.config.GetMetadata().GetName()) + "/" + r.id)
	if err != nil || len(pids) == 0 {
		return "", errors.Join(err, fmt.Errorf("pod %s has no process", r.config.GetMetadata().GetName()))
	}
	at, err := harness.StartTime(pids[0]) // ids grow, and the others are its children
	return fmt.Sprintf("pid %d, started at tick %d", pids[0], at), err
}

// read follows the log as a kubelet does, and rotates it.
func (r *resident) read(ctx context.Context) {
	log := r.config.GetLogDirectory() + "/main.log"
	var f *os.File
	var rest strings.Builder
	defer func() { _ = f.Close() }() // read only
	rotate := time.Now().Add(rotation)
	for wait(ctx, 200*time.Millisecond) {
		if f == nil {
			var err error
			if f, err = os.Open(log); err != nil {
				r.n.tally.fault("resident %s: %v", r.sort.name, err)
				return
			}
		}
		if time.Now().After(rotate) {
			rotate = time.Now().Add(rotation)
			if err := r.rotate(ctx, log); err != nil && ctx.Err() == nil {
				r.n.tally.fault("resident %s: %v", r.sort.name, err)
			}
			if err := r.take(f, &rest); err != nil { // what the old file still got
				r.n.tally.fault("resident %s: %v", r.sort.name, err)
			}
			_ = f.Close()
			f = nil
			_ = os.Remove(log + ".old")
			continue
		}
		if err := r.take(f, &rest); err != nil {
			r.n.tally.fault("resident %s: %v", r.sort.name, err)
			return
		}
	}
}

func (r *resident) rotate(ctx context.Context, log string) error {
	if err := os.Rename(log, log+".old"); err != nil {
		return err
	}
	return harness.Again(ctx, "ReopenContainerLog", func(ctx context.Context) error {
		_, err := r.n.client.Runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: r.id})
		return err
	})
}

// take reads what has come: each line once, and in order.
func (r *resident) take(f *os.File, rest *strings.Builder) error {
	if _, err := io.Copy(rest, f); err != nil {
		return err
	}
	text := rest.String()
	end := strings.LastIndexByte(text, '\n') + 1
	rest.Reset()
	rest.WriteString(text[end:])
	for l := range strings.Lines(text[:end]) {
		said, whole := payload(l)
		if want := fmt.Sprintf("line %d", r.follow); !whole || said != want {
			return fmt.Errorf("%q where %q was due", l, want)
		}
		r.follow++
		r.n.tally.logLines.Add(1)
	}
	return nil
}

// stream reads a streamed exec, and asks for another one when an upgrade ends it.
func (r *resident) stream(ctx context.Context) {
	for ctx.Err() == nil {
		var u *url.URL
		err := harness.Again(ctx, "Exec", func(ctx context.Context) error {
			x, err := r.n.client.Runtime.Exec(ctx, &cri.ExecRequest{ContainerId: r.id, Cmd: []string{"sh", "-c", chatter}, Stdout: true})
			if err == nil {
				u, err = url.Parse(x.GetUrl())
			}
			return err
		})
		if ctx.Err() != nil {
			return
		}
		daemon := r.n.life.Load()
		heard := &listener{}
		if err == nil {
			var x remotecommand.Executor
			if x, err = remotecommand.NewWebSocketExecutor(&rest.Config{}, "GET", u.String()); err == nil {
				r.n.tally.streams.Add(1)
				err = x.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: heard})
			}
		}
		wait(ctx, 500*time.Millisecond) // an upgrade is counted when its daemon answers
		if ctx.Err() == nil && (r.n.life.Load() == daemon || heard.wrong != "") {
			r.n.tally.fault("the stream ended with no upgrade, or out of order, after %d lines (%s): %v", heard.count, heard.wrong, err)
		}
	}
}

// listener checks the lines of a stream.
type listener struct {
	rest  string
	count int
	wrong string
}

// Write takes what came.
func (l *listener) Write(b []byte) (int, error) {
	l.rest += string(b)
	for {
		line, rest, ok := strings.Cut(l.rest, "\n")
		if !ok {
			return len(b), nil
		}
		if want := fmt.Sprintf("line %d", l.count); line != want && l.wrong == "" {
			l.wrong = fmt.Sprintf("%q where %q was due", line, want)
		}
		l.rest = rest
		l.count++
	}
}

// vacate ends the readers and the residents, who must be who they were.
func (n *node) vacate(ctx context.Context, h *household) {
	h.stop()
	h.wg.Wait()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, r := range h.residents {
		if now, err := r.first(); err != nil || now != r.process {
			n.tally.fault("resident %s is %s, was %s (%v)", r.sort.name, now, r.process, err)
		}
		if r.follow == 0 {
			n.tally.fault("resident %s: nobody could read its log", r.sort.name)
		}
		if err := r.remove(ctx); err != nil {
			n.tally.fault("resident %s: %v", r.sort.name, err)
		}
	}
}
