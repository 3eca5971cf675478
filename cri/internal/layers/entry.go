package layers

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// modeBits are the permission bits of a header, setuid, setgid and sticky included.
func modeBits(hdr *tar.Header) uint32 { return uint32(hdr.Mode) & 0o7777 } //nolint:gosec // masked

// dir makes a directory or, where this layer has made it before, gives it new attributes. One that takes the
// place of something else hides what lower layers have there.
func (a *applier) dir(p parent, base string, hdr *tar.Header) error {
	name := path.Join(p.path, base)
	opaque := false
	err := unix.Mkdirat(p.fd, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err = fstatat(p.fd, base, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err = a.remove(p, base); err != nil {
				return err
			}
			opaque = true
			err = unix.Mkdirat(p.fd, base, 0o700)
			a.result.Inodes++
		}
	} else {
		a.result.Inodes++
	}
	if err != nil {
		return os.NewSyscallError("mkdirat", err)
	}
	fd, err := unix.Openat(p.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing written
	if opaque {
		if err := a.hides(name); err != nil {
			return err
		}
	}
	if err := a.attributes(fd, hdr); err != nil {
		return err
	}
	d := &dirState{}
	d.atime, d.mtime = times(hdr)
	if a.dirs[name] == nil {
		if err := a.remember(name); err != nil {
			return err
		}
	}
	a.dirs[name] = d
	return nil
}

func (a *applier) file(p parent, base string, hdr *tar.Header, body io.Reader) error {
	if hdr.Size > a.limits.Bytes-a.written {
		return badEntry(hdr.Name, "%w: the layer is over its limit of %d bytes", ErrLimit, a.limits.Bytes)
	}
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(p.fd, base, flags, 0o600)
	if errors.Is(err, unix.EEXIST) {
		if err := a.remove(p, base); err != nil {
			return err
		}
		fd, err = unix.Openat(p.fd, base, flags, 0o600)
	}
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	err = a.fill(fd, hdr, body)
	if cerr := unix.Close(fd); err == nil && cerr != nil {
		err = os.NewSyscallError("close", cerr)
	}
	a.result.Inodes++
	return err
}

// fill writes content and attributes through the descriptor. The content comes first: a write drops setuid bits
// and file capabilities, and changes the times.
func (a *applier) fill(fd int, hdr *tar.Header, body io.Reader) error {
	n, err := a.copy(fd, body)
	a.result.Bytes += n
	a.written += n
	if err == nil && n != hdr.Size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	if err := a.attributes(fd, hdr); err != nil {
		return err
	}
	return futimens2(fd, hdr)
}

func (a *applier) copy(fd int, body io.Reader) (total int64, err error) {
	for {
		n, rerr := io.ReadFull(body, a.buf)
		for rest := a.buf[:n]; len(rest) > 0; {
			w, err := unix.Write(fd, rest)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return total, os.NewSyscallError("write", err)
			}
			total += int64(w)
			rest = rest[w:]
		}
		if errors.Is(rerr, io.EOF) || errors.Is(rerr, io.ErrUnexpectedEOF) {
			return total, nil // whether this was all, fill knows
		}
		if rerr != nil {
			return total, rerr
		}
	}
}

// attributes sets owner, extended attributes and mode by descriptor, in this order: chown clears capabilities and
// setuid bits.
func (a *applier) attributes(fd int, hdr *tar.Header) error {
	if err := checkOwner(hdr); err != nil {
		return err
	}
	if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
		return os.NewSyscallError("fchown", err)
	}
	for key, value := range hdr.PAXRecords {
		attr, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok {
			continue
		}
		if !keepXattr(attr) {
			continue
		}
		err := unix.Fsetxattr(fd, attr, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) { // a file system without them, as for peers
			return xattrError(hdr.Name, attr, value, err)
		}
	}
	if err := unix.Fchmod(fd, modeBits(hdr)); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	return nil
}

// keepXattr is the list of attributes that an image may bring. Those of overlayfs would steer the mount, labels
// of security modules belong to this host, and trusted.* is by definition not for images.
func keepXattr(name string) bool {
	if strings.HasPrefix(name, "user.overlay.") {
		return false
	}
	return strings.HasPrefix(name, "user.") || name == "security.capability" ||
		name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

// checkOwner refuses ids that the kernel would take for "no change" or cut off.
func checkOwner(hdr *tar.Header) error {
	if hdr.Uid < 0 || hdr.Gid < 0 || int64(hdr.Uid) >= 1<<32-1 || int64(hdr.Gid) >= 1<<32-1 {
		return badEntry(hdr.Name, "owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	return nil
}

func (a *applier) symlink(p parent, base string, hdr *tar.Header) error {
	if hdr.Linkname == "" || len(hdr.Linkname) > maxPath || strings.IndexByte(hdr.Linkname, 0) >= 0 {
		return badEntry(hdr.Name, "bad symbolic link target %.100q", hdr.Linkname)
	}
	err := unix.Symlinkat(hdr.Linkname, p.fd, base)
	if errors.Is(err, unix.EEXIST) {
		if err := a.remove(p, base); err != nil {
			return err
		}
		err = unix.Symlinkat(hdr.Linkname, p.fd, base)
	}
	if err != nil {
		return os.NewSyscallError("symlinkat", err)
	}
	a.result.Inodes++
	return a.attributesAt(p, base, hdr)
}

// attributesAt is attributes for what cannot be opened: links and nodes, which have no extended attributes that
// an image may set.
func (a *applier) attributesAt(p parent, base string, hdr *tar.Header) error {
	if err := checkOwner(hdr); err != nil {
		return err
	}
	if err := unix.Fchownat(p.fd, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("fchownat", err)
	}
	if hdr.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(p.fd, base, modeBits(hdr), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return os.NewSyscallError("fchmodat", err)
		}
	}
	at, mt := times(hdr)
	if err := unix.UtimesNanoAt(p.fd, base, []unix.Timespec{at, mt}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("utimensat", err)
	}
	return nil
}

func (a *applier) node(p parent, base string, hdr *tar.Header) error {
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[hdr.Typeflag]
	dev := 0
	if hdr.Typeflag != tar.TypeFifo {
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return badEntry(hdr.Name, "device number %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
		dev = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))) //nolint:gosec // bounded above
		if dev == 0 && hdr.Typeflag == tar.TypeChar {
			return a.hide(p, base) // what overlayfs takes for a whiteout anyway
		}
	}
	err := unix.Mknodat(p.fd, base, kind|modeBits(hdr), dev)
	if errors.Is(err, unix.EEXIST) {
		if err := a.remove(p, base); err != nil {
			return err
		}
		err = unix.Mknodat(p.fd, base, kind|modeBits(hdr), dev)
	}
	if err != nil {
		return os.NewSyscallError("mknodat", err)
	}
	a.result.Inodes++
	return a.attributesAt(p, base, hdr)
}

// link makes a hard link, to a symbolic link itself where the target is one. A target that this layer does not
// have is looked for in lower layers when they are known.
func (a *applier) link(p parent, base string, hdr *tar.Header) error {
	target, err := cleanName(hdr.Linkname)
	if err != nil {
		return err
	}
	if target == "" {
		return badEntry(hdr.Name, "hard link to the root")
	}
	name := path.Join(p.path, base)
	dir, tbase := path.Split(target)
	t, found, err := a.lookup(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return err
	}
	if found {
		defer unix.Close(t.fd) //nolint:errcheck // O_PATH
		target = path.Join(t.path, tbase)
		var st unix.Stat_t
		serr := fstatat(t.fd, tbase, &st)
		switch {
		case serr == nil && target == name:
			return nil
		case serr == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
			return badEntry(hdr.Name, "hard link to the directory %.100q", hdr.Linkname)
		case serr == nil && !isWhiteout(&st):
			return a.linkTo(p, base, t, tbase)
		case serr != nil && !errors.Is(serr, unix.ENOENT):
			return serr
		}
	}
	if to, ok := a.deferred[target]; ok { // a link to a link that is itself open
		target = to
	}
	if target == name {
		return badEntry(hdr.Name, "hard link to itself")
	}
	if err := a.remove(p, base); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	a.deferred[name] = target
	return a.remember(name + target)
}

func (a *applier) linkTo(p parent, base string, t parent, tbase string) error {
	err := unix.Linkat(t.fd, tbase, p.fd, base, 0)
	if errors.Is(err, unix.EEXIST) {
		if err := a.remove(p, base); err != nil {
			return err
		}
		err = unix.Linkat(t.fd, tbase, p.fd, base, 0)
	}
	return os.NewSyscallError("linkat", err)
}

// whiteout translates ".wh."+rest. It speaks of lower layers only: what this layer itself has put there stays,
// and where that is a directory, it becomes opaque.
func (a *applier) whiteout(p parent, entry, rest string) error {
	switch {
	case rest == ".wh..opq" && p.path == "":
		a.result.Opaque = true
		return nil
	case rest == ".wh..opq":
		return a.hides(p.path)
	case strings.HasPrefix(rest, ".wh."):
		return nil // AUFS's own book-keeping
	case rest == "", rest == ".", rest == "..":
		return badEntry(entry, "whiteout of the directory itself")
	}
	return a.hide(p, rest)
}

// hide makes name in p invisible as far as lower layers are concerned.
func (a *applier) hide(p parent, rest string) error {
	err := unix.Mknodat(p.fd, rest, unix.S_IFCHR, 0)
	if err == nil {
		a.result.Inodes++
		name := path.Join(p.path, rest)
		a.whiteouts = append(a.whiteouts, name)
		return a.remember(name)
	}
	if !errors.Is(err, unix.EEXIST) {
		return os.NewSyscallError("mknodat", err)
	}
	var st unix.Stat_t
	if err := fstatat(p.fd, rest, &st); err != nil {
		return os.NewSyscallError("fstatat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil // it already hides what is below
	}
	name := path.Join(p.path, rest)
	if d := a.dirs[name]; d != nil {
		d.implicit = false
	}
	return a.hides(name)
}
