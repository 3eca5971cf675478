package static

import (
	"bytes"
	"os"

	"github.com/berth-project/berth/csi/internal/blockdev"
)

// A magic number: bytes that say what a device holds, at an offset from its beginning, or from its end if that is
// negative. They only make a refusal readable: what is not in this list is refused as well.
type magic struct {
	what  string
	at    int64
	bytes string
}

func magics() []magic {
	return []magic{
		{"a GPT partition table", 512, "EFI PART"},
		{"a GPT partition table", 4096, "EFI PART"},
		{"the copy of a GPT partition table", -512, "EFI PART"},
		{"ext2, ext3 or ext4", 1080, "\x53\xef"},
		{"xfs", 0, "XFSB"},
		{"btrfs", 65600, "_BHRfS_M"},
		{"an LVM physical volume", 512, "LABELONE"},
		{"an LVM physical volume", 0, "LABELONE"},
		{"LUKS", 0, "LUKS\xba\xbe"},
		{"swap", 4086, "SWAPSPACE2"},
		{"swap", 4086, "SWAP-SPACE"},
		{"a member of a RAID (md 1.2)", 4096, "\xfc\x4e\x2b\xa9"},
		{"a member of a RAID (md 1.1)", 0, "\xfc\x4e\x2b\xa9"},
		{"a member of a RAID (md 1.0)", -8192, "\xfc\x4e\x2b\xa9"},
		{"NTFS", 3, "NTFS    "},
		{"exFAT", 3, "EXFAT   "},
		{"f2fs", 1024, "\x10\x20\xf5\xf2"},
		{"erofs", 1024, "\xe2\xe1\xf5\xe0"},
		{"squashfs", 0, "hsqs"},
		{"ISO 9660", 32769, "CD001"},
		{"Ceph BlueStore", 0, "bluestore block device"},
		{"an Oracle ASM disk", 32, "ORCLDISK"},
		{"a DOS partition table or a boot sector", 510, "\x55\xaa"},
	}
}

// found names what a device holds; "": nothing but zero at its edges.
func found(dev *os.File, size int64) (string, error) {
	for _, m := range magics() {
		at := m.at
		if at < 0 {
			at += size
		}
		if at < 0 || at+int64(len(m.bytes)) > size {
			continue
		}
		b := make([]byte, len(m.bytes))
		if _, err := dev.ReadAt(b, at); err != nil {
			return "", &os.PathError{Op: "read", Path: dev.Name(), Err: err}
		}
		if bytes.Equal(b, []byte(m.bytes)) {
			return m.what, nil
		}
	}
	empty, err := blockdev.Blank(dev, size)
	if err != nil || empty {
		return "", err
	}
	return "something that is not known here", nil
}
