package dropin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/spec"
)

// check compares the interface and the sysctls with what they were set to.
func (t *tuning) check(c *Call) error {
	if _, err := c.chained(); err != nil {
		return err
	}
	ns, err := c.openNetns()
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // read only
	return inNetns(ns, func(*nlwire.Conn) error {
		var bad []error
		for _, key := range slices.Sorted(maps.Keys(t.Sysctl)) {
			path, err := sysctlPath(key, c.IfName)
			if err != nil {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return fmt.Errorf("sysctl %s: %w", key, err)
			}
			if have := strings.TrimSuffix(string(b), "\n"); have != t.Sysctl[key] {
				bad = append(bad, mismatch("sysctl %s is %q, not %q", key, have, t.Sysctl[key]))
			}
		}
		l, err := lookIn(c.IfName)
		if err != nil {
			return err
		}
		return errors.Join(append(bad, t.compare(l)...)...)
	})
}

func (t *tuning) compare(l rtnl.Link) (bad []error) {
	say := func(what string, have, want any) {
		bad = append(bad, mismatch("interface %s: %s is %v, not %v", l.Name, what, have, want))
	}
	a := t.attrs
	if a.MAC != nil && *a.MAC != l.MAC {
		say("mac", l.MAC, *a.MAC)
	}
	if want := a.Promisc != nil; want != l.Promisc {
		say("promisc", l.Promisc, want)
	}
	if a.MTU != nil && *a.MTU != l.MTU {
		say("mtu", l.MTU, *a.MTU)
	}
	if a.Allmulti != nil && *a.Allmulti != l.Allmulti {
		say("allmulti", l.Allmulti, *a.Allmulti)
	}
	if a.TxQLen != nil && *a.TxQLen != l.TxQLen {
		say("txQLen", l.TxQLen, *a.TxQLen)
	}
	return bad
}

// duplicateKeys refuses an object below the top level's key that has one key twice: which value counts would be a
// matter of chance.
func duplicateKeys(stdin []byte, key string) error {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &top); err != nil {
		return netconf.DecodeError(err)
	}
	if len(top[key]) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(top[key]))
	seen := map[string]bool{}
	for n := 0; ; n++ {
		tok, err := d.Token()
		if err != nil {
			return nil //nolint:nilerr // the end; the object was read before
		}
		if s, ok := tok.(string); ok && n%2 == 1 {
			if seen[s] {
				return spec.Errorf(spec.CodeConfig, "%s: key %q stands there twice", key, s)
			}
			seen[s] = true
		}
	}
}
