package gpureal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// listed is what is compared of an inventory.
type listed struct {
	GPUs []struct {
		Product string `json:"product"`
		Memory  uint64 `json:"memory"` // bytes
		Compute string `json:"compute"`
		Mode    string `json:"mode"`
	} `json:"gpus"`
}

// recording keeps what the driver lists, and the profile of it: one that --fake reads and that lists the same. What a
// built-in profile of the same board says otherwise is written down, to be mended there.
func (n *node) recording(ctx context.Context, r *report) {
	if err := n.configure(""); err != nil {
		r.check("discovery", "", err)
		return
	}
	out, err := n.ask(ctx, "inventory")
	r.check("discovery", fmt.Sprintf("%d GPUs", strings.Count(out, `"uuid": "GPU-`)), errors.Join(err, keep(n.c.Out, "inventory.json", out)))
	if err != nil {
		return
	}
	profile, err := n.ask(ctx, "record")
	err = errors.Join(err, keep(n.c.Out, "profile.yaml", profile))
	var is, again listed
	if err == nil {
		again, err = n.lists(ctx, filepath.Join(n.c.Out, "profile.yaml"))
	}
	if err == nil {
		err = json.Unmarshal([]byte(out), &is)
	}
	if err == nil && fmt.Sprint(is) != fmt.Sprint(again) {
		err = fmt.Errorf("it lists %v, the driver %v", again, is)
	}
	r.check("the recording is a profile", "profile.yaml", err)
	diff, err := n.differences(ctx, is)
	r.check("built-in profiles of this board", fmt.Sprintf("%d differences: differences.txt", strings.Count(diff, "\n")), errors.Join(err, keep(n.c.Out, "differences.txt", diff)))
}

// lists is what a profile lists.
func (n *node) lists(ctx context.Context, profile string) (l listed, err error) {
	out, err := n.tell(ctx, "--fake", profile, "inventory")
	if err != nil {
		return l, err
	}
	return l, json.Unmarshal([]byte(out), &l)
}

// differences are lines of what a built-in profile of the first GPU's product says otherwise.
func (n *node) differences(ctx context.Context, all listed) (string, error) {
	names, err := n.tell(ctx, "profiles")
	if err != nil || len(all.GPUs) == 0 {
		return "", err
	}
	var b strings.Builder
	is := all.GPUs[0]
	for _, name := range strings.Fields(names) {
		p, err := n.lists(ctx, name)
		if err != nil {
			return "", err
		}
		if len(p.GPUs) == 0 || p.GPUs[0].Product != is.Product {
			continue
		}
		for _, c := range []struct {
			what     string
			has, was any
		}{{"memory", p.GPUs[0].Memory, is.Memory}, {"compute", p.GPUs[0].Compute, is.Compute}, {"mode", p.GPUs[0].Mode, is.Mode}} {
			if c.has != c.was {
				fmt.Fprintf(&b, "profile %s: %s %v, the driver says %v\n", name, c.what, c.has, c.was)
			}
		}
	}
	return b.String(), nil
}
