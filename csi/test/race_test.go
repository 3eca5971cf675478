package test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

// TestDeleteWhileCopied: a snapshot of which a volume is being made is not removed beneath it. Others may be made of it at the
// same time.
func TestDeleteWhileCopied(t *testing.T) {
	for _, k := range kinds() {
		point := map[string]string{"loop": "csi.loop.before_rename", "btrfs": "csi.btrfs.after_subvolume"}[k.backend]
		if point == "" {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			l := newLab(t, k, 600*mib, "")
			id := l.must("v", 32*mib, mounted(""))
			p := l.up(id, mounted(""))
			l.ok(write(p+"/file", []byte(strings.Repeat("v's own ", 1000))))
			l.down(id)
			s, err := l.CreateSnapshot(l.ctx(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: id})
			l.ok(err)
			snap := s.GetSnapshot().GetSnapshotId()
			l.stop()
			l.start(point + "=2*sleep(1s)")
			made := make(chan string, 2)
			for _, name := range []string{"a", "b"} {
				go func() {
					v, err := l.create(name, 32*mib, mounted(""), fromSnapshot(snap))
					if err != nil {
						t.Errorf("%s: %v", name, err)
					}
					made <- v.GetVolumeId()
				}()
			}
			remove := func() error {
				_, err := l.DeleteSnapshot(l.ctx(), &csi.DeleteSnapshotRequest{SnapshotId: snap})
				return err
			}
			time.Sleep(300 * time.Millisecond) // both are being made, for a second
			for range 20 {
				code(t, remove(), codes.Aborted, "being made of it")
			}
			for range 2 {
				vol := <-made
				p := l.up(vol, mounted(""))
				if b, err := os.ReadFile(p + "/file"); err != nil || string(b) != strings.Repeat("v's own ", 1000) {
					t.Errorf("what was made of it has %d bytes, %v", len(b), err)
				}
				l.down(vol)
				l.ok(l.remove(vol))
			}
			l.ok(remove())
			l.ok(l.remove(id))
			l.empty()
		})
	}
}

// TestLimitAfterKill: a snapshot's share of its origin's limit ends with it, also if the driver dies in between.
func TestLimitAfterKill(t *testing.T) {
	for _, k := range kinds() {
		if k.backend != "btrfs" {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			l := newLab(t, k, 900*mib, "")
			id := l.must("v", 100*mib, mounted(""))
			p := l.up(id, mounted(""))
			l.ok(write(p+"/file", make([]byte, 50*mib)))
			s, err := l.CreateSnapshot(l.ctx(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: id})
			l.ok(err)
			l.stop()
			c := &crash{lab: l, point: "csi.delete_snapshot.after_forget"}
			l.start(c.point + "=1*kill")
			c.try(func() error {
				_, err := l.DeleteSnapshot(l.ctx(), &csi.DeleteSnapshotRequest{SnapshotId: s.GetSnapshot().GetSnapshotId()})
				return err
			})
			if c.deaths != 1 {
				t.Errorf("it died %d times", c.deaths)
			}
			if n, err := fill(t, p+"/more"); err == nil || n > 50*mib {
				t.Errorf("%d MiB more went into a volume of 100 MiB with 50 in it, %v", n/mib, err)
			}
			l.down(id)
			l.ok(l.remove(id))
			l.empty()
		})
	}
}

// TestTwoPoolsOfOneDisk: what one has promised and not written yet, the other cannot promise again.
func TestTwoPoolsOfOneDisk(t *testing.T) {
	for _, k := range kinds() {
		if k.backend != "btrfs" {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			l := newLab(t, k, 900*mib, "")
			l.stop()
			f, err := os.OpenFile(l.conf, os.O_APPEND|os.O_WRONLY, 0)
			l.ok(err)
			_, err = f.WriteString("[pools.q]\nbackend='loop'\npath='" + l.mnt + "/q'\n")
			l.ok(err)
			l.ok(f.Close())
			l.start("")
			free := func() int64 {
				r, err := l.GetCapacity(l.ctx(), &csi.GetCapacityRequest{Parameters: map[string]string{"pool": "q"}})
				l.ok(err)
				return r.GetAvailableCapacity()
			}
			before := free()
			id := l.must("v", 400*mib, mounted(""))
			if after := free(); before-after < 390*mib {
				t.Errorf("the other pool had %d MiB, and has %d when this one has promised 400", before/mib, after/mib)
			}
			l.ok(l.remove(id))
			l.empty()
		})
	}
}
