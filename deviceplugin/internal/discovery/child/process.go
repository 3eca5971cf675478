package child

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"github.com/berth-project/berth/proto/errs"
)

// process is one running child.
type process struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	done chan struct{} // closed when it has ended

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan response
	err     error // why it ended
}

// start runs the program with args. Its standard error is ours.
func start(program string, args []string) (*process, error) {
	cmd := exec.Command(program, args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	p := &process{cmd: cmd, in: in, done: make(chan struct{}), waiting: map[uint64]chan response{}}
	go p.read(out) // ends with the child
	return p, nil
}

func (p *process) read(out io.Reader) {
	defer close(p.done)
	s := bufio.NewScanner(out)
	s.Buffer(make([]byte, 4096), maxLine)
	for s.Scan() {
		var r response
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			break // a library wrote to the standard output: this child's words cannot be told apart any more
		}
		p.mu.Lock()
		ch := p.waiting[r.ID]
		delete(p.waiting, r.ID)
		p.mu.Unlock()
		if ch != nil {
			ch <- r
		}
	}
	p.kill()
	err := p.cmd.Wait()
	if err == nil {
		err = errors.New("it ended by itself")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = errs.Unavailable.Errorf("the probe process ended: %w", err)
	for _, ch := range p.waiting {
		close(ch)
	}
	p.waiting = nil
}

// kill ends the child. One that is stuck in the kernel ends when the kernel lets it: nobody waits for that.
func (p *process) kill() { _ = p.cmd.Process.Kill() }

// ask sends a request; the channel gets its response, or is closed when the child ends.
func (p *process) ask(r request) (<-chan response, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting == nil {
		return nil, p.err
	}
	p.next++
	r.ID = p.next
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	ch := make(chan response, 1)
	p.waiting[r.ID] = ch
	if _, err := p.in.Write(append(b, '\n')); err != nil {
		delete(p.waiting, r.ID)
		return nil, errs.Unavailable.Errorf("the probe process does not listen: %w", err)
	}
	return ch, nil
}

// ended says why the child is gone; nil while it runs.
func (p *process) ended() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}
