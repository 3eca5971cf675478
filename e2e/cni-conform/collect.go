package conform

import (
	"fmt"
	"sync"
	"time"
)

// small is a configuration whose range has few addresses: two, or one.
func (t *T) small() Conf {
	if t.Name() == "berth" {
		return Conf{"ranges": []any{Conf{"subnet": "10.77.0.0/30"}}, "cooldownSeconds": 0}
	}
	return Conf{"ipam": Conf{"type": "host-local", "subnet": "10.77.0.0/29", "rangeEnd": "10.77.0.3", "routes": []any{}}}
}

func (t *T) status() {
	conf := t.conf(0, "1.1.0", nil, t.small())
	if _, err := t.exec(call{verb: "STATUS", file: t.file(t.last()), stdin: conf}); err != nil {
		t.Failf("STATUS with addresses left: %v", err)
	}
	for range 2 {
		t.attach("1.1.0", t.small())
	}
	if _, err := t.exec(call{verb: "STATUS", file: t.file(t.last()), stdin: conf}); code(err) != 50 {
		t.Failf("STATUS without an address left: %v, want code 50", err)
	}
}

func (t *T) statusPlain() {
	conf := t.conf(len(t.Chain)-1, "1.1.0", nil, nil)
	if _, err := t.exec(call{verb: "STATUS", file: t.file(t.last()), stdin: conf}); err != nil {
		t.Failf("STATUS: %v", err)
	}
}

func (t *T) exhaustion() {
	a := t.attach("1.0.0", t.small())
	b := t.attach("1.0.0", t.small())
	if string(a.final()) == string(b.final()) {
		t.Failf("the same address twice")
	}
	before := t.census()
	if _, err := t.tryAttach("1.0.0", t.small()); err == nil {
		t.Failf("a third address of two")
	}
	t.nothingLeft(before, "the failed ADD (before any DEL)")
	t.detach(a, nil)
	if c, err := t.tryAttach("1.0.0", t.small()); err != nil {
		t.Failf("after a DEL: %v", err)
	} else {
		t.detach(c, nil)
	}
	t.detach(b, nil)
}

// lostDel fills a range with containers that die, as they do when a runtime loses its state.
func (t *T) lostDel() {
	for range 2 {
		t.attach("1.0.0", t.small()).ns.vanish()
	}
	var err error
	for range 20 { // until the kernel has taken their links down
		time.Sleep(50 * time.Millisecond)
		var a *attachment
		if a, err = t.tryAttach("1.0.0", t.small()); err == nil {
			t.detach(a, nil)
			return
		}
	}
	t.Failf("ADD: %v", err)
}

// gc runs GC of all plugins of the chain, the last first.
func (t *T) gc(a *attachment, name string, valid ...any) error {
	var bad error
	if valid == nil {
		valid = []any{}
	}
	for i := len(t.Chain) - 1; i >= 0; i-- {
		conf := t.conf(i, "1.1.0", nil, Conf{"name": name, "cni.dev/valid-attachments": valid, "cni.dev/attachments": valid})
		if _, err := t.exec(call{verb: "GC", file: t.file(t.Chain[i]), id: a.id, stdin: conf}); err != nil {
			bad = err
		}
	}
	return bad
}

func valid(a *attachment) any { return Conf{"containerID": a.id, "ifname": "eth0"} }

func (t *T) gcEmpty() {
	before := t.warm()
	var last *attachment
	for range 3 {
		last = t.attach("1.1.0", t.fewer())
	}
	if err := t.gc(last, "net1"); err != nil {
		t.Failf("GC: %v", err)
	}
	for _, c := range t.host.containers { // what their end takes, GC need not
		c.vanish()
	}
	t.host.containers = nil
	t.nothingLeft(before, "GC")
}

// fewer is a configuration that several containers can have at once.
func (t *T) fewer() Conf {
	if t.Name() == "portmap" {
		return Conf{"runtimeConfig": Conf{"portMappings": []any{Conf{"hostPort": 9000 + t.next, "containerPort": 80, "protocol": "tcp"}}}}
	}
	return nil
}

func (t *T) gcKeeps() {
	if t.Name() == "static" || t.Name() == "loopback" {
		return // they keep nothing
	}
	t.warm()
	keep, other := t.attach("1.1.0", t.fewer()), t.attach("1.1.0", t.fewer())
	with := t.census()
	gone := t.attach("1.1.0", t.fewer())
	if err := t.gc(gone, "net2"); err != nil {
		t.Failf("GC of another network: %v", err)
	}
	if _, err := t.verb(gone, "CHECK", t.finalConf(gone)); err != nil {
		t.Failf("after GC of another network CHECK says %v", err)
	}
	if err := t.gc(gone, "net1", valid(keep), valid(other)); err != nil {
		t.Failf("GC: %v", err)
	}
	for _, a := range []*attachment{keep, other} {
		if _, err := t.verb(a, "CHECK", t.finalConf(a)); err != nil {
			t.Failf("what was listed: CHECK says %v", err)
		}
	}
	gone.ns.vanish()
	t.nothingLeft(with, "GC")
	t.detach(keep, nil)
	t.detach(other, nil)
}

func (t *T) gcNoList() {
	if t.Name() == "static" || t.Name() == "loopback" {
		return // they keep nothing
	}
	a := t.attach("1.1.0", nil)
	if _, err := t.verb(a, "GC", t.conf(len(t.Chain)-1, "1.1.0", nil, nil)); err == nil {
		t.Failf("GC without a list succeeds")
	}
	if _, err := t.verb(a, "CHECK", t.finalConf(a)); err != nil {
		t.Failf("afterwards CHECK says %v", err)
	}
}

// concurrent attaches 16 containers at once, and detaches them at once.
func (t *T) concurrent() {
	before := t.warm()
	type one struct {
		a   *attachment
		prv []byte
		cnf string
		out []byte
		err error
	}
	all := make([]*one, 16)
	for i := range all {
		a, prev := t.base("1.0.0")
		all[i] = &one{a: a, prv: prev, cnf: t.conf(len(t.Chain)-1, "1.0.0", prev, t.fewer())}
	}
	var wg sync.WaitGroup
	for _, o := range all {
		wg.Go(func() { o.out, o.err = t.verb(o.a, "ADD", o.cnf) })
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, o := range all {
		if o.err != nil {
			t.Failf("ADD: %v", o.err)
			continue
		}
		o.a.confs, o.a.results = append(o.a.confs, o.cnf), append(o.a.results, o.out)
		if _, err := t.verb(o.a, "CHECK", t.finalConf(o.a)); err != nil {
			t.Failf("CHECK: %v", err)
		}
		if t.Makes {
			ip := ipOf(o.a)
			if seen[ip] {
				t.Failf("address %s twice", ip)
			}
			seen[ip] = true
		}
	}
	for i := range all[0].a.confs {
		for _, o := range all {
			if o.err != nil {
				continue
			}
			n := len(o.a.confs) - 1 - i
			c := call{verb: "DEL", file: t.file(t.Chain[n]), id: o.a.id, netns: o.a.ns.Path, stdin: withPrev(o.a.confs[n], o.a.final())}
			wg.Go(func() { _, o.err = t.exec(c) })
		}
		wg.Wait()
	}
	for _, o := range all {
		if o.err != nil {
			t.Failf("DEL: %v", o.err)
		}
	}
	t.nothingLeft(before, fmt.Sprintf("%d times DEL", len(all)))
}
