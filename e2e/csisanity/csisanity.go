// Package csisanity runs the upstream CSI conformance suite (csi-test 5.6) against berth-csi on every backend, each on
// a file system that it makes in a loop file and removes again.
package csisanity

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/e2e/harness"
)

// Backend is one way in which volumes are kept: the pool's backend, the file system that the pool is on, and the one
// that volumes have ("": the backend's default).
type Backend struct {
	Name, Kind, On, FSType string
	Mkfs                   []string // more arguments
	Mount                  string   // more options
	Thin                   bool     // of lvm
	MiB                    int      // size of the volumes; 0: 1024. They are expanded to twice as much.
}

// Backends are those that the README lists and that this machine's kernel has all for.
func Backends() []Backend {
	return []Backend{
		{Name: "loop on ext4, volumes ext4", Kind: "loop", On: "ext4", FSType: "ext4"},
		{Name: "loop on xfs, volumes xfs", Kind: "loop", On: "xfs", FSType: "xfs"},
		{Name: "loop on btrfs, volumes ext4", Kind: "loop", On: "btrfs", FSType: "ext4"},
		{Name: "btrfs", Kind: "btrfs", On: "btrfs"},
		{Name: "static disks", Kind: "static", MiB: 64},
	}
}

// LVM are those that need device-mapper, which Debian's kernel has; see [Guest].
func LVM() []Backend {
	return []Backend{
		{Name: "lvm, thick volumes ext4", Kind: "lvm", FSType: "ext4", MiB: 64},
		{Name: "lvm, thin volumes xfs", Kind: "lvm", FSType: "xfs", Thin: true, MiB: 320},
	}
}

// Quota are those that need project quota, which Debian's kernel has; see [Guest].
func Quota() []Backend {
	return []Backend{
		{Name: "dir on ext4", Kind: "dir", On: "ext4", Mkfs: []string{"-O", "quota,project"}, Mount: "prjquota"},
		{Name: "dir on xfs", Kind: "dir", On: "xfs", Mount: "prjquota"},
	}
}

// Cannot are the specs that no driver can pass, with the reason; a spec that passes all the same must be taken off.
func Cannot() map[string]string {
	return map[string]string{
		"should succeed when creating a snapshot with accessibility requirements": "csi-sanity 5.6 compares a topology that it has marshalled with one that it has not by reflection, " +
			"private fields included, so it fails for every driver that reports a snapshot's topology",
	}
}

// Result of one run.
type Result struct {
	Passed, Skipped int
	Failed          []string // full names, but for those of Cannot
	Excused         []string
}

// Run runs the suite on one backend. bin holds berth-csi, tools csi-sanity, out gets the report and the driver's log.
func Run(ctx context.Context, b Backend, bin, tools, out string) (r Result, err error) {
	dir, err := os.MkdirTemp("", "csi-sanity-")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	place, end, err := b.make(dir)
	defer func() { err = errors.Join(err, end()) }()
	if err != nil {
		return r, err
	}
	conf := fmt.Sprintf("root=%q\nstate=%q\nsocket=%q\nregistration_dir=''\nkubelet_dir=%q\ndebug_socket=''\nnode='n1'\nlog_level='debug'\n[pools.p]\nbackend=%q\n%sdefault=true\n",
		dir+"/root", dir+"/state", dir+"/csi.sock", dir+"/kubelet", b.Kind, place)
	if err := errors.Join(os.Mkdir(dir+"/kubelet", 0o700), os.WriteFile(dir+"/csi.toml", []byte(conf), 0o600)); err != nil {
		return r, err
	}
	p, err := harness.Start(dir+"/logs", "berth-csi", nil, filepath.Join(bin, "berth-csi"), "--config", dir+"/csi.toml")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, p.Stop(), keep(p.Log, filepath.Join(out, name(b)+".log"))) }()
	wait, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := harness.Until(wait, 20*time.Millisecond, p, func() error { _, err := os.Stat(dir + "/csi.sock"); return errors.Join(err, b.ready(dir)) }); err != nil {
		return r, err
	}
	return suite(ctx, b, tools, dir, out)
}

func name(b Backend) string { return strings.NewReplacer(" ", "-", ",", "").Replace(b.Name) }

func suite(ctx context.Context, b Backend, tools, dir, out string) (Result, error) {
	params := ""
	if b.FSType != "" {
		params = "csi.storage.k8s.io/fstype: " + b.FSType + "\n"
	}
	if err := os.WriteFile(dir+"/params.yaml", []byte(params), 0o600); err != nil {
		return Result{}, err
	}
	tuning := map[string]string{"btrfs": "compression: zstd\n", "loop": "readAheadKiB: 512\n"}[b.Kind]
	if err := os.WriteFile(dir+"/tuning.yaml", []byte(tuning), 0o600); err != nil {
		return Result{}, err
	}
	size := cmp.Or(b.MiB, 1024) << 20
	report := filepath.Join(out, name(b)+".json")
	cmd := exec.CommandContext(ctx, filepath.Join(tools, "csi-sanity"), "-csi.endpoint", "unix://"+dir+"/csi.sock",
		"-csi.stagingdir", dir+"/kubelet/staging", "-csi.mountdir", dir+"/kubelet/mount", "-csi.testvolumeparameters", dir+"/params.yaml",
		"-csi.testvolumemutableparameters", dir+"/tuning.yaml",
		"-csi.testvolumesize", strconv.Itoa(size), "-csi.testvolumeexpandsize", strconv.Itoa(2*size), "-ginkgo.no-color", "-ginkgo.json-report", report)
	text, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return Result{}, err
	}
	b2, rerr := os.ReadFile(report)
	if rerr != nil {
		return Result{}, fmt.Errorf("%w: %w: %s", rerr, err, text[max(0, len(text)-2000):])
	}
	return parse(b2)
}

func parse(report []byte) (r Result, err error) {
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeText, State     string
		}
	}
	if err := json.Unmarshal(report, &suites); err != nil {
		return r, err
	}
	for _, s := range suites {
		for _, spec := range s.SpecReports {
			full := strings.Join(append(slices.Clone(spec.ContainerHierarchyTexts), spec.LeafNodeText), " ")
			switch {
			case spec.LeafNodeText == "":
			case spec.State == "passed" && Cannot()[spec.LeafNodeText] != "":
				r.Failed = append(r.Failed, full+": passes, take it off the list")
			case spec.State == "passed":
				r.Passed++
			case spec.State == "skipped", spec.State == "pending":
				r.Skipped++
			case Cannot()[spec.LeafNodeText] != "":
				r.Excused = append(r.Excused, full)
			default:
				r.Failed = append(r.Failed, full)
			}
		}
	}
	if r.Passed == 0 {
		err = errors.New("no spec ran")
	}
	return r, err
}

func keep(from, to string) error {
	b, err := os.ReadFile(from)
	return errors.Join(err, os.WriteFile(to, b, 0o644))
}
