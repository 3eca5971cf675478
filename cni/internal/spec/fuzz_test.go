package spec_test

import (
	"testing"

	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/containernetworking/cni/pkg/types/create"
)

// FuzzDecode reads arbitrary results: what we read we can write in every version, and the reference library reads it.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","gateway":"10.0.0.1","routes":[{"dst":"0.0.0.0/0"}]},"dns":{}}`,
		`{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"version":"4","address":"10.0.0.2/24","interface":0}]}`,
		`{"cniVersion":"1.1.0","interfaces":[{"name":"a","mtu":5,"pciID":"x"}],"ips":[{"address":"fd00::2/64","gateway":"fd00::1"}],"routes":[{"dst":"::/0","mtu":1400,"table":7,"scope":0}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := spec.Decode("prevResult", raw, "1.0.0")
		if err != nil {
			if c := spec.AsError(err).Code; c != spec.CodeDecode && c != spec.CodeConfig && c != spec.CodeVersion {
				t.Fatalf("code %d: %v", c, err)
			}
			return
		}
		for _, v := range spec.Versions() {
			out, err := r.Encode(v)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := create.Create(v, out); err != nil {
				t.Fatalf("%s: %v: %s", v, err, out)
			}
		}
	})
}
