package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/berth-project/berth/cri/internal/audit"
	"github.com/berth-project/berth/cri/internal/config"
	"github.com/berth-project/berth/cri/internal/image"
	"github.com/berth-project/berth/cri/internal/pod"
	"github.com/berth-project/berth/cri/internal/store"
	"github.com/berth-project/berth/internal/lockfile"
)

// errHarm is the end of a check that found, or left, damage.
var errHarm = errors.New("the stores are damaged")

// checkCommand is `berth-cri check`: it looks at the stores while no daemon runs, and with repair puts what is damaged
// aside and removes leftovers. What was mended can show what lay behind it, so it looks again.
func checkCommand(path string, repair bool, out io.Writer) (err error) {
	conf, err := load(path)
	if err != nil {
		return err
	}
	release, err := holdStores(conf)
	if err != nil {
		return err
	}
	defer release()
	all, err := look(conf)
	if err != nil {
		return err
	}
	const passes = 4 // a layer, then its image
	mended := 0
	for range passes {
		if !repair {
			break
		}
		n, err := mend(all)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if mended += n; mended == n { // the table shows what there was
			err = audit.Write(out, all)
		}
		more, lerr := look(conf)
		if err := errors.Join(err, lerr); err != nil {
			return err
		}
		all = more
	}
	if mended > 0 {
		if _, err := fmt.Fprintf(out, "%d mended; what is left:\n", mended); err != nil {
			return err
		}
	}
	if err := audit.Write(out, all); err != nil {
		return err
	}
	if n := audit.Harm(all); n > 0 {
		return fmt.Errorf("%w: %d findings", errHarm, n)
	}
	_, err = fmt.Fprintln(out, "the stores are good")
	return err
}

// mend applies what can be, and returns how much that was.
func mend(all []audit.Finding) (n int, err error) {
	for _, f := range all {
		if f.Action != audit.None {
			n++
			err = errors.Join(err, f.Apply())
		}
	}
	return n, err
}

// look audits every store, each by its owner.
func look(conf config.Config) ([]audit.Finding, error) {
	records := filepath.Join(conf.Root, "records")
	good, all, err := store.Audit(records)
	if err != nil {
		return nil, err
	}
	used, more, err := pod.Audit(pod.Audited{
		Root: conf.Root, State: conf.State, Records: good,
		Damaged: func(kind, id string, cause error) audit.Finding { return store.Damaged(records, kind, id, cause) },
	})
	if err != nil {
		return nil, err
	}
	all = append(all, more...)
	more, err = image.Audit(filepath.Join(conf.Root, "images"), used)
	if errors.Is(err, fs.ErrNotExist) { // nothing was ever pulled
		err = nil
	}
	return append(all, more...), err
}

// holdStores takes the locks that a daemon has. One that runs is named.
func holdStores(conf config.Config) (release func(), err error) {
	var locks []*lockfile.Lock
	release = func() {
		for _, l := range locks {
			_ = l.Close() // the process ends
		}
	}
	for _, dir := range []string{"records", "images"} {
		l, err := lockfile.Take(filepath.Join(conf.Root, dir, "lock"))
		var held *lockfile.Held
		switch {
		case err == nil:
			locks = append(locks, l)
		case errors.As(err, &held):
			release()
			return nil, fmt.Errorf("a berth-cri uses %s: stop it first (systemctl stop berth-cri; containers go on): %w", conf.Root, err)
		case errors.Is(err, fs.ErrNotExist) && dir == "images":
		default:
			release()
			return nil, fmt.Errorf("store: %w", err)
		}
	}
	return release, nil
}
