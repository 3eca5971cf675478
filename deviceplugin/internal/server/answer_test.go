package server

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	dp "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/berth-project/berth/deviceplugin/internal/alloc"
	"github.com/berth-project/berth/deviceplugin/internal/policy"
	"github.com/berth-project/berth/proto/errs"
)

var update = flag.Bool("update", false, "write the golden files")

func uuid(i int) string { return fmt.Sprintf("GPU-00000000-0000-0000-0000-%012d", i) }

// offer is a resource of n GPUs with r shares each; the last GPU is sick.
func offer(n, r int, sharing policy.Sharing) *policy.Resource {
	res := &policy.Resource{Rule: policy.Rule{Name: "nvidia.com/gpu", Sharing: sharing, Replicas: r, Spread: alloc.Spread}}
	for i := range n {
		for k := range r {
			d := policy.Device{ID: uuid(i), UUID: uuid(i), GPU: uuid(i), NUMA: i % 2, Memory: 80 << 30}
			if r > 1 {
				d.ID = fmt.Sprintf("%s::%d", uuid(i), k)
			}
			if i == n-1 && n > 1 {
				d.Reason = "lost"
			}
			res.Devices = append(res.Devices, d)
		}
	}
	return res
}

// TestPickRefuses: every bad request is refused with the class and the words that fit it.
func TestPickRefuses(t *testing.T) {
	one := offer(3, 2, policy.TimeSlicing)
	one.Rule.One = true
	for name, c := range map[string]struct {
		r    *policy.Resource
		ids  []string
		want errs.Class
		text string
	}{
		"none":     {offer(3, 1, policy.Exclusive), nil, errs.InvalidArgument, "no device ids"},
		"unknown":  {offer(3, 1, policy.Exclusive), []string{uuid(7)}, errs.NotFound, "there is no device"},
		"hostile":  {offer(3, 1, policy.Exclusive), []string{"../../dev/mem"}, errs.NotFound, "there is no device"},
		"newline":  {offer(3, 1, policy.Exclusive), []string{uuid(0) + "\n"}, errs.NotFound, `\n`},
		"twice":    {offer(3, 1, policy.Exclusive), []string{uuid(0), uuid(0)}, errs.InvalidArgument, "named twice"},
		"sick":     {offer(3, 1, policy.Exclusive), []string{uuid(2)}, errs.FailedPrecondition, "unhealthy: lost"},
		"too many": {offer(3, 1, policy.Exclusive), []string{uuid(0), uuid(1), uuid(2), uuid(3)}, errs.InvalidArgument, "4 device ids"},
		"the GPU itself, where shares are offered": {offer(3, 2, policy.TimeSlicing), []string{uuid(0)}, errs.NotFound, "there is no device"},
		"two MPS shares":                  {offer(3, 2, policy.MPS), []string{uuid(0) + "::0", uuid(1) + "::0"}, errs.InvalidArgument, "one daemon's client"},
		"two shares where one is allowed": {one, []string{uuid(0) + "::0", uuid(1) + "::0"}, errs.InvalidArgument, "request 1"},
	} {
		if got, err := pick(c.r, c.ids); errs.Of(err) != c.want || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestAnswerGolden(t *testing.T) {
	mps := offer(1, 4, policy.MPS)
	all := map[string]*dp.ContainerAllocateResponse{}
	for name, c := range map[string]struct {
		r   *policy.Resource
		ids []string
		a   responder
	}{
		"exclusive":    {offer(4, 1, policy.Exclusive), []string{uuid(1), uuid(0)}, responder{}},
		"time-slicing": {offer(2, 4, policy.TimeSlicing), []string{uuid(0) + "::3", uuid(0) + "::1"}, responder{}},
		"annotations":  {offer(2, 1, policy.Exclusive), []string{uuid(0)}, responder{annotations: true}},
		"mps":          {mps, []string{uuid(0) + "::2"}, responder{mpsDir: "/run/berth/gpu/mps"}},
	} {
		picked, err := pick(c.r, c.ids)
		if err != nil {
			t.Fatal(name, err)
		}
		all[name] = c.a.answer(c.r, picked)
		slices.Reverse(c.ids)
		picked, err = pick(c.r, c.ids)
		if err != nil {
			t.Fatal(name, err)
		}
		if again := c.a.answer(c.r, picked); again.String() != all[name].String() && c.r.Rule.Sharing != policy.MPS {
			t.Errorf("%s: the order of the ids changes the answer", name)
		}
	}
	got, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "answers.json")
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(golden); err != nil || string(want) != string(got)+"\n" {
		t.Errorf("%s (%v):\n%s", golden, err, got)
	}
}

// FuzzPick: whatever ids come, what is given is offered, healthy, and given once.
func FuzzPick(f *testing.F) {
	f.Add(uuid(0)+","+uuid(1), false)
	f.Add(uuid(0)+"::0,"+uuid(0)+"::1", true)
	f.Add("\x00,../..,"+strings.Repeat("x", 100), true)
	f.Fuzz(func(t *testing.T, ids string, shared bool) {
		r := offer(4, 1, policy.Exclusive)
		if shared {
			r = offer(4, 3, policy.TimeSlicing)
		}
		picked, err := pick(r, strings.Split(ids, ","))
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, d := range picked {
			if !d.Healthy() || seen[d.ID] || !slices.Contains(r.Devices, d) {
				t.Errorf("%q: %+v", ids, picked)
			}
			seen[d.ID] = true
		}
		a := responder{}.answer(r, picked)
		for _, n := range a.GetCdiDevices() {
			if !strings.HasPrefix(n.GetName(), "berth.nvidia.com/gpu=GPU-00000000-") {
				t.Errorf("%q: %s", ids, n.GetName())
			}
		}
	})
}
