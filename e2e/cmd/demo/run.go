package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth/e2e/harness"
)

const kubeletPort = 11250

const manifest = `apiVersion: v1
kind: Pod
metadata:
  name: hello
  namespace: default
spec:
  containers:
  - name: web
    image: registry.k8s.io/berth/web:1
    imagePullPolicy: IfNotPresent
    ports:
    - {containerPort: 80, hostPort: 18080}
    readinessProbe:
      httpGet: {path: /, port: 80}
      periodSeconds: 1
    resources:
      limits: {memory: 64Mi, cpu: 500m}
`

// run starts what is not running, applies the pod and shows what a newcomer wants to see.
func run(ctx context.Context, lab *harness.Lab) error {
	if err := stop(ctx, lab); err != nil { // leftovers of an earlier run, of any kind
		return err
	}
	say("starting", "a loopback registry with the test images")
	if _, err := lab.StartRegistry(ctx); err != nil {
		return err
	}
	say("starting", "berth-netd, and berth-cri on %s", lab.Socket())
	if _, err := lab.StartCRI(ctx, harness.Options{Netd: true}); err != nil {
		return err
	}
	say("starting", "a real kubelet (Kubernetes 1.37) on it")
	k, err := lab.StartKubelet(ctx, lab.Socket(), kubeletPort)
	if err != nil {
		return err
	}
	say("applying", "%s/hello.yaml", k.Manifests)
	start := time.Now()
	if err := k.Apply("hello", manifest); err != nil {
		return err
	}
	p, err := k.Await(ctx, "hello", func(p *harness.Pod) bool { return p.Ready() && p.Status.PodIP != "" })
	if err != nil {
		return err
	}
	ready := time.Since(start)
	page, err := harness.Fetch("http://" + p.Status.PodIP)
	if err != nil {
		return err
	}
	fmt.Printf("\nThe pod %s runs at %s and serves:\n\n  %s\n\n", p.Metadata.Name, p.Status.PodIP, strings.ReplaceAll(strings.TrimSpace(string(page)), "\n", "\n  "))
	if err := showLog(lab, p); err != nil {
		return err
	}
	if err := showTimeline(lab, ready); err != nil {
		return err
	}
	showMore(lab)
	return nil
}

func say(verb, format string, args ...any) {
	fmt.Printf("  %-9s %s\n", verb, fmt.Sprintf(format, args...))
}

func showLog(lab *harness.Lab, p *harness.Pod) error {
	files, err := filepath.Glob(filepath.Join(lab.PodLogs(), "default_"+p.Metadata.Name+"_*", "web", "0.log"))
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return fmt.Errorf("want one log of the pod below %s, found %v", lab.PodLogs(), files)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		return err
	}
	fmt.Println("Its log, as the kubelet reads it:")
	for line := range strings.Lines(string(b)) {
		fmt.Print("  ", line)
	}
	return nil
}

type phase struct {
	Name  string
	Start time.Time
	Took  time.Duration
}

// showTimeline draws Berth's own part of the way to readiness; the rest is the kubelet's loops and probe.
func showTimeline(lab *harness.Lab, ready time.Duration) error {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(lab.Run, "debug.sock"))
	}}}
	resp, err := c.Get("http://berth/timeline")
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var all map[string][]phase
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	fmt.Printf("\nFrom manifest to ready: %d ms. Berth's own part of it:\n\n", ready.Milliseconds())
	for _, phases := range all {
		slices.SortFunc(phases, func(a, b phase) int { return a.Start.Compare(b.Start) })
		var sum time.Duration
		for _, p := range phases {
			bar := strings.Repeat("█", max(1, int(p.Took/(500*time.Microsecond))))
			fmt.Printf("  %-14s %7.2f ms %s\n", p.Name, float64(p.Took.Microseconds())/1000, bar)
			sum += p.Took
		}
		fmt.Printf("  %-14s %7.2f ms\n", "in all", float64(sum.Microseconds())/1000)
	}
	return nil
}

func showMore(lab *harness.Lab) {
	crictl := "crictl -r unix://" + lab.Socket()
	fmt.Printf(`
Look further:
  curl http://127.0.0.1:18080                     the same page through its host port
  %[1]s/%[2]s pods
  %[1]s/%[2]s ps
  ls %[3]s      drop a manifest of your own there
  tail -f %[4]s/berth-cri.log
  curl --unix-socket %[5]s/debug.sock http://berth/metrics
  make stop
`, lab.Tool, crictl, filepath.Join(lab.Dir, "manifests"), lab.Logs(), lab.Run)
}

// stop ends pods, then programs, then removes every directory and proves that nothing is left.
func stop(ctx context.Context, lab *harness.Lab) error {
	return errors.Join(harness.Stop(ctx, lab))
}
