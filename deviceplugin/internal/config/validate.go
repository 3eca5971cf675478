package config

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/alloc"
	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/policy"
	"github.com/berth-project/berth/proto/errs"
)

// report collects what is wrong, each with its key.
type report struct{ all []error }

func (r *report) bad(key, format string, args ...any) {
	r.all = append(r.all, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
}

func (r *report) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		r.bad(key, "%q, want %s", value, strings.Join(allowed, ", "))
	}
}

// Validate says everything that is wrong at once.
func (c Config) Validate() error {
	r := &report{}
	for _, p := range []struct{ key, path string }{
		{"root", c.Root},
		{"state", c.State},
		{"kubelet.dir", c.Kubelet.Dir},
		{"kubelet.device_plugins", c.Kubelet.Plugins},
		{"driver.root", c.Driver.Root},
		{"driver.view", cmp.Or(c.Driver.View, "/")},
		{"driver.dev", c.Driver.Dev},
		{"driver.dev_view", cmp.Or(c.Driver.DevView, "/")},
		{"driver.proc", c.Driver.Proc},
		{"driver.sys", c.Driver.Sys},
		{"cdi.dir", c.CDI.Dir},
		{"labels.file", cmp.Or(c.Labels.File, "/")},
		{"cluster.kubeconfig", cmp.Or(c.Cluster.Kubeconfig, "/")},
	} {
		if !filepath.IsAbs(p.path) {
			r.bad(p.key, "%q is not an absolute path", p.path)
		}
	}
	if len(c.State) > 60 || len(c.Kubelet.Dir) > 60 || len(c.Kubelet.Plugins) > 60 {
		r.bad("state, kubelet.dir, kubelet.device_plugins", "at most 60 bytes: a Unix socket's path holds 107")
	}
	r.oneOf("log_level", c.LogLevel, "debug", "info", "warn", "error")
	r.oneOf("discovery", c.Discovery, "auto", "nvml", "proc")
	r.oneOf("kubelet.registration", c.Kubelet.Registration, "watcher", "legacy", "both")
	for _, k := range c.Driver.Capabilities {
		r.oneOf("driver.capabilities", k, capabilityNames()...)
	}
	if l := c.Cluster.OverrideLabel; l != "" && !labelForm.MatchString(l) {
		r.bad("cluster.override_label", "%q is no label's key: want a name, or a domain, a slash and a name", l)
	}
	c.Health.validate(r)
	validateOffer(r, "", c.MIG, c.Resources)
	for name, o := range c.Overrides {
		if !overrideForm.MatchString(name) {
			r.bad("overrides."+name, "no label can have this value: letters, digits, ., - and _, at most 63")
		}
		validateOffer(r, "overrides."+name+".", cmp.Or(o.MIG, c.MIG), o.Resources)
	}
	if err := errors.Join(r.all...); err != nil {
		return errs.InvalidArgument.Wrap(err)
	}
	return nil
}

func (h Health) validate(r *report) {
	for _, t := range []struct {
		key        string
		value, low int
	}{
		{"poll_ms", h.Poll, 50},
		{"timeout_ms", h.Timeout, 10},
		{"start_ms", h.Start, 10},
		{"hold_down_ms", h.HoldDown, 0},
		{"max_hold_down_ms", h.MaxHoldDown, 0},
		{"quiet_ms", h.Quiet, 0},
		{"forget_ms", h.Forget, 0},
	} {
		if t.value < t.low || t.value > 24*3600*1000 {
			r.bad("health."+t.key, "%d, want %d to a day", t.value, t.low)
		}
	}
}

// resourceForm is an extended resource's name: a domain that is not kubernetes.io, and a name.
var resourceForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}/[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?$`)

// labelForm is a label's key, overrideForm its value where it is not empty.
var (
	labelForm    = regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?$`)
	overrideForm = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?$`)
)

func validateOffer(r *report, prefix, mig string, rules []Resource) {
	r.oneOf(prefix+"mig_strategy", mig, "none", "single", "mixed")
	names := map[string]bool{}
	for i, x := range rules {
		key := fmt.Sprintf("%sresources[%d]", prefix, i)
		if !resourceForm.MatchString(x.Name) || strings.Contains(x.Name, "kubernetes.io/") {
			r.bad(key+".name", "%q is no extended resource: want a domain, a slash and a name, as in nvidia.com/gpu", x.Name)
		}
		if names[x.Name] {
			r.bad(key+".name", "%s is there twice: give the selectors of both to one", x.Name)
		}
		names[x.Name] = true
		for _, g := range slices.Concat(x.Select.UUID, x.Select.Product, x.Select.Bus, x.Select.MIG) {
			if _, err := path.Match(g, ""); err != nil {
				r.bad(key+".select", "%q is no glob", g)
			}
		}
		s := x.Sharing
		r.oneOf(key+".sharing.strategy", cmp.Or(s.Strategy, "exclusive"), "exclusive", "time-slicing", "mps")
		r.oneOf(key+".sharing.policy", cmp.Or(s.Policy, "packed"), "packed", "spread")
		switch exclusive := cmp.Or(s.Strategy, "exclusive") == "exclusive"; {
		case exclusive && s.Replicas > 1:
			r.bad(key+".sharing.replicas", "%d of an exclusive device: set strategy to time-slicing or mps", s.Replicas)
		case !exclusive && (s.Replicas < 2 || s.Replicas > 1000):
			r.bad(key+".sharing.replicas", "%d, want 2 to 1000", s.Replicas)
		}
		if s.Strategy == "mps" && len(x.Select.MIG) > 0 {
			r.bad(key+".sharing.strategy", "mps is not offered on MIG instances")
		}
		if s.Memory > 0 && s.Strategy != "mps" {
			r.bad(key+".sharing.memory_mib", "only mps limits memory")
		}
	}
}

// Offer is the policy of a node; override "" is the file's own. One that is not there is NotFound.
func (c Config) Offer(override string) (policy.Policy, error) {
	mig, rules := c.MIG, c.Resources
	if override != "" {
		o, ok := c.Overrides[override]
		if !ok {
			return policy.Policy{}, errs.NotFound.Errorf("the configuration has no overrides.%s", override)
		}
		mig, rules = cmp.Or(o.MIG, c.MIG), o.Resources
	}
	p := policy.Policy{MIG: policy.MIGStrategy(mig)}
	for _, x := range rules {
		s := x.Sharing
		rule := policy.Rule{
			Name: x.Name, UUID: x.Select.UUID, Product: x.Select.Product, Bus: x.Select.Bus, MIG: x.Select.MIG,
			Sharing: policy.Sharing(cmp.Or(s.Strategy, "exclusive")), Replicas: max(s.Replicas, 1), One: s.One, Memory: s.Memory << 20,
		}
		spread := alloc.Spread
		if rule.Sharing == policy.Exclusive {
			spread = alloc.Packed
		}
		rule.Spread = alloc.Policy(cmp.Or(s.Policy, string(spread)))
		p.Rules = append(p.Rules, rule)
	}
	return p, nil
}

// Rules are the state machine's.
func (h Health) Rules() health.Rules {
	return health.Rules{
		HoldDown: Milliseconds(h.HoldDown), MaxHoldDown: Milliseconds(h.MaxHoldDown), Quiet: Milliseconds(h.Quiet), Ignore: h.Ignore, Fatal: h.Fatal,
	}
}

// Milliseconds is the configuration's unit of time.
func Milliseconds(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// Groups are the driver's capabilities.
func (d Driver) Groups() []driver.Capability {
	var all []driver.Capability
	for _, c := range d.Capabilities {
		all = append(all, driver.Capability(c))
	}
	return all
}

func capabilityNames() []string {
	var all []string
	for _, c := range driver.Capabilities() {
		all = append(all, string(c))
	}
	return all
}
