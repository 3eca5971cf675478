package netconf_test

import (
	"os"
	"testing"

	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/spec"
)

func TestDefaults(t *testing.T) {
	c, err := netconf.Parse([]byte(`{"cniVersion":"1.1.0","name":"n","type":"berth"}`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Pools()[0].String() != "10.88.0.0/16" || !c.Masquerade() || c.StateDir != "/run/berth/cni" || c.Cooldown() != 130 {
		t.Errorf("defaults: %+v", c)
	}
}

// TestExample reads the configuration that is shipped, as libcni hands it over.
func TestExample(t *testing.T) {
	b, err := os.ReadFile("../../deploy/10-berth.conflist")
	if err != nil {
		t.Fatal(err)
	}
	confs, err := pluginsOf(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range confs {
		if _, err := netconf.Parse(one); err != nil {
			t.Error(err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"name":"n","type":"berth","ranges":[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.3","exclude":["10.0.0.9/32"]}]}`,
		`{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":2,"hostIP":"::"}],"ips":["10.88.0.9/16"],"mac":"02:00:00:00:00:01"}}`,
		`{"name":"n","args":{"cni":{"ips":["10.88.0.1"]}},"cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]}`,
	} {
		f.Add([]byte(s), "IP=10.88.0.3;K8S_POD_NAME=x")
	}
	f.Fuzz(func(t *testing.T, stdin []byte, args string) {
		c, err := netconf.Parse(stdin)
		if err != nil {
			if code := spec.AsError(err).Code; code != 1 && code != 2 && code != 6 && code != 7 {
				t.Fatalf("code %d: %v", code, err)
			}
			return
		}
		if !netconf.ValidID(c.Name) || len(c.Ranges) == 0 {
			t.Fatalf("accepted %+v", c)
		}
		for _, r := range c.Ranges {
			if !r.Subnet.IsValid() || r.Subnet != r.Subnet.Masked() {
				t.Fatalf("accepted range %+v", r)
			}
		}
		req, err := netconf.ParseRequest(c, args)
		if err != nil {
			if code := spec.AsError(err).Code; code != 4 && code != 7 {
				t.Fatalf("code %d: %v", code, err)
			}
			return
		}
		if len(req.IPs) > 2 || req.MAC[0]&1 != 0 {
			t.Fatalf("accepted %+v", req)
		}
		for _, p := range req.Ports {
			if p.Host == 0 || p.Target == 0 {
				t.Fatalf("accepted port %+v", p)
			}
		}
	})
}

func FuzzArgs(f *testing.F) {
	f.Add("IP=10.88.0.3;MAC=02:00:00:00:00:01")
	f.Add("K8S_POD_NAME=a;;X=")
	c, err := netconf.Parse([]byte(`{"name":"n","type":"berth"}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, args string) {
		req, err := netconf.ParseRequest(c, args)
		if err != nil {
			return
		}
		for _, b := range []byte(req.Namespace + req.Pod + req.UID) {
			if b < ' ' {
				t.Fatalf("a control character got through: %q", args)
			}
		}
	})
}
