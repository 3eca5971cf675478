package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Pool is one directory, one file system, one volume group or some disks that volumes are made in.
type Pool struct {
	Backend    string   `toml:"backend" comment:"loop, btrfs, dir, lvm or static."`
	Path       string   `toml:"path" comment:"A directory; its file system must stay mounted. Of static: where it is kept which device is whose. Not of lvm."`
	Group      string   `toml:"volume_group" comment:"Of lvm: the volume group, which must be there."`
	ThinPool   string   `toml:"thin_pool" comment:"Of lvm: a thin pool in it that zeroes its blocks; empty: volumes are thick."`
	Program    string   `toml:"program" comment:"Of lvm: LVM's program; empty: /usr/sbin/lvm."`
	Devices    []string `toml:"devices" comment:"Of static: disks and partitions, by links in /dev/disk/by-id, or directories of such links."`
	Size       string   `toml:"size" comment:"What may be promised in all, like 100Gi; empty: the file system's or the group's size less keep_free."`
	KeepFree   string   `toml:"keep_free" comment:"What is left free of the file system for others."`
	Overcommit float64  `toml:"overcommit" comment:"How often size may be promised; above 1 volumes are sparse and may meet a full pool."`
	Ephemeral  bool     `toml:"ephemeral" comment:"Pods may ask for inline volumes here."`
	Default    bool     `toml:"default" comment:"The pool of a StorageClass that names none."`
}

// lvmProgram is where distributions have it.
const lvmProgram = "/usr/sbin/lvm"

// completed is the pool with the defaults of what it does not say.
func (p Pool) completed() Pool {
	if p.Overcommit == 0 {
		p.Overcommit = 1
	}
	if p.Backend == "lvm" && p.Program == "" {
		p.Program = lvmProgram
	}
	return p
}

// Where is what the pool is in, for an operator's eyes.
func (p Pool) Where() string {
	if p.Backend == "lvm" {
		return strings.TrimSuffix("/dev/"+p.Group+"/"+p.ThinPool, "/")
	}
	return p.Path
}

// Backends are the backends there are.
func Backends() []string { return []string{"loop", "btrfs", "dir", "lvm", "static"} }

func (p Pool) validate(name string) (all []error) {
	bad := func(key, format string, args ...any) {
		all = append(all, fmt.Errorf("pools.%s.%s: %s", name, key, fmt.Sprintf(format, args...)))
	}
	if !poolName.MatchString(name) {
		all = append(all, fmt.Errorf("pools: %q is no name of at most 32 small letters, digits and dashes", name))
	}
	if !slices.Contains(Backends(), p.Backend) {
		bad("backend", "%q, want one of %s", p.Backend, strings.Join(Backends(), ", "))
	}
	p.validatePlace(bad)
	for key, text := range map[string]string{"size": p.Size, "keep_free": p.KeepFree} {
		if _, err := Bytes(text); err != nil {
			bad(key, "%v", err)
		}
	}
	if p.Overcommit < 1 || p.Overcommit > 100 {
		bad("overcommit", "%g, want 1 to 100", p.Overcommit)
	}
	return all
}

// validatePlace checks the keys that say where the pool is, which differ by backend.
func (p Pool) validatePlace(bad func(key, format string, args ...any)) {
	if (p.Backend == "static") != (len(p.Devices) > 0) {
		bad("devices", "%q: a pool of the backend static has them, and no other has", p.Devices)
	}
	for _, d := range p.Devices {
		if !filepath.IsAbs(d) {
			bad("devices", "%q is not an absolute path", d)
		}
	}
	if p.Backend == "static" && p.Overcommit > 1 {
		bad("overcommit", "%g: a volume of the backend static has its device for itself", p.Overcommit)
	}
	if p.Backend != "lvm" {
		if !filepath.IsAbs(p.Path) || filepath.Clean(p.Path) == "/" {
			bad("path", "%q is not an absolute path below /", p.Path)
		}
		for key, value := range map[string]string{"volume_group": p.Group, "thin_pool": p.ThinPool, "program": p.Program} {
			if value != "" {
				bad(key, "a pool of the backend %s has none", p.Backend)
			}
		}
		return
	}
	if p.Path != "" {
		bad("path", "%q: a pool of the backend lvm has volume_group instead", p.Path)
	}
	if !filepath.IsAbs(p.Program) {
		bad("program", "%q is not an absolute path", p.Program)
	}
	if !volumeGroupName.MatchString(p.Group) {
		bad("volume_group", "%q is no name of a volume group", p.Group)
	}
	if p.ThinPool != "" && !volumeGroupName.MatchString(p.ThinPool) {
		bad("thin_pool", "%q is no name of a thin pool in %s", p.ThinPool, p.Group)
	}
	if p.ThinPool == "" && p.Overcommit > 1 {
		bad("overcommit", "%g: thick volumes have their space from the beginning; name a thin_pool", p.Overcommit)
	}
}
