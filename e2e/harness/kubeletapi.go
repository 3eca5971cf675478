package harness

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
)

// URL is a path of the kubelet's API.
func (k *Kubelet) URL(path string) string { return fmt.Sprintf("https://127.0.0.1:%d%s", k.Port, path) }

// Client speaks with the kubelet's API, as anybody and believing any certificate.
func (k *Kubelet) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}} //nolint:gosec // loopback
}

// Stream asks the kubelet's API for something and returns the answer's body.
func (k *Kubelet) Stream(ctx context.Context, method, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, k.URL(path), nil)
	if err != nil {
		return nil, err
	}
	resp, err := k.Client().Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, errors.Join(fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b), resp.Body.Close())
	}
	return resp.Body, nil
}

// Ask is Stream with the whole body, within ten seconds.
func (k *Kubelet) Ask(method, path string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	body, err := k.Stream(ctx, method, path)
	if err != nil {
		return "", err
	}
	defer body.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(body)
	return string(b), err
}

// Logs are a container's, as `kubectl logs` gets them. query is "previous=true" and the like.
func (k *Kubelet) Logs(p *Pod, container, query string) (string, error) {
	return k.Ask(http.MethodGet, fmt.Sprintf("/containerLogs/%s/%s/%s?%s", p.Metadata.Namespace, p.Metadata.Name, container, query))
}

// Run runs a command in a container and returns what it prints.
func (k *Kubelet) Run(p *Pod, container string, cmd ...string) (string, error) {
	q := url.Values{"cmd": {strings.Join(cmd, " ")}} // the kubelet splits it at spaces
	return k.Ask(http.MethodPost, fmt.Sprintf("/run/%s/%s/%s?%s", p.Metadata.Namespace, p.Metadata.Name, container, q.Encode()))
}

// Exec is `kubectl exec`, over "spdy" or "websocket". It returns the command's exit code.
func (k *Kubelet) Exec(ctx context.Context, over string, p *Pod, container string, cmd []string, o remotecommand.StreamOptions) (int, error) {
	q := url.Values{"command": cmd}
	for name, on := range map[string]bool{"input": o.Stdin != nil, "output": o.Stdout != nil, "error": o.Stderr != nil, "tty": o.Tty} {
		if on {
			q.Set(name, "1")
		}
	}
	u, err := url.Parse(k.URL(fmt.Sprintf("/exec/%s/%s/%s?%s", p.Metadata.Namespace, p.Metadata.Name, container, q.Encode())))
	if err != nil {
		return 0, err
	}
	conf := &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	var x remotecommand.Executor
	if over == "websocket" {
		x, err = remotecommand.NewWebSocketExecutor(conf, http.MethodGet, u.String())
	} else {
		x, err = remotecommand.NewSPDYExecutor(conf, http.MethodPost, u)
	}
	if err != nil {
		return 0, err
	}
	err = x.StreamWithContext(ctx, o)
	if exit := (utilexec.CodeExitError{}); errors.As(err, &exit) {
		return exit.Code, nil
	}
	return 0, err
}

// PortForward is `kubectl port-forward` of a port of a pod, over SPDY. It returns the local port and what ends it.
func (k *Kubelet) PortForward(ctx context.Context, p *Pod, port int) (local int, stop func(), err error) {
	u, err := url.Parse(k.URL(fmt.Sprintf("/portForward/%s/%s", p.Metadata.Namespace, p.Metadata.Name)))
	if err != nil {
		return 0, nil, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		return 0, nil, err
	}
	quit, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	fw, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, quit, ready, io.Discard, io.Discard)
	if err != nil {
		return 0, nil, err
	}
	go func() { ended <- fw.ForwardPorts() }()
	stop = sync.OnceFunc(func() { close(quit) })
	select {
	case <-ready:
	case err := <-ended:
		return 0, nil, fmt.Errorf("port-forward: %w", err)
	case <-ctx.Done():
		stop()
		return 0, nil, ctx.Err()
	}
	ports, err := fw.GetPorts()
	if err != nil {
		stop()
		return 0, nil, err
	}
	return int(ports[0].Local), stop, nil
}

// PodSummary is the part of a pod's entry in the kubelet's /stats/summary that tests look at.
type PodSummary struct {
	PodRef struct{ Name string }
	CPU    struct{ UsageCoreNanoSeconds uint64 }
	Memory struct{ WorkingSetBytes uint64 }
}

// Summary is a pod's use of CPU and memory, as the kubelet sees it.
func (k *Kubelet) Summary(p *Pod) (*PodSummary, error) {
	b, err := k.Ask(http.MethodGet, "/stats/summary")
	if err != nil {
		return nil, err
	}
	var all struct{ Pods []PodSummary }
	if err := json.Unmarshal([]byte(b), &all); err != nil {
		return nil, err
	}
	for i := range all.Pods {
		if all.Pods[i].PodRef.Name == p.Metadata.Name {
			return &all.Pods[i], nil
		}
	}
	return nil, fmt.Errorf("the summary has no pod %s", p.Metadata.Name)
}
