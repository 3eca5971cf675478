package server

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/cri/internal/pod"
	"github.com/berth-project/berth/proto/errs"
	"github.com/berth-project/berth/proto/rpc"
)

// TestEveryVerb calls each method of both services with an empty request: all are there but those that need CRIU.
func TestEveryVerb(t *testing.T) {
	absent := []string{"CheckpointContainer", "CheckpointPod", "RestorePod"}
	type service struct {
		grpc.ServiceDesc
		srv any
	}
	own := &Server{}
	for _, d := range []service{{cri.RuntimeService_ServiceDesc, own}, {cri.ImageService_ServiceDesc, own}} {
		for _, m := range d.Methods {
			call := func() (err error) {
				defer func() {
					if r := recover(); r != nil { // reached our code, which has no domain here
						err = nil
					}
				}()
				_, err = m.Handler(d.srv, t.Context(), func(any) error { return nil }, nil)
				return err
			}
			if got := status.Code(call()) == codes.Unimplemented; got != slices.Contains(absent, m.MethodName) {
				t.Errorf("%s: unimplemented %v", m.MethodName, got)
			}
		}
		for _, m := range d.Streams {
			call := func() (err error) {
				defer func() {
					if r := recover(); r != nil {
						err = nil
					}
				}()
				return m.Handler(d.srv, silent{ctx: t.Context()})
			}
			if status.Code(call()) == codes.Unimplemented {
				t.Errorf("%s: unimplemented", m.StreamName)
			}
		}
	}
}

// silent is a stream on which nothing comes and everything goes.
type silent struct {
	grpc.ServerStream
	ctx context.Context
}

func (s silent) Context() context.Context { return s.ctx }
func (silent) RecvMsg(any) error          { return nil }
func (silent) SendMsg(any) error          { return nil }

func TestFilters(t *testing.T) {
	s, _, _ := fixture(t)
	podState := func(st cri.PodSandboxState) *cri.PodSandboxStateValue { return &cri.PodSandboxStateValue{State: st} }
	for _, c := range []struct {
		f    *cri.PodSandboxFilter
		want string
	}{
		{nil, "aaa1 aab2"},
		{&cri.PodSandboxFilter{}, "aaa1 aab2"},
		{&cri.PodSandboxFilter{Id: "aab2"}, "aab2"},
		{&cri.PodSandboxFilter{Id: "aab"}, "aab2"},
		{&cri.PodSandboxFilter{Id: "aa"}, ""}, // not unique
		{&cri.PodSandboxFilter{Id: "zz"}, ""},
		{&cri.PodSandboxFilter{LabelSelector: map[string]string{"app": "aa"}}, "aaa1 aab2"},
		{&cri.PodSandboxFilter{LabelSelector: map[string]string{"app": "aa", "pod": "aaa1"}}, "aaa1"},
		{&cri.PodSandboxFilter{LabelSelector: map[string]string{"none": ""}}, ""}, // an absent label is not an empty one
		{&cri.PodSandboxFilter{Id: "aaa1", LabelSelector: map[string]string{"pod": "aab2"}}, ""},
		{&cri.PodSandboxFilter{State: podState(cri.PodSandboxState_SANDBOX_READY)}, ""},
		{&cri.PodSandboxFilter{State: podState(cri.PodSandboxState_SANDBOX_NOTREADY)}, "aaa1 aab2"},
	} {
		resp, err := s.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{Filter: c.f})
		var got []string
		for _, p := range resp.GetItems() {
			got = append(got, p.GetId())
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("pods %v: %v, %v", c.f, got, err)
		}
	}
	ctState := func(st cri.ContainerState) *cri.ContainerStateValue { return &cri.ContainerStateValue{State: st} }
	for _, c := range []struct {
		f    *cri.ContainerFilter
		want string
	}{
		{nil, "c1 c2 c3"},
		{&cri.ContainerFilter{Id: "c2"}, "c2"},
		{&cri.ContainerFilter{Id: "c"}, ""},
		{&cri.ContainerFilter{PodSandboxId: "aaa"}, "c1 c2"},
		{&cri.ContainerFilter{PodSandboxId: "none"}, ""},
		{&cri.ContainerFilter{Id: "c3", PodSandboxId: "aaa1"}, ""},
		{&cri.ContainerFilter{State: ctState(cri.ContainerState_CONTAINER_EXITED)}, "c2"},
		{&cri.ContainerFilter{State: ctState(cri.ContainerState_CONTAINER_CREATED), LabelSelector: map[string]string{"c": "created"}, PodSandboxId: "aab2"}, "c3"},
	} {
		resp, err := s.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: c.f})
		var got []string
		for _, x := range resp.GetContainers() {
			got = append(got, x.GetId())
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("containers %v: %v, %v", c.f, got, err)
		}
	}
}

// TestStatuses looks at what the kubelet's client refuses to take without.
func TestStatuses(t *testing.T) {
	s, _, _ := fixture(t)
	p, err := s.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: "aaa1", Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if st := p.GetStatus(); st.GetId() != "aaa1" || st.GetMetadata().GetUid() != "u" || st.GetCreatedAt() == 0 || st.GetAnnotations()["note"] != "byte for byte €" ||
		st.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY || st.GetNetwork() == nil {
		t.Errorf("%v", st)
	}
	if (p.GetTimestamp() == 0) != (p.GetContainersStatuses() == nil) || len(p.GetContainersStatuses()) != 2 || p.GetInfo()["info"] == "" {
		t.Errorf("%v", p)
	}
	c, err := s.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: "c2", Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if st := c.GetStatus(); st.GetExitCode() != 137 || st.GetReason() != "OOMKilled" || st.GetFinishedAt() < st.GetStartedAt() || st.GetImage().GetImage() != "busybox:1" ||
		st.GetImageRef() != "sha256:1" || st.GetImageId() != "sha256:1" || st.GetStopSignal() != cri.Signal_SIGNAL_SIGTERM || !json.Valid([]byte(c.GetInfo()["info"])) {
		t.Errorf("%v", st)
	}
	c, err = s.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: "c1"})
	if st := c.GetStatus(); err != nil || st.GetStartedAt() != 0 || st.GetStopSignal() != cri.Signal_SIGNAL_SIGRTMINPLUS3 {
		t.Errorf("%v, %v", st, err)
	}
	_, perr := s.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: "gone"})
	_, cerr := s.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: "gone"})
	if status.Code(rpc.ToStatus(perr)) != codes.NotFound || status.Code(rpc.ToStatus(cerr)) != codes.NotFound {
		t.Errorf("what is gone: %v, %v", perr, cerr)
	}
}

// TestStopSignals: each signal there is comes back as the CRI's of the same number.
func TestStopSignals(t *testing.T) {
	for n := 1; n <= 64; n++ {
		got := stopSignal(&pod.Container{Stop: unix.Signal(n)})
		if (got == cri.Signal_SIGNAL_RUNTIME_DEFAULT) != (n == 32 || n == 33) { // libc's own
			t.Errorf("%d is %v", n, got)
		}
	}
}

// TestGone: what removes and stops is happy with what is not there; an empty id is a mistake.
func TestGone(t *testing.T) {
	s, _, _ := fixture(t)
	for _, id := range []string{"gone", ""} {
		_, e1 := s.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: id})
		_, e2 := s.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: id})
		_, e3 := s.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: id})
		_, e4 := s.RemoveContainer(t.Context(), &cri.RemoveContainerRequest{ContainerId: id})
		for i, err := range []error{e1, e2, e3, e4} {
			if id == "" && !errors.Is(err, errs.InvalidArgument) || id != "" && err != nil {
				t.Errorf("verb %d, id %q: %v", i, id, err)
			}
		}
	}
}

// TestStatusIsStable: the kubelet compares the lists of one answer with those of the last.
func TestStatusIsStable(t *testing.T) {
	s, _, w := fixture(t)
	first, err := s.Status(t.Context(), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range first.GetRuntimeHandlers() {
		names = append(names, h.GetName())
	}
	if strings.Join(names, ",") != ",berth,crun,kata,runsc" {
		t.Errorf("handlers %q", names)
	}
	for range 20 {
		if again, err := s.Status(t.Context(), &cri.StatusRequest{}); err != nil || !proto.Equal(first, again) {
			t.Fatalf("%v, then %v: %v", first, again, err)
		}
	}
	w.ready = errs.Unavailable.Errorf("no configuration")
	got, err := s.Status(t.Context(), &cri.StatusRequest{Verbose: true})
	if c := got.GetStatus().GetConditions(); err != nil || !c[0].GetStatus() || c[1].GetStatus() || c[1].GetType() != cri.NetworkReady || c[1].GetMessage() != "no configuration" {
		t.Errorf("%v, %v", got, err)
	}
	v, err := s.Version(t.Context(), &cri.VersionRequest{})
	if err != nil || v.GetVersion() == "" || v.GetRuntimeName() == "" || v.GetRuntimeVersion() == "" || v.GetRuntimeApiVersion() != "v1" {
		t.Errorf("%v, %v", v, err)
	}
}

func TestImages(t *testing.T) {
	s, shelf, _ := fixture(t)
	user := func(u string) *image.Image {
		return &image.Image{ID: "sha256:" + u, Tags: []string{"docker.io/library/x:" + u}, Size: 1, Config: &ocispec.Image{Config: ocispec.ImageConfig{User: u}}}
	}
	for _, c := range []struct {
		user, name string
		uid        int64 // -1: none
	}{
		{"", "", -1},
		{"1000", "", 1000},
		{"1000:abc", "", 1000},
		{"0", "", 0},
		{"web:1", "web", -1},
		{"4294967296", "4294967296", -1},
		{"2147483648", "2147483648", -1},
		{"-1", "-1", -1},
		{"+5", "+5", -1},
		{"005", "005", -1},
		{"0x0", "0x0", -1},
		{"１", "１", -1},
	} {
		got := imageItem(user(c.user))
		if got.GetUsername() != c.name || (got.GetUid() == nil) != (c.uid < 0) || c.uid >= 0 && got.GetUid().GetValue() != c.uid {
			t.Errorf("USER %q: %v %q", c.user, got.GetUid(), got.GetUsername())
		}
	}
	shelf.images = []*image.Image{user("1"), user("2")}
	st, err := s.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "absent"}})
	if err != nil || st.GetImage() != nil {
		t.Errorf("absent: %v, %v", st, err)
	}
	list, err := s.ListImages(t.Context(), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: "sha256:2"}}})
	if err != nil || len(list.GetImages()) != 1 || list.GetImages()[0].GetId() != "sha256:2" {
		t.Errorf("%v, %v", list, err)
	}
	fs, err := s.ImageFsInfo(t.Context(), &cri.ImageFsInfoRequest{})
	if err != nil || fs.GetImageFilesystems()[0].GetTimestamp() <= 0 || fs.GetImageFilesystems()[0].GetUsedBytes().GetValue() != 5 {
		t.Errorf("%v, %v", fs, err)
	}
	// the kubelet looks for the prefix after code Unknown
	shelf.pullErr = errs.Unavailable.Errorf("RegistryUnavailable: connection refused")
	_, err = s.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "x"}})
	if got := status.Convert(rpc.ToStatus(err)); got.Code() != codes.Unknown || got.Message() != "RegistryUnavailable: connection refused" {
		t.Errorf("%v", got)
	}
	shelf.pullErr = errs.NotFound.Errorf("no such tag")
	if _, err = s.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "x"}}); status.Code(rpc.ToStatus(err)) != codes.NotFound {
		t.Error(err)
	}
	if _, err = s.PullImage(t.Context(), &cri.PullImageRequest{}); !errors.Is(err, errs.InvalidArgument) {
		t.Error(err)
	}
}

// TestBatches: each item once, in order, then the end.
func TestBatches(t *testing.T) {
	items := make([]int, 2*streamBatch+1)
	for i := range items {
		items[i] = i
	}
	var got []int
	var sizes []int
	if err := inBatches(items, func(b []int) error { got, sizes = append(got, b...), append(sizes, len(b)); return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, items) || !slices.Equal(sizes, []int{streamBatch, streamBatch, 1}) {
		t.Errorf("%d items in %v", len(got), sizes)
	}
	if err := inBatches(items, func([]int) error { return errs.Canceled }); !errors.Is(err, errs.Canceled) {
		t.Error(err)
	}
	if err := inBatches(nil, func([]int) error { return errors.New("an empty message") }); err != nil {
		t.Error(err)
	}
}
