package executor

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write the golden files")

// fakeHost is a host with fixed properties, so that plans do not depend on the machine.
func fakeHost() *host {
	return &host{
		proc: 3, null: 4, nullRW: 5, lastCap: 40, have: 1<<41 - 1, hard: map[int]uint64{unix.RLIMIT_NOFILE: 4096}, ignored: []int{1},
		cgroups: []hierarchy{{name: "cpu", path: "/sys/fs/cgroup/cpu", options: []string{"cpu"}}, {name: "systemd", path: "/sys/fs/cgroup/systemd", options: []string{"name=systemd"}}},
	}
}

// TestGolden compiles the specs in testdata and compares the plans, step by step.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			spec := &specs.Spec{}
			if err := json.Unmarshal(b, spec); err != nil {
				t.Fatal(err)
			}
			in := fakeInputs(t, spec)
			p, err := compileStart(spec, in)
			if err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(file, ".json") + ".plan"
			if *update {
				if err := os.WriteFile(golden, []byte(p.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if p.String() != string(want) {
				t.Errorf("the plan changed; see with -update and git diff\n%s", p)
			}
			again, err := compileStart(spec, fakeInputs(t, spec))
			if err != nil || again.String() != p.String() {
				t.Error("compiling is not deterministic")
			}
		})
	}
}

// fakeInputs stands in for prepare, without a system call.
func fakeInputs(t *testing.T, spec *specs.Spec) *inputs {
	t.Helper()
	in := &inputs{
		id: "ID", host: fakeHost(), rootfs: 10, null: 11, join: map[string]int{}, fresh: map[string]bool{}, std: map[string]int{},
		stdio: Stdio{-1, 20, 21}, sources: make([]source, len(spec.Mounts)), ownsNet: true, filter: &Filter{Code: string(make([]byte, 80))},
	}
	for i := range spec.Mounts {
		o, err := parseOptions(&spec.Mounts[i])
		if err != nil {
			t.Fatal(err)
		}
		in.sources[i] = source{fd: -1, dir: true, opts: o}
		if o.bind {
			in.sources[i].fd, in.sources[i].dir = 30+i, !strings.HasSuffix(spec.Mounts[i].Source, "hosts")
		}
	}
	for i, ns := range spec.Linux.Namespaces {
		kind := NamespaceKind(ns.Type)
		switch kind {
		case "net", "ipc", "uts", "user":
			in.join[kind] = 40 + i
		case "pid":
			in.newPid = true
		default:
			in.fresh[kind] = true
		}
	}
	if in.userns() {
		for i, d := range defaultDevices() {
			in.std[d.Path] = 60 + i
		}
	}
	return in
}

func TestSysctlPath(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.ip_forward": "net/ipv4/ip_forward", "net/ipv4/conf/eth0.1/forwarding": "net/ipv4/conf/eth0.1/forwarding",
		"net.ipv4.conf.eth0/1.forwarding": "net/ipv4/conf/eth0.1/forwarding", "kernel.shmmax": "kernel/shmmax", "fs.mqueue.msg_max": "fs/mqueue/msg_max",
	} {
		if got, _, err := sysctlPath(key, "1"); err != nil || got != want {
			t.Errorf("%s: %q, %v", key, got, err)
		}
	}
	for _, key := range []string{"", "kernel.core_pattern", "vm.swappiness", "net..x", "net/../kernel/x", "net.ipv4.ip forward", "kernel", "net.", "fs.file-max", "net.ipv4\n"} {
		if got, _, err := sysctlPath(key, "1"); err == nil {
			t.Errorf("%q accepted as %q", key, got)
		}
	}
}

func TestHomeOf(t *testing.T) {
	passwd := "root:x:0:0::/root:/bin/sh\nbad:x:4294967297:0::/bad:/\nrel:x:7:7::relative:/\nme:x:1000:1000::/home/me:/bin/sh"
	for uid, want := range map[uint32]string{0: "/root", 1: "/", 7: "/", 1000: "/home/me"} {
		if got := homeOf(passwd, uid); got != want {
			t.Errorf("%d: %q", uid, got)
		}
	}
}

func FuzzParseOptions(f *testing.F) {
	f.Add("rro")
	f.Add("r")
	f.Add("")
	f.Fuzz(func(_ *testing.T, opt string) {
		_, _ = parseOptions(&specs.Mount{Destination: "/x", Options: []string{opt}})
	})
}
