// Command versus runs one container again and again by berth-shim's executor and by an OCI program (runc, crun), in turn,
// and tells how long each takes to create, start and delete it. The executor is driven without the daemon, by the package
// that the daemon drives it with; both get the same root file system and the spec that berth-cri makes of what a kubelet
// sends. It needs root, mounts and processes of its own: `make bench-executor` runs it in a cage and in a virtual machine.
//
//	versus -shim PROGRAM -peer PROGRAM -true PROGRAM -work DIR -group /CGROUP [-n SAMPLES]
//
// -true is a static program that ends at once; its file is all that the container has. The last line that versus prints is
// JSON: milliseconds by side and step.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// config is what the flags say.
type config struct {
	shim, peer, program, work, group string
	samples                          int
}

// steps of a container's life, in milliseconds, a sample each.
type steps struct {
	Create []float64 `json:"create"`
	Start  []float64 `json:"start"`
	Delete []float64 `json:"delete"`
}

// side runs one container of a number: what is timed is added to s, what is not (the process's end) happens in between.
type side interface {
	life(ctx context.Context, number int, s *steps) error
}

func main() {
	var c config
	flag.StringVar(&c.shim, "shim", "", "berth-shim")
	flag.StringVar(&c.peer, "peer", "", "runc, or a program with its command line")
	flag.StringVar(&c.program, "true", "", "static program that the container runs")
	flag.StringVar(&c.work, "work", "", "directory, made and left for the caller to remove")
	flag.StringVar(&c.group, "group", "", "cgroup, made and left for the caller to remove")
	flag.IntVar(&c.samples, "n", 30, "samples of each side, after three that do not count")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, c)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "versus:", err)
		os.Exit(1)
	}
}

// warm is how many lives each side has before it is timed.
const warm = 3

func run(ctx context.Context, c config) error {
	b, err := newBundle(c)
	if err != nil {
		return err
	}
	own, err := newOwn(ctx, c, b)
	if err != nil {
		return err
	}
	defer own.close()
	peer, err := newPeer(c, b, own)
	if err != nil {
		return err
	}
	took := map[string]*steps{"berth": {}, "peer": {}}
	sides := map[string]side{"berth": own, "peer": peer}
	order := []string{"berth", "peer"}
	for i := range warm + c.samples {
		for k := range order {
			name := order[(i+k)%2]
			to := took[name]
			if i < warm {
				to = &steps{}
			}
			if err := sides[name].life(ctx, i, to); err != nil {
				return fmt.Errorf("%s, container %d: %w", name, i, err)
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	line, err := json.Marshal(took)
	return errors.Join(err, own.end(ctx), printLine(line))
}

func printLine(b []byte) error {
	_, err := fmt.Println(string(b))
	return err
}

// timed adds a step's time in milliseconds.
func timed(to *[]float64, step func() error) error {
	begin := time.Now()
	err := step()
	*to = append(*to, float64(time.Since(begin).Microseconds())/1000)
	return err
}
