package ldcache

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// list is what the real ldconfig says of a cache.
func list(t *testing.T, file string) string {
	t.Helper()
	out, err := exec.Command("/sbin/ldconfig", "-p", "-C", file).CombinedOutput()
	if err != nil {
		t.Fatalf("ldconfig -p: %v\n%s", err, out)
	}
	_, rest, _ := strings.Cut(string(out), "\n") // the first line names the file
	return rest
}

func host(t *testing.T) *Cache {
	t.Helper()
	b, err := os.ReadFile("/etc/ld.so.cache")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestRoundTrip: this machine's own cache, written again, says the same to ldconfig.
func TestRoundTrip(t *testing.T) {
	c := host(t)
	if len(c.Entries) < 10 {
		t.Fatalf("%d entries", len(c.Entries))
	}
	file := filepath.Join(t.TempDir(), "cache")
	if err := os.WriteFile(file, Merge(c, nil).Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, want := list(t, file), list(t, "/etc/ld.so.cache"); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestMergeInFront(t *testing.T) {
	c := host(t)
	c.Entries = append(c.Entries, Entry{Flags: Flags(), Name: "libcuda.so.1", Path: "/usr/local/cuda/compat/libcuda.so.1"})
	file := filepath.Join(t.TempDir(), "cache")
	ours := map[string]string{"libcuda.so.1": "/usr/local/nvidia/lib64/libcuda.so.1", "libc.so.6": "/x/libc.so.6"}
	if err := os.WriteFile(file, Merge(c, ours).Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	var cuda []string
	for line := range strings.Lines(list(t, file)) {
		if strings.Contains(line, "libcuda.so.1 ") {
			cuda = append(cuda, strings.TrimSpace(line))
		}
	}
	if len(cuda) != 2 || !strings.Contains(cuda[0], "=> /usr/local/nvidia/lib64/libcuda.so.1") || !strings.Contains(cuda[0], "libc6,x86-64") {
		t.Errorf("%q", cuda)
	}
}

// glibc makes a root file system with a C library, a program that asks for libberth.so.1, and two of those: the
// image's in a directory of its own, and the driver's elsewhere.
func glibc(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	for _, d := range []string{"lib/x86_64-linux-gnu", "lib64", "sbin", "etc", "opt/image", "usr/local/nvidia/lib64"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run("cp", "-L", "/lib/x86_64-linux-gnu/libc.so.6", filepath.Join(root, "lib/x86_64-linux-gnu"))
	run("cp", "-L", "/lib64/ld-linux-x86-64.so.2", filepath.Join(root, "lib64"))
	run("cp", "-L", "/sbin/ldconfig", filepath.Join(root, "sbin"))
	src := func(name, text string) string {
		t.Helper()
		at := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return at
	}
	image := filepath.Join(root, "opt/image/libberth.so.1")
	run("gcc", "-shared", "-fPIC", "-Wl,-soname,libberth.so.1", "-o", image, src("i.c", `const char *who(void) { return "image"; }`))
	run("gcc", "-shared", "-fPIC", "-Wl,-soname,libberth.so.1", "-o", filepath.Join(root, "usr/local/nvidia/lib64/libberth.so.1"), src("d.c", `const char *who(void) { return "driver"; }`))
	run("gcc", "-o", filepath.Join(root, "prog"), src("p.c", `int puts(const char *); const char *who(void); int main(void) { puts(who()); return 0; }`), image)
	if err := os.WriteFile(filepath.Join(root, "etc/ld.so.conf"), []byte("/opt/image\n/lib/x86_64-linux-gnu\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	inside(t, root, "/sbin/ldconfig")
	return root
}

func inside(t *testing.T, root, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s in the root: %v\n%s", program, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestRealLoader: the C library's own loader takes the driver's library once the cache is merged.
func TestRealLoader(t *testing.T) {
	root := glibc(t)
	if got := inside(t, root, "/prog"); got != "image" {
		t.Fatalf("before: %s", got)
	}
	cache := filepath.Join(root, "etc/ld.so.cache")
	b, err := os.ReadFile(cache)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	merged := Merge(c, map[string]string{"libberth.so.1": "/usr/local/nvidia/lib64/libberth.so.1"})
	if err := os.WriteFile(cache, merged.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := inside(t, root, "/prog"); got != "driver" {
		t.Errorf("after: %s", got)
	}
	if got := inside(t, root, "/sbin/ldconfig", "-p"); !strings.Contains(got, "libberth.so.1 (libc6,x86-64) => /usr/local/nvidia/lib64/libberth.so.1") || !strings.Contains(got, "libc.so.6") {
		t.Error(got)
	}
}

func TestCompare(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"liba.so.1", "liba.so.1", 0},
		{"liba.so.2", "liba.so.10", -1},
		{"liba.so.10", "liba.so.9", 1},
		{"lib1", "liba", 1},
		{"liba", "lib1", -1},
		{"lib", "liba", -1},
		{"liba", "lib", 1},
		{"", "", 0},
		{"a", "b", -1},
	} {
		got := compare(c.a, c.b)
		if (got > 0) != (c.want > 0) || (got < 0) != (c.want < 0) {
			t.Errorf("%q, %q: %d", c.a, c.b, got)
		}
	}
}

func TestRefusals(t *testing.T) {
	good := (&Cache{Entries: []Entry{{Flags: Flags(), Name: "a.so", Path: "/a.so"}}, HWCaps: []string{"x86-64-v3"}}).Bytes()
	change := func(at int, v byte) []byte {
		b := append([]byte(nil), good...)
		b[at] = v
		return b
	}
	for name, b := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "old alone": []byte("ld.so-1.7.0\x00\x00\x00\x00\x00"), "cut": good[:50],
		"many": change(22, 0xff), "string": change(54, 0xff), "order": change(28, 3), "extension": change(34, 0x7f), "cut string": good[:78],
	} {
		if _, err := Parse(b); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := Parse(good)
	if err != nil || len(c.HWCaps) != 1 || c.Entries[0].Path != "/a.so" {
		t.Errorf("%+v %v", c, err)
	}
}

// FuzzParse: an image's cache never does more than fail, and what is read can be written and read again.
func FuzzParse(f *testing.F) {
	if b, err := os.ReadFile("/etc/ld.so.cache"); err == nil && len(b) < 64<<10 {
		f.Add(b)
	}
	f.Add((&Cache{Entries: []Entry{{Flags: 0x303, Name: "a", Path: "/a", HWCap: hwcapIndex}}, HWCaps: []string{"v3"}, Generator: "g"}).Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			return
		}
		if _, err := Parse(Merge(c, map[string]string{"libcuda.so.1": "/x"}).Bytes()); err != nil {
			t.Error(err)
		}
	})
}
