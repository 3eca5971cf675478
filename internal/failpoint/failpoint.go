// Package failpoint lets a test make a program fail, stall or die at a named place. The points are compiled into
// every build and cost one atomic load while none is armed.
//
// A point is declared once, as a package variable, so that every one is listed:
//
//	var afterNetns = failpoint.New("cri.run_pod.after_netns")
//	...
//	if err := afterNetns.Hit(); err != nil { return err }
//
// Points are armed by the environment variable BERTH_FAIL at start, or by a root-only file read again on each
// [Load]. Grammar, as in FreeBSD's fail(9): "name=term[->term...]" separated by ";", a term being
// "[N*]action[(arg)]". Actions: off, kill (SIGKILL to this process), panic, error(text), sleep(duration),
// pause(path) (until the path exists). "N*" limits a term to N hits, after which the next term rules; a
// last term without a count stays for ever, and when all terms are used up the point is off.
//
// The package imports the standard library only. It is the one place where package-level state is allowed: the
// list of points, because a point's reason to exist is to be reachable from outside.
package failpoint

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Env is the variable that arms points at start.
const Env = "BERTH_FAIL"

var registry struct {
	mu     sync.Mutex
	points map[string]*Point
}

// Point is one place in a program that a test can disturb. Use [New].
type Point struct {
	name string
	prog atomic.Pointer[program]
	hits atomic.Int64
}

// New registers a point. It panics on a name that is taken, which is a programming error.
func New(name string) *Point {
	registry.mu.Lock()
	defer registry.mu.Unlock()
	if registry.points == nil {
		registry.points = map[string]*Point{}
	}
	if registry.points[name] != nil {
		panic("failpoint " + name + " is declared twice")
	}
	p := &Point{name: name}
	registry.points[name] = p
	return p
}

// Names lists every registered point in order.
func Names() []string {
	registry.mu.Lock()
	defer registry.mu.Unlock()
	names := make([]string, 0, len(registry.points))
	for n := range registry.points {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Hit does what the point is armed for: nothing (nearly always), or one of the package's actions. Only the
// error action returns an error.
func (p *Point) Hit() error {
	prog := p.prog.Load()
	if prog == nil {
		return nil
	}
	p.hits.Add(1)
	return prog.hit(p.name)
}

// Hits is how often the point was met while armed.
func (p *Point) Hits() int64 { return p.hits.Load() }

// Arm replaces the arming of all points by spec; the empty spec turns all off. An unknown point or a term that
// does not parse changes nothing and is an error that names it.
func Arm(spec string) error {
	progs := map[string]*program{}
	for _, one := range strings.FieldsFunc(spec, func(r rune) bool { return r == ';' || r == '\n' }) {
		name, text, ok := strings.Cut(strings.TrimSpace(one), "=")
		if !ok {
			return fmt.Errorf("failpoint %q: want name=term", one)
		}
		prog, err := parse(text)
		if err != nil {
			return fmt.Errorf("failpoint %s: %w", name, err)
		}
		progs[name] = prog
	}
	registry.mu.Lock()
	defer registry.mu.Unlock()
	for name := range progs {
		if registry.points[name] == nil {
			return fmt.Errorf("failpoint %s does not exist in this program", name)
		}
	}
	for name, p := range registry.points {
		p.prog.Store(progs[name])
	}
	return nil
}

// Load arms from the environment and, if file is not empty and exists, from that file. The file must be a
// regular file owned by root with no permission for others, else it is refused.
func Load(file string) error {
	spec := os.Getenv(Env)
	if file != "" {
		more, err := readRootOnly(file)
		if err != nil {
			return err
		}
		spec += ";" + more
	}
	return Arm(spec)
}

func readRootOnly(file string) (string, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("failpoint file: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	fi, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("failpoint file: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || !fi.Mode().IsRegular() || fi.Mode().Perm()&0o077 != 0 || st.Uid != 0 {
		return "", fmt.Errorf("failpoint file %s: must be a regular file of root with mode 0600", file)
	}
	b := make([]byte, 64<<10)
	n, err := f.Read(b)
	if err != nil && n == 0 {
		return "", nil //nolint:nilerr // an empty file arms nothing
	}
	return string(b[:n]), nil
}

type term struct {
	action, arg string
	count       int // 0: without limit
}

type program struct {
	mu    sync.Mutex
	terms []term
}

func parse(text string) (*program, error) {
	prog := &program{}
	for _, s := range strings.Split(text, "->") {
		t := term{action: strings.TrimSpace(s)}
		if n, rest, ok := strings.Cut(t.action, "*"); ok {
			c, err := strconv.Atoi(n)
			if err != nil || c < 1 {
				return nil, fmt.Errorf("bad count in %q", s)
			}
			t.count, t.action = c, rest
		}
		if a, rest, ok := strings.Cut(t.action, "("); ok {
			t.action, t.arg = a, strings.TrimSuffix(rest, ")")
		}
		switch t.action {
		case "off", "kill", "panic", "error", "pause":
		case "sleep":
			if _, err := time.ParseDuration(t.arg); err != nil {
				return nil, fmt.Errorf("bad duration in %q", s)
			}
		default:
			return nil, fmt.Errorf("unknown action %q: have off, kill, panic, error, sleep, pause", t.action)
		}
		prog.terms = append(prog.terms, t)
	}
	return prog, nil
}

func (g *program) next() term {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.terms) == 0 {
		return term{action: "off"}
	}
	t := &g.terms[0]
	if t.count > 0 {
		t.count--
		if t.count == 0 {
			defer func() { g.terms = g.terms[1:] }()
		}
	}
	return *t
}

func (g *program) hit(name string) error {
	switch t := g.next(); t.action {
	case "kill":
		_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
		select {} // never goes on past the point
	case "panic":
		panic("failpoint " + name)
	case "error":
		return fmt.Errorf("failpoint %s: %s", name, t.arg)
	case "sleep":
		d, _ := time.ParseDuration(t.arg) //nolint:errcheck // parsed when armed
		time.Sleep(d)
	case "pause":
		for {
			if _, err := os.Stat(t.arg); err == nil {
				return nil
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}
