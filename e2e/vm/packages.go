package vm

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// NonFree has NVIDIA's driver.
const NonFree = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm non-free\n"

// Packages unpacks Debian packages, without those that they need, into a directory below cache, once, and returns it.
// source is a line of sources.list.
func Packages(ctx context.Context, cache, source string, names ...string) (string, error) {
	recipe := sha256.Sum256([]byte(source + strings.Join(names, " ")))
	dir := filepath.Join(cache, fmt.Sprintf("packages-%x", recipe[:6]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(cache, "packages-*.tmp")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // a cache's
	a := &apt{dir: tmp, source: source, status: "/var/lib/dpkg/status"}
	if err := a.update(ctx); err != nil {
		return "", err
	}
	if _, err := a.run(ctx, "apt-get", append([]string{"download", "-qq"}, names...)...); err != nil {
		return "", err
	}
	all, err := debs(tmp)
	if err != nil {
		return "", err
	}
	root := filepath.Join(tmp, "root")
	for _, deb := range all {
		if _, err := run(ctx, tmp, "dpkg-deb", "-x", deb, root); err != nil {
			return "", err
		}
	}
	return dir, os.Rename(root, dir)
}
