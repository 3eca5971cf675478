package speaker

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// process is a started child and the agent's end of the socket to it.
type process struct {
	cmd  *exec.Cmd
	conn net.Conn
	done chan struct{} // closed when the child has been waited for

	mu    sync.Mutex
	panic string // the line that says why it panicked
}

// start execs the child as another user with one capability, an empty environment, and no file descriptor but the
// null device, the socket (3) and a pipe for what it has to say when it dies (2).
func start(o Options) (*process, error) {
	if o.UID == 0 || o.GID == 0 {
		return nil, errors.New("berth-bgp does not run as root: give it a user and a group")
	}
	// What some library opened without O_CLOEXEC would be the child's too (Linux 5.11).
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("close_range: %w", err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("a socket pair: %w", err)
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "child"), os.NewFile(uintptr(fds[1]), "agent")
	conn, err := net.FileConn(ours)
	err = errors.Join(err, ours.Close())
	if err != nil {
		return nil, errors.Join(err, theirs.Close())
	}
	cmd := &exec.Cmd{
		Path: o.Program, Args: []string{"berth-bgp"}, Env: []string{}, Dir: "/",
		ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{
			Credential:  &syscall.Credential{Uid: o.UID, Gid: o.GID, Groups: []uint32{}},
			AmbientCaps: []uintptr{unix.CAP_NET_BIND_SERVICE},
			Setpgid:     true,
		},
	}
	said, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	err = errors.Join(err, theirs.Close())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", o.Program, err), conn.Close())
	}
	p := &process{cmd: cmd, conn: conn, done: make(chan struct{})}
	go p.wait(said, o.Log)
	return p, nil
}

// wait reads what the child says until it ends, and then reaps it.
func (p *process) wait(said io.Reader, log *slog.Logger) {
	defer close(p.done)
	p.listen(said, log)
	if err := p.cmd.Wait(); err != nil {
		log.Debug("berth-bgp ended", "how", err)
	}
}

// linesPerMinute of a child are logged, because peers can make it say much; a panic's first line is kept in any case.
const linesPerMinute = 60

func (p *process) listen(said io.Reader, log *slog.Logger) {
	r := bufio.NewReaderSize(said, 1024)
	minute, n := time.Time{}, 0
	for {
		line, err := r.ReadSlice('\n')
		text := clean(line)
		if strings.HasPrefix(text, "panic: ") || strings.HasPrefix(text, "fatal error: ") {
			p.mu.Lock()
			p.panic = text
			p.mu.Unlock()
		}
		if now := time.Now(); now.Sub(minute) >= time.Minute {
			if n > linesPerMinute {
				log.Warn("berth-bgp said more than is logged", "lines", n-linesPerMinute)
			}
			minute, n = now, 0
		}
		if text != "" {
			if n++; n <= linesPerMinute {
				log.Warn("berth-bgp says", "line", text)
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func clean(b []byte) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsGraphic(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(string(b), ""))
}

// ended says how the child ended; done must be closed.
func (p *process) ended() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.panic != "" {
		return p.panic
	}
	return p.cmd.ProcessState.String()
}

// kill ends the child at once, if it has not ended, and waits for it.
func (p *process) kill(log *slog.Logger) {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		log.Error("berth-bgp cannot be killed", "error", err)
	}
	<-p.done
}
