package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/e2e/harness"
)

// outage is a node whose stores are on a disk of their own, whose power can be cut.
type outage struct {
	*machine
	disk string
}

// TestPowerCuts cuts the power while pods are made and images pulled: what was not synced is lost, every process is gone, and so
// is what does not survive a reboot. The daemon starts, no record is damaged but of the last moment, what is listed can be removed, an image
// whose pull was answered is there, and pods can be made.
func TestPowerCuts(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Minute)
	defer cancel()
	o := newOutage(ctx, t)
	for i := range times(2, 1000) {
		if err := o.cycle(ctx, i); err != nil {
			t.Fatalf("cut %d: %v", i, err)
		}
		total.add(powerCuts, 1)
	}
}

func newOutage(ctx context.Context, t *testing.T) *outage {
	t.Helper()
	t.Cleanup(func() { node.clean(t) })
	lab := harness.NewLab("powercut", node.lab.Bin, node.lab.Tool)
	lab.Pods = "10.91.0.0/16"
	if err := harness.Stop(ctx, lab); err != nil {
		t.Fatal(err)
	}
	o := &outage{machine: &machine{lab: lab}, disk: filepath.Join(t.TempDir(), "disk")}
	t.Cleanup(func() {
		o.process().Kill()
		err := errors.Join(harness.RemoveCgroup(lab.Own), unpin(), unmountAll(lab.Run), unmountAll(lab.Dir), harness.Stop(context.Background(), lab))
		if err != nil {
			t.Error(err)
		}
	})
	err := errors.Join(os.WriteFile(o.disk, nil, 0o600), os.Truncate(o.disk, 512<<20))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", o.disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	err = errors.Join(o.mount(), os.CopyFS(lab.Hosts(), os.DirFS(node.lab.Hosts())))
	if err != nil {
		t.Fatal(err)
	}
	if o.client, err = harness.Dial(lab.Socket()); err != nil {
		t.Fatal(err)
	}
	if err := o.boot(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := o.client.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: busybox}}); err != nil {
		t.Fatal(err)
	}
	unix.Sync()
	return o
}

// mount mounts the disk. What is not synced stays in memory for a minute.
func (o *outage) mount() error {
	if err := os.MkdirAll(o.lab.Dir, 0o711); err != nil {
		return err
	}
	if out, err := exec.Command("mount", "-o", "loop,commit=60", o.disk, o.lab.Dir).CombinedOutput(); err != nil {
		return fmt.Errorf("mount: %w: %s", err, out)
	}
	return nil
}

// boot starts the daemon as after a boot: /run is empty.
func (o *outage) boot(ctx context.Context) error {
	// logs are the kubelet's: those it had removed may be back, their removal was not synced
	if err := errors.Join(os.RemoveAll(o.lab.Run), os.RemoveAll(o.lab.PodLogs())); err != nil {
		return err
	}
	var err error
	if o.conf, err = o.lab.WriteConfig(harness.Options{}); err != nil {
		return err
	}
	took, err := o.start(ctx, nil)
	if err != nil || took > 5*time.Second {
		total.add(startFailures, 1)
		return fmt.Errorf("the daemon is not ready after %v: %w", took, err)
	}
	return nil
}

// cycle makes pods until the power is cut, and looks at what is there afterwards.
func (o *outage) cycle(ctx context.Context, i int) error {
	load, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for n := 0; load.Err() == nil; n++ {
				_ = life(load, o.machine, &ledger{cut: true}, fmt.Sprintf("cut-%d-%d-%d", i, w, n)) // it is cut off
			}
		})
	}
	pulled := false
	wg.Go(func() { pulled = o.pulls(load) })
	time.Sleep(time.Duration(20+rand.IntN(500)) * time.Millisecond)
	at := time.Now()
	err := o.cut()
	stop()
	wg.Wait()
	if err = errors.Join(err, o.mount()); err != nil {
		return err
	}
	if err := o.boot(ctx); err != nil {
		return err
	}
	if err := o.damage(at); err != nil {
		return err
	}
	list, err := o.client.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}, grpc.WaitForReady(true)) // the connection is of before the cut
	if err != nil {
		return err
	}
	for _, p := range list.GetItems() {
		if p.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY {
			return fmt.Errorf("pod %s is %s after a power cut", p.GetId(), p.GetState())
		}
	}
	if err := o.forget(ctx, pulled); err != nil {
		return err
	}
	if err := errors.Join(o.client.RemoveAll(ctx), lives(ctx, o.machine, 1)); err != nil {
		return err
	}
	return errors.Join(o.empty(), os.RemoveAll(filepath.Join(o.lab.Dir, "berth/records/quarantine")))
}

// synced is within what time a record is on the disk: the daemon syncs after a second, and a busy disk takes its time.
const synced = 3 * time.Second

// damage looks that no record is damaged but those that were being written when the power was cut.
func (o *outage) damage(at time.Time) error {
	damaged, err := filepath.Glob(filepath.Join(o.lab.Dir, "berth/records/quarantine/*/*"))
	for _, d := range damaged {
		fi, serr := os.Stat(d)
		if serr != nil {
			err = errors.Join(err, serr)
		} else if age := at.Sub(fi.ModTime()); age > synced {
			err = errors.Join(err, fmt.Errorf("a record of %v before the cut is damaged: %s", age, d))
		}
	}
	return err
}

// pulls pulls an image again and again until the power is cut, and says whether the last answer was that it is there.
func (o *outage) pulls(ctx context.Context) (there bool) {
	image := &cri.ImageSpec{Image: another}
	for {
		if _, err := o.client.Images.PullImage(ctx, &cri.PullImageRequest{Image: image}); err != nil {
			return there
		}
		there = true
		time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
		if ctx.Err() != nil {
			return there
		}
		there = false // from the request on
		if _, err := o.client.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: image}); err != nil {
			return there
		}
	}
}

// forget removes the image that was pulled when the power was cut.
func (o *outage) forget(ctx context.Context, must bool) error {
	image := &cri.ImageSpec{Image: another}
	st, err := o.client.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: image}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	if must && st.GetImage() == nil {
		return errors.New("an image whose pull was answered is not there after the power cut")
	}
	if _, err := o.client.Images.PullImage(ctx, &cri.PullImageRequest{Image: image}, grpc.WaitForReady(true)); err != nil {
		return err
	}
	_, err = o.client.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: image})
	return err
}

// empty says what is left of pods.
func (o *outage) empty() error {
	var err error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var left []string
		for _, dir := range []string{"records/pod", "records/container", "containers", "trash"} {
			all, _ := filepath.Glob(filepath.Join(o.lab.Dir, "berth", dir, "*"))
			left = append(left, all...)
		}
		if err = nil; len(left) == 0 {
			return nil
		}
		err = fmt.Errorf("left behind: %v", left)
	}
	total.add(leaks, 1)
	return err
}

// cut ends everything at once, the disk's memory first.
func (o *outage) cut() error {
	dir, err := os.Open(o.lab.Dir)
	if err != nil {
		return err
	}
	const shutdown, noLogFlush = 0x8004587d, 2 // FS_IOC_SHUTDOWN (linux/fs.h), EXT4_GOING_FLAGS_NOLOGFLUSH
	err = unix.IoctlSetPointerInt(int(dir.Fd()), shutdown, noLogFlush)
	_ = dir.Close() // of a disk that is gone
	o.process().Kill()
	return errors.Join(err, harness.RemoveCgroup(o.lab.Own), unpin(), unmountAll(o.lab.Run), unmountAll(o.lab.Dir))
}

// unpin removes the pins of network namespaces: nobody else has pods in this mount namespace now.
func unpin() error {
	all, err := filepath.Glob("/run/netns/berth-*")
	for _, pin := range all {
		if uerr := unix.Unmount(pin, unix.MNT_DETACH); uerr != nil && !errors.Is(uerr, unix.EINVAL) {
			err = errors.Join(err, uerr)
		}
		err = errors.Join(err, os.Remove(pin))
	}
	return err
}

// unmountAll unmounts a directory and all below it; its last users may be on their way out.
func unmountAll(dir string) error {
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		b, rerr := os.ReadFile("/proc/self/mountinfo")
		if rerr != nil {
			return rerr
		}
		left := 0
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
				left++
				err = unix.Unmount(f[4], 0)
			}
		}
		if left == 0 {
			return nil
		}
	}
	return fmt.Errorf("%s stays mounted: %w", dir, err)
}
