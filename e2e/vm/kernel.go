package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// kernel is Debian's, unpacked.
type kernel struct {
	release string // uname -r
	image   string
	modules string // the directory that goes to /lib/modules/RELEASE
}

// backports has the kernel: bookworm's own 6.1 lacks idmapped tmpfs.
const backports = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-backports main\n"

// fetchKernel downloads the newest 6.12 cloud kernel of backports, once. It uses apt with directories of its own, so the
// machine's sources stay as they are.
func fetchKernel(ctx context.Context, cache string) (*kernel, error) {
	dir := filepath.Join(cache, "kernel")
	if k, err := openKernel(dir); err == nil {
		return k, nil
	}
	tmp, err := os.MkdirTemp(cache, "kernel-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // a cache's
	a := &apt{dir: tmp, source: backports, status: "/var/lib/dpkg/status"}
	if err := a.update(ctx); err != nil {
		return nil, err
	}
	list, err := a.run(ctx, "apt-cache", "search", "--names-only", `^linux-image-6\.12\.[0-9.]+\+deb12(\.[0-9]+)?-cloud-amd64$`)
	if err != nil {
		return nil, err
	}
	names := regexp.MustCompile(`linux-image-\S+`).FindAllString(list, -1)
	if len(names) == 0 {
		return nil, errors.New("bookworm-backports offers no linux-image-6.12*-cloud-amd64")
	}
	slices.SortFunc(names, byVersion)
	if _, err := a.run(ctx, "apt-get", "download", "-qq", names[len(names)-1]); err != nil {
		return nil, err
	}
	all, err := debs(tmp)
	if err != nil || len(all) != 1 {
		return nil, fmt.Errorf("downloaded %v: %w", all, err)
	}
	if _, err := run(ctx, tmp, "dpkg-deb", "-x", all[0], tmp+"/root"); err != nil {
		return nil, err
	}
	k, err := openKernel(tmp + "/root")
	if err != nil {
		return nil, err
	}
	if _, err := run(ctx, tmp, "depmod", "-b", tmp+"/root", k.release); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp+"/root", dir); err != nil {
		return nil, err
	}
	return openKernel(dir)
}

func byVersion(a, b string) int {
	number := regexp.MustCompile(`\d+`)
	x, y := number.FindAllString(a, -1), number.FindAllString(b, -1)
	for i := range min(len(x), len(y)) {
		if len(x[i]) != len(y[i]) {
			return len(x[i]) - len(y[i])
		}
		if c := strings.Compare(x[i], y[i]); c != 0 {
			return c
		}
	}
	return len(x) - len(y)
}

func openKernel(dir string) (*kernel, error) {
	images, err := filepath.Glob(dir + "/boot/vmlinuz-*")
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("%s: %d kernels: %w", dir, len(images), err)
	}
	k := &kernel{image: images[0], release: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")}
	k.modules = filepath.Join(dir, "lib/modules", k.release)
	_, err = os.Stat(k.modules)
	return k, err
}
