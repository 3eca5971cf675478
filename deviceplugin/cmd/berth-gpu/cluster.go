package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/config"
	"github.com/berth-project/berth/deviceplugin/internal/kubenode"
	"github.com/berth-project/berth/deviceplugin/internal/policy"
	"github.com/berth-project/berth/deviceplugin/internal/view"
	"github.com/berth-project/berth/internal/atomicfile"
)

// cluster is the node's object at the API server, as far as the configuration asks for it: one label is read, and
// the feature labels are kept.
type cluster struct {
	client *kubenode.Client
	key    string // of the label that names an override; "": none is read
	labels bool
	kept   string // file that holds the last name, so that a reboot without an API server changes nothing
	log    *slog.Logger
	nodes  chan kubenode.Node // what was seen last, for the labels
}

// firstAnswer is how long a node that never had an answer waits for one before it offers what it would without.
const firstAnswer = 5 * time.Second

// openCluster returns nil where nothing is asked.
func openCluster(conf config.Config, log *slog.Logger) (*cluster, error) {
	if !conf.Cluster.Asked() {
		return nil, nil //nolint:nilnil // documented
	}
	client, err := kubenode.Open(conf.Cluster.Kubeconfig, or(conf.Cluster.Node, os.Getenv("NODE_NAME")))
	if err != nil {
		return nil, err
	}
	return &cluster{
		client: client, key: conf.Cluster.OverrideLabel, labels: conf.Cluster.Labels, kept: filepath.Join(conf.Root, "override"), log: log,
		nodes: make(chan kubenode.Node, 1),
	}, nil
}

// override is the name that holds at the start: the last one seen, or on a node's first day what the server says now.
// fallback is the flag's, where the label is not known or not there.
func (c *cluster) override(ctx context.Context, fallback string) string {
	if c == nil || c.key == "" {
		return fallback
	}
	b, err := atomicfile.ReadSealed(c.kept)
	if err == nil {
		return or(string(b), fallback)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("the last override is not known", "error", err)
	}
	ctx, cancel := context.WithTimeout(ctx, firstAnswer)
	defer cancel()
	n, err := c.client.Get(ctx)
	if err != nil {
		c.log.Error("the node's label cannot be read: what the configuration says without it is offered", "label", c.key, "error", err)
		return fallback
	}
	return or(n.Labels[c.key], fallback)
}

// offer is what the node offers at the start. A label that names no override is named in the log, and the flag's holds
// until it names one: a node that is mislabelled still serves. A flag that names none is an error.
func (d *daemon) offer(ctx context.Context, conf config.Config, o options) (policy.Policy, error) {
	var err error
	if d.cluster, err = openCluster(conf, d.log); err != nil {
		return policy.Policy{}, err
	}
	name := d.cluster.override(ctx, o.override)
	d.reload = &reloader{label: name}
	if d.cluster != nil && d.cluster.key != "" {
		d.reload.keep = d.cluster.keep
	}
	p, err := conf.Offer(name)
	if err != nil && name != o.override {
		d.log.Error("the node's label is not taken", "label", conf.Cluster.OverrideLabel, "error", err)
		name = o.override
		p, err = conf.Offer(name)
	}
	d.reload.override = name
	return p, err
}

// keep writes a label's value down, for a start without an API server.
func (c *cluster) keep(label string) error {
	return atomicfile.WriteSealed(c.kept, []byte(label), 0o600)
}

// watch follows the node until ctx ends; choose is called with the label's value, "" where it is not there.
func (c *cluster) watch(ctx context.Context, choose func(string)) error {
	if c == nil {
		<-ctx.Done()
		return nil
	}
	last, known := "", false
	return c.client.Watch(ctx, func(n kubenode.Node) {
		if c.labels {
			select {
			case <-c.nodes:
			default:
			}
			c.nodes <- n
		}
		value := n.Labels[c.key]
		if c.key == "" || known && value == last {
			return
		}
		last, known = value, true
		choose(value)
	}, func(err error) {
		c.log.Warn("the API server does not tell of the node: what was known stays", "error", err)
	})
}

// labelNode keeps the feature labels on the node: it looks after each of our rounds and each change of the object.
func (d *daemon) labelNode(ctx context.Context) error {
	if d.cluster == nil || !d.cluster.labels {
		<-ctx.Done()
		return nil
	}
	var have *kubenode.Node
	var next time.Time // not before then, after a failure
	for {
		s, changed := d.node.State()
		if s.Live && have != nil && time.Now().After(next) {
			if err := d.relabel(ctx, have, view.Labels(s.Inventory, s.Plan, d.node.Policy().MIG)); err != nil {
				d.log.Error("the node's labels are not written", "error", err)
				next = time.Now().Add(relabelAfter)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case n := <-d.cluster.nodes:
			have = &n
		}
	}
}

// relabelAfter is when a refused patch is sent again.
const relabelAfter = 30 * time.Second

// relabel patches what differs, and makes have the result.
func (d *daemon) relabel(ctx context.Context, have *kubenode.Node, want map[string]string) error {
	patch, err := kubenode.Compile(*have, want)
	if err != nil || patch == nil {
		return err
	}
	*have, err = d.cluster.client.Patch(ctx, patch)
	return err
}
