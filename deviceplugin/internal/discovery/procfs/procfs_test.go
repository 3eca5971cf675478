package procfs

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/discovery"
	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
	"github.com/berth-project/berth/proto/errs"
)

// root makes a /proc and a /sys of files: name -> content, "-> x" is a link.
func root(t *testing.T, files map[string]string) *Source {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(to, at)
		} else {
			err = os.WriteFile(at, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return &Source{Proc: filepath.Join(dir, "proc"), Sys: filepath.Join(dir, "sys")}
}

func info(model, uuid, bus, minor, excluded string) string {
	return "Model: \t\t " + model + "\nIRQ:   \t\t 42\nGPU UUID: \t " + uuid + "\nVideo BIOS: \t 96.00.99\nBus Type: \t PCIe\nDMA Size: \t 52 bits\nBus Location: \t " + bus +
		"\nDevice Minor: \t " + minor + "\nGPU Firmware: \t 580.159.04\nGPU Excluded:\t " + excluded + "\n"
}

const (
	gpuA = "GPU-11111111-1111-1111-1111-111111111111"
	gpuB = "GPU-22222222-2222-2222-2222-222222222222"
)

func twoGPUs() map[string]string {
	return map[string]string{
		"proc/devices":               "Character devices:\n195 nvidia\n510 nvidia-uvm\n511 nvidia-caps\n",
		"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (x@y)\nGCC version:  gcc\n",
		"proc/driver/nvidia/gpus/0000:3b:00.0/information":                  info("NVIDIA H100 80GB HBM3", gpuA, "0000:3b:00.0", "0", "No"),
		"proc/driver/nvidia/gpus/0000:3c:00.0/information":                  info("NVIDIA H100 80GB HBM3", gpuB, "0000:3c:00.0", "1", "No"),
		"proc/driver/nvidia/gpus/0000:5e:00.0/information":                  info("NVIDIA H100 80GB HBM3", strings.ReplaceAll(gpuB, "2", "3"), "0000:5e:00.0", "2", "Yes"),
		"proc/driver/nvidia/gpus/0000:5f:00.0/information":                  info("Unknown", "GPU-????????-????-????-????-????????????", "0000:5f:00.0", "3", "No"),
		"proc/driver/nvidia-caps/mig-minors":                                "config 1\nmonitor 2\ngpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\ngpu1/gi1/access 147\n",
		"proc/driver/nvidia/capabilities/gpu1/mig/gi1/access":               "DeviceFileMinor: 147\n",
		"sys/bus/pci/devices/0000:3b:00.0":                                  "-> ../../../devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0",
		"sys/bus/pci/devices/0000:3c:00.0":                                  "-> ../../../devices/pci0000:3a/0000:3a:00.0/0000:3c:00.0",
		"sys/devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0/config":           "\xde\x10\x30\x23rest",
		"sys/devices/pci0000:3a/0000:3a:00.0/0000:3c:00.0/config":           "\xff\xff\xff\xff",
		"sys/devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0/numa_node":        "1\n",
		"sys/devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0/class":            "0x030200\n",
		"sys/class/dmi/id/product_name":                                     "PowerEdge XE9680\n",
		"sys/devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0/drm/card1/x":      "",
		"sys/devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0/drm/renderD128/x": "",
	}
}

func TestInventory(t *testing.T) {
	s := root(t, twoGPUs())
	n, err := s.Inventory(context.Background())
	if err == nil && (n.Machine != "PowerEdge XE9680" || n.GPUs[0].Mode != "compute" || n.GPUs[1].Mode != "") {
		t.Errorf("machine %q, GPUs %+v", n.Machine, n.GPUs)
	}
	if err != nil {
		t.Fatal(err)
	}
	if bad := n.Clean(); len(bad) > 0 {
		t.Error(bad)
	}
	if n.Driver.Version != "580.159.04" || len(n.GPUs) != 2 {
		t.Fatalf("%+v", n)
	}
	a, b := n.GPUs[0], n.GPUs[1]
	if a.UUID != gpuA || a.NUMA != 1 || len(a.DRM) != 2 || a.MIG || b.Minor != 1 || b.NUMA != -1 || !b.MIG {
		t.Errorf("%+v\n%+v", a, b)
	}
	if l := n.Link(gpuA, gpuB); l.Path != inventory.PathSwitch {
		t.Error(l)
	}
	if m, err := s.Majors(); err != nil || m != (driver.Majors{NVIDIA: 195, UVM: 510, Caps: 511}) {
		t.Error(m, err)
	}
}

func TestSample(t *testing.T) {
	s := root(t, twoGPUs())
	if h, err := s.Sample(context.Background(), discovery.Target{UUID: gpuA}); err != nil || h.Lost || h.Unread != (health.Unread{ECC: true, Remap: true, Links: true, Recovery: true}) {
		t.Error(h, err)
	}
	if h, err := s.Sample(context.Background(), discovery.Target{UUID: gpuB}); err != nil || !h.Lost {
		t.Error("a GPU that reads as all ones is there:", h, err)
	}
	if _, err := s.Sample(context.Background(), discovery.Target{UUID: "GPU-x"}); errs.Of(err) != errs.NotFound {
		t.Error(err)
	}
	if _, err := root(t, map[string]string{"proc/devices": ""}).Inventory(context.Background()); errs.Of(err) != errs.Unavailable {
		t.Error("no driver:", err)
	}
}

func TestPCIPath(t *testing.T) {
	for want, c := range map[inventory.Path][2]string{
		inventory.PathSystem: {"devices/pci0000:00/a/b", "devices/pci0000:80/a/b"},
		inventory.PathBridge: {"devices/pci0000:00/a/b", "devices/pci0000:00/c/d"},
		inventory.PathSwitch: {"devices/pci0000:00/p/u/d1/g1", "devices/pci0000:00/p/u/d2/g2"},
		inventory.PathMulti:  {"devices/pci0000:00/p/u/d1/u1/x1/g1", "devices/pci0000:00/p/u/d2/u2/x2/g2"},
	} {
		if got := PCIPath(strings.Split(c[0], "/"), strings.Split(c[1], "/")); got != want {
			t.Errorf("%v: %s, want %s", c, got, want)
		}
	}
	if PCIPath(nil, nil) != inventory.PathSystem {
		t.Error("nothing is known of two")
	}
}

func TestParseXID(t *testing.T) {
	for record, want := range map[string]int{
		"3,1234,5678,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.": 79,
		"4,1,2,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=7, name=x":                                                      31,
		"4,1,2,-;NVRM: Xid (PCI:0000:3b:00 GPU-I:05): 94, pid=7194, Contained: CE User Channel (0x9).":               94, // in MIG mode
		"4,1,2,-;NVRM: Xid (PCI:0000:3b:00 GPU-I:00 GPU-CI:02): 63, pid=7, name=x":                                   63,
		"4,1,2,-;NVRM: Xid (PCI:0000:3b:00 GPU-I:00 ../..): 63":                                                      0,
		"4,1,2,-;NVRM: Xid (PCI:00000000:3B:00.0): 13":                                                               13,
		"12,1,2,-;NVRM: Xid (PCI:0000:3b:00): 79, forged":                                                            0, // facility 1: written by a program
		"4,1,2,-;x NVRM: Xid (PCI:0000:3b:00): 79":                                                                   0,
		"4,1,2,-;NVRM: Xid (PCI:../../..): 79":                                                                       0,
		"":                                                                                                           0,
	} {
		bus, xid, ok := ParseXID(record)
		if xid != want || ok != (want != 0) || ok && bus != "0000:3b:00" {
			t.Errorf("%q: %q %d %v", record, bus, xid, ok)
		}
	}
}

// TestEventsFollowTheLog reads a log that grows, as a pipe: /dev/kmsg itself belongs to the machine.
func TestEventsFollowTheLog(t *testing.T) {
	s := root(t, twoGPUs())
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Events(ctx); err == nil {
		t.Error("events without a log")
	}
	s.KernelLog = "/dev/kmsg"
	if _, err := os.Stat(s.KernelLog); err != nil {
		t.Skip("this machine has no /dev/kmsg")
	}
	ctx, cancel = context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := s.Events(ctx); err == nil || ctx.Err() == nil {
		t.Error("it does not wait:", err)
	}
}

func FuzzInformation(f *testing.F) {
	f.Add(info("NVIDIA\x1b[31m", gpuA, "0000:3b:00.0", "0", "No"))
	f.Add("GPU UUID")
	f.Fuzz(func(t *testing.T, text string) {
		g, ok := information(text)
		if !ok {
			return
		}
		n := inventory.Node{GPUs: []inventory.GPU{g}}
		n.Clean()
		for _, g := range n.GPUs {
			if strings.ContainsAny(g.UUID+g.Bus, "/\n\x00") {
				t.Errorf("%+v", g)
			}
		}
	})
}

func FuzzParseXID(f *testing.F) {
	f.Add("3,1234,5678,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1")
	f.Fuzz(func(t *testing.T, record string) {
		if bus, xid, ok := ParseXID(record); ok && (xid < 0 || xid > 9999 || len(bus) < 10 || len(bus) > 14) {
			t.Errorf("%q: %q %d", record, bus, xid)
		}
	})
}
