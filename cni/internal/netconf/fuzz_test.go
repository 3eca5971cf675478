package netconf

import (
	"slices"
	"testing"

	"github.com/berth-project/berth/cni/internal/spec"
)

// FuzzRequest reads arbitrary configurations and CNI_ARGS of type berth: a valid configuration with valid ranges, or an
// error with one of the codes for bad input.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		``, `{`, `null`, `{"cniVersion":"1.1.0","name":"n","type":"berth"}`,
		`{"cniVersion":"1.1.0","name":"n","ranges":[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.4","exclude":["10.0.0.9"]},{"subnet":"fd00::/64"}],"mtu":1400,"masqueradeExclude":["10.0.0.0/8"]}`,
		`{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"ips":["10.88.0.4"],"mac":"02:00:00:00:00:01","ipRanges":[[{"subnet":"10.9.0.0/24"}]],"portMappings":[{"hostPort":1,"containerPort":2,"protocol":"UDP","hostIP":"0.0.0.0"}],"bandwidth":{"egressRate":9,"egressBurst":1}}}`,
		`{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}],"importHostLocal":["/x"]}`,
	} {
		f.Add([]byte(s), "IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.88.0.9;MAC=02:00:00:00:00:01")
		f.Add([]byte(s), "=;;a=\x00")
	}
	f.Fuzz(func(t *testing.T, stdin []byte, args string) {
		c, err := Parse(stdin)
		if err == nil {
			for _, r := range c.Ranges {
				if !r.Subnet.IsValid() || r.Subnet != r.Subnet.Masked() {
					t.Fatalf("range %v", r)
				}
			}
			_, err = ParseRequest(c, args)
		}
		if err == nil {
			return
		}
		allowed := []spec.Code{spec.CodeVersion, spec.CodeField, spec.CodeEnvironment, spec.CodeDecode, spec.CodeConfig}
		if e := spec.AsError(err); !slices.Contains(allowed, e.Code) || e.Error() == "" {
			t.Fatalf("code %d, %v", e.Code, err)
		}
	})
}
