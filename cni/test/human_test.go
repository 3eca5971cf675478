package test

import (
	"os/exec"
	"strings"
	"testing"
)

func (n *node) human(t *testing.T, words ...string) (string, error) {
	t.Helper()
	var out []byte
	err := n.Do(func() (err error) {
		out, err = exec.Command(n.bin, append(words, n.state)...).CombinedOutput()
		return err
	})
	return string(out), err
}

func TestListAndDoctor(t *testing.T) {
	n := newNode(t)
	p, err := n.tryAdd(newNS(t), "c0ffee", n.conf("1.1.0", dual+ports), "K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web")
	if err != nil {
		t.Fatal(err)
	}
	defer p.del(t)
	out, err := n.human(t, "list")
	for _, want := range []string{"prod/web", "podnet", "c0ffee", p.v4, p.v6, p.host, "8080→80", "ready"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("list lacks %s: %v\n%s", want, err, out)
		}
	}
	if out, err := n.human(t, "doctor"); err != nil {
		t.Errorf("doctor on a healthy node: %v\n%s", err, out)
	}
	for _, what := range []string{"web", "prod/web", "c0ff", p.v4, p.v6, p.host} {
		out, err := n.human(t, "explain", what)
		for _, want := range []string{"prod/web", "container c0ffee", p.v4 + " by " + p.host, "8080", "elements in table inet berth-node"} {
			if err != nil || !strings.Contains(out, want) || strings.Contains(out, "MISSING") {
				t.Errorf("explain %s lacks %s: %v\n%s", what, want, err, out)
			}
		}
	}
	if out, err := n.human(t, "explain", "nobody"); err == nil || !strings.Contains(out, "nobody") {
		t.Errorf("explain of what is not there: %v %s", err, out)
	}
	n.sh(t, "nft delete table inet berth-node")
	if out, err := n.human(t, "explain", "web"); err != nil || !strings.Contains(out, "MISSING nftables") {
		t.Errorf("explain after a flush: %v\n%s", err, out)
	}
	if out, err := n.human(t, "doctor"); err == nil || !strings.Contains(out, "WRONG table inet berth-node") {
		t.Errorf("doctor after a flush: %v\n%s", err, out)
	}
	if _, err := n.human(t, "frobnicate"); err == nil {
		t.Error("an unknown word was accepted")
	}
}
