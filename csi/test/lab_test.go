package test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

var program string // the berth-csi under test

func TestMain(m *testing.M) {
	if role := os.Getenv("BERTH_CSI_TENANT"); role != "" {
		os.Exit(tenant(role, os.Args[1:]))
	}
	if os.Getenv(isolated) == "" {
		os.Exit(isolate())
	}
	os.Exit(inside(m))
}

const isolated = "BERTH_CSI_ISOLATED"

// isolate runs the tests in a mount namespace of their own: a namespace that another program of this machine makes
// meanwhile would get copies of our mounts, and keep file systems and loop devices in use after we have let go.
func isolate() int {
	runtime.LockOSThread() // Pdeathsig is sent when the forking thread ends
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), isolated+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGTERM}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func inside(m *testing.M) int {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "berth-csi-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir) //nolint:errcheck // best effort
	if program = os.Getenv("BERTH_CSI_PROGRAM"); program == "" {
		program = dir + "/berth-csi"
		if out, err := exec.Command("go", "build", "-o", program, "../cmd/berth-csi").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %s\n", err, out)
			return 1
		}
	}
	if os.Getenv(quotaHere) != "" {
		if err := underQuota(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// underQuota takes CAP_SYS_RESOURCE from the tests, which write into volumes as tenants do: ext4 lets who has it write
// beyond a limit. The driver, which they start, has it.
func underQuota() error {
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(header, &caps[0]); err != nil {
		return err
	}
	caps[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(&caps[0])), 0)
	if errno != 0 {
		return fmt.Errorf("capset: %w", errno)
	}
	return nil
}

// kind is a pool to test on.
type kind struct {
	name, backend, fs string // fs: what the pool is on; "": the directory of the test
}

// quotaHere says that this kernel has project quota and the tests shall be of the backend that needs it: in a guest.
const quotaHere = "BERTH_CSI_QUOTA"

func kinds() []kind {
	if os.Getenv(lvmHere) != "" {
		return []kind{{lvmThick, "lvm", ""}, {lvmThin, "lvm", ""}}
	}
	if os.Getenv(quotaHere) != "" {
		return []kind{{"dir-ext4", "dir", "ext4"}, {"dir-xfs", "dir", "xfs"}}
	}
	return []kind{{"loop", "loop", ""}, {"loop-xfs", "loop", "xfs"}, {"btrfs", "btrfs", "btrfs"}, {"static", "static", ""}}
}

// atRest says that only volumes that are not in use are snapshotted and cloned.
func (k kind) atRest() bool { return k.name == "loop" || k.backend == "dir" || k.name == lvmThick }

// liveGroups says that snapshots of several volumes in use are of one moment.
func (k kind) liveGroups() bool { return k.name == "loop-xfs" || k.name == lvmThin }

// copies says that there are snapshots and clones.
func (k kind) copies() bool { return k.backend != "static" }

// whole says that a raw volume is a device that was there before and stays.
func (k kind) whole() bool { return k.backend == "static" }

// blocks are the kinds with raw block volumes.
func blocks() []kind {
	return slices.DeleteFunc(kinds(), func(k kind) bool { return k.backend == "btrfs" || k.backend == "dir" })
}

// tunable says that volumes have settings.
func (k kind) tunable() bool { return k.backend == "loop" || k.backend == "btrfs" }

// removable are the kinds whose storage can be taken away beneath the driver.
func removable() []kind {
	return slices.DeleteFunc(kinds(), func(k kind) bool { return k.fs == "" && k.backend != "lvm" })
}

// onFileSystem are the kinds of pools that are directories of a file system of their own.
func onFileSystem() []kind {
	return slices.DeleteFunc(kinds(), func(k kind) bool { return k.fs == "" })
}

// each runs a test on every kind of pool.
func each(t *testing.T, run func(t *testing.T, k kind)) {
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) { run(t, k) })
	}
}

// lab is one driver with its pools and directories.
type lab struct {
	t    *testing.T
	dir  string
	kind kind
	conf string
	mnt  string // where the pool's file system is, "" if it is the directory's
	disk *os.File
	cmd  *exec.Cmd
	done chan struct{}
	conn *grpc.ClientConn

	csi.ControllerClient
	csi.NodeClient
	csi.GroupControllerClient
	csi.SnapshotMetadataClient
}

var labs atomic.Int32

// newLab makes a lab, starts the driver, and checks at the test's end that nothing is left. size is the pool's.
func newLab(t *testing.T, k kind, size int64, more string) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests mount: run them as root")
	}
	dir, err := os.MkdirTemp("", fmt.Sprintf("volumes-%d-", labs.Add(1)))
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, dir: dir, kind: k}
	t.Cleanup(l.end)
	pool := dir + "/pool"
	for _, d := range []string{pool, dir + "/kubelet", dir + "/state", dir + "/root"} {
		l.ok(os.Mkdir(d, 0o700))
	}
	if k.fs != "" {
		image := dir + "/pool.img"
		l.ok(os.WriteFile(image, nil, 0o600))
		l.ok(os.Truncate(image, max(size, 400<<20)))
		args := []string{"-q", image}
		if k.backend == "dir" && k.fs == "ext4" {
			args = append([]string{"-O", "quota,project"}, args...)
		}
		l.command("mkfs."+k.fs, args...)
		l.mnt = pool
		l.mountPool()
		pool += "/p"
	}
	place := fmt.Sprintf("path=%q\n", pool)
	switch k.backend {
	case "lvm":
		place = l.makeGroup(size)
	case "static":
		place += l.makeDisks(size)
	}
	text := fmt.Sprintf("root=%q\nstate=%q\nsocket=%q\nregistration_dir=''\nkubelet_dir=%q\ndebug_socket=%q\nlog_level='debug'\nnode='n1'\n[pools.p]\nbackend=%q\n%sdefault=true\nephemeral=true\n",
		dir+"/root", dir+"/state", dir+"/csi.sock", dir+"/kubelet", dir+"/debug.sock", k.backend, place)
	if k.fs == "" && k.backend == "loop" {
		text += fmt.Sprintf("size='%d'\n", size)
	}
	l.conf = dir + "/csi.toml"
	l.ok(os.WriteFile(l.conf, []byte(text+more), 0o600))
	l.start("")
	l.waitForDisks()
	return l
}

// takeAway takes the pool's storage from beneath the driver, and giveBack gives it back; missing is what the driver says
// meanwhile.
func (l *lab) takeAway() (missing string) {
	l.t.Helper()
	if l.kind.backend == "lvm" {
		l.detachGroup()
		return "attach its disks"
	}
	l.command("umount", l.mnt)
	return "mount it"
}

func (l *lab) giveBack() {
	l.t.Helper()
	if l.kind.backend == "lvm" {
		l.attachGroup()
		return
	}
	l.mountPool()
}

func (l *lab) mountPool() {
	options := "loop"
	if l.kind.backend == "dir" {
		options += ",prjquota"
	}
	l.command("mount", "-t", l.kind.fs, "-o", options, l.dir+"/pool.img", l.mnt)
}

func (l *lab) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) command(name string, args ...string) string {
	l.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// start runs the driver, with failpoints armed, and waits until it answers or has ended.
func (l *lab) start(fail string) bool {
	l.t.Helper()
	log, err := os.OpenFile(l.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	l.ok(err)
	l.cmd = exec.Command(program, "--config", l.conf)
	l.cmd.Stdout, l.cmd.Stderr = log, log
	l.cmd.Env = append(os.Environ(), "BERTH_FAIL="+fail)
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	l.ok(l.cmd.Start())
	l.ok(log.Close())
	l.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) { _ = cmd.Wait(); close(done) }(l.cmd, l.done)
	if l.conn == nil {
		l.conn, err = grpc.NewClient("unix://"+l.dir+"/csi.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
		l.ok(err)
		l.ControllerClient, l.NodeClient, l.GroupControllerClient = csi.NewControllerClient(l.conn), csi.NewNodeClient(l.conn), csi.NewGroupControllerClient(l.conn)
		l.SnapshotMetadataClient = csi.NewSnapshotMetadataClient(l.conn)
	}
	for range 1000 {
		if c, err := net.Dial("unix", l.dir+"/csi.sock"); err == nil {
			l.ok(c.Close())
			l.conn.ResetConnectBackoff()
			return true
		}
		select {
		case <-l.done:
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
	l.t.Fatalf("the driver does not answer:\n%s", l.tail())
	return false
}

func (l *lab) stop() {
	_ = l.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-l.done:
	case <-time.After(15 * time.Second):
		_ = l.cmd.Process.Kill()
		<-l.done
		l.t.Errorf("the driver does not stop:\n%s", l.tail())
	}
}

func (l *lab) tail() string {
	b, _ := os.ReadFile(l.dir + "/log")
	lines := strings.Split(string(b), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// end stops the driver and looks for what is left.
func (l *lab) end() {
	if l.cmd != nil {
		l.stop()
	}
	if l.conn != nil {
		_ = l.conn.Close()
	}
	if l.t.Failed() {
		l.t.Logf("the end of the driver's log:\n%s", l.tail())
	}
	for _, m := range l.mounts() {
		if m != l.mnt && !l.t.Failed() {
			l.t.Errorf("left behind: mount %s", m)
		}
	}
	for _, m := range slices.Backward(l.mounts()) {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	l.endGroup()
	l.endDisks()
	for range 500 { // a loop device ends a moment after its mount
		if len(l.loops()) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, d := range l.loops() {
		l.t.Errorf("left behind: loop device %s", d)
		_ = exec.Command("losetup", "-d", strings.Fields(d)[0]).Run()
	}
	if err := os.RemoveAll(l.dir); err != nil {
		l.t.Errorf("left behind: %v", err)
	}
}

func (l *lab) mounts() (all []string) {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], l.dir+"/") {
			all = append(all, f[4])
		}
	}
	return all
}

func (l *lab) loops() (all []string) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), l.dir+"/") {
			all = append(all, "/dev/"+strings.Split(f, "/")[3]+" "+strings.TrimSpace(string(b)))
		}
	}
	return all
}

func (l *lab) ctx() context.Context {
	patience := 30 * time.Second
	if l.kind.backend == "lvm" { // its commands take half a second each in the emulated guest, and queue
		patience = 5 * time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	l.t.Cleanup(cancel)
	return ctx
}

// code checks an error's code and that its text has a word.
func code(t *testing.T, err error, want codes.Code, word string) {
	t.Helper()
	if status.Code(err) != want || !strings.Contains(fmt.Sprint(err), word) {
		t.Errorf("got %v, want %s with %q in it", err, want, word)
	}
}
