package ruleset_test

import (
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/berth-project/berth/cni/internal/nft"
	"github.com/berth-project/berth/cni/internal/ruleset"
	"golang.org/x/sys/unix"
)

// TestKernelTakesIt commits the compiled table, lets nft read it back, and adds and takes out a pod.
func TestKernelTakesIt(t *testing.T) {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	c, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // test
	pod := ruleset.Pod{
		Link: "bth0123456789a", MAC: [6]byte{2, 0, 0, 0, 0, 1}, Masquerade: true,
		Addrs: []netip.Addr{netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd00::2")},
		Ports: []ruleset.HostPort{{Proto: 6, Host: 8080, Target: 80}, {Proto: 17, Host: 53, Target: 53, HostIP: netip.MustParseAddr("192.0.2.1")}},
	}
	if err := c.Commit(ruleset.AddPod(pod)); err == nil {
		t.Error("no error without a table")
	}
	d := ruleset.Desired{NoMasquerade: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/64")}}
	if err := c.Commit(ruleset.Compile(d)); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(ruleset.AddPod(pod)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"iifname != \"bth*\" return",
		"elements = { \"bth0123456789a\" . 02:00:00:00:00:01 . 10.88.0.2 }",
		"elements = { 10.0.0.0/8, 224.0.0.0/4 }",
		"elements = { tcp . 8080 : 10.88.0.2 . 80 }",
		"elements = { 192.0.2.1 . udp . 53 : 10.88.0.2 . 53 }",
		"icmpv6 type nd-router-advert counter packets 0 bytes 0 drop",
		"fib daddr type local jump ports",
		"dnat ip6 to meta l4proto . th dport map @port6",
		"ip saddr @masquerade4 ip daddr != @no-masquerade4 masquerade fully-random",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the table lacks %q:\n%s", want, out)
		}
	}
	for _, e := range ruleset.Elements(pod) {
		if has, err := c.Has(ruleset.Table(), e); !has || err != nil {
			t.Error(e.Set, has, err)
		}
	}
	if err := c.Commit(ruleset.DelPod(pod)); err != nil {
		t.Fatal(err)
	}
}
