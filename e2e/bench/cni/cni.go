// Package cni is `make bench-cni`: what attaching and detaching a pod takes when a runtime executes the plugins, type berth
// and the drop-in names against upstream's, in one run, one sample of each in turn, each side on a host of its own.
package cni

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/berth-project/berth/e2e/bench/report"
	conform "github.com/berth-project/berth/e2e/cni-conform"
)

// Config says where things are and how many samples to take.
type Config struct {
	// Plugins are ours under all names, Upstream theirs, Fill is the program that fills a node.
	Plugins, Upstream, Fill string
	Samples, Bursts         int
}

// Bars are what the plugin suite is held to.
func Bars() []report.Bar {
	return []report.Bar{
		{Name: "chain_add_p50", Limit: 0.1},
		{Name: "chain_del_p50", Limit: 0.1},
		{Name: "dropin_add_p50", Limit: 0.35},
		{Name: "dropin_del_p50", Limit: 0.35},
		{Name: "add_30_at_once", Limit: 0.1},
		{Name: "add_60000_in_use", Limit: 1.2},
	}
}

// chain is one way to attach a pod on a host of its own.
type chain struct {
	host    *conform.Host
	dir     string
	plugins []map[string]any
	serial  int
	add     report.Series
	del     report.Series
}

// pod is an attached container.
type pod struct {
	id    string
	ns    *conform.Netns
	confs []string
}

const ports = `{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`

func (c Config) chains() (berth, dropin, upstream *chain, err error) {
	bridge := func(state string) []map[string]any {
		return []map[string]any{
			{"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": true, "stateDir": state, "ipam": map[string]any{
				"type": "host-local", "subnet": "10.77.0.0/16", "dataDir": state + "/leases",
			}},
			{"type": "portmap", "snat": true, "stateDir": state, "runtimeConfig": json.RawMessage(ports)},
		}
	}
	berth = &chain{dir: c.Plugins, plugins: []map[string]any{{
		"type": "berth", "stateDir": "/run/bench-berth", "runtimeConfig": json.RawMessage(ports),
		"ranges": []any{map[string]any{"subnet": "10.77.0.0/16"}},
	}}}
	dropin = &chain{dir: c.Plugins, plugins: bridge("/run/bench-dropin")}
	upstream = &chain{dir: c.Upstream, plugins: bridge("/run/bench-upstream")}
	for _, ch := range []*chain{berth, dropin, upstream} {
		if ch.host, err = conform.NewHost(); err != nil {
			return nil, nil, nil, err
		}
	}
	return berth, dropin, upstream, nil
}

// run executes one plugin.
func (c *chain) run(verb string, i int, p *pod, conf string) ([]byte, time.Duration, error) {
	name, _ := c.plugins[i]["type"].(string)
	env := []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + p.id, "CNI_IFNAME=eth0", "CNI_NETNS=" + p.ns.Path, "CNI_PATH=" + c.dir}
	return c.host.Run(env, conf, filepath.Join(c.dir, name))
}

func (c *chain) prepare() (*pod, error) {
	c.serial++
	ns, err := c.host.NewContainer()
	return &pod{id: fmt.Sprintf("pod-%d", c.serial), ns: ns}, err
}

// attach is what a runtime does with a list of plugins; port makes the host ports of pods at once differ.
func (c *chain) attach(p *pod, port int) (time.Duration, error) {
	var prev json.RawMessage
	var sum time.Duration
	for i, plugin := range c.plugins {
		conf := map[string]any{"cniVersion": "1.0.0", "name": "bench"}
		for k, v := range plugin {
			conf[k] = v
		}
		if port != 0 && conf["runtimeConfig"] != nil {
			conf["runtimeConfig"] = json.RawMessage(fmt.Sprintf(`{"portMappings":[{"hostPort":%d,"containerPort":80,"protocol":"tcp"}]}`, port))
		}
		if prev != nil {
			conf["prevResult"] = prev
		}
		b, err := json.Marshal(conf)
		if err != nil {
			return 0, err
		}
		out, took, err := c.run("ADD", i, p, string(b))
		if err != nil {
			return 0, err
		}
		prev, sum = out, sum+took
		p.confs = append(p.confs, string(b))
	}
	return sum, nil
}

func (c *chain) detach(p *pod) (sum time.Duration, err error) {
	for i := len(p.confs) - 1; i >= 0; i-- {
		_, took, err := c.run("DEL", i, p, p.confs[i])
		if err != nil {
			return 0, err
		}
		sum += took
	}
	return sum, nil
}

// sample attaches and detaches one pod.
func (c *chain) sample(keep bool) error {
	p, err := c.prepare()
	if err != nil {
		return err
	}
	defer p.ns.Vanish()
	add, err := c.attach(p, 0)
	if err != nil {
		return err
	}
	del, err := c.detach(p)
	if err == nil && keep {
		c.add, c.del = append(c.add, ms(add)), append(c.del, ms(del))
	}
	return err
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// burst attaches 30 pods at once and says when the last one was.
func (c *chain) burst() (time.Duration, error) {
	const n = 30
	var pods []*pod
	for range n {
		p, err := c.prepare()
		if err != nil {
			return 0, err
		}
		defer p.ns.Vanish()
		pods = append(pods, p)
	}
	errs := make(chan error, n)
	var wg sync.WaitGroup
	start := time.Now()
	for i, p := range pods {
		wg.Go(func() {
			_, err := c.attach(p, 20000+i)
			errs <- err
		})
	}
	wg.Wait()
	took := time.Since(start)
	for range n {
		if err := <-errs; err != nil {
			return 0, err
		}
	}
	for _, p := range pods {
		if _, err := c.detach(p); err != nil {
			return 0, err
		}
	}
	return took, nil
}

// Run measures and returns the rows.
func Run(c Config) (*report.Report, error) {
	berth, dropin, upstream, err := c.chains()
	if err != nil {
		return nil, err
	}
	all := []*chain{berth, dropin, upstream}
	defer func() {
		for _, ch := range all {
			ch.host.Close()
		}
	}()
	for i := range c.Samples + 3 { // three to warm up
		for j := range all {
			if err := all[(i+j)%len(all)].sample(i >= 3); err != nil {
				return nil, err
			}
		}
	}
	r := &report.Report{}
	r.AddQuantiles("chain_add", "ms", berth.add, upstream.add)
	r.AddQuantiles("chain_del", "ms", berth.del, upstream.del)
	r.AddQuantiles("dropin_add", "ms", dropin.add, upstream.add)
	r.AddQuantiles("dropin_del", "ms", dropin.del, upstream.del)
	if err := c.bursts(r, berth, dropin, upstream); err != nil {
		return nil, err
	}
	if err := c.full(r); err != nil {
		return nil, err
	}
	return r, c.sizes(r)
}

func (c Config) bursts(r *report.Report, berth, dropin, upstream *chain) error {
	var ours, drop, theirs report.Series
	for range c.Bursts {
		for _, b := range []struct {
			c  *chain
			to *report.Series
		}{{berth, &ours}, {upstream, &theirs}, {dropin, &drop}} {
			took, err := b.c.burst()
			if err != nil {
				return err
			}
			*b.to = append(*b.to, ms(took))
		}
	}
	r.Add("add_30_at_once", "ms", ours.P50(), theirs.P50())
	r.Add("dropin_add_30_at_once", "ms", drop.P50(), theirs.P50())
	return nil
}

// full compares a network with 60,000 addresses in use with one that has a single one.
func (c Config) full(r *report.Report) error {
	var chains []*chain
	for i, count := range []string{"60000", "1"} {
		state := fmt.Sprintf("/run/bench-full%d", i)
		ch := &chain{dir: c.Plugins, plugins: []map[string]any{{
			"type": "berth", "stateDir": state, "ranges": []any{map[string]any{"subnet": "10.77.0.0/16"}},
		}}}
		var err error
		if ch.host, err = conform.NewHost(); err != nil {
			return err
		}
		defer ch.host.Close()
		if _, _, err := ch.host.Run(nil, "", c.Fill, state, "bench", "10.77.0.0/16", count); err != nil {
			return err
		}
		chains = append(chains, ch)
	}
	for i := range c.Samples + 3 {
		for j := range chains {
			if err := chains[(i+j)%2].sample(i >= 3); err != nil {
				return err
			}
		}
	}
	r.Add("add_60000_in_use", "ms", chains[0].add.P50(), chains[1].add.P50())
	r.Add("del_60000_in_use", "ms", chains[0].del.P50(), chains[1].del.P50())
	return nil
}

// sizes compares one binary with the nine it replaces.
func (c Config) sizes(r *report.Report) error {
	size := func(names ...string) (sum float64, err error) {
		for _, n := range names {
			fi, err := os.Stat(n)
			if err != nil {
				return 0, err
			}
			sum += float64(fi.Size()) / (1 << 20)
		}
		return sum, nil
	}
	ours, err := size(filepath.Join(c.Plugins, "berth"))
	if err != nil {
		return err
	}
	var theirs []string
	for _, n := range []string{"bridge", "ptp", "host-local", "static", "loopback", "portmap", "bandwidth", "firewall", "tuning"} {
		theirs = append(theirs, filepath.Join(c.Upstream, n))
	}
	sum, err := size(theirs...)
	if err == nil {
		r.Add("binary_size", "MiB", ours, sum)
	}
	return err
}
