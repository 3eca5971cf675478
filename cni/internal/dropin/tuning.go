package dropin

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/nlwire"
	"github.com/berth-project/berth/cni/internal/rtnl"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/cni/internal/state"
	"golang.org/x/sys/unix"
)

// knobs are what type tuning changes, in the configuration itself or in args.cni.
type knobs struct {
	Sysctl   map[string]string `json:"sysctl"`
	MAC      *string           `json:"mac"`
	Promisc  *bool             `json:"promisc"`
	MTU      *int              `json:"mtu"`
	TxQLen   *int              `json:"txQLen"`
	Allmulti *bool             `json:"allmulti"`
}

// tuning is the configuration of type tuning.
type tuning struct {
	knobs
	DataDir string `json:"dataDir"`
	Args    struct {
		CNI knobs `json:"cni"`
	} `json:"args"`

	attrs rtnl.Attrs
}

// allowlist is the node's: if it is there, a sysctl must match one of its lines, each a regular expression.
const allowlist = "/etc/cni/tuning/allowlist.conf"

func tuningPlugin() plugin {
	t := &tuning{}
	return plugin{parse: t.parse, add: t.add, check: t.check, del: t.del}
}

func (t *tuning) parse(c *Call) error {
	if err := c.parse(t); err != nil {
		return err
	}
	if err := duplicateKeys(c.Stdin, "sysctl"); err != nil {
		return err
	}
	if err := t.merge(c); err != nil {
		return err
	}
	if c.Verb != "ADD" && c.Verb != "CHECK" {
		return nil
	}
	return t.checkSysctls()
}

// merge puts together what the configuration, CNI_ARGS, the runtime and args.cni want; the last one wins.
func (t *tuning) merge(c *Call) error {
	args, err := netconf.ParseArgs(c.Args)
	if err != nil {
		return err
	}
	own, over := &t.knobs, t.Args.CNI
	if over.Sysctl != nil {
		merged := maps.Clone(own.Sysctl)
		if merged == nil {
			merged = map[string]string{}
		}
		maps.Copy(merged, over.Sysctl)
		own.Sysctl = merged
	}
	if own.MAC != nil && *own.MAC == "" {
		own.MAC = nil
	}
	for _, mac := range []string{args["MAC"], c.conf.RuntimeConfig.MAC} {
		if mac != "" {
			own.MAC = &mac
		}
	}
	own.MAC, own.Promisc = last2(own.MAC, over.MAC), last2(own.Promisc, over.Promisc)
	own.MTU, own.TxQLen = last2(own.MTU, over.MTU), last2(own.TxQLen, over.TxQLen)
	t.attrs = rtnl.Attrs{Allmulti: last2(own.Allmulti, over.Allmulti), TxQLen: own.TxQLen}
	if own.MAC != nil {
		mac, err := netconf.ParseMAC("mac", *own.MAC)
		if err != nil {
			return err
		}
		m := rtnl.MAC(mac)
		t.attrs.MAC = &m
	}
	if own.Promisc != nil && *own.Promisc {
		t.attrs.Promisc = own.Promisc
	}
	if own.MTU != nil && *own.MTU != 0 {
		if *own.MTU < 68 || *own.MTU > 65535 {
			return spec.Errorf(spec.CodeConfig, "mtu %d is not between 68 and 65535", *own.MTU)
		}
		t.attrs.MTU = own.MTU
	}
	if own.TxQLen != nil && *own.TxQLen < 0 {
		return spec.Errorf(spec.CodeConfig, "txQLen %d is negative", *own.TxQLen)
	}
	return nil
}

func last2[T any](first, second *T) *T {
	if second != nil {
		return second
	}
	return first
}

// sysctlPath is a key's file. Dots separate unless there are slashes, and IFNAME stands for the interface.
func sysctlPath(key, ifName string) (string, error) {
	name := key
	if !strings.Contains(name, "/") {
		name = strings.ReplaceAll(name, ".", "/")
	}
	path := filepath.Join("/proc/sys", strings.Replace(name, "IFNAME", ifName, 1))
	if !strings.HasPrefix(path, "/proc/sys/net/") || strings.ContainsAny(key, "\x00\n") {
		return "", spec.Errorf(spec.CodeConfig, "sysctl %q is not below net.", key)
	}
	return path, nil
}

func (t *tuning) checkSysctls() error {
	var allowed []*regexp.Regexp
	b, err := os.ReadFile(allowlist)
	limited := err == nil
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return spec.Errorf(spec.CodeIO, "%w", err)
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		re, err := regexp.Compile(line)
		if err != nil {
			return spec.Errorf(spec.CodeConfig, "%s: %w", allowlist, err)
		}
		allowed = append(allowed, re)
	}
	for _, key := range slices.Sorted(maps.Keys(t.Sysctl)) {
		if _, err := sysctlPath(key, "x"); err != nil {
			return err
		}
		if limited && !slices.ContainsFunc(allowed, func(re *regexp.Regexp) bool { return re.MatchString(key) }) {
			return spec.Errorf(spec.CodeConfig, "sysctl %s is not allowed by %s", key, allowlist)
		}
	}
	return nil
}

func (t *tuning) add(c *Call) (*spec.Result, error) {
	r, err := c.chained()
	if err != nil {
		return nil, err
	}
	ns, err := c.openNetns()
	if err != nil {
		return nil, err
	}
	defer ns.Close() //nolint:errcheck // read only
	err = c.with(func() error {
		if err := c.refuseSecond(); err != nil {
			return err
		}
		in, err := c.inside(ns)
		if err != nil {
			return err
		}
		rec := c.record(ns)
		rec.Restore = t.backup(in)
		return c.net.Make(rec, func() error {
			return inNetns(ns, func(conn *nlwire.Conn) error {
				for _, key := range slices.Sorted(maps.Keys(t.Sysctl)) {
					path, err := sysctlPath(key, c.IfName)
					if err == nil {
						err = os.WriteFile(path, []byte(t.Sysctl[key]), 0)
					}
					if err != nil {
						return fmt.Errorf("sysctl %s: %w", key, err)
					}
				}
				if t.attrs == (rtnl.Attrs{}) {
					return nil
				}
				return conn.Do(t.ops(in.Index))
			})
		})
	})
	if err != nil || t.attrs.MAC == nil {
		return nil, err
	}
	for i := range r.Interfaces {
		if r.Interfaces[i].Name == c.IfName {
			r.Interfaces[i].MAC = t.attrs.MAC.String()
		}
	}
	return r, nil
}

func (t *tuning) ops(index int32) []nlwire.Op { return []nlwire.Op{rtnl.SetAttrs(index, t.attrs)} }

// backup is what the interface had of the attributes that will change.
func (t *tuning) backup(l rtnl.Link) *state.Restore {
	if t.attrs == (rtnl.Attrs{}) {
		return nil
	}
	b := &state.Restore{}
	if t.attrs.MAC != nil {
		b.MAC = l.MAC.String()
	}
	if t.attrs.MTU != nil {
		b.MTU = l.MTU
	}
	if t.attrs.Promisc != nil {
		b.Promisc = &l.Promisc
	}
	if t.attrs.Allmulti != nil {
		b.Allmulti = &l.Allmulti
	}
	if t.attrs.TxQLen != nil {
		b.TxQLen = &l.TxQLen
	}
	return b
}

// del gives the interface back what it had, if it is still there.
func (t *tuning) del(c *Call) error {
	return c.with(func() error {
		rec, err := c.net.Find(c.Type, c.Attachment)
		if err != nil || rec == nil {
			return err
		}
		if rec.Restore != nil && c.Netns != "" {
			if err := c.restore(rec.Restore); err != nil {
				return err
			}
		}
		return c.net.Remove(rec)
	})
}

func (c *Call) restore(b *state.Restore) error {
	ns, err := c.openNetns()
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // read only
	a := rtnl.Attrs{Promisc: b.Promisc, Allmulti: b.Allmulti, TxQLen: b.TxQLen}
	if b.MTU != 0 {
		a.MTU = &b.MTU
	}
	if mac, err := netconf.ParseMAC("record", b.MAC); err == nil {
		m := rtnl.MAC(mac)
		a.MAC = &m
	}
	return inNetns(ns, func(conn *nlwire.Conn) error {
		ms, err := conn.Query("look up interface "+c.IfName, rtnl.GetLink(c.IfName))
		if errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return err
		}
		l, _ := rtnl.ParseLink(ms[0])
		return conn.Do([]nlwire.Op{rtnl.SetAttrs(l.Index, a)})
	})
}
