package torture

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stores are the paths of what a damage can meet: a pod, its running container, an ended one, an image that nobody uses.
type stores struct {
	root, state       string
	pod, running      string
	ended, image      string // image: its digest's digits
	config, layer     string
	podRecord, record string // of the pod and of the running container
}

// damage is a way in which the stores can be found, what `berth-cri check` says of it, and whether it can mend it.
type damage struct {
	name  string
	do    func(s *stores) error
	says  string // words of the table's line
	harm  bool   // the exit code says so
	stays bool   // after --repair
}

func flip(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 0x20
	return os.WriteFile(file, b, 0o600)
}

func cut(file string) error { return os.Truncate(file, 20) }

func damages() []damage {
	return []damage{
		{"nothing", func(*stores) error { return nil }, "the stores are good", false, false},
		{"a pod's record is damaged", func(s *stores) error { return flip(s.podRecord) }, "HARM pod record cannot be read quarantine/pod", true, false},
		{"a pod's record is empty", func(s *stores) error { return os.Truncate(s.podRecord, 0) }, "HARM pod record cannot be read", true, false},
		{"a container's record is cut off", func(s *stores) error { return cut(s.record) }, "HARM container record cannot be read quarantine/container", true, false},
		{"a record says nothing", func(s *stores) error { return seal(s.record, []byte(`{"version":1,"config":7}`)) }, "HARM container record cannot be read", true, false},
		{"a record is another's", func(s *stores) error { return os.Rename(s.record, s.record[:len(s.record)-4]+"0000") }, "HARM container another container's", true, false},
		{"a record is of a newer version", func(s *stores) error { return seal(s.record, []byte(`{"version":99}`)) }, "HARM container newer berth-cri", true, true},
		{"a write was interrupted", func(s *stores) error {
			return os.WriteFile(filepath.Join(filepath.Dir(s.record), ".tmp-x-1"), nil, 0o600)
		}, "note container interrupted remove", false, false},
		{"a running container's spec is damaged", func(s *stores) error {
			return cut(filepath.Join(s.root, "containers", s.running, "spec.json"))
		}, "HARM container takes no exec", true, true},
		{"a container has no record", func(s *stores) error { return os.Remove(s.record) }, "note container next start ends", false, false},
		{"an exit record is damaged", func(s *stores) error { return seal(filepath.Join(s.state, "exits", s.ended), nil, 3) }, "HARM exit unknown quarantine/exit", true, false},
		{"an image's record is damaged", func(s *stores) error { return flip(s.image) }, "HARM image pulled again", true, false},
		{"an image's config is changed", func(s *stores) error { return flip(s.config) }, "HARM config digest", true, false},
		{"an image's config is gone", func(s *stores) error { return os.Remove(s.config) }, "HARM image lacks its config", true, false},
		{"a layer's record is damaged", func(s *stores) error { return flip(filepath.Join(s.layer, "layer")) }, "HARM layer record cannot be read", true, false},
		{"a layer's file is empty", func(s *stores) error { return emptyOne(filepath.Join(s.layer, "fs")) }, "HARM layer content has bytes", true, false},
		{"a layer is gone", func(s *stores) error { return os.RemoveAll(s.layer) }, "HARM image lacks layer", true, false},
		{"trash was not deleted", func(s *stores) error {
			return errors.Join(os.MkdirAll(filepath.Join(s.root, "trash", "x", "y"), 0o700), os.MkdirAll(filepath.Join(s.root, "images", "tmp", "1-1"), 0o700))
		}, "note trash remove", false, false},
	}
}

// seal writes a record as the daemon does; wrong is added to its checksum.
func seal(file string, data []byte, wrong ...uint32) error {
	sum := crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
	for _, w := range wrong {
		sum += w
	}
	return os.WriteFile(file, append(fmt.Appendf(nil, "berth-sealed-1 %08x %d\n", sum, len(data)), data...), 0o600)
}

// emptyOne truncates the first file that has something in it.
func emptyOne(dir string) error {
	done := errors.New("done")
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if fi, err := d.Info(); err != nil || fi.Size() == 0 {
			return err
		}
		return errors.Join(done, os.Truncate(p, 0))
	})
	if errors.Is(err, done) {
		return nil
	}
	return errors.Join(errors.New("no file to empty"), err)
}

// TestCheck damages the stores of a daemon that is stopped, in every way, and holds `berth-cri check` against it: it names the
// object and what is lost, --repair leaves nothing that a second look finds, and the daemon starts and works.
func TestCheck(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if _, err := check(ctx); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("while a daemon runs it says %v", err)
	}
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) { d.meet(ctx, t) })
	}
	node.clean(t)
}

func (d damage) meet(ctx context.Context, t *testing.T) {
	t.Helper()
	s := fill(ctx, t)
	if err := node.process().Stop(); err != nil {
		t.Fatal(err)
	}
	if err := d.do(s); err != nil {
		t.Fatal(err)
	}
	table, err := check(ctx)
	if (err != nil) != d.harm {
		t.Errorf("it ends with %v\n%s", err, table)
	}
	if !says(table, d.says) {
		t.Errorf("no line says %q:\n%s", d.says, table)
	}
	mended, err := check(ctx, "--repair")
	if (err != nil) != d.stays {
		t.Errorf("--repair ends with %v\n%s", err, mended)
	}
	if table, err := check(ctx); (err != nil) != d.stays || !d.stays && strings.Contains(table, "HARM") {
		t.Errorf("after --repair: %v\n%s", err, table)
	}
	if strings.Contains(d.says, "newer") { // which no daemon of now may touch
		if err := os.Remove(s.record); err != nil {
			t.Error(err)
		}
	}
	if _, err := node.start(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if err := lives(ctx, node, 1); err != nil {
		t.Error(err)
	}
	if _, err := node.client.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: another}}); err != nil {
		t.Error(err)
	}
	evict(t)
	if _, err := node.client.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: another}}); err != nil {
		t.Error(err)
	}
	for _, q := range []string{"records/quarantine", "images/quarantine"} { // evidence that was looked at
		if err := os.RemoveAll(filepath.Join(s.root, q)); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(s.root, "images/quarantine"), 0o700)); err != nil {
		t.Error(err)
	}
}

// fill makes a pod with a running and an ended container, pulls an image, and says where all that is.
func fill(ctx context.Context, t *testing.T) *stores {
	t.Helper()
	s := &stores{root: filepath.Join(node.lab.Dir, "berth"), state: filepath.Join(node.lab.Run, "berth")}
	p, err := runPod(ctx, node, "check")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		id           *string
		name, script string
	}{{&s.running, "running", longScript(1)}, {&s.ended, "ended", "exit 4"}} {
		if *c.id, err = p.create(ctx, c.name, c.script); err != nil {
			t.Fatal(err)
		}
		if err := p.n.client.StartContainer(ctx, *c.id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.ended(ctx, s.ended); err != nil {
		t.Fatal(err)
	}
	pulled, err := node.client.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: another}})
	if err != nil {
		t.Fatal(err)
	}
	hex := strings.TrimPrefix(pulled.GetImageRef(), "sha256:")
	if _, after, ok := strings.Cut(hex, "@sha256:"); ok {
		hex = after
	}
	s.pod = p.id
	s.podRecord, s.record = filepath.Join(s.root, "records/pod", p.id), filepath.Join(s.root, "records/container", s.running)
	s.image, s.config = filepath.Join(s.root, "images/images", hex+".image"), filepath.Join(s.root, "images/configs", hex)
	b, err := os.ReadFile(s.image)
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := bytes.Cut(b, []byte("\n"))
	var rec struct{ Layers []struct{ DiffID string } }
	if err := json.Unmarshal(body, &rec); err != nil {
		t.Fatal(err)
	}
	s.layer = filepath.Join(s.root, "images/layers", strings.TrimPrefix(rec.Layers[len(rec.Layers)-1].DiffID, "sha256:"))
	return s
}

// check runs `berth-cri check` and returns its table; the error is its exit code and what it says.
func check(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(node.lab.Bin, "berth-cri"), append([]string{"--config", node.conf, "check"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, stderr.String())
	}
	return stdout.String(), nil
}

// says looks for a line with all of the words.
func says(table, words string) bool {
	for line := range strings.Lines(table) {
		all := true
		for _, w := range strings.Fields(words) {
			all = all && strings.Contains(line, w)
		}
		if all {
			return true
		}
	}
	return false
}
