package speaker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/berth-project/berth/cni/internal/bgp"
	"github.com/berth-project/berth/cni/internal/bgp/channel"
)

const (
	// silence is how long a child may say nothing: it reports every second.
	silence = 20 * time.Second
	// patience is how long a write to the child, or its end, may take.
	patience = 8 * time.Second
)

// runChild is one child's life. It returns nil if the child ended because it was told to.
func (s *Speaker) runChild(ctx context.Context) error {
	p, err := start(s.opt)
	if err != nil {
		return err
	}
	defer s.down()
	defer p.conn.Close() //nolint:errcheck // nothing is in it that the child could still say
	defer p.kill(s.opt.Log)
	reports, failed := make(chan *channel.ToParent), make(chan error, 1)
	quit := make(chan struct{})
	defer close(quit)
	go read(p, reports, failed, quit)
	if err := hello(p, reports, failed); err != nil {
		return err
	}
	return s.converse(ctx, p, reports, failed)
}

// read checks nothing but the form; it ends with the socket.
func read(p *process, reports chan<- *channel.ToParent, failed chan<- error, quit <-chan struct{}) {
	r := bufio.NewReaderSize(p.conn, 64<<10)
	for {
		m := new(channel.ToParent)
		err := p.conn.SetReadDeadline(time.Now().Add(silence))
		if err == nil {
			err = channel.Read(r, m, channel.MaxToParent)
		}
		if err != nil {
			failed <- err
			return
		}
		select {
		case reports <- m:
		case <-quit:
			return
		}
	}
}

func hello(p *process, reports <-chan *channel.ToParent, failed <-chan error) error {
	select {
	case err := <-failed:
		return lost(p, err)
	case m := <-reports:
		if m.Hello == nil || m.Hello.Version != channel.Version {
			return fmt.Errorf("berth-bgp speaks another version than %d: %+v", channel.Version, m.Hello)
		}
		return nil
	}
}

// lost says why the stream ended: mostly because the child did.
func lost(p *process, err error) error {
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("berth-bgp cannot be understood: %w", err)
	}
	select {
	case <-p.done:
		return fmt.Errorf("berth-bgp ended: %s", p.ended())
	case <-time.After(patience):
		return errors.New("berth-bgp closed its socket")
	}
}

func (s *Speaker) converse(ctx context.Context, p *process, reports <-chan *channel.ToParent, failed <-chan error) error {
	told, c, err := s.tell(p, 0, bgp.Config{})
	if err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return stop(p, reports, failed, true)
		case err := <-failed:
			return lost(p, err)
		case m := <-reports:
			if err := s.report(m); err != nil {
				return fmt.Errorf("berth-bgp reports what cannot be: %w", err)
			}
		case <-s.wake:
			if s.ends(c) {
				return stop(p, reports, failed, false)
			}
			if told, c, err = s.tell(p, told, c); err != nil {
				return err
			}
		}
	}
}

// tell sends the configuration if it is newer than what was told.
func (s *Speaker) tell(p *process, told uint64, before bgp.Config) (uint64, bgp.Config, error) {
	s.mu.Lock()
	c, version, restarting := s.config, s.version, s.restarted
	s.restarted = false
	s.mu.Unlock()
	if version == told {
		return told, before, nil
	}
	if err := p.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return told, before, err
	}
	if err := channel.Write(p.conn, channel.ToChild{Set: channel.NewSet(version, c, restarting)}, channel.MaxToChild); err != nil {
		return told, before, fmt.Errorf("tell berth-bgp its configuration: %w", err)
	}
	return version, c, nil
}

// ends says whether the configuration is no longer one that the child of c can become.
func (s *Speaker) ends(c bgp.Config) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.config.Enabled() || s.config.NeedsNewSpeaker(c)
}

// stop asks the child to end, and drains it until it has.
func stop(p *process, reports <-chan *channel.ToParent, failed <-chan error, graceful bool) error {
	if err := p.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := channel.Write(p.conn, channel.ToChild{Stop: &channel.Stop{Graceful: graceful}}, channel.MaxToChild); err != nil {
		return fmt.Errorf("ask berth-bgp to end: %w", err)
	}
	late := time.After(patience)
	for {
		select {
		case <-reports:
		case err := <-failed:
			if !errors.Is(err, io.EOF) {
				return lost(p, err)
			}
		case <-p.done:
			return nil
		case <-late:
			return errors.New("berth-bgp does not end")
		}
	}
}
