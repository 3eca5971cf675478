package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// command is what vm/init reads from /vm/command.
type command struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
}

// buildInit builds vm/init, static.
func buildInit(ctx context.Context, cache string) (string, error) {
	to := filepath.Join(cache, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", to, "github.com/berth-project/berth/e2e/vm/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the guest's init: %w: %s", err, out)
	}
	return to, nil
}

// always are the programs every guest has: the kernel asks for modprobe by itself.
func always() []string { return []string{"kmod", "busybox", "mount", "umount"} }

// makeDisk makes the guest's root file system.
func makeDisk(ctx context.Context, m *Machine, k *kernel, initProgram, disk string) error {
	root := filepath.Join(m.Work, "root")
	defer os.RemoveAll(root) //nolint:errcheck // the disk has it
	if m.Systemd {
		base, err := fetchSystemd(ctx, m.Cache)
		if err != nil {
			return fmt.Errorf("systemd: %w", err)
		}
		if err := copyBase(ctx, base, root); err != nil {
			return err
		}
	}
	for _, d := range []string{"proc", "sys", "dev", "run", "tmp", "root", "etc", "var/lib", "var/log", "vm/out", "sbin", "bin", "usr/bin", "usr/sbin", "opt"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for _, name := range append(always(), m.Programs...) {
		if err := addProgram(ctx, root, name); err != nil {
			return err
		}
	}
	err := errors.Join(
		addApplets(ctx, root), addModules(root, k), addFile(initProgram, filepath.Join(root, "sbin/vminit")),
		os.Symlink("/bin/kmod", filepath.Join(root, "sbin/modprobe")),
		addText(root, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n"),
		addText(root, "etc/group", "root:x:0:\nnogroup:x:65534:\n"),
		addText(root, "etc/hosts", "127.0.0.1 localhost vm\n"),
		addText(root, "etc/resolv.conf", "nameserver 127.0.0.1\n"),
	)
	for to, from := range m.Files {
		err = errors.Join(err, addTree(from, filepath.Join(root, to)))
	}
	b, jerr := json.Marshal(command{Argv: m.Command, Env: m.Env})
	if err = errors.Join(err, jerr, os.WriteFile(filepath.Join(root, "vm/command"), b, 0o644)); err != nil {
		return err
	}
	_, err = run(ctx, m.Work, "mke2fs", "-q", "-t", "ext4", "-O", "quota,project", "-E", "root_owner=0:0", "-d", root, disk, fmt.Sprintf("%dM", m.DiskMB))
	return err
}

// copyBase makes root a copy of a cached file system: hard links, where they can be.
func copyBase(ctx context.Context, base, root string) error {
	if _, err := run(ctx, base, "cp", "-al", base, root); err == nil {
		return nil
	}
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	_, err := run(ctx, base, "cp", "-a", base, root)
	return err
}

// addText writes a file that the root does not have yet.
func addText(root, name, text string) error {
	f, err := os.OpenFile(filepath.Join(root, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// addModules takes the kernel's modules over by hard link: they are many.
func addModules(root string, k *kernel) error {
	return addTree(k.modules, filepath.Join(root, "lib/modules", k.release))
}

// addApplets gives busybox all its names that no real program has.
func addApplets(ctx context.Context, root string) error {
	list, err := run(ctx, root, "busybox", "--list")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(list) {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// addProgram copies a program of the host and the libraries that the loader would map for it.
func addProgram(ctx context.Context, root, program string) error {
	name, from, other := strings.Cut(program, "=")
	if !other {
		name, from = filepath.Base(program), program
	}
	path, err := exec.LookPath(from)
	if err != nil {
		return fmt.Errorf("program %s: %w", program, err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	if err := addFile(path, filepath.Join(root, "bin", name)); err != nil {
		return err
	}
	out, _ := exec.CommandContext(ctx, "ldd", path).Output() // fails for a static program
	for _, lib := range regexp.MustCompile(`/\S+`).FindAllString(string(out), -1) {
		real, err := filepath.EvalSymlinks(lib)
		if err != nil {
			return err
		}
		if err := addFile(real, filepath.Join(root, lib)); err != nil {
			return err
		}
	}
	return nil
}

// addTree copies a file or a directory.
func addTree(from, to string) error {
	fi, err := os.Stat(from)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return addFile(from, to)
	}
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dest := filepath.Join(to, strings.TrimPrefix(p, from))
		switch {
		case d.IsDir():
			return os.MkdirAll(dest, 0o755)
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			if filepath.IsAbs(target) && !strings.HasPrefix(target, from) {
				return nil // Debian's build and source links
			}
			return os.Symlink(target, dest)
		case d.Type().IsRegular():
			return addFile(p, dest)
		}
		return nil
	})
}

// addFile links a file where it can and copies it where it must.
func addFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.Link(from, to); err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close() //nolint:errcheck // read only
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, fi.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
