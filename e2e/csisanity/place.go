package csisanity

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// make makes what a pool is on, below dir, says how the configuration names it, and how it is ended.
func (b Backend) make(dir string) (place string, end func() error, err error) {
	end = func() error { return nil }
	switch b.Kind {
	case "lvm":
		return b.makeGroup(dir)
	case "static":
		return makeDisks(dir)
	}
	options := "loop"
	if b.Mount != "" {
		options += "," + b.Mount
	}
	if err := errors.Join(image(dir+"/pool.img", 24<<30), os.Mkdir(dir+"/pool", 0o700), command("mkfs."+b.On, append(slices.Clone(b.Mkfs), "-q", dir+"/pool.img")...)); err != nil {
		return "", end, err
	}
	if err := command("mount", "-t", b.On, "-o", options, dir+"/pool.img", dir+"/pool"); err != nil {
		return "", end, err
	}
	return fmt.Sprintf("path=%q\n", dir+"/pool/p"), func() error { return command("umount", dir+"/pool") }, nil
}

// makeGroup makes a volume group in a file, and a thin pool in it.
func (b Backend) makeGroup(dir string) (place string, end func() error, err error) {
	const name = "berth-sanity"
	end = func() error { return nil }
	program, err := exec.LookPath("lvm")
	if err != nil {
		return "", end, err
	}
	if err := image(dir+"/disk.img", 8<<30); err != nil {
		return "", end, err
	}
	dev, err := attach(dir + "/disk.img")
	if err != nil {
		return "", end, err
	}
	end = func() error {
		return errors.Join(command("lvm", "vgchange", "--activate", "n", name), command("losetup", "-d", dev))
	}
	if err := errors.Join(command("lvm", "pvcreate", dev), command("lvm", "vgcreate", name, dev)); err != nil {
		return "", end, err
	}
	place = fmt.Sprintf("volume_group=%q\nprogram=%q\n", name, program)
	if b.Thin {
		place += "thin_pool='thin'\n"
		err = command("lvm", "lvcreate", "--yes", "--type", "thin-pool", "--size", "7g", "--name", "thin", name)
	}
	return place, end, err
}

const disks = 16

// ready says what is missing until volumes can be made: disks are erased before they are used.
func (b Backend) ready(dir string) error {
	erased, err := filepath.Glob(dir + "/pool/blank/*")
	if err == nil && b.Kind == "static" && len(erased) < disks {
		err = fmt.Errorf("%d of %d disks are erased", len(erased), disks)
	}
	return err
}

// makeDisks makes loop devices in files, and a directory of links to them.
func makeDisks(dir string) (place string, end func() error, err error) {
	var attached []string
	end = func() (err error) {
		for _, dev := range attached {
			err = errors.Join(err, command("losetup", "-d", dev))
		}
		return err
	}
	if err := os.Mkdir(dir+"/devices", 0o700); err != nil {
		return "", end, err
	}
	for i := range disks {
		file := fmt.Sprintf("%s/disk%d.img", dir, i)
		if err := image(file, 160<<20); err != nil {
			return "", end, err
		}
		dev, err := attach(file)
		if err != nil {
			return "", end, err
		}
		attached = append(attached, dev)
		if err := os.Symlink(dev, filepath.Join(dir, "devices", fmt.Sprint("disk", i))); err != nil {
			return "", end, err
		}
	}
	return fmt.Sprintf("path=%q\ndevices=[%q]\n", dir+"/pool", dir+"/devices"), end, nil
}

// image makes a sparse file.
func image(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// attach gives a file a loop device. Between the question which one is free and its use another may take it.
func attach(file string) (dev string, err error) {
	for range 20 {
		free, ferr := exec.Command("losetup", "-f").Output()
		if ferr != nil {
			return "", fmt.Errorf("losetup -f: %w", ferr)
		}
		dev = strings.TrimSpace(string(free))
		if err = command("losetup", dev, file); err == nil {
			return dev, nil
		}
	}
	return "", err
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	return nil
}
