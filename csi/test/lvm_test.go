package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/berth-project/berth/csi/internal/loopdev"
)

// lvmHere says that this kernel has device-mapper and the tests shall be of the backend that needs it: in a guest.
const lvmHere = "BERTH_CSI_LVM"

// The two kinds of pool of the backend lvm.
const (
	lvmThick = "lvm-thick"
	lvmThin  = "lvm-thin"
)

// group is the volume group's name.
func (l *lab) group() string {
	return "berth-test." + strings.ReplaceAll(l.dir[strings.LastIndexByte(l.dir, '/')+1:], "-", ".")
}

// makeGroup makes a volume group, in a file, that can give size bytes, and says how the configuration names it.
func (l *lab) makeGroup(size int64) string {
	l.t.Helper()
	l.ok(os.WriteFile(l.dir+"/pool.img", nil, 0o600))
	l.ok(os.Truncate(l.dir+"/pool.img", size+48*mib))
	l.attachDisk()
	l.command("lvm", "pvcreate", "-q", l.disk.Name())
	l.command("lvm", "vgcreate", "-q", "--physicalextentsize", "1m", l.group(), l.disk.Name())
	place := fmt.Sprintf("volume_group=%q\nprogram='/bin/lvm'\n", l.group())
	if l.kind.name == lvmThick { // as much as was asked for
		l.command("lvm", "lvcreate", "-q", "--yes", "-Zn", "--size", fmt.Sprintf("%db", l.groupFree()-size), "--name", "foreign", l.group())
		return place
	}
	l.command("lvm", "lvcreate", "-q", "--yes", "--type", "thin-pool", "--size", fmt.Sprintf("%db", size), "--poolmetadatasize", "8m", "--name", "thin", l.group())
	l.command("lvm", "lvchange", "-q", "--errorwhenfull", "y", l.group()+"/thin")
	return place + "thin_pool='thin'\n"
}

func (l *lab) lvm(args ...string) (string, error) {
	out, err := exec.Command("lvm", args...).Output()
	return string(out), err
}

func (l *lab) attachDisk() {
	l.t.Helper()
	f, err := os.OpenFile(l.dir+"/pool.img", os.O_RDWR, 0)
	l.ok(err)
	l.disk, err = loopdev.Attach(f, loopdev.Options{})
	l.ok(errors.Join(err, f.Close()))
	l.ok(l.disk.Close())
}

// detachGroup takes the group's disk out, and attachGroup puts it in again.
func (l *lab) detachGroup() {
	l.t.Helper()
	l.command("lvm", "vgchange", "-q", "--activate", "n", l.group())
	f, err := os.Open(l.dir + "/pool.img")
	l.ok(err)
	l.ok(errors.Join(loopdev.Release(f), f.Close()))
}

func (l *lab) attachGroup() {
	l.t.Helper()
	l.attachDisk()
	l.command("lvm", "vgchange", "-q", "--activate", "y", l.group())
}

// endGroup removes what makeGroup made. What somebody still has open stays, and is found.
func (l *lab) endGroup() {
	if l.disk == nil {
		return
	}
	if out, err := l.lvm("vgchange", "-q", "--activate", "n", l.group()); err != nil {
		l.t.Errorf("left behind: %v: %s", err, out)
	}
	f, err := os.Open(l.dir + "/pool.img")
	if err == nil {
		err = errors.Join(loopdev.Release(f), f.Close())
	}
	if err != nil {
		l.t.Errorf("left behind: %v", err)
	}
}

// logical is the path of the device of a volume, "" if it has none.
func (l *lab) logical(id string) string {
	path := "/dev/mapper/" + strings.ReplaceAll(l.group(), "-", "--") + "-berth--" + id
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// logicals are the names and tags of the volumes of the group.
func (l *lab) logicals() map[string]string {
	l.t.Helper()
	out, err := l.lvm("lvs", "--reportformat", "json", "--options", "lv_name,lv_tags", l.group())
	l.ok(err)
	var r struct {
		Report []struct{ LV []map[string]string }
	}
	l.ok(json.Unmarshal([]byte(out), &r))
	all := map[string]string{}
	for _, v := range r.Report[0].LV {
		all[v["lv_name"]] = v["lv_tags"]
	}
	return all
}

func (l *lab) groupFree() (n int64) {
	l.t.Helper()
	out, err := l.lvm("vgs", "--noheadings", "--units", "b", "--nosuffix", "--options", "vg_free", l.group())
	l.ok(err)
	_, err = fmt.Sscan(out, &n)
	l.ok(err)
	return n
}

// groupEmpty proves that nothing of ours is in the group.
func (l *lab) groupEmpty() {
	l.t.Helper()
	var left []string
	for range 200 {
		left = nil
		for name := range l.logicals() {
			if strings.HasPrefix(name, "berth-") {
				left = append(left, name)
			}
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	l.t.Errorf("left in the group: %v", left)
}

// TestForeignLogicalVolumes: what others have in the group is neither promised nor touched, whatever it is called; it is
// no orphan either, and what is ours without a record is one and stays.
func TestForeignLogicalVolumes(t *testing.T) {
	if os.Getenv(lvmHere) == "" {
		t.Skip("this kernel has no device-mapper: it runs in the virtual machine (make conformance-csi)")
	}
	each(t, func(t *testing.T, k kind) {
		l := newLab(t, k, 400*mib, "")
		other := func(name, tag string, size int) {
			args := []string{"lvcreate", "-q", "--yes", "--addtag", tag, "--name", name}
			if k.name == lvmThin {
				args = append(args, "--virtualsize", fmt.Sprintf("%dm", size), "--thinpool", "thin")
			} else {
				args = append(args, "-Zn", "-Wn", "--size", fmt.Sprintf("%dm", size))
			}
			l.command("lvm", append(args, l.group())...)
		}
		id := l.must("kept", 64*mib, mounted(""))
		const orphan = "v00000000000000000000000000000001"
		other("berth-x-"+orphan+"-trash", "theirs", 100)
		other("berth-"+orphan, "berth.csi/p", 100)
		_, err := l.create("more", 200*mib, mounted(""), nil)
		code(t, err, codes.ResourceExhausted, "")
		out := l.command(program, "--config", l.conf, "orphans")
		if !strings.Contains(out, orphan) || strings.Contains(out, "trash") {
			t.Errorf("orphans: %s", out)
		}
		l.ok(l.remove(id))
		l.stop()
		l.start("")
		id = l.must("again", 64*mib, mounted(""))
		l.ok(l.remove(id))
		time.Sleep(time.Second)
		all := l.logicals()
		if all["berth-x-"+orphan+"-trash"] != "theirs" || all["berth-"+orphan] != "berth.csi/p" {
			t.Errorf("what is not ours, or an orphan, was touched: %v", all)
		}
		l.command("lvm", "lvremove", "-q", "--yes", l.group()+"/berth-"+orphan, l.group()+"/berth-x-"+orphan+"-trash")
		l.empty()
	})
}

// TestThinPoolRefused: a thin pool that shows old blocks is refused with the command that mends it; a group that is not
// there is waited for.
func TestThinPoolRefused(t *testing.T) {
	if os.Getenv(lvmHere) == "" {
		t.Skip("this kernel has no device-mapper: it runs in the virtual machine (make conformance-csi)")
	}
	l := newLab(t, kind{lvmThin, "lvm", ""}, 100*mib, "")
	l.stop()
	l.command("lvm", "lvchange", "-q", "--zero", "n", l.group()+"/thin")
	if l.start("") {
		t.Error("the driver serves a thin pool that does not zero")
	}
	if !strings.Contains(l.tail(), "lvchange --zero y") {
		t.Errorf("it says %s", l.tail())
	}
	l.command("lvm", "lvchange", "-q", "--zero", "y", l.group()+"/thin")
	if !l.start("") {
		t.Errorf("it does not start: %s", l.tail())
	}
	l.ok(l.remove(l.must("v", 32*mib, block())))
	l.empty()
}

// TestThickErasedInSteps: a thick volume larger than what is erased at once goes in steps, also after a kill.
func TestThickErasedInSteps(t *testing.T) {
	if os.Getenv(lvmHere) == "" {
		t.Skip("this kernel has no device-mapper: it runs in the virtual machine (make conformance-csi)")
	}
	l := newLab(t, kind{lvmThick, "lvm", ""}, 9000*mib, "")
	id := l.must("v", 9000*mib, block())
	l.stop()
	l.start("csi.lvm.after_erase=1*kill")
	l.ok(l.remove(id))
	<-l.done
	l.start("")
	l.empty()
}
