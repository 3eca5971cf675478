package test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestParallel: two hundred creates at once never promise more than the pool has, each gets a volume or
// RESOURCE_EXHAUSTED, and the pool is used to the end.
func TestParallel(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		if k.whole() {
			return // a device for each: TestStaticFits
		}
		l := newLab(t, k, 600*mib, "")
		before, err := l.GetCapacity(l.ctx(), &csi.GetCapacityRequest{})
		l.ok(err)
		const size = 10 * mib
		var wg sync.WaitGroup
		var mu sync.Mutex
		var made []string
		for i := range 200 {
			wg.Go(func() {
				v, err := l.create(fmt.Sprintf("p%d", i), size, mounted(""), nil)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					made = append(made, v.GetVolumeId())
				case status.Code(err) != codes.ResourceExhausted:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		want := before.GetAvailableCapacity() / size
		if k.fs != "" && k.backend != "btrfs" { // inode and extent blocks of an exactly full file system
			want -= 3
		}
		if n := int64(len(made)); n < want || n*size > before.GetAvailableCapacity() {
			t.Errorf("%d volumes of 10 MiB in %d MiB", n, before.GetAvailableCapacity()/mib)
		}
		after, err := l.GetCapacity(l.ctx(), &csi.GetCapacityRequest{})
		if err != nil || after.GetAvailableCapacity() >= 4*size {
			t.Errorf("%d bytes are left, %v", after.GetAvailableCapacity(), err)
		}
		for _, id := range made {
			l.ok(l.remove(id))
		}
		l.empty()
		again, err := l.GetCapacity(l.ctx(), &csi.GetCapacityRequest{})
		if err != nil || again.GetAvailableCapacity() < before.GetAvailableCapacity()*95/100 {
			t.Errorf("after all is deleted %d of %d bytes are free, %v", again.GetAvailableCapacity(), before.GetAvailableCapacity(), err)
		}
	})
}

// TestSameNameAtOnce: many identical requests make one volume.
func TestSameNameAtOnce(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		l := newLab(t, k, 500*mib, "")
		var wg sync.WaitGroup
		ids := make(chan string, 50)
		for range 50 {
			wg.Go(func() {
				for {
					v, err := l.create("one", 16*mib, mounted(""), nil)
					if status.Code(err) == codes.Aborted {
						continue
					}
					if err != nil {
						t.Error(err)
					}
					ids <- v.GetVolumeId()
					return
				}
			})
		}
		wg.Wait()
		first := <-ids
		for range 49 {
			if id := <-ids; id != first {
				t.Errorf("two volumes: %s, %s", first, id)
			}
		}
		l.ok(l.remove(first))
		l.empty()
	})
}

// lastLook is the end of a volume in which a file says "kept": it is there, and afterwards nothing is.
func (l *lab) lastLook(id string) {
	l.t.Helper()
	p := l.up(id, mounted(""))
	if b, err := os.ReadFile(p + "/file"); err != nil || string(b) != "kept" {
		l.t.Errorf("the file is %q, %v", b, err)
	}
	l.down(id)
	l.ok(l.remove(id))
	l.empty()
}

// TestPoolGone: a pool that is unmounted beneath the driver loses nothing: every verb says Unavailable, also the
// deletion, nothing is written below the mount point, and after mounting all is as it was.
func TestPoolGone(t *testing.T) {
	for _, k := range removable() {
		t.Run(k.name, func(t *testing.T) {
			l := newLab(t, k, 500*mib, "")
			id := l.must("kept", 32*mib, mounted(""))
			p := l.up(id, mounted(""))
			l.ok(write(p+"/file", []byte("kept")))
			l.down(id)
			missing := l.takeAway()
			_, err := l.create("new", 32*mib, mounted(""), nil)
			code(t, err, codes.Unavailable, missing)
			code(t, l.remove(id), codes.Unavailable, missing)
			code(t, l.stage(id, mounted("")), codes.Unavailable, missing)
			_, err = l.GetCapacity(l.ctx(), &csi.GetCapacityRequest{})
			code(t, err, codes.Unavailable, missing)
			h, err := l.NodeGetVolumeHealth(l.ctx(), &csi.NodeGetVolumeHealthRequest{VolumeId: id})
			if err != nil || len(h.GetVolumeHealth().GetHealthStatuses()) != 1 || h.GetVolumeHealth().GetHealthStatuses()[0].GetStatus() != csi.VolumeHealthErrorType_INACCESSIBLE {
				t.Errorf("health: %v, %v", h, err)
			}
			s, err := l.NodeGetStorageHealth(l.ctx(), &csi.NodeGetStorageHealthRequest{})
			if err != nil || len(s.GetBackendHealth()) != 1 || s.GetBackendHealth()[0].GetStatus() != csi.StorageHealthErrorType_STORAGE_UNREACHABLE {
				t.Errorf("storage health: %v, %v", s, err)
			}
			if ents, err := os.ReadDir(l.mnt); l.mnt != "" && (err != nil || len(ents) > 0) {
				t.Errorf("below the mount point: %v, %v", ents, err)
			}
			l.giveBack()
			l.lastLook(id)
		})
	}
}

// TestPoolGoneInUse: a pool that goes while a pod uses it holds no pod back: what is mounted is unmounted, and after mounting the
// pool all is as it was.
func TestPoolGoneInUse(t *testing.T) {
	for _, k := range onFileSystem() {
		t.Run(k.name, func(t *testing.T) {
			l := newLab(t, k, 500*mib, "")
			id := l.must("kept", 32*mib, mounted(""))
			p := l.up(id, mounted(""))
			l.ok(write(p+"/file", []byte("kept")))
			l.command("umount", "--lazy", l.mnt)
			code(t, l.publish(id, "2", mounted(""), false), codes.Unavailable, "mount it")
			l.ok(l.unpublish(id, "2")) // its target was made
			l.down(id)
			if strings.Contains(strings.Join(l.mounts(), " "), "/kubelet/") {
				t.Errorf("still mounted: %v", l.mounts())
			}
			l.mountPool()
			l.lastLook(id)
		})
	}
}

// TestPoolFullByOthers: what others write into the pool's file system is not promised to anybody; a pool without room,
// or read-only, says so, keeps its volumes, and works again when there is room.
func TestPoolFullByOthers(t *testing.T) {
	for _, k := range onFileSystem() {
		t.Run(k.name, func(t *testing.T) {
			l := newLab(t, k, 500*mib, "")
			id := l.must("kept", 32*mib, mounted(""))
			f, err := os.Create(l.mnt + "/foreign")
			l.ok(err)
			for chunk := make([]byte, mib); ; {
				if _, err := f.Write(chunk); err != nil {
					break
				}
			}
			l.ok(f.Close())
			_, err = l.create("new", 64*mib, mounted(""), nil)
			code(t, err, codes.ResourceExhausted, "left to promise")
			if k.backend == "loop" { // btrfs shares its free space, what is promised there is reserved against the ledger only
				p := l.up(id, mounted(""))
				if n, err := fill(t, p+"/big"); n < 20*mib {
					t.Errorf("%d bytes went into a thick volume of a full pool, %v", n, err)
				}
				l.down(id)
			}
			l.ok(os.Remove(l.mnt + "/foreign"))
			l.command("sync", "-f", l.mnt)
			l.command("mount", "-o", "remount,ro", l.mnt)
			_, err = l.create("new", 64*mib, mounted(""), nil)
			code(t, err, codes.Unavailable, "read-only")
			code(t, l.remove(id), codes.Unavailable, "read-only")
			l.command("mount", "-o", "remount,rw", l.mnt)
			id2 := l.must("new", 64*mib, mounted(""))
			for _, v := range []string{id, id2} {
				l.ok(l.remove(v))
			}
			l.empty()
		})
	}
}

// TestOutOfInodes: a pool without inodes is full.
func TestOutOfInodes(t *testing.T) {
	l := newLab(t, kind{"loop-ext4", "loop", "ext4"}, 200*mib, "")
	id := l.must("kept", 16*mib, mounted(""))
	for i := 0; ; i++ {
		if err := os.WriteFile(fmt.Sprintf("%s/%d", l.mnt, i), nil, 0o600); err != nil {
			break
		}
	}
	_, err := l.create("new", 16*mib, mounted(""), nil)
	code(t, err, codes.ResourceExhausted, "inodes")
	l.ok(l.remove(id)) // a removal takes no inode
	if strings.Contains(l.tail(), "panic") {
		t.Error("a panic is in the log")
	}
	l.empty()
}

// TestPoolMissingAtStart: a driver whose pool is not mounted when it starts serves its other pools, says of the missing
// one that it is not there, and has it again, with every byte, a moment after it was mounted.
func TestPoolMissingAtStart(t *testing.T) {
	for _, k := range removable() {
		t.Run(k.name, func(t *testing.T) {
			l := newLab(t, k, 500*mib, "")
			more := fmt.Sprintf("[pools.other]\nbackend='loop'\npath=%q\nsize='200Mi'\n", l.dir+"/other")
			conf, err := os.ReadFile(l.conf)
			l.ok(err)
			l.ok(os.WriteFile(l.conf, append(conf, more...), 0o600))
			id := l.must("kept", 32*mib, mounted(""))
			p := l.up(id, mounted(""))
			l.ok(write(p+"/file", []byte("kept")))
			want := sum(t, p+"/file")
			l.down(id)
			l.stop()
			missing := l.takeAway()
			if !l.start("") {
				t.Fatalf("the driver does not start without one of its pools:\n%s", l.tail())
			}
			_, err = l.GetCapacity(l.ctx(), &csi.GetCapacityRequest{})
			code(t, err, codes.Unavailable, missing)
			code(t, l.remove(id), codes.Unavailable, missing)
			code(t, l.stage(id, mounted("")), codes.Unavailable, missing)
			_, err = l.create("kept", 32*mib, mounted(""), nil)
			code(t, err, codes.Unavailable, missing)
			health, err := l.NodeGetStorageHealth(l.ctx(), &csi.NodeGetStorageHealthRequest{})
			if b := health.GetBackendHealth(); err != nil || len(b) != 1 || b[0].GetReason() != "PoolUnreachable" {
				t.Errorf("storage health: %v, %v", health, err)
			}
			r, err := l.CreateVolume(l.ctx(), &csi.CreateVolumeRequest{
				Name: "elsewhere", CapacityRange: &csi.CapacityRange{RequiredBytes: 32 * mib}, VolumeCapabilities: []*csi.VolumeCapability{mounted("")},
				Parameters: map[string]string{"pool": "other"},
			})
			l.ok(err)
			l.ok(l.remove(r.GetVolume().GetVolumeId()))
			if names, err := os.ReadDir(l.mnt); l.mnt != "" && (err != nil || len(names) > 0) {
				t.Errorf("below the mount point: %v, %v", names, err)
			}
			l.giveBack()
			for range 100 {
				if _, err = l.GetCapacity(l.ctx(), &csi.GetCapacityRequest{}); err == nil {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			l.ok(err)
			if got := sum(t, l.up(id, mounted(""))+"/file"); got != want {
				t.Error("the volume has other bytes")
			}
			l.down(id)
			l.ok(l.remove(id))
			l.empty()
		})
	}
}

// TestFullAtStart: a pool that others have filled does not keep the driver from starting, nor from deleting what is in
// it; what is new is RESOURCE_EXHAUSTED until there is room.
func TestFullAtStart(t *testing.T) {
	for _, k := range onFileSystem() {
		t.Run(k.name, func(t *testing.T) {
			l := newLab(t, k, 500*mib, "")
			id := l.must("kept", 64*mib, mounted(""))
			l.stop()
			f, err := os.Create(l.mnt + "/foreign")
			l.ok(err)
			for size := mib; size >= 4096; size /= 16 { // to the last block
				for err = nil; err == nil; {
					if _, err = f.Write(make([]byte, size)); err == nil {
						err = f.Sync()
					}
				}
			}
			l.ok(f.Close())
			if !l.start("") {
				t.Fatalf("the driver does not start with a full pool:\n%s", l.tail())
			}
			_, err = l.create("new", 64*mib, mounted(""), nil)
			code(t, err, codes.ResourceExhausted, "")
			l.ok(l.remove(id))
			l.ok(os.Remove(l.mnt + "/foreign"))
			l.command("sync", "-f", l.mnt)
			l.ok(l.remove(l.must("new", 64*mib, mounted(""))))
			l.empty()
		})
	}
}
