package dropin

import (
	"io"
	"slices"
	"testing"

	"github.com/berth-project/berth/cni/internal/podnet"
	"github.com/berth-project/berth/cni/internal/spec"
)

// FuzzParse reads arbitrary configurations and arguments as every type does before it touches anything: whatever they
// are, there is a configuration or an error with one of the codes for bad input.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		``, `{`, `null`, `[]`, `{"name":5}`, `{"cniVersion":"9","name":"x"}`,
		`{"cniVersion":"1.1.0","name":"n","type":"bridge","vlan":7,"vlanTrunk":[{"minID":1,"maxID":3}],"ipMasq":true,"ipam":{"type":"host-local","subnet":"10.0.0.0/24","rangeStart":"10.0.0.5","routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1"}]}}`,
		`{"cniVersion":"0.4.0","name":"n","ipam":{"type":"static","addresses":[{"address":"10.0.0.2/24","gateway":"10.0.0.1"}]},"args":{"cni":{"ips":["10.0.0.9/24"],"mac":"02:00:00:00:00:01"}}}`,
		`{"cniVersion":"1.0.0","name":"n","backend":"iptables","snat":false,"conditionsV4":["-s","1.2.3.4"],"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"sctp","hostIP":"::1"}],"bandwidth":{"ingressRate":8,"ingressBurst":8}},"prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24","interface":0}],"interfaces":[{"name":"eth0"}]}}`,
		`{"cniVersion":"1.0.0","name":"n","sysctl":{"net.core.somaxconn":"1","../../x":"y"},"mtu":1400,"txQLen":-1,"ingressPolicy":"isolated"}`,
		`{"cniVersion":"1.0.0","name":"n","ipam":{"type":"host-local","ranges":[[{"subnet":"fd00::/64"}],[{"subnet":"::ffff:10.0.0.0/120"}]]}}`,
	} {
		for i := range Types() {
			f.Add([]byte(s), "IgnoreUnknown=1;IP=10.0.0.7/24;MAC=02:00:00:00:00:09", uint8(i))
		}
	}
	f.Fuzz(func(t *testing.T, stdin []byte, args string, typ uint8) {
		types := Types()
		c := &Call{
			Verb: "ADD", Type: types[int(typ)%len(types)], Args: args, Stdin: stdin, Log: io.Discard,
			Attachment: podnet.Attachment{ContainerID: "c", IfName: "eth0", Netns: "/run/netns/x"},
		}
		err := plugins()[c.Type]().parse(c)
		if err == nil {
			_, err = c.previous()
		}
		if err == nil {
			return
		}
		allowed := []spec.Code{spec.CodeVersion, spec.CodeField, spec.CodeEnvironment, spec.CodeIO, spec.CodeDecode, spec.CodeConfig}
		if e := spec.AsError(err); !slices.Contains(allowed, e.Code) || e.Error() == "" {
			t.Fatalf("type %s: code %d, %v", c.Type, e.Code, err)
		}
	})
}
