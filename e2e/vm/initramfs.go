package vm

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

// early are the modules without which the disk, with its project quota, is not mounted, in the order of their needs; ext4,
// virtio-pci and the console are in the kernel.
func early() []string {
	return []string{"kernel/drivers/block/virtio_blk.ko.xz", "kernel/fs/quota/quota_tree.ko.xz", "kernel/fs/quota/quota_v2.ko.xz"}
}

// writeInitramfs writes a cpio archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst)
// with /init and the early modules.
func writeInitramfs(to, initProgram string, k *kernel) error {
	var b bytes.Buffer
	add := func(name string, mode uint32, data []byte) {
		// magic, inode, mode, uid, gid, nlink, mtime, size, dev and rdev major and minor, length of the name, checksum
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		pad(&b)
		b.Write(data)
		pad(&b)
	}
	for _, d := range []string{"dev", "proc", "sys", "root", "modules"} {
		add(d, 0o40755, nil)
	}
	program, err := os.ReadFile(initProgram)
	if err != nil {
		return err
	}
	add("init", 0o100755, program)
	for i, m := range early() {
		data, err := os.ReadFile(filepath.Join(k.modules, m))
		if err != nil {
			return err
		}
		add(fmt.Sprintf("modules/%d", i), 0o100644, data)
	}
	add("TRAILER!!!", 0, nil)
	return os.WriteFile(to, b.Bytes(), 0o644)
}

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
