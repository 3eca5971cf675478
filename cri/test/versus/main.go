// Command versus runs one container again and again by berth-shim's executor and by an OCI program (runc, crun), in turn,
// and tells how long each takes to create, start and delete it. The executor is driven without the daemon, by the package
// that the daemon drives it with; both get the same root file system and the spec that berth-cri makes of what a kubelet
// sends. It needs root, mounts and processes of its own: `make bench-executor` runs it in a cage and in a virtual machine.
//
//	versus -shim PROGRAM -peer PROGRAM -true PROGRAM -work DIR -group /CGROUP [-n SAMPLES] [-mounts N]
//
// -true is a static program that ends at once; its file is all that the container has. With -mounts each sample is taken a second
// time, while the host has N mounts more. The last line that versus prints is JSON: milliseconds by side and step; the sides
// among the mounts are "berth_mounts" and "peer_mounts".
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// config is what the flags say.
type config struct {
	shim, peer, program, work, group string
	samples, mounts                  int
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
	flag.IntVar(&c.mounts, "mounts", 0, "how many mounts the host has more when each sample is taken a second time, 0 for no second time")
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
	took := map[string]*steps{}
	sides := map[string]side{"berth": own, "peer": peer}
	for i := range warm + c.samples {
		if err := turn(ctx, sides, took, "", i); err != nil {
			return err
		}
		if c.mounts == 0 {
			continue
		}
		if err := among(ctx, c, sides, took, i); err != nil {
			return err
		}
	}
	line, err := json.Marshal(took)
	return errors.Join(err, own.end(ctx), printLine(line))
}

// turn is one container of each side, who is first by turns.
func turn(ctx context.Context, sides map[string]side, took map[string]*steps, suffix string, i int) error {
	order := []string{"berth", "peer"}
	for k := range order {
		name := order[(i+k)%2]
		if took[name+suffix] == nil {
			took[name+suffix] = &steps{}
		}
		to := took[name+suffix]
		if i < warm {
			to = &steps{}
		}
		if err := sides[name].life(ctx, i, to); err != nil {
			return fmt.Errorf("%s, container %d: %w", name, i, err)
		}
	}
	return ctx.Err()
}

// among is a turn among many mounts.
func among(ctx context.Context, c config, sides map[string]side, took map[string]*steps, i int) error {
	mounts, err := newCrowd(filepath.Join(c.work, "crowd"), c.mounts)
	if err != nil {
		return err
	}
	if err := mounts.come(); err != nil {
		return errors.Join(err, mounts.leave())
	}
	return errors.Join(turn(ctx, sides, took, "_mounts", i), mounts.leave())
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
