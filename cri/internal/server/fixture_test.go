package server

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/cgroup"
	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/cri/internal/network"
	"github.com/berth-project/berth/cri/internal/pod"
	"github.com/berth-project/berth/cri/internal/shims"
	"github.com/berth-project/berth/proto/errs"
	v1 "github.com/berth-project/berth/proto/shim/v1"
)

// shelf is a Records and an image service in memory.
type shelf struct {
	Images
	records map[string]map[string][]byte
	images  []*image.Image
	pullErr error
}

func (s *shelf) Put(kind, id string, b []byte) error { s.records[kind][id] = b; return nil }

func (s *shelf) Delete(kind, id string) error { delete(s.records[kind], id); return nil }

func (s *shelf) Load(kind string) (map[string][]byte, error) { return maps.Clone(s.records[kind]), nil }
func (s *shelf) Quarantine(kind, id string, _ error)         { delete(s.records[kind], id) }

func (s *shelf) Use(string, string) (image.Rootfs, error) { return image.Rootfs{}, errs.NotFound }
func (s *shelf) Release(string)                           {}
func (s *shelf) Retain(map[string]string)                 {}
func (s *shelf) List() []*image.Image                     { return s.images }
func (s *shelf) Remove(context.Context, string) error     { return nil }
func (s *shelf) Usage() image.Usage {
	return image.Usage{Mountpoint: "/x", Bytes: 5, Inodes: 6, At: time.Now()}
}

func (s *shelf) Pull(context.Context, string, *image.Auth) (*image.Image, error) {
	return nil, s.pullErr
}

func (s *shelf) Get(ref string) (*image.Image, error) {
	for _, i := range s.images {
		if i.ID == ref || slices.Contains(i.Tags, ref) {
			return i, nil
		}
	}
	return nil, errs.NotFound.Errorf("image %q", ref)
}

// wires is a network without plugins.
type wires struct {
	pod.Pins
	ready error
}

func (w *wires) Ready(context.Context) error { return w.ready }

func (w *wires) Config() (string, json.RawMessage) { return "net", json.RawMessage(`{}`) }

func (w *wires) Attach(context.Context, network.Attachment) (network.Result, error) {
	return network.Result{}, errs.Unavailable
}
func (w *wires) Detach(context.Context, network.Attachment) error { return nil }
func (w *wires) Check(context.Context, network.Attachment) error  { return nil }
func (w *wires) GC(context.Context, []string) error               { return nil }
func (w *wires) Unpin(string) error                               { return nil }

// fixture is a server over a daemon that has just come up on these records: two pods, three containers.
func fixture(t *testing.T) (*Server, *shelf, *wires) {
	t.Helper()
	groups, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	s := &shelf{records: map[string]map[string][]byte{"pod": {}, "container": {}}}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	put := func(kind, id string, config proto.Message, more map[string]any) {
		b, err := proto.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		record := map[string]any{"version": 1, "id": id, "bootID": "b", "createdAt": at, "config": b, "state": map[string]any{}}
		maps.Copy(record, more)
		raw, err := json.Marshal(record)
		if err != nil {
			t.Fatal(err)
		}
		s.records[kind][id] = raw
		at = at.Add(time.Second)
	}
	for _, name := range []string{"aaa1", "aab2"} {
		put("pod", name, &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "ns", Uid: "u"}, Labels: map[string]string{"app": name[:2], "pod": name},
			Annotations: map[string]string{"note": "byte for byte \xe2\x82\xac"},
			Linux:       &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}}},
		}, nil)
	}
	config := func(name string) *cri.ContainerConfig {
		return &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name}, Labels: map[string]string{"c": name},
			Image: &cri.ImageSpec{Image: "sha256:1", UserSpecifiedImage: "busybox:1"},
		}
	}
	put("container", "c1", config("created"), map[string]any{"podID": "aaa1", "imageID": "sha256:1", "stop": 37})
	put("container", "c2", config("ended"), map[string]any{"podID": "aaa1", "imageID": "sha256:1", "stop": 15, "state": map[string]any{
		"startedAt": at, "finishedAt": at.Add(time.Second), "exit": v1.Exit{Code: 137, OOMKilled: true}, "reason": "OOMKilled",
	}})
	put("container", "c3", config("created"), map[string]any{"podID": "aab2", "imageID": "sha256:1"})
	dir, log, w := t.TempDir(), slog.New(slog.NewTextHandler(t.Output(), nil)), &wires{}
	for _, id := range []string{"c1", "c2", "c3"} {
		spec := filepath.Join(dir, "lib", "containers", id, "spec.json") // the last that Create writes
		if err := errors.Join(os.MkdirAll(filepath.Dir(spec), 0o700), os.WriteFile(spec, []byte("{}"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	pods := pod.New(pod.Config{
		Root: filepath.Join(dir, "lib"), State: filepath.Join(dir, "run"), Cgroups: groups, DefaultPod: "/berth-server-test", Log: log,
		Features: pod.Features{BootID: "b"},
	}, s, s, w)
	pool := shims.New(shims.Config{Dir: filepath.Join(dir, "shims"), Cgroups: groups, Group: "/berth-server-test"}, log, pods.SupervisorExited, func(v1.OOM) {})
	pods.SetShims(pool)
	if err := pods.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pool.Close(); pods.Close() })
	return New(pods, s, w, nil, nil, Info{Name: "berth", Version: "v0", Handlers: []string{"runsc", "kata", "crun"}, Userns: true}), s, w
}
