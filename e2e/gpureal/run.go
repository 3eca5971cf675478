package gpureal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Config is where everything is.
type Config struct {
	Bin, Out, Archive string
	// Tools has containerd, if that is to be the runtime instead of berth-cri.
	Tools string
	// Driver is where the driver's files are, "/" or "/usr/local/nvidia".
	Driver string
	// Fake is a profile in place of a GPU.
	Fake string
	// Files says that the driver's files are real although the GPU is not: its programs must come as far as the kernel.
	Files bool
}

func join(all []error) error { return errors.Join(all...) }

// ErrFailed is returned when a check failed; each has said why.
var ErrFailed = errors.New("checks failed")

// report prints a line for each check.
type report struct {
	w      io.Writer
	failed int
}

func (r *report) check(name, said string, err error) {
	mark := "ok  "
	if err != nil {
		mark, said = "FAIL", err.Error()
		r.failed++
	}
	fmt.Fprintf(r.w, "  %s  %-44s %s\n", mark, name, strings.ReplaceAll(said, "\n", "\n        "))
}

// skip says what was not looked at, and why.
func (r *report) skip(name, why string) { fmt.Fprintf(r.w, "  skip  %-44s %s\n", name, why) }

// Run does all checks and writes what it saw to out.
func Run(ctx context.Context, c Config, w io.Writer) (err error) {
	n, r := &node{c: c}, &report{w: w}
	defer func() {
		end, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err = errors.Join(err, n.down(end))
	}()
	if err := n.up(ctx); err != nil {
		return err
	}
	n.recording(ctx, r) // of a machine on which nothing else may work
	err = n.serve(ctx, "", 1)
	r.check("berth-gpu offers a GPU", "", err)
	n.offered(ctx, r)
	if err == nil {
		err = n.runtime(ctx)
		r.check("a runtime", "", err)
	}
	if err == nil {
		n.computes(ctx, r)
		n.closed(ctx, r)
		n.fault(ctx, r)
		n.slices(ctx, r)
	}
	if r.failed > 0 {
		return fmt.Errorf("%d %w", r.failed, ErrFailed)
	}
	return nil
}

// offered records what the specification and the status say.
func (n *node) offered(ctx context.Context, r *report) {
	spec, err := os.ReadFile(filepath.Join(n.lab.CDI(), "berth-gpu.json"))
	r.check("the CDI specification", fmt.Sprintf("%d mounts, %d nodes", strings.Count(string(spec), `"containerPath"`), strings.Count(string(spec), `"path": "/dev`)),
		errors.Join(err, keep(n.c.Out, "cdi.json", string(spec))))
	out, err := n.ask(ctx, "status")
	if err == nil && !strings.Contains(out, "Healthy") {
		err = errors.New(out)
	}
	r.check("status", "every GPU is Healthy", errors.Join(err, keep(n.c.Out, "status.txt", out)))
}

func keep(dir, name, text string) error {
	return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
}

// computes runs the driver's own program and ours in a container that has nothing but the specification.
func (n *node) computes(ctx context.Context, r *report) {
	start := time.Now()
	id, err := n.start(ctx, n.plugin.IDs[0])
	r.check("a container with a GPU starts", time.Since(start).Round(time.Millisecond).String(), err)
	if err != nil {
		return
	}
	out, err := n.exec(ctx, id, "sh", "-c", "for f in $(find /dev -name 'nvidia*' -type c); do (: <$f) 2>&1; echo $f; done")
	if err == nil && (strings.Contains(out, "not permitted") || !strings.Contains(out, "/dev/nvidiactl")) {
		err = errors.New(out)
	}
	r.check("it may open each node it was given", fmt.Sprintf("%d nodes", strings.Count("\n"+out, "\n/dev/nvidia")), err)
	if n.c.Files {
		n.loads(ctx, r, id)
		return
	}
	for _, cmd := range [][]string{{"nvidia-smi", "-L"}, {"vectoradd"}} {
		if n.c.Fake != "" {
			r.skip(cmd[0], "there is no GPU")
			continue
		}
		out, err := n.exec(ctx, id, cmd...)
		r.check(strings.Join(cmd, " "), out, err)
	}
}

var nodes = regexp.MustCompile(`"path": "/dev/[^"]+",\s+"type": "c",\s+"major": ([0-9]+)(?:,\s+"minor": ([0-9]+))?`)

// closed tries every device of the specification in a container that asked for none, by nodes it makes itself.
func (n *node) closed(ctx context.Context, r *report) {
	id, err := n.start(ctx)
	if err != nil {
		r.check("a container without a GPU", "", err)
		return
	}
	spec, err := os.ReadFile(filepath.Join(n.lab.CDI(), "berth-gpu.json"))
	var opened []string
	tried := map[string]bool{}
	for _, m := range nodes.FindAllStringSubmatch(string(spec), -1) {
		minor := m[2]
		if minor == "" {
			minor = "0"
		}
		key := m[1] + " " + minor
		if tried[key] {
			continue
		}
		tried[key] = true
		out, eerr := n.exec(ctx, id, "sh", "-c", "rm -f /tmp/n; mknod /tmp/n c "+key+" && (: </tmp/n) 2>&1 | sed 's/.*: //'")
		if err = errors.Join(err, eerr); out != "Operation not permitted" {
			opened = append(opened, fmt.Sprintf("%s: %q", key, out))
		}
	}
	if len(opened) > 0 {
		err = errors.Join(err, fmt.Errorf("not refused: %v", opened))
	}
	r.check("without a request nothing opens", fmt.Sprintf("%d device numbers, all EPERM, though the image says NVIDIA_VISIBLE_DEVICES=all", len(tried)), err)
}

// fault has a program store to nobody's address: the GPU stays healthy.
func (n *node) fault(ctx context.Context, r *report) {
	if n.c.Fake != "" {
		r.skip("an application's fault", "there is no GPU")
		return
	}
	id, err := n.start(ctx, n.plugin.IDs[0])
	if err != nil {
		r.check("an application's fault", "", err)
		return
	}
	said, err := n.exec(ctx, id, "vectoradd", "fault")
	if err == nil {
		r.check("an application's fault", "", errors.New("the program did not fail: "+said))
		return
	}
	time.Sleep(3 * time.Second) // longer than a look and an event take
	out, err := n.ask(ctx, "status", "--json")
	if err == nil && !strings.Contains(out, `"phase": "Healthy"`) {
		err = errors.New("the GPU is not Healthy:\n" + out)
	}
	r.check("an application's fault leaves it Healthy", said, err)
	n.reported(r, out)
	if err == nil {
		out, err = n.exec(ctx, id, "vectoradd")
		r.check("and it computes on", out, err)
	}
}

// reported looks for the fault's XID in the status: where the kernel's log can be read it has to be there.
func (n *node) reported(r *report, status string) {
	const what = "its XID is seen"
	if m := regexp.MustCompile(`"xids": \{[^}]*\}`).FindString(status); m != "" {
		r.check(what, strings.Join(strings.Fields(m), " "), nil)
		return
	}
	f, err := os.Open("/dev/kmsg")
	if err != nil {
		r.skip(what, "the kernel's log cannot be read: "+err.Error())
		return
	}
	r.check(what, "", errors.Join(errors.New("the program failed, the kernel's log can be read, and no XID was seen"), f.Close()))
}

// slices gives one GPU to two containers, which compute at the same time.
func (n *node) slices(ctx context.Context, r *report) {
	more := "[[resources]]\nname = \"nvidia.com/gpu\"\nsharing = {strategy = \"time-slicing\", replicas = 2}\n"
	if err := n.serve(ctx, more, 2); err != nil {
		r.check("time-slicing", "", err)
		return
	}
	if n.c.Fake != "" {
		r.skip("two containers on one GPU", "there is no GPU")
		return
	}
	var wg sync.WaitGroup
	outs, all := make([]string, 2), make([]error, 2)
	for i := range 2 {
		wg.Go(func() {
			id, err := n.start(ctx, n.plugin.IDs[i])
			if err == nil {
				outs[i], err = n.exec(ctx, id, "vectoradd", "3")
			}
			all[i] = err
		})
	}
	wg.Wait()
	r.check("two containers on one GPU", strings.Join(outs, "; "), join(all))
}
