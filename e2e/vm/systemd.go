package vm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// bookworm has systemd 252 and the reference bus.
const bookworm = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main\n"

// unwanted are packages that those of systemd name for their scripts, which do not run here.
func unwanted() []string {
	return []string{
		"adduser", "debconf", "dpkg", "init-system-helpers", "libdb5.3", "libfile-find-rule-perl", "libgdbm", "libnumber-compare-perl",
		"libperl", "libsemanage", "libsepol", "libtext-glob-perl", "passwd", "perl", "tar", "usrmerge",
	}
}

// fetchSystemd unpacks Debian's systemd and dbus with all that they need, once, and returns the directory: a root file
// system that systemd boots from. It is made anew when this recipe changes.
func fetchSystemd(ctx context.Context, cache string) (string, error) {
	recipe := sha256.Sum256([]byte(bookworm + strings.Join(unwanted(), " ") + fmt.Sprint(units())))
	dir := filepath.Join(cache, fmt.Sprintf("systemd-%x", recipe[:6]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(cache, "systemd-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // a cache's
	a := &apt{dir: tmp, source: bookworm, status: filepath.Join(tmp, "status")}
	if err := errors.Join(os.WriteFile(a.status, nil, 0o644), a.update(ctx)); err != nil {
		return "", err
	}
	if _, err := a.run(ctx, "apt-get", "install", "-y", "-qq", "--download-only", "systemd", "dbus"); err != nil {
		return "", err
	}
	root := filepath.Join(tmp, "root")
	if err := mergedRoot(root); err != nil {
		return "", err
	}
	all, err := debs(filepath.Join(tmp, "cache/archives"))
	if err != nil {
		return "", err
	}
	for _, deb := range all {
		if slices.ContainsFunc(unwanted(), func(p string) bool { return strings.HasPrefix(filepath.Base(deb), p) }) {
			continue
		}
		if err := unpackMerged(ctx, tmp, deb, root); err != nil {
			return "", err
		}
	}
	for _, heavy := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/lib/systemd/catalog", "usr/lib/udev/hwdb.d"} {
		if err := os.RemoveAll(filepath.Join(root, heavy)); err != nil {
			return "", err
		}
	}
	if err := configure(root); err != nil {
		return "", err
	}
	return dir, os.Rename(root, dir)
}

// mergedRoot makes a root in which /bin, /lib and the like are links into /usr, as Debian's are.
func mergedRoot(root string) error {
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(root, "usr", d), 0o755), os.Symlink("usr/"+d, filepath.Join(root, d))); err != nil {
			return err
		}
	}
	return nil
}

// unpackMerged unpacks a package, part of whose files are still packed below /bin and /lib.
func unpackMerged(ctx context.Context, tmp, deb, root string) error {
	tar := filepath.Join(tmp, "data.tar")
	f, err := os.Create(tar)
	if err != nil {
		return err
	}
	defer os.Remove(tar) //nolint:errcheck // below tmp
	err = runTo(ctx, f, "dpkg-deb", "--fsys-tarfile", deb)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	_, err = run(ctx, tmp, "tar", "--keep-directory-symlink", "-xf", tar, "-C", root)
	return err
}

// units are the files that make the root boot into the guest's command and nothing else.
func units() map[string]string {
	return map[string]string{
		"etc/systemd/system/vm.target": "[Unit]\nDescription=The guest's command\nRequires=vm.service\nAllowIsolate=yes\n",
		"etc/systemd/system/vm.service": "[Unit]\nDescription=The guest's command\nRequires=dbus.socket\nAfter=dbus.socket\n" +
			"[Service]\nExecStart=/sbin/vminit\nTimeoutSec=infinity\nTasksMax=infinity\nLimitNOFILE=1048576\nStandardOutput=tty\nTTYPath=/dev/ttyS0\n",
		"etc/machine-id": strings.Repeat("0123456789abcdef", 2) + "\n",
		"etc/hostname":   "vm\n",
		"etc/passwd":     "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/nonexistent:/bin/false\nnobody:x:65534:65534::/nonexistent:/bin/false\n",
		"etc/group":      "root:x:0:\ntty:x:5:\nmessagebus:x:100:\nsystemd-journal:x:101:\nnogroup:x:65534:\n",
	}
}

func configure(root string) error {
	for name, text := range units() {
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			return err
		}
	}
	for _, unit := range []string{ // what a guest without users, terminals and devices of its own does without
		"systemd-networkd.service", "systemd-timesyncd.service", "systemd-logind.service", "getty.target", "systemd-hwdb-update.service",
		"systemd-firstboot.service", "systemd-sysusers.service", "ldconfig.service", "systemd-update-utmp.service", "systemd-random-seed.service",
		"systemd-machine-id-commit.service", "systemd-journal-flush.service", "systemd-binfmt.service", "systemd-modules-load.service",
		"modprobe@.service", "systemd-pstore.service", "systemd-remount-fs.service", "systemd-udevd.service", "systemd-udev-trigger.service",
		"systemd-boot-system-token.service", "systemd-journal-catalog-update.service", "systemd-update-done.service", "systemd-sysctl.service",
	} {
		if err := os.Symlink("/dev/null", filepath.Join(root, "etc/systemd/system", unit)); err != nil {
			return err
		}
	}
	return nil
}
