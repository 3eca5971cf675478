// Package images makes the container images that the end-to-end tests run, from Debian's static busybox and the
// testbox program, and serves them on a loopback registry. No image registry is needed.
package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Busybox is where Debian's busybox-static puts its program.
const Busybox = "/bin/busybox"

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n" +
		"www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
	group = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnogroup:x:65534:\n"
)

// file is one entry of a layer: content, or a link to another entry (hard unless soft).
type file struct {
	path, link string
	content    []byte
	mode       int64
	soft, dir  bool
}

// Set is images by full reference.
type Set map[string]v1.Image

// Build makes all test images. testbox is the path of the testbox program, statically linked; sh that of a dynamic
// busybox for /bin/sh.
func Build(testbox, sh string) (Set, error) {
	box, err := os.ReadFile(testbox)
	if err != nil {
		return nil, err
	}
	base, err := busybox(sh)
	if err != nil {
		return nil, err
	}
	set := Set{}
	for ref, r := range recipes(box) {
		img, err := r.image(base)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		set[ref] = img
	}
	for _, tag := range []string{"2", "3"} {
		set["gcr.io/k8s-staging-cri-tools/test-image-tags:"+tag] = set["gcr.io/k8s-staging-cri-tools/test-image-tags:1"]
	}
	return set, nil
}

// recipe is what an image has over busybox.
type recipe struct {
	files      []file
	entrypoint []string
	cmd        []string
	user       string
	stop       string
	bare       bool // without busybox
}

func recipes(box []byte) map[string]recipe {
	const e2e, tools = "registry.k8s.io/e2e-test-images/", "gcr.io/k8s-staging-cri-tools/"
	server := func(name string, args ...string) recipe {
		return recipe{
			files:      []file{{path: "usr/sbin/" + name, content: box, mode: 0o755}, {path: "usr/share/nginx/html/index.html", content: []byte("Welcome to nginx!\n")}},
			entrypoint: append([]string{"/usr/sbin/" + name}, args...), stop: "SIGQUIT",
		}
	}
	// testbox acts by the name of its own file, so each is a copy, not a link
	var help []file
	for _, name := range []string{"ipcs", "pgrep", "memhog", "probe"} {
		help = append(help, file{path: "bin/" + name, content: box, mode: 0o755})
	}
	all := map[string]recipe{
		e2e + "busybox:1.29-2":                          {files: help, cmd: []string{"sh"}},
		e2e + "nginx:1.14-2":                            server("nginx"),
		e2e + "httpd:2.4.39-4":                          server("httpd"),
		e2e + "nonewprivs:1.3":                          {files: []file{{path: "nnp", content: box, mode: 0o4755}}, entrypoint: []string{"/nnp"}},
		tools + "hostnet-nginx-amd64:latest":            server("nginx", "-p", "12003"),
		tools + "hostnet-nginx-arm64:latest":            server("nginx", "-p", "12003"),
		"registry.k8s.io/pause:3.10.1":                  {files: []file{{path: "pause", content: box, mode: 0o755}}, entrypoint: []string{"/pause"}, bare: true},
		"registry.k8s.io/berth/web:1":                   server("nginx"),
		tools + "test-image-user-uid:latest":            {user: "1002", cmd: []string{"sh"}},
		tools + "test-image-user-username:latest":       {user: "www-data", cmd: []string{"sh"}},
		tools + "test-image-user-uid-group:latest":      {user: "1003:1003", cmd: []string{"sh"}},
		tools + "test-image-user-username-group:latest": {user: "www-data:www-data", cmd: []string{"sh"}},
		tools + "test-image-predefined-group:latest": {
			user: "default-user", cmd: []string{"sh"},
			files: []file{
				{path: "etc/passwd", content: []byte(passwd + "default-user:x:1000:1000::/home:/bin/sh\n")},
				{path: "etc/group", content: []byte(group + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")},
			},
		},
	}
	for _, n := range []string{"test-image-latest:latest", "test-image-tag:test", "test-image-tag:all", "test-image-tags:1", "test-image-1:latest", "test-image-2:latest", "test-image-3:latest", "test-image-digest:latest"} {
		all[tools+n] = recipe{cmd: []string{"sh"}, files: []file{{path: "etc/image-name", content: []byte(n + "\n")}}}
	}
	return all
}

func (r recipe) image(base v1.Layer) (v1.Image, error) {
	img := v1.Image(empty.Image)
	var err error
	if !r.bare {
		if img, err = mutate.AppendLayers(img, base); err != nil {
			return nil, err
		}
	}
	if len(r.files) > 0 {
		l, err := layer(r.files)
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			return nil, err
		}
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", arch()
	cf.Config = v1.Config{
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, User: r.user,
		Entrypoint: r.entrypoint, Cmd: r.cmd, StopSignal: r.stop,
	}
	return mutate.ConfigFile(img, cf)
}

// busybox is a root file system of one program with a hard link per applet.
func busybox(program string) (v1.Layer, error) {
	bin, err := os.ReadFile(Busybox)
	if err != nil {
		return nil, fmt.Errorf("install busybox-static: %w", err)
	}
	out, err := exec.Command(Busybox, "--list").Output()
	if err != nil {
		return nil, err
	}
	files := []file{{path: "bin/busybox", content: bin, mode: 0o755}}
	for applet := range strings.FieldsSeq(string(out)) {
		switch applet {
		case "busybox", "httpd", "run-init", "sh": // httpd's place is testbox's, sh's is shell's
			continue
		}
		files = append(files, file{path: "bin/" + applet, link: "bin/busybox", mode: 0o755}) // some unpackers apply it
	}
	sh, err := shell(program)
	if err != nil {
		return nil, err
	}
	files = append(files, sh...)
	for _, d := range []string{"etc", "home", "root", "run", "tmp", "usr/bin", "usr/sbin", "usr/lib", "var/www", "var/log", "proc", "sys", "dev", "mnt"} {
		mode := int64(0o755)
		if d == "tmp" {
			mode = 0o1777
		}
		files = append(files, file{path: d + "/", dir: true, mode: mode})
	}
	files = append(files,
		file{path: "etc/passwd", content: []byte(passwd)}, file{path: "etc/group", content: []byte(group)},
		file{path: "var/run", link: "../run", soft: true}, file{path: "etc/shells", content: []byte("/bin/sh\n")},
	)
	return layer(files)
}

// shell is the images' /bin/sh, a dynamic busybox, with the libraries it is linked to. Debian's static busybox
// runs its applets from inside its own shell whatever lies on the path, which hides a masked /bin/ls from the suite
// that looks for it.
func shell(program string) ([]file, error) {
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w", program, err)
	}
	from := map[string]string{"bin/sh": program}
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "/") {
			from[strings.TrimPrefix(word, "/")] = word
		}
	}
	var files []file
	for _, to := range slices.Sorted(maps.Keys(from)) {
		b, err := os.ReadFile(from[to])
		if err != nil {
			return nil, err
		}
		files = append(files, file{path: to, content: b, mode: 0o755})
	}
	return files, nil
}

// layer packs files; the time of everything is fixed, so that an image has the same digest on every machine.
func layer(files []file) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.path, Mode: f.mode, Size: int64(len(f.content)), Typeflag: tar.TypeReg, ModTime: time.Unix(1700000000, 0), Format: tar.FormatPAX}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		switch {
		case f.dir:
			h.Typeflag = tar.TypeDir
		case f.link != "" && f.soft:
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeLink, f.link
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	b := buf.Bytes()
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
}

// Push stores the set in the registry at host ("127.0.0.1:5000") under the path each image has at its own.
func (s Set) Push(host string) error {
	for ref, img := range s {
		_, path, ok := strings.Cut(ref, "/")
		if !ok {
			return fmt.Errorf("%q names no registry", ref)
		}
		tag, err := name.NewTag(host+"/"+path, name.Insecure)
		if err != nil {
			return err
		}
		if err := remote.Write(tag, img); err != nil {
			return fmt.Errorf("push %s: %w", ref, err)
		}
	}
	return nil
}
